"""The Python in the README and in docs/ runs as it stands, on the model that comes with the package."""

import re
from pathlib import Path

import pytest

from lesion.anatomy import zoo_models

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCKS = [
    (page, number, code)
    for page in PAGES
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE))
]


@pytest.mark.parametrize(("page", "number", "code"), BLOCKS, ids=lambda value: getattr(value, "name", None))
def test_code(page: Path, number: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"{page.name}, block {number}", "exec"), {})


def test_there_is_code_to_run() -> None:
    assert {page.name for page, _, _ in BLOCKS} >= {"README.md", "layers.md"}
    assert "python-8l" in zoo_models()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    for named in re.findall(r"`((?:docs|benchmarks|zoo|src)/[\w./-]+)`", page.read_text()):
        assert (ROOT / named).exists(), named
