"""A model whose blocks stay on disk: embeddings and head are loaded, a block's weights come and go.

What transformers does on loading (renaming, fusing, casting) is done by transformers here too, one block at a time.
"""

import mmap
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from lesion.anatomy.family import Family
from lesion.anatomy.files import check_safetensors, states
from lesion.anatomy.placement import Need
from lesion.anatomy.wording import quiet_transformers, some
from lesion.errors import ModelError

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WHOLE = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
STORED = {**FLOATS, **WHOLE, "BOOL": torch.bool}
"""torch's names of the types in safetensors headers."""

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
OLD_BUFFERS = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")
"""Tables that older checkpoints hold and that models now compute."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file; `[...]` reads it, which is how transformers asks for one that is not read yet.

    It is read into memory of its own, not mapped: a file that shrinks is an error then, and not the end of the process.
    """

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int
    wanted: torch.dtype | None = None

    def __getitem__(self, everything: Any) -> Tensor:
        """The tensor, in `wanted` where that is wider than what is stored (float32 holds every half exactly)."""
        content = _own_pages(self.size)
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                read = file.readinto(content.numpy().data) if self.size else 0
        except OSError as error:
            raise ModelError(f"{self.path} cannot be read: {error.strerror or error}") from None
        if read != self.size:
            raise ModelError(f"{self.path} became shorter while it was read: {self.name} is cut off")
        stored = content.view(self.dtype).reshape(self.shape)
        if self.wanted is None or self.wanted.itemsize <= self.dtype.itemsize or not self.dtype.is_floating_point:
            return stored
        wider = _own_pages(stored.numel() * self.wanted.itemsize).view(self.wanted).reshape(self.shape)
        return wider.copy_(stored)


def _own_pages(size: int) -> Tensor:
    """Bytes in pages of their own, which go back to the system with the tensor.

    The allocator would keep freed blocks in one pool a thread, some of them for each thread that ever loaded one.
    """
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(-1, size, flags=PRIVATE), dtype=torch.uint8)


def stored_tensors(weights: Sequence[Path], wanted: torch.dtype | None = None) -> dict[str, StoredTensor]:
    """Every tensor of some safetensors files, by name; only headers are read.

    Raises:
        ModelError: a damaged file, a type that is not known, or a name in two files.
    """
    found: dict[str, StoredTensor] = {}
    for path in weights:
        header = check_safetensors(path)
        base = path.stat().st_size - max(
            (e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"), default=0
        )
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in STORED or name in found:
                reason = "is in two files" if name in found else f"is stored as {entry['dtype']}, which is not known"
                raise ModelError(f"{path}: {name} {reason}")
            start, end = entry["data_offsets"]
            kind, shape = STORED[entry["dtype"]], tuple(entry["shape"])
            tensor = StoredTensor(path, name, kind, shape, base + start, end - start, wanted)
            if tensor.size != tensor.dtype.itemsize * torch.Size(tensor.shape).numel():
                raise ModelError(f"{path}: {name} has {tensor.size} bytes, which is not what its shape needs")
            found[name] = tensor
    return found


class StreamedBlocks:
    """The blocks of one model, each of which can be loaded from disk and released again.

    Attributes:
        bytes_read: of blocks' weights, as stored, since the model was opened.
        loads: how often each block was read.
    """

    def __init__(
        self, blocks: nn.ModuleList, parts: Mapping[int, Mapping[str, StoredTensor]], loader: "_Loader"
    ) -> None:
        self._blocks, self._parts, self._loader = blocks, parts, loader
        self._files = sorted({tensor.path for part in parts.values() for tensor in part.values()})
        self._states = states(self._files)
        self._looked_at: set[int] = set()
        self._counting = threading.Lock()
        self.bytes_read = 0
        self.loads = [0] * len(blocks)

    @property
    def need(self) -> Need:
        """What the model's weights need in memory."""
        sizes = [sum(p.numel() * p.dtype.itemsize for p in block.parameters()) for block in self._blocks]
        return Need(tuple(sizes), self._loader.rest_bytes())

    def stored_bytes(self, block: int) -> int:
        """Bytes of a block's weights on disk."""
        return sum(tensor.size for tensor in self._parts[block].values())

    def load(self, block: int) -> None:
        """Puts a block's weights in place.

        Raises:
            ModelError: they cannot be read any more, are not what the block needs, or are not finite.
        """
        self._loader.load(self._parts[block], self._names(block))
        if block not in self._looked_at:
            refuse_non_finite(self._blocks[block], f"block {block}")
            self._looked_at.add(block)
        with self._counting:
            self.bytes_read += self.stored_bytes(block)
            self.loads[block] += 1

    def release(self, block: int) -> None:
        """Lets go of a block's weights; what is not in the checkpoint (rotary tables) stays."""
        for module in self._blocks[block].modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)
            for name, buffer in module._buffers.items():
                if buffer is not None and name not in module._non_persistent_buffers_set:
                    module._buffers[name] = buffer.to("meta")

    def refuse_changed_files(self) -> None:
        """Raises ModelError if a file of weights is not the one that the model was opened with."""
        for path, before, now in zip(self._files, self._states, states(self._files), strict=True):
            if now != before:
                raise ModelError(f"{path} was changed while the run was reading it; its last shard was thrown away")

    def _names(self, block: int) -> set[str]:
        prefix = f"{self._loader.blocks_path}.{block}."
        return {name for name in self._loader.expected if name.startswith(prefix)}


