"""How a shard is run: batch by batch with the whole model in memory, or block by block with its weights on disk."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch

from lesion.anatomy.placement import room_for_hidden_states
from lesion.anatomy.streaming import StreamedBlocks
from lesion.engine.batch_work import BatchWork, Bench
from lesion.engine.halving import Batches, run_halving
from lesion.engine.hidden import HiddenStates, hidden_states
from lesion.engine.lanes import visits
from lesion.engine.memory import give_back
from lesion.engine.residency import Residency
from lesion.engine.state import SweepState

Advance = Callable[[int], None]
"""Told the tokens of a shard that are done so far."""


@runtime_checkable
class Runner(Protocol):
    """Runs the batches of one shard and adds them to a state."""

    bench: Bench

    def run(self, batches: Batches, state: SweepState, advance: Advance) -> None: ...


def make_runner(bench: Bench, blocks: StreamedBlocks | None, max_memory: int | None) -> Runner:
    """The runner for a model: in memory, or block by block where it was opened so.

    Raises:
        ModelError: `max_memory` is too little for the model block by block.
    """
    if blocks is None:
        return MemoryRunner(bench)
    need = blocks.need
    if bench.rewriting:
        bench.rewriting.keep_nothing()
        need = replace(need, rest=need.rest + max(need.blocks))  # the edited copy of a block
    return StreamedRunner(bench, blocks, memory=room_for_hidden_states(need, max_memory))


class MemoryRunner:
    """All blocks are in memory: one batch after the other walks through all of them."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    @torch.inference_mode()
    def run(self, batches: Batches, state: SweepState, advance: Advance) -> None:
        done = 0
        for batch in batches:
            run_halving([batch], lambda parts: [self._work(part) for part in parts], state)
            done += self.bench.tokens(batch)
            advance(done)
        state.n_set = self.bench.own_weights()

    def _work(self, documents: Sequence[int]) -> BatchWork:
        work = BatchWork(self.bench, documents)
        stream, calls, entering = self.bench.enter(work.batch)
        for number, group in enumerate(self.bench.groups):
            work.measure(work.walk.run(stream, calls, group, entering=entering), group=number)
        return work


class StreamedRunner:
    """Blocks come from disk: each one is loaded once a shard, and advances all batches and lanes before it goes.

    Calls are the same as with the model in memory, in another order, and so the numbers are the same.

    Attributes:
        memory: bytes that hidden states may take in host memory; more go to a memory-mapped file.
    """

    def __init__(self, bench: Bench, blocks: StreamedBlocks, *, memory: int) -> None:
        self.bench, self._blocks, self.memory = bench, blocks, memory
        depth = bench.anatomy.n_layers
        self._visits = [{(v.step, v.block): v for v in visits(bench.lanes, depth, group)} for group in bench.groups]

    @torch.inference_mode()
    def run(self, batches: Batches, state: SweepState, advance: Advance) -> None:
        total = sum(self.bench.tokens(batch) for batch in batches)
        before = self._blocks.bytes_read

        def run(parts: Batches) -> list[BatchWork]:
            return self._works(parts, lambda share: advance(int(total * share)))

        run_halving(batches, run, state)
        state.n_set = self.bench.own_weights()
        state.bytes_read += self._blocks.bytes_read - before
        self._blocks.refuse_changed_files()
        advance(total)

    def _works(self, batches: Batches, advance: Callable[[float], None]) -> list[BatchWork]:
        works = [BatchWork(self.bench, documents) for documents in batches]
        with hidden_states(self.bench, works, memory=self.memory) as hidden:
            self._enter(works, hidden)
            keys = sorted(set().union(*self._visits))
            with Residency(self._blocks, [block for _, block in keys]) as residency:
                for number, key in enumerate(keys):
                    residency.use(number)
                    self._visit(works, hidden, key)
                    give_back()
                    advance((number + 1) / (len(keys) + 1))
            for work, places in zip(works, self._places(works), strict=True):
                for group, place in enumerate(places):
                    streams = work.walk.ended(hidden.take(place, hidden.alive(place)), self.bench.groups[group])
                    work.measure(streams, group=group)
        return works

    def _places(self, works: Sequence[BatchWork]) -> list[list[int]]:
        """A number for each batch and group, under which its streams are kept."""
        groups = len(self.bench.groups)
        return [list(range(number * groups, (number + 1) * groups)) for number in range(len(works))]

    def _enter(self, works: Sequence[BatchWork], hidden: HiddenStates) -> None:
        for work, places in zip(works, self._places(works), strict=True):
            stream, _, entering = self.bench.enter(work.batch)
            for place, group in zip(places, self.bench.groups, strict=True):
                hidden.put(place, {0: stream, **{index: own for index, own in entering.items() if index in group}})

    def _visit(self, works: Sequence[BatchWork], hidden: HiddenStates, key: tuple[int, int]) -> None:
        """Arguments of a block are asked for anew: a skeleton's forward is cheap, masks of all batches are not."""
        for work, places in zip(works, self._places(works), strict=True):
            _, calls = self.bench.skeleton.enter(work.batch)
            for place, own in zip(places, self._visits, strict=True):
                if visit := own.get(key):
                    started = set(visit.runs) - set(visit.forks)
                    streams = hidden.take(place, started | ({0} if visit.forks else set()))
                    work.walk.visit(streams, visit, calls[visit.block])
                    hidden.put(place, {index: streams[index] for index in {*visit.forks, *visit.runs}})
            if work is not works[0]:
                works[0].watching.absorb(work.watching)
