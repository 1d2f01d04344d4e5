"""The look at the user's own model: what it lets pass, and what it must not."""

from dataclasses import replace

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


def test_a_site_that_is_not_where_the_anatomy_says() -> None:
    """A norm, or attention itself, taken for what the MLP adds."""
    anatomy, batch = dissect(tiny_model("gpt2")), Documents(token_documents(97, [40])).batch([0])
    verify(anatomy, batch)
    for wrong in ("ln_2", "attn.c_proj"):
        with pytest.raises(ModelError, match="misses resid_post"):
            verify(replace(anatomy, family=replace(anatomy.family, mlp_out=wrong)), batch)


def test_a_head_that_looks_beyond_its_position() -> None:
    """A tail that depends on the length of the sequence cannot be run in chunks."""
    model, batch = tiny_model("gpt2"), Documents(token_documents(97, [40])).batch([0])
    handle = model.lm_head.register_forward_hook(lambda module, arguments, output: output * output.shape[1])
    with pytest.raises(ModelError, match="miss the model's own logits"):
        verify(dissect(model), batch)
    handle.remove()
    verify(dissect(model), batch)
