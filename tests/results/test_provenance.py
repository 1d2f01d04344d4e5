"""Versions are read from what is installed, without importing it."""

import subprocess
import sys
from importlib import metadata

from lesion.results import commit, versions


def test_versions_are_the_installed_ones() -> None:
    found = versions()
    assert found["torch"] == metadata.version("torch")
    assert found["python"] == ".".join(str(part) for part in sys.version_info[:3])


def test_results_import_neither_torch_nor_transformers() -> None:
    code = "import sys, lesion.results as r; r.versions(); print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_commit_is_a_hash_or_nothing() -> None:
    found = commit()
    assert found is None or len(found.removesuffix("-dirty")) == 40
