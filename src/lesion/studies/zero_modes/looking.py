"""Which matrices of a pair are looked at (`--look`), and how heads and neurons lie in them."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from lesion.anatomy.wording import quiet_transformers
from lesion.checkpoints.components import COMPONENTS, place
from lesion.checkpoints.masks import Masks
from lesion.checkpoints.opened import Checkpoint, Stored
from lesion.checkpoints.scopes import INCLUDABLE, Heads, Region, Structure, parse_scope, read_transformers_config
from lesion.checkpoints.spectra import Rotary
from lesion.errors import InputError, ModelError

AUTO = ("q", "k", "v", "o", "qkv", "gate", "down", "fc1", "fc2")
"""Components that `auto` looks at, of blocks 0 and 1 and of the last one."""
NEURONS = {"gate": 0, "up": 0, "fc1": 0, "down": 1, "fc2": 1}
"""The dimension that counts neurons, of (outputs, inputs)."""
HEADS = {"q": 0, "k": 0, "v": 0, "o": 1}
"""The dimension along which heads lie."""
GRAMMAR = "auto, none, all, LAYER/COMPONENT such as 1/k, or a scope such as layer:3, component:gate, layers:0-3/QK"
_FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
_PLACE = re.compile(r"(\d+)/(\w+)")
_PIECE = 1 << 22
"""Weights read at a time."""
_SIGNED = {2: np.int16, 4: np.int32, 8: np.int64}


@dataclass(frozen=True)
class Part:
    """A matrix inside a block: a tensor, or the slice of one that is q, k or v, or gate or up.

    Attributes:
        tensor: name as stored.
        region: the slice.
        transposed: it is stored as (inputs, outputs), as GPT-2 does.
    """

    tensor: str
    layer: int
    component: str
    region: Region
    transposed: bool

    @property
    def name(self) -> str:
        """LAYER/COMPONENT."""
        return f"{self.layer}/{self.component}"

    @property
    def key(self) -> str:
        """What its pictures are called: the tensor, and the component where that is a slice of it."""
        return self.tensor if self.region.dim is None else f"{self.tensor}/{self.component}"

    def oriented(self, matrix: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The matrix as (outputs, inputs)."""
        return matrix.T.contiguous() if self.transposed else matrix

    def weight(self, stored: Stored, cast: str | None) -> Float[Tensor, "..."]:
        """The slice as it lies in the file, rounded where both sides were; all of the tensor is held once."""
        kind = torch.bfloat16 if cast == "bf16" else stored.dtype
        n_weights = int(np.prod(stored.shape))
        flat = torch.empty(n_weights, dtype=kind)
        for start in range(0, n_weights, _PIECE):
            stop = min(start + _PIECE, n_weights)
            bits = stored.read(start, stop).view(_SIGNED[stored.dtype.itemsize]).copy()
            flat[start:stop] = torch.from_numpy(bits).view(stored.dtype)
        return self.region.take(flat.reshape(stored.shape))

    def mask(self, masks: Masks) -> Bool[Tensor, "..."]:
        """The slice's zero modes, as it lies in the file."""
        return self.region.take(masks[self.tensor])


@dataclass(frozen=True)
class Plan:
    """What will be looked at.

    Attributes:
        look: what was asked for, in the order given.
        heads: of the attention, with how rotary positions pair its dimensions; None where nothing is looked at.
        warnings: what is left out, and why.
    """

    look: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    heads: Heads | None = None
    rotary: Rotary | None = None
    warnings: tuple[str, ...] = ()


def parse_look(texts: Iterable[str]) -> tuple[str, ...]:
    """What is to be looked at, from texts that may be lists with commas: LAYER/COMPONENT becomes a scope.

    Raises:
        InputError: a text is nothing that can be looked at, or `none` beside others.
        InterventionError: a scope is none.
    """
    given = [word.strip() for text in texts for word in text.split(",")]
    found = tuple(dict.fromkeys(_PLACE.sub(r"layer:\1/\2", word) if _PLACE.fullmatch(word) else word for word in given))
    if "none" in found:
        if len(found) > 1:
            raise InputError(f"--look none excludes {', '.join(word for word in found if word != 'none')}; give one")
        return ()
    for word in found:
        if word != "auto" and parse_scope(word).head is not None:
            raise InputError(f"--look {word}: whole matrices are looked at, not heads; what can be is {GRAMMAR}")
    return found


