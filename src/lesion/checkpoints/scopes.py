"""Which weights a scope means: `all`, `layer:3`, `layers:16-31`, `component:gate`, `group:QK`, `head:1:2` …

Scopes mean the projection matrices inside blocks; embeddings, norms and biases only where they are included.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from lesion.anatomy.wording import first_line
from lesion.checkpoints.components import ATTENTION, COMPONENTS, PROJECTIONS, Place, place
from lesion.errors import InterventionError, ModelError

HALVES = ("gate", "up")
"""What a matrix gate_up holds, the one over the other."""
GROUPS = {"QK": ("q", "k"), "OV": ("v", "o"), "MLP": ("gate", "up", "down", "gate_up", "fc1", "fc2")}
INCLUDABLE = ("embed", "unembed", "norm", "bias")
"""Components that no scope means unless they are asked for by name."""
PLURALS = ("layers", "components", "heads")
GRAMMAR = (
    "all, layer:3, layers:16-31, component:gate, group:QK (or OV, MLP), layer:1/gate, layers:0-3/QK, or head:1:2 "
    "(layer, head)"
)

_SCOPE = re.compile(
    r"all|head:(?P<head_layer>\d+):(?P<head>\d+)"
    r"|(?:component|group):(?P<part>\w+)"
    r"|(?:layer:(?P<layer>\d+)|layers:(?P<first>\d+)-(?P<last>\d+))(?:/(?P<within>\w+))?"
)
_FUSED = {"gpt2": "parts", "gpt_neox": "groups", "bloom": "groups", "falcon": "groups"}
"""How q, k and v lie in one matrix: all q, all k, all v; or, for each head of keys, its q's, its k, its v."""


UNKNOWN_ORDER = "its q, k and v lie in one matrix, in an order that is not known"


