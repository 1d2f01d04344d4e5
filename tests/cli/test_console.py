"""What is printed: on terminals that cannot write everything, and of texts that should not reach one."""

import io
import os
import subprocess
import sys

import pytest

from lesion.cli import console
from lesion.cli.console import LONGEST_LINE, plus_minus, shown


def test_text_that_would_command_the_terminal_is_escaped() -> None:
    assert shown("weight \x1b[2J\x00é ✓") == r"weight \x1b[2J\x00é ✓"


def test_nobody_reads_a_megabyte() -> None:
    assert len(shown("a" * 10**6)) == LONGEST_LINE + 3
    assert shown("asked" + "a" * 10**6 + "what to do").startswith("asked")
    assert shown("asked" + "a" * 10**6 + "what to do").endswith("what to do")
    assert shown("a" * LONGEST_LINE) == "a" * LONGEST_LINE


@pytest.mark.parametrize(("encoding", "sign"), [("utf-8", "±"), ("latin-1", "±"), ("ascii", "+-")])
def test_a_sign_that_the_terminal_has(encoding: str, sign: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert plus_minus() == sign


def test_what_it_lacks_is_escaped_and_not_the_end() -> None:
    code = "from lesion.cli.console import write_anything; write_anything(); print('3 ± 1 µs')"
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ascii_only)
    assert (ended.returncode, ended.stdout) == (0, "3 \\xb1 1 \\xb5s\n")
    without = subprocess.run(
        [sys.executable, "-c", code.replace("write_anything();", "")], env=ascii_only, stderr=subprocess.DEVNULL
    )
    assert without.returncode == 1
