"""A checkpoint opened without a model: its tensors by name, not read yet, and its fingerprint."""

import hashlib
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from lesion.anatomy.files import PACKED_DTYPES, check_safetensors, states, weight_files
from lesion.anatomy.source import resolve
from lesion.anatomy.streaming import FLOATS, stored_tensors
from lesion.anatomy.wording import first_line
from lesion.errors import InputError, ModelError

Bits = NDArray[Any]
"""Weights as unsigned whole numbers of their size."""

UNSIGNED: dict[int, np.dtype[Any]] = {2: np.dtype(np.uint16), 4: np.dtype(np.uint32), 8: np.dtype(np.uint64)}
TABLES = ("position_ids", "token_type_ids", "attn.bias", "attention.bias", "masked_bias", "num_batches_tracked")
"""How the names of whole numbers end that are no weights: positions, causal masks, counters."""
BLOCK = 4096
SAMPLES = 64
"""Blocks of each file, in bytes and in number, that a fingerprint looks at, spread evenly over the file."""


@runtime_checkable
class Source(Protocol):
    """Where the weights of a tensor come from."""

    def fill(self, start: int, into: Bits) -> None:
        """Puts as many weights of the flat tensor as there is room for, the first of them number `start`."""
        ...


class FileSource:
    """Weights in a file, read when they are asked for. (A mapped file that is cut off ends the process.)"""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self._file, self._offset = file, offset

    def fill(self, start: int, into: Bits) -> None:
        """Reads weights.

        Raises:
            ModelError: the file cannot be read, or has become shorter.
        """
        room, place = into.view(np.uint8).data, self._offset + start * into.itemsize
        while room:
            try:
                n_read = os.preadv(self._file.fileno(), [room], place)
            except OSError as error:
                raise ModelError(f"{self._file.name} cannot be read: {error.strerror or error}") from None
            if not n_read:
                raise ModelError(f"{self._file.name} became shorter while it was read; run the comparison again")
            room, place = room[n_read:], place + n_read


class MemorySource:
    """Weights that are in memory, as flat bits."""

    def __init__(self, bits: Bits) -> None:
        self._bits = bits

    def fill(self, start: int, into: Bits) -> None:
        """Copies weights."""
        np.copyto(into, self._bits[start : start + len(into)])


@dataclass(frozen=True)
class Stored:
    """A tensor in a checkpoint; nothing of it is read before it is asked for."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    source: Source

    def read(self, start: int, stop: int, into: Bits | None = None) -> Bits:
        """Weights `start` to `stop` of the flat tensor, as bits; in the front of `into`, where that is given."""
        bits = np.empty(stop - start, UNSIGNED[self.dtype.itemsize]) if into is None else into[: stop - start]
        self.source.fill(start, bits)
        return bits


@dataclass(frozen=True)
class Checkpoint:
    """What a folder of weights holds.

    Attributes:
        name: as it was asked for.
        tensors: floating-point tensors by their names.
        tables: tensors of whole numbers that are no weights, by name: their shapes.
        fingerprint: `sampled:` or `whole:` and a SHA-256.
        model_type: of the configuration; None where it names none.
        ties: whether the configuration ties the unembedding to the embedding; None where it does not say.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Stored]
    tables: Mapping[str, tuple[int, ...]]
    fingerprint: str
    model_type: str | None
    ties: bool | None
    states: tuple[tuple[int, int, int], ...]

    def refuse_changed(self) -> None:
        """Raises ModelError if a file is not the one that was opened."""
        for path, before, now in zip(self.files, self.states, states(list(self.files)), strict=True):
            if before != now:
                raise ModelError(f"{path} was changed while it was read; run the comparison again")


def open_checkpoint(name: str, *, allow_pickle: bool = False, verify: bool = False) -> Checkpoint:
    """Opens a checkpoint: a folder, `zoo:NAME` or a hub id. Only headers and samples are read.

    Pickles that older versions of torch wrote cannot be mapped; those are read whole.

    Args:
        allow_pickle: read the tensors of `pytorch_model.bin`, and nothing else in it.
        verify: take the fingerprint of every byte.

    Raises:
        ModelError: no such checkpoint, a damaged file, packed weights, an adapter.
    """
    folder = resolve(name, allow_pickle=allow_pickle)
    config = _config(folder)
    if "quantization_config" in config:
        raise ModelError(f"{name} holds packed weights (quantization_config in config.json): bits that are no numbers")
    files = weight_files(folder, allow_pickle=allow_pickle)
    before = states(files)
    pickled = files[0].suffix == ".bin"
    tensors, tables = _pickled(files) if pickled else _mapped(files)
    if not tensors:
        raise ModelError(f"{name} holds no floating-point tensors")
    kind, ties = config.get("model_type"), config.get("tie_word_embeddings")
    return Checkpoint(
        name=name,
        folder=folder,
        files=tuple(files),
        tensors=tensors,
        tables=tables,
        fingerprint=fingerprint(files, whole=verify),
        model_type=kind if isinstance(kind, str) else None,
        ties=ties if isinstance(ties, bool) else None,
        states=tuple(before),
    )


