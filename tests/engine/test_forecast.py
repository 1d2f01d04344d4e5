"""A forecast counts what a sweep then does."""

from pathlib import Path

import pytest
import torch

from lesion.anatomy import load
from lesion.engine import Bench, Plan, Skeleton, StreamedRunner, Walk, forecast, lay_out, sweep
from lesion.engine.lanes import Streams, Visit
from lesion.engine.skeleton import Call
from lesion.engine.sweep import Here
from lesion.interventions import Intervention, drop, drop_mlp, swap
from tests.support import Documents, token_documents

INTERVENTIONS = [drop(0), drop(2), swap(1), drop_mlp(1), Intervention("nothing")]
PLAN = Plan([[[0, 1], [2]], [[3]]], [[1, 2, 3], [4, 5]], stack_tokens=80, chunk=64)


@pytest.fixture
def bench(tiny_folder: Path) -> Bench:
    anatomy = load(tiny_folder).anatomy
    return Bench(anatomy, Documents(token_documents(97, [40, 36, 20, 33])), lay_out(INTERVENTIONS, 3), PLAN)


def test_it_counts_what_the_sweep_does(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = forecast(bench, None)
    blocks, heads = 0, 0
    visit, leave = Walk.visit, Skeleton.leave

    def counting_visit(self: Walk, streams: Streams, at: Visit, call: Call) -> None:
        nonlocal blocks
        visit(self, streams, at, call)
        blocks += sum(streams[index].shape[0] * streams[index].shape[1] for index in at.runs)

    def counting_leave(self: Skeleton, chunk: torch.Tensor) -> torch.Tensor:
        nonlocal heads
        heads += len(chunk)
        return leave(self, chunk)

    monkeypatch.setattr(Walk, "visit", counting_visit)
    monkeypatch.setattr(Skeleton, "leave", counting_leave)
    sweep(bench)
    assert (expected.n_shards, expected.n_batches, expected.n_lanes, expected.n_tokens) == (2, 3, 6, 129)
    assert blocks == expected.token_blocks
    assert 0.8 * expected.token_heads < heads <= expected.token_heads  # padding and the last token are not scored


def test_time_follows_from_what_was_timed(bench: Bench) -> None:
    found = forecast(bench, None)
    computed = found.token_blocks * found.block_microseconds + found.token_heads * found.head_microseconds
    assert found.seconds == pytest.approx(computed / 1e6)
    assert found.block_microseconds > 0
    assert found.head_microseconds > 0
    assert (found.weight_bytes_read, found.read_megabytes_per_second) == (0, None)


def test_bytes_of_a_streamed_model(tiny_folder: Path) -> None:
    model = load(tiny_folder, stream=True)
    assert model.streamed is not None
    data = Documents(token_documents(97, [40, 36, 20, 33]))
    bench = Bench(model.anatomy, data, lay_out(INTERVENTIONS, 3), PLAN)
    found = forecast(bench, model.streamed)
    before = model.streamed.bytes_read
    sweep(bench, executor=Here(StreamedRunner(bench, model.streamed, memory=1 << 30)))
    assert model.streamed.bytes_read - before == found.weight_bytes_read > 0
    assert found.read_megabytes_per_second is not None
    # two lanes' groups share the clean lane's place each: 100 positions in the first shard, 7 streams
    assert found.hidden_bytes == 100 * 7 * 32 * 4
