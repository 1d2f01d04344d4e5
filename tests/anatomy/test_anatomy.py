"""Sizes are read from the weights, and contradictions are refused."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, LlamaForSequenceClassification

from lesion.anatomy import SITES, dissect, known_families
from lesion.errors import ModelError
from tests.support import TINY, tiny_model


@pytest.mark.parametrize("name", TINY)
def test_sizes(name: str) -> None:
    anatomy = dissect(tiny_model(name))
    assert (anatomy.n_layers, anatomy.d_model, anatomy.d_mlp, anatomy.n_heads) == (3, 32, 80, 4)
    assert anatomy.vocabulary == 97
    image = anatomy.objective == "image"
    assert anatomy.n_token_ids == (0 if image else 97)
    assert anatomy.n_positions == (65 if image else 64)  # 8 x 8 patches and the class token
    assert anatomy.d_z == anatomy.n_heads * anatomy.d_head


def test_a_head_is_as_wide_as_its_weights_say() -> None:
    anatomy = dissect(
        tiny_model("llama")
    )  # head_dim 16 with d_model 32 and 4 heads: hidden_size // n_heads would say 8
    assert (anatomy.d_head, anatomy.d_z, anatomy.n_kv_heads) == (16, 64, 2)


@pytest.mark.parametrize(("name", "norm", "parallel"), [
    ("gpt2", "pre", False),
    ("gpt_neox", "pre", True),
    ("gpt_neox-sequential", "pre", False),
    ("opt", "pre", False),
    ("opt-350m", "post", False),
    ("bert", "post", False),
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
        assert all(isinstance(anatomy.site(layer, site)[0], nn.Module) for layer in range(3) for site in SITES)
        with pytest.raises(KeyError):
            anatomy.site(0, "resid_middle")


def test_another_class_of_a_known_family_is_refused() -> None:
    config = AutoConfig.for_model("llama", **known_families()["llama"].tiny["llama"])
    with pytest.raises(ModelError, match=r"LlamaForSequenceClassification.*known: .*LlamaForCausalLM"):
        dissect(LlamaForSequenceClassification(config))


def test_what_a_configuration_may_not_ask_for() -> None:
    with pytest.raises(ModelError, match=r"cross-attention"):
        dissect(tiny_model("gpt2", add_cross_attention=True))


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
