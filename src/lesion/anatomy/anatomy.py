"""One model taken apart: blocks, sites and sizes, read from the weights and checked against the configuration."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lesion.anatomy.family import NOT_STUDIED, Config, Family, Objective, Side, known_families
from lesion.anatomy.packing import packing_of, reason_against
from lesion.errors import ModelError


@dataclass(frozen=True)
class Anatomy:
    """What a model is made of. Sizes come from weights: configurations are not to be trusted with them.

    Attributes:
        model: the user's own `PreTrainedModel`, unchanged.
        blocks: the blocks in order.
        d_z: n_heads x d_head, the width of `z`; not d_model in every model.
        d_mlp: neurons of an MLP; of one expert, where there are several.
        n_experts: experts of a block's MLP; 1 where it is one MLP for all tokens.
        n_positions: the longest sequence that the model can read, specials included (images: patches and class token).
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
    n_experts: int
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
    def config(self) -> Config:
        """The model's configuration."""
        return self.model.config

    @property
    def objective(self) -> Objective:
        return self.family.objective

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; where they are packed, of those that are not."""
        return next(p.dtype for p in self.blocks[0].parameters() if p.is_floating_point())

    @property
    def packed(self) -> str | None:
        """The method by which the weights are packed (quantised), or None where they are plain numbers."""
        return packing_of(self.config)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that this model's blocks have, in the order in which tensors pass them."""
        return self.family.sites

    def site(self, layer: int, name: str) -> tuple[nn.Module, Side]:
        """Module and side at which the tensor of a site of block `layer` passes.

        Raises:
            KeyError: no such site.
            ModelError: a site that models of this family do not have.
        """
        path, side = self.family.site(name)
        return self.blocks[layer].get_submodule(path), side


def refuse_packed(anatomy: Anatomy, purpose: str) -> None:
    """What a study of weights calls first: packed weights are codes, and what they stand for was rounded.

    Args:
        purpose: what needs the weights, as the subject of the message.

    Raises:
        ModelError: the model's weights are packed.
    """
    if anatomy.packed is not None:
        raise ModelError(
            f"{purpose} reads weights as numbers, and those of this model are packed ({anatomy.packed}); "
            "give the checkpoint that it was made from"
        )


def dissect(model: nn.Module) -> Anatomy:
    """Finds the parts of a model.

    Raises:
        ModelError: the family is unknown, the configuration is one that cannot be studied, a part is missing, or
            weights and configuration contradict each other. The message names what was expected and found.
    """
    config: Config = getattr(model, "config", None)
    kind = str(getattr(config, "model_type", None))
    family = known_families().get(kind)
    architecture = type(model).__name__
    if kind in NOT_STUDIED:
        raise ModelError(f"{architecture} cannot be studied: {NOT_STUDIED[kind]}")
    if family is None or architecture not in family.architectures:
        known = ", ".join(sorted(name for entry in known_families().values() for name in entry.architectures))
        raise ModelError(f"no anatomy is known for {architecture} (model type {kind!r}); known: {known}")
    packing = getattr(config, "quantization_config", None)
    if reason := family.refuse(config) or (packing is not None and reason_against(packing)):
        raise ModelError(f"this {architecture} cannot be studied: {reason}")
    blocks = _blocks(model, family, architecture)
    if len(blocks) != config.num_hidden_layers:
        raise ModelError(
            f"{architecture} has {len(blocks)} blocks in {family.blocks}, "
            f"its configuration says {config.num_hidden_layers}"
        )
    for layer, block in enumerate(blocks):
        for site in family.sites:
            _part(block, family.site(site)[0], f"block {layer} of {architecture}")
    d_z, d_model = _same(blocks, family.z, architecture)
    n_experts, d_mlp, d_out = _mlp_sizes(blocks, family, architecture)
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
        n_experts=n_experts,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        n_positions=_positions(model, family, config),
        vocabulary=_rows(_part(model, family.unembed, architecture)),
        n_token_ids=_token_ids(model, family),
        norm="post" if family.post_norm(config) else "pre",
        parallel=family.parallel(config),
    )


