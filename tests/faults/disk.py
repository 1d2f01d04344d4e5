"""A disk that fills up at a chosen moment."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from matplotlib.figure import Figure

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Disk:
    """Lets every write, fsync, rename, new folder and new lock through, except those that it is told to fail.

    Attributes:
        done: operations so far.
        failed: how many of them failed.
    """

    def __init__(self, first: int, *, once: bool) -> None:
        """Fails operation number `first`; those after it, too, unless only `once`."""
        self._first, self._once = first, once
        self.done = self.failed = 0

    def _fails(self) -> bool:
        self.done += 1
        fails = self.done == self._first if self._once else self.done >= self._first
        self.failed += fails
        return fails

    def refusing(self, original: Callable[..., Any], *, only: type = object) -> Callable[..., Any]:
        """An operation that does nothing when it fails, such as a rename; `only` is the type of what it is done to."""

        def operation(*arguments: Any, **keywords: Any) -> Any:
            if any(isinstance(argument, only) for argument in arguments) and self._fails():
                raise FULL
            return original(*arguments, **keywords)

        return operation

    def halving(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A write that leaves half of the content behind when it fails."""

        def operation(path: Path, content: Any, *arguments: Any, **keywords: Any) -> Any:
            if self._fails():
                original(path, content[: len(content) // 2], *arguments, **keywords)
                raise FULL
            return original(path, content, *arguments, **keywords)

        return operation


@contextlib.contextmanager
def disk_full(first: int, *, once: bool) -> Iterator[Disk]:
    """From operation number `first` on (or only then) there is no space left."""
    disk = Disk(first, once=once)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "replace", "rename"):
            patch.setattr(os, name, disk.refusing(getattr(os, name)))
        make = os.mkdir
        make_full = disk.refusing(make)
        # a folder that is there already takes no space
        patch.setattr(os, "mkdir", lambda path, *rest: (make if Path(path).exists() else make_full)(path, *rest))
        for name in ("write_bytes", "write_text"):
            patch.setattr(Path, name, disk.halving(getattr(Path, name)))
        patch.setattr(Path, "touch", disk.refusing(Path.touch))
        patch.setattr(FileLock, "acquire", disk.refusing(FileLock.acquire))
        patch.setattr(Figure, "savefig", disk.refusing(Figure.savefig, only=Path))
        yield disk
