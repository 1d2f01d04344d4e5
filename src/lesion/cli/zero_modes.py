"""`lesion zero-modes`: weights that fine-tuning has not moved, and checkpoints without them."""

import json
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lesion.cli.console import TABLE_WIDTH, Output, errors_in_one_line, shown
from lesion.cli.interrupts import INTERRUPTS
from lesion.cli.options import (
    DebugOption,
    JsonOption,
    OutOption,
    OverwriteOption,
    PickleOption,
    QuietOption,
)

zero_modes = typer.Typer(
    help="Weights with the same bits in a base checkpoint and in its fine-tuned derivative.", no_args_is_help=True
)
ModelArgument = "A folder, a hub id (owner/name[@revision]), or zoo:NAME."


class Cast(StrEnum):
    bf16 = "bf16"


class Kind(StrEnum):
    zero_modes = "zero_modes"
    complement = "complement"
    keep_only = "keep_only"
    random = "random"
    random_matched = "random_matched"


class Value(StrEnum):
    zero = "zero"
    mean = "mean"


@zero_modes.command()
def diff(
    base: Annotated[str, typer.Argument(help=ModelArgument)],
    tuned: Annotated[str, typer.Argument(help=ModelArgument)],
    cast: Annotated[
        Cast | None, typer.Option(help="Round both sides first, which makes zero modes that the files do not have.")
    ] = None,
    ulps: Annotated[
        int, typer.Option(min=0, help="Changed weights of each tensor whose distance in last places is measured.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of that sample.")] = 0,
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

            outcome = diff(
                base,
                tuned,
                options=Options(cast=cast.value if cast else None, ulps=ulps, seed=seed),
                verify=verify,
                allow_pickle=allow_pickle,
                out=out or Path("runs"),
                name_folder=out is None,
                overwrite=overwrite,
                command=shlex.join(["lesion", *sys.argv[1:]]),
                on_tensor=on_tensor,
            )
    if outcome.resumed_complete:
        output.console.print("This run was complete already.", markup=False)
    for warning in outcome.warnings:
        output.console.print(shown(f"warning: {warning}"), markup=False)
    if as_json:
        tables = {name: str(outcome.path / "tables" / f"{name}.parquet") for name in outcome.tables}  # type: ignore[operator]
        typer.echo(json.dumps({"run": str(outcome.path), "warnings": outcome.warnings, "tables": tables}))
    elif not quiet:
        _print_summary(outcome.tables["zero_modes_summary"])
        typer.echo(f"masks and tables: {outcome.path}")


@zero_modes.command()
def apply(
    model: Annotated[str, typer.Argument(help="The checkpoint to edit: " + ModelArgument)],
    masks: Annotated[Path, typer.Argument(help="A run folder of `zero-modes diff`, or a file of masks.")],
    out: Annotated[Path, typer.Option(help="The model folder to write; missing or empty.")],
    kind: Annotated[Kind, typer.Option(help="Which weights are set.")] = Kind.zero_modes,
    scope: Annotated[
        str,
        typer.Option(
            help="Where: all, layer:3, layers:16-31, component:gate, group:QK|OV|MLP, layer:1/gate, head:1:2."
        ),
    ] = "all",
    value: Annotated[Value, typer.Option(help="What they are set to: 0, or the mean of their matrix.")] = Value.zero,
    seed: Annotated[int | None, typer.Option(help="Seed of the random kinds, and only of them.")] = None,
    disjoint: Annotated[bool, typer.Option("--disjoint", help="Random weights that are no zero modes.")] = False,
    include: Annotated[
        list[str] | None, typer.Option(help="embed, unembed, norm or bias: what counts beside the projections.")
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a checkpoint in which zero modes, or their controls, are set; any tool loads it."""
    with errors_in_one_line(debug):
        from lesion.anatomy import resolve
        from lesion.checkpoints.edited import apply
        from lesion.checkpoints.masks import Masks

        done = apply(
            resolve(model),
            Masks.load(masks),
            kind.value,
            scope,
            out,
            value=value.value,
            seed=seed,
            disjoint=disjoint,
            include=include or (),
        )
    in_scope = sum(done.n_in_scope.values())
    for note in done.notes:
        Console(stderr=True, quiet=quiet or as_json, highlight=False).print(shown(f"note: {note}"), markup=False)
    if as_json:
        typer.echo(json.dumps({"out": str(done.out), "n_weights_set": done.n_weights_set, "n_in_scope": in_scope}))
    elif not quiet:
        share = 100 * done.n_weights_set / in_scope
        typer.echo(
            f"set {done.n_weights_set:,} of {in_scope:,} weights in scope ({share:.2f} %); written to {done.out}"
        )


def _print_summary(table: Any) -> None:
    """Share of zero modes in per cent, a row a layer and a column a component."""
    from rich.table import Table

    inside = table[table["layer"].notna()]
    components = list(dict.fromkeys(inside["component"]))
    grid = Table(box=None, header_style="bold", pad_edge=False, title="zero modes (%)", title_justify="left")
    for heading in ["layer", *components]:
        grid.add_column(heading, justify="right")
    for layer, rows in inside.groupby("layer"):
        shares = dict(zip(rows["component"], rows["fraction"], strict=True))
        grid.add_row(str(layer), *(f"{100 * shares[name]:.2f}" if name in shares else "" for name in components))
    console = Console(highlight=False)
    Console(highlight=False, width=max(TABLE_WIDTH, console.width)).print(grid)
    for row in table[table["layer"].isna()].to_dict("records"):
        counts = f"{row['n_zero_modes']:,} of {row['n_weights']:,} weights"
        typer.echo(f"{row['component']}: {counts} ({100 * row['fraction']:.2f} %)")
