"""What a sweep has gathered: sums that merge, what was noted on the way, and how both are kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from lesion.engine.maker import Maker
from lesion.engine.watching import Watch, empty_statistics
from lesion.results import ShardStore
from lesion.statistics import ClusteredMean, Statistic

METRICS = (
    "loss_nats",
    "kl_nats",
    "agreement",
    "top1",
    "entropy_bits",
    "loss_change_nats",
    "top1_change",
    "entropy_change_bits",
)
"""What is accumulated of each lane; the clean lane (cell 0) is compared with itself. Changes are lane minus clean."""

PAIRED = {"loss_change_nats": "loss_nats", "top1_change": "top1", "entropy_change_bits": "entropy_bits"}
"""Metrics that are the change of another one."""


@dataclass(frozen=True)
class Contrast:
    """A lane whose loss is compared with the mean loss of others, on the same documents.

    Attributes:
        lane: its index.
        others: indices of the lanes that it is compared with.
    """

    lane: int
    others: tuple[int, ...]


Progress = Callable[[int, int], None]
"""Told how far a sweep is: tokens of data done, and in all."""


@dataclass(frozen=True)
class Incident:
    """A lane whose numbers stopped being finite; all its results are NaN from then on."""

    lane: str
    block: int | None
    documents: list[int]

    def __str__(self) -> str:
        place = "in its logits" if self.block is None else f"at block {self.block}"
        return (
            f"{self.lane}: not finite {place} (documents {self.documents[:3]}{' …' if len(self.documents) > 3 else ''})"
        )


@dataclass
class SweepState:
    """What has been gathered.

    Attributes:
        means: one accumulator a domain; cells are lanes.
        differences: one accumulator a domain; cells are contrasts. Empty where nothing is compared.
        n_set: by lane, how many weights it sets beside those that the clean lane does, and how many of them are zero
            modes.
        watched: one statistic a watch, over all domains.
        changed: lanes whose edits have changed a tensor.
        moved: lanes whose last residual stream was not the clean one's.
        halved: how often a batch did not fit into memory and was run in halves.
        bytes_read: of blocks' weights, from disk.
        failed: shards that could not be run, and why; nothing of them is in the means.
        made_by: the processes that gathered it.
    """

    means: list[ClusteredMean]
    changed: set[int] = field(default_factory=set)
    moved: set[int] = field(default_factory=set)
    incidents: list[Incident] = field(default_factory=list)
    halved: int = 0
    bytes_read: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    made_by: set[Maker] = field(default_factory=set)
    watched: list[Statistic] = field(default_factory=list)
    differences: list[ClusteredMean] = field(default_factory=list)
    n_set: dict[int, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def empty(cls, n_lanes: int, n_domains: int, watches: Sequence[Watch] = (), n_contrasts: int = 0) -> "SweepState":
        means = [ClusteredMean(n_lanes, len(METRICS)) for _ in range(n_domains)]
        differences = [ClusteredMean(n_contrasts, 1) for _ in range(n_domains if n_contrasts else 0)]
        return cls(means, watched=empty_statistics(watches), differences=differences)

    def merge(self, other: "SweepState") -> None:
        for mine, theirs in zip(self.means, other.means, strict=True):
            mine.merge(theirs)
        for ours, others in zip(self.watched, other.watched, strict=True):
            ours.merge(others)
        for before, more in zip(self.differences, other.differences, strict=True):
            before.merge(more)
        self.n_set |= other.n_set
        self.changed |= other.changed
        self.moved |= other.moved
        self.incidents += other.incidents
        self.halved += other.halved
        self.bytes_read += other.bytes_read
        self.failed |= other.failed
        self.made_by |= other.made_by


def save_state(store: ShardStore, index: int, state: SweepState) -> None:
    """Commits a shard's state."""
    arrays = {
        f"{name}.{key}": value.numpy()
        for name, part in _parts(state).items()
        for key, value in part.state_dict().items()
    }
    info = {
        "changed": sorted(state.changed),
        "moved": sorted(state.moved),
        "incidents": [[i.lane, i.block, i.documents] for i in state.incidents],
        "halved": state.halved,
        "bytes_read": state.bytes_read,
        "n_set": [[lane, *counts] for lane, counts in sorted(state.n_set.items())],
        "made_by": [maker.row() for maker in sorted(state.made_by)],
    }
    store.commit(index, arrays, info)


def _parts(state: SweepState) -> dict[str, ClusteredMean | Statistic]:
    """What merges, by the names under which a shard keeps it."""
    return (
        {str(domain): mean for domain, mean in enumerate(state.means)}
        | {f"watch{index}": statistic for index, statistic in enumerate(state.watched)}
        | {f"differences{domain}": mean for domain, mean in enumerate(state.differences)}
    )


def load_state(store: ShardStore, index: int, state: SweepState) -> SweepState | None:
    """Fills an empty state with that of a shard that was committed whole; None where there is none."""
    arrays, info = store.load(index), store.info(index)
    if arrays is None or info is None:
        return None
    for name, part in _parts(state).items():
        part.load_state_dict({key: torch.from_numpy(arrays[f"{name}.{key}"].copy()) for key in part.state_dict()})
    state.changed, state.moved = set(info["changed"]), set(info["moved"])
    state.halved, state.bytes_read = info["halved"], info["bytes_read"]
    state.incidents = [Incident(lane, block, documents) for lane, block, documents in info["incidents"]]
    state.n_set = {lane: (n_set, n_zero) for lane, n_set, n_zero in info.get("n_set", [])}
    state.made_by = {Maker(*row) for row in info.get("made_by", [])}
    return state
