"""What checks share: logits, how far they may differ, and the places that are looked at."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lesion.anatomy import Anatomy
from lesion.data import Batch
from lesion.engine.checks.finding import Measured, NotApplicable
from lesion.engine.samples import Samples
from lesion.engine.skeleton import Skeleton
from lesion.errors import ModelError, NonFiniteError
from lesion.interventions import ActivationEdit
from lesion.interventions.hooks import Hook, Operator, hooked


def rounding(anatomy: Anatomy) -> float:
    """Most that the same sums in another order may move a logit, as a share of the largest logit.

    Batches of another size take other kernels, and every block rounds anew. float32: the project's promise for padding.
    Halves keep 8 or 11 bits: what one addition rounds away is up to half an epsilon, and the errors of the two
    additions of each of L blocks grow as the root of their number; 4 covers the greatest of many logits.
    """
    if anatomy.dtype.itemsize >= 4:
        return 1e-5
    return float(4 * torch.finfo(anatomy.dtype).eps * (2 * anatomy.n_layers) ** 0.5)


def tail_rounding(anatomy: Anatomy) -> float:
    """Most that norm and head may differ on chunks of positions, the blocks' calls being the same: some last places."""
    units = 64 if anatomy.dtype.itemsize >= 4 else 4
    return float(units * torch.finfo(anatomy.dtype).eps)


def logits(anatomy: Anatomy, batch: Batch) -> Tensor:
    """Logits of the model's own forward at every real output, (output, vocabulary), in float32."""
    return Skeleton(anatomy).whole(batch)[batch.keep.flatten()].float()


def tail_logits(skeleton: Skeleton, stream: Tensor, batch: Batch) -> Tensor:
    """Logits of the residual stream after the last block, at the same outputs as `logits`."""
    return skeleton.leave(stream[batch.keep.nonzero(as_tuple=True)]).float()


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The greatest difference as a share of the largest number of `theirs`.

    An intervention may overflow half precision: what is not finite on both sides is equal, on one side infinitely off.
    """
    finite = torch.isfinite(theirs)
    if not torch.equal(finite, torch.isfinite(ours)):
        return float("inf")
    ours, theirs = (torch.where(finite, tensor, 0) for tensor in (ours, theirs))
    worst, scale = float((ours - theirs).abs().max()), float(theirs.abs().max())
    if worst and not scale:
        return float("inf")
    return worst / scale if worst else 0.0


def edited(anatomy: Anatomy, edits: Sequence[ActivationEdit]) -> Any:
    """A context in which the edits are in place, at the sites of this anatomy."""
    return hooked([site_hook(anatomy, edit.layer, edit.site, edit.operator) for edit in edits])


def site_hook(anatomy: Anatomy, layer: int, site: str, operator: Operator) -> Hook:
    """The operator at a site of this anatomy."""
    return Hook(*anatomy.site(layer, site), operator, f"block {layer}, {site}")


def some_layers(anatomy: Anatomy) -> list[int]:
    """The first, the middle and the last block."""
    return sorted({0, anatomy.n_layers // 2, anatomy.n_layers - 1})


def named_blocks(layers: Sequence[int]) -> str:
    """As a detail names them."""
    return f"block{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def exact_but_for_experts(anatomy: Anatomy, found: float, detail: str) -> Measured:
    """Nothing may differ; with experts, whose groups of tokens change in size, rounding may."""
    if anatomy.n_experts > 1:
        return Measured(found, "<=", rounding(anatomy), detail)
    return Measured(found, "=", 0.0, detail)


def refuse_missing_site(anatomy: Anatomy, site: str) -> None:
    """Raises NotApplicable with the reason why blocks of this family do not have a site."""
    try:
        anatomy.family.site(site)
    except ModelError as reason:
        raise NotApplicable(str(reason)) from None


def refuse_images(samples: Samples) -> None:
    """Raises NotApplicable where padding has no meaning."""
    if samples.both.ids is None:
        raise NotApplicable("images are never padded")


@torch.inference_mode()
def refuse_non_finite(anatomy: Anatomy, samples: Samples) -> None:
    """Raises NonFiniteError where there is nothing that could be compared."""
    if not torch.isfinite(logits(anatomy, samples.both)).all():
        raise NonFiniteError(
            f"the model itself gives logits that are not finite ({anatomy.dtype}), so that nothing can be compared; "
            "try --dtype float32"
        )
