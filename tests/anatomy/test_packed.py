"""Packed weights: what they compute can be studied where the library is there; what they are cannot."""

import json
import logging
import re
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import BitsAndBytesConfig

from lesion.anatomy import dissect, load, refuse_packed
from lesion.anatomy.packing import LIBRARIES, keep_float32, reason_against, say_once
from lesion.engine import Skeleton, Walk, lay_out, verify
from lesion.errors import ModelError
from lesion.interventions import drop, drop_attn, drop_mlp, swap
from tests.support import Documents, tiny_model, token_documents

FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True}
EIGHT_BITS = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 0.0}
needs_library = pytest.mark.skipif(
    any(find_spec(library) is None for library in LIBRARIES), reason="needs bitsandbytes (pip install 'lesion[quant]')"
)
WAYS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-twice": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
}


def packed_folder(folder: Path, tokenizer: Path, way: str, name: str = "llama", **sizes: int) -> Path:
    """A tiny model packed by bitsandbytes, saved before its first call (which may repack the weights)."""
    network = tiny_model(name, vocab_size=320, **sizes)
    network.save_pretrained(folder / "plain")
    quantised = type(network).from_pretrained(
        folder / "plain", quantization_config=BitsAndBytesConfig(**WAYS[way]), dtype=torch.float32
    )
    quantised.save_pretrained(folder / "packed")
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, folder / "packed")
    return folder / "packed"


LLAMA = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
"""64 numbers share a scale, so that rows are no shorter."""


# --- without the library -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("packing", "says"), [
    ({**EIGHT_BITS, "llm_int8_threshold": 6.0}, "depend on what else is computed.*set llm_int8_threshold to 0"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "llm_int8_threshold"),
    ({**EIGHT_BITS, "llm_int8_has_fp16_weight": True}, "weights of 16 bits"),
    ({"quant_method": "awq"}, "by awq"),
    ({}, "by None"),
    ("4 bits", "describes no packing"),
])  # fmt: skip
def test_packings_that_are_refused(packing: Any, says: str) -> None:
    reason = reason_against(packing)
    assert reason is not None
    assert re.search(says, reason)


@pytest.mark.parametrize("packing", [FOUR_BITS, EIGHT_BITS, BitsAndBytesConfig(load_in_4bit=True)])
def test_packings_that_are_read(packing: Any) -> None:
    assert reason_against(packing) is None


