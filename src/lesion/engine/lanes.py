"""Lanes: variants of the forward pass that walk through the blocks together, sharing what they have in common."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lesion.anatomy import Anatomy
from lesion.engine.skeleton import Call
from lesion.engine.watching import Watching
from lesion.interventions.hooks import Hook, Operator, hooked
from lesion.interventions.intervention import ActivationEdit, Intervention, Order, combine, hidden_of
from lesion.interventions.rewriting import Rewriting
from lesion.interventions.weights import OUTSIDE, WeightEdit


@dataclass(frozen=True)
class Lane:
    """One variant of the forward pass, laid out for a model of known depth.

    Attributes:
        name: of its intervention; the clean lane's is `clean`.
        order: the block that runs at each step, None to pass.
        edits: changes of activations, by block.
        fork: the first step at which it differs from the clean lane; the number of blocks if it never does.
        weights: weights that are set, those of the clean lane first.
        enters: whether its residual stream differs before block 0 already, because embeddings do.
    """

    name: str
    order: Order
    edits: dict[int, tuple[ActivationEdit, ...]]
    fork: int
    weights: tuple[WeightEdit, ...] = ()
    enters: bool = False

    def weights_at(self, layer: int) -> tuple[WeightEdit, ...]:
        """The edits of weights that reach a block, or with `OUTSIDE` what is in none."""
        return tuple(edit for edit in self.weights if edit.touches(layer))


def lay_out(interventions: Sequence[Intervention], n_layers: int, *, base: Intervention | None = None) -> list[Lane]:
    """The clean lane (the model under `base`, or as it is) and one lane an intervention on top of it.

    Raises:
        InterventionError: an intervention names a block that is not there.
    """
    clean = _lane("clean", base or Intervention("clean"), n_layers, None)
    lanes = [clean]
    for intervention in interventions:
        whole = combine([base, intervention]) if base else intervention
        lanes.append(_lane(intervention.name, whole, n_layers, clean))
    return lanes


def _lane(name: str, intervention: Intervention, n_layers: int, clean: Lane | None) -> Lane:
    order = intervention.order(n_layers)
    edits = {layer: found for layer in range(n_layers) if (found := intervention.edits_of(layer))}
    lane = Lane(name, order, edits, n_layers, intervention.weights)
    if clean is None:
        return lane
    if lane.weights_at(OUTSIDE) != clean.weights_at(OUTSIDE):
        return replace(lane, fork=0, enters=True)
    return replace(lane, fork=_fork(clean, lane))


def _fork(clean: Lane, lane: Lane) -> int:
    for step, (ours, theirs) in enumerate(zip(lane.order, clean.order, strict=True)):
        if ours != theirs:
            return step
        if ours is None:
            continue
        if lane.edits.get(ours) != clean.edits.get(ours) or lane.weights_at(ours) != clean.weights_at(ours):
            return step
    return len(lane.order)


@dataclass(frozen=True)
class Visit:
    """One block at one step of a walk.

    Attributes:
        forks: lanes that leave the clean one here, before anything runs.
        runs: lanes that run the block.
    """

    step: int
    block: int
    forks: tuple[int, ...]
    runs: tuple[int, ...]


def visits(lanes: Sequence[Lane], n_layers: int, group: Sequence[int]) -> list[Visit]:
    """The walk of the clean lane and the lanes of `group`: their steps, and at each the blocks that run, ascending.

    A lane lives from its fork on; one that enters with a stream of its own has none. A block that none of them runs at
    a step is not visited there.
    """
    found: list[Visit] = []
    waiting = sorted((index for index in group if not lanes[index].enters), key=lambda index: lanes[index].fork)
    for step in range(n_layers):
        running: dict[int, list[int]] = {}
        for index in [0, *sorted(group)]:
            block = lanes[index].order[step]
            if block is not None and (index == 0 or lanes[index].fork <= step):
                running.setdefault(block, []).append(index)
        for block in sorted(running):
            forks = tuple(index for index in waiting if lanes[index].fork <= step)
            waiting = waiting[len(forks) :]
            found.append(Visit(step, block, forks, tuple(running[block])))
    return found


Streams = dict[int, Float[Tensor, "batch token d_model"]]
"""The residual stream of each lane that is alive, by the lane's index."""


