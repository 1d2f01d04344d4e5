"""Streaming, mergeable accumulators and the metrics of a chunk: tensors in, numbers out."""

from lesion.statistics.clustered_mean import ClusteredMean, ClusteredMeanResult
from lesion.statistics.metrics import BITS, Scorer, Scores

__all__ = ["BITS", "ClusteredMean", "ClusteredMeanResult", "Scorer", "Scores"]
