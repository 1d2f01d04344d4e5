"""The few inputs that a model is checked with: two documents of different length, or two pictures."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lesion.data import Batch
from lesion.errors import InputError

SHORT = 32
"""Most tokens of the short document: enough for heads to do something, few enough for a large model on a CPU."""


@dataclass(frozen=True)
class Samples:
    """What checks run a model on; every real token is kept.

    Attributes:
        short: a short document alone (images: the first picture).
        long: a longer document alone (images: the second picture).
        both: the long and the short document in one batch, the short one padded (images: both pictures).
        padding: the id that pads.
    """

    short: Batch
    long: Batch
    both: Batch
    padding: int = 0

    def to(self, device: torch.device) -> "Samples":
        """The same on another device."""
        return replace(self, short=self.short.to(device), long=self.long.to(device), both=self.both.to(device))


def text_samples(long: Int[Tensor, "token"], other: Int[Tensor, "_"], *, padding: int) -> Samples:
    """Samples from the ids of two documents; the second is cut to half of the first, and to `SHORT` tokens.

    Raises:
        InputError: the longer one has fewer than four tokens, or the other fewer than two.
    """
    short = other[: min(SHORT, len(long) // 2)]
    if len(short) < 2:
        raise InputError(
            f"checks need a document of four tokens or more and one of two or more; these have {len(long)} and "
            f"{len(other)}; give other --data or a longer --context"
        )
    ids = torch.full((2, len(long)), padding)
    mask = torch.zeros_like(ids)
    for row, document in enumerate((long, short)):
        ids[row, : len(document)] = document
        mask[row, : len(document)] = 1
    both = _batch(ids, mask)
    return Samples(_batch(short[None]), _batch(long[None]), both, padding)


def image_samples(pixels: Float[Tensor, "2 channel height width"]) -> Samples:
    """Samples from two pictures."""
    first, second, both = (
        Batch(
            ids=None,
            pixels=some,
            mask=None,
            keep=torch.ones((len(some), 1), dtype=torch.bool),
            targets=torch.zeros((len(some), 1), dtype=torch.long),
            documents=torch.arange(len(some)),
            domains=torch.zeros(len(some), dtype=torch.long),
        )
        for some in (pixels[:1], pixels[1:], pixels)
    )
    return Samples(first, second, both)


def _batch(ids: Tensor, mask: Tensor | None = None) -> Batch:
    return Batch(
        ids=ids,
        pixels=None,
        mask=mask,
        keep=torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool(),
        targets=ids,
        documents=torch.arange(len(ids)),
        domains=torch.zeros(len(ids), dtype=torch.long),
    )
