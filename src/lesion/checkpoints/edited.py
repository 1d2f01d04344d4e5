"""A checkpoint written anew with some weights set: an ordinary Hugging Face folder, one tensor at a time."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lesion.anatomy.files import INDEX, SINGLE, read_config, states, weight_files
from lesion.anatomy.streaming import FLOATS, StoredTensor, stored_tensors
from lesion.anatomy.wording import some
from lesion.checkpoints.align import common_prefix
from lesion.checkpoints.masks import Masks
from lesion.checkpoints.scopes import Region, Scope, Structure, parse_scope, read_transformers_config
from lesion.checkpoints.selection import KINDS, RANDOM, Kind, select, tensor_seed
from lesion.errors import InputError, InterventionError, ModelError

Value = Literal["zero", "mean"]

RECORD = "lesion_edits.json"
"""File of an edited checkpoint that says what was done to it; transformers passes it over."""
OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".index.json")
"""How files end that may hold the weights once more, unedited, or describe such files; they are not copied."""
PIECE = 1 << 24


@dataclass(frozen=True)
class Applied:
    """What an edit did.

    Attributes:
        out: the folder that was written.
        n_weights_set: how many weights were set, a tied weight once.
        counts: how many of each tensor in the scope, by name as stored in the target.
        n_in_scope: how many weights of each of these tensors the scope takes.
        notes: what else is to be said, a line each: shared heads, files left out, weights without a match.
    """

    out: Path
    n_weights_set: int
    counts: Mapping[str, int]
    n_in_scope: Mapping[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Edit:
    """What is done to every tensor in the scope."""

    kind: Kind
    value: Value
    seed: int | None
    disjoint: bool


@dataclass(frozen=True)
class _Part:
    """A tensor in the scope, and the mask that belongs to it.

    Attributes:
        copies: tensors that are the same weights under another name (a tied unembedding that is stored too).
    """

    tensor: StoredTensor
    region: Region
    mask_name: str
    copies: tuple[StoredTensor, ...] = ()


def apply(
    target: Path,
    masks: Masks,
    kind: Kind,
    scope: Scope | str,
    out: Path,
    *,
    value: Value = "zero",
    seed: int | None = None,
    disjoint: bool = False,
    include: Collection[str] = (),
    drawn_from: Path | None = None,
) -> Applied:
    """Writes the checkpoint in `target` to `out`, with the selected weights set and every other bit as it is.

    Files and shards keep their names, tensors their order, dtypes and shapes. `out` appears whole or not at all.

    Args:
        target: a model folder with safetensors weights; any model of the masks' shapes.
        masks: zero modes of a pair of checkpoints.
        kind: which weights (see `select`).
        scope: where, by default the projection matrices inside all blocks.
        out: the folder to write; missing or empty.
        value: what the weights are set to: 0, or the mean of the tensor before the edit (in float64, rounded once).
        seed: of the random kinds, and only of them.
        disjoint: random weights that are no zero modes.
        include: `embed`, `unembed`, `norm`, `bias`: tensors beside the projections that count.
        drawn_from: the checkpoint whose exponents `random_matched` matches, where `target` is an edited copy of it.

    Raises:
        InputError: `out` is not empty, lies in the target, or cannot be written; options that contradict each other.
        InterventionError: the scope is not one of this model, or no weight would be set.
        ModelError: the target is damaged, packed, changed while it was read, or does not fit the masks.
    """
    scope = parse_scope(scope) if isinstance(scope, str) else scope
    edit = _Edit(kind, value, seed, disjoint)
    refuse_contradictions(kind, value, seed, disjoint=disjoint)
    refuse_out(target, out)
    config = _stored_config(target)
    weights = weight_files(target, allow_pickle=False)
    before = states(weights)
    tensors = stored_tensors(weights)
    structure = Structure.of(target, {name: tensor.shape for name, tensor in tensors.items()}, config["model_type"])
    scope.check(structure, include)
    parts = _parts(target, tensors, structure, masks, scope, include)
    left_out = _other_files(target, weights)[1]
    with _appearing(out) as folder:
        originals = stored_tensors(weight_files(drawn_from, allow_pickle=False)) if drawn_from else {}
        counts, unmatched = _write_weights(folder, weights, parts, masks, edit, originals)
        if states(weights) != before:
            raise ModelError(f"the weights in {target} were changed while they were read; {out} was not written")
        if not any(counts.values()):
            raise InterventionError(f"{kind} in scope {scope.text} are no weights at all; {out} was not written")
        _copy_others(target, folder, weights)
        _record(target, folder, edit, scope, include, masks, counts)
    notes = [scope.note(structure), unmatched, f"not copied: {some(left_out)}" if left_out else None]
    n_in_scope = {name: part.region.size(part.tensor.shape) for name, part in parts.items()}
    return Applied(out, sum(counts.values()), counts, n_in_scope, tuple(note for note in notes if note))


def edited(weight: Float[Tensor, "..."], chosen: Bool[Tensor, "..."], value: Value) -> Float[Tensor, "..."]:
    """A copy of a tensor in which the chosen weights are 0 or the tensor's mean.

    Raises:
        ModelError: the mean is not finite.
    """
    if value == "zero":
        return weight.masked_fill(chosen, 0.0)
    mean = weight.mean(dtype=torch.float64).to(weight.dtype)
    if not torch.isfinite(mean):
        raise ModelError(f"the mean of a tensor of shape {tuple(weight.shape)} is {mean.item()}; pass --value zero")
    return torch.where(chosen, mean, weight)


def refuse_contradictions(kind: str, value: str, seed: int | None, *, disjoint: bool) -> None:
    """Raises InputError where weights are asked for in a way that means nothing."""
    for asked, known in ((kind, KINDS), (value, get_args(Value))):
        if asked not in known:
            raise InputError(f"{asked!r} is not known here; there are {', '.join(known)}")
    is_random = kind in RANDOM
    if is_random and seed is None:
        raise InputError(f"{kind} needs a seed; pass --seed, or write #SEED behind an edit")
    if not is_random and (seed is not None or disjoint):
        option = "a seed" if seed is not None else "--disjoint"
        raise InputError(f"{kind} are fixed weights, nothing is drawn; leave out {option}")
    if kind == "keep_only" and value != "zero":
        raise InputError("keep_only sets everything else to 0; for the mean name the kind complement")


def refuse_out(target: Path, out: Path) -> None:
    """Raises InputError where `out` is in the target's folder, a file, or a folder that is not empty."""
    if out.resolve().is_relative_to(target.resolve()):
        raise InputError(f"{out} is in the target's own folder {target}; pass another --out")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; pass another --out")
    if not out.is_dir() and (out.exists() or out.is_symlink()):
        raise InputError(f"{out} is a file; pass another --out")


