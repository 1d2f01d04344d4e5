"""Running out of memory: the same batches again, in halves."""

import gc
from collections.abc import Callable, Sequence

import torch
from accelerate.utils.memory import should_reduce_batch_size

from lesion.engine.batch_work import BatchWork
from lesion.engine.state import SweepState
from lesion.errors import MemoryShortError

Batches = Sequence[Sequence[int]]


def run_halving(batches: Batches, run: Callable[[Batches], list[BatchWork]], state: SweepState) -> None:
    """Runs batches and adds them to the state; where memory runs out, runs all of them again in halves.

    A batch that was halved may differ from a whole one in the last bits of its numbers, which is why it is counted.

    Raises:
        MemoryShortError: memory runs out with single documents too.
    """
    while True:
        try:
            works = run(batches)
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        else:
            for work in works:
                work.add_to(state)
            return
        state.halved += sum(len(batch) > 1 for batch in batches)
        batches = _halves(batches, reason)
        _give_back()


def _halves(batches: Batches, reason: str) -> Batches:
    halves = [half for batch in batches for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]) if half]
    if len(halves) == len(batches):
        raise MemoryShortError(
            f"memory ran out with one document at a time ({reason}); "
            "give a shorter --context, fewer variants in one run (layers, interventions, scopes, kinds), or --stream"
        )
    return halves


def _give_back() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
