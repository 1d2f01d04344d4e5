"""Streaming, mergeable accumulators and the metrics of a chunk: tensors in, numbers out."""

from lesion.statistics.clustered_mean import ClusteredMean, ClusteredMeanResult
from lesion.statistics.metrics import BITS, NO_TARGET, Prediction, kl_nats, predict

__all__ = ["BITS", "NO_TARGET", "ClusteredMean", "ClusteredMeanResult", "Prediction", "kl_nats", "predict"]
