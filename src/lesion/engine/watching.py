"""Statistics of activations inside blocks, gathered while lanes walk: each sees a tensor once, where it passes."""

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lesion.anatomy import Anatomy
from lesion.data import Batch
from lesion.errors import InputError, ModelError, NonFiniteError
from lesion.interventions.hooks import Hook
from lesion.interventions.intervention import Order
from lesion.statistics import Positions, Statistic


@dataclass(frozen=True)
class Watch:
    """What is looked at in every batch, and what is worked out from it.

    Attributes:
        block: number of the block.
        module: path of a module inside the block; empty for the block itself.
        side: what goes into the module (its first argument) or what comes out of it (the first of several).
        statistic: makes an empty statistic: a class, or a `functools.partial` of one; it must be possible to pickle it,
            and its `repr` says what it is. Watches that share one and see the same tensor (the inputs of q, k and v)
            have it worked out once.
        lane: index of the lane whose activations they are, 0 for the clean one. Edits at the same place come first.
    """

    block: int
    module: str
    side: Literal["input", "output"]
    statistic: Callable[[], Statistic]
    lane: int = 0

    def __str__(self) -> str:
        return f"{self.side} of {self.module or 'the block'} in block {self.block}"


@runtime_checkable
class LaidOut(Protocol):
    """What is asked of a lane."""

    @property
    def name(self) -> str: ...
    @property
    def order(self) -> Order: ...
    @property
    def fork(self) -> int: ...


def empty_statistics(watches: Iterable[Watch]) -> list[Statistic]:
    """An empty statistic for each watch."""
    return [watch.statistic() for watch in watches]


@dataclass(frozen=True)
class Placed:
    """A watch, its number, and the module that it is on."""

    index: int
    watch: Watch
    module: nn.Module
    label: str


class Places:
    """Watches laid out on a model, block by block.

    Raises:
        InputError: a watch through which nothing would pass, or not every token once.
    """

    def __init__(self, watches: Sequence[Watch], anatomy: Anatomy, lanes: Sequence[LaidOut]) -> None:
        self.watches, self.anatomy, self.lanes = tuple(watches), anatomy, lanes
        self.of_block: dict[int, list[Placed]] = {}
        for index, watch in enumerate(watches):
            _refuse_elsewhere(watch, anatomy, lanes)
            placed = Placed(index, watch, _module_of(watch, anatomy), str(watch))
            self.of_block.setdefault(watch.block, []).append(placed)


def _refuse_elsewhere(watch: Watch, anatomy: Anatomy, lanes: Sequence[LaidOut]) -> None:
    """Refuses a lane or a block that is not there, or that do not meet once."""
    if not 0 <= watch.lane < len(lanes):
        raise InputError(f"{watch}: there is no lane {watch.lane}; the sweep has lanes 0 to {len(lanes) - 1}")
    if not 0 <= watch.block < anatomy.n_layers:
        raise InputError(f"{watch}: the model has blocks 0 to {anatomy.n_layers - 1}")
    lane = lanes[watch.lane]
    if (times := lane.order.count(watch.block)) != 1:
        raise InputError(f"{watch}: lane {lane.name} runs that block {times} times, not once")


def _module_of(watch: Watch, anatomy: Anatomy) -> nn.Module:
    """The module that is watched; refuses a path that leads to none, or to one that does not see every token."""
    try:
        module = anatomy.blocks[watch.block].get_submodule(watch.module)
    except AttributeError:
        kind = anatomy.family.model_type
        raise InputError(f"{watch} cannot be watched: blocks of {kind} have no such part") from None
    experts = anatomy.family.experts
    if experts and f"{watch.module}.".startswith(f"{experts}."):
        raise InputError(f"{watch} cannot be watched: it is spread over experts, to which each token is sent or not")
    if type(module).forward is nn.Module.forward:
        raise InputError(f"{watch} cannot be watched: {type(module).__name__} is never called as a whole")
    return module


