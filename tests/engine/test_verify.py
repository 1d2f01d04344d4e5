"""The look at the user's own model: what it lets pass, and what it must not."""

import pytest
import torch

from lesion.anatomy import SITES, dissect
from lesion.engine import verify
from lesion.engine.verify import _check_additive
from lesion.errors import ModelError, NonFiniteError
from tests.support import Documents, tiny_model, token_documents


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_that_takes_a_large_residual_away_is_no_fault(dtype: torch.dtype) -> None:
    """Last blocks of trained models cancel coordinates in the thousands: what is left carries their rounding."""
    anatomy = dissect(tiny_model("llama").to(dtype))
    torch.manual_seed(0)
    before, attention, rest = (torch.randn(1, 4, 32).to(dtype) for _ in range(3))
    before *= 5000
    mlp = rest - before
    after = (before + attention) + mlp
    tensors = {"resid_pre": before, "attn_out": attention, "mlp_out": mlp, "resid_post": after}
    seen = {(layer, site): tensors.get(site, before) for layer in range(3) for site in SITES}
    _check_additive(anatomy, seen)
    seen[1, "attn_out"] = attention + 0.5 * before
    with pytest.raises(ModelError, match="in block 1 resid_pre"):
        _check_additive(anatomy, seen)


def test_logits_that_are_not_finite_are_not_taken_for_a_wrong_anatomy() -> None:
    network = tiny_model("llama")
    batch = Documents(token_documents(97, [20])).batch([0])
    verify(dissect(network), batch)
    with torch.no_grad():
        network.lm_head.weight.mul_(1e38)
    with pytest.raises(NonFiniteError, match="not finite"):
        verify(dissect(network), batch)
