"""Recorded attention is the model's own: eager transformers in float64, for every causal family; and no bit moves."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lesion
from lesion.anatomy import dissect
from lesion.errors import ModelError
from lesion.interventions import attention
from lesion.interventions.attention import recording, refuse_unrecordable
from tests.support import TINY, tiny_model

CAUSAL = [name for name, (family, _) in TINY.items() if family.objective == "causal"]
SINGLE = {"mixtral", "qwen3_moe"}
"""Their experts' kernel knows no float64."""
ROWS = torch.tensor([19, 5, 11])


def ids() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(5, 97, (3, 20)))


def recorded(model: nn.Module, rows: Tensor | None = None) -> tuple[dict[int, Tensor], Tensor]:
    """Probabilities of every layer, and the logits beside them."""
    found: dict[int, list[Tensor]] = {}

    def take(layer: int, start: int, probabilities: Tensor) -> None:
        assert start == sum(len(part) for part in found.get(layer, []))
        found.setdefault(layer, []).append(probabilities)

    anatomy = dissect(model)
    with torch.inference_mode(), recording(anatomy, range(anatomy.n_layers), take, rows):
        logits = model(input_ids=ids(), use_cache=False).logits
    return {layer: torch.cat(parts) for layer, parts in found.items()}, logits


def eager(name: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """transformers' own `output_attentions`, by eager attention."""
    model = tiny_model(name).to(dtype)
    model.config._attn_implementation = "eager"  # type: ignore[union-attr]
    with torch.inference_mode():
        found: tuple[Tensor, ...] = model(input_ids=ids(), use_cache=False, output_attentions=True).attentions
    return found


@pytest.mark.parametrize("name", CAUSAL)
def test_recorded_is_eager_and_no_bit_moves(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = torch.float32 if name in SINGLE else torch.float64
    model = tiny_model(name).to(dtype)
    with torch.inference_mode():
        clean = model(input_ids=ids(), use_cache=False).logits
    everything, logits = recorded(model)
    monkeypatch.setattr(attention, "PIECE", 1)  # a sequence at a time
    rows, again = recorded(model, ROWS)
    assert torch.equal(logits, clean)
    assert torch.equal(again, clean)
    for layer, found in everything.items():
        assert found.shape == (3, dissect(model).n_heads, 20, 20)
        torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]), rtol=0, atol=1e-5)
        assert (found.triu(1) == 0).all()
        torch.testing.assert_close(rows[layer][:, :, 0], found[torch.arange(3), :, ROWS], rtol=0, atol=1e-6)
    assert sorted(everything) == [0, 1, 2]
    if name == "falcon-rw":
        return  # transformers' eager attention adds its ALiBi twice: the next test works it out by hand
    for layer, expected in enumerate(eager(name, dtype)):
        # Gemma and others take softmax in float32, of scores up to 60: some units of 4e-6 in the last place
        torch.testing.assert_close(everything[layer], expected.to(everything[layer].dtype), rtol=0, atol=1e-5)


def test_falcon_with_alibi_by_hand() -> None:
    model = tiny_model("falcon-rw").double()
    found, _ = recorded(model)
    seen: list[Tensor] = []
    handle = model.get_submodule("transformer.h.0.self_attention.query_key_value").register_forward_hook(
        lambda module, given, output: seen.append(output)
    )
    with torch.inference_mode():
        model(input_ids=ids(), use_cache=False)
    handle.remove()
    query, key, _ = seen[0].view(3, 20, 4, 3, 8).permute(3, 0, 2, 1, 4)
    slopes = torch.tensor([2.0 ** (-8 * (head + 1) / 4) for head in range(4)], dtype=torch.float64)
    slopes = slopes.to(torch.bfloat16).double()  # as transformers makes them
    scores = query @ key.transpose(2, 3) / math.sqrt(8)
    scores = scores + (slopes.view(4, 1) * torch.arange(20)).unsqueeze(1) / math.sqrt(8)
    unseen = torch.ones(20, 20, dtype=torch.bool).triu(1)
    expected = scores.masked_fill(unseen, -math.inf).softmax(-1)
    without = (query @ key.transpose(2, 3) / math.sqrt(8)).masked_fill(unseen, -math.inf).softmax(-1)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-3)  # ALiBi is rounded to bfloat16 on its way
    assert (found[0] - without).abs().max() > 0.05


