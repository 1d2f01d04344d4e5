"""Attention probabilities where they are asked for, worked out beside the model's own attention, whose bits stay.

Families look up their attention in one table of transformers (`AttentionInterface`). While `recording` lasts, the entry
of the model's implementation is a function that notes the probabilities and hands on to the one that was there: neither
the configuration nor the masks change. BLOOM, Falcon and GPT-J have attention of their own: BLOOM's and GPT-J's gives
its probabilities away, and of Falcon's the call of torch's scaled dot product is looked at.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lesion.anatomy import Anatomy
from lesion.errors import ModelError
from lesion.interventions.hooks import forwards_replaced

Take = Callable[[int, int, Float[Tensor, "batch head row token"]], None]
"""Told the layer, the index of the first sequence of a piece of the batch, and its probabilities."""

OWN = frozenset({"bloom", "falcon", "gptj"})
"""Families that do not ask transformers' table for their attention."""
IMPLEMENTATIONS = ("sdpa", "eager")
PIECE = 1 << 22
"""Probabilities that are worked out together; a sequence is never cut."""


def refuse_unrecordable(anatomy: Anatomy) -> None:
    """What a study of attention calls first.

    Raises:
        ModelError: attention is implemented by something that gives away neither its probabilities nor what they are
            made of.
    """
    implementation = anatomy.config._attn_implementation
    if implementation not in IMPLEMENTATIONS:
        raise ModelError(
            f"the attention of this {type(anatomy.model).__name__} is computed by {implementation!r}, whose "
            f"probabilities cannot be read; load it with attn_implementation={' or '.join(IMPLEMENTATIONS)}"
        )
    if getattr(anatomy.config, "reorder_and_upcast_attn", False) and implementation == "eager":
        raise ModelError(
            f"this {type(anatomy.model).__name__} computes attention in a function of its own "
            "(reorder_and_upcast_attn), whose probabilities cannot be read; load it with attn_implementation=sdpa"
        )


@contextlib.contextmanager
def recording(
    anatomy: Anatomy, layers: Collection[int], take: Take, rows: Int[Tensor, " batch"] | None = None
) -> Iterator[None]:
    """Hands the attention probabilities of some layers to `take` while the context lasts.

    For sequences that are called without a cache. Probabilities are softmax over keys, in float32 at least, of scores
    that are masked, scaled and capped as the model's are; heads are those of queries.

    Args:
        layers: blocks whose attention runs; a dropped one never does.
        take: told of each piece of the batch as soon as it is known.
        rows: of each sequence the one position whose row is wanted; None takes all rows.

    Raises:
        ModelError: the implementation cannot be read, or on leaving without an exception, a layer was not met.
    """
    refuse_unrecordable(anatomy)
    modules = {attention_module(anatomy, layer): layer for layer in layers}
    record = _Record(modules, take, rows)
    replaced = _in_own_attention(record) if anatomy.family.model_type in OWN else _in_table(anatomy, record)
    with replaced:
        yield
    if missed := sorted(set(layers) - record.met):
        raise ModelError(f"no attention passed in block {missed[0]}: this version of the model is not the known one")


def attention_module(anatomy: Anatomy, layer: int) -> nn.Module:
    """The module of a block that holds the heads: the parent of their output projection."""
    return anatomy.blocks[layer].get_submodule(anatomy.family.z.rpartition(".")[0])


