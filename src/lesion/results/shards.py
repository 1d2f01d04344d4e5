"""Shards: the pure, verified partial results from which a run resumes."""

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from lesion.results.atomic import write_bytes
from lesion.results.canonical import canonical_json


class _Shard(NamedTuple):
    arrays: dict[str, np.ndarray]
    info: dict[str, Any]


class ShardStore:
    """The shards of one plan, one file each, in a folder of their own.

    A file that is damaged, or that belongs to another plan or index, counts as missing and is removed when met.
    """

    def __init__(self, folder: Path, plan: str, *, check: Callable[[], None] | None = None) -> None:
        """Opens the folder for the shards of `plan`, a digest of all that they depend on; the first commit makes it.

        Args:
            check: called before each commit; raises where the shard must not be kept.
        """
        self.folder = folder
        self.plan = plan
        self._check = check

    def commit(self, index: int, arrays: Mapping[str, np.ndarray], info: Mapping[str, object]) -> None:
        """Writes shard `index` in one step; the same index again replaces it (shards are pure).

        Raises:
            RunFolderError: the file system refuses; an earlier file of this index is then untouched.
            Exception: what the store's `check` raises.
        """
        if self._check:
            self._check()
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        text = canonical_json(info)
        metadata = {
            "plan": self.plan,
            "index": str(index),
            "info": text,
            "sha256": _payload_digest(self.plan, index, text, contiguous),
        }
        write_bytes(self._path(index), safetensors_numpy.save(contiguous, metadata=metadata))

    def load(self, index: int) -> dict[str, np.ndarray] | None:
        """The arrays of shard `index`, verified; None if it is missing, damaged or of another plan."""
        shard = self._read(index)
        return None if shard is None else shard.arrays

    def info(self, index: int) -> dict[str, Any] | None:
        """What `commit` was told beside the arrays; None if the shard is missing, damaged or of another plan."""
        shard = self._read(index)
        return None if shard is None else shard.info

    def done(self) -> set[int]:
        """Indices of the shards that are whole and of this plan; every file is read and verified."""
        named = [int(path.stem) for path in self.folder.glob("*.safetensors") if path.stem.isdecimal()]
        return {index for index in named if self._read(index) is not None}

    def clear(self) -> None:
        """Removes all shards and their folder, once their merged result is in the tables."""
        for path in self.folder.glob("*.safetensors"):
            path.unlink(missing_ok=True)
        if self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.safetensors"

    def _read(self, index: int) -> _Shard | None:
        path = self._path(index)
        if not path.is_file():
            return None
        shard = _parse(path.read_bytes(), plan=self.plan, index=index)
        if shard is None:
            path.unlink(missing_ok=True)
        return shard


def _parse(content: bytes, *, plan: str, index: int) -> _Shard | None:
    try:
        arrays = safetensors_numpy.load(content)
        metadata = _metadata(content)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError):  # TypeError: a dtype that is none
        return None
    info = metadata.get("info", "")
    expected = _payload_digest(plan, index, info, arrays)
    if (metadata.get("plan"), metadata.get("index"), metadata.get("sha256")) != (plan, str(index), expected):
        return None
    return _Shard(arrays, json.loads(info))


def _metadata(content: bytes) -> dict[str, str]:
    (length,) = struct.unpack("<Q", content[:8])
    found: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return found


def _payload_digest(plan: str, index: int, info: str, arrays: Mapping[str, np.ndarray]) -> str:
    hasher = hashlib.sha256(canonical_json([plan, index, info]).encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        hasher.update(canonical_json([name, array.dtype.str, array.shape]).encode())
        hasher.update(array.tobytes())
    return hasher.hexdigest()
