"""`lesion zero-modes overlap`: what zero modes of several pairs share."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lesion.cli.console import Output, errors_in_one_line, plus_minus, shown
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
    "share of A": ("share_of_a", ".2%"),
    "share of B": ("share_of_b", ".2%"),
    "Jaccard": ("jaccard", ".4f"),
    "by chance": ("jaccard_by_chance", ".4f"),
}
RATIOS = {
    "x chance": ("over_chance", "n_both_by_chance"),
    "x chance in exponents": ("over_chance_in_exponents", "n_both_by_chance_in_exponents"),
}
"""Ratios of counts, and the counts by chance whose standard deviation says how far such a ratio is from 1 by chance."""


def overlap(
    masks: Annotated[
        list[str], typer.Argument(help="Two or more run folders or files of masks; name=PATH gives one a name.")
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            help="Whose exponents of |w| overlaps are compared within. " + CHECKPOINT,
            show_default="the base of the first run",
        ),
    ] = None,
    allow_pickle: PickleOption = False,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Count the zero modes that several pairs share, beside what chance would make them share."""
    output = Output(out, False, overwrite, quiet, as_json)
    with errors_in_one_line(debug):
        from lesion.studies.zero_modes import overlap

        with output.console.status("counting") as status:

            def on_tensor(tensor: str) -> None:
                INTERRUPTS.check()
                status.update(shown(tensor))

            outcome = overlap(
                masks,
                weights=weights,
                allow_pickle=allow_pickle,
                out=out or Path("runs"),
                name_folder=out is None,
                overwrite=overwrite,
                command=shlex.join(["lesion", *sys.argv[1:]]),
                on_tensor=on_tensor,
            )
        assert outcome.path is not None  # a run folder was asked for
        page = page_of(outcome)
    say(output, outcome, report=str(page))
    if output.quiet:
        return
    table: Any = outcome.tables["zero_modes_overlap"]
    for (a, b), rows in table.groupby(["a", "b"], sort=False):
        _print_pair(a, b, rows[rows["tensor"].isna()])
    if "zero_modes_overlap_all" in outcome.tables:
        _print_all(outcome.tables["zero_modes_overlap_all"])
    typer.echo(f"report: {page}")


def _print_pair(a: str, b: str, sums: Any) -> None:
    rows = [
        [
            row["component"],
            *(number(row[column], form) for column, form in MEASURES.values()),
            *(_with_sd(row, *columns) for columns in RATIOS.values()),
        ]
        for row in sums.to_dict("records")
    ]
    print_grid(f"A = {a}, B = {b}", ["", *MEASURES, *RATIOS], rows)


def _with_sd(row: dict[str, Any], over_chance: str, by_chance: str) -> str:
    """A ratio, and the standard deviation that it has by chance."""
    ratio = number(row[over_chance], ".3f")
    return f"{ratio} {plus_minus()} {row[f'{by_chance}_sd'] / row[by_chance]:.3f}" if ratio else ""


def _print_all(table: Any) -> None:
    for row in table[table["tensor"].isna() & table["component"].isin(["projections", "all"])].to_dict("records"):
        ratios = [
            f"{number(row[column], '.3f')} times chance{where}"
            for column, where in (("over_chance", ""), ("over_chance_in_exponents", " within exponents"))
            if number(row[column], ".3f")
        ]
        counts = f"{row['n_in_all']:,} of the {row['n_in_any']:,} zero modes of any"
        typer.echo(", ".join([f"in all {row['n_masks']} masks, {row['component']}: {counts}", *ratios]))