def _stored_config(target: Path) -> dict[str, Any]:
    config = read_config(target, ignore_remote_code=True)  # its code is copied, not run
    if "quantization_config" in config:
        raise ModelError(f"{target} holds packed (quantised) weights, which cannot be set one by one")
    return config


def _parts(
    target: Path,
    tensors: Mapping[str, StoredTensor],
    structure: Structure,
    masks: Masks,
    scope: Scope,
    include: Collection[str],
) -> dict[str, _Part]:
    """The tensors in the scope, each with its mask."""
    copies = _tied_copies(target, tensors, structure) if {"embed", "unembed"} & set(include) else {}
    copied = {copy for names in copies.values() for copy in names}
    regions: dict[str, Region] = {}
    for name in tensors:
        names = (name, *copies.get(name, ()))
        found = [region for each in names if (region := scope.region(each, structure, include)) is not None]
        if found and name not in copied:
            regions[name] = found[0]
    met = {*regions, *(copy for name in regions for copy in copies.get(name, ()))}
    _refuse_nothing(target, structure, scope, include, met)
    paired = _paired(regions, tensors, masks)
    parts = {}
    for name, region in regions.items():
        tensor, mask_name = tensors[name], paired[name]
        if tensor.dtype not in FLOATS.values():
            raise ModelError(f"{tensor.path}: {name} is stored as {tensor.dtype}, which is no floating-point number")
        if (shape := masks.shape(mask_name)) != tensor.shape:
            raise ModelError(
                f"the masks do not fit {target}: {name} is {tensor.shape}, the mask {mask_name} is {shape}"
            )
        parts[name] = _Part(tensor, region, mask_name, tuple(tensors[copy] for copy in copies.get(name, ())))
    return parts


