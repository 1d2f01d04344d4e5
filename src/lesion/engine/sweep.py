"""A sweep: every lane over every batch of the data, shard by shard, merged in the order of the shards."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from lesion.engine.batch_work import Bench
from lesion.engine.lanes import Lane
from lesion.engine.maker import Maker
from lesion.engine.runners import MemoryRunner, Runner
from lesion.engine.state import Progress, SweepState, load_state, save_state
from lesion.errors import InterventionError, LesionError
from lesion.results import ShardStore

Done = Callable[[int, SweepState], None]
"""Told of each shard that is done, in whatever order."""
Advance = Callable[[int], None]
"""Told how many tokens more are done."""


@runtime_checkable
class Executor(Protocol):
    """Runs shards, here or elsewhere."""

    def run(self, shards: Sequence[int], done: Done, advance: Advance) -> dict[int, str]:
        """Runs the shards of these indices.

        Returns:
            Those that could not be run, and why.
        """
        ...


class Here:
    """Runs shards in this process, one after the other."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def run(self, shards: Sequence[int], done: Done, advance: Advance) -> dict[int, str]:
        bench = self._runner.bench
        maker = Maker.here(bench.anatomy.device)
        for index in shards:
            state = bench.empty_state()
            state.made_by = {maker}
            before = 0

            def told(tokens: int) -> None:
                nonlocal before
                advance(tokens - before)
                before = tokens

            self._runner.run(bench.plan.shards[index], state, told)
            done(index, state)
        return {}


def sweep(
    bench: Bench,
    *,
    store: ShardStore | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> SweepState:
    """Runs all lanes over all data; shards that `store` already holds are not run again.

    Args:
        bench: model, data, lanes (the clean lane first, `lesion.engine.lay_out`) and plan.
        executor: None runs everything here, with the model in memory.

    Returns:
        The merged state, in the order of the shards, whatever was resumed and whoever ran it.

    Raises:
        NonFiniteError: the clean lane itself stopped being finite.
        InterventionError: an edit changed a tensor and yet nothing came out differently.
        LesionError: no shard at all could be run.
    """
    states: dict[int, SweepState] = {}
    sizes = [sum(bench.tokens(batch) for batch in shard) for shard in bench.plan.shards]
    tokens = 0

    def advance(more: int) -> None:
        nonlocal tokens
        tokens += more
        if progress:
            progress(tokens, sum(sizes))

    def done(index: int, state: SweepState) -> None:
        if store:
            save_state(store, index, state)
        states[index] = state

    for index in range(len(sizes)):
        kept = _kept(store, index, bench) if store else None
        if kept is not None:
            states[index] = kept
    advance(sum(sizes[index] for index in states))
    missing = [index for index in range(len(sizes)) if index not in states]
    failed = (executor or Here(MemoryRunner(bench))).run(missing, done, advance) if missing else {}
    return _merged(bench, states, failed)


def _kept(store: ShardStore, index: int, bench: Bench) -> SweepState | None:
    return load_state(store, index, bench.empty_state())


def _merged(bench: Bench, states: dict[int, SweepState], failed: dict[int, str]) -> SweepState:
    if not states:
        raise LesionError(f"none of {len(failed)} shards could be run; the first: {next(iter(failed.values()))}")
    merged = bench.empty_state()
    for index in sorted(states):
        merged.merge(states[index])
    merged.failed = dict(sorted(failed.items()))
    _refuse_idle(bench.lanes, merged)
    return merged


def _refuse_idle(lanes: Sequence[Lane], state: SweepState) -> None:
    idle = [lane.name for index, lane in enumerate(lanes) if index in state.changed and index not in state.moved]
    if idle:
        raise InterventionError(f"{', '.join(idle)}: activations were changed, and yet nothing came out differently")
