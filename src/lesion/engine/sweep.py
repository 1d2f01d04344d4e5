"""A sweep: every lane over every batch of the data, one pass over the blocks a batch, metrics chunk by chunk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lesion.anatomy import Anatomy
from lesion.data import Batch
from lesion.engine.lanes import Lane, Streams, Walk
from lesion.engine.plan import Plan
from lesion.engine.skeleton import Skeleton
from lesion.errors import InterventionError, NonFiniteError
from lesion.results import ShardStore
from lesion.statistics import ClusteredMean, Scorer, Scores

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

_PAIRED = {"loss_change_nats": "loss_nats", "top1_change": "top1", "entropy_change_bits": "entropy_bits"}


@runtime_checkable
class Data(Protocol):
    """What a sweep reads: `lesion.data.TextData`, `ImageData`, or anything that gives batches of documents."""

    @property
    def domains(self) -> tuple[str, ...]: ...
    @property
    def lengths(self) -> np.ndarray: ...
    def batch(self, indices: Sequence[int]) -> Batch: ...


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
    """What has been gathered: one accumulator a domain, cells are lanes."""

    means: list[ClusteredMean]
    changed: set[int] = field(default_factory=set)
    moved: set[int] = field(default_factory=set)
    incidents: list[Incident] = field(default_factory=list)

    @classmethod
    def empty(cls, n_lanes: int, n_domains: int) -> "SweepState":
        return cls([ClusteredMean(n_lanes, len(METRICS)) for _ in range(n_domains)])

    def merge(self, other: "SweepState") -> None:
        for mine, theirs in zip(self.means, other.means, strict=True):
            mine.merge(theirs)
        self.changed |= other.changed
        self.moved |= other.moved
        self.incidents += other.incidents


def sweep(
    anatomy: Anatomy,
    data: Data,
    lanes: Sequence[Lane],
    plan: Plan,
    *,
    store: ShardStore | None = None,
    progress: Progress | None = None,
) -> SweepState:
    """Runs all lanes over all data; shards that `store` already holds are not run again.

    Args:
        lanes: the clean lane first (`lesion.engine.lay_out`).

    Returns:
        The merged state, in the order of the shards whatever was resumed.

    Raises:
        NonFiniteError: the clean lane itself stopped being finite.
        InterventionError: an edit changed a tensor and yet nothing came out differently.
    """
    runner = _Runner(anatomy, data, lanes, plan)
    total = int(sum(int(data.lengths[d]) for shard in plan.shards for batch in shard for d in batch))
    done = 0
    state = SweepState.empty(len(lanes), len(data.domains))
    for index, shard in enumerate(plan.shards):
        part = load_state(store, index, len(lanes), len(data.domains)) if store else None
        if part is None:
            part = SweepState.empty(len(lanes), len(data.domains))
            for batch in shard:
                runner.run(data.batch(batch).to(anatomy.device), part)
                done += int(sum(int(data.lengths[d]) for d in batch))
                if progress:
                    progress(done, total)
            if store:
                save_state(store, index, part)
        else:
            done += int(sum(int(data.lengths[d]) for batch in shard for d in batch))
            if progress:
                progress(done, total)
        state.merge(part)
    _refuse_idle(lanes, state)
    return state


def _refuse_idle(lanes: Sequence[Lane], state: SweepState) -> None:
    idle = [lane.name for index, lane in enumerate(lanes) if index in state.changed and index not in state.moved]
    if idle:
        raise InterventionError(f"{', '.join(idle)}: activations were changed, and yet nothing came out differently")


class _Runner:
    """One batch at a time: the walk, the tail in chunks, and the sums of each document."""

    def __init__(self, anatomy: Anatomy, data: Data, lanes: Sequence[Lane], plan: Plan) -> None:
        self._anatomy, self._lanes, self._plan = anatomy, lanes, plan
        self._domains = len(data.domains)
        self._skeleton = Skeleton(anatomy)
        self._scorer = Scorer()

    @torch.inference_mode()
    def run(self, batch: Batch, state: SweepState) -> None:
        self._batch, self._state = batch, state
        self._broken: set[int] = set()
        stream, calls = self._skeleton.enter(batch)
        walk = Walk(self._anatomy, self._lanes, self._plan.stack_tokens, self._on_broken, state.changed)
        counts = batch.keep.sum(dim=1)
        sums = torch.zeros((len(counts), len(self._lanes), len(METRICS)), dtype=torch.float64, device=stream.device)
        for number, group in enumerate(self._plan.groups or [[]]):
            streams = walk.run(stream, calls, group)
            self._measure(streams, sums, measured=group if number else [0, *group])
        self._finish(sums, counts)

    def _measure(self, streams: Streams, sums: Float[Tensor, "document cell metric"], *, measured: list[int]) -> None:
        """Logits of kept positions, a chunk at a time: the clean lane's first, each other lane's against it."""
        rows, columns = self._batch.keep.nonzero(as_tuple=True)
        for index in measured:
            if index not in self._state.moved and not torch.equal(streams[index], streams[0]):
                self._state.moved.add(index)
        for start in range(0, len(rows), self._plan.chunk):
            row, column = rows[start : start + self._plan.chunk], columns[start : start + self._plan.chunk]
            targets = self._batch.targets[row, column]
            clean = self._scorer.refer(self._skeleton.leave(streams[0][row, column]), targets)
            for index in measured:
                scores, kl = clean, torch.zeros_like(clean.entropy_bits)
                if streams[index] is not streams[0]:
                    scores, kl = self._scorer.compare(self._skeleton.leave(streams[index][row, column]), targets)
                sums[:, index].index_add_(0, row, _values(clean, scores, kl))

    def _finish(self, sums: Float[Tensor, "document cell metric"], counts: Int[Tensor, " document"]) -> None:
        for column, name in enumerate(METRICS):
            if name in _PAIRED:
                level = sums[:, :, METRICS.index(_PAIRED[name])]
                sums[:, :, column] = level - level[:, :1]
        self._check_finite(sums)
        for domain in range(self._domains):
            chosen = self._batch.domains == domain
            self._state.means[domain].update(sums[chosen], counts[chosen])

    def _check_finite(self, sums: Float[Tensor, "document cell metric"]) -> None:
        finite = torch.isfinite(sums[:, :, [METRICS.index("kl_nats"), METRICS.index("entropy_bits")]]).all(dim=(0, 2))
        for index in (~finite).nonzero().flatten().tolist():
            self._on_broken(index, None)
        sums[:, sorted(self._broken)] = torch.nan

    def _on_broken(self, index: int, step: int | None) -> None:
        block = None if step is None else self._lanes[index].order[step]
        incident = Incident(self._lanes[index].name, block, self._batch.documents.tolist())
        if index == 0:
            raise NonFiniteError(f"the model itself gives numbers that are not finite: {incident}")
        if index not in self._broken:
            self._broken.add(index)
            self._state.incidents.append(incident)


def _values(clean: Scores, lane: Scores, kl_nats: Float[Tensor, " position"]) -> Float[Tensor, "position metric"]:
    """The metrics of a chunk, in the order of `METRICS`, the changes left at 0 (they follow from the sums)."""
    agreement = (clean.top1 == lane.top1).float()
    columns = [lane.loss_nats, kl_nats, agreement, lane.correct, lane.entropy_bits]
    return torch.stack(columns + [torch.zeros_like(agreement)] * len(_PAIRED), dim=1).double()


def save_state(store: ShardStore, index: int, state: SweepState) -> None:
    """Commits a shard's state."""
    arrays = {
        f"{domain}.{key}": value.numpy()
        for domain, mean in enumerate(state.means)
        for key, value in mean.state_dict().items()
    }
    info = {
        "changed": sorted(state.changed),
        "moved": sorted(state.moved),
        "incidents": [[i.lane, i.block, i.documents] for i in state.incidents],
    }
    store.commit(index, arrays, info)


def load_state(store: ShardStore, index: int, n_lanes: int, n_domains: int) -> SweepState | None:
    """The state of a shard that was committed whole, or None."""
    arrays, info = store.load(index), store.info(index)
    if arrays is None or info is None:
        return None
    state = SweepState.empty(n_lanes, n_domains)
    for domain, mean in enumerate(state.means):
        mean.load_state_dict({key: torch.from_numpy(arrays[f"{domain}.{key}"].copy()) for key in mean.state_dict()})
    state.changed, state.moved = set(info["changed"]), set(info["moved"])
    state.incidents = [Incident(lane, block, documents) for lane, block, documents in info["incidents"]]
    return state