def plan(look: Sequence[str], tuned: Checkpoint, base: Checkpoint) -> Plan:
    """Which matrices of TUNED `look` (see `parse_look`) means.

    Heads are those of its config.json; a folder without one, as an adapter's is, has BASE's.
    Where nothing was asked for but `auto`, a checkpoint of which heads or layout are not known is not looked at,
    with a warning.

    Raises:
        ModelError: the configuration cannot be read, or contradicts the weights.
        InterventionError: the checkpoint does not have what was asked for.
    """
    if not look:
        return Plan()
    configured = next((side for side in (tuned, base) if (side.folder / "config.json").is_file()), tuned)
    try:
        return _plan(tuple(look), tuned, configured)
    except ModelError as error:
        if tuple(look) != ("auto",):
            raise
        return Plan(look=tuple(look), warnings=(f"no spectra, pictures or neurons (--look): {error}",))


def _plan(look: tuple[str, ...], tuned: Checkpoint, configured: Checkpoint) -> Plan:
    shapes = {name: tensor.shape for name, tensor in tuned.tensors.items()}
    heads, rotary = _layout(configured.folder, shapes, configured.model_type)
    structure = Structure(shapes, lambda: heads, configured.model_type or "this model")
    everything = _parts(structure)
    chosen = [part for part in everything if any(_means(word, part, structure) for word in look)]
    for word in look:
        if word != "auto" and not any(_means(word, part, structure) for part in everything):
            raise InputError(f"--look {word}: no projection matrix inside a block is meant; what can be is {GRAMMAR}")
    warnings = [] if chosen else ["no spectra, pictures or neurons (--look): no projection matrices inside blocks"]
    if look == ("auto",):
        first = {part.name: part.tensor for part in reversed(chosen)}
        experts = [part for part in chosen if first[part.name] != part.tensor]
        if experts:
            warnings.append(
                f"--look auto takes the first expert of a block and leaves out {len(experts)} matrices of the others; "
                f"--look {experts[0].name} takes all"
            )
            chosen = [part for part in chosen if part not in experts]
    if any(part.component == "qkv" for part in chosen):
        warnings.append(
            f"no spectra of heads: {structure.model_type} keeps q, k and v in one matrix, in an unknown order"
        )
    return Plan(look, tuple(chosen), heads, rotary, tuple(warnings))


def _layout(folder: Path, shapes: Mapping[str, tuple[int, ...]], model_type: str | None) -> tuple[Heads, Rotary]:
    if model_type is not None:
        with quiet_transformers():
            config = read_transformers_config(folder)
        return Heads.of(config), Rotary.of(config)
    return _layout_of_old(folder / "config.json", shapes)


def _layout_of_old(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Heads, Rotary]:
    """That of a configuration from before they named their family; transformers refuses to read those."""
    config: Mapping[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    n_heads, n_kv_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if not isinstance(n_heads, int) or n_heads < 1:
        raise ModelError(f"{path} says neither model_type nor num_attention_heads, so heads cannot be found")
    if any(spot.component == "qkv" for spot in map(place, shapes)):
        raise ModelError(f"{path} says no model_type, so parts of its matrices of q, k and v cannot be told apart")
    n_kv_heads = n_kv_heads if isinstance(n_kv_heads, int) and n_kv_heads > 0 else n_heads
    return Heads(n_heads, n_kv_heads), Rotary(False, "a block a head: config.json says no model_type")


def _parts(structure: Structure) -> list[Part]:
    """All matrices inside blocks that can be looked at, in the order of layers and components."""
    heads, found = structure.heads, []
    for tensor, spot in structure.places.items():
        shape = structure.shapes[tensor]
        if spot.layer is None or not spot.is_projection or len(shape) != 2 or 0 in shape:
            continue
        outputs = 1 if heads.transposed else 0
        for component in _components(spot.component, heads):
            region = Region()
            if spot.component == "qkv" and component != "qkv":
                region = Region(outputs, tuple(heads.rows("qkv", shape[outputs], None, component)))
            elif spot.component == "gate_up":
                middle = shape[outputs] // 2
                region = Region(outputs, ((0, middle),) if component == "gate" else ((middle, shape[outputs]),))
            found.append(Part(tensor, spot.layer, component, region, heads.transposed))
    return sorted(found, key=lambda part: (part.layer, COMPONENTS.index(part.component)))


def _components(stored: str, heads: Heads) -> tuple[str, ...]:
    return (stored,) if stored == "qkv" and heads.fused is None else _FUSED.get(stored, (stored,))


def _means(word: str, part: Part, structure: Structure) -> bool:
    """Whether a part is meant; a scope that the model does not have is refused."""
    if word == "auto":
        return part.layer in {0, 1, structure.layers[-1]} and part.component in AUTO
    scope = parse_scope(word)
    scope.check(structure, INCLUDABLE)
    if scope.layers and not scope.layers[0] <= part.layer <= scope.layers[1]:
        return False
    return scope.components is None or bool(
        scope.components & {part.component, structure.places[part.tensor].component}
    )
