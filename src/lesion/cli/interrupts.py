"""Being asked to stop: once ends a run cleanly, twice ends the process at once."""

import os
import signal
from types import FrameType

INTERRUPTED = 130


class Interrupts:
    """Turns SIGINT and SIGTERM into `KeyboardInterrupt`, and remembers that it did.

    Python drops an exception that a signal raises inside a finaliser or a callback of a C library. A run therefore
    also asks, wherever it reports progress, whether it was told to stop.
    """

    def __init__(self) -> None:
        self.came = False

    def install(self) -> None:
        """Takes the two signals over; only the main thread of a process may."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def check(self) -> None:
        """Raises `KeyboardInterrupt` if a signal came, also one whose exception was lost."""
        if self.came:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            os._exit(INTERRUPTED)
        self.came = True
        raise KeyboardInterrupt


INTERRUPTS = Interrupts()
"""Those of this process."""
