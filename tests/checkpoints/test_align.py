"""Names that differ between two checkpoints: what is compared with what, and why some is not."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lesion.checkpoints.align import Alignment, align, common_prefix, without
from lesion.checkpoints.opened import open_checkpoint
from lesion.errors import InputError
from tests.checkpoints.pairs import as_bits, random_tensors, tuned_from, write

HEADS, WIDTH = 4, 6
"""Heads, and the width of each."""
CONFIGS: dict[str, dict[str, object]] = {
    "gpt_neox": {"model_type": "gpt_neox", "num_attention_heads": HEADS, "hidden_size": HEADS * WIDTH},
    "bloom": {"model_type": "bloom", "n_head": HEADS, "hidden_size": HEADS * WIDTH},
    "falcon": {
        "model_type": "falcon", "num_attention_heads": HEADS, "hidden_size": HEADS * WIDTH, "multi_query": False,
        "new_decoder_architecture": False,
    },
    "falcon, grouped": {
        "model_type": "falcon", "num_attention_heads": HEADS, "num_kv_heads": 2, "hidden_size": HEADS * WIDTH,
        "new_decoder_architecture": True,
    },
    "falcon, one head of keys": {
        "model_type": "falcon", "num_attention_heads": HEADS, "hidden_size": HEADS * WIDTH, "multi_query": True,
        "new_decoder_architecture": False,
    },
}  # fmt: skip
KV_HEADS = {"falcon, grouped": 2, "falcon, one head of keys": 1}


def aligned(first: str, second: str) -> Alignment:
    return align(open_checkpoint(first), open_checkpoint(second))


def reasons(found: Alignment) -> dict[str, str]:
    return {left.tensor: left.reason for left in found.uncompared}


def base_bits(found: Alignment) -> dict[str, list[int]]:
    """What stands against each tensor of TUNED, in pieces of seven weights."""
    bits = {}
    for pair in found.pairs:
        n_weights = int(np.prod(pair.shape))
        pieces = [pair.base.read(at, min(at + 7, n_weights)) for at in range(0, n_weights, 7)]
        bits[pair.name] = np.concatenate(pieces).tolist()
    return bits


def bits_of(tensor: Tensor) -> list[int]:
    unsigned: list[int] = as_bits(tensor).numpy().view(np.uint16).ravel().tolist()
    return unsigned


def fill(n_layers: int = 2) -> dict[str, Tensor]:
    """Tensors that both sides have, so that they count as one architecture."""
    return {f"gpt_neox.layers.{layer}.mlp.dense_{way}.weight": torch.randn(6, 6).bfloat16()
            for layer in range(n_layers) for way in ("h_to_4h", "4h_to_h")}  # fmt: skip


# ---------------------------------------------------------------- old names of norms


def old_bert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in tensors.items():
        ending = next((leaf for leaf in leaves if name.endswith(leaf)), "")
        renamed[name.removesuffix(ending) + leaves.get(ending, "")] = tensor
    return renamed


def bert(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    front = "bert.encoder.layer.0.output"
    shapes = {f"{front}.dense.weight": (4, 6), f"{front}.dense.bias": (4,), f"{front}.LayerNorm.weight": (4,),
              f"{front}.LayerNorm.bias": (4,), "bert.embeddings.LayerNorm.weight": (4,)}  # fmt: skip
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)], ids=str)
def test_gamma_and_beta_are_weight_and_bias_of_norms(sides: tuple[bool, bool], tmp_path: Path) -> None:
    base, tuned = bert(0), bert(1)
    first = write(tmp_path / "base", old_bert(base) if sides[0] else base, config={"model_type": "bert"})
    second = write(tmp_path / "tuned", old_bert(tuned) if sides[1] else tuned, config={"model_type": "bert"})
    found = aligned(first, second)
    assert found.uncompared == ()
    expected = {new: bits_of(base[old]) for new, old in zip(old_bert(base) if sides[1] else base, base, strict=True)}
    assert base_bits(found) == expected
    names = {pair.name: pair.base_names for pair in found.pairs}
    there = "gamma" if sides[0] else "weight"
    assert names[f"bert.embeddings.LayerNorm.{'gamma' if sides[1] else 'weight'}"] == (
        f"bert.embeddings.LayerNorm.{there}",
    )


def test_gamma_outside_norms_and_gamma_beside_weight_keep_their_names(tmp_path: Path) -> None:
    base = bert(0) | {"bert.encoder.layer.0.scale.gamma": torch.ones(3).bfloat16()}
    tuned = bert(1) | {
        "bert.encoder.layer.0.scale.weight": torch.ones(3).bfloat16(),
        "bert.embeddings.LayerNorm.gamma": torch.ones(4).bfloat16(),
    }
    found = aligned(write(tmp_path / "base", base, config={}), write(tmp_path / "tuned", tuned, config={}))
    assert reasons(found) == {
        "bert.encoder.layer.0.scale.gamma": "only in base",
        "bert.encoder.layer.0.scale.weight": "only in tuned",
        "bert.embeddings.LayerNorm.gamma": "only in tuned",
    }


# ---------------------------------------------------------------- fused projections


def neox(kind: str, seed: int, names: tuple[str, str, str], bias: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One layer, with q, k and v in one matrix as the family lays them out, and apart."""
    generator = torch.Generator().manual_seed(seed)
    n_kv = KV_HEADS.get(kind, HEADS)
    shared, front = HEADS // n_kv, "gpt_neox.layers.0.attention"
    rest, whole, apart = fill(), {}, {}
    for leaf, columns in [("weight", (3,)), *([("bias", ())] if bias else [])]:
        blocks = torch.randn((n_kv, shared + 2, WIDTH, *columns), generator=generator).bfloat16()
        whole[f"{front}.query_key_value.{leaf}"] = blocks.flatten(0, 2).contiguous()
        parts = (blocks[:, :shared], blocks[:, shared], blocks[:, shared + 1])
        for name, part in zip(names, parts, strict=True):
            apart[f"{front}.{name}.{leaf}"] = part.reshape(-1, *columns).contiguous()
    return rest | whole, rest | apart


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("fused", ["base", "tuned"])
@pytest.mark.parametrize("names", [("q_proj", "k_proj", "v_proj"), ("query", "key", "value")], ids=lambda n: n[0])
def test_queries_keys_and_values_mixed_head_by_head(
    kind: str, fused: str, names: tuple[str, str, str], tmp_path: Path
) -> None:
    whole, apart = neox(kind, 0, names, bias=True)
    config = CONFIGS[kind]
    base, tuned = (whole, apart) if fused == "base" else (apart, whole)
    found = aligned(
        write(tmp_path / "base", base, config=config),
        write(tmp_path / "tuned", {name: tensor + 1 for name, tensor in tuned.items()}, config=config),
    )
    assert found.uncompared == ()
    # the two dictionaries hold the same weights: against each tensor of TUNED stands that of its own layout
    assert base_bits(found) == {name: bits_of(tensor) for name, tensor in tuned.items()}
    [q] = [pair for pair in found.pairs if pair.name.endswith((f"{names[0]}.weight", "query_key_value.weight"))]
    assert len(q.base_names) == (1 if fused == "base" else 3)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "chatglm"}, "cannot be read by transformers"),
        ({}, "in an order that is not known"),
        ({"model_type": "persimmon", "num_attention_heads": HEADS}, "persimmon: its q, k and v lie in one matrix"),
        ({"model_type": "gpt_neox", "num_attention_heads": 5, "hidden_size": 20}, "5 heads do not fit"),
        ({"model_type": "falcon", "num_attention_heads": HEADS, "multi_query": True, "hidden_size": 24}, "size"),
    ],
)
@pytest.mark.parametrize("fused", ["base", "tuned"])
def test_an_order_that_is_not_known_is_listed_with_the_reason(
    config: dict[str, object], says: str, fused: str, tmp_path: Path
) -> None:
    whole, apart = neox("gpt_neox", 0, ("q_proj", "k_proj", "v_proj"), bias=False)
    base, tuned = (whole, apart) if fused == "base" else (apart, whole)
    found = aligned(
        write(tmp_path / "base", base, config=config),
        write(tmp_path / "tuned", {name: tensor + 1 for name, tensor in tuned.items()}, config=config),
    )
    left = reasons(found)
    assert set(left) == (set(base) ^ set(tuned))
    assert all(says in reason for reason in left.values()), left
    assert {pair.name for pair in found.pairs} == set(base) & set(tuned)


