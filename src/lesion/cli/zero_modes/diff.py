"""`lesion zero-modes diff`: two checkpoints compared bit by bit."""

import math
import shlex
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lesion.cli.console import Output, errors_in_one_line, shown
from lesion.cli.interrupts import INTERRUPTS
from lesion.cli.options import (
    CHECKPOINT,
    CheckpointArgument,
    DebugOption,
    JsonOption,
    OutOption,
    OverwriteOption,
    PickleOption,
    QuietOption,
)
from lesion.cli.zero_modes.ending import page_of, print_grid, say


class Cast(StrEnum):
    bf16 = "bf16"


def diff(
    base: CheckpointArgument,
    tuned: Annotated[str, typer.Argument(help=CHECKPOINT + " Or a folder with a LoRA adapter of BASE.")],
    cast: Annotated[
        Cast | None, typer.Option(help="Round both sides first, which makes zero modes that the files do not have.")
    ] = None,
    ulps: Annotated[
        int, typer.Option(min=0, help="Changed weights of each tensor whose distance in last places is measured.")
    ] = 0,
    look: Annotated[
        list[str] | None,
        typer.Option(
            help="Matrices whose spectra, pictures and neurons are worked out, with controls: auto (the default: "
            "attention, gate and down of blocks 0, 1 and the last; about a minute for a 7B pair), none, all, 1/k, "
            "layer:3, component:gate; several with commas."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(max=2**62, help="Seed of that sample, and the first of three of the controls.")
    ] = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Hash whole files, not samples of them.")] = False,
    allow_pickle: PickleOption = False,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare two checkpoints bit by bit, file against file; no model is built."""
    output = Output(out, False, overwrite, quiet, as_json)
    with errors_in_one_line(debug):
        from lesion.checkpoints.compare import Options
        from lesion.studies.zero_modes import diff

        with output.console.status("comparing") as status:

            def on_tensor(row: Any) -> None:
                INTERRUPTS.check()
                status.update(shown(row.tensor))

            def on_look(name: str) -> None:
                INTERRUPTS.check()
                status.update(f"looking at {name}")

            outcome = diff(
                base,
                tuned,
                options=Options(cast=cast.value if cast else None, ulps=ulps, seed=seed),
                look=look or ["auto"],
                verify=verify,
                allow_pickle=allow_pickle,
                out=out or Path("runs"),
                name_folder=out is None,
                overwrite=overwrite,
                command=shlex.join(["lesion", *sys.argv[1:]]),
                on_tensor=on_tensor,
                on_look=on_look,
            )
            status.update("drawing figures")
            assert outcome.path is not None  # a run folder was asked for
            page = page_of(outcome)
    say(output, outcome, report=str(page))
    if not output.quiet:
        _print_summary(outcome.tables)
        typer.echo(f"masks and tables: {outcome.path}")
        typer.echo(f"report: {page}")


def _print_summary(tables: Mapping[str, Any]) -> None:
    """Share of zero modes by layer and component, what they are like by component, and all projections."""
    table, components = tables["zero_modes_summary"], tables["zero_modes_components"]
    inside = table[table["layer"].notna()]
    names = list(components["component"])
    rows = []
    for layer, found in inside.groupby("layer"):
        shares = dict(zip(found["component"], found["fraction"], strict=True))
        rows.append([str(layer), *(_per_cent(shares[name]) if name in shares else "" for name in names)])
    print_grid("zero modes (%)", ["layer", *names], rows)
    rows = [
        ["exact zeros among them (%)", *map(_per_cent, components["fraction_both_zero"])],
        ["|w| over the mean of their matrix", *map(_plain, components["mean_abs_zero_modes_over_matrix"])],
        ["their share of the sum of squares (%)", *map(_per_cent, components["share_of_squares"])],
    ]
    if "zero_modes_ulps" in tables:
        rows.append(["changed weights that moved by one unit (%)", *map(_per_cent, components["share_one_ulp"])])
    print_grid("what they are like", ["all layers", *names], rows)
    kinds = tables["zero_modes"][["dtype_base", "dtype_tuned"]].drop_duplicates()
    for base, tuned in kinds.itertuples(index=False):
        typer.echo(f"stored as {base}" if base == tuned else f"stored as {base}, and as {tuned} in TUNED")
    for row in table[table["layer"].isna()].to_dict("records"):
        counts = f"{row['n_zero_modes']:,} of {row['n_weights']:,} weights"
        typer.echo(f"{row['component']}: {counts} ({100 * row['fraction']:.2f} %)")


def _per_cent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.2f}"


def _plain(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
