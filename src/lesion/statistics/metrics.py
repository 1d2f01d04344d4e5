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
PART = 128
"""Ids looked at together when the most probable one is sought."""


@dataclass(frozen=True)
class Scores:
    """What each position of a chunk scores.

    Attributes:
        loss_nats: cross-entropy with the target, NaN without one.
        correct: 1 where the target is the most probable id, 0 where not, NaN without one.
        entropy_bits: entropy of the distribution.
        top1: the most probable id; ties go to the lowest.
    """

    loss_nats: Float[Tensor, " position"]
    correct: Float[Tensor, " position"]
    entropy_bits: Float[Tensor, " position"]
    top1: Int[Tensor, " position"]


@dataclass(frozen=True)
class Reference:
    """The clean model's chunk: its scores, and the distributions that others are compared with.

    Attributes:
        shifted: logits minus their maximum at each position, float32.
        probabilities: float32.
        log_total: log of the sum of `exp(shifted)`.
    """

    scores: Scores
    shifted: Float[Tensor, "position vocabulary"]
    probabilities: Float[Tensor, "position vocabulary"]
    log_total: Float[Tensor, " position"]


def refer(logits: Float[Tensor, "position vocabulary"], targets: Int[Tensor, " position"]) -> Reference:
    """Reads the chunk that others will be compared with, in float32 whatever it comes in.

    Args:
        targets: ids, or `NO_TARGET`.
    """
    shifted, top1 = _shift(logits)
    weights = shifted.exp()
    total = weights.sum(dim=-1)
    scores = _score(shifted, weights.mul(shifted).sum(dim=-1) / total, total.log(), top1, targets)
    return Reference(scores, shifted, weights.div_(total.unsqueeze(-1)), total.log())


def compare(
    reference: Reference, logits: Float[Tensor, "position vocabulary"], targets: Int[Tensor, " position"]
) -> tuple[Scores, Float[Tensor, " position"]]:
    """The scores of another chunk, and KL(reference || other) in nats at each position: exactly 0 for equal logits.

    Logits are subtracted before they are weighed, so that small divergences keep their digits.
    """
    shifted, top1 = _shift(logits)
    weights = shifted.exp()
    total = weights.sum(dim=-1)
    scores = _score(shifted, weights.mul_(shifted).sum(dim=-1) / total, total.log(), top1, targets)
    difference = torch.sub(reference.shifted, shifted, out=shifted)
    expected = difference.mul_(reference.probabilities).sum(dim=-1)
    return scores, expected - (reference.log_total - total.log())


def _score(
    shifted: Float[Tensor, "position vocabulary"],
    mean_shifted: Float[Tensor, " position"],
    log_total: Float[Tensor, " position"],
    top1: Int[Tensor, " position"],
    targets: Int[Tensor, " position"],
) -> Scores:
    known = targets != NO_TARGET
    picked = shifted.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return Scores(
        loss_nats=_where_known(known, log_total - picked),
        correct=_where_known(known, (top1 == targets).float()),
        entropy_bits=(log_total - mean_shifted) * BITS,
        top1=top1,
    )


def _shift(
    logits: Float[Tensor, "position vocabulary"],
) -> tuple[Float[Tensor, "position vocabulary"], Int[Tensor, " position"]]:
    """Logits minus their maximum, in float32, and where the maximum is first.

    torch's maximum with indices is some eight times slower than the one without on a CPU: find the part of the
    vocabulary that holds the maximum first, and look for the index only there.
    """
    parts = logits.shape[-1] // PART
    if parts < 2:
        maximum, top1 = logits.max(dim=-1)
        return logits.float() - maximum.float().unsqueeze(-1), top1
    split = logits[:, : parts * PART].view(-1, parts, PART)
    maximum, part = split.amax(dim=-1).max(dim=-1)
    found = split[torch.arange(len(part), device=part.device), part].argmax(dim=-1)
    top1 = part * PART + found
    if parts * PART < logits.shape[-1]:
        last, at = logits[:, parts * PART :].max(dim=-1)
        top1 = torch.where(last > maximum, at + parts * PART, top1)
        maximum = torch.maximum(maximum, last)
    return logits.float() - maximum.float().unsqueeze(-1), top1


def _where_known(known: Bool[Tensor, " position"], values: Float[Tensor, " position"]) -> Float[Tensor, " position"]:
    return torch.where(known, values, torch.full_like(values, math.nan))
