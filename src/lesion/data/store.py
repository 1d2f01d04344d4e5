"""Tokens on disk: written once, whole or not at all, checked and memory-mapped afterwards."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import BaseFileLock, FileLock, Timeout
from jaxtyping import Int, Integer

from lesion.data.documents import expanded
from lesion.errors import InputError

FORMAT = 1
HASHED_AT_ONCE = 1 << 24
IDS, OFFSETS, DOMAINS, META = "ids.bin", "offsets.npy", "domains.npy", "meta.json"
WRITING = ".writing"
"""The lock in a store that is being made; it dies with its process, which tells an abandoned one from one at work."""
LOCK_SECONDS = 60
UNUSED_DAYS = 90
"""A store that was not opened for so long is removed when another is made."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class StoredTokens:
    """A store that was found whole.

    Attributes:
        ids: every document's ids, one after the other (memory-mapped).
        offsets: where each document begins, and the end of the last.
        domain_of: index of each document's domain.
        fingerprint: SHA-256 over the ids, the offsets, the domains and their names.
        largest_id: the largest token id.
        description: what the writer said about it.
    """

    ids: Integer[np.ndarray, "id"]
    offsets: Int[np.ndarray, "boundary"]
    domain_of: Int[np.ndarray, "document"]
    fingerprint: str
    largest_id: int
    description: dict[str, Any]


