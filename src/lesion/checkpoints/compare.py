"""Zero modes: weights with the same bits in two checkpoints, found while both files stream by.

They are those that fine-tuning has not moved by as much as the stored format can show (paper `zero-modes`, §2).
"""

import contextlib
import hashlib
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lesion.checkpoints.align import Alignment, Pair, Uncompared, align
from lesion.checkpoints.components import place
from lesion.checkpoints.masks import MaskWriter, Packed
from lesion.checkpoints.opened import UNSIGNED, Bits, Checkpoint, refuse_the_same

CHUNK = 1 << 18
"""Weights looked at in one go: few enough for the processor's cache, and enough that threads seldom wait for Python."""
JOB = 1 << 22
"""Weights that a thread takes at a time; a multiple of `CHUNK`, and of 8, so that masks of jobs can be joined."""
STRETCH = 1 << 12
"""Weights whose sizes are summed in float32: few enough for the sums to be good to six digits or more."""
SMALLEST, LARGEST = 1e-30, 1e37
"""Sums of squares outside these may have lost something in float32; they are worked out again in float64."""
SERIAL = 1 << 15
"""Most numbers that torch converts in the calling thread; more would wait for a pool of threads of its own."""
SIGNED = {2: torch.int16, 4: torch.int32, 8: torch.int64}
SIGN = {2: 0x7FFF, 4: 0x7FFFFFFF, 8: 0x7FFFFFFFFFFFFFFF}
"""All bits but the sign's, by the size of the type in bytes."""
INFINITY = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00, torch.float32: 0x7F800000, torch.float64: 0x7FF << 52}
"""Infinity's bits; what is above them, the sign aside, is NaN."""


@dataclass(frozen=True)
class TensorRow:
    """A row of the table `zero_modes`, with the columns of its names.

    Attributes:
        tensor: name as stored in TUNED.
        layer: number of its block, None outside blocks.
        n_zero_modes: weights with the same bits in both.
        fraction: of all weights; NaN for a tensor without any.
        n_both_zero: weights that are 0 in both, whatever their signs.
        n_signed_zero: of these, those whose signs differ: equal as numbers, and no zero modes.
        n_nan: weights that are NaN on either side.
        dtype_base, dtype_tuned: as stored.
        compared_as: the type in which the bits were compared.
        mean_abs, rms: mean of |w| and root of the mean of w² over all weights of TUNED.
        mean_abs_zero_modes_over_matrix: mean |w| of TUNED's zero modes over that of all its weights, NaN without any.
        share_of_squares: the zero modes' share of TUNED's sum of squares.
        ulps_median, ulps_mean: how many units in the last place the changed weights of the sample moved.
        share_one_ulp: the part of them that moved by one unit, the least that can be seen.
        n_ulps: changed weights in the sample.
    """

    tensor: str
    layer: int | None
    component: str
    n_weights: int
    n_zero_modes: int
    fraction: float
    n_both_zero: int
    n_signed_zero: int
    n_nan: int
    dtype_base: str
    dtype_tuned: str
    compared_as: str
    mean_abs: float
    rms: float
    mean_abs_zero_modes_over_matrix: float
    share_of_squares: float
    ulps_median: float
    ulps_mean: float
    share_one_ulp: float
    n_ulps: int