class _Record:
    """What has been asked for, and which layers were met."""

    def __init__(self, modules: dict[nn.Module, int], take: Take, rows: Tensor | None) -> None:
        self.modules, self.met = modules, set[int]()
        self._take, self._rows = take, rows

    def given(self, layer: int, probabilities: Float[Tensor, "batch head row token"]) -> None:
        """Probabilities that the model has worked out itself."""
        self.met.add(layer)
        if self._rows is not None:
            rows = self._rows.to(probabilities.device)
            every = torch.arange(len(rows), device=probabilities.device)
            probabilities = probabilities[every, :, rows].unsqueeze(2)
        self._take(layer, 0, _wide(probabilities))

    def made_of(
        self,
        layer: int,
        query: Float[Tensor, "batch head query d_head"],
        key: Float[Tensor, "batch kv_head token d_head"],
        mask: Tensor | None,
        scaling: float,
        is_causal: bool,
    ) -> None:
        """Probabilities that only a fused kernel knows: worked out anew, some sequences at a time."""
        self.met.add(layer)
        n_sequences, n_heads, n_queries = query.shape[:3]
        n_rows = n_queries if self._rows is None else 1
        at_once = max(1, PIECE // (n_heads * n_rows * key.shape[2]))
        for start in range(0, n_sequences, at_once):
            piece = slice(start, min(start + at_once, n_sequences))
            positions = torch.arange(n_queries, device=query.device).expand(piece.stop - start, -1)
            if self._rows is not None:
                positions = self._rows[piece].to(query.device).unsqueeze(1)
            own_mask = None if mask is None else (mask[piece] if mask.shape[0] > 1 else mask)
            scores = _scores(query[piece], key[piece], positions, scaling)
            self._take(layer, start, torch.softmax(_masked(scores, own_mask, positions, is_causal), dim=-1))


def _scores(query: Tensor, key: Tensor, positions: Tensor, scaling: float) -> Float[Tensor, "batch head row token"]:
    """Scaled products of the wanted queries with all keys, which several heads may share."""
    every = torch.arange(len(query), device=query.device).unsqueeze(1)
    wanted = query.transpose(1, 2)[every, positions].transpose(1, 2)
    shared = query.shape[1] // key.shape[1]
    return _wide(wanted) @ _wide(key.repeat_interleave(shared, dim=1)).transpose(2, 3) * scaling


def _masked(scores: Tensor, mask: Tensor | None, positions: Tensor, is_causal: bool) -> Tensor:
    """Scores as softmax reads them: a mask is True at (or adds 0 to) what may be seen."""
    if mask is None:
        if not is_causal:
            return scores
        seen = torch.arange(scores.shape[-1], device=scores.device) <= positions.unsqueeze(-1)
        return scores.masked_fill(~seen.unsqueeze(1), -math.inf)
    mask = mask.expand(len(scores), *mask.shape[1:])[..., : scores.shape[-1]]
    every = torch.arange(len(scores), device=scores.device).unsqueeze(1)
    own = mask.transpose(1, 2)[every, positions].transpose(1, 2)
    return scores.masked_fill(~own, -math.inf) if own.dtype == torch.bool else scores + own


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextlib.contextmanager
def _in_table(anatomy: Anatomy, record: _Record) -> Iterator[None]:
    """Puts a recorder in the place of the model's attention in transformers' table, for all models; others pass."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as TABLE

    name = anatomy.config._attn_implementation
    before = TABLE.get(name)

    def recorder(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
    ) -> Any:
        own = before or sys.modules[type(module).__module__].eager_attention_forward
        output = own(module, query, key, value, attention_mask, **more)
        layer = record.modules.get(module)
        if layer is not None and output[1] is not None:
            record.given(layer, output[1])
        elif layer is not None:
            _refuse_unknown(module, more)
            scaling, causal = more.get("scaling"), more.get("is_causal")
            causal = getattr(module, "is_causal", True) if causal is None else causal
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            record.made_of(layer, query, key, attention_mask, scaling, causal)
        return output

    TABLE[name] = recorder
    try:
        yield
    finally:
        del TABLE[name]
        if before is not None and TABLE.get(name) is not before:  # it was an entry of this table, not of the class
            TABLE[name] = before


def _refuse_unknown(module: nn.Module, given: dict[str, Any]) -> None:
    """What changes scores and is worked out by kernels only."""
    for name in ("softcap", "position_bias", "s_aux"):
        if given.get(name) is not None:
            raise ModelError(f"{type(module).__name__} gives its kernel {name}, with which probabilities are not known")


@contextlib.contextmanager
def _in_own_attention(record: _Record) -> Iterator[None]:
    """Looks at what attention modules with code of their own return, or at the products that they ask torch for."""

    def forward_of(module: nn.Module, layer: int) -> Callable[..., Any]:
        original = module.forward

        def forward(*arguments: Any, **keywords: Any) -> Any:
            with _Products(record, layer):
                output = original(*arguments, **keywords)
            if output[1] is not None:
                record.given(layer, output[1])
            return output

        return forward

    with forwards_replaced({module: forward_of(module, layer) for module, layer in record.modules.items()}):
        yield


class _Products(TorchFunctionMode):
    """Sees the calls of scaled dot product attention while one module runs."""

    def __init__(self, record: _Record, layer: int) -> None:
        super().__init__()
        self._record, self._layer = record, layer

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is functional.scaled_dot_product_attention:
            query, key = args[:2]
            scaling = kwargs.get("scale") or query.shape[-1] ** -0.5
            mask, causal = kwargs.get("attn_mask"), kwargs.get("is_causal", False)
            self._record.made_of(self._layer, query, key, mask, scaling, causal)
        return function(*args, **kwargs)