@dataclass
class Walk:
    """Walks lanes through the blocks.

    Attributes:
        stack_tokens: most tokens in one call of a block, unless a single lane has more.
        on_broken: called with a lane's index and the step at which its residual stream stopped being finite.
        changed: indices of lanes whose own edits (those that the clean lane has not) have changed a tensor.
        watching: looks at activations on the way; None where nobody asked for them.
        rewriting: makes the weights of lanes that have other ones; None where no lane has.
    """

    anatomy: Anatomy
    lanes: Sequence[Lane]
    stack_tokens: int
    on_broken: Callable[[int, int], None]
    changed: set[int] = field(default_factory=set)
    watching: Watching | None = None
    rewriting: Rewriting | None = None

    def run(
        self,
        stream: Float[Tensor, "batch token d_model"],
        calls: Sequence[Call],
        group: Sequence[int],
        *,
        entering: Streams | None = None,
    ) -> Streams:
        """Advances the clean lane (index 0) and the lanes of `group` through all blocks.

        A lane lives from its fork on; before it, the clean lane's stream is its own.

        Args:
            stream: what reaches block 0 in the clean lane.
            entering: the same in the lanes that enter with a stream of their own.

        Returns:
            The stream after the last block of the clean lane and of each lane of the group.
        """
        streams: Streams = {0: stream, **{index: own for index, own in (entering or {}).items() if index in group}}
        for visit in visits(self.lanes, self.anatomy.n_layers, group):
            self.visit(streams, visit, calls[visit.block])
        return self.ended(streams, group)

    def visit(self, streams: Streams, visit: Visit, call: Call) -> None:
        """Advances the lanes of one visit; visits come in the order that `visits` gives."""
        for index in visit.forks:
            streams[index] = streams[0]
        first = streams[visit.runs[0]]
        for weights, indices in self._by_weights(visit):
            with self.rewriting.replaced(weights, visit.block) if self.rewriting else contextlib.nullcontext():
                for stack in self._stacks(indices, first.shape[0] * first.shape[1]):
                    self._advance(streams, stack, visit, call)

    def _by_weights(self, visit: Visit) -> list[tuple[tuple[WeightEdit, ...], list[int]]]:
        """Lanes that run a block with the same weights, together."""
        found: dict[tuple[WeightEdit, ...], list[int]] = {}
        for index in visit.runs:
            found.setdefault(self.lanes[index].weights_at(visit.block), []).append(index)
        return list(found.items())

    def ended(self, streams: Streams, group: Sequence[int]) -> Streams:
        """The streams after the last visit; lanes that never differed have the clean one's."""
        return streams | {index: streams[0] for index in group if index not in streams}

    def _stacks(self, indices: Sequence[int], tokens: int) -> Iterator[Sequence[int]]:
        size = max(1, self.stack_tokens // tokens)
        for start in range(0, len(indices), size):
            yield indices[start : start + size]

    def _advance(self, streams: Streams, stack: Sequence[int], visit: Visit, call: Call) -> None:
        rows = torch.cat([streams[index] for index in stack]) if len(stack) > 1 else streams[stack[0]]
        grown = call.grown(len(stack))
        module = self.anatomy.blocks[visit.block]
        hooks = self._hooks(stack, visit)
        if hooks:
            with hooked(hooks):
                output = hidden_of(module(rows, *grown.arguments, **grown.keywords))
        else:
            output = hidden_of(module(rows, *grown.arguments, **grown.keywords))
        whole = bool(torch.isfinite(output.sum(dtype=torch.float32)))
        for index, part in zip(stack, output.chunk(len(stack)), strict=True):
            streams[index] = part
            if not whole and not torch.isfinite(part).all():
                self.on_broken(index, visit.step)

    def _hooks(self, stack: Sequence[int], visit: Visit) -> list[Hook]:
        edits = [
            Hook(*self.anatomy.site(visit.block, edit.site), self._on_rows(edit, index, place, len(stack)), edit.label)
            for place, index in enumerate(stack)
            for edit in self.lanes[index].edits.get(visit.block, ())
        ]
        return edits + (self.watching.hooks(stack, visit.block, visit.step) if self.watching else [])

    def _on_rows(self, edit: ActivationEdit, index: int, place: int, lanes: int) -> Operator:
        """The operator on one lane's rows of a stacked tensor, whose first axis holds the lanes in equal parts.

        (That axis is sequences, or sequences x tokens where a family flattens them.)
        """
        own = edit not in self.lanes[0].edits.get(edit.layer, ())

        def operator(stacked: Tensor) -> Tensor:
            size = stacked.shape[0] // lanes
            rows = stacked[place * size : (place + 1) * size]
            edited = edit.operator(rows)
            if own and index not in self.changed and not torch.equal(edited, rows):
                self.changed.add(index)
            if lanes == 1:
                return edited
            stacked = stacked.clone()
            stacked[place * size : (place + 1) * size] = edited
            return stacked

        return operator
