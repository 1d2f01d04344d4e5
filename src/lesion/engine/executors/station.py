"""What a worker does: it opens the job once, and then runs the shards that it is given."""

import traceback
from collections.abc import Callable

from lesion.engine.executors.dispatch import Event, Finished, Lost, Ready, Refused, Told
from lesion.engine.executors.job import Job
from lesion.engine.executors.travel import Packed, unpack
from lesion.engine.maker import Maker
from lesion.engine.memory import keep_pages
from lesion.engine.runners import Runner
from lesion.engine.state import SweepState
from lesion.engine.sweep import Here
from lesion.errors import LesionError

Tell = Callable[[Event], None]


class Station:
    """A worker's part, whoever carries messages to and from it. Nothing that goes wrong leaves as an exception."""

    def __init__(self) -> None:
        self._runner: Runner | None = None

    def open(self, packed: Packed, device: str, *, elsewhere: bool, threads: int | None) -> Event:
        """Unpacks the job and opens it on a device."""
        try:
            keep_pages()
            job: Job = unpack(packed)
            self._runner = job.open(device, elsewhere=elsewhere, threads=threads)
        except LesionError as error:
            return Refused(error)
        except Exception as error:  # noqa: BLE001  (the driver is told, whatever it is)
            return Lost(described(error))
        return Ready(Maker.here(self._runner.bench.anatomy.device))

    def run(self, shard: int, tell: Tell) -> Event:
        """Runs one shard."""
        assert self._runner is not None, "a station gets shards once it has said that it is ready"
        states: list[SweepState] = []
        done = 0

        def advance(tokens: int) -> None:
            nonlocal done
            done += tokens
            tell(Told(done))

        try:
            Here(self._runner).run([shard], lambda _, state: states.append(state), advance)
        except LesionError as error:
            return Refused(error)
        except Exception as error:  # noqa: BLE001  (the driver is told, whatever it is)
            return Lost(described(error))
        return Finished(states[0])


def described(error: Exception) -> str:
    """The line of an exception that ends its traceback."""
    return traceback.format_exception_only(error)[-1].strip().splitlines()[0]
