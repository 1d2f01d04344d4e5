"""Fault 53: no terminal, a tiny one, one that knows no colours or only ASCII; and fault 14's names on a terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lesion.cli import app


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def finished(tiny_folder: Path, text_file: Path) -> list[str]:
    """The command of a run that is complete, so that giving it again only prints."""
    command = ["layers", str(tiny_folder), "--data", str(text_file), "--tokens", "200", "--context", "32"]
    command += ["--interventions", "drop", "--out", "run"]
    assert CliRunner().invoke(app, command).exit_code == 0
    return command


def run(command: list[str], **environment: str) -> Result:
    return CliRunner().invoke(app, command, env=environment)


@pytest.mark.parametrize("columns", ["1", "0", "20", "-5", "x", "100000"])
def test_a_terminal_of_any_width(finished: list[str], columns: str) -> None:
    result = run(finished, COLUMNS=columns, LINES=columns)
    assert result.exit_code == 0, result.output
    numbers = [line for line in result.stdout.splitlines() if "±" in line]
    assert len(numbers) == 3
    assert all(line.count("±") == 4 for line in numbers)


@pytest.mark.parametrize("environment", [
    {}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": ""}, {"NO_COLOR": "1", "TERM": "xterm-256color"}
])  # fmt: skip
def test_no_terminal_no_colours(finished: list[str], environment: dict[str, str]) -> None:
    result = run(finished, **environment)
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert "report: " in result.stdout


def test_a_locale_without_unicode(finished: list[str], tmp_path: Path) -> None:
    """In the C locale Python itself goes over to UTF-8; what is asked for by name is what the terminal gets."""
    environment = {**os.environ, "LC_ALL": "C", "LANG": "C", "NO_COLOR": "1"}
    environment.pop("PYTHONIOENCODING", None)
    command = [sys.executable, "-m", "lesion.cli", *finished]
    answer = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert "±" in answer.stdout.decode("utf-8")
    assert str(tmp_path / "run" / "report.html") in answer.stdout.decode("utf-8")
