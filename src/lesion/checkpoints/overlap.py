"""How far sets of zero modes overlap, and how far chance would make them; counted on packed masks, piece by piece.

Whether zero modes belong to the base model or to a fine-tuning is seen in what two fine-tunings of one base share
(paper `zero-modes`, §2 on robustness, §4.2 on transferability).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from lesion.checkpoints.align import Rows, align, common_prefix
from lesion.checkpoints.compare import SERIAL, converted
from lesion.checkpoints.components import place
from lesion.checkpoints.masks import Masks, Packed
from lesion.checkpoints.opened import Checkpoint, Stored
from lesion.checkpoints.selection import exponents
from lesion.errors import InputError

STRETCH = 1 << 24
"""Weights of which each mask is in memory at a time (2 MiB a mask); a multiple of 8 and of `SERIAL`."""

AT_ONCE = 4
"""Masks that are counted in one histogram of exponent and membership: three times as fast as one after the other."""

Shape = tuple[int, ...]
Amounts = NDArray[np.float64]


@dataclass(frozen=True)
class PairRow:
    """What two masks share of one tensor. All amounts can be added over tensors; ratios are made of the sums.

    Attributes:
        a, b: names of the masks.
        tensor: as the first of all masks that has it names it, so that a tensor has one name in all pairs.
        layer: number of its block, None outside blocks.
        n_weights: of the tensor.
        n_a, n_b, n_both, n_either: zero modes of `a`, of `b`, of both, of at least one.
        n_both_by_chance: expected in both, were those of `b` drawn anew from all weights of the tensor.
        variance: of that number (hypergeometric).
        n_both_by_chance_in_exponents: the same, were they drawn anew within each exponent of |w|; NaN without weights.
        variance_in_exponents: of that number.
    """

    a: str
    b: str
    tensor: str
    layer: int | None
    component: str
    n_weights: int
    n_a: int
    n_b: int
    n_both: int
    n_either: int
    n_both_by_chance: float
    variance: float
    n_both_by_chance_in_exponents: float
    variance_in_exponents: float


@dataclass(frozen=True)
class TogetherRow:
    """What all masks share of one tensor, and what at least one has; amounts as in `PairRow`.

    Attributes:
        tensor: as the first mask names it.
        n_masks: of how many masks.
        n_in_all_by_chance: expected in all of them, were each drawn anew from all weights of the tensor.
        n_in_any_by_chance: expected in at least one of them.
    """

    tensor: str
    layer: int | None
    component: str
    n_masks: int
    n_weights: int
    n_in_all: int
    n_in_any: int
    n_in_all_by_chance: float
    n_in_any_by_chance: float
    n_in_all_by_chance_in_exponents: float


@dataclass(frozen=True)
class UncomparedMask:
    """A tensor that one of two masks has not, or has in another shape; the shape is None where it is not."""

    a: str
    b: str
    tensor: str
    shape_a: Shape | None
    shape_b: Shape | None
    reason: str


@dataclass(frozen=True)
class Overlap:
    """Masks compared.

    Attributes:
        pairs: a row for each pair of masks and tensor that both have.
        together: a row for each tensor that all have; empty for two masks.
        uncompared: a row for each pair and tensor that cannot be compared.
        without_weights: tensors of which no exponents are known, though there are weights.
    """

    pairs: tuple[PairRow, ...]
    together: tuple[TogetherRow, ...]
    uncompared: tuple[UncomparedMask, ...]
    without_weights: tuple[str, ...]


@dataclass(frozen=True)
class _Member:
    """A mask of one tensor."""

    at: int
    masks: Masks
    tensor: str


@dataclass
class _Counts:
    """What is counted of one tensor.

    Attributes:
        of_each: zero modes of each mask.
        shared: of each pair of masks, by their places.
        in_bins: weights of each exponent, None without weights.
        of_each_in_bins: zero modes of each mask (rows) and exponent (columns).
    """

    n_weights: int
    of_each: list[int]
    shared: dict[tuple[int, int], int]
    in_all: int = 0
    in_any: int = 0
    in_bins: NDArray[np.int64] | None = None
    of_each_in_bins: NDArray[np.int64] | None = None


def overlap(
    masks: Mapping[str, Masks],
    *,
    weights: Checkpoint | None = None,
    cast: str | None = None,
    on_tensor: Callable[[str], None] | None = None,
) -> Overlap:
    """Counts what each pair of masks shares, and what all share, tensor by tensor.

    A few megabytes a mask are in memory. Tensors are matched by name, with or without a prefix, and shape.

    Args:
        masks: by name; two or more.
        weights: the checkpoint whose exponents of |w| are the bins; the masks' common base, as a rule.
        cast: `bf16`: round its weights to bfloat16 first.
        on_tensor: told each tensor's name once it is counted.

    Raises:
        InputError: fewer than two masks, two without a common tensor, or weights of another architecture.
        ModelError: a file of weights that cannot be read or was changed meanwhile.
    """
    if len(masks) < 2:
        raise InputError(f"an overlap is of two or more masks; {len(masks)} given")
    names, keys = list(masks), _by_key(list(masks.values()))
    uncompared = _uncompared(masks, keys)
    groups = list(_groups(list(masks.values()), keys))
    readers = _readers(weights, groups)
    pairs: list[PairRow] = []
    together: list[TogetherRow] = []
    without = []
    for members, shape in groups:
        tensor = members[0].tensor
        reader = readers.get((tensor, shape))
        counts = _counted(members, math.prod(shape), reader, cast)
        pairs += [_pair_row(names, members, counts, places) for places in combinations(range(len(members)), 2)]
        if len(members) == len(masks) > 2:
            together.append(_together_row(tensor, len(members), counts))
        if weights is not None and reader is None:
            without.append(tensor)
        if on_tensor is not None:
            on_tensor(tensor)
    if weights is not None:
        weights.refuse_changed()
    order = {pair: place for place, pair in enumerate(combinations(names, 2))}
    in_order = sorted(pairs, key=lambda row: order[row.a, row.b])
    return Overlap(tuple(in_order), tuple(together), tuple(uncompared), tuple(without))


def refuse_unlike(masks: Mapping[str, Masks], weights: Checkpoint | None) -> None:
    """Raises InputError where two masks have no tensor in common, or the weights are of another architecture."""
    keys = _by_key(list(masks.values()))
    _uncompared(masks, keys)
    _readers(weights, list(_groups(list(masks.values()), keys)))


def by_chance(n_weights: NDArray[np.int64], n_a: NDArray[np.int64], n_b: NDArray[np.int64]) -> tuple[Amounts, Amounts]:
    """Mean and variance of |A ∩ B| where B is as large as it is and any set of that size is as likely as another.

    The hypergeometric distribution: mean a b / n, variance a b (n - a) (n - b) / (n² (n - 1)).
    """
    n, a, b = (amount.astype(np.float64) for amount in (n_weights, n_a, n_b))
    mean = a / np.maximum(n, 1) * b
    variance = mean * ((n - a) / np.maximum(n, 1)) * ((n - b) / np.maximum(n - 1, 1))
    return mean, variance


def _by_key(masks: Sequence[Masks]) -> list[dict[str, str]]:
    """Each mask's tensors by names without the prefix that only some of the masks have."""
    prefixes = {common_prefix(masks[0].names, other.names) for other in masks[1:]} - {""}
    found = []
    for one in masks:
        keys = {_without(name, prefixes): name for name in one.names}
        found.append(keys if len(keys) == len(one) else {name: name for name in one.names})
    return found


