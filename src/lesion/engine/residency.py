"""Which blocks' weights are in memory: those in use, and the next one on its way."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from lesion.anatomy import Anatomy
from lesion.anatomy.streaming import StreamedBlocks
from lesion.interventions.hooks import forwards_replaced

IN_USE = 2
"""Blocks held beside the one that is being fetched: a swap at one step needs two."""


class Residency:
    """Loads blocks for a sequence of visits known beforehand, one ahead, and lets go of those not needed soon."""

    def __init__(self, blocks: StreamedBlocks, visited: Sequence[int]) -> None:
        self._blocks, self._visited = blocks, visited
        self._held: set[int] = set()
        self._coming: tuple[int, Future[None]] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-block")

    def __enter__(self) -> "Residency":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for what is on its way, and releases everything."""
        self._thread.shutdown(wait=True)
        held = self._held | ({self._coming[0]} if self._coming else set())
        for block in held:
            self._blocks.release(block)

    def use(self, visit: int) -> None:
        """Has the block of a visit in memory, and sends for the next one that is not.

        Raises:
            ModelError: its weights could not be read, or are not finite.
        """
        block = self._visited[visit]
        if block not in self._held:
            if self._coming is None or self._coming[0] != block:
                self._fetch(block)
            assert self._coming is not None
            self._coming[1].result()
            self._held.add(block)
            self._coming = None
        self._let_go(visit)
        following = next((later for later in self._visited[visit + 1 :] if later not in self._held), None)
        if following is not None and self._coming is None:
            self._fetch(following)

    def _fetch(self, block: int) -> None:
        if self._coming is not None:  # sent for, but another one is needed first
            other, future = self._coming
            future.result()
            self._blocks.release(other)
        self._coming = (block, self._thread.submit(self._blocks.load, block))

    def _let_go(self, visit: int) -> None:
        """Keeps the blocks that are needed soonest, this visit's among them."""
        later = list(self._visited[visit:])
        last = len(later)
        due = sorted(self._held, key=lambda block: later.index(block) if block in later else last)
        for place, block in enumerate(due):
            if place >= IN_USE or block not in later:
                self._blocks.release(block)
                self._held.discard(block)


@contextlib.contextmanager
def on_demand(anatomy: Anatomy, blocks: StreamedBlocks | None) -> Iterator[None]:
    """Lets a model whose blocks are on disk run as any other: each block is loaded when it is called, and then goes.

    Args:
        blocks: None for a model in memory, which runs as it is.
    """
    if blocks is None:
        yield
        return
    held: list[int] = []

    def let_go() -> None:
        while held:
            blocks.release(held.pop())

    def forward_of(layer: int, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*arguments: Any, **keywords: Any) -> Any:
            if held != [layer]:
                let_go()
                blocks.load(layer)
                held.append(layer)
            return original(*arguments, **keywords)

        return forward

    replaced = {block: forward_of(layer, block.forward) for layer, block in enumerate(anatomy.blocks)}
    try:
        with forwards_replaced(replaced):
            yield
    finally:
        let_go()
