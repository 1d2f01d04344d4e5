"""Shards to workers and states back, whatever the workers are; what dies or fails is tried again, and then left out."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lesion.engine.maker import DECISIVE, Maker
from lesion.engine.state import SweepState
from lesion.engine.sweep import Advance, Done
from lesion.errors import LesionError
from lesion.results import versions

TRIES = 3
"""How often a shard may kill or fail its worker before it is left out, and a device its workers before it is."""
ROUND_SECONDS = 1.0
"""Longest wait for news: in between, the driver looks whether it was told to stop."""


@dataclass(frozen=True)
class Ready:
    """A worker has opened the job."""

    maker: Maker


@dataclass(frozen=True)
class Told:
    """So many tokens of a worker's shard are done so far."""

    tokens: int


@dataclass(frozen=True)
class Finished:
    """A worker's shard is done."""

    state: SweepState


@dataclass(frozen=True)
class Refused:
    """Something that a user must mend; it ends the run, as it does with one process."""

    error: LesionError


@dataclass(frozen=True)
class Lost:
    """A worker died, or failed in a way that nobody foresaw; it gets no more work."""

    reason: str


Event = Ready | Told | Finished | Refused | Lost


@runtime_checkable
class Crew(Protocol):
    """Workers in numbered seats, one a device."""

    seats: int

    def hire(self, seat: int) -> None:
        """Starts a worker in an empty seat; it opens the job by itself."""
        ...

    def assign(self, seat: int, shard: int) -> None:
        """Gives a shard to a worker that is ready."""
        ...

    def events(self, seconds: float) -> Sequence[tuple[int, Event]]:
        """What happened, by seat; waits for it no longer than `seconds`."""
        ...

    def dismiss(self, seat: int) -> None:
        """Ends the worker of a seat, if there is one."""
        ...

    def close(self) -> None:
        """Ends all workers."""
        ...


class Dispatch:
    """One run of some shards by a crew."""

    def __init__(self, crew: Crew, shards: Sequence[int], done: Done, advance: Advance) -> None:
        self._crew, self._done, self._advance = crew, done, advance
        self._queue = deque(shards)
        self._opening: set[int] = set()
        self._idle: set[int] = set()
        self._busy: dict[int, int] = {}
        self._closed: dict[int, str] = {}
        self._openings: Counter[int] = Counter()
        self._tries: Counter[int] = Counter()
        self._told: Counter[int] = Counter()
        self._failed: dict[int, str] = {}
        self._versions = ", ".join(f"{name} {versions()[name]}" for name in DECISIVE)

    def run(self) -> dict[int, str]:
        """Runs until every shard is done or left out; all workers have ended then, also after an exception.

        Returns:
            Shards that were left out, and why.

        Raises:
            LesionError: what a worker raised, as itself; or a worker of other versions.
        """
        try:
            self._fill()
            while self._queue or self._busy:
                if len(self._closed) == self._crew.seats:
                    self._give_up()
                    break
                for seat, event in self._crew.events(ROUND_SECONDS):
                    self._handle(seat, event)
                self._fill()
                self._advance(0)
        finally:
            self._crew.close()
        return self._failed

    def _fill(self) -> None:
        """Work for those who have none, and workers for the work that is left."""
        while self._idle and self._queue:
            seat, shard = self._idle.pop(), self._queue.popleft()
            self._busy[seat] = shard
            self._crew.assign(seat, shard)
        for seat in range(self._crew.seats):
            if len(self._queue) <= len(self._opening):
                break
            if seat not in self._opening and seat not in self._busy and seat not in self._closed:
                self._opening.add(seat)
                self._crew.hire(seat)

    def _handle(self, seat: int, event: Event) -> None:
        match event:
            case Ready(maker):
                self._refuse_other_versions(maker)
                self._opening.discard(seat)
                self._openings[seat] = 0
                self._idle.add(seat)
            case Told(tokens):
                self._tell(self._busy[seat], tokens)
            case Finished(state):
                self._done(self._busy.pop(seat), state)
                self._idle.add(seat)
            case Refused(error):
                raise error
            case Lost(reason):
                self._lose(seat, reason)

    def _tell(self, shard: int, tokens: int) -> None:
        """A shard that is run again makes no progress until it is where it was."""
        more = max(0, tokens - self._told[shard])
        self._told[shard] += more
        self._advance(more)

    def _lose(self, seat: int, reason: str) -> None:
        self._crew.dismiss(seat)
        self._idle.discard(seat)
        if seat in self._opening:
            self._opening.discard(seat)
            self._openings[seat] += 1
            if self._openings[seat] >= TRIES:
                self._closed[seat] = reason
        if seat in self._busy:
            shard = self._busy.pop(seat)
            self._tries[shard] += 1
            if self._tries[shard] >= TRIES:
                self._failed[shard] = f"{reason}; tried {TRIES} times"
            else:
                self._queue.append(shard)  # behind the others: it may be the one that cannot be run

    def _give_up(self) -> None:
        """No device is left."""
        reason = next(iter(self._closed.values()))
        self._failed |= dict.fromkeys(self._queue, f"no worker could be started: {reason}")

    def _refuse_other_versions(self, maker: Maker) -> None:
        if maker.versions != self._versions:
            raise LesionError(
                f"a worker on {maker.host} runs {maker.versions}, this process {self._versions}; "
                "install the same versions everywhere"
            )