class TokenWriter:
    """Appends documents to a store that is being made.

    Args:
        folder: where to write; it exists and is empty.
        dtype: of the ids on disk.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        self.folder = folder
        self.dtype = dtype
        self.offsets = array("q", [0])
        self.domain_of = array("q")
        self.largest_id = -1
        self._file = (folder / IDS).open("wb")

    def append(self, ids: Sequence[int], domain: int) -> None:
        """Adds one document.

        Raises:
            InputError: the disk is full.
        """
        wide = np.asarray(ids, dtype=np.int64)
        self.largest_id = max(self.largest_id, int(wide.max()))
        assert self.largest_id <= np.iinfo(self.dtype).max, "an id that is not in the tokenizer's vocabulary"
        with _disk_errors(self.folder):
            self._file.write(wide.astype(self.dtype).tobytes())
        self.offsets.append(self.offsets[-1] + wide.size)
        self.domain_of.append(domain)

    def finish(self, domains: Sequence[str], description: dict[str, Any]) -> None:
        """Writes what goes with the ids."""
        with _disk_errors(self.folder):
            _sync_and_close(self._file)
            offsets, domain_of = np.array(self.offsets, dtype=np.int64), np.array(self.domain_of, dtype=np.int64)
            for name, values in ((OFFSETS, offsets), (DOMAINS, domain_of)):
                file = (self.folder / name).open("wb")
                np.save(file, values)
                _sync_and_close(file)
            ids = np.memmap(self.folder / IDS, dtype=self.dtype, mode="r")
            meta = {
                "format": FORMAT,
                "dtype": self.dtype.str,
                "n_tokens": self.offsets[-1],
                "n_documents": len(self.domain_of),
                "largest_id": self.largest_id,
                "domains": list(domains),
                "fingerprint": content_fingerprint(ids, offsets, domain_of, domains),
                "description": description,
            }
            file = (self.folder / META).open("wb")
            file.write(json.dumps(meta).encode("utf-8"))
            _sync_and_close(file)

    def close(self) -> None:
        """Closes the file, also of a store that was not finished."""
        self._file.close()


@contextlib.contextmanager
def new_store(folder: Path, dtype: np.dtype[Any]) -> Iterator[TokenWriter]:
    """A writer whose store appears at `folder` when the block ends well, and leaves nothing when it does not.

    What a killed process left unfinished beside it, and stores that were not opened for `UNUSED_DAYS`, are removed.

    Raises:
        InputError: the cache cannot be written.
    """
    with _disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _tidied(folder.parent):
            partial = Path(tempfile.mkdtemp(prefix=f".{folder.name[:64]}-", dir=folder.parent))
            at_work = _lock(partial / WRITING)
            at_work.acquire()
    try:
        with _disk_errors(folder):
            writer = TokenWriter(partial, dtype)
        try:
            yield writer
        finally:
            writer.close()
        with _disk_errors(folder):
            (partial / WRITING).unlink()
            _move_into_place(partial, folder)
    finally:
        at_work.release()
        shutil.rmtree(partial, ignore_errors=True)


def open_store(folder: Path) -> StoredTokens | None:
    """The store at `folder`, or None where there is none or it is damaged (sizes and hash are checked)."""
    if not folder.exists():
        return None
    try:
        meta = json.loads((folder / META).read_bytes())
        if meta["format"] != FORMAT:
            raise ValueError(f"format {meta['format']}, not {FORMAT}")
        ids = np.memmap(folder / IDS, dtype=np.dtype(meta["dtype"]), mode="r")
        offsets, domain_of = np.load(folder / OFFSETS), np.load(folder / DOMAINS)
        sizes = (ids.size, offsets.size - 1, domain_of.size)
        if sizes != (meta["n_tokens"], meta["n_documents"], meta["n_documents"]):
            raise ValueError(f"sizes {sizes} are not those that were written")
        if content_fingerprint(ids, offsets, domain_of, meta["domains"]) != meta["fingerprint"]:
            raise ValueError("the content has another hash than what was written")
        largest_id, description = int(meta["largest_id"]), dict(meta["description"])
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(folder)  # when it was opened last
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        logger.warning("the token cache %s is damaged and is made anew: %s", folder, error)
        return None
    return StoredTokens(ids, offsets, domain_of, meta["fingerprint"], largest_id, description)


def content_fingerprint(
    ids: Integer[np.ndarray, "id"],
    offsets: Int[np.ndarray, "boundary"],
    domain_of: Int[np.ndarray, "document"],
    domains: Sequence[str],
) -> str:
    """SHA-256 over the ids as stored, the offsets, the documents' domains and the domains' names."""
    digest = hashlib.sha256(ids.dtype.str.encode())
    for start in range(0, ids.size, HASHED_AT_ONCE):
        digest.update(ids[start : start + HASHED_AT_ONCE].tobytes())
    digest.update(offsets.tobytes())
    digest.update(domain_of.tobytes())
    digest.update(json.dumps(list(domains)).encode("utf-8"))
    return digest.hexdigest()


def cache_folder(cache: Path | None) -> Path:
    """The cache that was given, else `LESION_CACHE`, else `~/.cache/lesion`."""
    if cache is not None:
        return cache
    configured = os.environ.get("LESION_CACHE")
    return expanded(configured or "~/.cache/lesion")


@contextlib.contextmanager
def _tidied(stores: Path) -> Iterator[None]:
    """Removes what nobody uses, and keeps other processes from doing so until a new store has its own lock."""
    with _lock(stores.with_name(f".{stores.name}.lock"), timeout=LOCK_SECONDS):
        for unfinished in stores.glob(".*"):
            if unfinished.is_dir() and _is_abandoned(unfinished):
                shutil.rmtree(unfinished, ignore_errors=True)
        oldest = time.time() - UNUSED_DAYS * 86400
        for store in stores.iterdir():
            if store.is_dir() and not store.name.startswith(".") and store.stat().st_mtime < oldest:
                shutil.rmtree(store, ignore_errors=True)
        yield


def _is_abandoned(unfinished: Path) -> bool:
    """Whether no process is writing this store any more."""
    try:
        with _lock(unfinished / WRITING):
            return True
    except (Timeout, OSError):  # OSError: it went away meanwhile, or belongs to somebody else
        return False


def _lock(path: Path, *, timeout: int = 0) -> BaseFileLock:
    return FileLock(path, timeout=timeout, thread_local=False)


def _move_into_place(partial: Path, folder: Path) -> None:
    if folder.exists():  # damaged, or finished by another process meanwhile: what was just written is as good
        discarded = partial.with_name(f"{partial.name}-old")
        with contextlib.suppress(FileNotFoundError):
            folder.rename(discarded)
        shutil.rmtree(discarded, ignore_errors=True)
    try:
        partial.rename(folder)
    except OSError:
        if not folder.exists():
            raise  # not another process that was faster
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_and_close(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, NotImplementedError) as error:  # Timeout is one; NotImplementedError: a place without locks
        if isinstance(error, Timeout):
            raise InputError(f"the token cache {folder.parent} is held by another process: {error.lock_file}") from None
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"the token cache {folder.parent} cannot be written: {reason}; "
            "set LESION_CACHE to a folder with room that may be written"
        ) from error
