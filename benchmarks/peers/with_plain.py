"""No tool: the model of transformers, a forward hook that gives back what came in, a whole forward pass a layer."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from scoring import Sweep, scored
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


def _give_back_the_input(_block: nn.Module, arguments: tuple[Tensor, ...], _output: Tensor) -> Tensor:
    return arguments[0]


def open_tool(folder: Path, _variant: str) -> Sweep:
    """The sweep on the model of `folder`, float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def passes(ids: Tensor, layers: Sequence[int]) -> Iterator[Tensor]:
        yield model(input_ids=ids, use_cache=False).logits
        for layer in layers:
            handle = model.model.layers[layer].register_forward_hook(_give_back_the_input)
            yield model(input_ids=ids, use_cache=False).logits
            handle.remove()

    return scored(passes)
