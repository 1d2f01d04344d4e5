"""Adapters merged file by file, bit for bit what peft makes of the whole model."""

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lesion.checkpoints import adapters
from lesion.checkpoints.adapters import Merged, merged, open_merged, open_tuned
from lesion.checkpoints.align import align
from lesion.checkpoints.compare import Options, compare
from lesion.checkpoints.masks import Masks
from lesion.checkpoints.opened import open_checkpoint
from lesion.errors import LesionError, ModelError
from tests.checkpoints.pairs import as_bits
from tests.support import tiny_model

peft = pytest.importorskip("peft")

UNTIED = {"tie_word_embeddings": False}


def base_folder(path: Path, name: str = "llama", dtype: torch.dtype = torch.bfloat16, **sizes: object) -> Path:
    tiny_model(name, **sizes).to(dtype).save_pretrained(path)
    return path


def adapter_folder(
    path: Path, base: Path, kind: Any = AutoModelForCausalLM, *, dtype: torch.dtype | None = None, **asked: Any
) -> Path:
    """An adapter whose every part has been trained (at random), saved by peft."""
    torch.manual_seed(7)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 12, "task_type": None, **asked})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(kind.from_pretrained(base, dtype="auto"), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(path)
    if dtype is not None:
        file = path / "adapter_model.safetensors"
        save_file({key: tensor.to(dtype) for key, tensor in load_file(file).items()}, file)
    return path


def by_peft(base: Path, adapter: Path, kind: Any = AutoModelForCausalLM) -> dict[str, Tensor]:
    """The oracle: what a user gets who merges the whole model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(kind.from_pretrained(base, dtype="auto"), adapter)
        whole: nn.Module = model.merge_and_unload()
    return whole.state_dict()


def opened(base: Path, adapter: Path) -> Merged:
    return open_merged(adapter, open_checkpoint(str(base)))


def read(found: Merged, name: str, piece: int = 100) -> Tensor:
    """A tensor, in pieces that lie across blocks and rows."""
    stored = found.tensors[name]
    n_weights = int(np.prod(stored.shape))
    pieces = [stored.read(at, min(at + piece, n_weights)) for at in range(0, n_weights, piece)]
    flat = np.concatenate(pieces).view(f"i{stored.dtype.itemsize}")
    return torch.from_numpy(flat).view(stored.dtype).reshape(stored.shape)


def same_bits(found: Merged, expected: dict[str, Tensor], front: str = "") -> bool:
    for name in found.tensors:
        wanted = expected[front + name]
        assert found.tensors[name].dtype == wanted.dtype, name
        assert torch.equal(as_bits(read(found, name)), as_bits(wanted)), name
    return True


def own(found: Merged, base: Path) -> set[str]:
    """Tensors that have the base's bits."""
    stored = load_file(base / "model.safetensors")
    return {name for name in stored if torch.equal(as_bits(read(found, name)), as_bits(stored[name]))}


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "plain": ({"target_modules": ALL}, lambda name: "_proj" in name),
    "two modules": ({"target_modules": ["q_proj", "v_proj"]}, lambda name: "q_proj" in name or "v_proj" in name),
    "one layer": (
        {"target_modules": ["up_proj"], "layers_to_transform": [1]},
        lambda name: name == "model.layers.1.mlp.up_proj.weight",
    ),
    "rank-stabilised": ({"target_modules": ALL, "use_rslora": True, "r": 3}, lambda name: "_proj" in name),
    "patterns": (
        {
            "target_modules": ALL,
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 5},
            "alpha_pattern": {"down_proj": 7, r".*\.2\.self_attn\.o_proj": 1},
        },
        lambda name: "_proj" in name,
    ),
    "DoRA": ({"target_modules": ALL, "use_dora": True}, lambda name: "_proj" in name),
    "embedding and head": (
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
        lambda name: any(part in name for part in ("embed_tokens", "lm_head", "q_proj")),
    ),
    "DoRA on an embedding": (
        {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
        lambda name: "embed_tokens" in name or "q_proj" in name,
    ),
    "whole modules": (
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]},
        lambda name: any(part in name for part in ("q_proj", "lm_head", "embed_tokens", "norm")),  # all that end so
    ),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_bit_is_that_of_the_merged_model(
    case: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of few rows, so that every matrix has several and they do not divide it evenly."""
    asked, touched = CASES[case]
    base = base_folder(tmp_path / "base", dtype=dtype, **UNTIED)
    adapter = adapter_folder(tmp_path / "adapter", base, **asked)
    expected = by_peft(base, adapter)
    found = opened(base, adapter)
    assert same_bits(found, expected)
    assert {name for name in found.tensors if not touched(name)} == own(found, base)
    assert found.n_own == len(own(found, base))
    monkeypatch.setattr(adapters, "BLOCK", 700)
    assert same_bits(opened(base, adapter), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_that_are_stored_in_half_precision(dtype: torch.dtype, use_dora: bool, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", **UNTIED)
    asked = {"target_modules": [*ALL, "embed_tokens"], "use_dora": use_dora}
    adapter = adapter_folder(tmp_path / "adapter", base, dtype=dtype, **asked)
    found = opened(base, adapter)
    assert same_bits(found, by_peft(base, adapter))
    assert {name for name in found.tensors if "norm" in name or "lm_head" in name} == own(found, base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_matrices_that_are_stored_in_out_and_biases(
    bias: str, use_dora: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    """GPT-2's `c_proj` is square: nothing but the family says which way round it is."""
    base = base_folder(tmp_path / "base", "gpt2", dtype)
    modules = ["c_attn", "c_proj", "c_fc"]
    adapter = adapter_folder(tmp_path / "adapter", base, target_modules=modules, bias=bias, use_dora=use_dora)
    found = opened(base, adapter)
    assert same_bits(found, by_peft(base, adapter))
    changed = set(found.tensors) - own(found, base)
    adapted = {name for name in found.tensors if name.split(".")[-2] in modules}
    weights = {name for name in adapted if name.endswith(".weight")}
    biases = {name for name in found.tensors if name.endswith(".bias")}
    assert changed == weights | {"none": set(), "all": biases, "lora_only": adapted & biases}[bias]
    square = [name for name in weights if len(set(found.tensors[name].shape)) == 1]
    assert square
    config = json.loads((base / "config.json").read_text())
    del config["model_type"]
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="names no model_type, so it cannot be known whether"):
        opened(base, adapter)


