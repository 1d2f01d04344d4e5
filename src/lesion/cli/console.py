"""What a command prints: progress, results, and errors in one line."""

import contextlib
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console

from lesion.cli.interrupts import INTERRUPTED, INTERRUPTS
from lesion.errors import LesionError

TABLE_WIDTH = 110
"""Columns that the table of results needs: on a narrower terminal its lines wrap, but no number is cut short."""
LONGEST_LINE = 2000
"""Characters of an error that are printed."""
SPEED_WINDOW = 60
"""Seconds over which the time left is estimated."""


class Output:
    """Where results go and how much is said."""

    def __init__(self, out: Path | None, resume: bool, overwrite: bool, quiet: bool, as_json: bool) -> None:
        if resume and overwrite:
            raise LesionError("--resume and --overwrite exclude each other; give one")
        self.out, self.resume, self.overwrite, self.as_json = out, resume, overwrite, as_json
        self.quiet = quiet or as_json
        self.console = Console(stderr=True, quiet=self.quiet, highlight=False)


@contextlib.contextmanager
def progress_on(console: Console) -> Iterator[Any]:
    """A bar with the time left on a terminal; elsewhere a line now and then."""
    if console.is_terminal:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("tokens"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("sweep", total=None)

            def show(done: int, total: int) -> None:
                INTERRUPTS.check()
                bar.update(task, completed=done, total=total)

            yield show
    else:
        yield _Lines(console)


class _Lines:
    """Progress as plain lines, at most one every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console, self._said, self._ended = console, time.monotonic(), False
        self._seen: list[tuple[float, int]] = []

    def __call__(self, done: int, total: int) -> None:
        INTERRUPTS.check()
        now = time.monotonic()
        self._seen = [seen for seen in self._seen if now - seen[0] < SPEED_WINDOW] or self._seen[-1:]
        self._seen.append((now, done))
        if len(self._seen) == 1:  # what was done before, and not in this time
            return
        then, before = self._seen[0]
        if done == before or self._ended or (now - self._said < 10 and done < total):
            return
        self._said, self._ended = now, done >= total
        left = (now - then) * (total - done) / (done - before)
        self._console.print(f"{done} of {total} tokens, about {left:.0f} s left", markup=False)


@contextlib.contextmanager
def errors_in_one_line(debug: bool) -> Iterator[None]:
    try:
        yield
    except LesionError as error:
        if debug:
            raise
        _end(f"error: {error}", error.exit_code)
    except KeyboardInterrupt:
        if debug:
            raise
        _end("interrupted; the same command, without --overwrite, goes on where this one stopped", INTERRUPTED)


def _end(line: str, code: int) -> NoReturn:
    typer.echo(shown(" ".join(line.split())), err=True)
    raise typer.Exit(code)


def shown(text: str) -> str:
    """Text from files, as a terminal may have it: no control characters, and its middle left out where it is long."""
    if len(text) > LONGEST_LINE:
        text = f"{text[: LONGEST_LINE // 2]} … {text[-LONGEST_LINE // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plus_minus() -> str:
    """The sign between a number and its error, in what the terminal can write."""
    try:
        "±".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "+-"
    return "±"


def write_anything() -> None:
    """Characters that the terminal's encoding lacks are escaped; they are not the end of a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
