"""Statistics of activations inside blocks, gathered while lanes walk: each sees a tensor once, where it passes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
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
            and its `repr` says what it is.
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


def refuse_unwatchable(watches: Iterable[Watch], anatomy: Anatomy, lanes: Sequence[LaidOut]) -> None:
    """Raises InputError for a watch through which nothing would pass, or not every token once."""
    for watch in watches:
        if not 0 <= watch.lane < len(lanes):
            raise InputError(f"{watch}: there is no lane {watch.lane}; the sweep has lanes 0 to {len(lanes) - 1}")
        if not 0 <= watch.block < anatomy.n_layers:
            raise InputError(f"{watch}: the model has blocks 0 to {anatomy.n_layers - 1}")
        lane = lanes[watch.lane]
        if lane.order.count(watch.block) != 1:
            raise InputError(
                f"{watch}: lane {lane.name} runs that block {lane.order.count(watch.block)} times, not once"
            )
        module = module_of(watch, anatomy)
        experts = anatomy.family.experts
        if experts and (watch.module == experts or watch.module.startswith(f"{experts}.")):
            raise InputError(
                f"{watch} cannot be watched: it is spread over experts, to which each token is sent or not"
            )
        if type(module).forward is nn.Module.forward:
            raise InputError(f"{watch} cannot be watched: {type(module).__name__} is never called as a whole")


def module_of(watch: Watch, anatomy: Anatomy) -> nn.Module:
    """The module that is watched.

    Raises:
        InputError: there is none at that path.
    """
    try:
        return anatomy.blocks[watch.block].get_submodule(watch.module)
    except AttributeError:
        raise InputError(
            f"{watch} cannot be watched: blocks of {anatomy.family.model_type} have no such part"
        ) from None


class Watching:
    """What the watches of one batch have seen.

    All real tokens count, also those that no metric counts (the last of a document has no target, and yet an
    activation); padding never does. Of an image all positions count.

    Attributes:
        found: a statistic for each watch that has fired, by its index.
    """

    def __init__(self, anatomy: Anatomy, lanes: Sequence[LaidOut], watches: Sequence[Watch], batch: Batch) -> None:
        self._anatomy, self._lanes, self._watches = anatomy, lanes, watches
        self._seen: set[int] = set()
        self.found: dict[int, Statistic] = {}
        if watches:
            self._real, self._positions = _real_positions(batch, anatomy)
            self._padded = len(self._positions.columns) < len(self._real)

    def hooks(self, stack: Sequence[int], block: int, step: int) -> list[Hook]:
        """Those that look at the lanes of a stack, which are about to run a block.

        A lane that has not forked yet is seen in the clean one. Where the clean lane walks more than once a batch, the
        first walk is looked at.
        """
        hooks = []
        for index, watch in enumerate(self._watches):
            lane = watch.lane if self._lanes[watch.lane].fork <= step else 0
            if watch.block == block and lane in stack and index not in self._seen:
                look = partial(self._look, index, stack.index(lane), len(stack))
                hooks.append(Hook(module_of(watch, self._anatomy), watch.side, look, str(watch)))
        return hooks

    def absorb(self, later: "Watching") -> None:
        """Takes over what a later batch has seen, so that a block's statistics are held once, not once a batch."""
        for index, statistic in later.found.items():
            self._add(index, statistic)
        later.found = {}

    def add_to(self, statistics: Sequence[Statistic]) -> None:
        """Adds the whole batch to statistics in the order of the watches."""
        missing = [str(watch) for index, watch in enumerate(self._watches) if index not in self._seen]
        assert not missing, missing  # `refuse_unwatchable` and the rule of hooks come before it
        for index, statistic in self.found.items():
            statistics[index].merge(statistic)

    def _add(self, index: int, statistic: Statistic) -> None:
        if index in self.found:
            self.found[index].merge(statistic)
        else:
            self.found[index] = statistic

    def _look(self, index: int, place: int, lanes: int, stacked: Tensor) -> Tensor:
        watch = self._watches[index]
        size = stacked.shape[0] // lanes
        values = self._rows(watch, stacked[place * size : (place + 1) * size])
        if index in self._seen:
            raise ModelError(f"the {watch} passes more than once a batch; it cannot be watched")
        if not torch.isfinite(values.sum(dtype=torch.float32)) and not torch.isfinite(values).all():
            self._refuse_non_finite(watch, values)
        statistic = watch.statistic()
        statistic.update(values, self._positions)
        self._seen.add(index)
        self._add(index, statistic)
        return stacked

    def _rows(self, watch: Watch, own: Tensor) -> Float[Tensor, "position width"]:
        """The rows of real tokens, of a tensor of sequences x tokens, which some families flatten (OPT's fc2)."""
        flat = own.reshape(-1, own.shape[-1])
        if len(flat) != len(self._real):
            raise ModelError(
                f"the {watch} is a tensor of shape {tuple(own.shape)}, which is no row for each of {len(self._real)} "
                "tokens; it cannot be watched"
            )
        return flat[self._real] if self._padded else flat

    def _refuse_non_finite(self, watch: Watch, values: Float[Tensor, "position width"]) -> None:
        row, coordinate = (~torch.isfinite(values)).nonzero()[0].tolist()
        raise NonFiniteError(
            f"the {watch} is not finite: coordinate {coordinate} is {values[row, coordinate].item()} at token "
            f"{int(self._positions.columns[row])} of document {int(self._positions.documents[row])} "
            f"(lane {self._lanes[watch.lane].name})"
        )


def _real_positions(batch: Batch, anatomy: Anatomy) -> tuple[Bool[Tensor, " row"], Positions]:
    """Which rows of a flattened tensor are real tokens, and where those come from."""
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
    return real.flatten(), positions
