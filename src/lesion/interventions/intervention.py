"""What can be done to a forward pass, as data: which block runs at each step, and what is changed inside blocks."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lesion.anatomy import Anatomy, dissect
from lesion.checkpoints.edited import Value
from lesion.checkpoints.selection import Kind
from lesion.errors import InterventionError
from lesion.interventions.hooks import Hook, Operator, forwards_replaced, hooked
from lesion.interventions.rewriting import Rewriting, refuse_nothing
from lesion.interventions.weights import GRAMMAR, OUTSIDE, WRITTEN, WeightEdit, parse_weights

Order = tuple[int | None, ...]
"""The block that runs at each step; None where the residual stream passes unchanged."""


@dataclass(frozen=True)
class ActivationEdit:
    """An operator at a site of one block, wherever in the order that block runs.

    Attributes:
        site: TransformerLens's name of the site.
    """

    layer: int
    site: str
    operator: Operator

    @property
    def label(self) -> str:
        return f"block {self.layer}, {self.site}"


@dataclass(frozen=True)
class Intervention:
    """A change of the forward pass: a context manager on a plain `PreTrainedModel`, and data that sweeps read.

    Attributes:
        name: as the grammar of edits writes it, for example `drop:3`.
        reorder: from the order of blocks before to the order after.
        edits: changes of activations.
        layers: the blocks that it names, for the check of ranges.
        weights: weights that are set.
    """

    name: str
    layers: tuple[int, ...] = ()
    reorder: Callable[[Order], Order] | None = None
    edits: tuple[ActivationEdit, ...] = ()
    weights: tuple[WeightEdit, ...] = ()

    def order(self, n_layers: int) -> Order:
        """The order of blocks under this intervention.

        Raises:
            InterventionError: it names a block that is not there.
        """
        for layer in self.layers:
            if not 0 <= layer < n_layers:
                raise InterventionError(f"{self.name}: the model has blocks 0 to {n_layers - 1}, not {layer}")
        order: Order = tuple(range(n_layers))
        return self.reorder(order) if self.reorder else order

    def edits_of(self, layer: int) -> tuple[ActivationEdit, ...]:
        return tuple(edit for edit in self.edits if edit.layer == layer)

    @contextlib.contextmanager
    def on(self, model: nn.Module) -> Iterator[nn.Module]:
        """Puts the intervention in place on a whole model, which stays itself, and takes it away again.

        Weights that are set are copies, which take as much memory again: the model's own parameters come back. It is
        for looking at a model, not for training it: what is done to its weights meanwhile is lost, and is an error.

        Raises:
            InterventionError: a block or a scope that is not there, an edit that never fired, or one that would set no
                weight at all.
            InputError: masks that are not there, or are damaged.
            ModelError: the model's family is not known, or does not fit the masks.
        """
        anatomy = dissect(model)
        order = self.order(anatomy.n_layers)
        hooks = [Hook(*anatomy.site(edit.layer, edit.site), edit.operator, edit.label) for edit in self.edits]
        with contextlib.ExitStack() as stack:
            if self.weights:
                self._set_weights(anatomy, order, stack)
            stack.enter_context(forwards_replaced(_reordered(anatomy, order)))
            stack.enter_context(hooked(hooks))
            yield model

    def _set_weights(self, anatomy: Anatomy, order: Order, stack: contextlib.ExitStack) -> None:
        rewriting = Rewriting(anatomy, self.weights, keep_bytes=0)
        running = sorted({layer for layer in order if layer is not None})
        refuse_nothing(rewriting, self.weights, running)
        for layer in (OUTSIDE, *running):
            stack.enter_context(rewriting.replaced(self.weights, layer))


def _reordered(anatomy: Anatomy, order: Order) -> dict[nn.Module, Callable[..., Any]]:
    """Forwards that run blocks in another order inside the model's own forward.

    Steps at which no block has yet to wait for another's arguments run at once. A block that is due before the model
    has come to it waits: the residual stream is handed on unchanged until its arguments (its own mask and rotary
    embedding) are known, and then everything that waited runs in the new order.
    """
    if order == tuple(range(anatomy.n_layers)):
        return {}
    originals = [block.forward for block in anatomy.blocks]
    state = _Reordering(order, originals, anatomy.family.returns_tuple)

    def forward_of(step: int) -> Callable[..., Any]:
        return lambda *arguments, **keywords: state.reach(step, arguments, keywords)

    return {block: forward_of(step) for step, block in enumerate(anatomy.blocks)}


class _Reordering:
    """The part of an order that has run, and the arguments of the blocks that the model has come to."""

    def __init__(self, order: Order, originals: Sequence[Callable[..., Any]], returns_tuple: bool) -> None:
        self._order, self._originals, self._returns_tuple = order, originals, returns_tuple
        self._next = 0
        self._arguments: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def reach(self, step: int, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if step == 0:
            self._next, self._arguments = 0, {}
            self._refuse_cache(keywords)
        hidden, rest, keywords = split_hidden(arguments, keywords)
        self._arguments[step] = (rest, keywords)
        output = passed_on(hidden, self._returns_tuple)
        while self._next <= step:
            block = self._order[self._next]
            if block is not None and block not in self._arguments:
                break
            if block is not None:
                rest, keywords = self._arguments[block]
                output = self._originals[block](hidden_of(output), *rest, **keywords)
            self._next += 1
        return output

    def _refuse_cache(self, keywords: dict[str, Any]) -> None:
        """A cache takes its length from block 0; without block 0 every later step would get wrong positions."""
        cache = keywords.get("past_key_values", keywords.get("layer_past"))
        if 0 not in self._order and cache is not None:
            raise InterventionError("with block 0 dropped a key/value cache loses count; pass use_cache=False")


def split_hidden(
    arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Separates the hidden state that a block was called with from the rest of its arguments."""
    if arguments:
        return arguments[0], arguments[1:], keywords
    rest = dict(keywords)
    return rest.pop("hidden_states"), (), rest


