"""Where residual streams wait between two blocks: in host memory, or in a memory-mapped file."""

import contextlib
import mmap
import tempfile
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lesion.engine.batch_work import BatchWork, Bench
from lesion.engine.lanes import Streams


@runtime_checkable
class HiddenStates(Protocol):
    """Streams by the number of their batch and group."""

    def alive(self, place: int) -> set[int]: ...
    def put(self, place: int, streams: Streams) -> None: ...
    def take(self, place: int, lanes: set[int]) -> Streams: ...


@contextlib.contextmanager
def hidden_states(bench: Bench, works: Sequence[BatchWork], *, memory: int) -> Iterator[HiddenStates]:
    """Room for the streams of all lanes of some batches: in host memory if `memory` bytes suffice, else in a file."""
    lanes = [1 + len(group) for group in bench.groups]
    sizes = [work.batch.keep.shape[0] * _width(bench, work) * _row_bytes(bench) for work in works]
    if sum(size * sum(lanes) for size in sizes) <= memory:
        yield _InMemory(bench.anatomy.device)
        return
    slots = [[(index, size) for index in [0, *group]] for size in sizes for group in bench.groups]
    with _InFile(slots, bench.anatomy.dtype, bench.anatomy.device) as file:
        yield file


def _width(bench: Bench, work: BatchWork) -> int:
    """Positions of a batch's streams: its tokens, or an image's patches and class token."""
    return bench.anatomy.n_positions if work.batch.ids is None else work.batch.ids.shape[1]


def _row_bytes(bench: Bench) -> int:
    return bench.anatomy.d_model * bench.anatomy.dtype.itemsize


class _InMemory:
    """Tensors as they are; those of a GPU move to the host, so that only one batch at a time is on it."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._streams = device, dict[int, Streams]()

    def put(self, place: int, streams: Streams) -> None:
        here = self._streams.setdefault(place, {})
        here.update({index: stream.to("cpu") for index, stream in streams.items()})

    def take(self, place: int, lanes: set[int]) -> Streams:
        return {index: self._streams[place][index].to(self._device) for index in lanes}

    def alive(self, place: int) -> set[int]:
        return set(self._streams[place])


class _InFile:
    """One file without a name, which goes when the process does; each lane of each batch has its own pages in it."""

    def __init__(self, slots: list[list[tuple[int, int]]], dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._shapes: dict[tuple[int, int], torch.Size] = {}
        self._at: dict[tuple[int, int], tuple[int, int]] = {}
        end = 0
        for place, lanes in enumerate(slots):
            for index, size in lanes:
                self._at[place, index] = (end, size)
                end += -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self._size = end

    def __enter__(self) -> "_InFile":
        self._file = tempfile.TemporaryFile()
        self._file.truncate(self._size)
        self._map = mmap.mmap(self._file.fileno(), self._size)
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(BufferError):  # tensors of a failed run may still look into it; they go with it
            self._map.close()
        self._file.close()

    def put(self, place: int, streams: Streams) -> None:
        for index, stream in streams.items():
            start, size = self._at[place, index]
            assert stream.nbytes <= size  # the plan's shape of the batch
            self._shapes[place, index] = stream.shape
            self._window(start, stream.nbytes).copy_(stream.contiguous().cpu().flatten().view(torch.uint8))
            self._map.madvise(mmap.MADV_DONTNEED, start, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)

    def take(self, place: int, lanes: set[int]) -> Streams:
        streams: Streams = {}
        for index in lanes:
            shape = self._shapes[place, index]
            stored = self._window(self._at[place, index][0], shape.numel() * self._dtype.itemsize)
            streams[index] = stored.view(self._dtype).reshape(shape).to(self._device, copy=True)
        return streams

    def alive(self, place: int) -> set[int]:
        return {index for at, index in self._shapes if at == place}

    def _window(self, start: int, size: int) -> Tensor:
        return torch.frombuffer(self._map, dtype=torch.uint8, count=size, offset=start)
