"""Sums of squares of each coordinate of an activation: what norms over tokens are made of."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from lesion.errors import LesionError
from lesion.statistics.statistic import Positions


class SumOfSquares:
    """Streaming sum of x_j squared over tokens, for each coordinate j of a tensor of known width.

    Squares are float32 (those of half-precision activations are exact there), their sum is float64. The root is the
    norm of a projection's input coordinate in Wanda's score (Sun et al. 2023, *A Simple and Effective Pruning Approach
    for Large Language Models*, section 3).
    """

    def __init__(self, width: int) -> None:
        self._sums = torch.zeros(width, dtype=torch.float64)
        self._count = 0

    def update(self, values: Float[Tensor, "position {self._sums.shape[0]}"], positions: Positions) -> None:
        """Adds the rows of a tensor."""
        self._sums = self._sums.to(values.device)
        self._sums += values.float().square().sum(dim=0, dtype=torch.float64)
        self._count += len(values)

    def merge(self, other: "SumOfSquares") -> None:
        """Adds what another one of the same width has seen."""
        if other._sums.shape != self._sums.shape:
            raise LesionError(
                f"cannot merge sums over {len(other._sums)} coordinates into those over {len(self._sums)}"
            )
        self._sums += other._sums.to(self._sums.device)
        self._count += other._count

    @property
    def n_positions(self) -> int:
        """Rows that were added."""
        return self._count

    def norms(self) -> Float[Tensor, " width"]:
        """Euclidean norm of each coordinate over all rows, float64.

        Raises:
            LesionError: there were none.
        """
        if not self._count:
            raise LesionError("no tokens were counted, so there are no norms")
        return self._sums.cpu().sqrt()

    def state_dict(self) -> dict[str, Tensor]:
        """Sums (float64) and the number of rows (int64)."""
        return {"sums": self._sums.cpu().clone(), "count": torch.tensor(self._count)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a state of the same width."""
        if state["sums"].shape != self._sums.shape:
            raise LesionError(
                f"a state of {tuple(state['sums'].shape)} does not fit sums over {len(self._sums)} coordinates"
            )
        self._sums, self._count = state["sums"].clone(), int(state["count"])
