"""`lesion zero-modes apply`: a checkpoint in which zero modes, or their controls, are set."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lesion.cli.console import errors_in_one_line, shown
from lesion.cli.options import CHECKPOINT, DebugOption, JsonOption, MasksArgument, QuietOption


class Kind(StrEnum):
    zero_modes = "zero_modes"
    complement = "complement"
    keep_only = "keep_only"
    random = "random"
    random_matched = "random_matched"


class Value(StrEnum):
    zero = "zero"
    mean = "mean"


def apply(
    model: Annotated[str, typer.Argument(help="The checkpoint to edit: " + CHECKPOINT)],
    masks: MasksArgument,
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
        list[str] | None,
        typer.Option(help="embed, unembed, norm or bias: what counts beside the projections; several with commas."),
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
            include=[word.strip() for given in include or () for word in given.split(",")],
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
