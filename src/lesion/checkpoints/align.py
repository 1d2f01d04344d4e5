"""Which tensor of one checkpoint is which of another: prefixes, fused projections, and what has no counterpart."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch

from lesion.checkpoints.components import place
from lesion.checkpoints.opened import UNSIGNED, Bits, Checkpoint, Stored
from lesion.checkpoints.scopes import UNKNOWN_ORDER, Heads, read_transformers_config
from lesion.errors import InputError, ModelError

_QKV = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
FUSED: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("gate_proj", "up_proj"),),
    **dict.fromkeys(("qkv_proj", "query_key_value", "c_attn"), _QKV),
}
"""Projections in one matrix, and what their parts are called where they are stored apart."""
SHUFFLED = ("codegen",)
"""Model types whose `qkv_proj` is not q, k and v one under the other."""
ENOUGH = 0.25
"""Share of the tensors of the smaller checkpoint that must be found in the other."""
LONGEST_PREFIX = 3
"""Parts of a name, from its front, among which are those that one side has and the other has not."""
TRIED = 16
"""Prefixes that are tried out, of those that make any names agree."""
OLD_LEAVES = {"gamma": "weight", "beta": "bias"}
"""What the weights of norms were called in the first BERTs."""


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
    if base.model_type and tuned.model_type and not _model_types(base) & _model_types(tuned):
        raise InputError(
            f"{base.name} is of model type {base.model_type!r} and {tuned.name} of {tuned.model_type!r}: "
            "only checkpoints of one architecture can be compared"
        )
    modern = [modern_names(side.tensors) for side in (base, tuned)]
    part = common_part(modern[0], modern[1])
    theirs = {without(name, part): base.tensors[stored] for name, stored in modern[0].items()}
    ours = {without(name, part): tuned.tensors[stored] for name, stored in modern[1].items()}
    pairs: dict[str, Pair] = {}
    used: set[str] = set()
    for key, tensor in ours.items():
        if key in theirs and theirs[key].shape == tensor.shape:
            pairs[key] = Pair(tensor.name, tensor.shape, theirs[key], tensor, (theirs[key].name,))
            used.add(key)
    reasons = _match_fused(_Side(base, theirs), _Side(tuned, ours), pairs, used)
    n_smaller = min(len(ours), len(theirs))
    if len(pairs) < ENOUGH * n_smaller:
        raise InputError(
            f"{base.name} and {tuned.name} are not of one architecture: of {len(theirs)} and {len(ours)} tensors "
            f"only {len(pairs)} have a counterpart of the same name and shape"
        )
    left = _left_over(base, tuned, theirs, ours, pairs.keys(), used, reasons)
    in_order = tuple(pairs[key] for key in ours if key in pairs)
    return Alignment(in_order, tuple(left), part, _prefixed(modern[0], modern[1], part))


def _model_types(side: Checkpoint) -> set[str]:
    """The model type, and that of the language model inside one that also sees."""
    path = side.folder / "config.json"
    config = json.loads(path.read_bytes()) if path.is_file() else {}  # it was read before; an adapter has none
    text = config.get("text_config")
    inner = text.get("model_type") if isinstance(text, dict) else None
    return {kind.removesuffix("_text") for kind in (side.model_type, inner) if isinstance(kind, str)}


def modern_names(names: Iterable[str]) -> dict[str, str]:
    """Names as they are written today, and under each the name that is stored; old ones of norms are changed."""
    stored = set(names)
    modern = {}
    for name in names:
        front, _, leaf = name.rpartition(".")
        new = f"{front}.{OLD_LEAVES[leaf]}" if front and leaf in OLD_LEAVES else name
        modern[new if new not in stored and place(name).component == "norm" else name] = name
    return modern


def without(name: str, part: str) -> str:
    """A name without a part that is in front of it, or among the first of its own parts."""
    if name.startswith(part):
        return name.removeprefix(part)
    at = name.find(f".{part}") + 1
    return name[:at] + name[at + len(part) :] if at and name.count(".", 0, at) < LONGEST_PREFIX else name


def common_prefix(base: Iterable[str], tuned: Iterable[str]) -> str:
    """What has to be taken from the front of names, where it is there, so that most of them agree; empty if nothing."""
    return _best(set(base), set(tuned), _fronts, str.removeprefix)


def common_part(base: Iterable[str], tuned: Iterable[str]) -> str:
    """The same, of what is in front or follows the first parts: the `language_model.` of `model.language_model.`."""
    return _best(set(base), set(tuned), _cuts, without)


def _best(
    first: set[str],
    second: set[str],
    cuts: Callable[[str], Iterator[tuple[str, str]]],
    cut: Callable[[str, str], str],
) -> str:
    """The part without which most names agree. Only one that makes a name agree with one of the other side is tried."""
    votes: Counter[str] = Counter()
    for names, others in ((first, second), (second, first)):
        votes.update(part for name in names - others for part, rest in cuts(name) if rest in others)
    best, most = "", len(first & second)
    candidates = sorted(votes, key=lambda part: (-votes[part], len(part), part))[:TRIED]
    for part in sorted(candidates, key=lambda text: (len(text), text)):
        shorter = [{cut(name, part) for name in names} for names in (first, second)]
        clashes = len(shorter[0]) < len(first) or len(shorter[1]) < len(second)
        if not clashes and len(shorter[0] & shorter[1]) > most:
            best, most = part, len(shorter[0] & shorter[1])
    return best


def _fronts(name: str) -> Iterator[tuple[str, str]]:
    for prefix in accumulate(f"{part}." for part in name.split(".")[:-1][:LONGEST_PREFIX]):
        yield prefix, name.removeprefix(prefix)


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """Runs of the first parts of a name, and the name without each."""
    parts = name.split(".")
    last = min(LONGEST_PREFIX, len(parts) - 1)
    for start in range(last):
        for stop in range(start + 1, last + 1):
            yield ".".join([*parts[start:stop], ""]), ".".join(parts[:start] + parts[stop:])


def _prefixed(base: Iterable[str], tuned: Iterable[str], part: str) -> str:
    sides = {"base": base, "tuned": tuned}
    having = {side: sum(without(name, part) != name for name in names) for side, names in sides.items()}
    return max(having, key=lambda side: having[side]) if part else ""


@dataclass(frozen=True)
class _Side:
    """A checkpoint and its tensors by the names under which both sides are compared."""

    checkpoint: Checkpoint
    tensors: Mapping[str, Stored]


def _match_fused(theirs: _Side, ours: _Side, pairs: dict[str, Pair], used: set[str]) -> dict[str, str]:
    """Adds pairs of fused projections and their parts; returns why others are not matched, by key."""
    reasons: dict[str, str] = {}
    for key, tensor in ours.tensors.items():
        parts = [] if key in pairs else _parts_of(key, theirs.tensors)
        if not parts:
            continue
        found = [theirs.tensors[name] for name in parts]
        try:
            rows = _rows_of(tensor, found, parts, ours.checkpoint)
        except ModelError as error:
            reasons |= dict.fromkeys((key, *parts), str(error))
            continue
        pairs[key] = Pair(tensor.name, tensor.shape, _gathered(found, rows), tensor, tuple(p.name for p in found))
        used.update(parts)
    for key, whole in theirs.tensors.items():
        parts = [] if key in used else [name for name in _parts_of(key, ours.tensors) if name not in pairs]
        if not parts:
            continue
        found = [ours.tensors[name] for name in parts]
        try:
            rows = _rows_of(whole, found, parts, theirs.checkpoint)
        except ModelError as error:
            reasons |= dict.fromkeys((key, *parts), str(error))
            continue
        for name, part, ranges in zip(parts, found, rows, strict=True):
            pairs[name] = Pair(part.name, part.shape, _cut_out(whole, ranges), part, (whole.name,))
        used.add(key)
    return reasons


def _parts_of(name: str, tensors: Mapping[str, Stored]) -> list[str]:
    """Names of what a fused tensor is made of, where all of that is there; none for others."""
    front, _, leaf = name.rpartition(".")
    module = front.rpartition(".")[2]
    for parts in FUSED.get(module, ()):
        names = [f"{front.removesuffix(module)}{part}.{leaf}" for part in parts]
        if all(part in tensors for part in names):
            return names
    return []


Ranges = list[tuple[int, int]]


def _rows_of(whole: Stored, parts: Sequence[Stored], names: Sequence[str], fused: Checkpoint) -> list[Ranges]:
    """The rows of a fused tensor that are each part's, first and behind the last of each run.

    Raises:
        ModelError: the order is not known, or the sizes are others.
    """
    module = whole.name.split(".")[-2]
    sizes = [part.shape[0] if part.shape else 0 for part in parts]
    if module == "gate_up_proj" or (module == "qkv_proj" and fused.model_type not in SHUFFLED):
        ends = list(accumulate(sizes, initial=0))
        rows = [[(start, stop)] for start, stop in pairwise(ends)]
    else:
        rows = _rows_by_head(whole, fused)
    short = " and ".join(name.split(".")[-2] for name in names)
    fits = all(part.shape and part.shape[1:] == whole.shape[1:] for part in parts)
    if not fits or [sum(b - a for a, b in ranges) for ranges in rows] != sizes or sum(sizes) != whole.shape[0]:
        raise ModelError(f"{module} has not the size of {short}")
    if len({part.dtype for part in parts}) > 1:
        raise ModelError(f"{short} are stored in different types")
    return rows


def _rows_by_head(whole: Stored, fused: Checkpoint) -> list[Ranges]:
    if not whole.shape or not fused.model_type:
        raise ModelError(UNKNOWN_ORDER)
    heads = Heads.of(read_transformers_config(fused.folder))
    if heads.fused is None:
        raise ModelError(f"{fused.model_type}: {UNKNOWN_ORDER}")
    if heads.transposed and len(whole.shape) > 1:
        raise ModelError(f"{whole.name.split('.')[-2]} is stored (in, out), and separate projections (out, in)")
    return [heads.rows("qkv", whole.shape[0], None, part) for part in "qkv"]


def _cut_out(whole: Stored, ranges: Ranges) -> Rows:
    width = _count(whole.shape[1:])
    return Rows(tuple((whole, start * width, (stop - start) * width) for start, stop in ranges))


def _gathered(parts: Sequence[Stored], rows: Sequence[Ranges]) -> Rows:
    """The parts' rows in the order in which a fused tensor holds them."""
    width = _count(parts[0].shape[1:])
    pieces = []
    for part, ranges in zip(parts, rows, strict=True):
        done = 0
        for start, stop in ranges:
            pieces.append((start, (part, done * width, (stop - start) * width)))
            done += stop - start
    return Rows(tuple(piece for _, piece in sorted(pieces, key=lambda found: found[0])))


