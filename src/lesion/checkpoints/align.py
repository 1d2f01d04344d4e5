"""Which tensor of one checkpoint is which of another: prefixes, fused projections, and what has no counterpart."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from lesion.checkpoints.components import place
from lesion.checkpoints.opened import UNSIGNED, Bits, Checkpoint, Stored
from lesion.errors import InputError

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Projections in one matrix, one under the other. (`query_key_value` is not here: its rows are mixed head by head.)"""
ENOUGH = 0.25
"""Share of the tensors of the smaller checkpoint that must be found in the other."""
LONGEST_PREFIX = 3
"""Parts of a name that may stand in front on one side only."""


@dataclass(frozen=True)
class Rows:
    """Rows of one tensor, or those of several one under the other, read as if they were one tensor.

    Attributes:
        parts: tensor, first weight of it, number of weights.
    """

    parts: tuple[tuple[Stored, int, int], ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of all parts."""
        return self.parts[0][0].dtype

    def read(self, start: int, stop: int, into: Bits | None = None) -> Bits:
        """Weights `start` to `stop`, as bits; in the front of `into`, where that is given."""
        bits = np.empty(stop - start, UNSIGNED[self.dtype.itemsize]) if into is None else into[: stop - start]
        done = 0
        for tensor, first, last in self._within(start, stop):
            tensor.read(first, last, bits[done:])
            done += last - first
        return bits

    def _within(self, start: int, stop: int) -> list[tuple[Stored, int, int]]:
        ends = list(accumulate(count for _, _, count in self.parts))
        found = []
        for (tensor, first, count), end in zip(self.parts, ends, strict=True):
            low, high = max(start, end - count), min(stop, end)
            if low < high:
                found.append((tensor, first + low - (end - count), first + high - (end - count)))
        return found


@dataclass(frozen=True)
class Pair:
    """A tensor of TUNED and its counterpart in BASE.

    Attributes:
        name: as stored in TUNED.
        base_names: the counterpart's name, or those of the parts that it is fused from.
    """

    name: str
    shape: tuple[int, ...]
    base: Stored | Rows
    tuned: Stored
    base_names: tuple[str, ...]


@dataclass(frozen=True)
class Uncompared:
    """A tensor that has no counterpart, and why; shapes are None on the side where it is not."""

    tensor: str
    shape_base: tuple[int, ...] | None
    shape_tuned: tuple[int, ...] | None
    reason: str


@dataclass(frozen=True)
class Alignment:
    """What is compared with what.

    Attributes:
        pairs: in the order in which TUNED stores them.
        prefix: what stands in front of the names on one side only; empty where names agree.
        prefixed: that side, `base` or `tuned`; empty where names agree.
    """

    pairs: tuple[Pair, ...]
    uncompared: tuple[Uncompared, ...]
    prefix: str
    prefixed: str


def align(base: Checkpoint, tuned: Checkpoint) -> Alignment:
    """Finds each tensor's counterpart.

    Raises:
        InputError: two architectures.
    """
    if base.model_type and tuned.model_type and base.model_type != tuned.model_type:
        raise InputError(
            f"{base.name} is of model type {base.model_type!r} and {tuned.name} of {tuned.model_type!r}: "
            "only checkpoints of one architecture can be compared"
        )
    prefix = common_prefix(base.tensors, tuned.tensors)
    theirs = {name.removeprefix(prefix): tensor for name, tensor in base.tensors.items()}
    ours = {name.removeprefix(prefix): tensor for name, tensor in tuned.tensors.items()}
    pairs: dict[str, Pair] = {}
    used: set[str] = set()
    for key, tensor in ours.items():
        if key in theirs and theirs[key].shape == tensor.shape:
            pairs[key] = Pair(tensor.name, tensor.shape, theirs[key], tensor, (theirs[key].name,))
            used.add(key)
    _match_fused(theirs, ours, pairs, used)
    n_smaller = min(len(ours), len(theirs))
    if len(pairs) < ENOUGH * n_smaller:
        raise InputError(
            f"{base.name} and {tuned.name} are not of one architecture: of {len(theirs)} and {len(ours)} tensors "
            f"only {len(pairs)} have a counterpart of the same name and shape"
        )
    left = _left_over(base, tuned, theirs, ours, pairs.keys(), used)
    in_order = tuple(pairs[key] for key in ours if key in pairs)
    side = "base" if any(name.startswith(prefix) for name in base.tensors) else "tuned"
    return Alignment(in_order, tuple(left), prefix, side if prefix else "")


def common_prefix(base: Iterable[str], tuned: Iterable[str]) -> str:
    """What has to be taken from the front of names, where it is there, so that most of them agree; empty if nothing."""
    first, second = set(base), set(tuned)
    candidates = {""}
    for name in first | second:
        parts = name.split(".")[:-1][:LONGEST_PREFIX]
        candidates.update(accumulate(f"{part}." for part in parts))
    best, most = "", len(first & second)
    for prefix in sorted(candidates, key=lambda text: (len(text), text)):
        stripped = [{name.removeprefix(prefix) for name in names} for names in (first, second)]
        clashes = len(stripped[0]) < len(first) or len(stripped[1]) < len(second)
        if not clashes and len(stripped[0] & stripped[1]) > most:
            best, most = prefix, len(stripped[0] & stripped[1])
    return best


def _match_fused(
    theirs: Mapping[str, Stored], ours: Mapping[str, Stored], pairs: dict[str, Pair], used: set[str]
) -> None:
    for key, tensor in ours.items():
        if key in pairs:
            continue
        if found := _all_there(_parts_of(key), theirs, tensor):
            rows = Rows(tuple((part, 0, _count(part.shape)) for part in found))
            pairs[key] = Pair(tensor.name, tensor.shape, rows, tensor, tuple(part.name for part in found))
            used.update(part for part in _parts_of(key))
    for key, whole in theirs.items():
        parts = _parts_of(key)
        if key in used or any(part in pairs for part in parts):
            continue
        if found := _all_there(parts, ours, whole):
            first = 0
            for name, part in zip(parts, found, strict=True):
                rows = Rows(((whole, first, _count(part.shape)),))
                pairs[name] = Pair(part.name, part.shape, rows, part, (whole.name,))
                first += _count(part.shape)
            used.add(key)


def _parts_of(name: str) -> list[str]:
    """Names of what a fused tensor is made of; none for others."""
    front, _, leaf = name.rpartition(".")
    module = front.rpartition(".")[2]
    return [f"{front.removesuffix(module)}{part}.{leaf}" for part in FUSED.get(module, ())]


def _all_there(names: Sequence[str], tensors: Mapping[str, Stored], whole: Stored) -> list[Stored]:
    """The tensors of these names, if they make up the whole one under the other."""
    if not names or not all(name in tensors for name in names):
        return []
    found = [tensors[name] for name in names]
    fits = all(part.shape and part.shape[1:] == whole.shape[1:] for part in found)
    of_one_type = len({part.dtype for part in found}) == 1
    return found if fits and of_one_type and sum(part.shape[0] for part in found) == whole.shape[0] else []


def _left_over(
    base: Checkpoint,
    tuned: Checkpoint,
    theirs: Mapping[str, Stored],
    ours: Mapping[str, Stored],
    compared: Iterable[str],
    used: set[str],
) -> list[Uncompared]:
    left, done = [], set(compared)
    for key, tensor in ours.items():
        if key in done:
            continue
        if key in theirs and key not in used:
            left.append(Uncompared(tensor.name, theirs[key].shape, tensor.shape, "other shape"))
        else:
            left.append(Uncompared(tensor.name, None, tensor.shape, _why(tensor, base, "tuned")))
    for key, tensor in theirs.items():
        if key not in used and key not in ours:
            left.append(Uncompared(tensor.name, tensor.shape, None, _why(tensor, tuned, "base")))
    for name in dict.fromkeys([*tuned.tables, *base.tables]):
        left.append(Uncompared(name, base.tables.get(name), tuned.tables.get(name), "whole numbers"))
    return left


def _why(tensor: Stored, other: Checkpoint, side: str) -> str:
    """Why a tensor is on one side only; a configuration that does not say may leave tying to its model's default."""
    embeddings = (place(name).component == "embed" and t.shape == tensor.shape for name, t in other.tensors.items())
    if place(tensor.name).component != "unembed" or other.ties is False or not any(embeddings):
        return f"only in {side}"
    return f"only in {side}: {'is' if other.ties else 'may be'} tied to the embedding in the other"


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
