"""`lesion zero-modes dynamics`: zero modes over a series of checkpoints."""

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lesion.cli.console import Output, errors_in_one_line, shown
from lesion.cli.interrupts import INTERRUPTS
from lesion.cli.options import (
    CHECKPOINT,
    DebugOption,
    JsonOption,
    OutOption,
    OverwriteOption,
    PickleOption,
    QuietOption,
)
from lesion.cli.zero_modes.ending import number, page_of, print_grid, say

MEASURES = {
    "zero modes": "fraction",
    "never changed": "fraction_never_changed",
    "came back": "fraction_came_back",
    "came back, of the zero modes": "share_came_back",
}


class Cast(StrEnum):
    bf16 = "bf16"


def dynamics(
    checkpoints: Annotated[
        list[str],
        typer.Argument(help="The start, and two or more later checkpoints in order. Each: " + CHECKPOINT),
    ],
    cast: Annotated[
        Cast | None, typer.Option(help="Round all first, which makes zero modes that the files do not have.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash whole files, not samples of them.")] = False,
    allow_pickle: PickleOption = False,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Follow a series of checkpoints: weights that never changed, and those that changed and came back."""
    output = Output(out, False, overwrite, quiet, as_json)
    with errors_in_one_line(debug):
        from lesion.studies.zero_modes import dynamics
        from lesion.studies.zero_modes.dynamics import note

        with output.console.status("following") as status:

            def on_tensor(tensor: str) -> None:
                INTERRUPTS.check()
                status.update(shown(tensor))

            outcome = dynamics(
                checkpoints,
                cast=cast.value if cast else None,
                verify=verify,
                allow_pickle=allow_pickle,
                out=out or Path("runs"),
                name_folder=out is None,
                overwrite=overwrite,
                command=shlex.join(["lesion", *sys.argv[1:]]),
                on_tensor=on_tensor,
            )
        assert outcome.path is not None  # a run folder was asked for
        page = page_of(outcome)
    said = note(len(checkpoints) - 1)
    say(output, outcome, report=str(page), note=said, n_checkpoints=len(checkpoints) - 1)
    if output.quiet:
        return
    _print_steps(outcome.tables["zero_modes_dynamics"])
    typer.echo(said)
    typer.echo(f"masks, tables and report: {page}")


def _print_steps(table: Any) -> None:
    projections = table[table["tensor"].isna() & (table["component"] == "projections")]
    rows = [
        [row["name"], *(number(100 * row[column], ".2f") for column in MEASURES.values())]
        for row in projections.to_dict("records")
    ]
    print_grid("projection matrices inside blocks (%)", ["checkpoint", *MEASURES], rows)
