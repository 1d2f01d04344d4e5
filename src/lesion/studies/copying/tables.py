"""The tables of a copying run, from what each condition gave on each example."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from lesion.data.copy_tasks import CopyTask
from lesion.studies.copying.conditions import Condition
from lesion.studies.copying.generating import GenerationResult
from lesion.studies.copying.measuring import Head, TaskResult

LEVEL = 0.95
"""Of all intervals."""
Z = float(stats.norm.ppf((1 + LEVEL) / 2))
Values = Float[np.ndarray, " example"]


@dataclass(frozen=True)
class Measured:
    """One condition on one task.

    Attributes:
        heads: those of `result.attention`, in its order.
        generated: None where nothing was generated.
        generated_heads: those of `generated.attention`.
    """

    condition: Condition
    task: CopyTask
    result: TaskResult
    heads: tuple[Head, ...]
    generated: GenerationResult | None = None
    generated_heads: tuple[Head, ...] = ()

    @property
    def key(self) -> dict[str, object]:
        """The columns that every table of conditions begins with."""
        own = self.condition
        return {
            "task": self.task.name,
            "condition": own.name,
            "kind": own.kind,
            "scope": own.scope,
            "seed": own.seed,
        }


class Interval(NamedTuple):
    """A share or a difference, with its standard error and its interval."""

    value: float
    sem: float
    low: float
    high: float


NOTHING = Interval(math.nan, math.nan, math.nan, math.nan)


def share(right: Values) -> Interval:
    """A share of examples with Wilson's interval; NaN where any example has no finite prediction."""
    if np.isnan(right).any():
        return NOTHING
    n, k = right.size, int(right.sum())
    found = stats.binomtest(k, n).proportion_ci(LEVEL, method="wilson")
    return Interval(k / n, mean_error(right), float(found.low), float(found.high))


def paired_change(after: Values, before: Values) -> Interval:
    """A difference of shares over the same examples.

    The interval is Wald's with half an example added to each cell of the table of pairs (Agresti and Min 2005), so
    that it has a width also where no example changed.
    """
    if np.isnan(after).any() or np.isnan(before).any():
        return NOTHING
    n, gained, lost = after.size, float((after > before).sum()), float((after < before).sum())
    value = (gained - lost) / n
    more, gained, lost = n + 2.0, gained + 0.5, lost + 0.5
    middle = (gained - lost) / more
    wide = Z * math.sqrt((gained + lost) - (gained - lost) ** 2 / more) / more
    return Interval(value, mean_error(after - before), max(-1.0, middle - wide), min(1.0, middle + wide))


def mean_error(values: Values) -> float:
    """Standard error of a mean over examples, which are drawn independently."""
    return float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else math.nan


def paired_mean(after: Values, before: Values) -> Interval:
    """A mean difference over the same examples, with the interval of Student's t."""
    differences = after - before
    if np.isnan(differences).any():
        return NOTHING
    value, sem = float(differences.mean()), mean_error(differences)
    wide = float(stats.t.ppf((1 + LEVEL) / 2, differences.size - 1)) * sem
    return Interval(value, sem, value - wide, value + wide)


def copying_table(measured: Sequence[Measured]) -> pd.DataFrame:
    """A row a task and condition: accuracy and loss of the answer, and their changes against no ablation."""
    clean = _clean(measured)
    records = []
    for one in measured:
        right, loss = one.result.right[-1], one.result.loss_nats[-1]
        base = clean[one.task.name].result
        accuracy, change = share(right), paired_change(right, base.right[-1])
        loss_change = paired_mean(loss, base.loss_nats[-1])
        records.append(
            {
                **one.key,
                "n_examples": one.task.n_examples,
                "accuracy": accuracy.value,
                "accuracy_sem": accuracy.sem,
                "accuracy_low": accuracy.low,
                "accuracy_high": accuracy.high,
                "chance": one.task.chance,
                "accuracy_change": change.value,
                "accuracy_change_sem": change.sem,
                "accuracy_change_low": change.low,
                "accuracy_change_high": change.high,
                "loss_nats": float(loss.mean()),
                "loss_nats_sem": mean_error(loss),
                "loss_change_nats": loss_change.value,
                "loss_change_nats_sem": loss_change.sem,
                "loss_change_low_nats": loss_change.low,
                "loss_change_high_nats": loss_change.high,
            }
        )
    return _keyed(records)


