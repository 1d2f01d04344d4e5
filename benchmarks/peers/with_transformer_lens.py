"""TransformerLens by its bridge.

`documented`: `run_with_hooks` for each layer, with a hook that keeps what block ℓ is given and one that puts it in the
place of what the block gives. (Zeros for `hook_attn_out` and `hook_mlp_out` give the same bits and take as long.)
`best`: the layers are rows of one forward pass, as many as make 1024 tokens, each put back in its own row: fewer calls
where documents are few and short. `start_at_layer` would save nothing: the bridge runs the blocks before it as well.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from scoring import Sweep, scored
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

TOKENS_IN_A_CALL = 1024

Hooks = list[tuple[str, Any]]


def _give_back_the_input(layer: int, rows: slice) -> Hooks:
    """Hooks that make a block pass `rows` of its input through."""
    kept: dict[str, Tensor] = {}

    def keep(stream: Tensor, hook: Any) -> None:
        kept["rows"] = stream[rows]

    def put_back(stream: Tensor, hook: Any) -> Tensor:
        if rows == slice(None):
            return kept["rows"]
        stream[rows] = kept["rows"]
        return stream

    return [(f"blocks.{layer}.hook_in", keep), (f"blocks.{layer}.hook_out", put_back)]


def open_tool(folder: Path, variant: str) -> Sweep:
    """The sweep on the model of `folder`, float32."""
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)

    def one_by_one(ids: Tensor, layers: Sequence[int]) -> Iterator[Tensor]:
        yield bridge(ids, use_cache=False)
        for layer in layers:
            yield bridge.run_with_hooks(ids, fwd_hooks=_give_back_the_input(layer, slice(None)), use_cache=False)

    def as_rows(ids: Tensor, layers: Sequence[int]) -> Iterator[Tensor]:
        yield bridge(ids, use_cache=False)
        size = max(1, TOKENS_IN_A_CALL // ids.numel())
        for start in range(0, len(layers), size):
            group = layers[start : start + size]
            places = [slice(index * len(ids), (index + 1) * len(ids)) for index in range(len(group))]
            hooks = [
                hook for layer, rows in zip(group, places, strict=True) for hook in _give_back_the_input(layer, rows)
            ]
            logits = bridge.run_with_hooks(ids.repeat(len(group), 1), fwd_hooks=hooks, use_cache=False)
            yield from logits.split(len(ids))

    return scored({"documented": one_by_one, "best": as_rows}[variant])
