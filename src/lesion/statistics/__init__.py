"""Streaming, mergeable accumulators and the metrics of a chunk: tensors in, numbers out."""

from lesion.statistics.clustered_mean import ClusteredMean, ClusteredMeanResult
from lesion.statistics.metrics import BITS, Scorer, Scores
from lesion.statistics.squares import SumOfSquares
from lesion.statistics.statistic import Positions, Statistic

__all__ = [
    "BITS",
    "ClusteredMean",
    "ClusteredMeanResult",
    "Positions",
    "Scorer",
    "Scores",
    "Statistic",
    "SumOfSquares",
]