def depths_table(measured: Sequence[Measured]) -> pd.DataFrame:
    """A row a task, condition and depth: 0 after the embedding, then after attention and MLP of each block."""
    records = []
    for one in measured:
        for depth, (right, loss) in enumerate(zip(one.result.right, one.result.loss_nats, strict=True)):
            accuracy, probability = share(right), np.exp(-loss)
            records.append(
                {
                    **one.key,
                    "depth": depth,
                    "layer": None if not depth else (depth - 1) // 2,
                    "after": "embedding" if not depth else ("attention" if depth % 2 else "mlp"),
                    "accuracy": accuracy.value,
                    "accuracy_sem": accuracy.sem,
                    "accuracy_low": accuracy.low,
                    "accuracy_high": accuracy.high,
                    "chance": one.task.chance,
                    "probability": float(probability.mean()),
                    "probability_sem": mean_error(probability),
                    "loss_nats": float(loss.mean()),
                    "loss_nats_sem": mean_error(loss),
                    "n_examples": one.task.n_examples,
                }
            )
    return _keyed(records)


def attention_table(measured: Sequence[Measured], heads: Sequence[Head]) -> pd.DataFrame:
    """A row a task, condition and chosen head: what the last token pays to the answer's earlier positions (Tab 4)."""
    clean = _clean(measured)
    records = []
    for one in measured:
        base = clean[one.task.name]
        for head in heads:
            own, before = one.result.attention[one.heads.index(head)], base.result.attention[base.heads.index(head)]
            both = ~(np.isnan(own) | np.isnan(before))
            change = paired_mean(own[both], before[both]) if both.sum() > 1 else NOTHING
            records.append(
                {
                    **one.key,
                    "layer": head[0],
                    "head": head[1],
                    **spread("attention", own),
                    "attention_change": change.value,
                    "attention_change_sem": change.sem,
                    "attention_change_low": change.low,
                    "attention_change_high": change.high,
                }
            )
    return _keyed(records)


def generation_table(measured: Sequence[Measured]) -> pd.DataFrame:
    """A row a task, condition, chosen head (null where there is none) and step of generation (Tab 10)."""
    records = []
    for one in measured:
        if one.generated is None:
            continue
        for step, right in enumerate(one.generated.right):
            accuracy = share(right)
            for place, head in enumerate(one.generated_heads or ((None, None),)):
                own = one.generated.attention[step, place] if one.generated_heads else np.zeros(0)
                records.append(
                    {
                        **one.key,
                        "layer": head[0],
                        "head": head[1],
                        "step": step + 1,
                        **spread("attention", own),
                        "accuracy": accuracy.value,
                        "accuracy_sem": accuracy.sem,
                        "accuracy_low": accuracy.low,
                        "accuracy_high": accuracy.high,
                    }
                )
    return _keyed(records)


def with_attention(heads: pd.DataFrame, clean: Mapping[str, Measured]) -> pd.DataFrame:
    """The table of heads with, for each task, the attention to the answer without any ablation."""
    table = heads.copy()
    places = list(zip(table["layer"], table["head"], strict=True))
    for task, one in clean.items():
        rows = [spread(f"attention_{task}", one.result.attention[one.heads.index(place)]) for place in places]
        for column in rows[0]:
            if not column.startswith("n_"):
                table[column] = [row[column] for row in rows]
    return table


def spread(name: str, values: Values) -> dict[str, float | int]:
    """Mean, standard deviation over examples and standard error, of the examples that have a value."""
    known = values[~np.isnan(values)]
    if known.size < 2:
        return {name: math.nan, f"{name}_sd": math.nan, f"{name}_sem": math.nan, "n_examples": int(known.size)}
    return {
        name: float(known.mean()),
        f"{name}_sd": float(known.std(ddof=1)),
        f"{name}_sem": mean_error(known),
        "n_examples": int(known.size),
    }


def _clean(measured: Sequence[Measured]) -> dict[str, Measured]:
    """Of each task, the condition without an ablation, which comes first."""
    found: dict[str, Measured] = {}
    for one in measured:
        found.setdefault(one.task.name, one)
    return found


def _keyed(records: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    table = pd.DataFrame.from_records(list(records))
    kinds = {"scope": "string", "seed": "Int64", "layer": "Int64", "head": "Int64"}
    return table.astype({name: kind for name, kind in kinds.items() if name in table})
