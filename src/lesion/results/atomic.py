"""One way to write a file: a temporary name beside it, fsync, rename, fsync of the folder."""

import errno
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from lesion.errors import RunFolderError

TEMPORARY_SUFFIX = ".partial"
"""What every unfinished file ends in; a leftover of a killed process is recognised by it."""


def atomic_write(path: Path, writer: Callable[[Path], None]) -> None:
    """Lets `writer` fill a temporary file, then puts it at `path` in one step.

    Args:
        path: where the file shall be; its folder is made where only that is missing.
        writer: called with the temporary path, in the same folder.

    Raises:
        RunFolderError: if the file system refuses (disk full, read-only, name too long).
        Exception: whatever `writer` raises; `path` is then as it was, and no temporary file is left.
    """
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(exist_ok=True)
        try:
            writer(temporary)
            _sync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path}: {error.strerror or error}; free space or pass another --out"
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` atomically."""
    atomic_write(path, lambda temporary: _put(temporary, content))


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # what network file systems say that cannot sync a folder
            raise
