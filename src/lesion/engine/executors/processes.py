"""One process a device, on this machine.

Pools of the standard library and of joblib were looked at and left: a worker that is killed breaks a
`ProcessPoolExecutor`, all of whose work is then lost, and `loky` replaces all workers where one died. Here each worker
has a pipe of its own. It is started as a module, not forked (CUDA) and not by `multiprocessing`, which would import
the user's main script again in every worker.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import IO

import torch

from lesion.anatomy.placement import free_memory
from lesion.engine.executors.dispatch import Dispatch, Event, Lost
from lesion.engine.executors.job import Job
from lesion.engine.executors.travel import pack
from lesion.engine.sweep import Advance, Done

END_SECONDS = 10
"""How long a process whose pipe has closed may take to end before it is killed."""


class Processes:
    """Runs shards in processes of this machine."""

    def __init__(self, job: Job, devices: Sequence[str]) -> None:
        """Prepares a run; processes start with `run`.

        Args:
            devices: one a process, for example `cuda:0`; processes on the CPU share its threads and its memory.
        """
        self._job, self._devices = job, list(devices)

    def run(self, shards: Sequence[int], done: Done, advance: Advance) -> dict[int, str]:
        """Runs the shards of these indices, as `lesion.engine.Executor` says."""
        on_cpu = self._devices.count("cpu")
        job, threads = self._job, None
        if on_cpu:
            job = job.with_memory((job.source.loading.max_memory or free_memory()) // on_cpu)
            threads = max(1, torch.get_num_threads() // on_cpu)
        return Dispatch(_Crew(job, self._devices, threads), shards, done, advance).run()


@dataclass
class _Worker:
    process: "subprocess.Popen[bytes]"
    connection: Connection
    log: IO[bytes]


class _Crew:
    def __init__(self, job: Job, devices: Sequence[str], threads: int | None) -> None:
        self.seats = len(devices)
        self._devices, self._threads = devices, threads
        self._workers: dict[int, _Worker] = {}
        self._files = contextlib.ExitStack()
        self._job = self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  (closed with the crew)
        pickle.dump(pack(job, by_value=False), self._job)
        self._job.flush()

    def hire(self, seat: int) -> None:
        ours, theirs = multiprocessing.Pipe()
        log = self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        arguments = [theirs.fileno(), self._job.fileno(), os.getpid(), self._devices[seat], self._threads or 0]
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "lesion.engine.executors.worker", *map(str, arguments)],
                pass_fds=[theirs.fileno(), self._job.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                process_group=0,  # Ctrl-C in a terminal is for the driver
            )
        self._workers[seat] = _Worker(process, ours, log)

    def assign(self, seat: int, shard: int) -> None:
        try:
            self._workers[seat].connection.send_bytes(pickle.dumps(shard))
        except OSError:  # it died meanwhile; `events` tells
            return

    def events(self, seconds: float) -> list[tuple[int, Event]]:
        seats = {worker.connection: seat for seat, worker in self._workers.items()}
        heard = [connection for connection in wait(list(seats), seconds) if isinstance(connection, Connection)]
        return [(seats[connection], self._heard(self._workers[seats[connection]])) for connection in heard]

    def dismiss(self, seat: int) -> None:
        worker = self._workers.pop(seat, None)
        if worker:
            worker.connection.close()
            worker.process.kill()
            worker.process.wait()

    def close(self) -> None:
        for seat in list(self._workers):
            self.dismiss(seat)
        self._files.close()

    def _heard(self, worker: _Worker) -> Event:
        try:
            event: Event = pickle.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            return Lost(_how_it_ended(worker))
        return event

    def _environment(self) -> dict[str, str]:
        """Modules are found where this process finds them; libraries start no more threads than are used."""
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)  # noqa: PTH109
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if self._threads else ()
        return {**os.environ, "PYTHONPATH": path, **dict.fromkeys(names, str(self._threads))}


def _how_it_ended(worker: _Worker) -> str:
    try:
        code = worker.process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        return "its worker closed its pipe and did not end"
    if code < 0:
        hint = ", as happens where memory runs out" if code == -signal.SIGKILL else ""
        return f"its worker was killed by {signal.Signals(-code).name}{hint}"
    worker.log.seek(0)
    lines = worker.log.read().decode(errors="replace").strip().splitlines()
    return f"its worker ended with exit code {code}" + (f": {lines[-1]}" if lines else "")
