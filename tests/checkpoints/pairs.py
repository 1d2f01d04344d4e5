"""Small checkpoints as files, and a slow comparison to hold the fast one against."""

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = Mapping[str, Tensor]


def random_tensors(seed: int, dtype: torch.dtype = torch.bfloat16, *, n_layers: int = 2) -> dict[str, Tensor]:
    """A LLaMA-like checkpoint with odd sizes; some weights are 0, -0 and NaN."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (13, 9), "model.norm.weight": (9,), "lm_head.weight": (13, 9)}
    for layer in range(n_layers):
        front = f"model.layers.{layer}"
        shapes |= {f"{front}.self_attn.{part}_proj.weight": (9 if part in "qo" else 3, 9) for part in "qkvo"}
        shapes |= {f"{front}.mlp.{part}_proj.weight": (21, 9) for part in ("gate", "up")}
        shapes |= {f"{front}.mlp.down_proj.weight": (9, 21), f"{front}.input_layernorm.weight": (9,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def tuned_from(base: Tensors, seed: int, share: float = 0.3) -> dict[str, Tensor]:
    """Moves all but about `share` of the weights, and plants zeros of both signs and NaNs on both sides."""
    generator = torch.Generator().manual_seed(seed)
    tuned = {}
    for name, tensor in base.items():
        kept = torch.rand(tensor.shape, generator=generator) < share
        moved = (tensor.double() * (1 + 0.1 * torch.rand(tensor.shape, generator=generator)) + 0.01).to(tensor.dtype)
        tuned[name] = torch.where(kept, tensor, moved)
    return tuned


def with_specials(base: dict[str, Tensor], tuned: dict[str, Tensor]) -> None:
    """Plants, in a row of each matrix: equal and unequal zeros, a zero on one side, NaN on one side and on both."""
    for name in base:
        first, second = base[name].view(-1), tuned[name].view(-1)
        for index, (one, other) in enumerate(
            [(0.0, 0.0), (0.0, -0.0), (-0.0, -0.0), (0.0, 1.0), (1.0, -0.0), (math.nan, 2.0), (2.0, math.nan)]
        ):
            first[index], second[index] = one, other
        first[8] = second[8] = math.nan


def write(folder: Path, tensors: Tensors, *, shards: int = 1, config: Mapping[str, object] | None = None) -> str:
    """Saves tensors in one file or in several, and returns the folder's name."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} if config is None else config))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return str(folder)
    names = list(tensors)
    places = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        chosen = names[shard::shards]
        save_file({name: tensors[name] for name in chosen}, folder / file)
        places |= dict.fromkeys(chosen, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return str(folder)


def as_bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


def ordered(tensor: Tensor) -> list[int]:
    """Numbers whose differences are steps of the format: bits of positive values, and their negatives."""
    bits = 8 * tensor.itemsize
    whole = [value % (1 << bits) for value in as_bits(tensor).view(-1).tolist()]
    return [value if value < 1 << (bits - 1) else (1 << (bits - 1)) - value for value in whole]


def slow_row(base: Tensor, tuned: Tensor) -> dict[str, float]:
    """The counts of a tensor, by whole-tensor operations on what was loaded; both sides of one type."""
    mask = as_bits(base) == as_bits(tuned)
    sizes = tuned.double().abs()
    n_weights, n_zero_modes = tuned.numel(), int(mask.sum())
    moved = [
        abs(b - t)
        for b, t, same, nan in zip(
            ordered(base),
            ordered(tuned),
            mask.view(-1).tolist(),
            (base.isnan() | tuned.isnan()).view(-1).tolist(),
            strict=True,
        )
        if not same and not nan
    ]
    return {
        "n_weights": n_weights,
        "n_zero_modes": n_zero_modes,
        "fraction": n_zero_modes / n_weights,
        "n_both_zero": int(((base == 0) & (tuned == 0)).sum()),
        "n_signed_zero": int(((base == tuned) & ~mask).sum()),
        "n_nan": int((base.isnan() | tuned.isnan()).sum()),
        "mean_abs": float(sizes.mean()),
        "rms": math.sqrt(float(sizes.square().mean())),
        "mean_abs_zero_modes_over_matrix": float(sizes[mask].mean() / sizes.mean()),
        "share_of_squares": float(sizes[mask].square().sum() / sizes.square().sum()),
        "ulps_median": statistics.median(moved) if moved else math.nan,
        "ulps_mean": sum(moved) / len(moved) if moved else math.nan,
        "share_one_ulp": moved.count(1) / len(moved) if moved else math.nan,
        "n_ulps": len(moved),
    }
