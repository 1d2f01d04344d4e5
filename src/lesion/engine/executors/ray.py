"""One Ray actor a device, on this machine or on a cluster."""

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lesion.engine.executors.dispatch import Dispatch, Event, Finished, Lost, Told
from lesion.engine.executors.job import Job
from lesion.engine.executors.station import Station
from lesion.engine.executors.travel import Packed, pack
from lesion.engine.sweep import Advance, Done
from lesion.errors import InputError

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}
"""Ray reports to nobody, leaves CUDA_VISIBLE_DEVICES alone where an actor asks for no GPU, and prints none of what its
processes say about dead workers (it would be on standard output; `Lost` has the reason)."""
OBJECT_STORE_BYTES = 256 << 20
"""Room for what travels beside the data of the job."""
PROBE_SECONDS = 10
"""How long a cluster's address may take to answer; Ray itself goes on asking for many minutes."""
LONGEST_FOLDER = 40
"""Characters of a folder in which Ray's sockets still get names that the system accepts."""
logger = logging.getLogger(__name__)


def require_ray() -> None:
    """Raises InputError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise InputError("--executor ray needs Ray, which is not installed; install lesion[cluster]")


@dataclass(frozen=True)
class Seat:
    """What an actor asks Ray for, and what it does with it.

    Attributes:
        node: the node that it must be on; None for any that has a free GPU.
        threads: that torch computes with; None leaves them.
    """

    cpus: int
    gpus: int
    node: str | None
    device: str
    threads: int | None


class RayActors:
    """Runs shards in actors, each of which holds the model on a device of its own."""

    def __init__(self, job: Job, address: str | None = None, *, workers: int | None = None) -> None:
        """Prepares a run; Ray is started or joined by `run`.

        Args:
            address: of a running cluster (`auto`, `host:port`); None starts Ray on this machine, and ends it.
            workers: actors on this machine's CPU, where Ray is started on it; None for one.
        """
        self._job, self._address, self._workers = job, address, workers

    def run(self, shards: Sequence[int], done: Done, advance: Advance) -> dict[int, str]:
        """Runs the shards of these indices, as `lesion.engine.Executor` says.

        Raises:
            InputError: Ray cannot be reached or started, or has no device of the kind that the job needs.
        """
        packed = pack(self._job, by_value=True)
        with _ray(self._address, packed) as ray:
            seats = _seats(ray, self._job.source.loading.device, self._workers)
            return Dispatch(_Crew(ray, self._job, packed, seats), shards, done, advance).run()


class _Actor:
    """The part of `Station` that speaks Ray."""

    def __init__(self) -> None:
        self._station = Station()

    def open(self, content: bytes, arrays: tuple[Any, ...], device: str, threads: int | None) -> Event:
        return self._station.open(Packed(content, arrays), device, elsewhere=True, threads=threads)

    def run(self, shard: int) -> Event:
        return self._station.run(shard, lambda event: None)


class _Crew:
    def __init__(self, ray: Any, job: Job, packed: Packed, seats: Sequence[Seat]) -> None:
        self.seats = len(seats)
        self._ray, self._job, self._asked = ray, job, seats
        self._content = ray.put(packed.content)
        self._arrays = ray.put(packed.arrays)
        self._actors: dict[int, Any] = {}
        self._awaited: dict[Any, int] = {}
        self._shards: dict[int, int] = {}

    def hire(self, seat: int) -> None:
        asked = self._asked[seat]
        options: dict[str, Any] = {"num_cpus": asked.cpus, "num_gpus": asked.gpus, "max_restarts": 0}
        if asked.node:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(asked.node, soft=False)
        actor = self._ray.remote(_Actor).options(**options).remote()
        self._actors[seat] = actor
        self._awaited[actor.open.remote(self._content, self._arrays, asked.device, asked.threads)] = seat

    def assign(self, seat: int, shard: int) -> None:
        self._shards[seat] = shard
        self._awaited[self._actors[seat].run.remote(shard)] = seat

    def events(self, seconds: float) -> list[tuple[int, Event]]:
        arrived, _ = self._ray.wait(list(self._awaited), timeout=seconds)
        found: list[tuple[int, Event]] = []
        for reference in arrived:
            seat = self._awaited.pop(reference)
            event = self._heard(reference)
            if isinstance(event, Finished):
                found.append((seat, Told(self._job.tokens(self._shards[seat]))))
            found.append((seat, event))
        return found

    def dismiss(self, seat: int) -> None:
        actor = self._actors.pop(seat, None)
        self._awaited = {reference: other for reference, other in self._awaited.items() if other != seat}
        if actor is not None:
            self._ray.kill(actor)

    def close(self) -> None:
        for seat in list(self._actors):
            self.dismiss(seat)

    def _heard(self, reference: Any) -> Event:
        try:
            event: Event = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Lost(_reason(error))
        return event


def _reason(error: Exception) -> str:
    """The sentence in which Ray says why; its messages run over many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "exit type" in line or "exit detail" in line]
    return " ".join(telling or lines[:1]) or type(error).__name__