def open_streamed(
    architecture: Any, config: Any, family: Family, weights: Sequence[Path], *, dtype: torch.dtype, device: torch.device
) -> tuple[nn.Module, StreamedBlocks]:
    """Builds a model without its blocks' weights.

    Returns:
        The model in eval mode, everything but its blocks loaded on `device`, and its blocks.

    Raises:
        ModelError: weights and configuration disagree: tensors that are missing, left over or of another shape.
    """
    tensors = stored_tensors(weights, dtype)
    with init_empty_weights(include_buffers=False):
        model = architecture._from_config(config, dtype=dtype, attn_implementation=family.attention)
    loader = _Loader(model, family, dtype, device)
    parts = loader.divide(tensors)
    blocks = model.get_submodule(family.blocks)
    rest = parts.pop(-1)
    loader.load(rest, {name for name in loader.expected if loader.block_of(name) == -1})
    model.tie_weights()
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta and loader.block_of(name) == -1]
    assert not left, left
    for module in model.modules():  # tables that no checkpoint holds
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)
    refuse_non_finite(model, "the model")
    streamed = StreamedBlocks(blocks, parts, loader)
    for block in range(len(blocks)):
        streamed.release(block)
    return model.eval(), streamed


class _Loader:
    """transformers' loading of named tensors into a model, for a part of them at a time."""

    def __init__(self, model: Any, family: Family, dtype: torch.dtype, device: torch.device) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self._model, self._family, self._dtype, self._device = model, family, dtype, device
        self._mapping = get_model_conversion_mapping(model)
        self.blocks_path = family.blocks
        self.expected = set(model.state_dict())
        self._tied = dict(getattr(model, "all_tied_weights_keys", {}) or {})

    def block_of(self, name: str) -> int:
        """The block that a parameter of the model belongs to, -1 for none."""
        match = re.match(re.escape(self.blocks_path) + r"\.(\d+)\.", name)
        return int(match[1]) if match else -1

    def divide(self, tensors: Mapping[str, StoredTensor]) -> dict[int, dict[str, StoredTensor]]:
        """The tensors of each block, under the names in which they are stored, and under -1 the rest.

        Raises:
            ModelError: tensors that the model has no place for.
        """
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        state = self._model.state_dict()
        renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        parts: dict[int, dict[str, StoredTensor]] = {-1: {}}
        parts |= {block: {} for block in range(len(self._model.get_submodule(self.blocks_path)))}
        left_over = []
        for name, tensor in tensors.items():
            place, _ = rename_source_key(name, renamings, converters, self._model.base_model_prefix, state)
            place = name if place not in state and name in state else place
            if place in state:
                parts[self.block_of(place)][name] = tensor
            elif not self._may_be_left_over(place):
                left_over.append(name)
        if left_over:
            raise ModelError(
                f"the weights hold {len(left_over)} tensors that the configuration has no place for: {some(left_over)}"
            )
        return parts

    def load(self, tensors: Mapping[str, StoredTensor], names: set[str]) -> None:
        """Loads some tensors, after which the parameters and buffers called `names` must all be there.

        Raises:
            ModelError: some are missing or of another shape.
        """
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        settings = LoadStateDictConfig(
            dtype=self._dtype,
            dtype_plan=self._model._get_dtype_plan(self._dtype),
            device_map={"": self._device},
            weight_mapping=self._mapping,
            ignore_mismatched_sizes=True,
        )
        with quiet_transformers():
            info, _ = convert_and_load_state_dict_in_model(self._model, dict(tensors), settings)
        if info.conversion_errors:
            raise ModelError(f"weights cannot be converted: {some(sorted(map(str, info.conversion_errors.values())))}")
        if info.mismatched_keys:
            shown = some(sorted(map(str, info.mismatched_keys)))
            raise ModelError(f"weights and configuration disagree on shapes: {shown}")
        missing = sorted(name for name in info.missing_keys & names if not self._may_be_missing(name, names))
        if missing:
            raise ModelError(
                f"the weights lack {len(missing)} tensors that the configuration asks for: {some(missing)}"
            )

    def rest_bytes(self) -> int:
        """Bytes of the parameters that belong to no block."""
        named = self._model.named_parameters()
        return sum(p.numel() * p.dtype.itemsize for name, p in named if self.block_of(name) == -1)

    def _may_be_missing(self, name: str, names: set[str]) -> bool:
        """Whether a parameter is another name of one that is there, or one that transformers can do without."""
        if self._tied.get(name) in self.expected:
            return True
        return any(re.search(pattern, name) for pattern in self._model._keys_to_ignore_on_load_missing or ())

    def _may_be_left_over(self, name: str) -> bool:
        patterns = [
            *(self._model._keys_to_ignore_on_load_unexpected or ()),
            r"rotary_emb\.inv_freq",
            r"(^|\.)position_ids$",
        ]
        return any(re.search(p, name) for p in patterns) or any(re.match(p, name) for p in self._family.unused)


def refuse_non_finite(module: nn.Module, owner: object) -> None:
    """Raises ModelError naming the first weight that is not finite; weights that are on disk only are passed over."""
    for key, parameter in module.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            continue
        if not torch.isfinite(parameter.sum(dtype=torch.float32)) and not torch.isfinite(parameter).all():
            index = (~torch.isfinite(parameter)).nonzero()[0].tolist()
            raise ModelError(
                f"{owner}: weight {key}{index} is {parameter[tuple(index)].item()}; numbers from it would mean nothing"
            )
