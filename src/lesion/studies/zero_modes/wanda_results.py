"""Weights ranked by Wanda's score, read from a checkpoint's files, and the tables of it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float32, Int

from lesion.checkpoints.components import COMPONENTS
from lesion.checkpoints.masks import Masks
from lesion.checkpoints.opened import Stored
from lesion.engine import Progress
from lesion.statistics.deciles import PARTS, marked_in_deciles, marked_in_shared_deciles, weights_in_deciles

BY = ("wanda", "magnitude", "activation")
"""What weights are ranked by: |w| times the norm of its input, |w| alone, the norm alone."""
ROWS_OF_NEURONS, COLUMNS_OF_NEURONS = ("gate", "up", "fc1"), ("down", "fc2")
"""Components in which an MLP neuron is a row, and those in which it is a column."""
PIECE = 1 << 22
"""Weights looked at together."""


@dataclass(frozen=True)
class Projection:
    """A projection matrix of a block.

    Attributes:
        name: as the masks know it.
        module: path in its block.
        tensor: its weights, as stored.
        transposed: stored as (in, out), not (out, in).
    """

    name: str
    layer: int
    component: str
    module: str
    tensor: Stored
    transposed: bool

    @property
    def width(self) -> int:
        """Input coordinates: weights of an output row."""
        return self.tensor.shape[0 if self.transposed else 1]

    @property
    def n_rows(self) -> int:
        """Output coordinates."""
        return self.tensor.shape[1 if self.transposed else 0]

    def pieces(
        self, masks: Masks
    ) -> Iterator[tuple[Float32[np.ndarray, "row weight"], Bool[np.ndarray, "row weight"]]]:
        """Some output rows at a time: sizes of weights, and which are zero modes."""
        at_once = max(1, PIECE // self.width)
        whole = self._whole(masks) if self.transposed else None
        for start in range(0, self.n_rows, at_once):
            stop = min(start + at_once, self.n_rows)
            if whole is not None:
                yield np.ascontiguousarray(whole[0][:, start:stop].T), np.ascontiguousarray(whole[1][:, start:stop].T)
            else:
                yield self._read(masks, start * self.width, stop * self.width)

    def _whole(self, masks: Masks) -> tuple[Float32[np.ndarray, "weight row"], Bool[np.ndarray, "weight row"]]:
        sizes, marks = self._read(masks, 0, self.n_rows * self.width)
        return sizes.reshape(self.tensor.shape), marks.reshape(self.tensor.shape)

    def _read(
        self, masks: Masks, start: int, stop: int
    ) -> tuple[Float32[np.ndarray, "row weight"], Bool[np.ndarray, "row weight"]]:
        bits = torch.from_numpy(self.tensor.read(start, stop).view(f"i{self.tensor.dtype.itemsize}"))
        packed = masks.packed(self.name)[start // 8 : math.ceil(stop / 8)]
        marks = np.unpackbits(packed, bitorder="little")[start % 8 :][: stop - start].view(np.bool_)
        sizes: np.ndarray = bits.view(self.tensor.dtype).float().abs().numpy()
        return sizes.reshape(-1, self.width), marks.reshape(-1, self.width)


@dataclass(frozen=True)
class Ranked:
    """One projection.

    Attributes:
        marked: zero modes in each tenth, by what the ranking is by.
        scores, neurons_marked: Wanda scores and zero modes of each MLP neuron, summed over its row or column; empty
            outside MLPs.
    """

    projection: Projection
    marked: dict[str, Float[np.ndarray, "10"]]
    scores: Float[np.ndarray, " neuron"]
    neurons_marked: Int[np.ndarray, " neuron"]

    @property
    def n_weights(self) -> list[int]:
        """Weights in each tenth."""
        return weights_in_deciles(self.projection.n_rows, self.projection.width)


def rank(
    projections: Sequence[Projection], norms: Sequence[np.ndarray], masks: Masks, on_weights: Progress | None = None
) -> list[Ranked]:
    """Ranks the weights of every projection, a piece of one at a time.

    Args:
        norms: of the input coordinates of each projection; rounded to float32, as the scores are.
    """
    total = sum(projection.n_rows * projection.width for projection in projections)
    done = 0

    def told(weights: int) -> None:
        nonlocal done
        done += weights
        if on_weights:
            on_weights(done, total)

    return [
        _ranked(projection, norm.astype(np.float32), masks, told)
        for projection, norm in zip(projections, norms, strict=True)
    ]


def _ranked(
    projection: Projection, norms: Float32[np.ndarray, " weight"], masks: Masks, told: Callable[[int], None]
) -> Ranked:
    marked = {by: np.zeros(PARTS) for by in BY}
    columns_marked = np.zeros(projection.width, dtype=np.int64)
    column_scores = np.zeros(projection.width)
    row_scores, rows_marked = [], []
    for sizes, marks in projection.pieces(masks):
        scores = sizes * norms
        marked["wanda"] += marked_in_deciles(scores, marks)
        marked["magnitude"] += marked_in_deciles(sizes, marks)
        columns_marked += np.count_nonzero(marks, axis=0)
        if projection.component in COLUMNS_OF_NEURONS:
            column_scores += scores.sum(axis=0, dtype=np.float64)
        elif projection.component in ROWS_OF_NEURONS:
            row_scores.append(scores.sum(axis=1, dtype=np.float64))
            rows_marked.append(np.count_nonzero(marks, axis=1))
        told(marks.size)
    marked["activation"] = marked_in_shared_deciles(norms, columns_marked)
    if projection.component in COLUMNS_OF_NEURONS:
        return Ranked(projection, marked, column_scores, columns_marked)
    none = [np.zeros(0)]
    return Ranked(
        projection, marked, np.concatenate(row_scores or none), np.concatenate(rows_marked or none).astype(np.int64)
    )


def tables_of(ranked: Sequence[Ranked]) -> dict[str, pd.DataFrame]:
    """The tables of a run."""
    return {"zero_modes_wanda": _deciles(ranked), "zero_modes_wanda_neurons": _neurons(ranked)}


def _deciles(ranked: Sequence[Ranked]) -> pd.DataFrame:
    """Tensors, then each component over all blocks, then all projections."""
    records = [
        record
        for one in ranked
        for record in _rows(one.projection.name, one.projection.layer, one.projection.component, [one])
    ]
    for component in COMPONENTS:
        of_it = [one for one in ranked if one.projection.component == component]
        records += _rows(None, None, component, of_it) if of_it else []
    records += _rows(None, None, "projections", ranked)
    return pd.DataFrame.from_records(records).astype({"tensor": "string", "layer": "Int64"})


def _rows(tensor: str | None, layer: int | None, component: str, ranked: Sequence[Ranked]) -> list[dict[str, object]]:
    """A row for each ranking and tenth, of some tensors together: each was ranked by itself."""
    sizes = np.sum([one.n_weights for one in ranked], axis=0)
    rows: list[dict[str, object]] = []
    for by in BY:
        marked = np.sum([one.marked[by] for one in ranked], axis=0)
        mean = marked.sum() / sizes.sum()
        for part in range(PARTS):
            share = marked[part] / sizes[part] if sizes[part] else math.nan
            rows.append(
                {
                    "tensor": tensor,
                    "layer": layer,
                    "component": component,
                    "by": by,
                    "decile": part + 1,
                    "n_weights": int(sizes[part]),
                    "n_zero_modes": float(marked[part]),
                    "fraction": float(share),
                    "over_mean": float(share / mean) if mean else math.nan,
                }
            )
    return rows


NEURONS = ("tensor", "layer", "component", "neuron", "score", "rank", "n_zero_modes", "fraction")


def _neurons(ranked: Sequence[Ranked]) -> pd.DataFrame:
    """A row a neuron and matrix; rank 1 has the highest score, and equal scores the same rank."""
    parts = []
    for one in ranked:
        projection, n_neurons = one.projection, len(one.scores)
        if not n_neurons:
            continue
        part = pd.DataFrame({"neuron": np.arange(n_neurons), "score": one.scores, "n_zero_modes": one.neurons_marked})
        part.insert(0, "tensor", projection.name)
        part.insert(1, "layer", projection.layer)
        part.insert(2, "component", projection.component)
        part["rank"] = part["score"].rank(method="min", ascending=False).astype(np.int64)
        part["fraction"] = part["n_zero_modes"] / (projection.n_rows * projection.width // n_neurons)
        parts.append(part)
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(NEURONS))
    return table[list(NEURONS)]
