"""Data whose reading goes wrong, in a module that worker processes can import."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lesion.data import Batch
from tests.support import Documents

KILL, FAIL, WAIT = "kill", "fail", "wait"


class Faulty(Documents):
    """Documents in whose batches something happens, away from the process that made them.

    Attributes:
        faults: by document: be killed, the first time only; raise, every time; or take for ever.
        folder: where the processes that read leave a file of their id, and who was killed already.
    """

    def __init__(self, documents: Sequence[np.ndarray], faults: dict[int, str], folder: Path) -> None:
        super().__init__(documents)
        self.faults, self.folder, self.home = faults, folder, os.getpid()

    def batch(self, indices: Sequence[int]) -> Batch:
        if os.getpid() != self.home:
            (self.folder / f"reader-{os.getpid()}").touch()
            for document in indices:
                self._happen(document, self.faults.get(document))
        return super().batch(indices)

    def _happen(self, document: int, fault: str | None) -> None:
        marker = self.folder / f"killed-{document}"
        if fault == KILL and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == FAIL:
            raise OSError(f"document {document} is poison\nand says so in two lines")
        if fault == WAIT:
            time.sleep(600)

    def readers(self) -> set[int]:
        """The processes that have read anything."""
        return {int(path.name.removeprefix("reader-")) for path in self.folder.glob("reader-*")}