def test_gpt2_has_its_matrices_turned_and_only_biases_are_certain(tmp_path: Path) -> None:
    """A square matrix (in, out) could not be told from its transpose; a bias has but one order."""
    generator = torch.Generator().manual_seed(0)
    rest = {f"h.{layer}.mlp.c_fc.weight": torch.randn(6, 6).bfloat16() for layer in range(2)}
    bias = torch.randn(18, generator=generator).bfloat16()
    whole = rest | {"h.0.attn.c_attn.weight": torch.randn(6, 18).bfloat16(), "h.0.attn.c_attn.bias": bias}
    apart = dict(rest)
    for index, part in enumerate("qkv"):
        apart |= {f"h.0.attn.{part}_proj.weight": torch.randn(6, 6).bfloat16()}
        apart |= {f"h.0.attn.{part}_proj.bias": bias[6 * index : 6 * index + 6].clone()}
    config = {"model_type": "gpt2", "n_head": 2, "n_embd": 6}
    found = aligned(
        write(tmp_path / "base", whole, config=config),
        write(tmp_path / "tuned", {n: t + 1 for n, t in apart.items()}, config=config),
    )
    assert {pair.name for pair in found.pairs} == {name for name in apart if "attn" not in name or "bias" in name}
    stands = base_bits(found)
    assert [stands[f"h.0.attn.{part}_proj.bias"] for part in "qkv"] == [bits_of(piece) for piece in bias.chunk(3)]
    assert set(reasons(found)) == {
        "h.0.attn.c_attn.weight", *(f"h.0.attn.{part}_proj.weight" for part in "qkv")
    }  # fmt: skip
    assert all("stored (in, out)" in reason for reason in reasons(found).values())