@dataclass(frozen=True)
class Region:
    """A slice of a tensor: all of it, or some ranges of rows or columns.

    Attributes:
        dim: the dimension that is cut, None for all of the tensor.
        ranges: first index and the one after the last, of each piece.
    """

    dim: int | None = None
    ranges: tuple[tuple[int, int], ...] = ()

    def take(self, tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The slice of a tensor; all of it is the tensor itself."""
        if self.dim is None:
            return tensor
        return torch.cat([tensor.narrow(self.dim, start, end - start) for start, end in self.ranges], self.dim)

    def size(self, shape: tuple[int, ...]) -> int:
        """Number of weights in the slice of a tensor of `shape`."""
        if self.dim is None:
            return math.prod(shape)
        return math.prod(shape) // shape[self.dim] * sum(end - start for start, end in self.ranges)

    def put(self, part: Shaped[Tensor, "..."], shape: tuple[int, ...]) -> Shaped[Tensor, "..."]:
        """A tensor of `shape` that is `part` in the slice, and zero (False) outside."""
        if self.dim is None:
            return part
        whole = torch.zeros(shape, dtype=part.dtype)
        done = 0
        for start, end in self.ranges:
            whole.narrow(self.dim, start, end - start).copy_(part.narrow(self.dim, done, end - start))
            done += end - start
        return whole


@dataclass(frozen=True)
class Heads:
    """How heads lie in the matrices of attention.

    Attributes:
        n_heads: heads of queries.
        n_kv_heads: heads of keys and values; fewer where several heads of queries share them.
        fused: how one matrix holds q, k and v ("parts" or "groups"), None where it is not known.
        transposed: weights are (in, out), as in GPT-2, and not (out, in).
    """

    n_heads: int
    n_kv_heads: int
    fused: str | None = None
    transposed: bool = False

    @classmethod
    def of(cls, config: Any) -> "Heads":
        """Read from a transformers configuration.

        Raises:
            ModelError: it names no number of heads.
        """
        kind, n_heads = config.model_type, getattr(config, "num_attention_heads", None)
        if not isinstance(n_heads, int) or n_heads < 1:
            raise ModelError(
                f"the configuration of {kind} says no number of heads, so no head can be told from another"
            )
        n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
        if kind == "falcon":
            shared = 1 if config.multi_query else n_heads
            n_kv_heads = config.num_kv_heads if config.new_decoder_architecture else shared
        return cls(n_heads, n_kv_heads, _FUSED.get(kind), kind == "gpt2")

    def rows(
        self, component: str, size: int, head: int | None, parts: Collection[str] = "qkv"
    ) -> list[tuple[int, int]]:
        """Ranges of indices along the heads' side of a matrix.

        Args:
            component: q, k, v, o or qkv.
            size: of that side.
            head: of queries, with the keys and values that it reads; None for all.
            parts: which of q, k and v are wanted, of a matrix that holds them all.

        Raises:
            ModelError: heads do not fit the size.
        """
        shared = self.n_heads // self.n_kv_heads
        kv_head = None if head is None else head // shared
        if component != "qkv":
            count = self.n_kv_heads if component in "kv" else self.n_heads
            wanted = kv_head if component in "kv" else head
            d_head = _divided(size, count, component)
            return [(0, size)] if wanted is None else [(wanted * d_head, (wanted + 1) * d_head)]
        d_head = _divided(size, self.n_heads + 2 * self.n_kv_heads, component)
        found = []
        for part in [part for part in "qkv" if part in parts]:
            chosen = range(self.n_heads if part == "q" else self.n_kv_heads)
            if head is not None and kv_head is not None:
                chosen = range(head, head + 1) if part == "q" else range(kv_head, kv_head + 1)
            found += [self._slot(part, index) for index in chosen]
        return _joined((slot * d_head, (slot + 1) * d_head) for slot in sorted(found))

    def _slot(self, part: str, index: int) -> int:
        """Where a head's part lies in a matrix that holds q, k and v, counted in heads."""
        shared = self.n_heads // self.n_kv_heads
        if self.fused == "parts":
            return index + {"q": 0, "k": self.n_heads, "v": self.n_heads + self.n_kv_heads}[part]
        if part == "q":
            return index // shared * (shared + 2) + index % shared
        return index * (shared + 2) + shared + "kv".index(part)


class Structure:
    """What scopes need to know of a checkpoint: its tensors' places and shapes, and how heads lie in them.

    Args:
        shapes: of every tensor, by name as stored.
        heads: called when a scope needs heads or parts of a fused matrix.
        model_type: for messages.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], heads: Callable[[], Heads], model_type: str) -> None:
        self.shapes = dict(shapes)
        self.places = {name: place(name) for name in shapes}
        self.model_type = model_type
        self._heads = heads

    @classmethod
    def of(cls, folder: Path, shapes: Mapping[str, tuple[int, ...]], model_type: str) -> "Structure":
        """That of the tensors in a model folder, whose configuration says how many heads there are."""
        return cls(shapes, lambda: Heads.of(read_transformers_config(folder)), model_type)

    @cached_property
    def heads(self) -> Heads:
        """How heads lie in the matrices of attention."""
        return self._heads()

    @cached_property
    def layers(self) -> range:
        """Numbers of its blocks."""
        return range(1 + max((spot.layer for spot in self.places.values() if spot.layer is not None), default=-1))

    @cached_property
    def stored(self) -> frozenset[str]:
        """Components of its projection matrices, as stored."""
        return frozenset(spot.component for spot in self.places.values() if spot.is_projection)

    @property
    def components(self) -> tuple[str, ...]:
        """Components that a scope can name, in order: q, k and v also where they are parts of one matrix."""
        parts = {"q", "k", "v"} if "qkv" in self.stored and self.heads.fused else set()
        stored = self.stored - {"qkv"} if parts else self.stored
        return tuple(name for name in COMPONENTS if name in stored | parts)


@dataclass(frozen=True)
class Scope:
    """A part of a model.

    Attributes:
        text: as written.
        layers: first and last block; None for all.
        components: None for all.
        head: number of a head of queries in the one layer; None for all.
    """

    text: str
    layers: tuple[int, int] | None = None
    components: frozenset[str] | None = None
    head: int | None = None

    def check(self, structure: Structure, include: Collection[str] = ()) -> None:
        """Raises InterventionError, in one line, where the scope names what the model does not have."""
        if self.layers and self.layers[1] not in structure.layers:
            raise InterventionError(
                f"scope {self.text}: there is no layer {self.layers[1]}; the model has layers 0 to "
                f"{structure.layers[-1] if structure.layers else -1}"
            )
        if unknown := [name for name in include if name not in INCLUDABLE]:
            raise InterventionError(f"{unknown[0]!r} cannot be included; what can be is {', '.join(INCLUDABLE)}")
        if self.head is not None:
            self._check_head(structure)
        named = self.components or frozenset()
        if outside := sorted(named - PROJECTIONS - set(include)):
            raise InterventionError(f"scope {self.text} needs --include {outside[0]}: it is no projection in a block")
        if named & PROJECTIONS:
            self._check_parts(named, structure)

    def region(self, name: str, structure: Structure, include: Collection[str] = ()) -> Region | None:
        """The slice of a tensor that is in the scope, None for nothing.

        Args:
            name: of the tensor, as stored.
            structure: of its checkpoint.
            include: components beside the projections that count, where layer and component fit.

        Raises:
            ModelError: heads do not fit the matrix, or it holds q, k and v in a way that is not known.
        """
        spot, shape = structure.places[name], structure.shapes[name]
        if self.layers and not (spot.layer is not None and self.layers[0] <= spot.layer <= self.layers[1]):
            return None
        if not spot.is_projection:
            wanted = self.components is None or spot.component in self.components
            return Region() if spot.component in include and wanted and self.head is None else None
        if self.head is not None:
            return self._slice(spot, shape, structure.heads, "qkv") if spot.component in ATTENTION else None
        if self.components is None or spot.component in self.components:
            return Region()
        parts = self.components & {"q", "k", "v"}
        if spot.component == "qkv" and parts:
            return self._slice(spot, shape, structure.heads, parts)
        halves = self.components & set(HALVES)
        return _half(shape, *halves) if spot.component == "gate_up" and halves else None

    def note(self, structure: Structure) -> str | None:
        """What is to be said about the scope in this model: whom a head shares its keys and values with."""
        if self.head is None or structure.heads.n_kv_heads == structure.heads.n_heads:
            return None
        shared = structure.heads.n_heads // structure.heads.n_kv_heads
        first = self.head // shared * shared
        return (
            f"{self.text}: its rows of k and v are those of heads {first} to {first + shared - 1}, which share them "
            "(grouped-query attention)"
        )

    def _slice(self, spot: Place, shape: tuple[int, ...], heads: Heads, parts: Collection[str]) -> Region:
        outputs = 1 if heads.transposed else 0
        dim = 1 - outputs if spot.component == "o" else outputs
        return Region(dim, tuple(heads.rows(spot.component, shape[dim], self.head, parts)))

    def _check_head(self, structure: Structure) -> None:
        reason = None if structure.stored & {"q", "qkv"} else "it has no queries, keys and values"
        if reason := UNKNOWN_ORDER if _is_unordered(structure) else reason:
            raise InterventionError(f"scope {self.text}: {structure.model_type} cannot be cut there: {reason}")
        n_heads = structure.heads.n_heads
        if self.head is not None and self.head >= n_heads:
            raise InterventionError(
                f"scope {self.text}: there is no head {self.head}; layers have heads 0 to {n_heads - 1}"
            )

    def _check_parts(self, named: frozenset[str], structure: Structure) -> None:
        if named & {"q", "k", "v"} and _is_unordered(structure):
            raise InterventionError(
                f"scope {self.text}: {structure.model_type} cannot be cut there: {UNKNOWN_ORDER}; name component:qkv"
            )
        halves = set(HALVES) if "gate_up" in structure.stored else set()
        if not named & {*structure.stored, *structure.components, *halves}:
            raise InterventionError(
                f"scope {self.text}: {structure.model_type} has no {' or '.join(sorted(named))}; its components are "
                f"{', '.join(structure.components)}"
            )


def parse_scope(text: str) -> Scope:
    """The scope that `text` names.

    Raises:
        InterventionError: it is none, or names an unknown component or an empty range.
    """
    found = _SCOPE.fullmatch(text)
    if found is None:
        raise InterventionError(f"{text!r} is no scope; scopes are {GRAMMAR}")
    if found["head"]:
        layer = int(found["head_layer"])
        return Scope(text, (layer, layer), None, int(found["head"]))
    layers = None
    if first := found["layer"] or found["first"]:
        layers = (int(first), int(found["last"] or first))
        if layers[1] < layers[0]:
            raise InterventionError(
                f"scope {text}: layers {layers[0]} to {layers[1]} are none; write the smaller first"
            )
    return Scope(text, layers, _components(text, found["part"] or found["within"]))


def expand_scopes(texts: Iterable[str], structure: Structure) -> list[Scope]:
    """Scopes for a model, in the order given; `layers`, `components` and `heads` stand for all of a kind.

    Raises:
        InterventionError: a text is no scope, or the model does not have what it names.
    """
    scopes: list[Scope] = []
    for text in texts:
        if text == "layers":
            found = [f"layer:{layer}" for layer in structure.layers]
        elif text == "components":
            found = [f"component:{name}" for name in structure.components]
        elif text == "heads":
            parse_scope("head:0:0")._check_head(structure)
            found = [f"head:{layer}:{head}" for layer in structure.layers for head in range(structure.heads.n_heads)]
        else:
            found = [text]
        scopes += [parse_scope(name) for name in found]
    for scope in scopes:
        scope.check(structure, INCLUDABLE)
    return scopes


def read_transformers_config(folder: Path) -> Any:
    """The configuration of a model folder, with transformers' names and defaults; code that comes with it is not run.

    Raises:
        ModelError: transformers cannot read it.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except StrictDataclassError as error:
        raise ModelError(f"{folder / 'config.json'} contradicts itself: {first_line(error)}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read by transformers: {first_line(error)}") from None


def _components(text: str, part: str | None) -> frozenset[str] | None:
    if part is None:
        return None
    is_group = text.startswith("group:") or ("/" in text and part in GROUPS)
    known = GROUPS if is_group else {name: (name,) for name in COMPONENTS if name != "other"}
    if part not in known:
        kind = "group" if is_group else "component"
        raise InterventionError(f"scope {text}: there is no {kind} {part!r}; there are {', '.join(known)}")
    return frozenset(known[part])


def _is_unordered(structure: Structure) -> bool:
    return "qkv" in structure.stored and structure.heads.fused is None


def _half(shape: tuple[int, ...], part: str, other: str | None = None) -> Region:
    """The rows of gate, which come first, or of up in a matrix of both; of both, all."""
    if other is not None:
        return Region()
    if len(shape) != 2 or shape[0] % 2:
        raise ModelError(f"a matrix gate_up of shape {shape} is not one of gate over one of up")
    middle, start = shape[0] // 2, HALVES.index(part) * (shape[0] // 2)
    return Region(0, ((start, start + middle),))


def _divided(size: int, count: int, component: str) -> int:
    if size % count:
        raise ModelError(
            f"{count} heads do not fit a matrix {component} of {size}; config.json and the weights disagree"
        )
    return size // count


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in order, those that touch made one."""
    joined: list[tuple[int, int]] = []
    for start, end in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined
