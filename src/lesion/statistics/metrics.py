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


class Scorer:
    """Scores chunks of logits: the clean model's first, then each other one against it.

    It keeps its buffers, four of the size of a chunk in float32: on a CPU, fresh memory for every chunk costs more time
    than the arithmetic, because the system hands out its pages one by one.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._log_total: Tensor | None = None

    def refer(self, logits: Float[Tensor, "position vocabulary"], targets: Int[Tensor, " position"]) -> Scores:
        """Scores the chunk that others will be compared with, in float32 whatever it comes in.

        Args:
            targets: ids, or `NO_TARGET`.
        """
        shifted, top1 = self._shift("clean", logits)
        probabilities, self._log_total = self._normalise("clean", shifted, top1)
        weighed = torch.mul(probabilities, shifted, out=self._buffer("probabilities", shifted))
        return _score(shifted, weighed.sum(dim=-1), self._log_total, top1, targets)

    def compare(
        self, logits: Float[Tensor, "position vocabulary"], targets: Int[Tensor, " position"]
    ) -> tuple[Scores, Float[Tensor, " position"]]:
        """Scores another chunk of the same positions; with KL(clean || this) in nats, exactly 0 for equal logits.

        Logits are subtracted before they are weighed, so that small divergences keep their digits.

        Raises:
            ValueError: `refer` was not called with a chunk of this size.
        """
        clean = self._buffers.get("clean shifted")
        if clean is None or self._log_total is None or len(self._log_total) != len(logits):
            raise ValueError("a chunk is compared with the clean one of the same positions; call refer first")
        shifted, top1 = self._shift("", logits)
        probabilities, log_total = self._normalise("", shifted, top1)
        scores = _score(shifted, probabilities.mul_(shifted).sum(dim=-1), log_total, top1, targets)
        difference = torch.sub(clean[: len(logits)], shifted, out=shifted)
        expected = difference.mul_(self._buffers["clean probabilities"][: len(logits)]).sum(dim=-1)
        return scores, expected - (self._log_total - log_total)

    def _buffer(self, name: str, like: Float[Tensor, "position vocabulary"]) -> Float[Tensor, "position vocabulary"]:
        found = self._buffers.get(name)
        fits = found is not None and found.shape[1] == like.shape[1] and found.device == like.device
        if found is None or not fits or len(found) < len(like):
            found = self._buffers[name] = torch.empty(like.shape, dtype=torch.float32, device=like.device)
        return found[: len(like)]

    def _shift(
        self, owner: str, logits: Float[Tensor, "position vocabulary"]
    ) -> tuple[Float[Tensor, "position vocabulary"], Int[Tensor, " position"]]:
        """Logits minus their maximum, in float32, and where that maximum is."""
        maximum, top1 = first_maximum(logits)
        shifted = self._buffer(f"{owner} shifted".strip(), logits)
        if logits.dtype == torch.float32:
            return torch.sub(logits, maximum.unsqueeze(-1), out=shifted), top1
        return shifted.copy_(logits).sub_(maximum.float().unsqueeze(-1)), top1  # a half cannot hold the difference

    def _normalise(
        self, owner: str, shifted: Float[Tensor, "position vocabulary"], top1: Int[Tensor, " position"]
    ) -> tuple[Float[Tensor, "position vocabulary"], Float[Tensor, " position"]]:
        """Probabilities, and the log of the sum of `exp(shifted)`: the greatest probability is one over that sum."""
        buffer = self._buffer(f"{owner} probabilities".strip(), shifted)
        probabilities = torch.softmax(shifted, dim=-1, out=buffer)
        return probabilities, -probabilities.gather(-1, top1.unsqueeze(-1)).squeeze(-1).log()


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


def first_maximum(
    logits: Float[Tensor, "position vocabulary"],
) -> tuple[Float[Tensor, " position"], Int[Tensor, " position"]]:
    """The greatest logit of each position, and the lowest id that has it.

    torch's maximum with indices is some eight times slower than the one without on a CPU: find the part of the
    vocabulary that holds the maximum first, and look for the id only there.
    """
    parts = logits.shape[-1] // PART
    if parts < 2:
        maximum, top1 = logits.max(dim=-1)
        return maximum, top1
    split = logits[:, : parts * PART].view(-1, parts, PART)
    maximum, part = split.amax(dim=-1).max(dim=-1)
    top1 = part * PART + split[torch.arange(len(part), device=part.device), part].argmax(dim=-1)
    if parts * PART < logits.shape[-1]:
        last, at = logits[:, parts * PART :].max(dim=-1)
        top1 = torch.where(last > maximum, at + parts * PART, top1)
        maximum = torch.maximum(maximum, last)
    return maximum, top1


def _where_known(known: Bool[Tensor, " position"], values: Float[Tensor, " position"]) -> Float[Tensor, " position"]:
    return torch.where(known, values, torch.full_like(values, math.nan))