def _left_over(
    base: Checkpoint,
    tuned: Checkpoint,
    theirs: Mapping[str, Stored],
    ours: Mapping[str, Stored],
    compared: Iterable[str],
    used: set[str],
    reasons: Mapping[str, str],
) -> list[Uncompared]:
    left, done = [], set(compared)
    for key, tensor in ours.items():
        if key in done:
            continue
        if key in theirs and key not in used:
            shape = theirs[key].shape
            turned = "; perhaps stored transposed" if shape == tensor.shape[::-1] else ""
            left.append(Uncompared(tensor.name, shape, tensor.shape, f"other shape{turned}"))
        else:
            why = _why(tensor, base, "tuned", reasons.get(key))
            left.append(Uncompared(tensor.name, None, tensor.shape, why))
    for key, tensor in theirs.items():
        if key not in used and key not in ours:
            why = _why(tensor, tuned, "base", reasons.get(key))
            left.append(Uncompared(tensor.name, tensor.shape, None, why))
    for name in dict.fromkeys([*tuned.tables, *base.tables]):
        left.append(Uncompared(name, base.tables.get(name), tuned.tables.get(name), "whole numbers"))
    return left


def _why(tensor: Stored, other: Checkpoint, side: str, known: str | None) -> str:
    """Why a tensor is on one side only; a configuration that does not say may leave tying to its model's default."""
    if known is not None:
        return f"only in {side}: {known}"
    embeddings = (place(name).component == "embed" and t.shape == tensor.shape for name, t in other.tensors.items())
    if place(tensor.name).component != "unembed" or other.ties is False or not any(embeddings):
        return f"only in {side}"
    return f"only in {side}: {'is' if other.ties else 'may be'} tied to the embedding in the other"


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
