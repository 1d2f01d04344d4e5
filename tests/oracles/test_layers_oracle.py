"""The oracle is checked by hand-written numbers, exact laws, and roads that share no code with it."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.oracles.layers import (
    COLUMNS,
    FAMILIES,
    INTERVENTIONS,
    edited_copy,
    layers_oracle,
    log_probabilities,
    ratio_mean_and_sem,
    swap_layer_types,
    token_measures,
)
from tests.oracles.tiny import EAGER, MASK, MASKED, TINY, VOCABULARY, mask_some, random_documents

POST_NORM = {"bert", "roberta", "opt_350m"}
PARALLEL = {"gpt_neox", "phi", "gptj", "falcon_7b", "falcon_40b"}
DOCUMENTS = random_documents(1, [20, 33, 7, 40])


def sweep(name: str, model: PreTrainedModel, **kwargs: object) -> pd.DataFrame:
    """The oracle on the standard documents, with the objective of `name`."""
    if name not in MASKED:
        return layers_oracle(model, DOCUMENTS, objective="causal", **kwargs)
    corrupted, targets = mask_some(2, DOCUMENTS)
    return layers_oracle(model, corrupted, objective="masked", targets=targets, **kwargs)


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    return FAMILIES[model.config.model_type].blocks(model)


def silence(block: nn.Module, model: PreTrainedModel) -> None:
    """Make a block write nothing to the residual stream."""
    family = FAMILIES[model.config.model_type]
    for name in (family.attention_out, family.mlp_out):
        for parameter in block.get_submodule(name).parameters():
            parameter.data.zero_()


def through_block(model: PreTrainedModel, layer: int) -> Tensor:
    """What block `layer` returned in a plain forward of one document."""
    kept: list[Tensor] = []
    in_tuple = FAMILIES[model.config.model_type].in_tuple
    handle = blocks_of(model)[layer].register_forward_hook(
        lambda _m, _a, output: kept.append(output[0] if in_tuple else output)
    )
    with torch.inference_mode():
        model(input_ids=torch.as_tensor(DOCUMENTS[1])[None], use_cache=False)
    handle.remove()
    return kept[0].double()


# --- statistics ---------------------------------------------------------------------------------------------------


def test_measures_by_hand() -> None:
    clean, other = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]])
    got = token_measures(clean, other, np.array([0, 1]))
    np.testing.assert_allclose(got["loss_nats"], [np.log(4), np.log(10)])
    np.testing.assert_allclose(got["loss_change_nats"], [np.log(2), 0.0])
    np.testing.assert_allclose(got["kl_nats"], [0.5 * np.log(4 / 3), 0.0], atol=1e-16)  # one float64 rounding
    np.testing.assert_allclose(got["entropy_clean_bits"], [1.0, -0.9 * np.log2(0.9) - 0.1 * np.log2(0.1)])
    np.testing.assert_array_equal(got["agreement"], [0.0, 1.0])
    np.testing.assert_array_equal(got["top1"], [0.0, 0.0])
    np.testing.assert_array_equal(got["top1_clean"], [1.0, 0.0])


def test_kl_is_zero_for_the_same_and_positive_otherwise() -> None:
    rng = np.random.default_rng(0)
    p, q = np.log(rng.dirichlet(np.ones(9), size=50)), np.log(rng.dirichlet(np.ones(9), size=50))
    target = rng.integers(9, size=50)
    assert np.all(token_measures(p, p, target)["kl_nats"] == 0.0)
    assert np.all(token_measures(p, q, target)["kl_nats"] > 0.01)
    assert not np.allclose(token_measures(p, q, target)["kl_nats"], token_measures(q, p, target)["kl_nats"], rtol=0.1)


def test_sem_by_hand() -> None:
    mean, sem = ratio_mean_and_sem(np.array([2.0, 3.0]), np.array([1.0, 3.0]))
    assert mean == 1.25  # token-weighted; the mean of the documents' means is 1.5
    assert sem == pytest.approx(np.sqrt(2 * (0.75**2 + 0.75**2)) / 4, rel=1e-15)
    assert np.isnan(ratio_mean_and_sem(np.array([2.0]), np.array([7.0]))[1])


def test_sem_is_the_cluster_robust_error_of_an_intercept() -> None:
    """Least squares on a constant with the cluster sandwich, token by token as a dense matrix."""
    rng = np.random.default_rng(3)
    document = np.repeat(np.arange(5), [4, 1, 7, 2, 6])
    value = rng.normal(size=20) + document
    ones = np.ones((20, 1))
    residual = value - value.mean()
    same = document[:, None] == document[None, :]
    bread = np.linalg.inv(ones.T @ ones)
    variance = 5 / 4 * bread @ ones.T @ (np.outer(residual, residual) * same) @ ones @ bread
    sums, counts = np.bincount(document, value), np.bincount(document).astype(float)
    mean, sem = ratio_mean_and_sem(sums, counts)
    assert mean == pytest.approx(value.mean(), rel=1e-12)
    assert sem == pytest.approx(np.sqrt(variance.item()), rel=1e-12)
    assert sem > 1.5 * value.std(ddof=1) / np.sqrt(20)  # tokens of one document are not independent


def test_sem_of_documents_of_one_token_is_the_textbook_one() -> None:
    value = np.random.default_rng(4).normal(size=12)
    _, sem = ratio_mean_and_sem(value, np.ones(12))
    assert sem == pytest.approx(value.std(ddof=1) / np.sqrt(12), rel=1e-12)


# --- a model that can be worked out by hand -----------------------------------------------------------------------


def successor_model() -> LlamaForCausalLM:
    """Eight tokens, d_model 8; silent blocks; the prediction after token t is t + 1, with logit sqrt(8)."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, num_hidden_layers=2, tie_word_embeddings=False, **sizes))
    for block in blocks_of(model):
        silence(block, model)
    model.model.embed_tokens.weight.data = torch.eye(8)
    model.lm_head.weight.data = torch.roll(torch.eye(8), 1, dims=0)
    return model.eval()


