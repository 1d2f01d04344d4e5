"""Scores of heads on sequences that repeat a stretch of tokens, beside the same on sequences that repeat nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lesion.anatomy import Anatomy
from lesion.data.copy_tasks import Probes
from lesion.interventions import Intervention
from lesion.interventions.attention import recording
from lesion.studies.copying.measuring import MAX_TOKENS, Advance, Head, order_of, run

SCORES = ("induction", "induction_null", "duplicate_token", "duplicate_token_null", "previous_token")
"""Each the mean attention from a row to one column; `null`: the same places in sequences that repeat nothing."""
ERRORS_ABOVE = 3.0
"""Standard errors of the difference by which an induction head exceeds the null."""


@dataclass
class HeadScores:
    """Scores of every head in every example.

    Attributes:
        values: NaN where the head's block does not run.
    """

    values: Float[np.ndarray, "score layer head example"]

    def arrays(self) -> dict[str, np.ndarray]:
        """As a shard keeps it."""
        return {"scores": self.values}


def score_heads(
    anatomy: Anatomy,
    probes: Probes,
    intervention: Intervention | None,
    *,
    batch_size: int | None = None,
    advance: Advance | None = None,
) -> HeadScores:
    """Scores all heads of a model on which the intervention is in place already.

    In the second time that a stretch is said, each token's row is looked at: what it pays to the token after its
    previous occurrence (induction: Olsson et al. 2022), and to that occurrence itself (duplicate token). Previous
    token: what each row but the first pays to the position before it.
    """
    layers = sorted({block for block in order_of(anatomy, intervention) if block is not None})
    shape = (len(SCORES), anatomy.n_layers, anatomy.n_heads, len(probes.repeated))
    values = np.full(shape, np.nan)
    stretch, first = probes.n_items, probes.n_special
    again = torch.arange(first + stretch, first + 2 * stretch)
    for sequences, suffix in ((probes.repeated, ""), (probes.distinct, "_null")):
        at_once = batch_size or max(1, MAX_TOKENS.get(anatomy.device.type, MAX_TOKENS["cpu"]) // sequences.shape[1])
        for start in range(0, len(sequences), at_once):
            ids = torch.from_numpy(sequences[start : start + at_once]).to(anatomy.device)

            def take(
                layer: int,
                piece: int,
                probabilities: Float[Tensor, "batch head row token"],
                suffix: str = suffix,
                start: int = start,
            ) -> None:
                examples = slice(start + piece, start + piece + len(probabilities))
                for name, columns in (("induction", again - stretch + 1), ("duplicate_token", again - stretch)):
                    values[SCORES.index(name + suffix), layer, :, examples] = _mean(probabilities, again, columns)
                if not suffix:
                    rows = torch.arange(1, probabilities.shape[2])
                    values[SCORES.index("previous_token"), layer, :, examples] = _mean(probabilities, rows, rows - 1)

            with recording(anatomy, layers, take):
                run(anatomy, ids)
            if advance:
                advance(ids.numel())
    return HeadScores(values)


def _mean(
    probabilities: Float[Tensor, "batch head row token"], rows: Int[Tensor, " chosen"], columns: Int[Tensor, " chosen"]
) -> Float[np.ndarray, "head batch"]:
    found: np.ndarray = probabilities[:, :, rows, columns].double().mean(-1).T.cpu().numpy()
    return found


def heads_table(scores: HeadScores, threshold: float) -> pd.DataFrame:
    """A row a head: every score, its standard error over examples, and whether it is an induction head.

    One is where the induction score is at least `threshold` and exceeds the null, the mean attention over the same
    distances in sequences that repeat nothing, by more than `ERRORS_ABOVE` standard errors of the difference: heads
    that look so far back whatever stands there are none.
    """
    _, n_layers, n_heads, n = scores.values.shape
    records = []
    for layer in range(n_layers):
        for head in range(n_heads):
            record: dict[str, object] = {"layer": layer, "head": head}
            for place, name in enumerate(SCORES):
                own = scores.values[place, layer, head]
                record[name], record[f"{name}_sem"] = float(own.mean()), float(own.std(ddof=1) / math.sqrt(n))
            records.append(record)
    table = pd.DataFrame(records)
    error = np.hypot(table["induction_sem"], table["induction_null_sem"])
    above = table["induction"] - table["induction_null"] > ERRORS_ABOVE * error
    table["is_induction"] = (table["induction"] >= threshold) & above
    table["n_examples"] = n
    return table


def induction_heads(table: pd.DataFrame) -> list[Head]:
    """The induction heads, the highest score first."""
    found = table[table["is_induction"]].sort_values("induction", ascending=False, kind="stable")
    return [(int(layer), int(head)) for layer, head in zip(found["layer"], found["head"], strict=True)]


def best_heads(table: pd.DataFrame, most: int) -> list[Head]:
    """The induction heads, at most so many; where there are none, the head with the highest score."""
    found = induction_heads(table)[:most]
    if found or table["induction"].isna().all():
        return found
    row = table.nlargest(1, "induction")
    return [(int(row["layer"].item()), int(row["head"].item()))]


def named(heads: Sequence[Head]) -> str:
    """`1:2, 0:3`: layer and head, as scopes write them."""
    return ", ".join(f"{layer}:{head}" for layer, head in heads)
