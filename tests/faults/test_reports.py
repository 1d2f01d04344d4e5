"""Faults 15, 29 and 56: whatever models, domains and files are called, the page and its figures render."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from lesion.report import write_report
from tests.report.conftest import make_run
from tests.report.report_runs import MakeRun
from tests.report.zero_modes_runs import make_all, rewritten

__all__ = ["make_run"]

HOSTILE = {
    "script": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "end of the page": "</title></style></script></svg></body>--><!--",
    "a NUL and an escape": "a\0b\x1b[2Jc\x07",
    "half a character": b"caf\xc3".decode("utf-8", "replace"),
    "turned around": "abc\u202egnp.exe\u2066x",
    "mathematics": "$\\frac{1}{$ %s {0} {{ 7 * 7 }} {% raw %}",
    "formula": "=cmd|' /C calc'!A0",
    "lines": "one\ntwo\r\nthree\u2028four",
    "joined": "e" + "\u0301" * 300,
}


def visible(page: str) -> str:
    return re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)


def test_hostile_names(make_run: MakeRun) -> None:
    names, joined = tuple(HOSTILE.values()), " ".join(HOSTILE.values())
    changes = {"domains": names, "warnings": list(names), "reason": joined, "command": joined, "status": "partial"}
    run = make_run(name=joined, **changes)
    page = write_report(run).read_bytes().decode("utf-8")
    shown = visible(page)
    assert not re.search(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]", page)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<img" not in page
    assert shown.count("</title>") == len(re.findall("<title>", shown))
    assert page.count("<script>") == page.count("</body>") == 1
    assert "{{ 7 * 7 }}" in page
    for path in (run / "figures").glob("*.svg"):
        content = path.read_text(encoding="utf-8")
        ElementTree.fromstring(content)
        assert "\u202e" not in content
    assert "\ufffdgnp.exe" in (run / "figures" / "layers_domains.svg").read_text(encoding="utf-8")


def test_text_from_right_to_left_is_kept(make_run: MakeRun) -> None:
    """Only the marks that reverse what follows are taken out; Arabic and Hebrew are text like any other."""
    run = make_run(name="نموذج", domains=("עברית", "plain"))
    page = write_report(run).read_text(encoding="utf-8")
    assert "<h1>نموذج</h1>" in page
    assert "עברית" in page
    assert "עברית" in (run / "figures" / "layers_domains.svg").read_text(encoding="utf-8")


def test_a_megabyte_in_every_place_where_names_go(make_run: MakeRun) -> None:
    """It is shown by its beginning; the page stays as large as any, and the tables keep all of it."""
    long = "n" * 1_000_000
    usual = write_report(make_run("usual", domains=("a", "b"))).stat().st_size
    run = make_run("long", name=long, domains=(long, "b"), warnings=[long], command=long, reason=long)
    page = write_report(run)
    assert page.stat().st_size < usual + 50_000  # some dozens of places with a few hundred characters each
    assert "n" * 150 in page.read_text()
    assert "(1,000,000 characters)" in page.read_text()
    assert max(path.stat().st_size for path in (run / "figures").iterdir()) < 500_000


def test_a_run_that_failed_over_a_hostile_tensor_name(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(status="failed", reason="ModelError: no place for: a\0<script>alert(1)</script>\x1b[2J")
    page = write_report(run, out=tmp_path / "page.html").read_text()
    assert "no place for: a\ufffd&lt;script&gt;alert(1)&lt;/script&gt;\ufffd[2J" in page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_all(tmp_path_factory.mktemp("runs"))


def refuse_hostile(page: str, run: Path) -> None:
    shown = visible(page)
    assert not re.search(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]", page)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<img" not in page
    assert page.count("<script>") == page.count("</body>") == 1
    assert shown.count("</title>") == len(re.findall("<title>", shown))
    for path in (run / "figures").glob("*.svg"):
        ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert all(path.parent == run / "figures" for path in (run / "figures").rglob("*"))


def test_hostile_names_of_masks_and_tensors(runs: dict[str, Path], tmp_path: Path) -> None:
    """The names of masks label rows, columns and files of figures; those of tensors are in tables."""
    names = list(HOSTILE.values())

    def renamed(table: pd.DataFrame) -> pd.DataFrame:
        known = {name: names[k] for k, name in enumerate(dict.fromkeys([*table["a"], *table["b"]]))}
        tensors = table["tensor"].where(table["tensor"].isna(), names[0] + "/../../x")
        return table.assign(a=table["a"].map(known), b=table["b"].map(known), tensor=tensors)

    run = rewritten(runs["overlap"], tmp_path / "run", {"zero_modes_overlap": renamed}, warnings=names)
    refuse_hostile(write_report(run).read_bytes().decode("utf-8"), run)


@pytest.mark.parametrize("study", ["diff", "dynamics"])
def test_hostile_names_of_checkpoints(runs: dict[str, Path], tmp_path: Path, study: str) -> None:
    joined = " ".join(HOSTILE.values())
    checkpoint = {"name": joined, "called": joined, "fingerprint": joined, "model_type": joined}
    fields = {"base": checkpoint, "tuned": checkpoint, "checkpoints": [checkpoint] * 4, "looked_at": [joined]}
    run = rewritten(runs[study], tmp_path / "run", command=joined, note=joined, warnings=[joined], **fields)
    refuse_hostile(write_report(run).read_bytes().decode("utf-8"), run)


def test_components_that_lesion_does_not_know_name_no_file(runs: dict[str, Path], tmp_path: Path) -> None:
    """A table that somebody edited: figures are only of components that are known."""

    def odd(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(component=table["component"].astype(str).replace("q", "../../<b>q"))

    tables = [f"zero_modes{end}" for end in ("", "_spectra_2d", "_spectra", "_images", "_harmonics")]
    run = rewritten(runs["diff"], tmp_path / "run", dict.fromkeys(tables, odd))
    page = write_report(run).read_text(encoding="utf-8")
    assert "<b>q" not in page
    assert not list(tmp_path.glob("*.svg"))
    assert not [path for path in (run / "figures").iterdir() if not re.fullmatch(r"[a-z0-9_]+\.(svg|png)", path.name)]
