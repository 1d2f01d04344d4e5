"""The command line: a thin shell over the studies. torch is imported only once a model is needed."""

import contextlib
import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from lesion.errors import LesionError

app = typer.Typer(
    name="lesion",
    help="Find out what the parts of a transformer do, by taking them away.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
INTERRUPTED = 130
TABLE_WIDTH = 110
"""Columns that the table of results needs: on a narrower terminal its lines wrap, but no number is cut short."""
SPEED_WINDOW = 60
"""Seconds over which the time left is estimated."""


class Bos(StrEnum):
    auto = "auto"
    always = "always"
    never = "never"


class OnBadRow(StrEnum):
    fail = "fail"
    skip = "skip"


DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="stdlib[:code|:prose], a file, a folder, a glob, or hf:ID[:CONFIG][@SPLIT][#COLUMN]; several as name=DATA "
        "are domains. Images: digits, a folder, or hf:…",
        show_default="stdlib",
    ),
]
TokensOption = Annotated[
    int, typer.Option(min=1, help="Tokens to read over all domains, the last document whole (images: how many).")
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        min=2, help="Longest sequence, specials included.", show_default="the model's positions, at most 1024"
    ),
]
BosOption = Annotated[
    Bos, typer.Option(help="Put a BOS in front: where the tokenizer has one and does not add it, always, or never.")
]
PackOption = Annotated[
    bool, typer.Option("--pack", help="Concatenate documents into full contexts instead of one document a sequence.")
]
BadRowOption = Annotated[OnBadRow, typer.Option(help="What to do with a row that cannot be read.")]
BatchOption = Annotated[str, typer.Option(help="Documents in a batch, or auto.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DtypeOption = Annotated[
    str, typer.Option(help="auto (float32 on a CPU, the checkpoint's on a GPU), float32, bfloat16 or float16.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of the masking of masked models.")]
OutOption = Annotated[
    Path | None, typer.Option(help="Run folder.", show_default="runs/<study>-<model>-<hash of the arguments>")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Start again in a folder that holds another run.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with an interrupted run; refuse to start a new one.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print a summary as JSON on standard output.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
PickleOption = Annotated[
    bool, typer.Option("--allow-pickle", help="Read pytorch_model.bin where there is no safetensors file.")
]
EditOption = Annotated[
    list[str] | None,
    typer.Option(
        "--edit", help="Measure the model under this edit; may be repeated: drop:3, swap:3, drop-attn:3, drop-mlp:3."
    ),
]


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"lesion {metadata.version('lesion')}")
        raise typer.Exit
    return asked


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Find out what the parts of a transformer do, by taking them away."""


@app.command()
def layers(
    model: Annotated[str, typer.Argument(help="A folder, a hub id (owner/name[@revision]), or zoo:NAME.")],
    interventions: Annotated[str, typer.Option(help="Which, separated by commas.")] = "drop,swap,drop-attn,drop-mlp",
    layers: Annotated[str | None, typer.Option(help="Which layers, as 0,2,5-7.", show_default="all")] = None,
    edit: EditOption = None,
    data: DataOption = None,
    tokens: TokensOption = 100_000,
    context: ContextOption = None,
    bos: BosOption = Bos.auto,
    pack: PackOption = False,
    on_bad_row: BadRowOption = OnBadRow.fail,
    batch_size: BatchOption = "auto",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_pickle: PickleOption = False,
    out: OutOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Drop, swap and half-drop every layer, and measure what that does to the prediction."""
    with _errors_in_one_line(debug):
        asked = {
            "interventions": [name.strip() for name in interventions.split(",")],
            "layers": None if layers is None else _ranges(layers),
            "edits": edit or [],
            "batch_size": _batch_size(batch_size),
        }
        _run_layers(
            model,
            data or ["stdlib"],
            asked,
            {"tokens": tokens, "context": context, "bos": bos.value, "pack": pack, "on_bad_row": on_bad_row.value},
            {"seed": seed, "device": device, "dtype": dtype, "allow_pickle": allow_pickle},
            _Output(out, resume, overwrite, quiet, as_json),
        )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """The layer sweep on a small trained model and the standard library: no network, about a minute."""
    with _errors_in_one_line(debug):
        _run_layers(
            "zoo:python-8l",
            ["code=stdlib:code", "prose=stdlib:prose"],
            {},
            {"tokens": 60_000},
            {},
            _Output(out, False, overwrite, quiet, as_json),
        )


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="One or more run folders.")],
    out: Annotated[
        Path | None, typer.Option(help="Page to write.", show_default="report.html of the first run")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Write the page of one or more finished runs again."""
    from lesion.report import write_report

    with _errors_in_one_line(debug):
        typer.echo(write_report(runs, out=out))


class _Output:
    """Where results go and how much is said."""

    def __init__(self, out: Path | None, resume: bool, overwrite: bool, quiet: bool, as_json: bool) -> None:
        if resume and overwrite:
            raise LesionError("--resume and --overwrite exclude each other; give one")
        self.out, self.resume, self.overwrite, self.as_json = out, resume, overwrite, as_json
        self.quiet = quiet or as_json
        self.console = Console(stderr=True, quiet=self.quiet, highlight=False)


def _run_layers(
    model: str,
    data: list[str],
    asked: dict[str, Any],
    reading: dict[str, Any],
    loading: dict[str, Any],
    output: _Output,
) -> None:
    from lesion.engine import keep_pages
    from lesion.report import write_report
    from lesion.studies.layers import layers
    from lesion.studies.setting import Reading

    keep_pages()
    with _progress(output.console) as progress:
        outcome = layers(
            model,
            data,
            **asked,
            **loading,
            reading=Reading(**reading),
            out=output.out or Path("runs"),
            name_folder=output.out is None,
            resume=output.resume,
            overwrite=output.overwrite,
            command=shlex.join(["lesion", *sys.argv[1:]]),
            progress=progress,
        )
    assert outcome.path is not None  # a run folder was asked for
    page = write_report(outcome.path)
    _say(outcome, page, output)


def _say(outcome: Any, page: Path, output: _Output) -> None:
    if outcome.resumed_complete:
        output.console.print("This run was complete already; its report was written again.", markup=False)
    for warning in outcome.warnings:
        output.console.print(f"warning: {warning}", markup=False)
    if output.as_json:
        summary = {
            "run": str(outcome.path),
            "report": str(page),
            "status": "partial" if outcome.partial else "complete",
            "warnings": outcome.warnings,
            "tables": {name: str(outcome.path / "tables" / f"{name}.parquet") for name in outcome.tables},
        }
        typer.echo(json.dumps(summary))
    elif not output.quiet:
        console = Console(highlight=False)
        _print_table(outcome.tables["layers"], Console(highlight=False, width=max(TABLE_WIDTH, console.width)))
        typer.echo(f"report: {page.resolve()}")
    if outcome.partial:
        raise typer.Exit(3)


def _print_table(table: Any, console: Console) -> None:
    from rich.table import Table

    shown = Table(box=None, header_style="bold", pad_edge=False)
    columns = {"layer": "layer", "intervention": "intervention"}
    for heading in columns:
        shown.add_column(heading, justify="right" if heading == "layer" else "left")
    measures = {
        "kl_nats": "KL (nats)",
        "agreement": "agreement",
        "loss_change_nats": "loss change (nats)",
        "entropy_change_bits": "entropy change (bits)",
    }
    for heading in measures.values():
        shown.add_column(heading, justify="right")
    for row in table.sort_values(["intervention", "layer"], kind="stable").to_dict("records"):
        cells = [f"{row[name]:.3f} ± {row[f'{name}_sem']:.3f}" for name in measures]
        shown.add_row(str(row["layer"]), row["intervention"], *cells)
    console.print(shown)


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Any]:
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
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield _Lines(console)


class _Lines:
    """Progress as plain lines, at most one every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console, self._said = console, time.monotonic()
        self._seen = [(self._said, 0)]

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self._seen = [seen for seen in self._seen if now - seen[0] < SPEED_WINDOW] or self._seen[-1:]
        then, before = self._seen[0]
        self._seen.append((now, done))
        if now - self._said < 10 and done < total:
            return
        self._said = now
        left = (now - then) * (total - done) / max(done - before, 1)
        self._console.print(f"{done} of {total} tokens, about {left:.0f} s left", markup=False)


def _ranges(text: str) -> list[int]:
    """Reads `0,2,5-7`."""
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not _is_small(first) or (dash and not (_is_small(last) and int(first) <= int(last))):
            raise LesionError(f"--layers {text!r}: write whole numbers and ranges upwards, for example 0,2,5-7")
        chosen += range(int(first), int(last or first) + 1)
    return chosen


def _is_small(text: str) -> bool:
    """Whether it is a whole number that can be a layer or a batch; a typo must not ask for billions of them."""
    return text.isdecimal() and len(text) < 7


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not _is_small(text) or int(text) < 1:
        raise LesionError(f"--batch-size {text!r}: give a whole number from 1, or auto")
    return int(text)


@contextlib.contextmanager
def _errors_in_one_line(debug: bool) -> Iterator[None]:
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
    typer.echo(" ".join(line.split()), err=True)
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the `lesion` command. Being terminated ends a run as an interrupt does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()


if __name__ == "__main__":
    main()