def test_padding_changes_no_row_that_is_asked_for() -> None:
    model = tiny_model("llama").double()
    alone, _ = recorded(model, ROWS)
    padded: dict[int, Tensor] = {}
    anatomy = dissect(model)
    mask = torch.ones(3, 24, dtype=torch.long)
    mask[:, 20:] = 0
    longer = torch.cat([ids(), torch.ones(3, 4, dtype=torch.long)], dim=1)
    with torch.inference_mode(), recording(anatomy, [0, 1, 2], lambda at, _, p: padded.update({at: p}), ROWS):
        model(input_ids=longer, attention_mask=mask, use_cache=False)
    for layer, found in alone.items():
        torch.testing.assert_close(padded[layer][..., :20], found, rtol=0, atol=1e-7)
        assert (padded[layer][..., 20:] == 0).all()


def test_only_the_layers_that_are_asked_for() -> None:
    model, found = tiny_model("llama"), set()
    with torch.inference_mode(), recording(dissect(model), [1], lambda layer, _, p: found.add(layer)):
        model(input_ids=ids(), use_cache=False)
        tiny_model("llama", seed=1)(input_ids=ids(), use_cache=False)  # another model passes the same table unseen
    assert found == {1}


def test_two_recordings_at_once_and_nothing_left_behind() -> None:
    model, whole, rows = tiny_model("llama"), {}, {}
    before = dict(ALL_ATTENTION_FUNCTIONS)
    anatomy = dissect(model)
    with torch.inference_mode():
        with (
            recording(anatomy, [0, 1], lambda layer, _, p: whole.update({layer: p})),
            recording(anatomy, [1, 2], lambda layer, _, p: rows.update({layer: p}), ROWS),
        ):
            model(input_ids=ids(), use_cache=False)
        assert (set(whole), set(rows)) == ({0, 1}, {1, 2})
        torch.testing.assert_close(rows[1][:, :, 0], whole[1][torch.arange(3), :, ROWS], rtol=0, atol=1e-6)
        with pytest.raises(ZeroDivisionError), recording(anatomy, [0], lambda layer, _, p: 1 / 0):  # type: ignore[arg-type,return-value]
            model(input_ids=ids(), use_cache=False)
    assert dict(ALL_ATTENTION_FUNCTIONS) == before
    assert model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


def test_an_entry_of_the_users_own_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def mine(*arguments: object, **keywords: object) -> object:
        return own(*arguments, **keywords)

    model = tiny_model("llama")
    ALL_ATTENTION_FUNCTIONS["sdpa"] = mine
    try:
        recorded(model)
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is mine
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own


def test_attention_that_never_runs_is_an_error() -> None:
    model = tiny_model("llama")
    anatomy = dissect(model)
    with (
        pytest.raises(ModelError, match="no attention passed in block 1"),
        torch.inference_mode(),
        lesion.drop(1).on(model),
        recording(anatomy, [0, 1], lambda layer, _, p: None),
    ):
        model(input_ids=ids(), use_cache=False)


def test_implementations_that_give_nothing_away_are_refused() -> None:
    model = tiny_model("llama")
    refuse_unrecordable(dissect(model))
    model.config._attn_implementation = "flash_attention_2"  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="computed by 'flash_attention_2', whose probabilities cannot be read"):
        refuse_unrecordable(dissect(model))
    gpt2 = tiny_model("gpt2", reorder_and_upcast_attn=True)
    assert isinstance(gpt2, GPT2LMHeadModel)
    refuse_unrecordable(dissect(gpt2))
    gpt2.config._attn_implementation = "eager"
    with pytest.raises(ModelError, match="reorder_and_upcast_attn"):
        refuse_unrecordable(dissect(gpt2))
    capped = tiny_model("gemma2")
    capped.config._attn_implementation = "sdpa"  # type: ignore[union-attr]
    with pytest.raises((ModelError, ValueError), match="softcap"), recording(dissect(capped), [0], lambda *_: None):
        capped(input_ids=ids(), use_cache=False)
