"""Sites: each where the anatomy says, and with everything that passes there."""

import contextlib
import functools

import torch
from torch import Tensor, nn

from lesion.anatomy import SITES, Anatomy
from lesion.engine.checks.comparing import (
    difference,
    edited,
    logits,
    named_blocks,
    refuse_missing_site,
    site_hook,
    some_layers,
)
from lesion.engine.checks.finding import Check, Measured, NotApplicable, check
from lesion.engine.samples import Samples
from lesion.errors import InterventionError
from lesion.interventions import ActivationEdit
from lesion.interventions.hooks import Operator, hooked


def _fires(site: str, anatomy: Anatomy, samples: Samples) -> Measured:
    """A site passes once in every block, with the width that the anatomy says."""
    width = {"z": anatomy.d_z, "mlp_pre": anatomy.d_mlp, "mlp_post": anatomy.d_mlp}.get(site, anatomy.d_model)
    widths: dict[int, list[int]] = {layer: [] for layer in range(anatomy.n_layers)}

    def watch(layer: int) -> Operator:
        def operator(tensor: Tensor) -> Tensor:
            widths[layer].append(tensor.shape[-1])
            return tensor

        return operator

    refuse_missing_site(anatomy, site)
    hooks = [site_hook(anatomy, layer, site, watch(layer)) for layer in range(anatomy.n_layers)]
    with contextlib.suppress(InterventionError), hooked(hooks):  # what did not fire is counted below
        logits(anatomy, samples.short)
    wrong = {layer: found for layer, found in widths.items() if found != [width]}
    detail = f"once in each of {anatomy.n_layers} blocks, {width} wide"
    if wrong:
        layer, found = next(iter(wrong.items()))
        detail = f"block {layer}: {len(found)} times, width {sorted(set(found))}; expected once, {width} wide"
    return Measured(float(anatomy.n_layers - len(wrong)), "=", float(anatomy.n_layers), detail)


fires = tuple(Check(f"site {site}", functools.partial(_fires, site)) for site in SITES)


@check("identity edits")
def identity_edits(anatomy: Anatomy, samples: Samples) -> Measured:
    """A copy of the tensor in its place, at every site, changes no bit."""
    chosen = some_layers(anatomy)
    edits = tuple(ActivationEdit(layer, site, torch.clone) for layer in chosen for site in anatomy.sites)
    whole = logits(anatomy, samples.short)
    with edited(anatomy, edits):
        found = difference(logits(anatomy, samples.short), whole)
    return Measured(found, "=", 0.0, f"{len(anatomy.sites)} sites in {named_blocks(chosen)}")


@check("doubled z")
def doubled_z(anatomy: Anatomy, samples: Samples) -> Measured:
    """The negation: half of the z of one block, doubled, moves the logits. The least of the moves is reported.

    Half of it: where a norm follows the output projection (Gemma 2 and 3), all of it doubled is the same direction.
    """

    def double(tensor: Tensor) -> Tensor:
        first, second = tensor.tensor_split(2, dim=-1)
        return torch.cat([2 * first, second], dim=-1)

    chosen = [layer for layer in some_layers(anatomy) if not _all_zero(anatomy.site(layer, "z")[0])]
    if not chosen:
        raise NotApplicable("the output projections of attention are zero")
    whole, moved = logits(anatomy, samples.short), []
    for layer in chosen:
        with edited(anatomy, [ActivationEdit(layer, "z", double)]):
            moved.append(difference(logits(anatomy, samples.short), whole))
    return Measured(min(moved), ">", 0.0, f"the first half of z in {named_blocks(chosen)}, one at a time")


@check("z is all of attention")
def z_is_all_of_attention(anatomy: Anatomy, samples: Samples) -> Measured:
    """With z at 0 attention adds the same to every position (its bias): nothing goes around z."""
    return _all_that_passes(anatomy, samples, "z", "attn_out")


@check("mlp_post is all of the MLP")
def mlp_post_is_all_of_the_mlp(anatomy: Anatomy, samples: Samples) -> Measured:
    """With mlp_post at 0 the MLP adds the same to every position (its bias)."""
    return _all_that_passes(anatomy, samples, "mlp_post", "mlp_out")


def _all_that_passes(anatomy: Anatomy, samples: Samples, cause: str, effect: str) -> Measured:
    refuse_missing_site(anatomy, cause)
    chosen, spreads = some_layers(anatomy), []

    def watch(tensor: Tensor) -> Tensor:
        rows = tensor.flatten(0, -2).float()
        spreads.append(float((rows - rows[:1]).abs().max()))
        return tensor

    for layer in chosen:
        hooks = [site_hook(anatomy, layer, cause, torch.zeros_like), site_hook(anatomy, layer, effect, watch)]
        with hooked(hooks):
            logits(anatomy, samples.short)
    # Rows of zeros go through the same sums: equal to the last bit.
    return Measured(
        max(spreads), "=", 0.0, f"spread of {effect} over positions without {cause}; {named_blocks(chosen)}"
    )


def _all_zero(module: nn.Module) -> bool:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return not bool(weight.any())
