"""What a sweep will read, hold and take, from its plan and a few calls timed on this machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from lesion.anatomy.streaming import StreamedBlocks
from lesion.engine.batch_work import BatchWork, Bench
from lesion.engine.lanes import visits

REPEATS = 3
"""Timed calls of each kind, after one that is not; their median counts."""


@dataclass(frozen=True)
class Forecast:
    """A sweep before it is run.

    Attributes:
        n_lanes: variants of the forward pass, the clean one included.
        n_tokens: tokens of data.
        token_blocks: tokens that pass a block, over all blocks and lanes.
        token_heads: positions whose logits are computed, over all lanes.
        hidden_bytes: residual streams of all lanes alive at a time.
        weight_bytes_read: of blocks, from disk, over all shards; 0 with the model in memory.
        seconds: what it will take, about.
        block_microseconds: measured, a token in one block.
        head_microseconds: measured, a position in the head and the metrics.
        read_megabytes_per_second: measured where blocks come from disk, else None.
    """

    n_shards: int
    n_batches: int
    n_lanes: int
    n_tokens: int
    token_blocks: int
    token_heads: int
    hidden_bytes: int
    weight_bytes_read: int
    seconds: float
    block_microseconds: float
    head_microseconds: float
    read_megabytes_per_second: float | None


@torch.inference_mode()
def forecast(bench: Bench, blocks: StreamedBlocks | None) -> Forecast:
    """Counts the work of a plan, and times a block's call, a chunk of logits and a block's reading.

    Args:
        blocks: of a model that is streamed.
    """
    plan = bench.plan
    batches = [batch for shard in plan.shards for batch in shard]
    sizes = [_positions(bench, batch) for batch in batches]
    steps = sum(len(v.runs) for group in bench.groups for v in visits(bench.lanes, bench.anatomy.n_layers, group))
    scored = sum(len(group) for group in bench.groups) + 1
    largest = batches[sizes.index(max(sizes))]
    speed = _read_speed(blocks)
    block, head = _timed(bench, largest, blocks)
    read = 0 if blocks is None else len(plan.shards) * sum(blocks.stored_bytes(b) for b in range(len(blocks.loads)))
    token_blocks, token_heads = sum(sizes) * steps, sum(sizes) * scored
    return Forecast(
        n_shards=len(plan.shards),
        n_batches=len(batches),
        n_lanes=len(bench.lanes),
        n_tokens=sum(bench.tokens(batch) for batch in batches),
        token_blocks=token_blocks,
        token_heads=token_heads,
        hidden_bytes=_hidden_bytes(bench, streamed=blocks is not None),
        weight_bytes_read=read,
        # reading goes on beside computing, and only what it takes longer is waited for
        seconds=max(token_blocks * block, read / speed if speed else 0.0) + token_heads * head,
        block_microseconds=1e6 * block,
        head_microseconds=1e6 * head,
        read_megabytes_per_second=speed / 1e6 if speed else None,
    )


def _positions(bench: Bench, batch: list[int]) -> int:
    """Positions that a batch has in the model, padding included."""
    if bench.anatomy.objective == "image":
        return len(batch) * bench.anatomy.n_positions
    return len(batch) * max(int(bench.data.lengths[document]) for document in batch)


def _hidden_bytes(bench: Bench, *, streamed: bool) -> int:
    row = bench.anatomy.d_model * bench.anatomy.dtype.itemsize
    alive = [1 + len(group) for group in bench.groups]
    if streamed:
        return max(sum(_positions(bench, batch) for batch in shard) for shard in bench.plan.shards) * row * sum(alive)
    return max(_positions(bench, batch) for shard in bench.plan.shards for batch in shard) * row * max(alive)


def _timed(bench: Bench, batch: list[int], blocks: StreamedBlocks | None) -> tuple[float, float]:
    """Seconds of a token in a block and of a position in the head, in calls as large as the sweep's."""
    work = BatchWork(bench, batch)
    stream, calls = bench.skeleton.enter(work.batch)
    tokens = stream.shape[0] * stream.shape[1]
    copies = max(1, min(bench.plan.stack_tokens // tokens, len(bench.lanes)))
    rows, call = stream.repeat(copies, 1, 1), calls[0].grown(copies)
    if blocks:
        blocks.load(0)
    block = _median_seconds(lambda: bench.anatomy.blocks[0](rows, *call.arguments, **call.keywords), bench)
    if blocks:
        blocks.release(0)
    kept = work.batch.keep.nonzero(as_tuple=True)
    row, column = (part[: bench.plan.chunk] for part in kept)
    targets, chunk = work.batch.targets[row, column], stream[row, column]
    bench.scorer.refer(bench.skeleton.leave(chunk), targets)
    head = _median_seconds(lambda: bench.scorer.compare(bench.skeleton.leave(chunk), targets), bench)
    scored_share = len(kept[0]) / tokens
    return block / (tokens * copies), head / len(row) * scored_share


def _median_seconds(call: Callable[[], object], bench: Bench) -> float:
    call()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        if bench.anatomy.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return median(times)


def _read_speed(blocks: StreamedBlocks | None) -> float | None:
    """Bytes of weights a second, from where they are; what was read before may come from the system's cache."""
    if blocks is None:
        return None
    last = len(blocks.loads) - 1
    blocks.load(0)  # the first one is also looked through for numbers that are not finite, and starts threads
    blocks.release(0)
    started = time.perf_counter()
    blocks.load(last)
    seconds = time.perf_counter() - started
    blocks.release(last)
    return blocks.stored_bytes(last) / seconds