def refuse_the_same(base: Checkpoint, tuned: Checkpoint) -> None:
    """Raises InputError if two checkpoints are one: the same files, or files with the same bytes."""
    first, second = ({(found.st_dev, found.st_ino) for found in map(Path.stat, side.files)} for side in (base, tuned))
    if first & second:
        raise InputError(f"{base.name} and {tuned.name} are the same files: all weights would be zero modes")
    if base.fingerprint == tuned.fingerprint and _same_bytes(base.files, tuned.files):
        raise InputError(f"{base.name} and {tuned.name} hold the same bytes: all weights would be zero modes")


def fingerprint(files: Sequence[Path], *, whole: bool = False) -> str:
    """SHA-256 over name, size, header and sampled blocks of each file, or over every byte."""
    digest = hashlib.sha256()
    for path in files:
        try:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            digest.update(_whole(path) if whole else _sampled(path))
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    return f"{'whole' if whole else 'sampled'}:{digest.hexdigest()}"


def _whole(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _sampled(path: Path) -> bytes:
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little") if path.suffix == ".safetensors" else BLOCK
        file.seek(0)
        digest.update(file.read(8 + length))
        for sample in range(SAMPLES + 1):
            file.seek(max(size - BLOCK, 0) * sample // SAMPLES)
            digest.update(file.read(BLOCK))
    return digest.digest()


def _same_bytes(first: Sequence[Path], second: Sequence[Path]) -> bool:
    """Samples do not see a single weight; only here, where they agree, is everything read."""
    return len(first) == len(second) and all(_whole(a) == _whole(b) for a, b in zip(first, second, strict=True))


def _config(folder: Path) -> dict[str, Any]:
    """The configuration, of which little is asked: a folder without one, or with an old one, can be compared."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a configuration: it holds a {type(config).__name__}")
    return config


def _mapped(files: Sequence[Path]) -> tuple[dict[str, Stored], dict[str, tuple[int, ...]]]:
    for path in files:
        for name, entry in check_safetensors(path).items():
            if name != "__metadata__" and str(entry.get("dtype")).startswith(PACKED_DTYPES):
                _refuse_unless_table(path, name, str(entry["dtype"]))
    found = stored_tensors(files)
    opened = {path: path.open("rb") for path in files}
    tensors = {
        name: Stored(name, tensor.dtype, tensor.shape, FileSource(opened[tensor.path], tensor.start))
        for name, tensor in found.items()
        if tensor.dtype in FLOATS.values()
    }
    return tensors, {name: tensor.shape for name, tensor in found.items() if name not in tensors}


def _pickled(files: Sequence[Path]) -> tuple[dict[str, Stored], dict[str, tuple[int, ...]]]:
    tensors: dict[str, Stored] = {}
    tables: dict[str, tuple[int, ...]] = {}
    for path in files:
        for name, tensor in _unpickled(path).items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise ModelError(f"{path} is not a table of tensors: {name!r} is a {type(tensor).__name__}")
            if name in tensors or name in tables:
                raise ModelError(f"{path}: {name} is in two files")
            if tensor.dtype in FLOATS.values():
                flat = tensor.detach().reshape(-1)
                stored_bytes: Bits = flat.view(torch.uint8).numpy()
                source = MemorySource(stored_bytes.view(UNSIGNED[flat.dtype.itemsize]))
                tensors[name] = Stored(name, tensor.dtype, tuple(tensor.shape), source)
            else:
                _refuse_unless_table(path, name, str(tensor.dtype).removeprefix("torch."))
                tables[name] = tuple(tensor.shape)
    return tensors, tables


def _unpickled(path: Path) -> Mapping[Any, Any]:
    from torch.serialization import _is_zipfile

    try:
        with path.open("rb") as file:
            can_be_mapped = bool(_is_zipfile(file))
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=can_be_mapped)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        is_pickle = isinstance(error, pickle.UnpicklingError)  # torch's own words advise to run what is in it
        reason = "it is damaged, or holds more than tensors" if is_pickle else first_line(error)
        raise ModelError(f"{path} cannot be read as tensors and nothing else: {reason}") from None
    if not isinstance(found, Mapping):
        raise ModelError(f"{path} is not a table of tensors but a {type(found).__name__}")
    return found


def _refuse_unless_table(path: Path, name: str, dtype: str) -> None:
    if not name.endswith(TABLES):
        raise ModelError(
            f"{path} holds {name} as {dtype}: packed weights, or none; floating-point weights are compared"
        )
