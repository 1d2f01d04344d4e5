"""The tables of an ablation of zero modes: a row a lane, and zero modes beside their controls."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from scipy import stats

from lesion.checkpoints.selection import RANDOM, Kind
from lesion.engine import METRICS, Bench, Contrast, SweepState
from lesion.interventions import Intervention
from lesion.statistics import ClusteredMean
from lesion.studies.layers_results import broken_lanes, shortfalls

LEVEL = 0.95
"""Of the intervals."""
_MORE = ("kl_nats", "agreement", "top1", "loss_change_nats")


@dataclass(frozen=True)
class Row:
    """A row of the table before it is measured: its key, and the change that its lane makes."""

    kind: Kind
    seed: int | None
    scope: str
    value: str
    disjoint: bool
    change: Intervention


def tables_of(state: SweepState, rows: Sequence[Row], bench: Bench, target: str) -> dict[str, pd.DataFrame]:
    """All tables: pooled over domains, and by domain."""
    domains, contrasts = bench.data.domains, bench.contrasts
    tables = {"zero_mode_ablation": _lanes(_pooled(state.means), state, rows, bench, target)}
    by_domain = {"zero_mode_ablation": [_lanes(mean, state, rows, bench, target) for mean in state.means]}
    if contrasts:
        pooled, means = _pooled(state.differences), _pooled(state.means)
        tables["zero_mode_contrasts"] = _contrasts(pooled, means, rows, contrasts, target)
        by_domain["zero_mode_contrasts"] = [
            _contrasts(difference, mean, rows, contrasts, target)
            for difference, mean in zip(state.differences, state.means, strict=True)
        ]
    for name, found in by_domain.items():
        for domain, table in zip(domains, found, strict=True):
            table.insert(0, "domain", domain)
        tables[f"{name}_by_domain"] = pd.concat(found, ignore_index=True)
    return tables


def _pooled(means: Sequence[ClusteredMean]) -> ClusteredMean:
    pooled = ClusteredMean(*means[0].state_dict()["mean_sum"].shape)
    for mean in means:
        pooled.merge(mean)
    return pooled


def _lanes(mean: ClusteredMean, state: SweepState, rows: Sequence[Row], bench: Bench, target: str) -> pd.DataFrame:
    result, column = mean.result(), {name: index for index, name in enumerate(METRICS)}
    records = []
    for cell in range(len(rows) + 1):
        row = rows[cell - 1] if cell else None
        record: dict[str, object] = {
            "target": target,
            "kind": row.kind if row else "none",
            "seed": row.seed if row else None,
            "scope": row.scope if row else "all",
            "value": row.value if row else "zero",
            "disjoint": row.disjoint if row else False,
            **_counts(state, bench, cell),
            "n_tokens": result.n_tokens,
            "n_documents": result.n_documents,
            "loss_nats": float(result.mean[cell, column["loss_nats"]]),
            "loss_sem": float(result.sem[cell, column["loss_nats"]]),
        }
        for name in _MORE:
            record[name] = float(result.mean[cell, column[name]])
            record[f"{name}_sem"] = float(result.sem[cell, column[name]])
        records.append(record)
    table = pd.DataFrame.from_records(records)
    return table.astype(dict.fromkeys(("seed", *_COUNTED), "Int64"))


_COUNTED = ("n_weights_set", "n_zero_modes_set", "n_weights_in_scope")


def _counts(state: SweepState, bench: Bench, cell: int) -> dict[str, int | None]:
    """How many weights a lane sets, how many of them are zero modes, and how many its scope has."""
    if not cell:
        return dict.fromkeys(_COUNTED, 0)
    n_set = state.n_set.get(cell)
    sizes = bench.scope_sizes(cell)
    if n_set is None:  # every shard that could have told failed
        return {"n_weights_set": None, "n_zero_modes_set": None, "n_weights_in_scope": sum(sizes)}
    return {"n_weights_set": n_set[0], "n_zero_modes_set": n_set[1], "n_weights_in_scope": sum(sizes)}


def _contrasts(
    differences: ClusteredMean,
    means: ClusteredMean,
    rows: Sequence[Row],
    contrasts: Sequence[Contrast],
    target: str,
) -> pd.DataFrame:
    """Zero modes minus a control: each seed by itself, and the mean of its seeds (seed null).

    The standard error of a difference is clustered by document. Beside the mean of k seeds it is
    sqrt(sem^2 + sd^2 / k), sd that of the seeds' losses: documents and draws are both samples. Intervals are Student's,
    with the degrees of freedom of Welch and Satterthwaite.
    """
    result, losses = differences.result(), means.result().mean[:, METRICS.index("loss_nats")]
    records = []
    for cell, contrast in enumerate(contrasts):
        own, control = rows[contrast.lane - 1], rows[contrast.others[0] - 1]
        k, sem = len(contrast.others), float(result.sem[cell, 0])
        sd = float(losses[list(contrast.others)].std(unbiased=True)) if k > 1 else math.nan
        difference = float(result.mean[cell, 0])
        whole, freedom = _combined(sem, result.n_documents, sd, k)
        reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * whole if freedom > 0 else math.nan
        records.append(
            {
                "target": target,
                "scope": own.scope,
                "kind": own.kind,
                "control": control.kind,
                "seed": control.seed if k == 1 else None,
                "n_seeds": k,
                "value": own.value,
                "disjoint": control.disjoint,
                "n_documents": result.n_documents,
                "difference_nats": difference,
                "difference_sem": whole,
                "seed_sd": sd,
                "low_nats": difference - reach,
                "high_nats": difference + reach,
            }
        )
    return pd.DataFrame.from_records(records).astype({"seed": "Int64"})


def _combined(sem: float, n_documents: int, sd: float, k: int) -> tuple[float, float]:
    """Standard error over documents and draws, and its degrees of freedom."""
    if k == 1:
        return sem, float(n_documents - 1)
    documents, draws = sem**2, sd**2 / k
    whole = documents + draws
    if not whole > 0 or n_documents < 2:
        return math.sqrt(whole) if whole >= 0 else math.nan, float(n_documents - 1)
    return math.sqrt(whole), whole**2 / (documents**2 / (n_documents - 1) + draws**2 / (k - 1))


def warnings_of(state: SweepState, rows: Sequence[Row], bench: Bench) -> list[str]:
    """What a reader of the tables must know, a line each."""
    lines = [*shortfalls(state, bench), *broken_lanes(state)]
    empty, still, short = [], [], []
    for index, row in enumerate(rows, start=1):
        n_set = state.n_set.get(index)
        if n_set is None:
            continue
        name = row.change.name.rpartition("@")[2]
        if not n_set[0]:
            empty.append(f"{row.kind} in {name}")
        elif index not in state.moved:
            still.append(f"{row.kind} in {name}")
        elif row.kind in RANDOM and row.disjoint and n_set[0] < bench.scope_sizes(index)[0]:
            short.append(row.scope)
    if empty:
        lines.append(f"no weights at all, so that the row is that of the model as it is: {_some(empty)}")
    if still:
        lines.append(f"weights were set and the output stayed the same to the bit: {_some(still)}")
    if short:
        lines.append(
            "magnitude-matched weights that are no zero modes are too few of some exponents, so that fewer were set "
            f"than there are zero modes: {_some(list(dict.fromkeys(short)))}"
        )
    return lines


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
