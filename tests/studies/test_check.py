"""`lesion.check` and the catalogue: what is read, what comes back, what is refused."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

import lesion
from lesion.anatomy import Loading, known_families, load
from lesion.anatomy.family import NOT_STUDIED
from lesion.engine.checks import CHECKS
from lesion.errors import InputError, ModelError
from lesion.studies.catalogue import catalogue, zoo_entry
from lesion.studies.check import examine
from tests.support import tiny_model


def test_a_folder(tiny_folder: Path, text_file: Path) -> None:
    table = lesion.check(tiny_folder, str(text_file), context=48)
    assert list(table.columns) == ["check", "verdict", "found", "bound", "limit", "detail"]
    assert list(table["check"]) == [*CHECKS, "weights unchanged"]
    assert set(table["verdict"]) == {"ok"}
    read = table.set_index("check").loc["padding", "detail"]
    assert read == "48 and 24 tokens in one batch, and alone"


def test_a_model_in_memory(tiny_folder: Path, text_file: Path) -> None:
    loaded = load(tiny_folder)
    model = loaded.anatomy.model
    with pytest.raises(InputError, match="tokenizer="):
        lesion.check(model, str(text_file))
    handle = model.lm_head.register_forward_hook(lambda module, arguments, output: 1.5 * output)  # type: ignore[union-attr]
    found = examine(model, str(text_file), tokenizer=loaded.tokenizer)
    assert found.wrong == ("plain transformers",)
    handle.remove()
    assert examine(model, str(text_file), tokenizer=loaded.tokenizer).wrong == ()


def test_reading_is_the_models_own(tiny_folder: Path, text_file: Path) -> None:
    with pytest.raises(InputError, match="longer than the 64 positions"):
        lesion.check(tiny_folder, str(text_file), context=65)
    (text_file.parent / "short.txt").write_text("a")
    with pytest.raises(InputError, match="four tokens or more"):
        lesion.check(tiny_folder, str(text_file.parent / "short.txt"))


def test_pictures_are_digits_unless_others_are_given(tmp_path: Path) -> None:
    tiny_model("vit", num_labels=2).save_pretrained(tmp_path / "vit")
    table = lesion.check(tmp_path / "vit").set_index("check")
    assert set(table["verdict"]) == {"ok", "not applicable"}
    assert table.loc["padding", "detail"] == "images are never padded"
    assert pd.isna(table.loc["padding", "found"])
    with pytest.raises(InputError, match="--context"):
        lesion.check(tmp_path / "vit", context=9)
    (tmp_path / "pictures").mkdir()
    Image.new("L", (16, 16), 200).save(tmp_path / "pictures" / "one.png")
    with pytest.raises(InputError, match="two pictures; there is one"):
        lesion.check(tmp_path / "vit", str(tmp_path / "pictures"))


def test_facts(tiny_folder: Path, text_file: Path) -> None:
    facts = examine(tiny_folder, str(text_file), loading=Loading(dtype="bfloat16")).facts()
    assert (facts["d_head"], facts["dtype"], facts["device"], facts["n_kv_heads"]) == (16, "bfloat16", "cpu", 2)


def test_a_model_whose_blocks_are_on_disk_is_refused(tiny_folder: Path, text_file: Path) -> None:
    streamed = load(tiny_folder, stream=True)
    with pytest.raises(ModelError, match="does not fit into the memory"):
        lesion.check(streamed, str(text_file))
    assert examine(replace(load(tiny_folder), name="whole"), str(text_file)).wrong == ()


def test_the_catalogue() -> None:
    known = catalogue()
    entries = {entry.model_type: entry for entry in known.families}
    assert set(entries) == set(known_families())
    assert known.refused == NOT_STUDIED
    assert all(entry.heads and entry.layers for entry in known.families)
    assert "unknown" not in {kind for entry in known.families for kind in entry.positions}
    assert {name for name, entry in entries.items() if not entry.neurons} >= {"mixtral", "qwen3_moe"}
    assert "spread over experts" in entries["mixtral"].without["mlp_post"]
    assert not entries["llama"].without
    assert entries["opt"].norm == ("post", "pre")
    assert entries["gpt_neox"].halves == ("in turn", "side by side")
    assert {name: entries[name].positions for name in ("gpt2", "bloom", "llama", "gptj", "falcon")} == {
        "gpt2": ("learned",),
        "bloom": ("ALiBi",),
        "llama": ("rotary",),
        "gptj": ("rotary",),
        "falcon": ("ALiBi", "rotary"),
    }


def test_the_zoo_is_described_without_being_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("zoo:python-8l")
    monkeypatch.setattr(torch, "frombuffer", None)
    entry = zoo_entry("python-8l")
    assert entry.parameters == loaded.anatomy.model.num_parameters()  # type: ignore[operator]
    assert 3.9e6 < entry.bytes < 5e6
    assert (entry.name, entry.architecture) == ("zoo:python-8l", "LlamaForCausalLM")
    assert entry.card == "A LLaMA that reads Python and the prose around it."