@pytest.mark.parametrize("model_type", ["phi3", "codegen"])
def test_the_same_name_is_another_order_in_another_family(model_type: str, tmp_path: Path) -> None:
    front = "model.layers.0.self_attn"
    rest = random_tensors(0)
    parts = [rest.pop(f"{front}.{part}_proj.weight") for part in "qkv"]
    whole = rest | {f"{front}.qkv_proj.weight": torch.cat(parts)}
    apart = rest | {f"{front}.{part}_proj.weight": tensor for part, tensor in zip("qkv", parts, strict=True)}
    config = {"model_type": model_type, "n_head": 3}
    found = aligned(
        write(tmp_path / "base", whole, config=config),
        write(tmp_path / "tuned", tuned_from(apart, 1), config=config),
    )
    matched = {pair.name for pair in found.pairs}
    assert (f"{front}.q_proj.weight" in matched) == (model_type == "phi3")
    assert ("in an order that is not known" in str(reasons(found))) == (model_type == "codegen")


def test_parts_of_two_types_are_listed(tmp_path: Path) -> None:
    base = random_tensors(0)
    tuned = tuned_from(base, 1)
    front = "model.layers.0.mlp"
    halves = [tuned.pop(f"{front}.{part}_proj.weight") for part in ("gate", "up")]
    tuned[f"{front}.gate_up_proj.weight"] = torch.cat(halves)
    base[f"{front}.up_proj.weight"] = base[f"{front}.up_proj.weight"].float()
    found = aligned(write(tmp_path / "base", base), write(tmp_path / "tuned", tuned))
    assert reasons(found) == {
        f"{front}.gate_up_proj.weight": "only in tuned: gate_proj and up_proj are stored in different types",
        f"{front}.gate_proj.weight": "only in base: gate_proj and up_proj are stored in different types",
        f"{front}.up_proj.weight": "only in base: gate_proj and up_proj are stored in different types",
    }


# ---------------------------------------------------------------- prefixes


