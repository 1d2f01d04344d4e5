"""Signals end a run, also where Python loses the exception that they raise."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from rich.console import Console

from lesion.cli import console
from lesion.cli.interrupts import Interrupts


@pytest.fixture
def interrupts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Interrupts]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    own = Interrupts()
    monkeypatch.setattr(console, "INTERRUPTS", own)
    own.install()
    yield own
    for number, handler in before.items():
        signal.signal(number, handler)


class Finalised:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("terminal", [True, False])
def test_a_signal_lost_in_a_finaliser_stops_the_run_at_the_next_progress(
    interrupts: Interrupts, terminal: bool
) -> None:
    with console.progress_on(Console(stderr=True, force_terminal=terminal, quiet=True)) as progress:
        progress(1, 3)
        Finalised()  # Python prints the KeyboardInterrupt of its finaliser and goes on
        with pytest.raises(KeyboardInterrupt):
            progress(2, 3)


def test_a_signal_is_an_interrupt_at_once(interrupts: Interrupts) -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert interrupts.came


def test_the_second_signal_ends_the_process() -> None:
    code = (
        "import os, signal\n"
        "from lesion.cli.interrupts import Interrupts\n"
        "Interrupts().install()\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "except KeyboardInterrupt:\n"
        "    print('first', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('second', flush=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (130, "first\n")
