"""Which layer and which part of a transformer a tensor belongs to, told from its name as stored."""

import re
from typing import NamedTuple

ATTENTION = ("q", "k", "v", "o", "qkv")
MLP = ("gate", "up", "down", "gate_up", "fc1", "fc2")
PROJECTIONS = frozenset(ATTENTION + MLP)
"""Components that are projection matrices inside blocks: what the scope `all` means."""
COMPONENTS = (*ATTENTION, *MLP, "embed", "unembed", "norm", "bias", "other")

_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks)\.(\d+)\.")
_NORM = re.compile(r"norm|^ln_", re.IGNORECASE)
_LEAVES = ("weight", "bias", "gamma", "beta")
_ATTENTION_PARENTS = ("attention", "self_attention", "self_attn", "attn")
_BY_NAME = {
    **dict.fromkeys(("q_proj", "query"), "q"),
    **dict.fromkeys(("k_proj", "key"), "k"),
    **dict.fromkeys(("v_proj", "value"), "v"),
    **dict.fromkeys(("o_proj", "out_proj"), "o"),
    **dict.fromkeys(("qkv_proj", "query_key_value", "c_attn"), "qkv"),
    **dict.fromkeys(("gate_proj", "w1"), "gate"),
    **dict.fromkeys(("up_proj", "w3"), "up"),
    **dict.fromkeys(("down_proj", "w2"), "down"),
    "gate_up_proj": "gate_up",
    **dict.fromkeys(("fc1", "fc_in", "c_fc", "dense_h_to_4h"), "fc1"),
    **dict.fromkeys(("fc2", "fc_out", "dense_4h_to_h"), "fc2"),
}
_EMBED = re.compile(r"^(wte|wpe|embed_tokens|embed_positions|embed_in|embeddings|\w+_embeddings)$")
_UNEMBED = re.compile(
    r"(^|\.)(lm_head|embed_out|score|classifier|lm_head\.decoder|predictions\.decoder|classifier\.out_proj)$"
)


class Place(NamedTuple):
    """Where a tensor sits.

    Attributes:
        layer: number of its block; None outside blocks.
        component: one of `COMPONENTS`; biases of norms are `norm`, other biases `bias`.
    """

    layer: int | None
    component: str

    @property
    def is_projection(self) -> bool:
        """Whether it is a projection matrix inside a block."""
        return self.layer is not None and self.component in PROJECTIONS


def place(name: str) -> Place:
    """The place of the tensor called `name`, in the styles of all families that lesion knows; `other` for the rest."""
    found = _BLOCK.search(name)
    layer = int(found[1]) if found else None
    parts = name.split(".")
    leaf = parts.pop() if parts[-1] in _LEAVES else "weight"
    if not parts:
        return Place(layer, "other")
    if _NORM.search(parts[-1]):
        return Place(layer, "norm")
    inside = name[found.end() :].split(".") if found else []
    if leaf == "bias" and inside not in (["attn", "bias"], ["attention", "bias"]):  # those are tables: causal masks
        return Place(layer, "bias")
    return Place(layer, _outside(parts) if layer is None else _inside(parts))


def _inside(parts: list[str]) -> str:
    last = parts[-1]
    parent = parts[-2]
    if last in ("dense", "c_proj"):
        if parent in _ATTENTION_PARENTS or parts[-3:-1] == ["attention", "output"]:
            return "o"
        return {"intermediate": "fc1", "output": "fc2", "mlp": "fc2"}.get(parent, "other")
    return _BY_NAME.get(last, "other")


def _outside(parts: list[str]) -> str:
    if any(_EMBED.match(part) for part in parts):
        return "embed"
    return "unembed" if _UNEMBED.search(".".join(parts)) else "other"