def llama(front: str, head: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Names of a LLaMA with something else in front of its blocks and its head."""

    def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            head + name if name.startswith("lm_head") else front + name.removeprefix("model."): tensor
            for name, tensor in tensors.items()
        }

    return renamed


@pytest.mark.parametrize(
    ("first", "second", "part", "side"),
    [
        (("model.", ""), ("", ""), "model.", "base"),
        (("model.", ""), ("base_model.model.model.", "base_model.model."), "base_model.model.", "tuned"),
        (("transformer.", ""), ("", ""), "transformer.", "base"),
        (("model.", ""), ("language_model.model.", "language_model."), "language_model.", "tuned"),
        (("model.language_model.", ""), ("model.", ""), "language_model.", "base"),
        (("model.language_model.", ""), ("language_model.model.", "language_model."), "language_model.", "tuned"),
        (("model.", ""), ("model.", ""), "", ""),
    ],
)
def test_what_one_side_has_in_its_names(
    first: tuple[str, str], second: tuple[str, str], part: str, side: str, tmp_path: Path
) -> None:
    base = random_tensors(0)
    tuned = tuned_from(base, 1)
    named = llama(*first)(base), llama(*second)(tuned)
    found = aligned(write(tmp_path / "base", named[0]), write(tmp_path / "tuned", named[1]))
    assert (found.prefix, found.prefixed, found.uncompared) == (part, side, ())
    assert base_bits(found) == {new: bits_of(base[old]) for new, old in zip(llama(*second)(tuned), tuned, strict=True)}


def test_a_part_that_only_makes_names_agree_by_chance_is_left(tmp_path: Path) -> None:
    """Layers of one side are not taken for those of the other where all names agree as they are."""
    base = random_tensors(0)
    tuned = tuned_from(base, 1)
    tuned["layers.0.mlp.gate_proj.weight"] = tuned["model.layers.0.mlp.gate_proj.weight"] + 1
    found = aligned(write(tmp_path / "base", base), write(tmp_path / "tuned", tuned))
    assert (found.prefix, reasons(found)) == ("", {"layers.0.mlp.gate_proj.weight": "only in tuned"})


def test_the_language_model_inside_one_that_also_sees(tmp_path: Path) -> None:
    base = random_tensors(0)
    tuned = llama("model.language_model.", "")(tuned_from(base, 1))
    tuned |= {"model.vision_tower.encoder.layers.0.mlp.fc1.weight": torch.ones(2, 2).bfloat16()}
    seeing = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}
    first = write(tmp_path / "base", base, config={"model_type": "gemma3_text"})
    found = aligned(first, write(tmp_path / "tuned", tuned, config=seeing))
    assert len(found.pairs) == len(base)
    assert list(reasons(found)) == ["model.vision_tower.encoder.layers.0.mlp.fc1.weight"]
    with pytest.raises(InputError, match=r"'gemma3_text' and .* 'llava'"):
        aligned(first, write(tmp_path / "other", tuned, config=seeing | {"model_type": "llava", "text_config": {}}))


def test_without() -> None:
    assert without("model.language_model.layers.0.w", "language_model.") == "model.layers.0.w"
    assert without("language_model.model.layers.0.w", "language_model.") == "model.layers.0.w"
    assert without("a.b.c.language_model.w", "language_model.") == "a.b.c.language_model.w"
    assert without("model.my_language_model.w", "language_model.") == "model.my_language_model.w"
    assert without("w", "") == "w"


def test_a_hundred_thousand_names_that_do_not_agree_take_seconds() -> None:
    first = [f"a{number}.b{number}.c{number}.weight" for number in range(100_000)]
    second = [f"b{number}.c{number}.weight" for number in range(100_000)]
    started = time.process_time()
    assert common_prefix(first, second) in {f"a{number}." for number in range(100)}
    assert time.process_time() - started < 20  # about three on one core; one try a prefix would take hours


# ---------------------------------------------------------------- one side only


def test_heads_of_tasks_and_turned_matrices_are_listed(tmp_path: Path) -> None:
    base = random_tensors(0)
    tuned = tuned_from(base, 1)
    base["cls.predictions.transform.dense.weight"] = torch.ones(4, 4).bfloat16()
    tuned |= {"classifier.weight": torch.ones(2, 9).bfloat16(), "classifier.bias": torch.ones(2).bfloat16()}
    down = "model.layers.0.mlp.down_proj.weight"
    tuned[down] = tuned[down].T.contiguous()
    found = aligned(write(tmp_path / "base", base), write(tmp_path / "tuned", tuned))
    assert reasons(found) == {
        "cls.predictions.transform.dense.weight": "only in base",
        "classifier.weight": "only in tuned",
        "classifier.bias": "only in tuned",
        down: "other shape; perhaps stored transposed",
    }
    [left] = [entry for entry in found.uncompared if entry.tensor == down]
    assert (left.shape_base, left.shape_tuned) == ((9, 21), (21, 9))


def test_a_configuration_that_names_no_model_is_no_reason_to_refuse(tmp_path: Path) -> None:
    base = random_tensors(0)
    first, second = write(tmp_path / "base", base), write(tmp_path / "tuned", tuned_from(base, 1))
    (tmp_path / "base" / "config.json").unlink()
    assert len(aligned(first, second).pairs) == len(base)
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    with pytest.raises(InputError, match=r"'mistral' and .* 'llama'"):
        aligned(first, second)
