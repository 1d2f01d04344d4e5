"""A look at the user's own model before a study trusts its anatomy with it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lesion.anatomy.anatomy import Anatomy
from lesion.data import Batch
from lesion.engine.lanes import Walk, lay_out
from lesion.engine.skeleton import Skeleton
from lesion.errors import ModelError, NonFiniteError
from lesion.interventions.hooks import Hook, hooked

TELLING = 64
"""Tokens from which on a document is long enough to verify with."""


def telling_document(lengths: Sequence[int]) -> int:
    """The document to verify with: the shortest that is long enough for masks and windows to matter."""
    long_enough = [length for length in lengths if length >= TELLING]
    return list(lengths).index(min(long_enough) if long_enough else max(lengths))


@torch.inference_mode()
def verify(anatomy: Anatomy, batch: Batch) -> None:
    """Checks, on one batch, what the engine takes for granted.

    Blocks run one by one and the tail in chunks give the logits that the model's own forward gives; every site fires
    in every block; in pre-norm families what attention and MLP add is all that a block adds.

    Raises:
        ModelError: one of these does not hold.
        NonFiniteError: the model's own logits are not finite.
    """
    seen: dict[tuple[int, str], Tensor] = {}

    def watch(layer: int, site: str) -> Hook:
        def operator(tensor: Tensor) -> Tensor:
            seen[layer, site] = tensor
            return tensor

        return Hook(*anatomy.site(layer, site), operator, f"block {layer}, {site}")

    skeleton = Skeleton(anatomy)
    whole = skeleton.whole(batch)[batch.keep.flatten()]
    stream, calls = skeleton.enter(batch)
    hooks = [watch(layer, site) for layer in range(anatomy.n_layers) for site in anatomy.sites]
    with hooked(hooks):
        walk = Walk(anatomy, lay_out([], anatomy.n_layers), stack_tokens=1, on_broken=lambda index, step: None)
        stream = walk.run(stream, calls, [])[0]
    logits = skeleton.leave(stream[batch.keep.nonzero(as_tuple=True)])
    _check_logits(logits.float(), whole.float(), anatomy.dtype)
    if anatomy.norm == "pre":
        _check_additive(anatomy, seen)


def _check_logits(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    if not torch.isfinite(theirs).all():
        raise NonFiniteError(f"the model itself gives logits that are not finite ({dtype})")
    scale, worst = theirs.abs().max(), (ours - theirs).abs().max()
    # The head on chunks of rows and on a whole batch may add up in another order: some units in the last place.
    units = 64 if dtype == torch.float32 else 4
    if not worst <= units * torch.finfo(dtype).eps * scale:
        raise ModelError(
            f"blocks run one by one miss the model's own logits by {worst:.3g} (of {scale:.3g}); its anatomy is wrong"
        )


def _check_additive(anatomy: Anatomy, seen: dict[tuple[int, str], Tensor]) -> None:
    limit = 8 * torch.finfo(anatomy.dtype).eps  # rounding of the additions, and no more, also where they cancel
    for layer in range(anatomy.n_layers):
        before, after = seen[layer, "resid_pre"].double(), seen[layer, "resid_post"].double()
        attention, mlp = (seen[layer, site].double().reshape(before.shape) for site in ("attn_out", "mlp_out"))
        miss = (before + attention + mlp - after).norm() / (before.norm() + attention.norm() + mlp.norm())
        if not miss <= limit:
            raise ModelError(
                f"in block {layer} resid_pre + attn_out + mlp_out misses resid_post by {miss:.2g} of their norms; "
                "the sites of this family are not where its anatomy says"
            )
