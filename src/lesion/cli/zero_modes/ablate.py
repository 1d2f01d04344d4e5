"""`lesion zero-modes ablate`: the model without its zero modes, beside controls."""

import math
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from lesion.cli.console import Output, errors_in_one_line, plus_minus, progress_on
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
    EditOption,
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
    names,
    numbers,
)
from lesion.cli.zero_modes.ending import page_of, print_grid, say

LONGEST = 40
"""Rows that the shell prints; all of them are in the tables and on the page."""


def ablate(
    model: Annotated[str, typer.Argument(help="The model that weights are taken from: " + CHECKPOINT)],
    masks: MasksArgument,
    kinds: Annotated[
        str,
        typer.Option(help="Of none, zero_modes, complement, keep_only, random, random_matched, separated by commas."),
    ] = "zero_modes,random,random_matched",
    scopes: Annotated[
        str,
        typer.Option(
            help="all, layer:3, layers:16-31, component:gate, group:QK|OV|MLP, layer:1/gate, head:1:2, separated by "
            "commas; layers, components and heads stand for all of a kind."
        ),
    ] = "all,layers",
    seeds: Annotated[str, typer.Option(help="Of the random kinds, separated by commas.")] = "0,1,2",
    value: Annotated[str, typer.Option(help="What weights are set to: zero, or the mean of their matrix.")] = "zero",
    disjoint: Annotated[
        bool, typer.Option("--disjoint", help="Random weights that are no zero modes; without, they may be.")
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(help="embed, unembed, norm or bias: what counts beside the projections; several with commas."),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            help="What the model is to the masks: tuned, base, other, or auto, which looks at the fingerprints."
        ),
    ] = "auto",
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
    """Take zero modes away, and as many other weights, and measure the loss."""
    with errors_in_one_line(debug):
        output = Output(out, resume, overwrite, quiet, as_json)
        asked: dict[str, Any] = {
            "kinds": [kind.replace("-", "_") for kind in names(kinds)],
            "scopes": names(scopes),
            "seeds": numbers("--seeds", seeds),
            "value": _one_of("--value", value, ("zero", "mean")),
            "disjoint": disjoint,
            "include": names(",".join(include or [])),
            "target": _one_of("--target", target, ("auto", "tuned", "base", "other")),
            "edits": edit or [],
            "batch_size": chosen_batch_size(batch_size),
            "seed": seed,
        }
        memory = chosen_memory(max_memory)
        from lesion.anatomy import Loading
        from lesion.engine import keep_pages
        from lesion.studies.setting import Reading
        from lesion.studies.zero_modes.ablate import ablate

        keep_pages()
        with progress_on(output.console) as progress:
            outcome = ablate(
                model,
                masks,
                data or ["stdlib"],
                **asked,
                reading=Reading(tokens, context, bos.value, pack, on_bad_row.value),
                loading=Loading(device, dtype, allow_pickle, stream, memory, ignore_remote_code),
                executor=executor,
                out=out or Path("runs"),
                name_folder=out is None,
                resume=resume,
                overwrite=overwrite,
                command=shlex.join(["lesion", *sys.argv[1:]]),
                progress=progress,
            )
        page = page_of(outcome)
    say(output, outcome, status="partial" if outcome.partial else "complete", report=str(page))
    if not output.quiet and not output.as_json:
        _print_losses(outcome.tables["zero_mode_ablation"])
        _print_contrasts(outcome.tables.get("zero_mode_contrasts"))
        typer.echo(f"tables: {outcome.path}")
        typer.echo(f"report: {page}")
    if outcome.partial:
        raise typer.Exit(3)


def _one_of(option: str, given: str, known: tuple[str, ...]) -> str:
    from lesion.errors import InputError

    if given not in known:
        raise InputError(f"{option} {given!r} is not known; give {', '.join(known)}")
    return given


def _print_losses(table: Any) -> None:
    rows = []
    for row in cast("list[dict[str, Any]]", table.head(LONGEST).to_dict("records")):
        share = 100 * row["n_weights_set"] / row["n_weights_in_scope"] if row["n_weights_in_scope"] else 0.0
        seed = "" if row["kind"] not in ("random", "random_matched") else str(row["seed"])
        loss = _with_error(row["loss_nats"], row["loss_sem"], ".4f")
        change = _with_error(row["loss_change_nats"], row["loss_change_nats_sem"], "+.4f")
        rows.append([row["scope"], row["kind"], seed, f"{share:.2f}", loss, change if row["kind"] != "none" else ""])
    target = table["target"].iloc[0]
    print_grid(
        f"loss in nats a token (the model is the masks' {target})" if target != "other" else "loss in nats a token",
        ["scope", "kind", "seed", "% set", "loss", "change"],
        rows,
    )
    if len(table) > LONGEST:
        typer.echo(f"… and {len(table) - LONGEST} rows more in the table")


def _with_error(value: float, error: float, form: str) -> str:
    """A number and its standard error, which one document does not give."""
    return f"{value:{form}} {plus_minus()} {error:.4f}" if math.isfinite(error) else f"{value:{form}}"


def _print_contrasts(table: Any) -> None:
    if table is None:
        return
    pooled = table[(table["n_seeds"] > 1) | ~table["control"].isin(table.loc[table["n_seeds"] > 1, "control"])]
    rows = [
        [
            row["scope"],
            row["control"],
            str(row["n_seeds"]),
            f"{row['difference_nats']:+.4f}",
            f"{row['low_nats']:+.4f} to {row['high_nats']:+.4f}" if math.isfinite(row["low_nats"]) else "",
        ]
        for row in cast("list[dict[str, Any]]", pooled.head(LONGEST).to_dict("records"))
    ]
    print_grid(
        "zero modes taken away, minus a control taken away: loss in nats a token",
        ["scope", "control", "draws", "difference", "95 % interval"],
        rows,
    )
