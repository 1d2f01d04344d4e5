"""Where residual streams wait between two blocks: in host memory, or in a memory-mapped file."""

import contextlib
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lesion.engine.batch_work import BatchWork, Bench
from lesion.engine.lanes import Streams


@contextlib.contextmanager
def hidden_states(bench: Bench, works: Sequence[BatchWork], *, memory: int) -> Iterator["HiddenStates"]:
    """Room for the streams of all lanes of some batches: in host memory if `memory` bytes suffice, else in a file."""
    slots = []
    for work in works:
        width = bench.anatomy.n_positions if work.batch.ids is None else work.batch.ids.shape[1]
        size = work.batch.keep.shape[0] * width * bench.anatomy.d_model * bench.anatomy.dtype.itemsize
        slots += [[(index, size) for index in [0, *group]] for group in bench.groups]
    states = HiddenStates(slots, bench.anatomy.dtype, bench.anatomy.device)
    with contextlib.ExitStack() as stack:
        if states.size > memory:  # a file without a name goes when the process does
            states.open(stack.enter_context(tempfile.TemporaryFile()).fileno())
        else:
            states.open()
        stack.callback(states.close)
        yield states


class HiddenStates:
    """Streams by the number of their batch and group. Each lane of each batch has pages of its own.

    They are pages of the system, not of the allocator: kept tensors between large ones that come and go would leave
    its pool in pieces.

    Attributes:
        size: bytes in all.
    """

    def __init__(self, slots: Sequence[Sequence[tuple[int, int]]], dtype: torch.dtype, device: torch.device) -> None:
        """Lays out room: for each place the lanes, and the bytes of one."""
        self._dtype, self._device = dtype, device
        self._shapes: dict[tuple[int, int], torch.Size] = {}
        self._at: dict[tuple[int, int], tuple[int, int]] = {}
        self.size = 0
        for place, lanes in enumerate(slots):
            for index, size in lanes:
                self._at[place, index] = (self.size, size)
                self.size += _pages(size)

    def open(self, file: int = -1) -> None:
        """Takes the room: in memory, or in an open file."""
        self._in_file = file >= 0
        if self._in_file:
            os.truncate(file, self.size)
        kind = mmap.MAP_SHARED if self._in_file else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(file, self.size, flags=kind)

    def close(self) -> None:
        with contextlib.suppress(BufferError):  # an exception's tensors may still look into it; it goes with them
            self._map.close()

    def alive(self, place: int) -> set[int]:
        """The lanes of a place that have a stream."""
        return {index for at, index in self._shapes if at == place}

    def put(self, place: int, streams: Streams) -> None:
        """Keeps some lanes' streams."""
        for index, stream in streams.items():
            start, size = self._at[place, index]
            assert stream.nbytes <= size  # the shape that the batch has everywhere
            self._shapes[place, index] = stream.shape
            self._window(start, stream.nbytes).copy_(stream.contiguous().cpu().flatten().view(torch.uint8))
            if self._in_file:
                self._map.madvise(mmap.MADV_DONTNEED, start, _pages(size))

    def take(self, place: int, lanes: set[int]) -> Streams:
        """Copies of some lanes' streams, on the model's device."""
        streams: Streams = {}
        for index in lanes:
            shape = self._shapes[place, index]
            stored = self._window(self._at[place, index][0], shape.numel() * self._dtype.itemsize)
            streams[index] = stored.view(self._dtype).reshape(shape).to(self._device, copy=True)
            if self._in_file:
                self._map.madvise(mmap.MADV_DONTNEED, self._at[place, index][0], _pages(self._at[place, index][1]))
        return streams

    def _window(self, start: int, size: int) -> Tensor:
        return torch.frombuffer(self._map, dtype=torch.uint8, count=size, offset=start)


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
