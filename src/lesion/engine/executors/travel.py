"""How a job gets to another process: files by their path where both see the same disk, else by value."""

import hashlib
import io
import mmap
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lesion.data.pictures import Picture
from lesion.errors import InputError

HASHED_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Packed:
    """A pickle whose large arrays are beside it.

    Attributes:
        arrays: bytes of the arrays, in the order in which the pickle asks for them.
    """

    content: bytes
    arrays: tuple[np.ndarray, ...]


def pack(value: object, *, by_value: bool) -> Packed:
    """Makes any picklable value ready to travel.

    Args:
        by_value: for another machine: memory-mapped files and pictures on disk are read and sent along. Otherwise a
            mapped file is named, with its hash, and is mapped again where the value arrives.

    Raises:
        InputError: it cannot be pickled.
    """
    content = io.BytesIO()
    arrays: list[np.ndarray] = []
    packer = _Packer(content, arrays, by_value=by_value)
    try:
        packer.dump(value)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise InputError(f"the data cannot be handed to another process: {error}") from None
    return Packed(content.getvalue(), tuple(arrays))


def unpack(packed: Packed) -> Any:
    """What was packed.

    Raises:
        InputError: its class is not known here, or a file that it names is gone or is another one.
    """
    try:
        return pickle.loads(packed.content, buffers=packed.arrays)
    except (AttributeError, ImportError) as error:
        raise InputError(
            f"the data cannot be read in another process: {error}; its class must be in a module that can be imported"
        ) from None


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, arrays: list[np.ndarray], *, by_value: bool) -> None:
        super().__init__(file, protocol=5, buffer_callback=self._keep)
        self._arrays, self._by_value = arrays, by_value

    def _keep(self, buffer: pickle.PickleBuffer) -> None:
        self._arrays.append(np.frombuffer(buffer.raw(), dtype=np.uint8))

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.memmap):
            owner: Any = value.base
            if self._by_value or not isinstance(owner, mmap.mmap):  # a part of a map does not know where it is
                return np.asarray(value).view(np.ndarray).__reduce_ex__(5)
            path = os.path.abspath(str(value.filename))  # noqa: PTH100  (a link stays one)
            return _mapped_again, (path, value.dtype.str, value.shape, value.offset, _digest(value))
        if self._by_value and isinstance(value, Picture) and isinstance(value.content, Path):
            return Picture, (value.name, value.encoded(), value.label)
        return NotImplemented


def _mapped_again(path: str, dtype: str, shape: Sequence[int], offset: int, digest: str) -> np.ndarray:
    try:
        found = np.memmap(path, dtype=np.dtype(dtype), mode="r", offset=offset, shape=tuple(shape))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read again: {getattr(error, 'strerror', None) or error}") from None
    if _digest(found) != digest:
        raise InputError(f"{path} is not the file that the run was started with; give the command again")
    return found


def _digest(array: np.ndarray) -> str:
    digest, flat = hashlib.sha256(), array.reshape(-1)
    for start in range(0, flat.size, HASHED_AT_ONCE):
        digest.update(flat[start : start + HASHED_AT_ONCE].tobytes())
    return digest.hexdigest()
