"""One batch on its way through a sweep: what its lanes score, added to the state once the batch is whole."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
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
from lesion.engine.skeleton import Call, Skeleton
from lesion.engine.state import METRICS, PAIRED, Contrast, Incident, SweepState
from lesion.engine.watching import Places, Watch, Watching
from lesion.errors import NonFiniteError
from lesion.interventions import OUTSIDE, Rewriting, WeightEdit
from lesion.interventions.rewriting import refuse_nothing
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
        contrasts: lanes whose losses are compared with each other, document by document.

    Raises:
        InputError: a watch through which nothing would pass.
        InterventionError, ModelError: lanes with edits of weights that this model cannot have.
    """

    anatomy: Anatomy
    data: Data
    lanes: Sequence[Lane]
    plan: Plan
    watches: tuple[Watch, ...] = ()
    scored: bool = True
    contrasts: tuple[Contrast, ...] = ()

    def __post_init__(self) -> None:
        self.places = Places(self.watches, self.anatomy, self.lanes)
        self.skeleton, self.scorer = Skeleton(self.anatomy), Scorer()
        self.groups = self.plan.groups or [[]]
        edits = [edit for lane in self.lanes for edit in lane.weights]
        self.rewriting = Rewriting(self.anatomy, edits) if edits else None
        if self.rewriting:
            refuse_nothing(self.rewriting, self.lanes[0].weights, _running(self.lanes[0]))

    def empty_state(self) -> SweepState:
        """What has been gathered before anything is run."""
        return SweepState.empty(len(self.lanes), len(self.data.domains), self.watches, len(self.contrasts))

    def outside(self, index: int) -> AbstractContextManager[None]:
        """Embeddings, last norm and head as a lane has them."""
        weights = self.lanes[index].weights_at(OUTSIDE)
        return self.rewriting.replaced(weights, OUTSIDE) if self.rewriting and weights else nullcontext()

    def enter(self, batch: Batch) -> tuple[Float[Tensor, "batch token d_model"], list[Call], Streams]:
        """What reaches block 0 in the clean lane, the blocks' calls, and what reaches it in lanes that enter alone."""
        with self.outside(0):
            stream, calls = self.skeleton.enter(batch)
        entering: Streams = {}
        for index, lane in enumerate(self.lanes):
            if lane.enters:
                with self.outside(index):
                    entering[index] = self.skeleton.enter(batch)[0]
        return stream, calls, entering

    def own_weights(self) -> dict[int, tuple[int, int]]:
        """How many weights each lane sets on top of the clean lane's edits, and how many of them are zero modes."""
        found = {}
        for index, lane in enumerate(self.lanes):
            if self.rewriting and lane.weights:
                counts = [self.rewriting.n_set(edit, _running(lane)) for edit in self._own(index)]
                found[index] = (sum(n_set for n_set, _ in counts), sum(n_zero for _, n_zero in counts))
        return found

    def scope_sizes(self, index: int) -> tuple[int, int]:
        """Zero modes in the scopes of a lane's own edits of weights, where blocks run, and the other weights there."""
        assert self.rewriting is not None
        sizes = [self.rewriting.sizes(edit, _running(self.lanes[index])) for edit in self._own(index)]
        return sum(n_zero for n_zero, _ in sizes), sum(n_others for _, n_others in sizes)

    def overlapping(self, index: int) -> frozenset[str]:
        """Parameters that a lane's own edits set and that the clean lane's edits set already."""
        if self.rewriting is None or not index:
            return frozenset()
        running = _running(self.lanes[index])
        own, common = (
            frozenset().union(*(self.rewriting.reaches(edit, running) for edit in edits))
            for edits in (self._own(index), self.lanes[0].weights)
        )
        return own & common

    def _own(self, index: int) -> tuple[WeightEdit, ...]:
        return self.lanes[index].weights[len(self.lanes[0].weights) if index else 0 :]

    def tokens(self, batch: Sequence[int]) -> int:
        """Tokens of data in a batch of documents."""
        return int(sum(int(self.data.lengths[document]) for document in batch))


def _running(lane: Lane) -> frozenset[int]:
    """The blocks that a lane runs."""
    return frozenset(layer for layer in lane.order if layer is not None)


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
            rewriting=bench.rewriting,
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
        moved = {
            index for index in measured if bench.lanes[index].enters or not torch.equal(streams[index], streams[0])
        }
        self._moved |= moved
        if not bench.scored:
            return
        for start in range(0, len(rows), bench.plan.chunk):
            row, column = rows[start : start + bench.plan.chunk], columns[start : start + bench.plan.chunk]
            targets = self.batch.targets[row, column]
            clean = bench.scorer.refer(self._leave(0, streams[0][row, column]), targets)
            for index in measured:
                scores, kl = clean, torch.zeros_like(clean.entropy_bits)
                if index in moved:
                    scores, kl = bench.scorer.compare(self._leave(index, streams[index][row, column]), targets)
                self._sums[:, index].index_add_(0, row, _values(clean, scores, kl))

    def _leave(self, index: int, chunk: Float[Tensor, "position d_model"]) -> Float[Tensor, "position vocabulary"]:
        with self._bench.outside(index):
            return self._bench.skeleton.leave(chunk)

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
            for domain, differences in enumerate(state.differences):
                chosen = self.batch.domains == domain
                differences.update(self._differences()[chosen], self._counts[chosen])
        self.watching.add_to(state.watched)
        state.changed |= self.walk.changed
        state.moved |= self._moved
        state.incidents += self._broken.values()

    def _differences(self) -> Float[Tensor, "document cell metric"]:
        """For each contrast, its lane's loss minus the mean loss of those that it is compared with."""
        loss = self._sums[:, :, METRICS.index("loss_nats")]
        found = [loss[:, one.lane] - loss[:, list(one.others)].mean(dim=1) for one in self._bench.contrasts]
        return torch.stack(found, dim=1).unsqueeze(-1)

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
