"""A configuration against the files beside it, before anything is built: sizes that no weights are there for."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lesion.anatomy.files import check_safetensors
from lesion.errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]
ELEMENTS_A_BYTE = 2
"""Packed weights hold two to a byte, and nothing holds more."""
TABLES = 2**26
"""Elements that a model may compute beside its weights (rotary tables), however small its weights are."""


def shapes_of(weights: Sequence[Path]) -> Shapes:
    """The shape of every stored tensor as it is stored; no tensor's content is read."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weights:
        if path.suffix == ".safetensors":
            header = check_safetensors(path)
            shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        else:
            stored = torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
            shapes |= {name: tuple(tensor.shape) for name, tensor in stored.items() if isinstance(tensor, torch.Tensor)}
    return shapes


def refuse_implausible(folder: Path, stored: Mapping[str, Any], names: Mapping[str, str], shapes: Shapes) -> None:
    """Compares the configuration's largest claims with what is stored; a class is not even looked up for it.

    Args:
        stored: the configuration, as in the file.
        names: the family's own names of configuration fields, by transformers' name.

    Raises:
        ModelError: more layers than tensors, or a width, vocabulary or number of classes that no tensor has room for.
    """
    longest = max((size for shape in shapes.values() for size in shape), default=0)
    wide = (longest, f"the longest side of any tensor is {longest}")
    limits = {
        "num_hidden_layers": (len(shapes), f"there are {len(shapes)} tensors in all"),
        **dict.fromkeys(("hidden_size", "vocab_size", "num_labels"), wide),
    }
    for name, (limit, found) in limits.items():
        for key in {name, names.get(name, name)}:
            value = stored.get(key)
            if isinstance(value, int) and value > limit:
                raise ModelError(f"{folder}/config.json says {key} = {value}, but in its weights {found}")


def refuse_oversized(folder: Path, architecture: Any, config: Any, weights: Sequence[Path]) -> None:
    """Builds the model without memory and compares its size with that of the files.

    Raises:
        ModelError: it would need far more than its files hold.
    """
    with torch.device("meta"):
        skeleton: nn.Module = architecture(config)
    needed = sum(tensor.numel() for tensors in (skeleton.parameters(), skeleton.buffers()) for tensor in tensors)
    stored = sum(path.stat().st_size for path in weights)
    if needed > ELEMENTS_A_BYTE * stored + TABLES:
        raise ModelError(
            f"{folder}/config.json describes a model of {needed:.3g} numbers, but its files hold {stored:.3g} bytes"
        )
