"""A model's own forward without its blocks: embeddings and masks on the way in, norm and head on the way out.

While the skeleton runs, every block is a pass-through. On the way in it notes the arguments that its block would have
been called with; on the way out the last one puts a chunk of residual stream in the place of what came, so that the
model's own final norm, projections and head run on it. Nothing of any family's forward is written again.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lesion.anatomy import Anatomy
from lesion.data import Batch
from lesion.errors import ModelError
from lesion.interventions.hooks import forwards_replaced
from lesion.interventions.intervention import passed_on, split_hidden


class _Captured(Exception):
    """Ends a forward once the last block has been reached: norm and head have nothing to say yet."""


@dataclass(frozen=True)
class Call:
    """What a block was called with besides the hidden state, for a batch of `batch_size` sequences.

    Attributes:
        n_heads: of the model; ALiBi is handed on with a row for each head of each sequence.
    """

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    batch_size: int
    n_heads: int

    def grown(self, copies: int) -> "Call":
        """The same call for `copies` of the batch stacked on each other.

        Tensors that hold a row for each sequence (or for each head of each sequence) are repeated; those that hold
        one row for all (also as a stride of 0) are left to broadcasting.

        Raises:
            ModelError: a tensor of another shape, of which nobody can know how it is stacked.
        """
        if copies == 1:
            return self
        arguments, keywords = self._grown(self.arguments, copies), self._grown(self.keywords, copies)
        return Call(arguments, keywords, self.batch_size * copies, self.n_heads)

    def _grown(self, value: Any, copies: int) -> Any:
        if isinstance(value, dict):
            return {key: self._grown(item, copies) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(self._grown(item, copies) for item in value)
        if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[0] == 1:
            return value
        if value.shape[0] == self.batch_size and value.stride(0) == 0:
            return value[:1]
        if value.shape[0] == self.batch_size or (value.ndim == 3 and value.shape[0] == self.batch_size * self.n_heads):
            return value.repeat(copies, *(1 for _ in value.shape[1:]))
        raise ModelError(
            f"a block is called with a tensor of shape {tuple(value.shape)} for {self.batch_size} sequences; "
            "lanes cannot be stacked on it"
        )


class Skeleton:
    """Runs the parts of a model around its blocks."""

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy

    def enter(self, batch: Batch) -> tuple[Float[Tensor, "batch token d_model"], list[Call]]:
        """The residual stream that reaches block 0, and the call of every block.

        Raises:
            ModelError: something happens between two blocks, or a block is not reached once: then blocks cannot be run
                by themselves, and the family's entry in the anatomy is wrong.
        """
        blocks = self._anatomy.blocks
        calls: list[Call] = []
        streams: list[Tensor] = []

        def forward_of(layer: int) -> Any:
            def forward(*arguments: Any, **keywords: Any) -> Any:
                hidden, rest, keywords = split_hidden(arguments, keywords)
                if len(calls) != layer or (streams and hidden is not streams[-1]):
                    raise ModelError(
                        f"the model changes the residual stream between block {layer - 1} and block {layer}"
                    )
                calls.append(Call(rest, keywords, hidden.shape[0], self._anatomy.n_heads))
                streams.append(hidden)
                if layer == len(blocks) - 1:
                    raise _Captured
                return self._passed_on(hidden)

            return forward

        replacements = {block: forward_of(layer) for layer, block in enumerate(blocks)}
        with contextlib.suppress(_Captured), forwards_replaced(replacements):
            self._anatomy.model(**batch.model_inputs(), **self._options())
        if len(calls) != len(blocks):
            raise ModelError(f"the model ran {len(calls)} of its {len(blocks)} blocks")
        return streams[0], calls

    def leave(self, chunk: Float[Tensor, "position d_model"]) -> Float[Tensor, "position vocabulary"]:
        """Logits of positions of the last residual stream: final norm, projections, soft-cap and head."""
        blocks = self._anatomy.blocks

        def pass_through(*arguments: Any, **keywords: Any) -> Any:
            return self._passed_on(split_hidden(arguments, keywords)[0])

        replacements: dict[Any, Any] = dict.fromkeys(blocks, pass_through)
        replacements[blocks[-1]] = lambda *arguments, **keywords: self._passed_on(chunk.unsqueeze(1))
        with forwards_replaced(replacements):
            output = self._anatomy.model(**self._stand_in(), **self._options())
        logits: Tensor = output.logits
        return logits.flatten(0, -2)

    def whole(self, batch: Batch) -> Float[Tensor, "position vocabulary"]:
        """Logits of the model's own forward at every output of a batch, in the one way in which lesion calls models."""
        logits: Tensor = self._anatomy.model(**batch.model_inputs(), **self._options()).logits
        return logits.flatten(0, -2)

    def _passed_on(self, hidden: Tensor) -> Any:
        return passed_on(hidden, self._anatomy.family.returns_tuple)

    def _stand_in(self) -> dict[str, Tensor]:
        """The smallest input, for a forward whose blocks do not look at it."""
        if self._anatomy.objective != "image":
            return {"input_ids": torch.zeros((1, 1), dtype=torch.long, device=self._anatomy.device)}
        config = self._anatomy.config
        size = (1, config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": torch.zeros(size, dtype=self._anatomy.dtype, device=self._anatomy.device)}

    def _options(self) -> dict[str, Any]:
        return {"use_cache": False} if self._anatomy.objective == "causal" else {}