def test_causal_targets_are_the_next_tokens() -> None:
    upwards, stuck = np.array([0, 1, 2, 3]), np.array([5, 5, 5])
    row = layers_oracle(successor_model(), [upwards, stuck], objective="causal", interventions=["drop"]).iloc[0]
    logit = np.sqrt(8) / np.sqrt(1 + 8e-6)  # the norm: one-hot / sqrt(1/8 + 1e-6)
    normaliser = np.log(np.exp(logit) + 7)
    assert (row["n_tokens"], row["n_documents"]) == (5, 2)
    assert row["top1"] == row["top1_clean"] == 3 / 5
    # The forward is float32: relative error about 1e-7 a logit.
    assert row["loss_nats"] == pytest.approx(normaliser - 3 / 5 * logit, rel=1e-6)
    assert row["loss_nats_sem"] == pytest.approx(np.sqrt(2 * 2 * (6 / 5 * logit) ** 2) / 5, rel=1e-6)
    p = np.exp(logit - normaliser)
    entropy = -p * np.log2(p) - (1 - p) * np.log2((1 - p) / 7)
    assert row["entropy_bits"] == pytest.approx(entropy, rel=1e-6)


def test_silent_blocks_make_every_intervention_nothing() -> None:
    table = layers_oracle(successor_model(), [np.array([0, 1, 2, 3])], objective="causal")
    assert len(table) == 2 + 1 + 2 + 2
    assert (table[["kl_nats", "loss_change_nats", "entropy_change_bits"]] == 0.0).all(axis=None)
    assert (table["agreement"] == 1.0).all()
    assert table.filter(like="_sem").isna().all(axis=None)  # one document


def test_unembedding_of_zeros_is_uniform() -> None:
    model = TINY["llama"](0)
    model.lm_head.weight.data.zero_()
    table = sweep("llama", model)
    np.testing.assert_allclose(table["entropy_bits"], np.log2(VOCABULARY), rtol=1e-12)
    np.testing.assert_allclose(table["loss_nats"], np.log(VOCABULARY), rtol=1e-12)
    assert (table["kl_nats"] == 0.0).all()
    assert (sweep("llama", TINY["llama"](0))["entropy_bits"] < np.log2(VOCABULARY) - 0.5).all()


def test_masked_positions_are_those_with_a_target() -> None:
    model = TINY["bert"](0)
    ids = DOCUMENTS[0].copy()
    ids[[3, 8]] = MASK
    targets = np.full(len(ids), -100)
    targets[[3, 8]] = [11, 12]
    row = layers_oracle(model, [ids], objective="masked", targets=[targets], interventions=["drop"]).iloc[0]
    log_p = log_probabilities(model, ids)
    assert row["n_tokens"] == 2
    assert row["loss_clean_nats"] == pytest.approx(-(log_p[3, 11] + log_p[8, 12]) / 2, rel=1e-12)