class Watching:
    """What the watches of one batch have seen.

    All real tokens count, also those that no metric counts (the last of a document has no target, and yet an
    activation); padding never does. Of an image all positions count.

    Attributes:
        found: a statistic for each watch that has fired, by its index.
    """

    def __init__(self, places: Places, batch: Batch) -> None:
        self._places, self._lanes, self._watches = places, places.lanes, places.watches
        self._seen: set[int] = set()
        self.found: dict[int, Statistic] = {}
        self._latest: _Latest | None = None
        if places.watches:
            self._n_rows, self._real, self._positions = _real_positions(batch, places.anatomy)

    def hooks(self, stack: Sequence[int], block: int, step: int) -> list[Hook]:
        """Those that look at the lanes of a stack, which are about to run a block.

        A lane that has not forked yet is seen in the clean one. Where the clean lane walks more than once a batch, the
        first walk is looked at.
        """
        hooks = []
        for placed in self._places.of_block.get(block, ()):
            watch, index = placed.watch, placed.index
            lane = watch.lane if self._lanes[watch.lane].fork <= step else 0
            if lane in stack and index not in self._seen:
                look = partial(self._look, index, stack.index(lane), len(stack))
                hooks.append(Hook(placed.module, watch.side, look, placed.label))
        return hooks

    def absorb(self, later: "Watching") -> None:
        """Takes over what a later batch has seen, so that a block's statistics are held once, not once a batch."""
        for index, statistic in later.found.items():
            self._add(index, statistic)
        later.found = {}

    def add_to(self, statistics: Sequence[Statistic]) -> None:
        """Adds the whole batch to statistics in the order of the watches."""
        missing = [str(watch) for index, watch in enumerate(self._watches) if index not in self._seen]
        assert not missing, missing  # `Places` and the rule of hooks come before it
        for index, statistic in self.found.items():
            statistics[index].merge(statistic)

    def _add(self, index: int, statistic: Statistic) -> None:
        if index in self.found:
            self.found[index].merge(statistic)
        else:
            self.found[index] = statistic

    def _look(self, index: int, place: int, lanes: int, stacked: Tensor) -> Tensor:
        watch = self._watches[index]
        if index in self._seen:
            raise ModelError(f"the {watch} passes more than once a batch; it cannot be watched")
        statistic, latest = watch.statistic(), self._latest
        if latest and latest.tensor() is stacked and (latest.place, latest.made_by) == (place, watch.statistic):
            statistic.merge(latest.statistic)
        else:
            size = stacked.shape[0] // lanes
            statistic.update(self._rows(watch, stacked[place * size : (place + 1) * size]), self._positions)
            self._latest = _Latest(weakref.ref(stacked), place, watch.statistic, statistic)
        self._seen.add(index)
        self._add(index, statistic)
        return stacked

    def _rows(self, watch: Watch, own: Tensor) -> Float[Tensor, "position width"]:
        """The rows of real tokens, of a tensor of sequences x tokens, which some families flatten (OPT's fc2).

        Raises:
            ModelError: the tensor has no row for each token.
            NonFiniteError: a number in it is not finite.
        """
        flat = own.reshape(-1, own.shape[-1])
        if len(flat) != self._n_rows:
            raise ModelError(
                f"the {watch} is a tensor of shape {tuple(own.shape)}, which is no row for each of {self._n_rows} "
                "tokens; it cannot be watched"
            )
        values = flat if self._real is None else flat.index_select(0, self._real)
        if not math.isfinite(values.sum(dtype=torch.float32).item()) and not torch.isfinite(values).all():
            self._refuse_non_finite(watch, values)
        return values

    def _refuse_non_finite(self, watch: Watch, values: Float[Tensor, "position width"]) -> None:
        row, coordinate = (~torch.isfinite(values)).nonzero()[0].tolist()
        raise NonFiniteError(
            f"the {watch} is not finite: coordinate {coordinate} is {values[row, coordinate].item()} at token "
            f"{int(self._positions.columns[row])} of document {int(self._positions.documents[row])} "
            f"(lane {self._lanes[watch.lane].name})"
        )


@dataclass(frozen=True)
class _Latest:
    """The tensor that was looked at last, in which lane's place of a stack, and what was worked out from it."""

    tensor: "weakref.ref[Tensor]"
    place: int
    made_by: Callable[[], Statistic]
    statistic: Statistic


def _real_positions(batch: Batch, anatomy: Anatomy) -> tuple[int, Int[Tensor, " position"] | None, Positions]:
    """Rows of a flattened tensor; which of them are real tokens, None for all; and where those come from."""
    length = anatomy.n_positions if batch.ids is None else batch.ids.shape[1]
    shape, device = (len(batch.documents), length), batch.documents.device
    real = torch.ones(shape, dtype=torch.bool, device=device) if batch.mask is None else batch.mask.bool()
    rows, columns = real.nonzero(as_tuple=True)
    positions = Positions(
        ids=None if batch.ids is None else batch.ids[rows, columns],
        columns=columns,
        documents=batch.documents[rows],
        domains=batch.domains[rows],
    )
    chosen = real.flatten().nonzero().flatten()
    return real.numel(), None if len(chosen) == real.numel() else chosen, positions
