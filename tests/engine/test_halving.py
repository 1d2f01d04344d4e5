"""Memory that runs out: halves, counted, and an error where halves do not help."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lesion.anatomy import Anatomy, dissect
from lesion.engine import Bench, Here, MemoryRunner, Plan, SweepState, lay_out, sweep
from lesion.engine.batch_work import BatchWork
from lesion.errors import MemoryShortError
from lesion.interventions import drop
from lesion.results import ShardStore
from tests.support import Documents, tiny_model, token_documents

FULL = "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return dissect(tiny_model("llama"))


def bench_of(anatomy: Anatomy) -> Bench:
    data = Documents(token_documents(97, [40] * 7))
    plan = Plan([[[0, 1, 2, 3], [4, 5]], [[6]]], [[1, 2]], stack_tokens=256, chunk=64)
    return Bench(anatomy, data, lay_out([drop(0), drop(2)], 3), plan)


def with_room_for(most: int, monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[int]:
    """Makes batches of more than `most` documents run out of memory; returns the sizes that were tried."""
    tried: list[int] = []
    start = BatchWork.__init__

    def limited(self: BatchWork, bench: Bench, documents: Sequence[int]) -> None:
        tried.append(len(documents))
        if len(documents) > most:
            raise error
        start(self, bench, documents)

    monkeypatch.setattr(BatchWork, "__init__", limited)
    return tried


@pytest.mark.parametrize("error", [RuntimeError(FULL), MemoryError(), torch.OutOfMemoryError("CUDA out of memory. x")])
def test_a_batch_without_room_is_run_in_halves(
    anatomy: Anatomy, error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = sweep(bench_of(anatomy))
    assert whole.halved == 0
    tried = with_room_for(1, monkeypatch, error)
    store = ShardStore(tmp_path / "shards", "plan")
    state = sweep(bench_of(anatomy), store=store)
    assert tried == [4, 2, 1, 1, 1, 1, 2, 1, 1, 1]
    assert state.halved == 4
    for ours, theirs in zip(state.means, whole.means, strict=True):
        # 40 tokens a call instead of 160: another kernel's rounding in float32
        torch.testing.assert_close(ours.result().mean, theirs.result().mean, rtol=1e-5, atol=1e-6)
        assert ours.result().n_documents == 7
    tried.clear()
    assert sweep(bench_of(anatomy), store=store).halved == 4  # what was recorded is still known when resumed
    assert tried == []


def test_one_document_without_room_is_an_error(anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = with_room_for(0, monkeypatch, RuntimeError(FULL))
    with pytest.raises(MemoryShortError, match=r"one document at a time.*can't allocate"):
        sweep(bench_of(anatomy))
    assert tried == [4, 2, 1]


def test_other_errors_are_not_taken_for_it(anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = with_room_for(0, monkeypatch, RuntimeError("shapes do not match"))
    bench = bench_of(anatomy)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        Here(MemoryRunner(bench)).run([0], lambda index, state: None, lambda tokens: None)
    assert tried == [4]


def test_nothing_is_counted_twice(anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that runs out in the second half starts both halves again, and neither is in the sums twice."""
    calls = 0
    start = BatchWork.__init__

    def sometimes(self: BatchWork, bench: Bench, documents: Sequence[int]) -> None:
        nonlocal calls
        calls += 1
        if calls in (1, 3):
            raise MemoryError
        start(self, bench, documents)

    monkeypatch.setattr(BatchWork, "__init__", sometimes)
    state = SweepState.empty(3, 1)
    MemoryRunner(bench_of(anatomy)).run([[0, 1, 2, 3]], state, lambda tokens: None)
    assert state.means[0].result().n_documents == 4
