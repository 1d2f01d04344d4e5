"""Progress where there is no terminal: few lines, none of them twice."""

import pytest
from rich.console import Console

from lesion.cli import console
from lesion.cli.console import progress_on


def test_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with progress_on(Console(stderr=True)) as progress:
        for at, done in [(30, 0), (35, 0), (40, 10), (41, 20), (51, 30), (60, 100), (61, 100), (90, 100)]:
            clock[0] = float(at)
            progress(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" of")[0] for line in lines] == ["10", "30", "100"]
    assert lines[1] == "30 of 100 tokens, about 49 s left"  # 30 in 21 s: loading the model is not counted
    assert lines[2] == "100 of 100 tokens, about 0 s left"
