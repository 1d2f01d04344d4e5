"""Rules that hold over the whole source tree."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "lesion"
ORDER = [
    "errors",
    "axes",
    "data",
    "anatomy",
    "checkpoints",
    "statistics",
    "interventions",
    "results",
    "engine",
    "studies",
    "report",
    "cli",
]
"""The order of the data; `lesion/__init__.py` only names what others hold."""
FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def part(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_every_part_has_its_place_in_the_order() -> None:
    assert {part(path) for path in FILES} <= set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_imports_only_from_earlier_parts(path: Path) -> None:
    parts = [name.split(".")[1] for name in imports(path) if name.startswith("lesion.")]
    assert [name for name in parts if ORDER.index(name) > ORDER.index(part(path))] == []


def test_hooks_are_registered_in_one_file() -> None:
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in FILES
        if "register_forward" in path.read_text() or '["forward"]' in path.read_text()
    }
    assert found == {"interventions/hooks.py"}


@pytest.mark.parametrize("module", ["lesion", "lesion.cli", "lesion.report", "lesion.results"])
def test_torch_is_not_imported_before_it_is_needed(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