def _part(module: nn.Module, path: str, owner: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise ModelError(
            f"{owner} has no part {path!r}; this version of the model is not the one that is known"
        ) from None


def _projection_sizes(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a projection: `nn.Linear` stores (out, in), GPT-2's Conv1D (in, out)."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    if not weight.is_floating_point() and isinstance(module, nn.Linear):  # packed: its shape is that of the codes
        return module.in_features, module.out_features
    rows, columns = weight.shape
    return (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)


def _same(blocks: tuple[nn.Module, ...], path: str, owner: str) -> tuple[int, int]:
    """The sizes of one projection, which must be the same in every block."""
    sizes = [_projection_sizes(_part(block, path, f"block {i} of {owner}")) for i, block in enumerate(blocks)]
    for layer, size in enumerate(sizes):
        if size != sizes[0]:
            raise ModelError(
                f"{path} of block {layer} is {size[0]} x {size[1]}, that of block 0 {sizes[0][0]} x {sizes[0][1]}"
            )
    return sizes[0]


def _mlp_sizes(blocks: tuple[nn.Module, ...], family: Family, owner: str) -> tuple[int, int, int]:
    """Experts (1 where there are none), neurons of each, and outputs of the MLPs, the same in every block."""
    if family.experts is None:
        assert family.mlp_post is not None
        return 1, *_same(blocks, family.mlp_post, owner)
    down: list[Tensor] = [
        _part(block, family.experts, f"block {i} of {owner}").down_proj  # type: ignore[misc]
        for i, block in enumerate(blocks)
    ]
    if len(shapes := {tuple(weight.shape) for weight in down}) != 1:
        raise ModelError(f"the experts' projections differ in shape between blocks: {sorted(shapes)}")
    n_experts, d_out, d_mlp = down[0].shape
    return n_experts, d_mlp, d_out


def _heads(block: nn.Module, family: Family, config: Config, d_z: int) -> tuple[int, int, int]:
    """Heads, key/value heads and width of a head, from the projections; only the number of heads is the config's."""
    n_heads = int(config.num_attention_heads)
    if d_z % n_heads:
        raise ModelError(f"the configuration says {n_heads} heads, which do not divide the {d_z} inputs of {family.z}")
    d_head = d_z // n_heads
    path = family.key or family.qkv
    assert path is not None
    d_key = _projection_sizes(_part(block, path, "block 0"))[1]
    if family.key is None:  # queries, and as many values as keys
        d_key = (d_key - d_z) // 2
    if d_key % d_head or d_key < d_head:
        raise ModelError(f"{path} leaves {d_key} coordinates to keys, not a multiple of the {d_head} of one head")
    return n_heads, d_key // d_head, d_head


def _positions(model: nn.Module, family: Family, config: Config) -> int:
    if family.positions is None:
        return family.longest(config)
    path, _, name = family.positions.rpartition(".")
    table = getattr(_part(model, path, type(model).__name__), name, None)
    if isinstance(table, nn.Parameter):
        return int(table.shape[-2])
    if not isinstance(table, nn.Module):
        raise ModelError(f"{type(model).__name__} has no part {family.positions!r}")
    return _rows(table) - family.position_offset(config)


def _token_ids(model: nn.Module, family: Family) -> int:
    if family.objective == "image":
        return 0
    return _rows(model.get_input_embeddings())  # type: ignore[operator]


def _rows(module: nn.Module) -> int:
    """Rows of a table or of a linear layer's weight."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return int(weight.shape[0])


def _blocks(model: nn.Module, family: Family, owner: str) -> tuple[nn.Module, ...]:
    found = _part(model, family.blocks, owner)
    if not isinstance(found, nn.ModuleList) or not len(found):
        raise ModelError(f"{owner} has no list of blocks at {family.blocks!r}")
    return tuple(found)