# --- interventions, by other roads --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_drop_is_the_model_without_that_block(name: str) -> None:
    model = TINY[name](5)
    shorter = copy.deepcopy(model)
    del blocks_of(shorter)[2]
    shorter.config.num_hidden_layers -= 1
    if getattr(shorter.config, "layer_types", None) is not None:
        shorter.config.layer_types = [*shorter.config.layer_types[:2], *shorter.config.layer_types[3:]]
    expected = log_probabilities(shorter, DOCUMENTS[1])
    np.testing.assert_array_equal(log_probabilities(edited_copy(model, "drop", 2), DOCUMENTS[1]), expected)
    assert np.abs(log_probabilities(edited_copy(model, "drop", 1), DOCUMENTS[1]) - expected).max() > 0.1


@pytest.mark.parametrize("name", TINY)
def test_swap_is_its_own_inverse_and_moves_the_weights(name: str) -> None:
    model = TINY[name](5)
    swapped = edited_copy(model, "swap", 1)
    clean = log_probabilities(model, DOCUMENTS[1])
    by_weights = copy.deepcopy(model)
    first, second = (copy.deepcopy(blocks_of(model)[i].state_dict()) for i in (1, 2))
    blocks_of(by_weights)[1].load_state_dict(second)
    blocks_of(by_weights)[2].load_state_dict(first)
    swap_layer_types(by_weights, 1)
    once = log_probabilities(swapped, DOCUMENTS[1])
    np.testing.assert_array_equal(once, log_probabilities(by_weights, DOCUMENTS[1]))
    np.testing.assert_array_equal(log_probabilities(edited_copy(swapped, "swap", 1), DOCUMENTS[1]), clean)
    assert np.abs(once - clean).max() > 0.1


@pytest.mark.parametrize("name", TINY)
def test_swap_of_equal_blocks_is_nothing(name: str) -> None:
    model = TINY[name](5)
    blocks_of(model)[1].load_state_dict(blocks_of(model)[0].state_dict())
    table = sweep(name, model, interventions=["swap"])
    assert table["kl_nats"][0] == 0.0
    assert (table["kl_nats"][1:] > 0.01).all()


@pytest.mark.parametrize("name", TINY)
def test_dropping_a_silent_block_is_nothing_unless_its_norms_still_run(name: str) -> None:
    model = TINY[name](5)
    silence(blocks_of(model)[1], model)
    kl = sweep(name, model, layers=[1]).set_index("intervention")["kl_nats"]
    assert kl["drop_attn"] == kl["drop_mlp"] == 0.0
    for kind in ("drop", "swap"):  # an identity may also change places with its neighbour
        assert (kl[kind] > 0.01) if name in POST_NORM else (kl[kind] == 0.0)


@pytest.mark.parametrize("name", [name for name in TINY if name not in POST_NORM])
def test_pre_norm_components_are_summands(name: str) -> None:
    """block = x + a + m: without attention x + m', and only where they run in parallel m' = m."""
    model = TINY[name](5)
    before, after = through_block(model, 0), through_block(model, 1)
    no_attn, no_mlp = (through_block(edited_copy(model, kind, 1), 1) for kind in ("drop_attn", "drop_mlp"))
    gap = (no_attn + no_mlp - before - after).abs().max().item()
    if name in PARALLEL:
        assert gap < 1e-5  # float32 sums of values of order 10
    else:
        assert gap > 0.1
    assert (no_attn - before).abs().max() > 0.1
    assert (no_mlp - before).abs().max() > 0.1


def _mlp_of_bert(block: nn.Module, x: Tensor) -> Tensor:
    return block.output.dense(block.intermediate(x))


def _mlp_of_opt(block: nn.Module, x: Tensor) -> Tensor:
    return block.fc2(block.activation_fn(block.fc1(x)))


@pytest.mark.parametrize("name", sorted(POST_NORM))
def test_post_norms_still_run(name: str) -> None:
    """Without attention: n2(n1(x) + mlp(n1(x))). Without MLP the block ends in n2, which is no identity."""
    model = TINY[name](5)
    block = blocks_of(model)[1]
    is_opt = name == "opt_350m"
    norms = (block.self_attn_layer_norm, block.final_layer_norm) if is_opt else (block.attention.output.LayerNorm,)
    norms = norms if is_opt else (*norms, block.output.LayerNorm)
    mlp = _mlp_of_opt if is_opt else _mlp_of_bert
    with torch.inference_mode():
        x = through_block(model, 0).float()
        middle = norms[0](x)
        expected = norms[1](middle + mlp(block, middle))
    got = through_block(edited_copy(model, "drop_attn", 1), 1)
    assert (got - expected).abs().max() < 1e-5  # float32, values of order 1
    no_mlp = through_block(edited_copy(model, "drop_mlp", 1), 1)
    again = norms[1](no_mlp.float()).double()
    assert (again - no_mlp).abs().max() > 0.1  # a norm has weights: running it twice shows
    assert (no_mlp - through_block(model, 1)).abs().max() > 0.1


