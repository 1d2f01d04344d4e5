# The two commands of the README are `make demo` and `make test`; both work from a fresh clone with Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test install extras check bench clean

demo: install
	$(BIN)/lesion demo --overwrite

test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow and not gpu and not hub"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "lesion needs Python 3.11 or later; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(INSTALLED)

extras: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[cluster,quant]"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/ablation.py
	$(BIN)/python benchmarks/training.py

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .mypy_cache