def _refuse_nothing(
    target: Path, structure: Structure, scope: Scope, include: Collection[str], names: Collection[str]
) -> None:
    if not names:
        raise InterventionError(f"scope {scope.text} takes no weight of {target}")
    met = {structure.places[name].component for name in names}
    if lacking := sorted(set(include) - met):
        tied = "; a tied unembedding is stored as embed" if "unembed" in lacking else ""
        raise InterventionError(f"--include {lacking[0]} adds nothing to scope {scope.text} of {target}{tied}")


def _tied_copies(target: Path, tensors: Mapping[str, StoredTensor], structure: Structure) -> dict[str, tuple[str, ...]]:
    """Unembeddings that are stored a second time although they are tied, by the name of their embedding."""
    of = {kind: [n for n in tensors if structure.places[n].component == kind] for kind in ("embed", "unembed")}
    pairs = {
        embed: tuple(name for name in of["unembed"] if _are_equal(tensors[embed], tensors[name]))
        for embed in of["embed"]
    }
    found = {embed: names for embed, names in pairs.items() if names}
    if found and not getattr(read_transformers_config(target), "tie_word_embeddings", False):
        return {}
    return found


def _are_equal(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(_bytes(one[...]), _bytes(other[...]))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)


def _paired(names: Collection[str], tensors: Collection[str], masks: Masks) -> dict[str, str]:
    """The mask of each of `names`: that of its name, or of its name with the prefix of one side more or less.

    Raises:
        ModelError: there is none.
    """
    prefix = common_prefix(tensors, masks.names)
    known = {name.removeprefix(prefix): name for name in masks.names}
    paired = {name: known.get(name.removeprefix(prefix)) for name in names}
    if lacking := [name for name, mask in paired.items() if mask is None]:
        raise ModelError(f"the masks do not fit the target: they have none of {some(lacking)}, which the scope takes")
    return {name: mask for name, mask in paired.items() if mask is not None}