def _without(name: str, prefixes: set[str]) -> str:
    return next((name.removeprefix(prefix) for prefix in sorted(prefixes) if name.startswith(prefix)), name)


def _groups(masks: Sequence[Masks], keys: Sequence[Mapping[str, str]]) -> Iterator[tuple[list[_Member], Shape]]:
    """Masks of one tensor and one shape, two or more, in the order of the masks."""
    for key in dict.fromkeys(key for own in keys for key in own):
        of_shape: dict[Shape, list[_Member]] = {}
        for at, (one, own) in enumerate(zip(masks, keys, strict=True)):
            if key in own:
                of_shape.setdefault(one.shape(own[key]), []).append(_Member(at, one, own[key]))
        yield from ((members, shape) for shape, members in of_shape.items() if len(members) > 1)


def _uncompared(masks: Mapping[str, Masks], keys: Sequence[Mapping[str, str]]) -> list[UncomparedMask]:
    found = []
    for (a, own_a), (b, own_b) in combinations(zip(masks, keys, strict=True), 2):
        shapes_a = {key: masks[a].shape(name) for key, name in own_a.items()}
        shapes_b = {key: masks[b].shape(name) for key, name in own_b.items()}
        differing = [key for key in {**own_a, **own_b} if shapes_a.get(key) != shapes_b.get(key)]
        if len(differing) == len({*own_a, *own_b}):
            raise InputError(
                f"the masks {a} and {b} have no tensor of the same name and shape in common "
                f"({len(own_a)} and {len(own_b)} tensors): they are of different models"
            )
        for key in differing:
            one, other = shapes_a.get(key), shapes_b.get(key)
            reason = "other shape" if one is not None and other is not None else f"only in {b if one is None else a}"
            found.append(UncomparedMask(a, b, own_a.get(key) or own_b[key], one, other, reason))
    return found