@dataclass(frozen=True)
class UlpRow:
    """A row of the table `zero_modes_ulps`: sampled weights of a tensor that moved by a number of units.

    Attributes:
        ulps_from, ulps_to: the least and the most of them, both included; powers of two apart.
        n_ulps: weights of the sample that moved so far.
    """

    tensor: str
    layer: int | None
    component: str
    ulps_from: int
    ulps_to: int
    n_ulps: int


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints compared.

    Attributes:
        rows: one a tensor, in the order of TUNED.
        ulps: how far the sampled weights moved, by tensor; empty without a sample.
        uncompared: tensors without a counterpart, and why.
        prefix, prefixed: what stood in front of the names on one side only, and which side.
        cast: what both sides were rounded to first; None for nothing.
    """

    rows: tuple[TensorRow, ...]
    ulps: tuple[UlpRow, ...]
    uncompared: tuple[Uncompared, ...]
    prefix: str
    prefixed: str
    fingerprint_base: str
    fingerprint_tuned: str
    cast: str | None


@dataclass(frozen=True)
class Options:
    """How to compare.

    Attributes:
        cast: `bf16` rounds both sides to bfloat16 first, which makes zero modes that the files do not have.
        magnitudes: work out the sizes of the zero modes' weights, which takes longer than finding them.
        ulps: weights of each tensor in the sample of which the distances are measured.
        seed: of that sample.
    """

    cast: Literal["bf16"] | None = None
    magnitudes: bool = True
    ulps: int = 0
    seed: int = 0


@dataclass
class _Counts:
    """What is known of a piece of a tensor; pieces are added in order."""

    zero_modes: int = 0
    both_zero: int = 0
    signed_zero: int = 0
    nan: int = 0
    absolute: float = 0.0
    squares: float = 0.0
    absolute_zero_modes: float = 0.0
    squares_zero_modes: float = 0.0
    distances: list[NDArray[np.uint64]] = field(default_factory=list)
    packed: list[Packed] = field(default_factory=list)

    def add(self, other: "_Counts") -> None:
        for name, value in vars(other).items():
            if name != "packed":
                setattr(self, name, getattr(self, name) + value)


def compare(
    base: Checkpoint,
    tuned: Checkpoint,
    *,
    masks: Path | None = None,
    options: Options | None = None,
    on_tensor: Callable[[TensorRow], None] | None = None,
    threads: int = 2,
) -> Comparison:
    """Compares all tensors of two checkpoints bit by bit; no more than a few megabytes of each are in memory.

    Where the two sides are stored in different types, both are widened to the smaller type that holds either exactly.

    Args:
        masks: file that the masks are written to, a tensor after the other; it appears whole or not at all.
        options: how; by default as stored, with magnitudes and without distances.
        on_tensor: told each row once it is known.

    Raises:
        InputError: one and the same checkpoint, two architectures, or masks that cannot be written.
        ModelError: a file that was changed meanwhile.
    """
    refuse_the_same(base, tuned)
    found, options = align(base, tuned), options or Options()
    rows, ulps = [], []
    with ThreadPoolExecutor(threads) as pool, _writer(masks, base, tuned, found, options) as writer:
        for _, pieces in groupby(_in_order(found, options, pool, 4 * threads), key=lambda piece: id(piece[0])):
            total = _Counts()
            for current, piece in pieces:
                total.add(piece)
                if writer is not None:
                    for packed in piece.packed:
                        writer.write(current.name, packed)
            moved = np.concatenate([np.empty(0, np.uint64), *total.distances])
            rows.append(_row(current, total, moved, options))
            ulps += _ulp_rows(rows[-1], moved)
            if on_tensor is not None:
                on_tensor(rows[-1])
        base.refuse_changed()
        tuned.refuse_changed()
    return Comparison(
        rows=tuple(rows),
        ulps=tuple(ulps),
        uncompared=found.uncompared,
        prefix=found.prefix,
        prefixed=found.prefixed,
        fingerprint_base=base.fingerprint,
        fingerprint_tuned=tuned.fingerprint,
        cast=options.cast,
    )


def _writer(
    masks: Path | None, base: Checkpoint, tuned: Checkpoint, found: Alignment, options: Options
) -> contextlib.AbstractContextManager[MaskWriter | None]:
    if masks is None:
        return contextlib.nullcontext()
    metadata = {"base": base.fingerprint, "tuned": tuned.fingerprint, "cast": options.cast or "none"}
    return MaskWriter(masks, {pair.name: pair.shape for pair in found.pairs}, metadata)


def _in_order(
    found: Alignment, options: Options, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[Pair, _Counts]]:
    """Results of all jobs, in the order of tensors and of their weights, some jobs being ahead of the reader."""
    waiting: deque[tuple[Pair, Future[_Counts]]] = deque()
    scratches = _Scratches()
    try:
        for pair in found.pairs:
            work = partial(
                _job,
                pair,
                compared_as(pair.base.dtype, pair.tuned.dtype, options.cast),
                options,
                _sample(pair, options),
                scratches,
            )
            for start in range(0, max(math.prod(pair.shape), 1), JOB):
                waiting.append((pair, pool.submit(work, start)))
                if len(waiting) > ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


def compared_as(base: torch.dtype, tuned: torch.dtype, cast: str | None = None) -> torch.dtype:
    """The type in which two tensors are compared: the stored one, or one that holds both exactly."""
    if cast == "bf16":
        return torch.bfloat16
    if base == tuned:
        return tuned
    return torch.float64 if torch.float64 in (base, tuned) else torch.float32


def _sample(pair: Pair, options: Options) -> NDArray[np.int64]:
    """The weights of a tensor whose distances are measured: all, if it has no more than are asked for."""
    n_weights = math.prod(pair.shape)
    if n_weights <= options.ulps:
        return np.arange(n_weights)
    seed = hashlib.sha256(f"{options.seed}\0{pair.name}".encode()).digest()
    return np.unique(np.random.default_rng(list(seed)).integers(0, n_weights, options.ulps))


class _Scratches(threading.local):
    """The buffers of each thread, one set a type."""

    def __init__(self) -> None:
        self._of: dict[torch.dtype, _Scratch] = {}

    def of(self, kind: torch.dtype) -> "_Scratch":
        """The calling thread's."""
        if kind not in self._of:
            self._of[kind] = _Scratch(kind)
        return self._of[kind]


