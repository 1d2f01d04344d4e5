"""The tables of a layer sweep, and what a reader of them must know."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lesion.engine import METRICS, Bench, Incident, SweepState
from lesion.engine.maker import unlike
from lesion.interventions import Intervention
from lesion.statistics import ClusteredMean

_LEVELS = ("loss_nats", "kl_nats", "agreement", "top1", "entropy_bits")
_CLEAN = {"loss_nats": "loss_clean_nats", "top1": "top1_clean", "entropy_bits": "entropy_clean_bits"}
_CHANGES = ("loss_change_nats", "top1_change", "entropy_change_bits")


@dataclass(frozen=True)
class LayerSweep:
    """What was asked, laid out for a model: the rows of the table, and their interventions in the same order."""

    rows: tuple[tuple[str, int], ...]
    interventions: tuple[Intervention, ...]
    base: Intervention | None


def tables_of(state: SweepState, asked: LayerSweep, domains: Sequence[str], n_layers: int) -> dict[str, pd.DataFrame]:
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


def warnings_of(state: SweepState, bench: Bench) -> list[str]:
    still = [lane.name for index, lane in enumerate(bench.lanes) if index and index not in state.moved]
    nothing = [f"{name}: every number stayed as it was, so what it takes away contributes nothing" for name in still]
    return [*shortfalls(state, bench), *broken_lanes(state), *nothing]


def broken_lanes(state: SweepState) -> list[str]:
    """Lanes that stopped being finite, a line for each place."""
    broken: dict[tuple[str, int | None], list[int]] = {}
    for incident in state.incidents:
        broken.setdefault((incident.lane, incident.block), []).extend(incident.documents)
    return [str(Incident(lane, block, sorted(documents))) for (lane, block), documents in broken.items()]


def shortfalls(state: SweepState, bench: Bench) -> list[str]:
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
    if shared := unlike(state.made_by):
        lines.append(shared)
    return lines
