"""`lesion check` and `lesion models`."""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lesion.cli.console import TABLE_WIDTH, errors_in_one_line
from lesion.cli.interrupts import INTERRUPTED, INTERRUPTS
from lesion.cli.options import (
    DataOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    PickleOption,
    QuietOption,
    RemoteCodeOption,
)

WRONG = 1
"""What `lesion check` exits with where a check does not hold."""


def check(
    model: Annotated[str, typer.Argument(help="A folder, a hub id (owner/name[@revision]), or zoo:NAME.")],
    data: DataOption = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=2, help="Longest document, specials included.", show_default="the model's positions, at most 256"
        ),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    allow_pickle: PickleOption = False,
    ignore_remote_code: RemoteCodeOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check on a model's own weights what every study takes for granted.

    Exit code 0: every check is ok or not applicable; 1: one or more are WRONG; 2: bad input; 3: the model's own logits
    are not finite, or memory ran out. Images without --data are the embedded digits.
    """
    console = Console(stderr=True, quiet=quiet or as_json, highlight=False)
    with errors_in_one_line(debug), _nothing_to_go_on_with(debug):
        from lesion.anatomy import Loading
        from lesion.engine import keep_pages
        from lesion.studies.check import examine

        keep_pages()
        with console.status("loading") as status:

            def before(name: str) -> None:
                INTERRUPTS.check()
                status.update(name)

            loading = Loading(device, dtype, allow_pickle, ignore_remote_code=ignore_remote_code)
            found = examine(model, data, context=context, before=before, loading=loading)
    if as_json:
        typer.echo(json.dumps(_summary(found)))
    elif not quiet:
        _print_examination(found)
    if found.wrong:
        typer.echo(
            f"error: {len(found.wrong)} of {len(found.findings)} checks WRONG: {', '.join(found.wrong)}", err=True
        )
        raise typer.Exit(WRONG)


def models(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the families that can be studied, what can be done with each, and the models of the zoo."""
    with errors_in_one_line(debug):
        from lesion.studies.catalogue import catalogue

        known = catalogue()
    if as_json:
        typer.echo(json.dumps(known.as_dict()))
        return
    _print_families(known)
    typer.echo("\nStudied are models of these types and classes, whoever made them. Weights packed by bitsandbytes are")
    typer.echo("read for studies of activations (pip install 'lesion[quant]').")
    for entry in known.families:
        if not entry.neurons:
            typer.echo(f"Neurons: {entry.without['mlp_post']}.")
    typer.echo("\nRefused by name:")
    for name, reason in known.refused.items():
        typer.echo(f"  {name}: {reason}")
    typer.echo("\nThe zoo:")
    for model in known.zoo:
        size = f"{model.parameters:,} parameters, {model.bytes / 1e6:.1f} MB"
        typer.echo(f"  {model.name}  {model.architecture}, {size}. {model.card}")


@contextlib.contextmanager
def _nothing_to_go_on_with(debug: bool) -> Iterator[None]:
    """An interrupted run can go on; checks begin anew."""
    try:
        yield
    except KeyboardInterrupt:
        if debug:
            raise
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _summary(found: Any) -> dict[str, Any]:
    rows = found.table().to_dict("records")
    finite = [{key: _jsonable(value) for key, value in row.items()} for row in rows]
    return {"verdict": "WRONG" if found.wrong else "ok", "model": found.facts(), "findings": finite}


def _jsonable(value: Any) -> Any:
    """A missing number is null; JSON has no infinity, which is a difference that cannot be told."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else value if math.isfinite(value) else str(value)


def _print_examination(found: Any) -> None:
    for line in _described(found.facts()):
        typer.echo(line)
    typer.echo()
    shown = _table(["check", "verdict", "found", "limit"], ["detail"])
    for finding in found.findings:
        style = {"WRONG": "bold red", "ok": "green"}.get(finding.verdict, "dim")
        number = "" if finding.found is None else f"{finding.found:.2g}"
        limit = "" if finding.limit is None else f"{_SIGNS[finding.bound]} {finding.limit:.2g}"
        shown.add_row(finding.check, f"[{style}]{finding.verdict}[/]", number, limit, escape(finding.detail))
    _print(shown)


_SIGNS = {"=": "=", "<=": "≤", ">": ">"}


def _described(facts: dict[str, Any]) -> list[str]:
    """What the model is, in three lines."""
    heads = f"{facts['n_heads']} heads of {facts['d_head']}"
    if facts["n_kv_heads"] != facts["n_heads"]:
        heads += f" ({facts['n_kv_heads']} for keys and values)"
    mlp = f"d_mlp {facts['d_mlp']}"
    if facts["n_experts"] > 1:
        mlp += f" in each of {facts['n_experts']} experts"
    halves = "side by side" if facts["parallel"] else "in turn"
    return [
        f"{facts['name']}: {facts['architecture']} (family {facts['family']}, {facts['objective']})",
        f"{facts['n_layers']} layers, d_model {facts['d_model']}, {heads}, {mlp}, {facts['n_positions']} positions, "
        f"vocabulary {facts['vocabulary']:,}, {facts['n_parameters']:,} parameters",
        f"{facts['dtype']} on {facts['device']}, {facts['attention']} attention, {facts['norm']}-norm, "
        f"attention and MLP {halves}, weights {'packed by ' + facts['packed'] if facts['packed'] else 'not packed'}",
    ]


def _print_families(known: Any) -> None:
    short = [
        "model type",
        "predicts",
        "layers",
        "heads (z)",
        "neurons",
        "norm",
        "attention, MLP",
        "positions",
        "stream",
    ]
    shown = _table(short, ["architectures"])
    predicts = {"causal": "next token", "masked": "masked tokens", "image": "class"}
    for entry in known.families:
        abilities = [_yes(able) for able in (entry.layers, entry.heads, entry.neurons)]
        kinds = [", ".join(values) for values in (entry.norm, entry.halves, entry.positions)]
        row = [entry.model_type, predicts[entry.objective], *abilities, *kinds, _yes(entry.stream)]
        shown.add_row(*row, ", ".join(entry.architectures))
    _print(shown)


def _yes(able: bool) -> str:
    return "yes" if able else "no"


def _table(whole: Sequence[str], folded: Sequence[str]) -> Table:
    """A table whose cells are never cut off: most columns keep their width, the others go on in the next line."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for heading in whole:
        shown.add_column(heading, no_wrap=True)
    for heading in folded:
        shown.add_column(heading, overflow="fold")
    return shown


def _print(shown: Table) -> None:
    """On a terminal as wide as it is, but never narrower than `TABLE_WIDTH`; into a file without folding."""
    console = Console(highlight=False)
    console = Console(highlight=False, width=max(TABLE_WIDTH, console.width) if console.is_terminal else 10_000)
    with console.capture() as captured:
        console.print(shown)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
