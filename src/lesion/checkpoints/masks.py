"""Masks of zero modes: one bit a weight, in a safetensors file that is read and written tensor by tensor."""

import contextlib
import json
import math
import os
import secrets
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from lesion.anatomy.files import check_safetensors
from lesion.errors import InputError

FILE = Path("arrays") / "zero_modes.safetensors"
"""Where the masks are in a run folder."""
FORMAT = {
    "format": "lesion zero modes",
    "version": "1",
    "convention": "1 = zero mode: the same bits in base and tuned; C order, first weight in the lowest bit",
}
"""What every file of masks says of itself."""
DERIVED = {"convention": "1 = in the set that `derived` names; C order, first weight in the lowest bit"}
"""What masks made of others say of their bits instead."""


def mask_file(path: Path | str) -> Path:
    """The file of masks itself: that of a run folder, or the one given."""
    path = Path(path)
    return path / FILE if path.is_dir() else path


Packed = NDArray[np.uint8]
Shapes = Mapping[str, tuple[int, ...]]


class Masks:
    """A mask for each tensor of a checkpoint; 1 is a zero mode. Nothing is read before it is asked for.

    `&`, `|`, `-` and `~` give masks that are worked out when they are read or saved.

    Attributes:
        metadata: of the file: fingerprints of both checkpoints, convention, shapes.
    """

    def __init__(self, shapes: Shapes, metadata: Mapping[str, str], read: Callable[[str], Packed]) -> None:
        self._shapes, self._read = dict(shapes), read
        self.metadata = dict(metadata)

    @classmethod
    def load(cls, path: Path | str) -> "Masks":
        """Opens a file of masks, or that of a run folder.

        Raises:
            InputError: there is none, it is no file of masks, or it contradicts itself.
            ModelError: the file is damaged.
        """
        file = mask_file(path)
        if not file.is_file():
            raise InputError(f"there are no masks at {file}; `lesion zero-modes diff` writes them")
        header = check_safetensors(file)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or metadata.get("format") != FORMAT["format"]:
            raise InputError(f"{file} is not a file of masks that `lesion zero-modes diff` wrote")
        if metadata.get("version") != FORMAT["version"]:
            raise InputError(f"{file} has masks of version {metadata.get('version')!r}; version 1 is known")
        shapes = _shapes(file, metadata, header)
        start = file.stat().st_size - max((entry["data_offsets"][1] for entry in header.values()), default=0)
        places = {name: (start + header[name]["data_offsets"][0], _n_bytes(shapes[name])) for name in shapes}
        masks = cls(shapes, metadata, _Mapped(file, places))
        for name in masks.names:
            if _padding(masks.packed(name), math.prod(shapes[name])):
                raise InputError(f"{file} is damaged: the mask of {name} goes on behind its last weight")
        return masks

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, as stored in the tuned checkpoint."""
        return tuple(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        self._refuse_unknown(name)
        return self._shapes[name]

    def packed(self, name: str) -> Packed:
        """A mask as stored: a bit a weight in C order, the first in the lowest bit of the first byte."""
        self._refuse_unknown(name)
        return self._read(name)

    def __getitem__(self, name: str) -> Bool[Tensor, "..."]:
        """A mask in the shape of its tensor.

        Raises:
            InputError: there is no such tensor.
        """
        shape = self.shape(name)
        bits = np.unpackbits(self.packed(name), count=math.prod(shape), bitorder="little")
        return torch.from_numpy(bits.view(np.bool_)).reshape(shape)

    def count(self, name: str) -> int:
        """Number of zero modes of a tensor."""
        return int(np.bitwise_count(self.packed(name)).sum(dtype=np.int64))

    def save(self, path: Path | str) -> None:
        """Writes the masks to a file, which appears whole or not at all.

        Raises:
            InputError: it cannot be written.
        """
        with MaskWriter(path, self._shapes, self.metadata) as writer:
            for name in self:
                writer.write(name, self.packed(name))

    def __and__(self, other: "Masks") -> "Masks":
        return self._with(other, np.bitwise_and, "and")

    def __or__(self, other: "Masks") -> "Masks":
        return self._with(other, np.bitwise_or, "or")

    def __sub__(self, other: "Masks") -> "Masks":
        return self._with(other, _without, "minus")

    def __invert__(self) -> "Masks":
        made = DERIVED | {"derived": f"not ({self._described})"}
        return Masks(self._shapes, self.metadata | made, lambda name: _inverted(self, name))

    @property
    def _described(self) -> str:
        return self.metadata.get("derived", self.metadata.get("tuned", "masks"))

    def _with(self, other: "Masks", operation: Callable[[Packed, Packed], Packed], word: str) -> "Masks":
        self._refuse_others(other)
        common = {key: value for key, value in self.metadata.items() if other.metadata.get(key) == value}
        made = FORMAT | common | DERIVED | {"derived": f"({self._described}) {word} ({other._described})"}
        return Masks(self._shapes, made, lambda name: operation(self.packed(name), other.packed(name)))

    def _refuse_others(self, other: "Masks") -> None:
        for here, there, side in ((self, other, "second"), (other, self, "first")):
            lacking = [name for name in here if name not in there]
            if lacking:
                raise InputError(
                    f"the masks are not of the same tensors: the {side} lack {len(lacking)}, the first {lacking[0]}"
                )
        for name in self:
            if self.shape(name) != other.shape(name):
                raise InputError(f"the masks differ in the shape of {name}: {self.shape(name)} and {other.shape(name)}")

    def _refuse_unknown(self, name: str) -> None:
        if name not in self._shapes:
            near = get_close_matches(name, self._shapes, 3, 0.3) or list(self._shapes)[:3]
            raise InputError(f"there is no mask of {name!r}; near it are: {', '.join(near)}")


class MaskWriter:
    """Writes a file of masks piece by piece; the file appears under its name only once all of it is there.

    Args:
        path: the file; its folder is made where it is missing.
        shapes: of the tensors, in the order in which they will be written.
        metadata: what else the file says of itself.
    """

    def __init__(self, path: Path | str, shapes: Shapes, metadata: Mapping[str, str]) -> None:
        self._path, self._shapes = Path(path), dict(shapes)
        self._metadata = dict(metadata)
        self._partial = self._path.with_name(
            f".{self._path.name}.{secrets.token_hex(4)}.partial"
        )  # run folders sweep such
        self._left = deque((name, _n_bytes(shape)) for name, shape in self._shapes.items() if _n_bytes(shape))

    def __enter__(self) -> "MaskWriter":
        with self._told():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("xb")
        try:
            self._put(self._header())
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, name: str, packed: Packed) -> None:
        """Appends a mask, or the next piece of one; tensors come in the order of `shapes`.

        Raises:
            InputError: the disk is full or the file cannot be written.
        """
        if not len(packed):
            return
        following, left = self._left[0]
        assert name == following, (name, following)
        assert len(packed) <= left, (name, left)
        self._left[0] = (name, left - len(packed))
        if left == len(packed):
            self._left.popleft()
        self._put(packed.data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            assert not self._left, self._left[0]
            with self._told():
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._partial.replace(self._path)
        except BaseException:
            self._discard()
            raise

    def _header(self) -> bytes:
        shapes = json.dumps({name: list(shape) for name, shape in self._shapes.items()})
        ends = list(accumulate(map(_n_bytes, self._shapes.values()), initial=0))
        entries = {
            name: {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}
            for name, (start, end) in zip(self._shapes, pairwise(ends), strict=True)
        }
        header = json.dumps({"__metadata__": FORMAT | self._metadata | {"shapes": shapes}} | entries).encode()
        header += b" " * (-len(header) % 8)
        return struct.pack("<Q", len(header)) + header

    def _put(self, content: bytes | memoryview) -> None:
        with self._told():
            self._file.write(content)

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()
        self._partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self._path} cannot be written: {error.strerror or error}") from None


class _Mapped:
    """Masks in a file; each read is a map of its own, whose pages go back with the array."""

    def __init__(self, path: Path, places: Mapping[str, tuple[int, int]]) -> None:
        self._map = partial(np.memmap, path.open("rb"), np.uint8, "r")
        self._places = places

    def __call__(self, name: str) -> Packed:
        start, size = self._places[name]
        return self._map(start, (size,)) if size else np.zeros(0, np.uint8)


def _shapes(file: Path, metadata: dict[str, str], header: Mapping[str, dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    try:
        shapes = {name: tuple(map(int, shape)) for name, shape in json.loads(metadata["shapes"]).items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} does not say the shapes of its masks: {error!r}") from None
    if shapes.keys() != header.keys():
        raise InputError(f"{file} contradicts itself: it has {len(header)} masks and the shapes of {len(shapes)}")
    for name, shape in shapes.items():
        found = header[name]
        if min(shape, default=0) < 0 or found["dtype"] != "U8" or found["shape"] != [_n_bytes(shape)]:
            raise InputError(f"{file} contradicts itself: {name} of shape {shape} is stored as {found}")
        start, end = header[name]["data_offsets"]
        if end - start != _n_bytes(shape):
            raise InputError(f"{file} contradicts itself: {name} has {end - start} bytes, not {_n_bytes(shape)}")
    return shapes


def _n_bytes(shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) // 8)


def _padding(packed: Packed, n_weights: int) -> int:
    """The bits of the last byte that stand for no weight."""
    return int(packed[-1]) >> n_weights % 8 if n_weights % 8 else 0


def _without(first: Packed, second: Packed) -> Packed:
    return first & ~second


def _inverted(masks: Masks, name: str) -> Packed:
    inverted: Packed = ~np.asarray(masks.packed(name))
    used = math.prod(masks.shape(name)) % 8
    if used:
        inverted[-1] &= np.uint8((1 << used) - 1)
    return inverted