def test_the_missing_library_is_named(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": FOUR_BITS}))
    monkeypatch.setattr("lesion.anatomy.packing.find_spec", lambda name: None if name == "bitsandbytes" else object())
    with pytest.raises(ModelError, match=r"bitsandbytes is not installed; run: pip install 'lesion\[quant\]'$"):
        load(folder)


@dataclass
class Packing:
    quant_method: str
    load_in_8bit: bool = False


def test_studies_of_weights_refuse_packed_ones() -> None:
    model = tiny_model("llama")
    refuse_packed(dissect(model), "lesion zero-modes")
    assert dissect(model).packed is None
    model.config.quantization_config = Packing("bitsandbytes")
    assert dissect(model).packed == "bitsandbytes"
    with pytest.raises(ModelError, match=r"^lesion zero-modes reads weights as numbers, .* packed \(bitsandbytes\)"):
        refuse_packed(dissect(model), "lesion zero-modes")
    model.config.quantization_config = Packing("gptq")
    with pytest.raises(ModelError, match=r"packed \(quantised\) by gptq"):
        dissect(model)


def test_sizes_are_not_those_of_the_codes() -> None:
    """Four-bit weights are a column of bytes; the layer itself knows what it maps."""
    model = tiny_model("llama")
    expected = dissect(model)
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            codes = torch.zeros((module.weight.numel() // 2, 1), dtype=torch.uint8)
            module.weight = nn.Parameter(codes, requires_grad=False)
    packed = dissect(model)
    for name in ("d_model", "d_z", "d_head", "d_mlp", "n_heads", "n_kv_heads", "dtype"):
        assert getattr(packed, name) == getattr(expected, name)


def test_the_dtype_that_was_asked_for_is_kept() -> None:
    class Layer(nn.Linear):
        support_avx512bf16_for_cpu = True

    layers = nn.ModuleList([Layer(2, 2), nn.Linear(2, 2)])
    keep_float32(layers)
    assert not layers[0].support_avx512bf16_for_cpu
    assert not hasattr(layers[1], "support_avx512bf16_for_cpu")


def test_what_the_library_says_at_every_call_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    say_once()
    say_once()
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    for _ in range(3):
        logger.warning("inputs will be cast from %s", "float32")
    logger.warning("inputs will be cast from %s", "bfloat16")
    assert [record.getMessage()[-8:] for record in caplog.records] == [" float32", "bfloat16"]


# --- with it -------------------------------------------------------------------------------------------------------


@needs_library
@pytest.mark.parametrize("way", WAYS)
@torch.inference_mode()
def test_packed_models_keep_the_contract(way: str, tiny_folder: Path, tmp_path: Path) -> None:
    """What verify asks of every model, lanes that do not see each other, and sizes that are those of the plain one."""
    model = load(packed_folder(tmp_path, tiny_folder, way, **LLAMA))
    anatomy, plain = model.anatomy, dissect(tiny_model("llama", vocab_size=320, **LLAMA))
    for name in ("d_model", "d_z", "d_head", "d_mlp", "n_heads", "n_kv_heads", "n_layers", "vocabulary", "sites"):
        assert getattr(anatomy, name) == getattr(plain, name)
    assert anatomy.packed == model.describe()["packed"] == "bitsandbytes"
    assert model.describe()["n_parameters"] == plain.model.num_parameters()
    assert anatomy.dtype == torch.float32
    batch = Documents(token_documents(320, [40, 40])).batch([0, 1])
    verify(anatomy, batch)
    skeleton = Skeleton(anatomy)
    stream, calls = skeleton.enter(batch)
    lanes = lay_out([drop(1), swap(0), drop_attn(1), drop_mlp(0)], 3)
    stacked, alone = (
        Walk(anatomy, lanes, tokens, lambda index, step: None).run(stream, calls, [1, 2, 3, 4]) for tokens in (4096, 1)
    )
    for index in range(5):
        # more or fewer rows in a product: rounding, no more
        torch.testing.assert_close(stacked[index], alone[index], rtol=1e-4, atol=1e-4)
        assert index == 0 or not torch.allclose(alone[index], alone[0], atol=1e-2)


@needs_library
@torch.inference_mode()
def test_packed_weights_are_what_they_unpack_to(tiny_folder: Path, tmp_path: Path) -> None:
    """In float32 and with nothing in between: a plain model with the unpacked weights has the same logits."""
    from bitsandbytes.functional import dequantize_4bit

    network = load(packed_folder(tmp_path, tiny_folder, "nf4", **LLAMA)).anatomy.model
    unpacked = tiny_model("llama", vocab_size=320, **LLAMA)
    plain = unpacked(torch.arange(40).unsqueeze(0)).logits
    for name, module in network.named_modules():
        if state := getattr(getattr(module, "weight", None), "quant_state", None):
            unpacked.get_submodule(name).weight.copy_(dequantize_4bit(module.weight.data, state))
    ids = torch.arange(40).unsqueeze(0)
    # the same float32 products, in kernels of their own
    torch.testing.assert_close(network(ids).logits, unpacked(ids).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, unpacked(ids).logits, atol=0.1)


@needs_library
def test_projections_of_gpt2_are_packed_too(tiny_folder: Path, tmp_path: Path) -> None:
    """Their plain form stores (in, out), their packed form is a linear layer."""
    folder = packed_folder(tmp_path, tiny_folder, "nf4", "gpt2", n_embd=64, n_inner=128)
    anatomy = load(folder).anatomy
    assert (anatomy.d_model, anatomy.d_z, anatomy.d_mlp, anatomy.n_kv_heads) == (64, 64, 128, 4)
    verify(anatomy, Documents(token_documents(320, [40])).batch([0]))


@needs_library
def test_outliers_that_mix_tokens_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = packed_folder(tmp_path, tiny_folder, "int8", **LLAMA)
    load(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["llm_int8_threshold"] = 6.0
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="llm_int8_threshold"):
        load(folder)
    network = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with pytest.raises(ModelError, match="llm_int8_threshold"):
        dissect(network)


@needs_library
@torch.inference_mode()
def test_packed_models_do_not_depend_on_their_file(tiny_folder: Path, tmp_path: Path) -> None:
    folder = packed_folder(tmp_path, tiny_folder, "nf4", **LLAMA)
    model = load(folder).anatomy.model
    assert str(folder) not in Path("/proc/self/maps").read_text()
    ids = torch.arange(40).unsqueeze(0)
    expected = model(ids).logits
    (folder / "model.safetensors").write_bytes(b"")
    assert torch.equal(model(ids).logits, expected)