def passed_on(hidden: Tensor, returns_tuple: bool) -> Any:
    """A hidden state as a block would return it that let it pass: alone, or in a tuple without attention weights."""
    return (hidden, None) if returns_tuple else hidden


def hidden_of(output: Any) -> Tensor:
    """The hidden state in what a block returned: some families return tuples."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def combine(interventions: Sequence[Intervention]) -> Intervention:
    """One after the other: orders compose, and at one site the edits apply in the given order."""
    reorders = [i.reorder for i in interventions if i.reorder]
    return Intervention(
        name="+".join(i.name for i in interventions),
        layers=tuple(layer for i in interventions for layer in i.layers),
        reorder=(lambda order: reduce(lambda o, f: f(o), reorders, order)) if reorders else None,
        edits=tuple(edit for i in interventions for edit in i.edits),
        weights=tuple(edit for i in interventions for edit in i.weights),
    )


def drop(layer: int) -> Intervention:
    """The block is left out: its residual stream passes (paper `stages`, section 3, Fig 2)."""
    return Intervention(
        f"drop:{layer}",
        (layer,),
        lambda order: tuple(None if block == layer else block for block in order),
    )


def swap(layer: int) -> Intervention:
    """What runs at steps `layer` and `layer + 1` changes places; blocks keep their masks (`stages`, Fig 2)."""
    return Intervention(
        f"swap:{layer}",
        (layer, layer + 1),
        lambda order: (*order[:layer], order[layer + 1], order[layer], *order[layer + 2 :]),
    )


def drop_attn(layer: int) -> Intervention:
    """Attention adds nothing, not even a bias; in post-norm blocks the norm still runs (`stages`, Figs 13-15)."""
    return Intervention(f"drop-attn:{layer}", (layer,), None, (ActivationEdit(layer, "attn_out", torch.zeros_like),))


def drop_mlp(layer: int) -> Intervention:
    """The MLP adds nothing, its bias included; in post-norm blocks the norm still runs (paper `stages`, Figs 13-15)."""
    return Intervention(f"drop-mlp:{layer}", (layer,), None, (ActivationEdit(layer, "mlp_out", torch.zeros_like),))


def set_weights(
    masks: Path | str,
    kind: Kind,
    scope: str = "all",
    *,
    value: Value = "zero",
    seed: int | None = None,
    disjoint: bool = False,
    include: Sequence[str] = (),
) -> Intervention:
    """Weights of a model are set to 0 or to the mean of their matrix (paper `zero-modes`, sections 3 and 4).

    Args:
        masks: a run folder of `zero-modes diff`, or a file of masks.
        kind: `zero_modes`, `complement`, `keep_only`, `random` or `random_matched`.
        scope: where: `all`, `layer:3`, `component:gate`, `group:QK`, `head:1:2` …
        seed: of the random kinds, and only of them.
        disjoint: random weights that are no zero modes.
        include: `embed`, `unembed`, `norm`, `bias`, beside projection matrices.

    Raises:
        InputError, InterventionError: what is asked for means nothing.
    """
    path = os.path.abspath(Path(masks).expanduser())  # noqa: PTH100  (a link stays one)
    return _weights_set(WeightEdit(path, kind, scope, value, seed, disjoint, tuple(sorted(set(include)))))


def _weights_set(edit: WeightEdit) -> Intervention:
    edit.check()
    return Intervention(edit.name, weights=(edit,))


KINDS: dict[str, Callable[[int], Intervention]] = {
    "drop": drop,
    "swap": swap,
    "drop-attn": drop_attn,
    "drop-mlp": drop_mlp,
}


def parse(text: str) -> Intervention:
    """Reads one edit of the grammar, for example `swap:3` or `zero-modes:runs/diff@layer:3`.

    Raises:
        InterventionError: an unknown kind, no whole number behind the colon, or no scope behind the @.
        InputError: weights asked for in a way that means nothing (a seed that is missing or too much).
    """
    kind, _, layer = text.partition(":")
    if kind in WRITTEN:
        return _weights_set(parse_weights(text))
    if kind not in KINDS:
        raise InterventionError(
            f"{text!r} is not an edit that is known; edits are {', '.join(f'{k}:LAYER' for k in KINDS)}, {GRAMMAR}"
        )
    if not layer.isdecimal() or len(layer) > 6:
        raise InterventionError(f"{text!r} names no block; write for example {kind}:3")
    return KINDS[kind](int(layer))
