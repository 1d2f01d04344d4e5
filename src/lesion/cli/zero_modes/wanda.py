"""`lesion zero-modes wanda`: where zero modes sit in the ranking by Wanda's score."""

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lesion.cli.console import Output, errors_in_one_line, progress_on
from lesion.cli.interrupts import INTERRUPTS
from lesion.cli.options import (
    CHECKPOINT,
    BadRowOption,
    BatchOption,
    Bos,
    BosOption,
    ContextOption,
    DataOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    ExecutorOption,
    JsonOption,
    MasksArgument,
    MemoryOption,
    OnBadRow,
    OutOption,
    OverwriteOption,
    PackOption,
    PickleOption,
    QuietOption,
    RemoteCodeOption,
    ResumeOption,
    SeedOption,
    StreamOption,
    TokensOption,
    chosen_batch_size,
    chosen_memory,
)
from lesion.cli.zero_modes.ending import page_of, print_grid, say

SAY_SECONDS = 10
"""How often progress is said where there is no terminal."""
Progress = Callable[[int, int], None]


def wanda(
    model: Annotated[str, typer.Argument(help="The dense model, normally the tuned one: " + CHECKPOINT)],
    masks: MasksArgument,
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
    stream: StreamOption = None,
    max_memory: MemoryOption = None,
    ignore_remote_code: RemoteCodeOption = False,
    executor: ExecutorOption = "here",
    out: OutOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Rank the weights by size times activation, and count zero modes in each tenth."""
    with errors_in_one_line(debug):
        output = Output(out, resume, overwrite, quiet, as_json)
        chosen, memory = chosen_batch_size(batch_size), chosen_memory(max_memory)
        from lesion.anatomy import Loading
        from lesion.engine import keep_pages
        from lesion.studies.setting import Reading
        from lesion.studies.zero_modes.wanda import wanda

        keep_pages()
        with _stages(output.console) as (progress, on_weights):
            outcome = wanda(
                model,
                masks,
                data or ["stdlib"],
                reading=Reading(tokens, context, bos.value, pack, on_bad_row.value),
                loading=Loading(device, dtype, allow_pickle, stream, memory, ignore_remote_code),
                batch_size=chosen,
                seed=seed,
                executor=executor,
                out=out or Path("runs"),
                name_folder=out is None,
                resume=resume,
                overwrite=overwrite,
                command=shlex.join(["lesion", *sys.argv[1:]]),
                progress=progress,
                on_weights=on_weights,
            )
        page = page_of(outcome)
    say(output, outcome, status="partial" if outcome.partial else "complete", report=str(page))
    if not output.quiet:
        _print_deciles(outcome.tables["zero_modes_wanda"])
        typer.echo(f"tables and norms: {outcome.path}")
        typer.echo(f"report: {page}")
    if outcome.partial:
        raise typer.Exit(3)


@contextlib.contextmanager
def _stages(console: Console) -> Iterator[tuple[Progress, Progress]]:
    """Progress over tokens, and after it over weights: a terminal shows one at a time."""
    with contextlib.ExitStack() as second, contextlib.ExitStack() as first:
        progress = first.enter_context(progress_on(console))
        status: Any = None
        said: float | None = None

        def on_weights(done: int, total: int) -> None:
            nonlocal status, said
            INTERRUPTS.check()
            line = f"ranking weights: {done:,} of {total:,}"
            if console.is_terminal:
                if status is None:
                    first.close()
                    status = second.enter_context(console.status(line))
                status.update(line)
            elif said is None or time.monotonic() - said >= SAY_SECONDS:
                said = time.monotonic()
                console.print(line, markup=False)

        yield progress, on_weights


def _print_deciles(table: Any) -> None:
    """Share of zero modes in each tenth of the weights of all projections, by each ranking."""
    found = table[table["component"] == "projections"]
    shares = found.pivot_table(index="decile", columns="by", values="fraction")
    ratios = found.pivot_table(index="decile", columns="by", values="over_mean")
    headings = {"wanda": "|w| x activation", "magnitude": "|w|", "activation": "activation"}
    rows = [
        [str(decile), *(f"{100 * shares.loc[decile, by]:.2f} ({ratios.loc[decile, by]:.2f})" for by in headings)]
        for decile in shares.index
    ]
    title = "zero modes in each tenth of a row's weights, in % (and over their mean share), ranked by"
    print_grid(title, ["tenth", *headings.values()], rows)
    total = found[found["by"] == "wanda"]
    n_zero_modes, n_weights = round(total["n_zero_modes"].sum()), total["n_weights"].sum()
    typer.echo(f"projections: {n_zero_modes:,} of {n_weights:,} weights ({100 * n_zero_modes / n_weights:.2f} %)")
