"""Weights of a model under edits: made from packed masks when they are needed, put in place, and taken away again."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lesion.anatomy import Anatomy, refuse_packed
from lesion.anatomy.renaming import renaming
from lesion.anatomy.wording import some
from lesion.checkpoints.align import common_prefix
from lesion.checkpoints.edited import edited
from lesion.checkpoints.masks import Masks
from lesion.checkpoints.scopes import Heads, Region, Structure
from lesion.checkpoints.selection import RANDOM, select, tensor_seed
from lesion.errors import InterventionError, ModelError
from lesion.interventions.weights import OUTSIDE, WeightEdit

CACHE_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}
"""Most bytes of edited weights that are kept for the next batch."""


@dataclass(frozen=True)
class _Target:
    """A parameter that an edit reaches, by the module that holds it (streamed blocks get new parameters)."""

    module: nn.Module
    leaf: str
    name: str
    mask_name: str
    region: Region

    @property
    def parameter(self) -> nn.Parameter:
        found = self.module._parameters[self.leaf]
        assert found is not None
        return found


@dataclass
class _Bound:
    """An edit and the parameters that it reaches, by block (`OUTSIDE` for what is in none)."""

    masks: Masks
    targets: Mapping[int, Sequence[_Target]]
    drawn: dict[str, "_Drawn"] = field(default_factory=dict)
    sizes: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Drawn:
    """Where the drawn weights of one parameter are kept, a bit for each weight of the region."""

    start: int
    size: int
    n_set: int
    n_zero_modes: int


class Rewriting:
    """What edits of weights make of a model's parameters.

    The model's own tensors are never written to: an edited copy stands in their place while it is needed. What the
    seed of a random kind draws in a parameter is drawn once and kept as bits in a nameless file.

    Args:
        anatomy: of the model; its blocks may be on disk, as long as a block is there when its weights are asked for.
        edits: all that will be asked for.
        keep_bytes: of edited weights that may be kept for the next time; None takes `CACHE_BYTES`.

    Raises:
        InterventionError: a scope is not one of this model.
        InputError: there are no masks, or they are damaged.
        ModelError: the model does not fit the masks, or its weights are packed.
    """

    def __init__(self, anatomy: Anatomy, edits: Sequence[WeightEdit], *, keep_bytes: int | None = None) -> None:
        self._anatomy = anatomy
        self._bound: dict[WeightEdit, _Bound] = {}
        self._cache: dict[tuple[tuple[WeightEdit, ...], int], list[tuple[_Target, Tensor]]] = {}
        device = anatomy.device.type
        self._room = CACHE_BYTES.get(device, CACHE_BYTES["cpu"]) if keep_bytes is None else keep_bytes
        self._file = tempfile.TemporaryFile() if edits else None  # noqa: SIM115  (it lives as long as this does)
        if edits:
            refuse_packed(anatomy, "an edit of weights")
            if anatomy.family.experts is not None:
                raise ModelError(
                    f"{type(anatomy.model).__name__} holds the weights of its experts in one tensor and stores them "
                    "apart, so that masks of files cannot be laid over it; `lesion zero-modes apply` edits the files"
                )
        opened = {path: Masks.load(path) for path in {edit.masks for edit in edits}}
        for edit in dict.fromkeys(edits):
            self._bound[edit] = self._bind(edit, opened[edit.masks])

    def notes(self, edit: WeightEdit) -> list[str]:
        """What is to be said about an edit in this model: heads that share what is set, weights without a match."""
        note = edit.parsed_scope.note(self._structure)
        return [note] if note else []

    def n_set(self, edit: WeightEdit) -> tuple[int, int]:
        """Weights that an edit sets, and how many of them are zero modes; of random ones once its blocks were here."""
        if edit.kind in RANDOM:
            drawn = self._bound[edit].drawn.values()
            return sum(one.n_set for one in drawn), sum(one.n_zero_modes for one in drawn)
        zero_modes, others = self.sizes(edit)
        return (zero_modes, zero_modes) if edit.kind == "zero_modes" else (others, 0)

    def sizes(self, edit: WeightEdit) -> tuple[int, int]:
        """Zero modes in the scope of an edit, and the other weights there; from the masks alone."""
        bound = self._bound[edit]
        if bound.sizes is None:
            zero_modes = whole = 0
            for target in (target for targets in bound.targets.values() for target in targets):
                whole += target.region.size(bound.masks.shape(target.mask_name))
                if target.region.dim is None:
                    zero_modes += bound.masks.count(target.mask_name)
                else:
                    found = target.region.take(bound.masks[target.mask_name])
                    zero_modes += int(np.count_nonzero(found.numpy()))
            bound.sizes = (zero_modes, whole - zero_modes)
        return bound.sizes

    @contextlib.contextmanager
    def replaced(self, edits: Sequence[WeightEdit], layer: int) -> Iterator[None]:
        """Puts the edited weights of a block (or `OUTSIDE`) in place while the context lasts.

        The parameters' own tensors come back as they were, to the bit, also after an exception.
        """
        made = self._made(tuple(edits), layer)
        before = [(target.parameter, target.parameter.data) for target, _ in made]
        try:
            for target, tensor in made:
                target.parameter.data = tensor
            yield
        finally:
            for parameter, tensor in before:
                parameter.data = tensor

    def keep_nothing(self) -> None:
        """From now on edited weights are made anew each time: blocks come and go, and memory is counted."""
        self._cache.clear()
        self._room = 0

    def _made(self, edits: tuple[WeightEdit, ...], layer: int) -> list[tuple[_Target, Tensor]]:
        kept = self._cache.get((edits, layer))
        if kept is not None:
            return kept
        by_name: dict[str, tuple[_Target, Tensor]] = {}
        for edit in edits:
            for target in self._bound[edit].targets.get(layer, ()):
                before = by_name[target.name][1] if target.name in by_name else target.parameter.data
                by_name[target.name] = (target, self._edited(edit, target, before))
        made = list(by_name.values())
        size = sum(tensor.nbytes for _, tensor in made)
        if size <= self._room:
            self._room -= size
            self._cache[edits, layer] = made
        return made

    def _edited(self, edit: WeightEdit, target: _Target, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        with torch.inference_mode(False):
            chosen = self._chosen(edit, target).to(weight.device)
            if edit.value == "zero":
                return edited(weight, chosen, "zero")
            return edited(narrowed(weight), chosen, edit.value).to(weight.dtype)

    def _chosen(self, edit: WeightEdit, target: _Target) -> Bool[Tensor, "..."]:
        bound = self._bound[edit]
        if edit.kind in RANDOM:
            return self._drawn(edit, target, bound)
        return select(edit.kind, bound.masks[target.mask_name], None, target.region)

    def _drawn(self, edit: WeightEdit, target: _Target, bound: _Bound) -> Bool[Tensor, "..."]:
        """The weights that a seed draws; they depend on nothing but the mask, the weights as stored and the seed."""
        shape = bound.masks.shape(target.mask_name)
        assert self._file is not None
        if target.name not in bound.drawn:
            weight = narrowed(target.parameter.data.cpu()) if edit.kind == "random_matched" else None
            seed = tensor_seed(edit.seed or 0, target.mask_name)
            mask = bound.masks[target.mask_name]
            try:
                chosen = select(edit.kind, mask, weight, target.region, seed=seed, disjoint=edit.disjoint)
            except InterventionError as error:
                raise InterventionError(f"{target.name}: {error}") from None
            bits = np.packbits(target.region.take(chosen).flatten().numpy(), bitorder="little")
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(bits.data)
            self._file.flush()
            n_set, n_zero_modes = (int(np.count_nonzero(found.numpy())) for found in (chosen, chosen & mask))
            bound.drawn[target.name] = _Drawn(start, len(bits), n_set, n_zero_modes)
            return chosen
        drawn = bound.drawn[target.name]
        bits = np.frombuffer(os.pread(self._file.fileno(), drawn.size, drawn.start), np.uint8)
        whole = target.region.take(torch.empty(shape, dtype=torch.bool, device="meta")).shape
        found = np.unpackbits(bits, count=target.region.size(shape), bitorder="little").view(np.bool_)
        return target.region.put(torch.from_numpy(found).reshape(whole), shape)

    def _bind(self, edit: WeightEdit, masks: Masks) -> _Bound:
        structure, scope = self._structure, edit.parsed_scope
        scope.check(structure, edit.include)
        regions = {name: scope.region(name, structure, edit.include) for name in structure.shapes}
        wanted = {name: region for name, region in regions.items() if region is not None}
        if not wanted:
            raise InterventionError(f"scope {edit.scope} takes no weight of this {type(self._anatomy.model).__name__}")
        met = {structure.places[name].component for name in wanted}
        if lacking := sorted(set(edit.include) - met):
            tied = "; a tied unembedding is stored as embed" if "unembed" in lacking else ""
            raise InterventionError(f"--include {lacking[0]} adds nothing to scope {edit.scope} of this model{tied}")
        paired = self._paired(list(wanted), masks)
        targets: dict[int, list[_Target]] = {}
        for name, region in wanted.items():
            found, shape = paired[name], structure.shapes[name]
            if masks.shape(found) != shape:
                raise ModelError(
                    f"the masks do not fit the model: {name} is {shape}, the mask {found} is {masks.shape(found)}"
                )
            module, _, leaf = name.rpartition(".")
            layer = structure.places[name].layer
            spot = _Target(self._anatomy.model.get_submodule(module), leaf, name, found, region)
            targets.setdefault(OUTSIDE if layer is None else layer, []).append(spot)
        return _Bound(masks, targets)

    @cached_property
    def _structure(self) -> Structure:
        return structure_of(self._anatomy)

    def _paired(self, names: Sequence[str], masks: Masks) -> dict[str, str]:
        """The mask of each parameter: that whose name transformers reads as the parameter's, or but for a prefix.

        Raises:
            ModelError: there is none.
        """
        renamed = renaming(self._anatomy.model)
        known = {renamed(name): name for name in masks.names}
        prefix = common_prefix(self._structure.shapes, known)
        bare = {name.removeprefix(prefix): mask for name, mask in known.items()}
        paired = {name: known.get(name) or bare.get(name.removeprefix(prefix)) for name in names}
        if lacking := [name for name, mask in paired.items() if mask is None]:
            raise ModelError(
                f"the masks do not fit the model: they have none of {some(lacking)}, which the scope takes"
            )
        return {name: mask for name, mask in paired.items() if mask is not None}


def refuse_nothing(rewriting: Rewriting, edits: Sequence[WeightEdit]) -> None:
    """Raises InterventionError where an edit sets no weight at all; random ones are known once they were made."""
    for edit in edits:
        if not rewriting.n_set(edit)[0]:
            raise InterventionError(f"{edit.name}: these are no weights at all, so it would do nothing")


def structure_of(anatomy: Anatomy) -> Structure:
    """What scopes need to know of a model, by the names that its parameters have in memory."""
    shapes = {name: tuple(parameter.shape) for name, parameter in anatomy.model.named_parameters()}
    config = anatomy.config
    return Structure(shapes, lambda: Heads.of(config), config.model_type)


def narrowed(weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """A weight in the narrowest type that holds it exactly: the one that it was stored in, before it was widened.

    Exponents and means are those of the stored numbers, so that a lane and a checkpoint that `zero-modes apply` wrote
    are the same model.
    """
    if weight.dtype != torch.float32:
        return weight
    for dtype in (torch.bfloat16, torch.float16):
        narrow = weight.to(dtype)
        if torch.equal(narrow.to(torch.float32), weight):
            return narrow
    return weight
