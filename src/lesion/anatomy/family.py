"""What one family of Hugging Face models is made of, as data: paths, and the few ways in which blocks differ.

A new family is one file in `lesion/anatomy/families/` with one `FAMILY = Family(...)` in it, tiny configurations
included; every contract test then runs on it.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from lesion.errors import ModelError

Config = Any
"""A transformers configuration; its attributes differ between families."""

Objective = Literal["causal", "masked", "image"]
Side = Literal["input", "output", "overwritten"]
"""Where a tensor passes a module; `overwritten` is an output that the block's own code then changes in place."""


def _never(config: Config) -> bool:
    return False


def _nothing_refused(config: Config) -> str | None:
    return None


def _max_position_embeddings(config: Config) -> int:
    return int(config.max_position_embeddings)


@dataclass(frozen=True)
class Family:
    """One declarative entry. `blocks`, `positions` and `unembed` are paths in the model, the others in one block.

    Attributes:
        model_type: `config.model_type` of the family.
        architectures: transformers classes that the entry describes.
        objective: what the head predicts: the next token, masked tokens, or a class.
        blocks: path of the list of blocks.
        z: projection whose input is `z` (heads side by side, before the output projection).
        attn_out: module whose output is what attention adds to the residual stream.
        mlp_out: module whose output is what the MLP adds to the residual stream.
        unembed: path of the last linear layer of the head.
        mlp_pre: module whose output is the pre-activation (the gate's, in a gated MLP), or None where there is none.
        mlp_post: projection whose input is `mlp_post`, or None where neurons are spread over experts.
        experts: module whose `down_proj` holds (expert, d_model, d_mlp), where neurons are spread over experts.
        overwritten: sites whose tensor the block's own code changes in place after it has passed.
        query, key: projections to queries and keys, where q, k and v are matrices of their own.
        qkv: projection to queries, keys and values together, where they are one matrix.
        positions: path of a learned position table (a module or a parameter), or None (rotary, ALiBi).
        position_offset: rows of that table that no position uses, given the configuration.
        longest: the longest sequence, where there is no such table.
        post_norm: whether a norm follows each addition to the residual stream.
        parallel: whether attention and MLP read the same input.
        returns_tuple: whether a block returns a tuple that begins with the hidden state.
        attention: attention implementation to load with.
        refuse: reason why a configuration cannot be studied, or None.
        unused: regular expressions of tensors that checkpoints may hold and the model class does not use.
        tiny: tiny configurations (keyword arguments) that the contract tests build.
    """

    model_type: str
    architectures: tuple[str, ...]
    objective: Objective
    blocks: str
    z: str
    attn_out: str
    mlp_out: str
    unembed: str
    mlp_pre: str | None = None
    mlp_post: str | None = None
    experts: str | None = None
    overwritten: tuple[str, ...] = ()
    query: str | None = None
    key: str | None = None
    qkv: str | None = None
    positions: str | None = None
    position_offset: Callable[[Config], int] = lambda config: 0
    longest: Callable[[Config], int] = _max_position_embeddings
    post_norm: Callable[[Config], bool] = _never
    parallel: Callable[[Config], bool] = _never
    returns_tuple: bool = False
    attention: str = "sdpa"
    refuse: Callable[[Config], str | None] = _nothing_refused
    unused: tuple[str, ...] = ()
    tiny: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that blocks of this family have, of `SITES`."""
        return tuple(name for name in SITES if self._places[name][0] is not None)

    def site(self, name: str) -> tuple[str, Side]:
        """Path in a block and side of a site, by TransformerLens's name.

        Raises:
            KeyError: no such site.
            ModelError: a site that blocks of this family do not have; the message says why.
        """
        path, side = self._places[name]
        if path is None:
            raise ModelError(
                f"{self.model_type} has no site {name}: its MLP is spread over experts, which transformers keeps in "
                f"one tensor; its sites are {', '.join(self.sites)}"
            )
        return path, "overwritten" if name in self.overwritten else side

    @property
    def _places(self) -> dict[str, tuple[str | None, Side]]:
        return {
            "resid_pre": ("", "input"),
            "z": (self.z, "input"),
            "attn_out": (self.attn_out, "output"),
            "mlp_pre": (self.mlp_pre, "output"),
            "mlp_post": (self.mlp_post, "input"),
            "mlp_out": (self.mlp_out, "output"),
            "resid_post": ("", "output"),
        }


SITES = ("resid_pre", "z", "attn_out", "mlp_pre", "mlp_post", "mlp_out", "resid_post")
"""Every site that there is; a model's own are `Anatomy.sites`."""

NOT_STUDIED = {
    "gemma3": "it reads images beside text; the text-only models of its kind (gemma3_text) are known",
}
"""Model types that are refused by name, with the reason."""


@cache
def known_families() -> dict[str, Family]:
    """All families by `model_type`, one module of `lesion.anatomy.families` each."""
    package = importlib.import_module("lesion.anatomy.families")
    modules = [
        importlib.import_module(f"{package.__name__}.{info.name}") for info in pkgutil.iter_modules(package.__path__)
    ]
    return {module.FAMILY.model_type: module.FAMILY for module in modules}
