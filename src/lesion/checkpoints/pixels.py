"""Large matrices as zeros and ones, and those as small pictures (paper `zero-modes`, Figs 1, 2, 4, 9 and 17)."""

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

LARGEST = 256
"""Pixels of a side."""
_BLOCK = 1 << 18
"""Weights that are compared in one go."""


def above(weight: Float[Tensor, "rows columns"], size: float) -> Bool[Tensor, "rows columns"]:
    """Where |w| is more than `size`, compared in double precision."""
    found = torch.empty(weight.shape, dtype=torch.bool)
    step = max(_BLOCK // max(weight.shape[1], 1), 1)
    for start in range(0, len(weight), step):
        found[start : start + step] = weight[start : start + step].double().abs() > size
    return found


def shares(ones: Bool[Tensor, "rows columns"], largest: int = LARGEST) -> NDArray[np.float64]:
    """The share of ones in each cell of a grid; a matrix that is no larger than the grid is itself.

    Averaging keeps what a matrix looks like from afar; leaving rows out would draw patterns that it does not have.
    All cells have one size but the last, which may be smaller: cells that differ by a row or a column draw patterns,
    too.
    """
    entries = ones.numpy().view(np.uint8)
    rows, columns = (_edges(size, largest) for size in entries.shape)
    counts = np.stack([entries[a:b].sum(axis=0, dtype=np.int64) for a, b in pairwise(rows)])
    counts = np.add.reduceat(counts, columns[:-1], axis=1)
    found: NDArray[np.float64] = counts / np.outer(np.diff(rows), np.diff(columns))
    return found


def grey(values: NDArray[np.floating], low: float, high: float) -> NDArray[np.uint8]:
    """Values as bytes: `low` and below is 0, `high` and above 255."""
    scaled = (values.astype(np.float64) - low) / (high - low) if high > low else np.zeros(values.shape)
    found: NDArray[np.uint8] = np.rint(255 * np.clip(scaled, 0.0, 1.0)).astype(np.uint8)
    return found


def _edges(size: int, largest: int) -> NDArray[np.int64]:
    """Where cells begin, and where the last one ends."""
    step = -(-size // largest)
    found: NDArray[np.int64] = np.append(np.arange(0, size, step), size)
    return found
