"""What every layer does to the prediction: dropped, swapped, without its attention or its MLP (paper `stages`)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from lesion.anatomy import Anatomy, Model
from lesion.data import ImageData, TextData
from lesion.engine import (
    METRICS,
    Bench,
    Data,
    Here,
    Incident,
    Plan,
    Progress,
    SweepState,
    lay_out,
    make_plan,
    make_runner,
    on_demand,
    sweep,
    telling_document,
    verify,
)
from lesion.errors import InputError, InterventionError
from lesion.interventions import KINDS, Intervention, combine, in_eval_mode, parse
from lesion.results import RunFolder, digest, versions
from lesion.statistics import ClusteredMean
from lesion.studies.setting import Outcome, Reading, Study, left_out, open_data, open_model

INTERVENTIONS = ("drop", "swap", "drop-attn", "drop-mlp")
_LEVELS = ("loss_nats", "kl_nats", "agreement", "top1", "entropy_bits")
_CLEAN = {"loss_nats": "loss_clean_nats", "top1": "top1_clean", "entropy_bits": "entropy_clean_bits"}
_CHANGES = ("loss_change_nats", "top1_change", "entropy_change_bits")


@dataclass(frozen=True)
class LayerSweep:
    """What was asked, laid out for a model: the rows of the table, and their interventions in the same order."""

    rows: tuple[tuple[str, int], ...]
    interventions: tuple[Intervention, ...]
    base: Intervention | None


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
    batch_size: int | None = None,
    seed: int = 0,
    tokenizer: Any = None,
    device: str = "auto",
    dtype: str = "auto",
    allow_pickle: bool = False,
    stream: bool | None = None,
    max_memory: int | None = None,
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
        edits: changes of the model under which everything is measured, the clean lane included (`drop:3`).
        batch_size: documents in a batch; None fills it.
        seed: of the masking (masked models).
        stream: leave the blocks' weights on disk and read one block at a time; None where the model has no room.
        max_memory: bytes that weights and hidden states may take.
        out: run folder; None keeps the tables in memory. The same call again resumes it.
        name_folder: make the run folder inside `out`, named after the study, the model and a hash of the arguments.
        resume: refuse to start a run that has not been started before.

    Returns:
        Tables `layers` (pooled over domains) and `layers_by_domain`; columns carry their units.

    Raises:
        LesionError: anything that a user can mend, in one line.
    """
    _check(interventions)
    base = [parse(edit) for edit in edits]
    opened = open_model(
        model,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        allow_pickle=allow_pickle,
        stream=stream,
        max_memory=max_memory,
    )
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
    if out is None:
        return measure(
            opened,
            documents,
            asked,
            batch_size=batch_size,
            max_memory=max_memory,
            notes=left_out(documents),
            progress=progress,
        )
    study = Study("layers", arguments, opened, documents, command, seed)
    path = Path(out) / study.folder_name() if name_folder else Path(out)
    with study.open_folder(path, resume=resume, overwrite=overwrite) as folder:
        if folder.is_complete:
            tables = {name: folder.read_table(name) for name in ("layers", "layers_by_domain")}
            return Outcome(tables, folder.path, folder.manifest.get("warnings", []), resumed_complete=True)
        return measure(
            opened,
            documents,
            asked,
            batch_size=batch_size,
            max_memory=max_memory,
            notes=left_out(documents),
            folder=folder,
            progress=progress,
        )


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
    batch_size: int | None = None,
    max_memory: int | None = None,
    notes: Sequence[str] = (),
    folder: RunFolder | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """The sweep itself, on anything that gives batches; with a folder, shards and tables are kept in it.

    Args:
        notes: what a reader of the tables must know about the data; they come first among the warnings.

    Raises:
        ModelError: the model is not what its anatomy says.
        NonFiniteError: the model itself gives numbers that are not finite.
        InterventionError: an edit that did nothing.
    """
    started = time.monotonic()
    anatomy = model.anatomy
    lengths = [int(n) for n in data.lengths]
    plan = make_plan(anatomy, lengths, len(asked.rows), batch_size=batch_size)
    lanes = lay_out(asked.interventions, anatomy.n_layers, base=asked.base)
    bench = Bench(anatomy, data, lanes, plan)
    runner = make_runner(bench, model.streamed, max_memory)
    with in_eval_mode(anatomy.model):
        with on_demand(anatomy, model.streamed):
            verify(anatomy, data.batch([telling_document(lengths)]).to(anatomy.device))
        store = folder.shard_store(_shard_key(plan, anatomy)) if folder else None
        state = sweep(bench, store=store, progress=progress, executor=Here(runner))
    tables = _tables(state, asked, data.domains, anatomy.n_layers)
    warnings = [*notes, *_warnings(state, bench)]
    partial = bool(state.incidents or state.failed)
    outcome = Outcome(tables, folder.path if folder else None, warnings, partial=partial)
    if folder:
        _keep(folder, outcome, plan, sum(lengths), time.monotonic() - started, model)
    return outcome


