"""What a streaming statistic of activations is: tensors in, numbers out; it knows no model and no hook."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Positions:
    """Where the rows of a tensor of activations come from: real tokens in the order of their documents.

    Attributes:
        ids: token ids as the model reads them (a masked model's with the masks in place); None for images.
        columns: places in their sequences, from 0.
        documents: indices of their documents in the data.
        domains: indices of their domains.
    """

    ids: Int[Tensor, " position"] | None
    columns: Int[Tensor, " position"]
    documents: Int[Tensor, " position"]
    domains: Int[Tensor, " position"]


@runtime_checkable
class Statistic(Protocol):
    """An accumulator that sees activations a batch at a time.

    `update` gives the bits that merging a fresh statistic of the same rows would give; the empty state changes nothing
    that it is merged with. With both, whoever merges batches in their order gets one answer, whether they were
    gathered one by one or block by block.

    Sums are float64 or whole numbers. They may live on the device of the activations until they are merged into a
    statistic elsewhere or asked for by `state_dict`, whose tensors are on the CPU.
    """

    def update(self, values: Float[Tensor, "position width"], positions: Positions) -> None:
        """Adds activations: one row a real token, all of them finite."""
        ...

    def merge(self, other: Any) -> None:
        """Adds what another statistic of the same kind and size has seen; it keeps its own device."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to go on later."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a state of the same shape, forgetting its own."""
        ...
