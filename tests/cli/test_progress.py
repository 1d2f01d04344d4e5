"""Progress where there is no terminal: few lines, none of them twice."""

import pytest
from rich.console import Console

from lesion.cli import console
from lesion.cli.console import progress_on


def test_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with progress_on(Console(stderr=True)) as progress:
        for at, done in [(1, 0), (15, 0), (20, 10), (21, 20), (31, 30), (40, 100), (41, 100), (60, 100)]:
            clock[0] = float(at)
            progress(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" of")[0] for line in lines] == ["10", "30", "100"]
    assert lines[1] == "30 of 100 tokens, about 72 s left"  # 30 in 31 s
    assert lines[2] == "100 of 100 tokens, about 0 s left"
