"""Orders and edits as data: exact laws on hand-written models, and errors instead of silence."""

import pytest
import torch
from torch import Tensor, nn

from lesion.errors import InterventionError, ModelError
from lesion.interventions import ActivationEdit, Intervention, combine, drop, drop_attn, drop_mlp, parse, swap
from lesion.interventions.hooks import Hook, forwards_replaced, hooked
from tests.support import tiny_model

IDS = torch.arange(40).unsqueeze(0) % 90 + 5


def test_orders() -> None:
    assert drop(1).order(4) == (0, None, 2, 3)
    assert swap(1).order(4) == (0, 2, 1, 3)
    assert drop_attn(1).order(4) == (0, 1, 2, 3)
    assert combine([swap(0), swap(1)]).order(4) == (1, 2, 0, 3)
    assert combine([swap(0), swap(0)]).order(4) == (0, 1, 2, 3)
    assert combine([drop(1), swap(1)]).order(4) == (0, 2, None, 3)
    assert combine([swap(1), drop(1)]).order(4) == (0, 2, None, 3)


@pytest.mark.parametrize("intervention", [drop(3), swap(2), drop_attn(3), drop_mlp(-1)])
def test_blocks_out_of_range(intervention: Intervention) -> None:
    with pytest.raises(InterventionError, match=r"blocks 0 to 2"):
        intervention.order(3)
    with pytest.raises(InterventionError, match=r"blocks 0 to 2"), intervention.on(tiny_model("gpt2")):
        pass


@pytest.mark.parametrize("text", ["drop:3", "swap:0", "drop-attn:12", "drop-mlp:1"])
def test_the_grammar_is_the_name(text: str) -> None:
    assert parse(text).name == text


@pytest.mark.parametrize("text", ["drop", "drop:", "drop:x", "drop:-1", "drop_attn:1", "remove:1", ""])
def test_what_the_grammar_refuses(text: str) -> None:
    with pytest.raises(InterventionError, match=r"edit|block"):
        parse(text)


@torch.inference_mode()
def test_dropping_every_block_leaves_the_embedding() -> None:
    """Exact: what remains of a GPT-2 is its embedding, its last norm and its head."""
    model = tiny_model("gpt2")
    core = model.transformer
    stream = core.wte(IDS) + core.wpe(torch.arange(IDS.shape[1]))
    with combine([drop(layer) for layer in range(3)]).on(model):
        logits = model(IDS, use_cache=False).logits
    assert torch.equal(logits, model.lm_head(core.ln_f(stream)))


@torch.inference_mode()
def test_a_swap_is_the_blocks_exchanged() -> None:
    model = tiny_model("opt")
    with swap(1).on(model):
        swapped = model(IDS, use_cache=False).logits
    clean = model(IDS, use_cache=False).logits
    blocks = model.model.decoder.layers
    blocks[1], blocks[2] = blocks[2], blocks[1]
    assert torch.equal(model(IDS, use_cache=False).logits, swapped)
    assert not torch.equal(clean, swapped)


@torch.inference_mode()
def test_swapping_twice_is_nothing() -> None:
    model = tiny_model("mistral")
    clean = model(IDS, use_cache=False).logits
    with combine([swap(0), swap(0)]).on(model):
        assert torch.equal(model(IDS, use_cache=False).logits, clean)


@torch.inference_mode()
def test_both_halves_dropped_is_the_block_dropped_in_pre_norm_families() -> None:
    for name, same in {"llama": True, "gpt_neox": True, "bert": False}.items():
        model = tiny_model(name)
        with combine([drop_attn(1), drop_mlp(1)]).on(model):
            halves = model(IDS).logits
        with drop(1).on(model):
            whole = model(IDS).logits
        assert torch.equal(halves, whole) is same  # a post-norm block still normalises what passes


@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom", "gptj", "falcon-7b", "mixtral"])
@torch.inference_mode()
def test_generation_without_a_block_needs_its_cache_off(name: str) -> None:
    """Whatever a cache is called, and whether blocks return tuples or tensors."""
    model = tiny_model(name)
    ids = IDS[:, :6]
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with drop(0).on(model):
        with pytest.raises(InterventionError, match=r"use_cache=False"):
            model.generate(ids, use_cache=True, **options)
        model.generate(ids, use_cache=False, **options)
    for edit in (drop(1), swap(1)):
        with edit.on(model):
            cached = model.generate(ids, use_cache=True, **options)
            assert torch.equal(cached, model.generate(ids, use_cache=False, **options))


def test_an_edit_that_never_fires_is_an_error() -> None:
    model = tiny_model("gpt2")
    with (
        pytest.raises(InterventionError, match=r"block 1, z.*did nothing"),
        Intervention("idle", edits=(ActivationEdit(1, "z", torch.zeros_like),)).on(model),
    ):
        model.transformer.wte(IDS)
    with Intervention("busy", edits=(ActivationEdit(1, "z", torch.zeros_like),)).on(model):
        model(IDS)


def test_an_exception_is_not_hidden_by_the_silence_of_an_edit() -> None:
    model = tiny_model("gpt2")
    with (
        pytest.raises(ArithmeticError),
        Intervention("idle", edits=(ActivationEdit(1, "z", torch.zeros_like),)).on(model),
    ):
        raise ArithmeticError


def test_a_model_of_no_known_family() -> None:
    class Unknown(nn.Module):
        config = type("Config", (), {"model_type": "perceptron"})()

    with pytest.raises(ModelError, match=r"perceptron"), drop(0).on(Unknown()):
        pass


def test_hooks_see_keyword_inputs_and_tuples() -> None:
    class Inner(nn.Module):
        def forward(self, hidden_states: Tensor) -> tuple[Tensor, str]:
            return hidden_states + 1, "weights"

    inner = Inner()
    with hooked([Hook(inner, "input", lambda x: 10 * x, "in"), Hook(inner, "output", lambda x: -x, "out")]):
        output, rest = inner(hidden_states=torch.ones(2))
    assert output.tolist() == [-11.0, -11.0]
    assert rest == "weights"
    assert inner(torch.ones(2))[0].tolist() == [2.0, 2.0]


def test_a_forward_replaced_by_others_comes_back() -> None:
    linear = nn.Linear(2, 2)
    linear.forward = lambda x: x + 1  # type: ignore[method-assign]
    with forwards_replaced({linear: lambda x: x + 5}):
        assert linear(torch.zeros(2)).tolist() == [5.0, 5.0]
    assert linear(torch.zeros(2)).tolist() == [1.0, 1.0]