def test_a_base_without_the_prefix_of_its_model(tmp_path: Path) -> None:
    """As the hub's GPT-2: the files say `h.0`, the adapter `transformer.h.0`."""
    base = base_folder(tmp_path / "base", "gpt2")
    adapter = adapter_folder(tmp_path / "adapter", base, target_modules=["c_attn"])
    expected = by_peft(base, adapter)
    file = base / "model.safetensors"
    bare = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(bare, file, metadata={"format": "pt"})
    found = opened(base, adapter)
    assert set(found.tensors) == set(bare)
    assert same_bits(found, expected, "transformer.")
    assert set(bare) - own(found, base) == {name for name in bare if "c_attn.weight" in name}


def test_a_new_head_is_there_and_has_no_counterpart(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", **UNTIED)
    kind = AutoModelForSequenceClassification
    adapter = adapter_folder(
        tmp_path / "adapter", base, kind, target_modules=["q_proj"], modules_to_save=["score"], task_type="SEQ_CLS"
    )
    found = opened(base, adapter)
    assert set(found.tensors) == {*load_file(base / "model.safetensors"), "score.weight"}
    kept = load_file(adapter / "adapter_model.safetensors")["base_model.model.score.weight"]
    assert torch.equal(read(found, "score.weight"), kept)
    left = align(open_checkpoint(str(base)), found).uncompared
    assert [(entry.tensor, entry.reason) for entry in left] == [("score.weight", "only in tuned")]
    expected = by_peft(base, adapter, kind)
    compared = {name: tensor for name, tensor in expected.items() if name != "score.weight"}
    for name, tensor in compared.items():
        assert torch.equal(as_bits(read(found, name)), as_bits(tensor))


def test_a_vocabulary_that_grew_is_listed_with_its_shape(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", **UNTIED)
    adapter = adapter_folder(tmp_path / "adapter", base, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.embed_tokens.weight"
    tensors[name] = torch.cat([tensors[name], tensors[name][:3]])
    save_file(tensors, file)
    found = opened(base, adapter)
    [left] = align(open_checkpoint(str(base)), found).uncompared
    assert left.shape_tuned == (left.shape_base[0] + 3, left.shape_base[1]) if left.shape_base else False
    assert left.reason == "other shape"


# ---------------------------------------------------------------- in a comparison


def test_a_comparison_with_the_base(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", **UNTIED)
    adapter = adapter_folder(tmp_path / "adapter", base, target_modules=["q_proj", "down_proj"])
    first = open_checkpoint(str(base))
    second = open_tuned(str(adapter), first)
    result = compare(first, second, masks=tmp_path / "m.safetensors", options=Options(ulps=10**6))
    stored, expected = load_file(base / "model.safetensors"), by_peft(base, adapter)
    masks = Masks.load(tmp_path / "m.safetensors")
    assert {row.tensor for row in result.rows} == set(stored)
    for row in result.rows:
        mask = as_bits(stored[row.tensor]) == as_bits(expected[row.tensor])
        assert torch.equal(masks[row.tensor], mask)
        assert row.n_zero_modes == int(mask.sum())
        assert (row.fraction < 1) == ("q_proj" in row.tensor or "down_proj" in row.tensor)
    assert 0 < min(row.fraction for row in result.rows) < 0.9  # bfloat16 leaves some weights of each matrix alone
    assert result.uncompared == ()
    assert result.fingerprint_tuned.startswith("sampled:")
    assert isinstance(second, Merged)
    [note] = second.notes
    assert f"{second.n_own} of {len(stored)} tensors are the base's own" in note
    assert not isinstance(open_tuned(str(base), first), Merged)


def test_the_fingerprint_is_of_both(tmp_path: Path) -> None:
    base, other = base_folder(tmp_path / "base"), base_folder(tmp_path / "other", dtype=torch.float32)
    adapter = adapter_folder(tmp_path / "adapter", base, target_modules=["q_proj"])
    first, again, on_other = opened(base, adapter), opened(base, adapter), opened(other, adapter)
    assert first.fingerprint == again.fingerprint != on_other.fingerprint
    assert open_merged(adapter, open_checkpoint(str(base)), verify=True).fingerprint.startswith("whole:")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 13}))
    assert opened(base, adapter).fingerprint != first.fingerprint
    with pytest.raises(ModelError, match="was changed while it was read"):
        first.refuse_changed()


def test_another_base_is_pointed_out(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    adapter = adapter_folder(tmp_path / "adapter", base, target_modules=["q_proj"])
    copy = shutil.copytree(base, tmp_path / "copy")
    (tmp_path / "link").symlink_to(base)
    assert len(opened(base, adapter).notes) == len(opened(tmp_path / "link", adapter).notes) == 1
    assert f"the adapter names {base} as its base, and was merged into {copy}" in opened(copy, adapter).notes
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"revision": "v7"}))
    assert f"the adapter names revision v7 of its base, and was merged into {base}" in opened(base, adapter).notes


