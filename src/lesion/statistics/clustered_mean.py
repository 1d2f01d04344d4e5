"""Means over tokens whose standard errors respect that tokens of one document are alike."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lesion.errors import LesionError


@dataclass(frozen=True)
class ClusteredMeanResult:
    """Means and their standard errors.

    Attributes:
        mean: sum over all tokens divided by the number of tokens.
        sem: its standard error, clustered by document; NaN with fewer than two documents.
        n_tokens: tokens counted.
        n_documents: documents that hold at least one counted token.
    """

    mean: Float[Tensor, "cell metric"]
    sem: Float[Tensor, "cell metric"]
    n_tokens: int
    n_documents: int


class ClusteredMean:
    """Streaming mean of token values, with documents as clusters.

    For documents d with sums S_d over n_d tokens, the mean is m = sum S_d / sum n_d, and its standard error that of a
    ratio: sqrt(D/(D-1) * sum (S_d - m n_d)^2) / sum n_d (Cochran, Sampling Techniques, section 2.11, without the
    correction for finite populations). What is kept are the centred second moments of (S_d, n_d), in float64.

    A NaN in one document's sum makes that cell's metric NaN and leaves the others alone.
    """

    def __init__(self, cells: int, metrics: int) -> None:
        shape = (cells, metrics)
        self._documents = 0
        self._tokens = 0
        self._mean_sum = torch.zeros(shape, dtype=torch.float64)
        self._sum_sum = torch.zeros(shape, dtype=torch.float64)
        self._sum_count = torch.zeros(shape, dtype=torch.float64)
        self._count_count = torch.zeros((), dtype=torch.float64)

    def update(self, sums: Float[Tensor, "document cell metric"], counts: Int[Tensor, " document"]) -> None:
        """Adds whole documents: sums over their tokens, and how many those were; one without any is left out."""
        kept = counts > 0
        sums, counts = sums[kept].double().cpu(), counts[kept].cpu()
        if not len(counts):
            return
        part = ClusteredMean(*self._mean_sum.shape)
        part._documents, part._tokens = len(counts), int(counts.sum())
        part._mean_sum = sums.mean(dim=0)
        centred, centred_counts = sums - part._mean_sum, counts - counts.double().mean()
        part._sum_sum = centred.square().sum(dim=0)
        part._sum_count = torch.einsum("dcm,d->cm", centred, centred_counts)
        part._count_count = centred_counts.square().sum()
        self.merge(part)

    def merge(self, other: "ClusteredMean") -> None:
        """Adds what another accumulator has seen (pairwise update of centred moments)."""
        if other._mean_sum.shape != self._mean_sum.shape:
            raise LesionError(
                f"cannot merge means of {tuple(other._mean_sum.shape)} into {tuple(self._mean_sum.shape)}"
            )
        if not other._documents:
            return
        if not self._documents:
            self.load_state_dict(other.state_dict())
            return
        documents = self._documents + other._documents
        shift = other._mean_sum - self._mean_sum
        count_shift = other._tokens / other._documents - self._tokens / self._documents
        weight = self._documents * other._documents / documents
        self._sum_sum += other._sum_sum + shift.square() * weight
        self._sum_count += other._sum_count + shift * count_shift * weight
        self._count_count += other._count_count + count_shift**2 * weight
        self._mean_sum += shift * (other._documents / documents)
        self._documents, self._tokens = documents, self._tokens + other._tokens

    def result(self) -> ClusteredMeanResult:
        """The means so far.

        Raises:
            LesionError: nothing was counted.
        """
        if not self._documents:
            raise LesionError("no tokens were counted, so there is no mean")
        mean = self._mean_sum * self._documents / self._tokens
        squares = self._sum_sum - 2 * mean * self._sum_count + mean.square() * self._count_count
        if self._documents > 1:
            spread = squares.clamp_min(0) * (self._documents / (self._documents - 1))
            sem = spread.sqrt() / self._tokens
        else:
            sem = torch.full_like(mean, torch.nan)
        return ClusteredMeanResult(mean, sem, self._tokens, self._documents)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to go on later; plain tensors, float64 and int64."""
        return {
            "counts": torch.tensor([self._documents, self._tokens]),
            "mean_sum": self._mean_sum.clone(),
            "sum_sum": self._sum_sum.clone(),
            "sum_count": self._sum_count.clone(),
            "count_count": self._count_count.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a state of the same shape, forgetting its own."""
        if state["mean_sum"].shape != self._mean_sum.shape:
            raise LesionError(
                f"a state of {tuple(state['mean_sum'].shape)} does not fit means of {tuple(self._mean_sum.shape)}"
            )
        self._documents, self._tokens = (int(n) for n in state["counts"])
        self._mean_sum = state["mean_sum"].clone()
        self._sum_sum = state["sum_sum"].clone()
        self._sum_count = state["sum_count"].clone()
        self._count_count = state["count_count"].clone()
