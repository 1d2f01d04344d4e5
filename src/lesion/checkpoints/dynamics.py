"""Zero modes over a series of checkpoints: which never changed on the way, and which changed and came back.

A weight that ends with the bits that it began with need not have stood still (paper `zero-modes`, §2 and Fig. 13).
What moves and comes back between two checkpoints is not seen: the shares depend on how far apart they lie.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lesion.checkpoints.align import Alignment, Rows, align
from lesion.checkpoints.compare import CHUNK, compared_as, converted, word
from lesion.checkpoints.components import place
from lesion.checkpoints.masks import DERIVED, MaskWriter, Packed
from lesion.checkpoints.opened import Bits, Checkpoint, Stored, refuse_the_same
from lesion.errors import InputError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class StepRow:
    """One tensor at one checkpoint. All amounts can be added over tensors.

    Attributes:
        checkpoint: number of the checkpoint, 1 for the first after the start.
        tensor: as the last checkpoint names it.
        layer: number of its block, None outside blocks.
        n_zero_modes: weights with the same bits as at the start.
        n_never_changed: of these, those with the same bits at every checkpoint up to this one.
        n_came_back: the others: they had other bits at a checkpoint on the way.
    """

    checkpoint: int
    tensor: str
    layer: int | None
    component: str
    n_weights: int
    n_zero_modes: int
    n_never_changed: int
    n_came_back: int


@dataclass(frozen=True)
class Absent:
    """A tensor that cannot be followed; shapes are None where it is not.

    Attributes:
        checkpoint: number of the checkpoint that differs from the last; 0 for the start.
        shape_last: in the last checkpoint.
    """

    checkpoint: int
    tensor: str
    shape: Shape | None
    shape_last: Shape | None
    reason: str


@dataclass(frozen=True)
class Dynamics:
    """A series of checkpoints, compared with its start.

    Attributes:
        rows: by tensor in the order of the last checkpoint, and within a tensor by checkpoint.
        absent: tensors that are not in all checkpoints, and why.
        mixed: numbers of checkpoints stored in other types than the start, with both types and that of the comparison.
        prefixes: numbers of checkpoints whose names differ from the last one's by a prefix, with the prefix.
    """

    rows: tuple[StepRow, ...]
    absent: tuple[Absent, ...]
    mixed: tuple[tuple[int, str, str, str], ...]
    prefixes: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class _Series:
    """A tensor in every checkpoint, from the start on."""

    tensor: str
    shape: Shape
    readers: tuple[Stored | Rows, ...]


def dynamics(
    checkpoints: Sequence[Checkpoint],
    *,
    cast: str | None = None,
    zero_modes: Path | None = None,
    never_changed: Path | None = None,
    on_tensor: Callable[[str], None] | None = None,
) -> Dynamics:
    """Follows every weight from the first checkpoint to the last; each is read once, a piece of all at a time.

    Two checkpoints are compared as stored; where their types differ, both are widened exactly first.

    Args:
        checkpoints: in order; the first is the start, and there are at least two more.
        cast: `bf16`: round all to bfloat16 first, which makes zero modes that the files do not have.
        zero_modes: file for the masks of the last checkpoint against the first.
        never_changed: file for the masks of those that have the start's bits in every checkpoint.
        on_tensor: told each tensor's name once it is counted.

    Raises:
        InputError: fewer than three checkpoints, one twice, two architectures, or masks that cannot be written.
        ModelError: a file that cannot be read or was changed meanwhile.
    """
    refuse_no_series(checkpoints)
    last = checkpoints[-1]
    alignments = [align(one, last) for one in checkpoints[:-1]]
    series = _series(last, alignments)
    rows: list[StepRow] = []
    with ExitStack() as stack:
        writers = [
            stack.enter_context(writer) for writer in _writers(zero_modes, never_changed, series, checkpoints, cast)
        ]
        for one in series:
            rows += _followed(one, cast, writers)
            if on_tensor is not None:
                on_tensor(one.tensor)
        for checkpoint in checkpoints:
            checkpoint.refuse_changed()
    return Dynamics(
        rows=tuple(rows),
        absent=tuple(_absent(alignments)),
        mixed=tuple(sorted({found for one in series for found in _mixed(one, cast)})),
        prefixes=tuple((number, one.prefix) for number, one in enumerate(alignments) if one.prefix),
    )


def refuse_no_series(checkpoints: Sequence[Checkpoint]) -> None:
    """Raises InputError: fewer than three checkpoints, two that are one, two architectures, no tensor in all."""
    if len(checkpoints) < 3:
        raise InputError(
            f"a series has a start and at least two later checkpoints; {len(checkpoints)} given "
            "(`lesion zero-modes diff` compares two)"
        )
    for one, other in combinations(checkpoints, 2):
        refuse_the_same(one, other)
    _series(checkpoints[-1], [align(one, checkpoints[-1]) for one in checkpoints[:-1]])


def _series(last: Checkpoint, alignments: Sequence[Alignment]) -> list[_Series]:
    """The tensors of the last checkpoint that all others have too, in its layout."""
    readers = [{pair.name: pair.base for pair in one.pairs} for one in alignments]
    found = [
        _Series(name, tensor.shape, (*(one[name] for one in readers), tensor))
        for name, tensor in last.tensors.items()
        if all(name in one for one in readers)
    ]
    if not found:
        raise InputError(f"no tensor of {last.name} is in all of the {len(alignments) + 1} checkpoints")
    return found


def _absent(alignments: Sequence[Alignment]) -> list[Absent]:
    found = []
    for number, one in enumerate(alignments):
        for left in one.uncompared:
            reason = left.reason
            for side, words in (("only in base", "only in this checkpoint"), ("only in tuned", "only in the last")):
                reason = reason.replace(side, words, 1) if reason.startswith(side) else reason
            found.append(Absent(number, left.tensor, left.shape_base, left.shape_tuned, reason))
    return found


def _writers(
    zero_modes: Path | None,
    never_changed: Path | None,
    series: Sequence[_Series],
    checkpoints: Sequence[Checkpoint],
    cast: str | None,
) -> list[MaskWriter]:
    if zero_modes is None or never_changed is None:
        return []
    shapes = {one.tensor: one.shape for one in series}
    pair = {
        "base": checkpoints[0].fingerprint,
        "tuned": checkpoints[-1].fingerprint,
        "cast": cast or "none",
    }
    derived = DERIVED | {"derived": f"the same bits in all of {len(checkpoints)} checkpoints"}
    return [MaskWriter(zero_modes, shapes, pair), MaskWriter(never_changed, shapes, pair | derived)]


def _followed(one: _Series, cast: str | None, writers: Sequence[MaskWriter]) -> list[StepRow]:
    n_weights, n_steps = math.prod(one.shape), len(one.readers) - 1
    zero_modes, never_changed = np.zeros(n_steps, np.int64), np.zeros(n_steps, np.int64)
    for start in range(0, n_weights, CHUNK):
        masks = _looked_at(one, cast, start, min(start + CHUNK, n_weights), zero_modes, never_changed)
        for writer, packed in zip(writers, masks, strict=False):
            writer.write(one.tensor, packed)
    where = place(one.tensor)
    return [
        StepRow(
            checkpoint=step + 1,
            tensor=one.tensor,
            layer=where.layer,
            component=where.component,
            n_weights=n_weights,
            n_zero_modes=int(zero_modes[step]),
            n_never_changed=int(never_changed[step]),
            n_came_back=int(zero_modes[step] - never_changed[step]),
        )
        for step in range(n_steps)
    ]


def _looked_at(
    one: _Series,
    cast: str | None,
    start: int,
    stop: int,
    zero_modes: NDArray[np.int64],
    never_changed: NDArray[np.int64],
) -> tuple[Packed, Packed]:
    """Adds a piece's counts, and returns the zero modes of the last checkpoint and what never changed, packed."""
    first = one.readers[0]
    begun = first.read(start, stop)
    in_type: dict[torch.dtype, Bits] = {}
    same, always = np.ones(stop - start, np.bool_), np.ones(stop - start, np.bool_)
    for step, reader in enumerate(one.readers[1:]):
        kind = compared_as(first.dtype, reader.dtype, cast)
        if kind not in in_type:
            in_type[kind] = converted(begun, first.dtype, kind)
        np.equal(in_type[kind], converted(reader.read(start, stop), reader.dtype, kind), out=same)
        np.logical_and(always, same, out=always)
        zero_modes[step] += np.count_nonzero(same)
        never_changed[step] += np.count_nonzero(always)
    return np.packbits(same, bitorder="little"), np.packbits(always, bitorder="little")


def _mixed(one: _Series, cast: str | None) -> list[tuple[int, str, str, str]]:
    first = one.readers[0].dtype
    return [
        (step, word(first), word(reader.dtype), word(compared_as(first, reader.dtype, cast)))
        for step, reader in enumerate(one.readers)
        if reader.dtype != first
    ]