def _job(
    pair: Pair, kind: torch.dtype, options: Options, sample: NDArray[np.int64], scratches: _Scratches, start: int
) -> _Counts:
    stop = min(start + JOB, math.prod(pair.shape))
    total, scratch = _Counts(), scratches.of(kind)
    for first in range(start, stop, CHUNK):
        last = min(first + CHUNK, stop)
        wanted = sample[slice(*np.searchsorted(sample, (first, last)))] - first
        base, tuned = scratch.read(pair, first, last)
        piece = scratch.looked_at(base, tuned, magnitudes=options.magnitudes)
        if len(wanted):
            piece.distances.append(_distances(base[wanted], tuned[wanted], kind))
        total.add(piece)
        total.packed += piece.packed
    return total


def converted(bits: Bits, stored: torch.dtype, kind: torch.dtype) -> Bits:
    """The bits of the same weights in another type: rounded to the nearest where it is narrower, else exact."""
    if stored == kind:
        return bits
    values = torch.from_numpy(bits.view(f"i{stored.itemsize}")).view(stored)
    made = torch.empty(len(bits), dtype=kind)
    for start in range(0, len(bits), SERIAL):
        made[start : start + SERIAL] = values[start : start + SERIAL]
    found: Bits = made.view(SIGNED[kind.itemsize]).numpy()
    return found.view(UNSIGNED[kind.itemsize])