@contextlib.contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder beside `out` to fill, which becomes `out` at the end, and is gone after an error."""
    partial = out.with_name(f".{out.name[:40]}.{secrets.token_hex(6)}.partial")
    made = not out.parent.exists()
    try:
        try:
            out.parent.mkdir(exist_ok=True)
            partial.mkdir()
            yield partial
            _sync(partial)
            partial.replace(out)
            _sync(out.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            if made and out.parent.is_dir() and not any(out.parent.iterdir()):
                out.parent.rmdir()
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; free space or pass another --out") from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_weights(
    folder: Path,
    weights: Sequence[Path],
    parts: Mapping[str, _Part],
    masks: Masks,
    edit: _Edit,
    originals: Mapping[str, StoredTensor],
) -> tuple[dict[str, int], str | None]:
    """Writes every file of weights, and returns the numbers of weights set and a line on those without a match."""
    counts: dict[str, int] = {}
    short: dict[str, int] = {}
    owners = {tensor.name: name for name, part in parts.items() for tensor in (part.tensor, *part.copies)}
    places = {tensor.name: tensor for part in parts.values() for tensor in (part.tensor, *part.copies)}
    for path in weights:
        here = sorted((t for t in places.values() if t.path == path), key=lambda tensor: tensor.start)
        with path.open("rb") as old, (folder / path.name).open("xb") as new:
            done = 0
            for tensor in here:
                owner = owners[tensor.name]
                _copy(old, new, done, tensor.start)
                weight = tensor[...]
                is_drawn = edit.kind == "random_matched" and owner in originals
                matched = originals[owner][...] if is_drawn else weight
                chosen, missing = _chosen(parts[owner], matched, masks, edit)
                counts[owner], short[owner] = _count(chosen), missing
                new.write(_bytes(edited(weight, chosen, edit.value)).numpy().data)
                done = tensor.start + tensor.size
            _copy(old, new, done, path.stat().st_size)
            new.flush()
            os.fsync(new.fileno())
    missing = sum(short.values())
    line = f"{missing:,} of {missing + sum(counts.values()):,} weights have no match: too few others of their exponent"
    return {name: counts[name] for name in parts}, line if missing else None


def _chosen(part: _Part, weight: Float[Tensor, "..."], masks: Masks, edit: _Edit) -> tuple[Bool[Tensor, "..."], int]:
    """The weights of a tensor to set, and how many there are too few of."""
    mask = masks[part.mask_name]
    seed = tensor_seed(edit.seed or 0, part.mask_name)
    try:
        chosen = select(edit.kind, mask, weight, part.region, seed=seed, disjoint=edit.disjoint)
    except InterventionError as error:
        raise InterventionError(f"{part.tensor.name}: {error}") from None
    if edit.kind != "random_matched":
        return chosen, 0
    return chosen, _count(part.region.take(mask)) - _count(chosen)


def _count(chosen: Bool[Tensor, "..."]) -> int:
    return int(np.count_nonzero(chosen.numpy()))  # torch's sum of booleans takes thirty times as long


def _copy(old: BinaryIO, new: BinaryIO, start: int, end: int) -> None:
    old.seek(start)
    left = end - start
    while left:
        piece = old.read(min(left, PIECE))
        if not piece:
            raise ModelError(f"{old.name} became shorter while it was read")
        new.write(piece)
        left -= len(piece)


def _other_files(target: Path, weights: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Files to copy as they are, and the names of what is left out: folders, and weights in other formats."""
    copied, left_out = [], []
    used = {path.name for path in weights}
    for path in sorted(target.iterdir()):
        is_index = path.name == INDEX and SINGLE not in used
        if path.name in used:
            continue
        if path.is_file() and (is_index or not path.name.endswith(OTHER_WEIGHTS)):
            copied.append(path)
        else:
            left_out.append(path.name)
    return copied, left_out


def _copy_others(target: Path, folder: Path, weights: Sequence[Path]) -> None:
    for path in _other_files(target, weights)[0]:
        shutil.copyfile(path, folder / path.name)


def _record(
    target: Path,
    folder: Path,
    edit: _Edit,
    scope: Scope,
    include: Collection[str],
    masks: Masks,
    counts: Mapping[str, int],
) -> None:
    """Adds what was done to the record of edits, which goes on where the target is an edited checkpoint itself."""
    path = target / RECORD
    try:
        earlier = json.loads(path.read_bytes()) if path.is_file() else []
    except ValueError as error:
        raise ModelError(f"{path} is not a record of edits: {error}") from None
    kept = ("base", "tuned", "derived")
    entry = {
        "target": str(target),
        "kind": edit.kind,
        "scope": scope.text,
        "include": sorted(include),
        "value": edit.value,
        "seed": edit.seed,
        "disjoint": edit.disjoint,
        "masks": {key: masks.metadata[key] for key in kept if key in masks.metadata},
        "n_weights_set": sum(counts.values()),
        "n_weights_set_by_tensor": dict(counts),
    }
    (folder / RECORD).write_text(json.dumps([*earlier, entry], indent=1) + "\n")
