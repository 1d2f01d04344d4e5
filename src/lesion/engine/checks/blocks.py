"""Blocks run by themselves, and what they add up to."""

import torch
from torch import Tensor

from lesion.anatomy import Anatomy
from lesion.engine.checks.comparing import (
    difference,
    logits,
    named_blocks,
    site_hook,
    some_layers,
    tail_logits,
    tail_rounding,
)
from lesion.engine.checks.finding import Measured, NotApplicable, check
from lesion.engine.lanes import Walk, lay_out
from lesion.engine.samples import Samples
from lesion.engine.skeleton import Skeleton
from lesion.interventions.hooks import Hook, Operator, hooked
from lesion.interventions.intervention import hidden_of


@check("blocks one by one")
def blocks_one_by_one(anatomy: Anatomy, samples: Samples) -> Measured:
    """Embeddings, blocks one at a time and the head give the logits of the model's own forward."""
    found = []
    for batch in (samples.long, samples.both):
        skeleton = Skeleton(anatomy)
        stream, calls = skeleton.enter(batch)
        walk = Walk(anatomy, lay_out([], anatomy.n_layers), stack_tokens=1, on_broken=lambda index, step: None)
        found.append(difference(tail_logits(skeleton, walk.run(stream, calls, [])[0], batch), logits(anatomy, batch)))
    return Measured(max(found), "<=", tail_rounding(anatomy), "a document alone, and two in a padded batch")


@check("from a block on")
def from_a_block_on(anatomy: Anatomy, samples: Samples) -> Measured:
    """The residual stream that the whole model has before a block, and that block and the later ones run on it."""
    batch, chosen = samples.long, some_layers(anatomy)
    before: dict[int, Tensor] = {}

    def keep(layer: int) -> Operator:
        def operator(tensor: Tensor) -> Tensor:
            before[layer] = tensor.clone()
            return tensor

        return operator

    with hooked([site_hook(anatomy, layer, "resid_pre", keep(layer)) for layer in chosen]):
        whole = logits(anatomy, batch)
    skeleton = Skeleton(anatomy)
    _, calls = skeleton.enter(batch)
    found = []
    for layer in chosen:
        stream = before[layer]
        for block, call in zip(anatomy.blocks[layer:], calls[layer:], strict=True):
            stream = hidden_of(block(stream, *call.arguments, **call.keywords))
        found.append(difference(tail_logits(skeleton, stream, batch), whole))
    return Measured(max(found), "<=", tail_rounding(anatomy), f"from {named_blocks(chosen)}")


@check("sum of parts")
def sum_of_parts(anatomy: Anatomy, samples: Samples) -> Measured:
    """resid_pre + attn_out + mlp_out = resid_post in every block; a share of the norms of the three."""
    if anatomy.norm == "post":
        raise NotApplicable("a norm follows each addition to the residual stream")
    seen: dict[str, Tensor] = {}
    misses: list[float] = []

    def watch(layer: int, site: str) -> Hook:
        def operator(tensor: Tensor) -> Tensor:
            seen[site] = tensor.double()
            if site == "resid_post":
                misses.append(_miss(seen))
                seen.clear()
            return tensor

        return site_hook(anatomy, layer, site, operator)

    sites = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    with hooked([watch(layer, site) for layer in range(anatomy.n_layers) for site in sites]):
        logits(anatomy, samples.short)
    worst = max(range(len(misses)), key=misses.__getitem__)
    # Rounding of two additions, also where they cancel; verified before each study with the same limit.
    limit = 8 * float(torch.finfo(anatomy.dtype).eps)
    return Measured(misses[worst], "<=", limit, f"all {len(misses)} blocks, worst in block {worst}")


def _miss(seen: dict[str, Tensor]) -> float:
    before, after = seen["resid_pre"], seen["resid_post"]
    attention, mlp = (seen[site].reshape(before.shape) for site in ("attn_out", "mlp_out"))
    return float((before + attention + mlp - after).norm() / (before.norm() + attention.norm() + mlp.norm()))
