"""The plan of a sweep: which documents go together, in which order, fixed before the first forward pass."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from lesion.anatomy import Anatomy
from lesion.data import plan_batches

STACK_TOKENS = {"cpu": 1024, "cuda": 65536}
"""Most tokens in one call of a block: on two CPU cores a token costs more beyond it (`benchmarks/stacking.py`)."""
CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
"""Most bytes of float32 logits at a time: on a CPU they should stay near its caches."""
LANE_BYTES = {"cpu": 1 << 30, "cuda": 16 << 30}
"""Most bytes of residual streams of lanes that are alive at a time."""
SHARD_OPERATIONS = {"cpu": 5e11, "cuda": 5e15}
"""A shard is closed at about this many operations, half a minute of work: what an interrupted run can lose."""


@dataclass(frozen=True)
class Plan:
    """How a sweep runs; the same plan gives the same numbers.

    Attributes:
        shards: batches of document indices, grouped into the units of resuming.
        groups: lanes that are alive together, the clean one (0) apart.
        stack_tokens: most tokens in one call of a block.
        chunk: positions whose logits exist at a time.
    """

    shards: list[list[list[int]]]
    groups: list[list[int]]
    stack_tokens: int
    chunk: int

    def fingerprint(self) -> str:
        """SHA-256 of the plan."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def shape(self) -> dict[str, int]:
        """The plan in a few numbers, for a manifest."""
        return {
            "n_shards": len(self.shards),
            "n_batches": sum(len(shard) for shard in self.shards),
            "n_groups": len(self.groups),
            "stack_tokens": self.stack_tokens,
            "chunk_positions": self.chunk,
        }


def make_plan(
    anatomy: Anatomy,
    lengths: Sequence[int],
    n_lanes: int,
    *,
    batch_size: int | None = None,
    stack_tokens: int | None = None,
) -> Plan:
    """Lays out a sweep.

    Args:
        lengths: tokens of each document (any number for an image: its tokens are the model's positions).
        n_lanes: lanes beside the clean one.
        batch_size: documents in a batch; None fills batches up to half of `stack_tokens`, so that at least two lanes
            go in a call.
        stack_tokens: None takes the measured value of the device's kind.
    """
    if anatomy.objective == "image":
        lengths = [anatomy.n_positions] * len(lengths)
    kind = anatomy.device.type
    stack = stack_tokens or STACK_TOKENS.get(kind, STACK_TOKENS["cpu"])
    widest = max(lengths)
    tokens = max(widest, stack // 2) if batch_size is None else batch_size * widest
    batches = plan_batches(lengths, max_tokens=tokens, max_documents=batch_size)
    stream_bytes = tokens * anatomy.d_model * anatomy.dtype.itemsize
    alive = max(1, LANE_BYTES.get(kind, LANE_BYTES["cpu"]) // stream_bytes - 1)
    return Plan(
        shards=_shards(batches, lengths, most=_shard_tokens(anatomy, n_lanes)),
        groups=[list(range(start, min(start + alive, n_lanes + 1))) for start in range(1, n_lanes + 1, alive)],
        stack_tokens=stack,
        chunk=max(32, CHUNK_BYTES.get(kind, CHUNK_BYTES["cpu"]) // (4 * anatomy.vocabulary)),
    )


def _shard_tokens(anatomy: Anatomy, n_lanes: int) -> int:
    """Tokens that fill a shard: one costs two operations a parameter in each lane, and lanes live half the depth."""
    parameters = sum(parameter.numel() for parameter in anatomy.model.parameters())
    operations = SHARD_OPERATIONS.get(anatomy.device.type, SHARD_OPERATIONS["cpu"])
    return int(operations / (2 * parameters * (1 + n_lanes / 2)))


def _shards(batches: list[list[int]], lengths: Sequence[int], *, most: int) -> list[list[list[int]]]:
    shards: list[list[list[int]]] = [[]]
    tokens = 0
    for batch in batches:
        if shards[-1] and tokens >= most:
            shards.append([])
            tokens = 0
        shards[-1].append([int(document) for document in batch])
        tokens += sum(int(lengths[document]) for document in batch)
    return shards
