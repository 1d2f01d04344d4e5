"""Streaming, mergeable accumulators and the metrics of a chunk: tensors in, numbers out."""

from lesion.statistics.clustered_mean import ClusteredMean, ClusteredMeanResult
from lesion.statistics.metrics import BITS, Prediction, kl_nats, predict

__all__ = ["BITS", "ClusteredMean", "ClusteredMeanResult", "Prediction", "kl_nats", "predict"]
