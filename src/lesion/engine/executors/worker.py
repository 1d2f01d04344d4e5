"""A worker process: `python -m lesion.engine.executors.worker PIPE JOB DRIVER DEVICE THREADS`, run by `Processes`.

It ends with its driver, however that ends: the system kills it (Linux), and its pipe closes (everywhere).
"""

import ctypes
import mmap
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection

from lesion.engine.executors.dispatch import Event, Ready
from lesion.engine.executors.station import Station

SET_PARENT_DEATH_SIGNAL = 1  # Linux's prctl.h


def main(arguments: Sequence[str]) -> None:
    """Serves shards until the driver closes the pipe.

    Args:
        arguments: the descriptor of the connection to the driver, that of a file with the packed job, the driver's
            process id, the device, and the threads that torch computes with (0 leaves them).
    """
    pipe, job, driver, threads = (int(arguments[place]) for place in (0, 1, 2, 4))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver says when to stop
    _die_with(driver)
    connection = Connection(pipe)
    shards: queue.SimpleQueue[int] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, shards), daemon=True).start()

    def tell(event: Event) -> None:
        connection.send_bytes(pickle.dumps(event))  # not `send`, which would share tensors instead of copying them

    station = Station()
    with mmap.mmap(job, 0, access=mmap.ACCESS_READ) as content:
        packed = pickle.loads(content)
    event = station.open(packed, arguments[3], elsewhere=False, threads=threads or None)
    tell(event)
    while isinstance(event, Ready):
        tell(station.run(shards.get(), tell))


def _listen(connection: Connection, shards: "queue.SimpleQueue[int]") -> None:
    """Hears of the driver's end at once, also in the middle of a shard."""
    while True:
        try:
            shards.put(pickle.loads(connection.recv_bytes()))
        except (EOFError, OSError):
            os._exit(0)


def _die_with(driver: int) -> None:
    """Being killed with the driver does not wait for Python, which may be in a long call of a library."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != driver:  # it was faster
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