def _readers(
    weights: Checkpoint | None, groups: Sequence[tuple[list[_Member], Shape]]
) -> dict[tuple[str, Shape], Stored | Rows]:
    """Where the weights of each group of masks are, by the name in its first mask and the shape."""
    if weights is None:
        return {}
    any_tensor = next(iter(weights.tensors.values()))
    wanted: dict[str, Stored] = {}
    for members, shape in groups:
        tensor = members[0].tensor
        wanted.setdefault(tensor, replace(any_tensor, name=tensor, shape=shape))  # no more of it is looked at
    found = align(weights, replace(weights, name="the masks", tensors=wanted, tables={}))
    return {(pair.name, pair.shape): pair.base for pair in found.pairs}


def _counted(members: Sequence[_Member], n_weights: int, reader: Stored | Rows | None, cast: str | None) -> _Counts:
    counts = _Counts(n_weights, [0] * len(members), dict.fromkeys(combinations(range(len(members)), 2), 0))
    if reader is not None:
        n_bins = _n_bins(_kind(reader, cast))
        counts.in_bins = np.zeros(n_bins, np.int64)
        counts.of_each_in_bins = np.zeros((len(members), n_bins), np.int64)
    for start in range(0, n_weights, STRETCH):
        stop = min(start + STRETCH, n_weights)
        # asked for anew: a map that is kept would hold every page that was looked at
        packed = [np.array(m.masks.packed(m.tensor)[start // 8 : -(-stop // 8)]) for m in members]
        _add_shared(counts, packed)
        if reader is not None:
            _add_bins(counts, packed, reader, cast, start, stop)
    return counts


def _add_shared(counts: _Counts, packed: Sequence[Packed]) -> None:
    counts.of_each = [n + _ones(one) for n, one in zip(counts.of_each, packed, strict=True)]
    for a, b in counts.shared:
        counts.shared[a, b] += _ones(packed[a] & packed[b])
    counts.in_all += _ones(np.bitwise_and.reduce(packed))
    counts.in_any += _ones(np.bitwise_or.reduce(packed))


def _ones(packed: Packed) -> int:
    """Bits that are set; eight bytes at a time, which is many times as fast as one."""
    whole = len(packed) // 8 * 8
    found = np.bitwise_count(packed[:whole].view(np.uint64)).sum(dtype=np.int64)
    return int(found + np.bitwise_count(packed[whole:]).sum(dtype=np.int64))


def _add_bins(
    counts: _Counts, packed: Sequence[Packed], reader: Stored | Rows, cast: str | None, start: int, stop: int
) -> None:
    assert counts.in_bins is not None
    assert counts.of_each_in_bins is not None
    kind, n_bins = _kind(reader, cast), len(counts.in_bins)
    groups = [packed[at : at + AT_ONCE] for at in range(0, len(packed), AT_ONCE)]
    found = [np.zeros((n_bins, 1 << len(group)), np.int64) for group in groups]
    for first in range(start, stop, SERIAL):
        last = min(first + SERIAL, stop)
        bits = converted(reader.read(first, last), reader.dtype, kind)
        bins = exponents(torch.from_numpy(bits.view(f"i{kind.itemsize}")).view(kind)).numpy().astype(np.intp)
        for table, group in zip(found, groups, strict=True):
            codes = (bins << len(group)) | _memberships(group, first - start, last - start)
            table += np.bincount(codes, minlength=table.size).reshape(table.shape)
    counts.in_bins += found[0].sum(axis=1)
    for at, row in enumerate(counts.of_each_in_bins):
        table = found[at // AT_ONCE]
        has = np.arange(table.shape[1]) >> at % AT_ONCE & 1
        row += table[:, has == 1].sum(axis=1)


def _memberships(packed: Sequence[Packed], start: int, stop: int) -> NDArray[np.uint8]:
    """For each weight a bit a mask, the first mask's the lowest: in which of them it is."""
    codes = np.zeros(stop - start, np.uint8)
    for at, one in enumerate(packed):
        codes |= np.unpackbits(one[start // 8 : -(-stop // 8)], count=stop - start, bitorder="little") << np.uint8(at)
    return codes


def _kind(reader: Stored | Rows, cast: str | None) -> torch.dtype:
    return torch.bfloat16 if cast == "bf16" else reader.dtype


def _n_bins(kind: torch.dtype) -> int:
    """How many exponents a type has; the greatest is that of infinity."""
    return int(exponents(torch.tensor([math.inf], dtype=kind))) + 1


def _pair_row(names: Sequence[str], members: Sequence[_Member], counts: _Counts, places: tuple[int, int]) -> PairRow:
    first, second = places
    where = place(members[0].tensor)
    n_a, n_b, n_both = counts.of_each[first], counts.of_each[second], counts.shared[places]
    mean, variance = by_chance(*(np.array([amount]) for amount in (counts.n_weights, n_a, n_b)))
    mean_in_bins, variance_in_bins = np.array([math.nan]), np.array([math.nan])
    if counts.in_bins is not None and counts.of_each_in_bins is not None:
        mean_in_bins, variance_in_bins = by_chance(counts.in_bins, *counts.of_each_in_bins[[first, second]])
    return PairRow(
        a=names[members[first].at],
        b=names[members[second].at],
        tensor=members[0].tensor,
        layer=where.layer,
        component=where.component,
        n_weights=counts.n_weights,
        n_a=n_a,
        n_b=n_b,
        n_both=n_both,
        n_either=n_a + n_b - n_both,
        n_both_by_chance=float(mean.sum()),
        variance=float(variance.sum()),
        n_both_by_chance_in_exponents=float(mean_in_bins.sum()),
        variance_in_exponents=float(variance_in_bins.sum()),
    )


def _together_row(tensor: str, n_masks: int, counts: _Counts) -> TogetherRow:
    where = place(tensor)
    n = max(counts.n_weights, 1)
    shares = np.array(counts.of_each) / n
    in_exponents = math.nan
    if counts.in_bins is not None and counts.of_each_in_bins is not None:
        shares_in_bins = counts.of_each_in_bins / np.maximum(counts.in_bins, 1)
        in_exponents = float((counts.in_bins * shares_in_bins.prod(axis=0)).sum())
    return TogetherRow(
        tensor=tensor,
        layer=where.layer,
        component=where.component,
        n_masks=n_masks,
        n_weights=counts.n_weights,
        n_in_all=counts.in_all,
        n_in_any=counts.in_any,
        n_in_all_by_chance=float(counts.n_weights * shares.prod()),
        n_in_any_by_chance=float(counts.n_weights * (1 - (1 - shares).prod())),
        n_in_all_by_chance_in_exponents=in_exponents,
    )
