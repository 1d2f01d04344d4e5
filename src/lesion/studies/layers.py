"""What every layer does to the prediction: dropped, swapped, without its attention or its MLP (paper `stages`)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from lesion.anatomy import Loading, Model
from lesion.data import ImageData, TextData
from lesion.engine import (
    Bench,
    Data,
    Forecast,
    Plan,
    Progress,
    forecast,
    lay_out,
    make_plan,
    make_runner,
)
from lesion.engine.executors import read_choice
from lesion.errors import InputError, InterventionError
from lesion.interventions import KINDS, Intervention, combine, in_eval_mode, parse
from lesion.results import RunFolder
from lesion.studies.layers_results import LayerSweep, tables_of, warnings_of
from lesion.studies.setting import Outcome, Reading, Study, left_out, open_data, open_model
from lesion.studies.sweeping import masks_read, run_sweep, timings

INTERVENTIONS = ("drop", "swap", "drop-attn", "drop-mlp")


def ask(
    n_layers: int, interventions: Sequence[str], layers: Sequence[int] | None, edits: Sequence[Intervention]
) -> LayerSweep:
    """Checks what was asked against the depth of the model.

    Raises:
        InputError: layers out of range or repeated, or nothing left to do.
        InterventionError: a base edit out of range, or of a block that another one drops.
    """
    chosen = list(range(n_layers)) if layers is None else list(layers)
    outside = [layer for layer in chosen if not 0 <= layer < n_layers]
    if outside or not chosen or len(set(chosen)) != len(chosen):
        asked = ",".join(map(str, chosen)) or "nothing"
        raise InputError(
            f"--layers {asked}: the model has layers 0 to {n_layers - 1}; give one or more of them, each once"
        )
    rows = [
        (name, layer)
        for name in interventions
        for layer in sorted(chosen)
        if not (name == "swap" and layer == n_layers - 1)
    ]
    if not rows:
        raise InputError(
            f"the last layer, {n_layers - 1}, has no next layer to swap with; give other --layers or --interventions"
        )
    base = combine(edits) if edits else None
    if base:
        order = base.order(n_layers)
        silent = [edit.label for edit in base.edits if edit.layer not in order]
        if silent:
            raise InterventionError(
                f"{base.name}: {', '.join(silent)} never runs, because another edit drops its block"
            )
    return LayerSweep(tuple(rows), tuple(KINDS[name](layer) for name, layer in rows), base)


def layers(
    model: "str | Path | nn.Module | Model",
    data: "str | Sequence[str] | TextData | ImageData" = "stdlib",
    *,
    interventions: Sequence[str] = INTERVENTIONS,
    layers: Sequence[int] | None = None,
    edits: Sequence[str] = (),
    reading: Reading | None = None,
    loading: Loading | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    tokenizer: Any = None,
    executor: str = "here",
    out: Path | str | None = None,
    name_folder: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "lesion.layers(...)",
    progress: Progress | None = None,
) -> Outcome:
    """Drops, swaps and half-drops every layer in one sweep, and measures what that does to the prediction.

    All metrics are means over the same positions, those with a target; standard errors are clustered by document.
    `kl_nats` is KL(clean || intervened); `agreement` the share of positions with the clean model's top-1.

    Args:
        model: a folder, hub id or `zoo:NAME`, or a model in memory (with `tokenizer`).
        data: DATA of the command line, one or several, or data already opened.
        interventions: of `drop`, `swap`, `drop-attn`, `drop-mlp`.
        layers: which layers; None for all. `swap` of ℓ exchanges ℓ and ℓ + 1 and so has no last layer.
        edits: changes of the model under which everything is measured, the clean lane included (`drop:3`,
            `zero-modes:MASKS@layer:2`).
        reading: how data are read: how many tokens, how long documents may be …
        loading: how the model is loaded: device, dtype, whether block by block …
        batch_size: documents in a batch; None fills it.
        seed: of the masking (masked models).
        executor: who runs the shards: `here`, `local[:N]` (processes) or `ray[:ADDRESS]`.
        out: run folder; None keeps the tables in memory. The same call again resumes it.
        name_folder: make the run folder inside `out`, named after the study, the model and a hash of the arguments.
        resume: refuse to start a run that has not been started before.

    Returns:
        Tables `layers` (pooled over domains) and `layers_by_domain`; columns carry their units.

    Raises:
        LesionError: anything that a user can mend, in one line.
    """
    read_choice(executor)
    prepared = prepare(
        model,
        data,
        interventions=interventions,
        layers=layers,
        edits=edits,
        reading=reading,
        batch_size=batch_size,
        seed=seed,
        tokenizer=tokenizer,
        loading=loading,
    )
    measuring: dict[str, Any] = {
        "batch_size": batch_size,
        "notes": left_out(prepared.data),
        "executor": executor,
        "loading": loading,
        "progress": progress,
    }
    if out is None:
        return measure(prepared.model, prepared.data, prepared.asked, **measuring)
    beside = masks_read(prepared.asked.base)
    study = Study("layers", prepared.arguments, prepared.model, prepared.data, command, seed, beside)
    path = Path(out) / study.folder_name() if name_folder else Path(out)
    with study.open_folder(path, resume=resume, overwrite=overwrite) as folder:
        if folder.is_complete:
            tables = {name: folder.read_table(name) for name in ("layers", "layers_by_domain")}
            return Outcome(tables, folder.path, folder.manifest.get("warnings", []), resumed_complete=True)
        return measure(prepared.model, prepared.data, prepared.asked, **measuring, folder=folder)


@dataclass(frozen=True)
class Prepared:
    """A layer sweep that is ready to run.

    Attributes:
        arguments: everything asked that changes numbers, defaults filled in.
    """

    model: Model
    data: "TextData | ImageData"
    asked: LayerSweep
    arguments: dict[str, Any]


def prepare(
    model: "str | Path | nn.Module | Model",
    data: "str | Sequence[str] | TextData | ImageData" = "stdlib",
    *,
    interventions: Sequence[str] = INTERVENTIONS,
    layers: Sequence[int] | None = None,
    edits: Sequence[str] = (),
    reading: Reading | None = None,
    loading: Loading | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    tokenizer: Any = None,
) -> Prepared:
    """Opens model and data, and checks everything that was asked against them; arguments are those of `layers`."""
    _check(interventions)
    base = [parse(edit) for edit in edits]

    def expects(n_layers: int) -> None:
        ask(n_layers, interventions, layers, base)

    opened = open_model(model, tokenizer=tokenizer, loading=loading, expects=expects)
    asked = ask(opened.anatomy.n_layers, interventions, layers, base)
    reading = reading or Reading()
    documents = open_data(data, opened, reading, seed=seed)
    arguments = {
        "interventions": list(interventions),
        "layers": sorted({layer for _, layer in asked.rows}) if layers is not None else None,
        "edits": list(edits),
        "batch_size": batch_size,
        "data": documents.description["specs"],
        **({} if documents is data else reading.arguments()),
        "seed": seed,
    }
    return Prepared(opened, documents, asked, arguments)


def bench_for(model: Model, data: Data, asked: LayerSweep, batch_size: int | None) -> Bench:
    """The lanes and the plan of a sweep."""
    anatomy = model.anatomy
    plan = make_plan(anatomy, [int(n) for n in data.lengths], len(asked.rows), batch_size=batch_size)
    return Bench(anatomy, data, lay_out(asked.interventions, anatomy.n_layers, base=asked.base), plan)


def forecast_layers(prepared: Prepared, *, batch_size: int | None = None, max_memory: int | None = None) -> Forecast:
    """What the sweep would read, hold and take; nothing is run but a few calls that are timed.

    Raises:
        ModelError: `max_memory` is too little for the model block by block.
    """
    model = prepared.model
    bench = bench_for(model, prepared.data, prepared.asked, batch_size)
    make_runner(bench, model.streamed, max_memory)
    with in_eval_mode(model.anatomy.model):
        return forecast(bench, model.streamed)


def _check(interventions: Sequence[str]) -> None:
    """Before the model is loaded, which may take minutes."""
    unknown = [name for name in interventions if name not in INTERVENTIONS]
    if unknown or not interventions or len(set(interventions)) != len(interventions):
        raise InputError(
            f"--interventions {','.join(interventions)!r}: give one or more, each once, of {', '.join(INTERVENTIONS)}"
        )


def measure(
    model: Model,
    data: Data,
    asked: LayerSweep,
    *,
    loading: Loading | None = None,
    batch_size: int | None = None,
    notes: Sequence[str] = (),
    executor: str = "here",
    folder: RunFolder | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """The sweep itself, on anything that gives batches; with a folder, shards and tables are kept in it.

    Args:
        notes: what a reader of the tables must know about the data; they come first among the warnings.
        loading: how other processes load the model, and how much memory there is.
        executor: who runs the shards, as in `layers`.

    Raises:
        ModelError: the model is not what its anatomy says.
        NonFiniteError: the model itself gives numbers that are not finite.
        InterventionError: an edit that did nothing.
    """
    started = time.monotonic()
    bench = bench_for(model, data, asked, batch_size)
    swept = run_sweep(
        model, bench, base=asked.base, loading=loading, executor=executor, folder=folder, progress=progress
    )
    state = swept.state
    tables = tables_of(state, asked, data.domains, model.anatomy.n_layers)
    warnings = [*notes, *warnings_of(state, bench)]
    partial = bool(state.incidents or state.failed)
    outcome = Outcome(tables, folder.path if folder else None, warnings, partial=partial)
    if folder:
        n_tokens = sum(int(n) for n in data.lengths)
        _keep(folder, outcome, bench.plan, n_tokens, time.monotonic() - started, swept.weights)
        return replace(outcome, warnings=folder.manifest["warnings"])  # the folder's own among them
    return outcome


def _keep(
    folder: RunFolder, outcome: Outcome, plan: Plan, n_tokens: int, seconds: float, weights: dict[str, object]
) -> None:
    for name, table in outcome.tables.items():
        folder.write_table(name, table)
    scored = {"n_scored": int(outcome.tables["layers"]["n_tokens"].iloc[0])}
    folder.finish(
        "partial" if outcome.partial else "complete",
        warnings=outcome.warnings,
        plan_shape=plan.shape(),
        weights=weights,
        counts={**folder.manifest["counts"], **scored},
        timings=timings(n_tokens, seconds, resumed="resumed" in folder.manifest),
    )
