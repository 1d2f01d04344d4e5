"""What a model is called with: one padded batch, and the plan of which documents share one."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lesion.errors import InputError

NO_TARGET = -100  # the label that torch's cross entropy ignores
MAX_PADDING = 0.25  # of the longest document in a batch


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass, and which of its outputs count.

    An output is a position of a sequence (text) or the one prediction for an image.

    Attributes:
        ids: token ids, padded on the right; for a masked model the corrupted ids. None for images.
        pixels: normalised images. None for text.
        mask: 1 at real tokens, 0 at padding; None where nothing is padded.
        keep: outputs whose prediction counts.
        targets: what the output should be (the next token, the original token, the label); -100 where none.
        documents: index of each row's document in its data.
        domains: index of each row's domain.
    """

    ids: Int[Tensor, "batch token"] | None
    pixels: Float[Tensor, "batch channel height width"] | None
    mask: Int[Tensor, "batch token"] | None
    keep: Bool[Tensor, "batch output"]
    targets: Int[Tensor, "batch output"]
    documents: Int[Tensor, "batch"]
    domains: Int[Tensor, "batch"]

    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments for a Hugging Face model, without those that are None.

        Never `position_ids`: with padding on the right every family derives the right ones.
        """
        named = {"input_ids": self.ids, "attention_mask": self.mask, "pixel_values": self.pixels}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})

    @property
    def n_tokens(self) -> int:
        """Real tokens, padding not counted; for images their number."""
        if self.mask is not None:
            return int(self.mask.sum())
        return self.documents.numel() if self.ids is None else self.ids.numel()


def plan_batches(
    lengths: Sequence[int] | Int[np.ndarray, "document"], *, max_tokens: int, max_documents: int | None = None
) -> list[list[int]]:
    """Groups documents of similar length, each exactly once; the same lengths give the same plan.

    Documents are taken longest first (ties by index). A batch ends where the next document would make its padded size
    exceed `max_tokens`, or would be padded by more than a quarter of the longest; and, so that equal lengths
    run unpadded, after two or more of the same length that fill half of it.

    Args:
        lengths: tokens of each document.
        max_tokens: padded size of a batch (documents times the longest); a longer document is alone in its batch.
        max_documents: most documents in a batch.

    Returns:
        Indices of documents, a list a batch.

    Raises:
        InputError: a limit below 1, or a length below 1.
    """
    if max_tokens < 1 or (max_documents is not None and max_documents < 1):
        raise InputError(f"batches need room: max_tokens={max_tokens}, max_documents={max_documents}; give at least 1")
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and sizes.min() < 1:
        raise InputError(f"document {int(sizes.argmin())} has length {int(sizes.min())}; batches need at least 1 token")
    batches: list[list[int]] = []
    longest = previous = capacity = 0
    for index in np.argsort(-sizes, kind="stable").tolist():
        length = int(sizes[index])
        size = len(batches[-1]) if batches else 0
        full = size >= capacity
        too_short = longest - length > MAX_PADDING * longest
        half_full = size > 1 and 2 * size >= capacity
        if full or too_short or (length < previous == longest and half_full):
            batches.append([])
            longest = length
            capacity = max(1, max_tokens // length)
            if max_documents is not None:
                capacity = min(capacity, max_documents)
        batches[-1].append(index)
        previous = length
    return batches