class _Scratch:
    """What is counted of chunks of one type, in buffers that are kept: fresh ones would cost more than the counting."""

    def __init__(self, kind: torch.dtype) -> None:
        self._kind, self._infinity = kind, INFINITY[kind]
        unsigned = UNSIGNED[kind.itemsize]
        self._all_but_sign = unsigned.type(SIGN[kind.itemsize])
        room = -(-CHUNK // STRETCH) * STRETCH
        self._base, self._tuned, self._bits = (np.empty(room, unsigned) for _ in range(3))
        self._same = np.empty(room, np.bool_)
        self._sizes, self._chosen = np.empty(room, np.float32), np.empty(room, np.float32)

    def read(self, pair: Pair, first: int, last: int) -> tuple[Bits, Bits]:
        """The bits of weights `first` to `last` on both sides; good until the next ones are read."""
        sides = []
        for side, buffer in ((pair.base, self._base), (pair.tuned, self._tuned)):
            own = buffer if side.dtype == self._kind else None
            sides.append(converted(side.read(first, last, own), side.dtype, self._kind))
        return sides[0], sides[1]

    def looked_at(self, base: Bits, tuned: Bits, *, magnitudes: bool) -> _Counts:
        """Everything that is counted of a chunk."""
        n_weights = len(base)
        same, either = self._same[:n_weights], self._bits[:n_weights]
        np.equal(base, tuned, out=same)
        counts = _Counts(zero_modes=int(np.count_nonzero(same)), packed=[np.packbits(same, bitorder="little")])
        if not n_weights:
            return counts
        np.bitwise_or(base, tuned, out=either)  # 0 where both are, and above infinity where one is
        np.bitwise_and(either, self._all_but_sign, out=either)
        if either.min() == 0:
            both = either == 0
            counts.both_zero = int(np.count_nonzero(both))
            counts.signed_zero = int(np.count_nonzero(both & ~same))
        if either.max() > self._infinity:
            of_each = [(side & self._all_but_sign) > self._infinity for side in (base, tuned)]
            counts.nan = int(np.count_nonzero(of_each[0] | of_each[1]))
        if magnitudes:
            np.bitwise_and(tuned, self._all_but_sign, out=either)
            self._add_magnitudes(counts, either, same)
        return counts

    def _add_magnitudes(self, counts: _Counts, bits: Bits, same: NDArray[np.bool_]) -> None:
        n_weights = len(bits)
        n_padded = -(-n_weights // STRETCH) * STRETCH
        self._bits[n_weights:n_padded], self._chosen[n_weights:n_padded] = 0, 0
        np.copyto(self._chosen[:n_weights], same)
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            found = _sums(self._widened(n_padded), self._chosen[:n_padded])
            if not _is_safe(*found[:2]) or not _is_safe(*found[2:]):
                sizes = torch.from_numpy(bits.view(f"i{bits.itemsize}")).view(self._kind).double().numpy()
                found = _sums(*(np.pad(side, (0, n_padded - n_weights)) for side in (sizes, same.astype(np.float64))))
        counts.absolute, counts.squares, counts.absolute_zero_modes, counts.squares_zero_modes = found

    def _widened(self, n_weights: int) -> NDArray[Any]:
        """The first weights of the buffer as float32, or as float64 where they are stored so."""
        bits, sizes = self._bits[:n_weights], self._sizes[:n_weights]
        if self._kind == torch.bfloat16:
            wide = sizes.view(np.uint32)
            np.copyto(wide, bits)
            np.left_shift(wide, 16, out=wide)
        elif self._kind == torch.float16:
            sizes[:] = converted(bits, torch.float16, torch.float32).view(np.float32)
        else:
            return bits.view(f"f{bits.itemsize}")
        return sizes


def _is_safe(absolute: float, squares: float) -> bool:
    """Whether neither sum can have lost anything to the limits of float32."""
    return absolute == 0 or SMALLEST < squares < LARGEST


def _sums(sizes: NDArray[Any], chosen: NDArray[Any]) -> tuple[float, ...]:
    """Sums of sizes, of their squares, and both of the chosen ones (1, the others 0).

    `STRETCH` weights are summed in the type that they have, the stretches' sums in float64.
    """
    rows, ones = sizes.reshape(-1, STRETCH), chosen.reshape(-1, STRETCH)
    of_each = (np.einsum("ij->i", rows), np.vecdot(rows, rows), np.vecdot(rows, ones))
    kept = np.multiply(rows, ones, out=ones if ones.dtype == rows.dtype else None)
    absolute, squares, absolute_chosen, squares_chosen = (
        float(sums.sum(dtype=np.float64)) for sums in (*of_each, np.vecdot(kept, kept))
    )
    return absolute, squares, absolute_chosen, squares_chosen


def _distances(base: Bits, tuned: Bits, kind: torch.dtype) -> NDArray[np.uint64]:
    """How many steps of the format changed weights moved; +0 and -0 are the same step, and NaN has no distance."""
    unsigned = base.dtype.type(SIGN[kind.itemsize])
    size_base, size_tuned = base & unsigned, tuned & unsigned
    known = (base != tuned) & (size_base <= INFINITY[kind]) & (size_tuned <= INFINITY[kind])
    one_side = (base > unsigned) == (tuned > unsigned)
    first, second = size_base[known].astype(np.uint64), size_tuned[known].astype(np.uint64)
    apart: NDArray[np.uint64] = np.maximum(first, second) - np.minimum(first, second)
    return np.where(one_side[known], apart, first + second)


def _row(pair: Pair, total: _Counts, moved: NDArray[np.uint64], options: Options) -> TensorRow:
    n_weights = math.prod(pair.shape)
    where = place(pair.name)
    known = n_weights if options.magnitudes else 0
    mean = _over(total.absolute, known)
    mean_zero_modes = _over(total.absolute_zero_modes, total.zero_modes)
    return TensorRow(
        tensor=pair.name,
        layer=where.layer,
        component=where.component,
        n_weights=n_weights,
        n_zero_modes=total.zero_modes,
        fraction=_over(total.zero_modes, n_weights),
        n_both_zero=total.both_zero,
        n_signed_zero=total.signed_zero,
        n_nan=total.nan,
        dtype_base=word(pair.base.dtype),
        dtype_tuned=word(pair.tuned.dtype),
        compared_as=word(compared_as(pair.base.dtype, pair.tuned.dtype, options.cast)),
        mean_abs=mean,
        rms=math.sqrt(_over(total.squares, known)),
        mean_abs_zero_modes_over_matrix=_over(mean_zero_modes, mean),
        share_of_squares=_over(total.squares_zero_modes, total.squares),
        ulps_median=float(np.median(moved)) if len(moved) else math.nan,
        ulps_mean=float(moved.mean(dtype=np.float64)) if len(moved) else math.nan,
        share_one_ulp=_over(int(np.count_nonzero(moved == 1)), len(moved)),
        n_ulps=len(moved),
    )


def _ulp_rows(row: TensorRow, moved: NDArray[np.uint64]) -> list[UlpRow]:
    """How many weights moved by 1, by 2 or 3, by 4 to 7 … units; from +0 to -0 is a change of 0."""
    powers, counts = np.unique(np.frexp(moved.astype(np.float64))[1], return_counts=True)
    return [
        UlpRow(row.tensor, row.layer, row.component, (1 << power) >> 1, max((1 << power) - 1, 0), count)
        for power, count in zip(powers.tolist(), counts.tolist(), strict=True)
    ]


def _over(amount: float | int, of: float | int) -> float:
    """A ratio; NaN where there is nothing to compare with."""
    return amount / of if of else math.nan


def word(kind: torch.dtype) -> str:
    """A type as tables name it."""
    return str(kind).removeprefix("torch.")
