"""Sums of weights by row or column, and what taking weights away takes from each neuron (paper, Figs 4 and 9)."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 1 << 18
"""Weights that are summed in one go."""


@dataclass(frozen=True)
class Sums:
    """Sums over one dimension of a matrix, one for each index of the other.

    Attributes:
        signed: of w.
        absolute: of |w|.
    """

    signed: NDArray[np.float64]
    absolute: NDArray[np.float64]

    def __sub__(self, other: "Sums") -> "Sums":
        return Sums(self.signed - other.signed, self.absolute - other.absolute)


def sums(weight: Float[Tensor, "rows columns"], chosen: Bool[Tensor, "rows columns"] | None, kept: int) -> Sums:
    """Sums of weights in double precision; a few megabytes are held beside them.

    Args:
        weight: a matrix.
        chosen: which weights count; None for all.
        kept: the dimension that stays, 0 or 1; sums are over the other.
    """
    n_rows, n_columns = weight.shape
    signed, absolute = np.zeros(weight.shape[kept]), np.zeros(weight.shape[kept])
    step = max(_BLOCK // max(n_columns, 1), 1)
    for start in range(0, n_rows, step):
        block = slice(start, min(start + step, n_rows))
        values = weight[block].to(torch.float64, copy=True)
        if chosen is not None:
            values *= chosen[block]
        into, found = (block if kept == 0 else slice(None)), values.numpy()
        signed[into] += found.sum(axis=1 - kept)
        absolute[into] += np.abs(found, out=found).sum(axis=1 - kept)
    return Sums(signed, absolute)


def lost(whole: NDArray[np.float64], taken: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of each neuron's summed |w| that is taken away; NaN for a neuron of zeros."""
    share = np.full(len(whole), np.nan)
    np.divide(taken, whole, out=share, where=whole > 0)
    return share
