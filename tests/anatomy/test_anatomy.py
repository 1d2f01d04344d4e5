"""Sizes are read from the weights, and contradictions are refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    BloomForCausalLM,
    DeiTForImageClassificationWithTeacher,
    FalconForCausalLM,
    LlamaForSequenceClassification,
)

from lesion.anatomy import SITES, dissect, known_families
from lesion.engine import verify
from lesion.errors import ModelError
from lesion.interventions import ActivationEdit, Intervention
from tests.support import TINY, Documents, tiny_model, token_documents

POSITIONS = {"vit": 65, "deit": 66}
"""8 x 8 patches, the class token, and DeiT's token for distillation; texts of 64 tokens elsewhere."""
EXPERTS = {"mixtral", "qwen3_moe"}


@pytest.mark.parametrize("name", TINY)
def test_sizes(name: str) -> None:
    anatomy = dissect(tiny_model(name))
    d_mlp = 128 if name == "bloom" else 80  # BLOOM's is four times d_model, whatever its configuration says
    assert (anatomy.n_layers, anatomy.d_model, anatomy.d_mlp, anatomy.n_heads) == (3, 32, d_mlp, 4)
    assert anatomy.n_experts == (4 if name in EXPERTS else 1)
    assert anatomy.vocabulary == 97
    image = anatomy.objective == "image"
    assert anatomy.n_token_ids == (0 if image else 97)
    assert anatomy.n_positions == POSITIONS.get(name, 64)
    assert anatomy.d_z == anatomy.n_heads * anatomy.d_head


def test_a_head_is_as_wide_as_its_weights_say() -> None:
    anatomy = dissect(tiny_model("llama"))  # head_dim 16, where hidden_size // n_heads would say 8
    assert (anatomy.d_head, anatomy.d_z, anatomy.n_kv_heads) == (16, 64, 2)


@pytest.mark.parametrize(("name", "heads"), [
    ("gpt2", 4), ("gpt_neox", 4), ("bloom", 4), ("falcon-7b", 1), ("falcon-40b", 2), ("falcon-rw", 4), ("gemma", 1),
    ("phi", 2), ("phi-normed", 4), ("mixtral", 2), ("bert", 4),
])  # fmt: skip
def test_heads_of_keys_are_counted_in_the_weights(name: str, heads: int) -> None:
    assert dissect(tiny_model(name)).n_kv_heads == heads


def test_keys_that_fill_no_head() -> None:
    model = tiny_model("gpt2")
    model.transformer.h[0].attn.c_attn.weight = nn.Parameter(torch.zeros(32, 32 + 2 * 6))
    with pytest.raises(ModelError, match=r"attn.c_attn leaves 6 coordinates to keys, not a multiple of the 8"):
        dissect(model)


@pytest.mark.parametrize(("name", "norm", "parallel"), [
    ("gpt2", "pre", False),
    ("gpt_neox", "pre", True),
    ("gpt_neox-sequential", "pre", False),
    ("opt", "pre", False),
    ("opt-350m", "post", False),
    ("bert", "post", False),
    ("phi", "pre", True),
    ("gptj", "pre", True),
    ("bloom", "pre", False),
    ("falcon-7b", "pre", True),
    ("falcon-40b", "pre", True),
    ("falcon-rw", "pre", False),
    ("gemma2", "pre", False),
    ("qwen2", "pre", False),
    ("mixtral", "pre", False),
])  # fmt: skip
def test_kind_of_block(name: str, norm: str, parallel: bool) -> None:
    anatomy = dissect(tiny_model(name))
    assert (anatomy.norm, anatomy.parallel) == (norm, parallel)


def test_positions_are_those_that_the_model_can_read() -> None:
    for name in ("gpt2", "opt", "roberta", "bert"):
        model = tiny_model(name)
        limit = dissect(model).n_positions
        assert model(torch.full((1, limit), 7)).logits.shape[1] == limit
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, limit + 1), 7))


def test_every_site_is_found_in_every_block() -> None:
    for name in TINY:
        anatomy = dissect(tiny_model(name))
        assert all(isinstance(anatomy.site(layer, site)[0], nn.Module) for layer in range(3) for site in anatomy.sites)
        with pytest.raises(KeyError):
            anatomy.site(0, "resid_middle")


@pytest.mark.parametrize("name", TINY)
def test_only_experts_lack_sites(name: str) -> None:
    anatomy = dissect(tiny_model(name))
    missing = set(SITES) - set(anatomy.sites)
    assert missing == ({"mlp_pre", "mlp_post"} if name in EXPERTS else set())
    for site in missing:
        says = rf"{anatomy.family.model_type} has no site {site}: .*experts.*its sites are resid_pre, z, attn_out"
        with pytest.raises(ModelError, match=says):
            anatomy.site(0, site)
        edit = Intervention("edit", edits=(ActivationEdit(1, site, torch.zeros_like),))
        with pytest.raises(ModelError, match=says), edit.on(anatomy.model):
            pass


def test_experts_of_different_sizes() -> None:
    model = tiny_model("mixtral")
    model.model.layers[1].mlp.experts.down_proj = nn.Parameter(torch.zeros(4, 32, 40))
    with pytest.raises(ModelError, match=r"experts' projections differ.*\(4, 32, 40\), \(4, 32, 80\)"):
        dissect(model)


