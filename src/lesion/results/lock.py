"""One process at a time in a run folder: a lock of the operating system, which dies with its process."""

import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from lesion.errors import RunFolderError
from lesion.results.filesystem import shared_kind
from lesion.results.layout import HOLDER, LOCK


class FolderLock:
    """An exclusive lock on a folder, whose holder can be named.

    Attributes:
        notes: what the lock cannot promise here, a line each.
    """

    def __init__(self, folder: Path) -> None:
        """Takes the lock.

        Raises:
            RunFolderError: another process holds it, or the file system has no locks.
        """
        self._holder = folder / HOLDER
        self._lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
            self.notes = _notes(folder, self._other())
            self._holder.write_text(f"{os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        except Timeout:
            raise RunFolderError(
                f"{folder} is in use by another run (process {self._other()}); "
                "wait for it, stop it, or pass another --out"
            ) from None
        except (OSError, NotImplementedError) as error:  # filelock's word for a file system without locks
            self._lock.release()
            reason = getattr(error, "strerror", None) or error
            raise RunFolderError(f"cannot lock {folder}: {reason}; pass another --out") from error

    def release(self) -> None:
        """Gives the lock back; a second call does nothing."""
        if self._lock.is_locked:
            self._holder.unlink(missing_ok=True)
            self._lock.release()

    def _other(self) -> str:
        try:
            return self._holder.read_text(encoding="utf-8", errors="replace").strip()[:100] or "unknown"
        except OSError:
            return "unknown"


def _notes(folder: Path, left: str) -> list[str]:
    """What to tell of a lock on a file system that other machines share; `left` names the last holder, if it died."""
    kind = shared_kind(folder)
    if kind is None:
        return []
    before = "" if left == "unknown" else f", and process {left} has not given the folder back: make sure that it ended"
    return [
        f"{folder} is on a {kind} file system, where a lock may not be seen by other machines{before}; "
        "run one command at a time in it"
    ]
