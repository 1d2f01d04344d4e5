"""nnterp, on nnsight.

`documented`: a trace and `skip_layer(ℓ)` for each layer. `best`: the clean pass keeps what every block is given, and
`skip_layers(0, ℓ, skip_with=...)` goes on from there, so that no block before ℓ runs again.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from nnterp import StandardizedTransformer
from scoring import Sweep, scored
from torch import Tensor


def open_tool(folder: Path, variant: str) -> Sweep:
    """The sweep on the model of `folder`, float32."""
    model = StandardizedTransformer(str(folder), dtype=torch.float32, device_map="cpu")

    def clean(ids: Tensor) -> Tensor:
        with model.trace(ids, use_cache=False):
            logits = model.logits.save()
        return logits  # noqa: RET504 (the trace must end first)

    def without(ids: Tensor, layer: int) -> Tensor:
        with model.trace(ids, use_cache=False):
            model.skip_layer(layer)
            logits = model.logits.save()
        return logits  # noqa: RET504 (the trace must end first)

    def clean_with_inputs(ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        with model.trace(ids, use_cache=False):
            inputs = [model.layers_input[layer] for layer in range(model.num_layers)].save()
            logits = model.logits.save()
        return logits, inputs

    def going_on_after(ids: Tensor, layer: int, stream: Tensor) -> Tensor:
        with model.trace(ids, use_cache=False):
            model.skip_layers(0, layer, skip_with=stream)
            logits = model.logits.save()
        return logits  # noqa: RET504 (the trace must end first)

    def documented(ids: Tensor, layers: Sequence[int]) -> Iterator[Tensor]:
        yield clean(ids)
        for layer in layers:
            yield without(ids, layer)

    def best(ids: Tensor, layers: Sequence[int]) -> Iterator[Tensor]:
        logits, inputs = clean_with_inputs(ids)
        yield logits
        for layer in layers:
            yield going_on_after(ids, layer, inputs[layer])

    return scored({"documented": documented, "best": best}[variant])
