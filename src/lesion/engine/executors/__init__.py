"""Who runs the shards of a sweep: this process, processes of this machine, or a Ray cluster."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from lesion.engine.executors.job import Job, Source
from lesion.engine.executors.processes import Processes
from lesion.engine.sweep import Executor
from lesion.errors import InputError

FORMS = "here, local, local:N, ray or ray:ADDRESS"


@dataclass(frozen=True)
class Choice:
    """What `--executor` says.

    Attributes:
        workers: how many processes; None for one a device.
        address: of a running Ray cluster; None starts Ray on this machine.
    """

    kind: Literal["here", "local", "ray"]
    workers: int | None = None
    address: str | None = None


def read_choice(spec: str) -> Choice:
    """Reads `--executor`, before a model is loaded.

    Raises:
        InputError: it is none of the forms.
    """
    kind, _, rest = spec.partition(":")
    if spec in ("here", "local", "ray"):
        return Choice(spec)  # type: ignore[arg-type]
    if kind == "local" and rest.isdecimal() and 0 < int(rest) <= 1024:
        return Choice("local", workers=int(rest))
    if kind == "ray" and rest.strip():
        return Choice("ray", address=rest.strip())
    raise InputError(f"--executor {spec!r} is not known; give {FORMS} (N processes, from 1 to 1024)")


def make_executor(spec: str, job: Callable[[], Job]) -> Executor | None:
    """The executor that `--executor` names.

    Args:
        job: asked for only where the work leaves this process.

    Returns:
        None for `here`: the sweep then runs with the model that is loaded already.

    Raises:
        InputError: an unknown form, more devices than there are, Ray that is not installed or not there, or a model
            or data that cannot leave this process.
    """
    choice = read_choice(spec)
    if choice.kind == "here":
        return None
    if choice.kind == "local":
        described = job()
        return Processes(described, local_devices(described.source.loading.device, choice.workers))
    from lesion.engine.executors.ray import RayActors, require_ray

    require_ray()
    return RayActors(job(), address=choice.address)


def local_devices(kind: str, workers: int | None) -> list[str]:
    """A device for each process: the GPUs of this machine, or its CPU as often as asked for.

    Raises:
        InputError: more processes than GPUs.
    """
    if kind == "cpu":
        return ["cpu"] * (workers or 1)
    found = torch.cuda.device_count()
    if workers is not None and workers > found:
        raise InputError(f"--executor local:{workers} needs {workers} GPUs; this machine has {found}")
    return [f"cuda:{index}" for index in range(workers or found)]


__all__ = ["Choice", "Executor", "Job", "Processes", "Source", "local_devices", "make_executor", "read_choice"]
