"""Whether a model's weights are held in memory or come from disk block by block."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from lesion.errors import ModelError

SHARE = 0.8
"""Of the free memory that weights may take: the rest is for hidden states, logits and everything else."""
HELD = 3
"""Blocks that are held when they come from disk: two in use, and the next one on its way."""
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Need:
    """What a model's weights need, in bytes in the type that they are computed in."""

    blocks: tuple[int, ...]
    rest: int

    @property
    def whole(self) -> int:
        return sum(self.blocks) + self.rest

    @property
    def streamed(self) -> int:
        """Everything but the blocks, and the largest of those that are held at a time."""
        return self.rest + HELD * max(self.blocks)


def fits(need: int, device: torch.device, max_memory: int | None) -> bool:
    """Whether the whole model has room where it is to run."""
    if max_memory is not None and need > SHARE * max_memory:
        return False
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return need <= SHARE * free
    return max_memory is not None or need <= SHARE * free_memory()


def room_for_hidden_states(need: Need, max_memory: int | None) -> int:
    """Bytes of host memory that hidden states may take beside a streamed model; beyond it they go to a file.

    Raises:
        ModelError: the model does not fit into `max_memory` block by block either.
    """
    if max_memory is None:
        return free_memory() // 2
    if need.streamed > max_memory:
        raise ModelError(
            f"--max-memory {amount(max_memory)} is too little, also block by block: embeddings and head take "
            f"{amount(need.rest)}, and {HELD} blocks of up to {amount(max(need.blocks))} are held at a time; "
            f"give at least {amount(need.streamed)}"
        )
    return max_memory - need.streamed


def free_memory() -> int:
    """Bytes of host memory that this process may still take; limits of a container count."""
    free = int(psutil.virtual_memory().available)
    used = int(psutil.Process().memory_info().rss)
    return min([free, *(limit - used for limit in _limits(CGROUP_LIMITS))])


def _limits(paths: Iterable[str]) -> list[int]:
    found = [Path(path).read_text().strip() for path in paths if Path(path).is_file()]
    return [int(limit) for limit in found if limit.isdecimal() and int(limit) < 2**60]


def amount(size: int) -> str:
    """Bytes as they are written on the command line, rounded up to a tenth: `1.4GB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if size >= unit:
            return f"{-(-size * 10 // unit) / 10:g}{name}"
    return f"{-(-size * 10 // 1000) / 10:g}KB"