def test_another_class_of_a_known_family_is_refused() -> None:
    config = AutoConfig.for_model("llama", **known_families()["llama"].tiny["llama"])
    with pytest.raises(ModelError, match=r"LlamaForSequenceClassification.*known: .*LlamaForCausalLM"):
        dissect(LlamaForSequenceClassification(config))


def test_what_a_configuration_may_not_ask_for() -> None:
    with pytest.raises(ModelError, match=r"cross-attention"):
        dissect(tiny_model("gpt2", add_cross_attention=True))


@pytest.mark.parametrize(("name", "sizes", "says"), [
    ("bloom", {"apply_residual_connection_post_layernorm": True}, "replace the residual stream"),
    ("bloom", {"slow_but_exact": True, "pretraining_tp": 2}, "slow_but_exact"),
    ("gemma", {"use_bidirectional_attention": True}, "both sides"),
    ("gemma2", {"use_bidirectional_attention": True}, "both sides"),
    ("gemma3", {"use_bidirectional_attention": True}, "both sides"),
    ("falcon-40b", {"num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn is 3"),
    ("falcon-40b", {"parallel_attn": False}, "without parallel_attn"),
    ("falcon-7b", {"num_ln_in_parallel_attn": 2}, "needs new_decoder_architecture"),
    ("qwen3_moe", {"mlp_only_layers": [1]}, "some have not"),
    ("deit", {"image_size": [16, 16]}, "not squares"),
])  # fmt: skip
def test_configurations_that_change_the_structure(name: str, sizes: dict[str, object], says: str) -> None:
    dissect(tiny_model(name))
    with pytest.raises(ModelError, match=f"cannot be studied: .*{says}"):
        dissect(tiny_model(name, **sizes))


def test_slices_that_hooks_do_not_see_are_the_only_ones_refused() -> None:
    for sizes in ({"slow_but_exact": True}, {"pretraining_tp": 4}):
        assert isinstance(dissect(tiny_model("bloom", **sizes)).model, BloomForCausalLM)


def test_a_model_type_that_is_refused_by_name() -> None:
    model = tiny_model("gemma3")
    dissect(model)
    model.config = type("Config", (), {"model_type": "gemma3"})()
    with pytest.raises(ModelError, match="cannot be studied: it reads images beside text"):
        dissect(model)


def test_a_head_of_two_tokens_is_refused() -> None:
    config = tiny_model("deit").config
    with pytest.raises(
        ModelError, match=r"DeiTForImageClassificationWithTeacher.*known: .*DeiTForImageClassification,"
    ):
        dissect(DeiTForImageClassificationWithTeacher(config))
    model = tiny_model("deit")
    model.config.architectures = ["DeiTForImageClassificationWithTeacher"]
    with pytest.raises(ModelError, match="mean of two heads"):
        dissect(model)


def test_a_sum_made_in_place_does_not_reach_what_was_seen() -> None:
    """Falcon adds attention to the MLP's own output; the parts as they were must add up to the block's."""
    anatomy = dissect(tiny_model("falcon-7b"))
    batch = Documents(token_documents(97, [40])).batch([0])
    assert isinstance(anatomy.model, FalconForCausalLM)
    verify(anatomy, batch)
    with pytest.raises(ModelError, match="misses resid_post"):
        verify(replace(anatomy, family=replace(anatomy.family, overwritten=())), batch)


@torch.inference_mode()
@pytest.mark.parametrize(("name", "plain"), [
    ("qwen2-window", {"sliding_window": 4096}),
    ("qwen3-window", {"sliding_window": 4096}),
    ("gemma2", {"sliding_window": 4096}),
    ("gemma3", {"sliding_window": 4096}),
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma2", {"final_logit_softcapping": None}),
    ("phi-normed", {"qk_layernorm": False}),
    ("falcon-rw", {"alibi": False}),
])  # fmt: skip
def test_what_a_tiny_configuration_is_there_for_matters(name: str, plain: dict[str, object]) -> None:
    """A window, a cap or a bias that changed nothing could be lost without any test noticing."""
    ids = torch.from_numpy(token_documents(97, [40])[0]).unsqueeze(0)
    model = tiny_model(name)
    other = tiny_model(name, **plain)
    other.load_state_dict(model.state_dict(), strict=False)
    assert not torch.allclose(model(ids).logits, other(ids).logits, atol=0.05)


def test_weights_that_contradict_the_configuration() -> None:
    model = tiny_model("llama")
    model.config.num_hidden_layers = 4
    with pytest.raises(ModelError, match=r"3 blocks.*says 4"):
        dissect(model)
    model = tiny_model("llama")
    model.config.num_attention_heads = 5
    with pytest.raises(ModelError, match=r"5 heads.*64 inputs"):
        dissect(model)


def test_blocks_of_different_sizes() -> None:
    model = tiny_model("opt")
    model.model.decoder.layers[1].fc2 = nn.Linear(40, 32)
    with pytest.raises(ModelError, match=r"fc2 of block 1 is 40 x 32, that of block 0 80 x 32"):
        dissect(model)


def test_a_part_that_is_not_there() -> None:
    model = tiny_model("opt")
    del model.model.decoder.layers[2].fc1
    with pytest.raises(ModelError, match=r"block 2.*'fc1'"):
        dissect(model)
