"""What every layer does to the prediction when it is dropped, swapped, or loses its attention or MLP (paper `stages`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lesion.anatomy import Model
from lesion.engine import METRICS, Incident, Plan, SweepState, lay_out, make_plan, sweep, verify
from lesion.engine.sweep import Data, Progress
from lesion.errors import InputError
from lesion.interventions import KINDS, Intervention, combine
from lesion.results import ShardStore
from lesion.statistics import ClusteredMean

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


def ask(n_layers: int, interventions: Sequence[str], layers: Sequence[int] | None, edits: Sequence[Intervention]) -> LayerSweep:
    """Checks what was asked against the depth of the model.

    Raises:
        InputError: unknown or repeated interventions, layers out of range or repeated, or nothing left to do.
        InterventionError: a base edit out of range.
    """
    unknown = [name for name in interventions if name not in INTERVENTIONS]
    if unknown or not interventions or len(set(interventions)) != len(interventions):
        raise InputError(f"--interventions {','.join(interventions)!r}: give one or more, each once, of {', '.join(INTERVENTIONS)}")
    chosen = list(range(n_layers)) if layers is None else list(layers)
    outside = [layer for layer in chosen if not 0 <= layer < n_layers]
    if outside or not chosen or len(set(chosen)) != len(chosen):
        asked = ",".join(map(str, chosen)) or "nothing"
        raise InputError(f"--layers {asked}: the model has layers 0 to {n_layers - 1}; give one or more of them, each once")
    rows = [
        (name, layer)
        for name in interventions
        for layer in sorted(chosen)
        if not (name == "swap" and layer == n_layers - 1)
    ]
    if not rows:
        raise InputError(f"the last layer, {n_layers - 1}, has no next layer to swap with; give other --layers or --interventions")
    base = combine(edits) if edits else None
    if base:
        base.order(n_layers)
    return LayerSweep(tuple(rows), tuple(KINDS[name](layer) for name, layer in rows), base)


@dataclass(frozen=True)
class LayersResult:
    """The tables, and the lanes whose numbers are not to be had.

    Attributes:
        tables: `layers` (pooled over domains) and `layers_by_domain`.
        incidents: lanes that stopped being finite; their rows are NaN.
        unchanged: interventions that left every number as it was: what they took away contributes nothing.
    """

    tables: dict[str, pd.DataFrame]
    incidents: list[Incident]
    unchanged: list[str]


def plan_layers(model: Model, data: Data, asked: LayerSweep, *, batch_size: int | None = None) -> Plan:
    """The plan of the sweep, the same for the same model, data and kind of device."""
    return make_plan(model.anatomy, [int(n) for n in data.lengths], len(asked.rows), batch_size=batch_size)


def layers(
    model: Model,
    data: Data,
    asked: LayerSweep,
    plan: Plan,
    *,
    store: ShardStore | None = None,
    progress: Progress | None = None,
) -> LayersResult:
    """Runs every intervention on every layer in one sweep.

    All metrics are means over the same positions, those with a target; standard errors are clustered by document.

    Raises:
        ModelError: the model is not what its anatomy says.
        NonFiniteError: the model itself gives numbers that are not finite.
        InterventionError: an edit that did nothing.
    """
    anatomy = model.anatomy
    shortest = min(plan.shards[-1][-1], key=lambda document: int(data.lengths[document]))
    verify(anatomy, data.batch([shortest]).to(anatomy.device))
    lanes = lay_out(asked.interventions, anatomy.n_layers, base=asked.base)
    state = sweep(anatomy, data, lanes, plan, store=store, progress=progress)
    unchanged = [lane.name for index, lane in enumerate(lanes) if index and index not in state.moved]
    return LayersResult(_tables(state, asked, data.domains, anatomy.n_layers), state.incidents, unchanged)


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


__all__ = ["INTERVENTIONS", "LayerSweep", "LayersResult", "ask", "layers", "plan_layers"]
