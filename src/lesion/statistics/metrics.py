"""What one chunk of logits says: loss, entropy, top-1, and how far it is from the clean model's chunk.

Units: nats for losses and divergences, bits for entropies, per position (paper `stages`, section 4.1).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lesion.data.batches import NO_TARGET

BITS = 1 / math.log(2)


@dataclass(frozen=True)
class Prediction:
    """The distributions that a chunk of logits stands for.

    Attributes:
        shifted: logits minus their maximum at each position, float32.
        log_total: log of the sum of `exp(shifted)`.
        weights: `exp(shifted)`; the probabilities are `weights / exp(log_total)`.
        top1: the most probable id; ties go to the lowest.
        loss_nats: cross-entropy with the target, NaN without one.
        correct: whether the target is the most probable id, NaN without one.
        entropy_bits: entropy of the distribution.
    """

    shifted: Float[Tensor, "position vocabulary"]
    log_total: Float[Tensor, " position"]
    weights: Float[Tensor, "position vocabulary"]
    top1: Int[Tensor, " position"]
    loss_nats: Float[Tensor, " position"]
    correct: Float[Tensor, " position"]
    entropy_bits: Float[Tensor, " position"]


def predict(logits: Float[Tensor, "position vocabulary"], targets: Int[Tensor, " position"]) -> Prediction:
    """Reads a chunk of logits once, in float32 whatever they come in.

    Args:
        targets: ids, or `NO_TARGET`.
    """
    maximum, top1 = logits.max(dim=-1, keepdim=True)
    shifted = logits.float() - maximum.float()
    weights = shifted.exp()
    total = weights.sum(dim=-1)
    log_total = total.log()
    known = targets != NO_TARGET
    picked = shifted.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    entropy_nats = log_total - row_dot(weights, shifted) / total
    return Prediction(
        shifted=shifted,
        log_total=log_total,
        weights=weights,
        top1=top1.squeeze(-1),
        loss_nats=_where_known(known, log_total - picked),
        correct=_where_known(known, (top1.squeeze(-1) == targets).float()),
        entropy_bits=entropy_nats * BITS,
    )


def kl_nats(reference: Prediction, other: Prediction) -> Float[Tensor, " position"]:
    """KL(reference || other) at each position: exactly 0 for equal logits.

    The logits are subtracted before they are weighed, so that small divergences keep their digits.
    """
    difference = reference.shifted - other.shifted
    expected = row_dot(reference.weights, difference) / reference.log_total.exp()
    return expected - (reference.log_total - other.log_total)


def row_dot(
    left: Float[Tensor, "position vocabulary"], right: Float[Tensor, "position vocabulary"]
) -> Float[Tensor, " position"]:
    """Scalar product of each pair of rows, without a product of the same size in memory."""
    return torch.bmm(left.unsqueeze(1), right.unsqueeze(2)).view(-1)


def _where_known(known: Bool[Tensor, " position"], values: Float[Tensor, " position"]) -> Float[Tensor, " position"]:
    return torch.where(known, values, torch.full_like(values, math.nan))
