"""Tokenised documents, served in batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Integer

from lesion.data.batches import NO_TARGET, Batch
from lesion.data.encoding import Objective
from lesion.data.masking import Masking
from lesion.errors import InputError


@dataclass(frozen=True, eq=False)
class TextData:
    """Tokenised documents, each one sequence.

    Attributes:
        domains: names of the domains.
        domain_of: index of each document's domain.
        lengths: tokens of each document, special ones included.
        objective: `causal` (predict the next token) or `masked` (predict what was hidden).
        context: most tokens in a sequence.
        fingerprint: SHA-256 over the token ids, the documents' bounds, the domains and the masking.
        description: what was read and how, for the run's manifest; JSON can hold it.
        pad_id: what fills a batch on the right.
    """

    domains: tuple[str, ...]
    domain_of: Int[np.ndarray, "document"]
    lengths: Int[np.ndarray, "document"]
    objective: Objective
    context: int
    fingerprint: str
    description: dict[str, Any]
    pad_id: int
    _ids: Integer[np.ndarray, "id"]
    _offsets: Int[np.ndarray, "boundary"]
    _masking: Masking | None

    @property
    def n_documents(self) -> int:
        """How many documents (packed: sequences)."""
        return int(self.lengths.size)

    @property
    def n_tokens(self) -> int:
        """Tokens of all documents together, special ones included."""
        return int(self._offsets[-1])

    @property
    def largest_id(self) -> int:
        """The greatest token id."""
        return int(self._ids.max())

    def document(self, index: int) -> Int[np.ndarray, "token"]:
        """Token ids of one document, as they were before any masking.

        Raises:
            InputError: there is no such document.
        """
        if not 0 <= index < self.n_documents:
            raise InputError(f"there is no document {index}; the data has {self.n_documents}, counted from 0")
        return self._ids[self._offsets[index] : self._offsets[index + 1]].astype(np.int64)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Documents as one batch, in the order given, padded on the right to the longest.

        Causal: the target of position t is the token at t + 1, and every position that has one counts.
        Masked: the chosen positions count; `ids` hold what the model sees, `targets` what stood there.

        Raises:
            InputError: no indices, or one that is out of range.
        """
        if len(indices) == 0:
            raise InputError("a batch needs at least one document")
        rows = [self.document(int(index)) for index in indices]
        lengths = torch.tensor([row.size for row in rows])
        shape = (len(rows), int(lengths.max()))
        ids = torch.full(shape, self.pad_id)
        targets = torch.full(shape, NO_TARGET)
        for row, (index, original) in enumerate(zip(indices, rows, strict=True)):
            seen = original
            if self._masking is None:
                targets[row, : original.size - 1] = torch.from_numpy(original[1:])
            else:
                seen, chosen = self._masking.corrupt(original, int(index))
                targets[row, chosen] = torch.from_numpy(original[chosen])
            ids[row, : original.size] = torch.from_numpy(seen)
        mask = (torch.arange(shape[1]) < lengths[:, None]).to(torch.int64)
        return Batch(
            ids=ids,
            pixels=None,
            mask=None if bool(mask.all()) else mask,
            keep=targets != NO_TARGET,
            targets=targets,
            documents=torch.tensor([int(index) for index in indices]),
            domains=torch.from_numpy(self.domain_of[list(indices)]),
        )
