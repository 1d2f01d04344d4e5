"""One process at a time in a run folder: a lock of the operating system, which dies with its process."""

import os
from pathlib import Path

from filelock import FileLock, Timeout

from lesion.errors import RunFolderError
from lesion.results.layout import HOLDER, LOCK


class FolderLock:
    """An exclusive lock on a folder, whose holder can be named."""

    def __init__(self, folder: Path) -> None:
        """Takes the lock.

        Raises:
            RunFolderError: another process holds it.
        """
        self._holder = folder / HOLDER
        self._lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
            self._holder.write_text(f"{os.getpid()}\n")
        except Timeout:
            raise RunFolderError(
                f"{folder} is in use by another run (process {self._other()}); "
                "wait for it, stop it, or pass another --out"
            ) from None
        except OSError as error:
            self._lock.release()
            raise RunFolderError(f"cannot lock {folder}: {error.strerror or error}; pass another --out") from error

    def release(self) -> None:
        """Gives the lock back; a second call does nothing."""
        if self._lock.is_locked:
            self._holder.unlink(missing_ok=True)
            self._lock.release()

    def _other(self) -> str:
        try:
            return self._holder.read_text().strip() or "unknown"
        except OSError:
            return "unknown"