def _seats(ray: Any, device: str, workers: int | None) -> list[Seat]:
    """A seat for each GPU of the cluster, or for each node's CPU."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if device == "cuda":
        gpus = int(sum(node["Resources"].get("GPU", 0) for node in nodes))
        if not gpus:
            raise InputError("the model was loaded on a GPU, and Ray has no GPU; add one, or pass --device cpu")
        return [Seat(cpus=1, gpus=1, node=None, device="cuda:0", threads=None)] * gpus  # Ray shows each its own
    found = []
    for node in nodes:
        cpus = int(node["Resources"].get("CPU", 0))
        share = cpus // (workers or 1)
        if share:
            seat = Seat(cpus=share, gpus=0, node=node["NodeID"], device="cpu", threads=share)
            found += [seat] * (workers or 1)
    if not found:
        raise InputError("Ray has no CPU to run on; start its nodes with --num-cpus")
    return found


@contextlib.contextmanager
def _ray(address: str | None, packed: Packed) -> Iterator[Any]:
    """Ray, joined or started; what was started ends with the block, and its folder goes."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(QUIET))
        import ray

        if ray.is_initialized():  # the caller's own: it stays as it is
            if address not in (None, "auto"):
                raise InputError(f"this process is connected to a Ray already; it cannot join {address} too")
            yield ray
            return
        if address is None:
            size = OBJECT_STORE_BYTES + 2 * (len(packed.content) + sum(array.nbytes for array in packed.arrays))
            folder = stack.enter_context(_short_folder())
            _init(ray, "local", _temp_dir=folder, include_dashboard=False, object_store_memory=size)
        else:
            _refuse_silent(address)
            _init(ray, address)
        stack.callback(ray.shutdown)
        yield ray


def _init(ray: Any, address: str, **options: Any) -> None:
    try:
        with _signals_kept():
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError, ray.exceptions.RayError) as error:
        reason = str(error).strip().splitlines()[0]
        if address == "local":
            raise InputError(f"Ray cannot be started on this machine: {reason}") from None
        raise InputError(
            f"Ray cannot be reached at {address}: {reason}; where a cluster asks for a token, set RAY_AUTH_MODE=token"
        ) from None


def _refuse_silent(address: str) -> None:
    """Raises InputError if nobody listens at `[ray://]host:port`."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():  # `auto`, which Ray looks up on this machine
        return
    try:
        socket.create_connection((host, int(port)), PROBE_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"Ray cannot be reached at {address}: {reason}; `ray status` there says whether it runs"
        ) from None


@contextlib.contextmanager
def _short_folder() -> Iterator[str]:
    """A folder for Ray's sockets and logs: in the usual place, unless its path is too long for a socket."""
    usual = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="lesion-ray-", dir=usual if len(usual) <= LONGEST_FOLDER else "/tmp")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes over what a signal does to this process; whoever handled it before does so again after the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables in the block, unless the user has set them; what Ray adds to them goes too."""
    before = set(os.environ)
    os.environ.update({name: value for name, value in variables.items() if name not in before})
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("RAY_") and name not in before]:
            del os.environ[name]