def _shard_key(plan: Plan, anatomy: Anatomy) -> str:
    """Names shards that may be merged: another kind of device, or another version, rounds otherwise."""
    made_by = {name: version for name, version in versions().items() if name in ("lesion", "torch", "transformers")}
    return digest({"plan": plan.fingerprint(), "device": anatomy.device.type, "versions": made_by})


def _warnings(state: SweepState, bench: Bench) -> list[str]:
    still = [lane.name for index, lane in enumerate(bench.lanes) if index and index not in state.moved]
    nothing = [f"{name}: every number stayed as it was, so what it takes away contributes nothing" for name in still]
    broken: dict[tuple[str, int | None], list[int]] = {}
    for incident in state.incidents:
        broken.setdefault((incident.lane, incident.block), []).extend(incident.documents)
    incidents = [str(Incident(lane, block, sorted(documents))) for (lane, block), documents in broken.items()]
    return [*_shortfalls(state, bench), *incidents, *nothing]


def _shortfalls(state: SweepState, bench: Bench) -> list[str]:
    """What was not run, or not as planned."""
    lines = []
    for index, reason in state.failed.items():
        lost = sum(len(batch) for batch in bench.plan.shards[index])
        lines.append(
            f"shard {index} could not be run ({reason}); its {lost} documents are in no number, "
            "and the same command tries them again"
        )
    if state.halved:
        lines.append(
            f"{state.halved} batches did not fit into memory and were run in halves: "
            "numbers may differ in their last bits from those of a machine with more"
        )
    return lines


def _keep(folder: RunFolder, outcome: Outcome, plan: Plan, n_tokens: int, seconds: float, model: Model) -> None:
    for name, table in outcome.tables.items():
        folder.write_table(name, table)
    scored = {"n_scored": int(outcome.tables["layers"]["n_tokens"].iloc[0])}
    folder.finish(
        "partial" if outcome.partial else "complete",
        warnings=outcome.warnings,
        plan_shape=plan.shape(),
        weights=_weights_read(model),
        counts={**folder.manifest["counts"], **scored},
        timings=_timings(n_tokens, seconds, resumed="resumed" in folder.manifest),
    )


def _weights_read(model: Model) -> dict[str, object]:
    """Where the weights were, and what was read of them in this session (the look at the model before it included)."""
    if model.streamed is None:
        return {"streamed": False}
    return {"streamed": True, "bytes_read": model.streamed.bytes_read, "block_loads": model.streamed.loads}


def _timings(n_tokens: int, seconds: float, *, resumed: bool) -> dict[str, float]:
    """Of this session; a resumed one did not read all the tokens, so that it has no speed."""
    speed = {} if resumed else {"tokens_per_second": round(n_tokens / seconds, 1)}
    return {"seconds": round(seconds, 3), **speed}


def _tables(state: SweepState, asked: LayerSweep, domains: Sequence[str], n_layers: int) -> dict[str, pd.DataFrame]:
    pooled = ClusteredMean(len(asked.rows) + 1, len(METRICS))
    for mean in state.means:
        pooled.merge(mean)
    by_domain = []
    for name, mean in zip(domains, state.means, strict=True):
        table = _table(mean, asked, n_layers)
        table.insert(0, "domain", name)
        by_domain.append(table)
    return {"layers": _table(pooled, asked, n_layers), "layers_by_domain": pd.concat(by_domain, ignore_index=True)}


def _table(mean: ClusteredMean, asked: LayerSweep, n_layers: int) -> pd.DataFrame:
    result = mean.result()
    column = {name: index for index, name in enumerate(METRICS)}
    records = []
    for cell, (intervention, layer) in enumerate(asked.rows, start=1):
        record: dict[str, object] = {
            "intervention": intervention.replace("-", "_"),
            "layer": layer,
            "relative_depth": layer / (n_layers - 1) if n_layers > 1 else 0.0,
            "n_tokens": result.n_tokens,
            "n_documents": result.n_documents,
        }
        for name in (*_LEVELS, *_CHANGES):
            record[name] = float(result.mean[cell, column[name]])
            record[f"{name}_sem"] = float(result.sem[cell, column[name]])
            if name in _CLEAN:
                record[_CLEAN[name]] = float(result.mean[0, column[name]])
                record[f"{_CLEAN[name]}_sem"] = float(result.sem[0, column[name]])
        records.append(record)
    return pd.DataFrame.from_records(records)