def test_merging_takes_no_random_numbers_of_others(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    found = opened(base, adapter_folder(tmp_path / "adapter", base, target_modules=["q_proj"], use_dora=True))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    read(found, "model.layers.0.self_attn.q_proj.weight")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_block_is_worked_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_folder(tmp_path / "base")
    found = opened(base, adapter_folder(tmp_path / "adapter", base, target_modules=ALL))
    times = []
    real = adapters.merged
    monkeypatch.setattr(adapters, "merged", lambda *args, **rest: (times.append(1), real(*args, **rest))[1])
    for name in found.tensors:
        read(found, name, piece=50)
    assert len(times) == 7 * 3


@pytest.mark.parametrize("shape", [(4096, 1024), (1000, 777)])
@pytest.mark.parametrize("rank", [1, 8, 64])
def test_rows_merged_apart_have_the_bits_of_rows_merged_together(shape: tuple[int, int], rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)

    def drawn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    weight, a, b, magnitude = drawn(*shape), drawn(rank, shape[1]), drawn(shape[0], rank), drawn(shape[0])
    cuts = [shape[0] * part // 3 for part in range(4)]
    for scale in (None, magnitude):
        whole = merged(weight.clone(), a, b, scale, "linear", rank, 5)
        rows = [
            merged(weight[i:j].clone(), a, b[i:j], None if scale is None else scale[i:j], "linear", rank, 5)
            for i, j in pairwise(cuts)
        ]
        assert torch.equal(torch.cat(rows), whole)
        assert not torch.equal(whole, weight)
    embedding = merged(weight.clone(), b.T.contiguous(), a.T.contiguous(), None, "embedding", rank, 5)
    rows = [
        merged(weight[i:j].clone(), b.T[:, i:j].contiguous(), a.T.contiguous(), None, "embedding", rank, 5)
        for i, j in pairwise(cuts)
    ]
    assert torch.equal(torch.cat(rows), embedding)


def test_the_arithmetic_on_hand_written_numbers() -> None:
    weight, a, b = torch.eye(2), torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
    expected = torch.tensor([[7.0, 12.0], [8.0, 17.0]])  # 1 + 2 * 3 * 1, 2 * 3 * 2; 2 * 4 * 1, 1 + 2 * 4 * 2
    assert torch.equal(merged(weight.clone(), a, b, None, "linear", 1, 2), expected)
    assert torch.equal(merged(weight.clone(), a, b, None, "transposed", 1, 2), expected.T)
    turned = merged(weight.clone(), b.T.contiguous(), a.T.contiguous(), None, "embedding", 1, 2)
    assert torch.equal(turned, expected)
    unit = merged(weight.clone(), a, b, torch.tensor([1.0, 5.0]), "linear", 1, 2)
    lengths = torch.tensor([[193.0**0.5], [353.0**0.5]])
    assert torch.allclose(unit, expected / lengths * torch.tensor([[1.0], [5.0]]), rtol=1e-6, atol=0)  # float32


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    base = base_folder(tmp_path / "base", **UNTIED)
    return base, adapter_folder(tmp_path / "adapter", base, target_modules=["q_proj", "v_proj"])


def set_config(adapter: Path, **changes: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(base: Path, adapter: Path) -> str:
    with pytest.raises(ModelError) as caught:
        opened(base, adapter)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "IA3"}, "an adapter of peft_type IA3; only LORA"),
        ({"peft_type": "PREFIX_TUNING"}, "peft_type PREFIX_TUNING"),
        ({"peft_type": "ADALORA"}, "peft_type ADALORA"),
        ({"peft_type": "VERA"}, "peft_type VERA"),
        ({"peft_type": None}, "names no peft_type"),
        ({"trainable_token_indices": [1, 2]}, r"single tokens' embeddings (trainable_token_indices"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "it repeats layers"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters"),
        ({"lora_bias": True}, "biases inside the adapter"),
        ({"kasa_config": {"beta": 1}}, "a variant of LoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base's own weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
        ({"a_field_of_tomorrow": 1}, "a_field_of_tomorrow, which this version of peft does not know"),
        ({"r": 5}, "which is not the rank 5"),
        ({"r": "4"}, "r is '4', and not a number above 0"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern of q_proj is -1"),
        ({"alpha_pattern": [1]}, "alpha_pattern is no table"),
        ({"rank_pattern": {"(": 4}}, "a pattern that is no regular expression"),
        ({"use_dora": True}, "asks for lora_A and lora_B and lora_magnitude_vector"),
    ],
)  # fmt: skip
def test_what_cannot_be_merged_is_refused_by_name(
    changes: dict[str, object], says: str, pair: tuple[Path, Path]
) -> None:
    set_config(pair[1], **changes)
    assert says in refusal(*pair)


def test_harmless_fields_are_no_reason_to_refuse(pair: tuple[Path, Path]) -> None:
    expected = by_peft(*pair)
    set_config(pair[1], init_lora_weights="gaussian", a_field_of_tomorrow=None, inference_mode=False, lora_dropout=0.3)
    assert same_bits(opened(*pair), expected)


def change(adapter: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


def rename(tensors: dict[str, Tensor], old: str, new: str) -> None:
    for key in [key for key in tensors if old in key]:
        tensors[key.replace(old, new)] = tensors.pop(key)


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: t.pop(f"{Q}.lora_B.weight"), "q_proj has lora_A, and adapter_config.json asks for lora_A and"),
        (lambda t: t.update({f"{Q}.lora_B.weight": torch.ones(3, 4)}), "is (64, 32), the adapter's is (3, 32)"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 2, 2)}), "is no matrix"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 32, dtype=torch.int8)}), "no floating-point numbers"),
        (lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(32)}), "and lora_magnitude_vector, and"),
        (lambda t: t.update({f"{Q}.lora_B.bias": torch.ones(32)}), "q_proj.lora_B.bias, which cannot be merged"),
        (lambda t: t.update({"base_model.model.x.token_adapter.delta": torch.ones(2)}), "x.token_adapter.delta"),
        (lambda t: t.update({"model.x.lora_A.weight": torch.ones(2)}), "does not begin with base_model.model."),
        (lambda t: t.update({"base_model.model.model.x.weight": torch.ones(2)}), "which has no model.x.weight"),
        (lambda t: t.clear(), "holds no tensors"),
        (lambda t: rename(t, "layers.2", "layers.9"), "has no model.layers.9.self_attn."),
    ],
)  # fmt: skip
def test_damaged_and_foreign_adapters(
    edit: Callable[[dict[str, Tensor]], object], says: str, pair: tuple[Path, Path]
) -> None:
    assert len(opened(*pair).notes) == 1
    change(pair[1], edit)
    assert says in refusal(*pair)


