"""`lesion zero-modes apply`: a checkpoint in which zero modes, or their controls, are set."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lesion.cli.console import errors_in_one_line, shown
from lesion.cli.options import CHECKPOINT, DebugOption, JsonOption, QuietOption
from lesion.errors import InputError


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
    out: Annotated[Path, typer.Option(help="The model folder to write; missing or empty.")],
    masks: Annotated[
        Path | None,
        typer.Argument(help="A run folder of `zero-modes diff`, or a file of masks.", show_default="those of --edit"),
    ] = None,
    edit: Annotated[
        list[str] | None,
        typer.Option(
            "--edit",
            help="Instead of masks and options, one edit in the grammar of edits, for example random:MASKS@layer:3#0; "
            "may be repeated, each on top of the one before.",
        ),
    ] = None,
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
        from lesion.interventions.stored import apply_all

        asked = [word.strip() for given in include or () for word in given.split(",")]
        own = (kind, scope, value, seed, disjoint, asked)
        edits = _edits(edit) if edit else [_edit(masks, *own)]
        if edit and (masks is not None or own != (Kind.zero_modes, "all", Value.zero, None, False, [])):
            raise InputError("--edit says everything itself: leave out masks, --kind, --scope, --value, --seed …")
        done = apply_all(resolve(model), edits, out)
    in_scope = sum(sum(one.n_in_scope.values()) for one in done)
    n_set = sum(one.n_weights_set for one in done)
    for note in (note for one in done for note in one.notes):
        Console(stderr=True, quiet=quiet or as_json, highlight=False).print(shown(f"note: {note}"), markup=False)
    if as_json:
        typer.echo(json.dumps({"out": str(out), "n_weights_set": n_set, "n_in_scope": in_scope}))
    elif not quiet:
        share = 100 * n_set / in_scope
        typer.echo(f"set {n_set:,} of {in_scope:,} weights in scope ({share:.2f} %); written to {out}")


def _edit(
    masks: Path | None, kind: Kind, scope: str, value: Value, seed: int | None, disjoint: bool, include: list[str]
) -> Any:
    from lesion.interventions import WeightEdit

    if masks is None:
        raise InputError("no masks: give a run folder of `lesion zero-modes diff`, or --edit")
    return WeightEdit(str(masks), kind.value, scope, value.value, seed, disjoint, tuple(include))


def _edits(texts: list[str]) -> list[Any]:
    from lesion.interventions import parse

    found = [parse(text) for text in texts]
    if other := [one.name for one in found if not one.weights]:
        raise InputError(f"{other[0]} changes no weights, so that no checkpoint can be written of it")
    return [weight for one in found for weight in one.weights]
