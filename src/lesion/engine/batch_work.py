"""One batch on its way through a sweep: what its lanes score, added to the state once the batch is whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lesion.anatomy import Anatomy
from lesion.data import Batch
from lesion.engine.lanes import Lane, Streams, Walk
from lesion.engine.plan import Plan
from lesion.engine.skeleton import Skeleton
from lesion.engine.state import METRICS, PAIRED, Incident, SweepState
from lesion.engine.watching import Places, Watch, Watching
from lesion.errors import NonFiniteError
from lesion.statistics import Scorer, Scores


@runtime_checkable
class Data(Protocol):
    """What a sweep reads: `lesion.data.TextData`, `ImageData`, or anything that gives batches of documents."""

    @property
    def domains(self) -> tuple[str, ...]: ...
    @property
    def lengths(self) -> np.ndarray: ...
    def batch(self, indices: Sequence[int]) -> Batch: ...


@dataclass
class Bench:
    """What all batches of a sweep share.

    Attributes:
        watches: statistics of activations that are gathered on the way.
        scored: whether logits are computed and scored; without, only what is watched is gathered.

    Raises:
        InputError: a watch through which nothing would pass.
    """

    anatomy: Anatomy
    data: Data
    lanes: Sequence[Lane]
    plan: Plan
    watches: tuple[Watch, ...] = ()
    scored: bool = True

    def __post_init__(self) -> None:
        self.places = Places(self.watches, self.anatomy, self.lanes)
        self.skeleton, self.scorer = Skeleton(self.anatomy), Scorer()
        self.groups = self.plan.groups or [[]]

    def empty_state(self) -> SweepState:
        """What has been gathered before anything is run."""
        return SweepState.empty(len(self.lanes), len(self.data.domains), self.watches)

    def tokens(self, batch: Sequence[int]) -> int:
        """Tokens of data in a batch of documents."""
        return int(sum(int(self.data.lengths[document]) for document in batch))


class BatchWork:
    """The sums of one batch's documents, and what was noted about its lanes."""

    def __init__(self, bench: Bench, documents: Sequence[int]) -> None:
        self._bench = bench
        self.batch = bench.data.batch(documents).to(bench.anatomy.device)
        self.watching = Watching(bench.places, self.batch)
        self.walk = Walk(
            bench.anatomy,
            bench.lanes,
            bench.plan.stack_tokens,
            self._on_broken,
            watching=self.watching if bench.watches else None,
        )
        self._counts = self.batch.keep.sum(dim=1)
        shape = (len(self._counts), len(bench.lanes), len(METRICS))
        self._sums = torch.zeros(shape, dtype=torch.float64, device=bench.anatomy.device)
        self._moved: set[int] = set()
        self._broken: dict[int, Incident] = {}

    def measure(self, streams: Streams, *, group: int) -> None:
        """Logits of kept positions, a chunk at a time: the clean lane's first, each other lane's against it."""
        bench = self._bench
        measured = bench.groups[group] if group else [0, *bench.groups[group]]
        rows, columns = self.batch.keep.nonzero(as_tuple=True)
        moved = {index for index in measured if not torch.equal(streams[index], streams[0])}
        self._moved |= moved
        if not bench.scored:
            return
        for start in range(0, len(rows), bench.plan.chunk):
            row, column = rows[start : start + bench.plan.chunk], columns[start : start + bench.plan.chunk]
            targets = self.batch.targets[row, column]
            clean = bench.scorer.refer(bench.skeleton.leave(streams[0][row, column]), targets)
            for index in measured:
                scores, kl = clean, torch.zeros_like(clean.entropy_bits)
                if index in moved:
                    scores, kl = bench.scorer.compare(bench.skeleton.leave(streams[index][row, column]), targets)
                self._sums[:, index].index_add_(0, row, _values(clean, scores, kl))

    def add_to(self, state: SweepState) -> None:
        """Adds the whole batch.

        Raises:
            NonFiniteError: the clean lane itself stopped being finite.
        """
        for column, name in enumerate(METRICS):
            if name in PAIRED:
                level = self._sums[:, :, METRICS.index(PAIRED[name])]
                self._sums[:, :, column] = level - level[:, :1]
        self._check_finite()
        if self._bench.scored:
            for domain, mean in enumerate(state.means):
                chosen = self.batch.domains == domain
                mean.update(self._sums[chosen], self._counts[chosen])
        self.watching.add_to(state.watched)
        state.changed |= self.walk.changed
        state.moved |= self._moved
        state.incidents += self._broken.values()

    def _check_finite(self) -> None:
        checked = self._sums[:, :, [METRICS.index("kl_nats"), METRICS.index("entropy_bits")]]
        finite = torch.isfinite(checked).all(dim=(0, 2))
        for index in (~finite).nonzero().flatten().tolist():
            self._on_broken(index, None)
        self._sums[:, sorted(self._broken)] = torch.nan

    def _on_broken(self, index: int, step: int | None) -> None:
        lane = self._bench.lanes[index]
        incident = Incident(lane.name, None if step is None else lane.order[step], self.batch.documents.tolist())
        if index == 0:
            raise NonFiniteError(f"the model itself gives numbers that are not finite: {incident}")
        self._broken.setdefault(index, incident)


def _values(clean: Scores, lane: Scores, kl_nats: Float[Tensor, " position"]) -> Float[Tensor, "position metric"]:
    """The metrics of a chunk, in the order of `METRICS`, the changes left at 0 (they follow from the sums)."""
    agreement = (clean.top1 == lane.top1).float()
    columns = [lane.loss_nats, kl_nats, agreement, lane.correct, lane.entropy_bits]
    return torch.stack(columns + [torch.zeros_like(agreement)] * len(PAIRED), dim=1).double()