def test_post_norm_drop_mlp_is_the_norm_of_the_attention_half() -> None:
    model = TINY["bert"](5)
    block = blocks_of(model)[0]
    halves: list[Tensor] = []
    handle = block.attention.register_forward_hook(lambda _m, _a, output: halves.append(output[0]))
    with torch.inference_mode():
        model(input_ids=torch.as_tensor(DOCUMENTS[1])[None])
        handle.remove()
        expected = block.output.LayerNorm(halves[0])
    torch.testing.assert_close(
        through_block(edited_copy(model, "drop_mlp", 0), 0), expected.double(), rtol=0.0, atol=0.0
    )


# --- the table ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_every_intervention_moves_the_tiny_models(name: str) -> None:
    model = TINY[name](0)
    before = copy.deepcopy(model.state_dict())
    table = sweep(name, model)
    assert list(table.columns) == list(COLUMNS)
    assert table.groupby("intervention").size().to_dict() == {"drop": 4, "swap": 3, "drop_attn": 4, "drop_mlp": 4}
    assert list(table["intervention"].unique()) == list(INTERVENTIONS)
    assert not table.isna().any(axis=None)
    assert (table["kl_nats"] > 0.02).all()
    assert (np.diff(np.sort(table["loss_nats"])) > 0).all()
    assert table["loss_nats"].max() - table["loss_nats"].min() > 0.3
    np.testing.assert_allclose(table["loss_change_nats"], table["loss_nats"] - table["loss_clean_nats"], atol=1e-12)
    assert table["loss_clean_nats"].nunique() == 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_depth_order_and_selection() -> None:
    model = TINY["gpt2"](0)
    table = sweep("gpt2", model, interventions=["swap", "drop"], layers=[3, 0])
    assert list(zip(table["intervention"], table["layer"], table["relative_depth"], strict=True)) == [
        ("swap", 0, 0.0),
        ("drop", 3, 1.0),
        ("drop", 0, 0.0),
    ]


def test_documents_without_a_target_do_not_count() -> None:
    model = TINY["gpt2"](0)
    with_lonely = layers_oracle(model, [*DOCUMENTS, np.array([9])], objective="causal", interventions=["drop"])
    pd.testing.assert_frame_equal(with_lonely, sweep("gpt2", model, interventions=["drop"]))
    with pytest.raises(ValueError, match="no position"):
        layers_oracle(model, [np.array([9])], objective="causal")


def test_nonsense_is_refused() -> None:
    model = TINY["gpt2"](0)
    with pytest.raises(ValueError, match="targets"):
        layers_oracle(model, DOCUMENTS, objective="masked")
    with pytest.raises(ValueError, match=r"layers 0\.\.3"):
        layers_oracle(model, DOCUMENTS, objective="causal", layers=[4])
    with pytest.raises(ValueError, match="not one of"):
        layers_oracle(model, DOCUMENTS, objective="causal", interventions=["dorp"])


# --- the tiny models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_are_seeded_and_have_no_parameter_at_zero_or_one(name: str) -> None:
    model, again, other = TINY[name](3), TINY[name](3), TINY[name](4)
    for (key, value), same, different in zip(
        model.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(value, same), key
        assert not torch.equal(value, different), key
        assert not ((value == 0) | (value == 1)).any(), key
        assert value.std() > 0.1, key
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config._attn_implementation == ("eager" if name in EAGER else "sdpa")


def test_mistral_window_and_llama_heads_matter() -> None:
    mistral = TINY["mistral"](0)
    wide = copy.deepcopy(mistral)
    wide.config.sliding_window = None
    narrow_p, wide_p = (log_probabilities(m, DOCUMENTS[1]) for m in (mistral, wide))
    np.testing.assert_allclose(narrow_p[:8], wide_p[:8], atol=1e-5)  # mask or is_causal: different float32 kernels
    assert np.abs(narrow_p[8:] - wide_p[8:]).max() > 0.05
    attention = TINY["llama"](0).model.layers[0].self_attn
    assert attention.o_proj.weight.shape == (32, 64)
    assert attention.k_proj.weight.shape == (32, 32)


def test_longest_document_fits_every_tiny_model() -> None:
    longest = random_documents(0, [64])
    for build in TINY.values():
        assert log_probabilities(build(0), longest[0]).shape == (64, VOCABULARY)
