"""One model taken apart: its blocks, its sites and its sizes, read from the weights and checked against its configuration."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lesion.anatomy.family import SITES, Family, Objective, Side, families
from lesion.errors import ModelError


@dataclass(frozen=True)
class Anatomy:
    """What a model is made of. Sizes come from weights: configurations are not to be trusted with them.

    Attributes:
        model: the user's own `PreTrainedModel`, unchanged.
        blocks: the blocks in order.
        d_z: n_heads x d_head, the width of `z`; not d_model in every model.
        n_positions: the longest sequence that the model can read, specials included.
        vocabulary: rows of the unembedding (classes for an image classifier).
        n_token_ids: rows of the embedding, the ids that the model can read (0 for images).
        norm: `post` where a norm follows each addition to the residual stream.
        parallel: whether attention and MLP of a block read the same input.
    """

    model: nn.Module
    family: Family
    blocks: tuple[nn.Module, ...]
    d_model: int
    d_z: int
    d_head: int
    d_mlp: int
    n_heads: int
    n_kv_heads: int
    n_positions: int
    vocabulary: int
    n_token_ids: int
    norm: Literal["pre", "post"]
    parallel: bool

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def objective(self) -> Objective:
        return self.family.objective

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.blocks[0].parameters()).dtype

    def site(self, layer: int, name: str) -> tuple[nn.Module, Side]:
        """Module and side at which the tensor of a site of block `layer` passes.

        Raises:
            KeyError: no such site.
        """
        path, side = self.family.site(name)
        return self.blocks[layer].get_submodule(path), side


def dissect(model: nn.Module) -> Anatomy:
    """Finds the parts of a model.

    Raises:
        ModelError: the family is unknown, the configuration is one that cannot be studied, a part is missing, or
            weights and configuration contradict each other. The message names what was expected and found.
    """
    config = model.config
    family = families().get(config.model_type)
    architecture = type(model).__name__
    if family is None or architecture not in family.architectures:
        known = ", ".join(sorted(name for entry in families().values() for name in entry.architectures))
        raise ModelError(f"no anatomy is known for {architecture} (model type {config.model_type!r}); known: {known}")
    if reason := family.refuse(config):
        raise ModelError(f"this {architecture} cannot be studied: {reason}")
    blocks = tuple(_part(model, family.blocks, architecture))
    if len(blocks) != config.num_hidden_layers:
        raise ModelError(
            f"{architecture} has {len(blocks)} blocks in {family.blocks}, its configuration says {config.num_hidden_layers}"
        )
    for layer, block in enumerate(blocks):
        for site in SITES:
            _part(block, family.site(site)[0], f"block {layer} of {architecture}")
    d_z, d_model = _same(blocks, family.z, architecture)
    d_mlp, d_out = _same(blocks, family.mlp_post, architecture)
    if d_out != d_model:
        raise ModelError(f"attention writes {d_model} coordinates and the MLP {d_out}: not one residual stream")
    n_heads, n_kv_heads, d_head = _heads(blocks[0], family, config, d_z)
    return Anatomy(
        model=model,
        family=family,
        blocks=blocks,
        d_model=d_model,
        d_z=d_z,
        d_head=d_head,
        d_mlp=d_mlp,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        n_positions=_positions(model, family, config),
        vocabulary=_part(model, family.unembed, architecture).weight.shape[0],
        n_token_ids=_token_ids(model, family),
        norm="post" if family.post_norm(config) else "pre",
        parallel=family.parallel(config),
    )


def _part(module: nn.Module, path: str, owner: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise ModelError(f"{owner} has no part {path!r}; this version of the model is not the one that is known") from None


def _projection_sizes(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a projection: `nn.Linear` stores (out, in), GPT-2's Conv1D (in, out)."""
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)


def _same(blocks: tuple[nn.Module, ...], path: str, owner: str) -> tuple[int, int]:
    """The sizes of one projection, which must be the same in every block."""
    sizes = [_projection_sizes(_part(block, path, f"block {i} of {owner}")) for i, block in enumerate(blocks)]
    if not sizes:
        raise ModelError(f"{owner} has no blocks")
    for layer, size in enumerate(sizes):
        if size != sizes[0]:
            raise ModelError(f"{path} of block {layer} is {size[0]} x {size[1]}, that of block 0 {sizes[0][0]} x {sizes[0][1]}")
    return sizes[0]


def _heads(block: nn.Module, family: Family, config: object, d_z: int) -> tuple[int, int, int]:
    """Heads, key/value heads and width of a head, from the projections; only the number of heads is the config's."""
    n_heads = int(config.num_attention_heads)  # type: ignore[attr-defined]
    if d_z % n_heads:
        raise ModelError(f"the configuration says {n_heads} heads, which do not divide the {d_z} inputs of {family.z}")
    d_head = d_z // n_heads
    if family.key is None:
        return n_heads, n_heads, d_head
    d_key = _projection_sizes(_part(block, family.key, "block 0"))[1]
    if d_key % d_head:
        raise ModelError(f"{family.key} has {d_key} outputs, not a multiple of the {d_head} of one head")
    return n_heads, d_key // d_head, d_head


def _positions(model: nn.Module, family: Family, config: object) -> int:
    if family.positions is None:
        return int(config.max_position_embeddings)  # type: ignore[attr-defined]
    table = _part(model, family.positions, type(model).__name__)
    return int(table.weight.shape[0]) - family.position_offset(config)


def _token_ids(model: nn.Module, family: Family) -> int:
    return 0 if family.objective == "image" else int(model.get_input_embeddings().weight.shape[0])