def test_a_folder_that_is_not_whole(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = pair
    weights = adapter / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    assert "truncated" in refusal(base, adapter)
    weights.unlink()
    assert "lacks adapter_model.safetensors" in refusal(base, adapter)
    (adapter / "adapter_model.bin").write_bytes(b"")
    assert "only a pickled adapter" in refusal(base, adapter)
    (adapter / "adapter_config.json").write_text("{")
    assert "not valid JSON" in refusal(base, adapter)
    (adapter / "adapter_config.json").write_text("[]")
    assert "names no peft_type" in refusal(base, adapter)
    weights.write_bytes(content)
    shutil.copy(base / "model.safetensors", adapter)
    with pytest.raises(ModelError, match=r"holds an adapter and a model \(model\.safetensors\)"):
        open_tuned(str(adapter), open_checkpoint(str(base)))


def test_a_tied_head_is_not_in_the_files(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", "gpt2")
    adapter = adapter_folder(tmp_path / "adapter", base, target_modules=["c_attn", "lm_head"])
    assert "has no lm_head.weight (an unembedding that is tied is not stored)" in refusal(base, adapter)


def test_a_tied_head_that_is_stored_as_well(tmp_path: Path) -> None:
    """peft would change both names, for they are one matrix; without the second in the file there is no question."""
    base = base_folder(tmp_path / "base", tie_word_embeddings=True)
    adapter = adapter_folder(tmp_path / "adapter", base, target_modules=["embed_tokens"])
    expected = by_peft(base, adapter)
    assert same_bits(opened(base, adapter), expected)
    file = base / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    assert "ties lm_head.weight and stores it as well" in refusal(base, adapter)
    plain = adapter_folder(tmp_path / "plain", base, target_modules=["q_proj"])
    assert opened(base, plain).n_own > 0


def test_without_peft_it_says_what_to_install(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    adapters._peft.cache_clear()
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "needs peft, which is not installed: pip install 'lesion[lora]'" in refusal(*pair)
    monkeypatch.undo()
    assert opened(*pair).n_own > 0


def test_an_adapter_is_no_base_and_no_target(pair: tuple[Path, Path]) -> None:
    with pytest.raises(LesionError, match="adapter without its base model"):
        open_checkpoint(str(pair[1]))
