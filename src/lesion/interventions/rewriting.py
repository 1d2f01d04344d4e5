"""Weights of a model under edits: made from packed masks when they are needed, put in place, and taken away again."""

import contextlib
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lesion.anatomy import Anatomy, refuse_packed
from lesion.anatomy.renaming import renaming, stored_parameters
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


_ORIGINAL = "_lesion_original"
"""Attribute of an edited copy that says whose place it has taken."""


@dataclass(frozen=True)
class _Target:
    """A parameter that an edit reaches, by the modules that hold it (streamed blocks get new parameters)."""

    holders: tuple[tuple[nn.Module, str], ...]
    name: str
    mask_name: str
    region: Region

    @property
    def parameter(self) -> nn.Parameter:
        """What is in place, which may be an edited copy."""
        module, leaf = self.holders[0]
        found = module._parameters[leaf]
        assert found is not None
        return found

    @property
    def original(self) -> nn.Parameter:
        """The model's own."""
        return _original(self.parameter)


def _original(parameter: nn.Parameter) -> nn.Parameter:
    found: nn.Parameter = getattr(parameter, _ORIGINAL, parameter)
    return found


@dataclass
class _Bound:
    """An edit and the parameters that it reaches, by block (`OUTSIDE` for what is in none)."""

    masks: Masks
    targets: Mapping[int, Sequence[_Target]]
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)


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
        self._drawn: dict[tuple[object, ...], _Drawn] = {}
        self._file = tempfile.TemporaryFile() if edits else None  # noqa: SIM115  (it lives as long as this does)
        if edits:
            refuse_packed(anatomy, "an edit of weights")
            if anatomy.family.experts is not None:
                raise ModelError(
                    f"{type(anatomy.model).__name__} holds the weights of its experts in one tensor and stores them "
                    "apart, so that masks of files cannot be laid over it; `lesion zero-modes apply` edits the files"
                )
        self._stored = stored_parameters(anatomy.model) if edits else {}
        opened = {path: Masks.load(path) for path in {edit.masks for edit in edits}}
        for edit in dict.fromkeys(edits):
            self._bound[edit] = self._bind(edit, opened[edit.masks])

    def n_set(self, edit: WeightEdit, layers: Collection[int] | None = None) -> tuple[int, int]:
        """Weights that an edit sets, and how many of them are zero modes; of random ones once its blocks were here.

        Args:
            layers: blocks that count, beside what is in none; None for all.
        """
        if edit.kind in RANDOM:
            keys = [_key(edit, target) for target in self._reached(edit, layers)]
            drawn = [self._drawn[key] for key in keys if key in self._drawn]
            return sum(one.n_set for one in drawn), sum(one.n_zero_modes for one in drawn)
        zero_modes, others = self.sizes(edit, layers)
        return (zero_modes, zero_modes) if edit.kind == "zero_modes" else (others, 0)

    def sizes(self, edit: WeightEdit, layers: Collection[int] | None = None) -> tuple[int, int]:
        """Zero modes in the scope of an edit, and the other weights there; from the masks alone."""
        bound = self._bound[edit]
        counted = [layer for layer in bound.targets if _counts(layer, layers)]
        for layer in counted:
            if layer not in bound.sizes:
                bound.sizes[layer] = self._sizes(bound, layer)
        return sum(bound.sizes[layer][0] for layer in counted), sum(bound.sizes[layer][1] for layer in counted)

    def n_wanted(self, edit: WeightEdit, layers: Collection[int] | None = None) -> int:
        """Weights that an edit is to set, from the masks alone; of matched ones with `disjoint` fewer may be found."""
        zero_modes, others = self.sizes(edit, layers)
        return others if edit.kind in ("complement", "keep_only") else zero_modes

    def reaches(self, edit: WeightEdit, layers: Collection[int] | None = None) -> frozenset[str]:
        """Names of the parameters in the scope of an edit."""
        return frozenset(target.name for target in self._reached(edit, layers))

    def _reached(self, edit: WeightEdit, layers: Collection[int] | None) -> list[_Target]:
        targets = self._bound[edit].targets
        return [target for layer in targets if _counts(layer, layers) for target in targets[layer]]

    def _sizes(self, bound: _Bound, layer: int) -> tuple[int, int]:
        zero_modes = whole = 0
        for target in bound.targets[layer]:
            whole += target.region.size(bound.masks.shape(target.mask_name))
            if target.region.dim is None:
                zero_modes += bound.masks.count(target.mask_name)
            else:
                found = target.region.take(bound.masks[target.mask_name])
                zero_modes += int(np.count_nonzero(found.numpy()))
        return zero_modes, whole - zero_modes

    @contextlib.contextmanager
    def replaced(self, edits: Sequence[WeightEdit], layer: int) -> Iterator[None]:
        """Puts the edited weights of a block (or `OUTSIDE`) in place while the context lasts.

        The parameters' own tensors come back as they were, to the bit, also after an exception.
        """
        made = self._made(tuple(edits), layer)
        copies: list[_InPlace] = []
        strange = False
        try:
            for target, tensor in made:
                copies.append(_in_place(target, tensor))
            yield
        finally:
            for copy in copies:
                strange |= copy.take_away()
        if strange:
            raise InterventionError(
                "weights were changed, or another edit was put in place or taken away, while an edit was in place: "
                "leave edits in the reverse order, and change or load weights outside of them. The model has its own "
                "weights again"
            )

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
            return edited(self._as_stored(target, weight), chosen, edit.value).to(weight.dtype)

    def _chosen(self, edit: WeightEdit, target: _Target) -> Bool[Tensor, "..."]:
        masks = self._bound[edit].masks
        if edit.kind in RANDOM:
            return self._drawn_once(edit, target, masks)
        return select(edit.kind, masks[target.mask_name], None, target.region)

    def _drawn_once(self, edit: WeightEdit, target: _Target, masks: Masks) -> Bool[Tensor, "..."]:
        """The weights that a seed draws; they depend on nothing but the mask, the model's weights and the seed."""
        shape, key = masks.shape(target.mask_name), _key(edit, target)
        assert self._file is not None
        if key not in self._drawn:
            chosen, mask = self._draw(edit, target, masks), masks[target.mask_name]
            bits = np.packbits(target.region.take(chosen).flatten().numpy(), bitorder="little")
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(bits.data)
            self._file.flush()
            n_set, n_zero_modes = (int(np.count_nonzero(found.numpy())) for found in (chosen, chosen & mask))
            self._drawn[key] = _Drawn(start, len(bits), n_set, n_zero_modes)
            return chosen
        drawn = self._drawn[key]
        bits = np.frombuffer(os.pread(self._file.fileno(), drawn.size, drawn.start), np.uint8)
        whole = target.region.take(torch.empty(shape, dtype=torch.bool, device="meta")).shape
        found = np.unpackbits(bits, count=target.region.size(shape), bitorder="little").view(np.bool_)
        return target.region.put(torch.from_numpy(found).reshape(whole), shape)

    def _draw(self, edit: WeightEdit, target: _Target, masks: Masks) -> Bool[Tensor, "..."]:
        weight = None
        if edit.kind == "random_matched":
            weight = self._as_stored(target, target.original.data).cpu()
        seed, mask = tensor_seed(edit.seed or 0, target.mask_name), masks[target.mask_name]
        try:
            return select(edit.kind, mask, weight, target.region, seed=seed, disjoint=edit.disjoint)
        except InterventionError as error:
            raise InterventionError(f"{target.name}: {error}") from None

    def _as_stored(self, target: _Target, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """A weight in the type that it is stored in, so that a lane and what `zero-modes apply` writes are one model.

        Where the model in memory has other weights than its files, it is what it is.
        """
        stored = self._stored.get(target.name)
        if stored is None or stored.dtype == weight.dtype:
            return weight
        narrow = weight.to(stored.dtype)
        if stored.dtype.itemsize < weight.dtype.itemsize:
            return narrow if torch.equal(narrow.to(weight.dtype), weight) else weight
        if not torch.equal(weight, target.original.data):
            return narrow  # an edit has been here before: what is left of the stored numbers is not known any more
        original = stored[...].to(weight.device)
        return original if torch.equal(original.to(weight.dtype), weight) else weight

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
            layer = structure.places[name].layer
            spot = _Target(self._holders[name], name, found, region)
            targets.setdefault(OUTSIDE if layer is None else layer, []).append(spot)
        return _Bound(masks, targets)

    @cached_property
    def _structure(self) -> Structure:
        return structure_of(self._anatomy)

    @cached_property
    def _holders(self) -> dict[str, tuple[tuple[nn.Module, str], ...]]:
        """Every module that holds a parameter, and what it calls it: several where weights are tied."""
        model = self._anatomy.model
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        found: dict[str, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    found.setdefault(names[id(parameter)], []).append((module, leaf))
        return {name: tuple(holders) for name, holders in found.items()}

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


@dataclass
class _InPlace:
    """An edited copy in the place of a parameter."""

    target: _Target
    before: nn.Parameter
    copy: nn.Parameter
    version: int

    def take_away(self) -> bool:
        """Puts back what was there; whether something else was done to the weights meanwhile."""
        strange = bool(self.copy._version != self.version or self.copy.dtype != self.before.dtype)
        for module, leaf in self.target.holders:
            ours = module._parameters[leaf] is self.copy
            module._parameters[leaf] = self.before if ours else _original(self.before)
            strange |= not ours
        return strange


def _in_place(target: _Target, tensor: Tensor) -> _InPlace:
    before = target.parameter
    with torch.inference_mode(False):
        copy = nn.Parameter(tensor, requires_grad=before.requires_grad)
    setattr(copy, _ORIGINAL, target.original)
    for module, leaf in target.holders:
        module._parameters[leaf] = copy
    return _InPlace(target, before, copy, copy._version)


def _counts(layer: int, layers: Collection[int] | None) -> bool:
    return layers is None or layer == OUTSIDE or layer in layers


def _key(edit: WeightEdit, target: _Target) -> tuple[object, ...]:
    """What a draw depends on: the same weights are drawn in a matrix whatever scope holds it."""
    return edit.masks, edit.kind, edit.seed, edit.disjoint, target.name, target.region


def refuse_nothing(rewriting: Rewriting, edits: Sequence[WeightEdit], layers: Collection[int] | None = None) -> None:
    """Raises InterventionError where an edit would set no weight at all, in the blocks that run."""
    for edit in edits:
        if not rewriting.reaches(edit, layers):
            raise InterventionError(f"{edit.name} reaches only blocks that another edit leaves out")
        if not rewriting.n_wanted(edit, layers):
            raise InterventionError(f"{edit.name}: these are no weights at all, so it would do nothing")


def structure_of(anatomy: Anatomy) -> Structure:
    """What scopes need to know of a model, by the names that its parameters have in memory."""
    shapes = {name: tuple(parameter.shape) for name, parameter in anatomy.model.named_parameters()}
    config = anatomy.config
    return Structure(shapes, lambda: Heads.of(config), config.model_type)
