"""What the zoo's cards say of its models, measured again."""

import json
from pathlib import Path

import pytest
import torch

import lesion
from lesion.anatomy import zoo_models
from lesion.anatomy.source import zoo_folder
from lesion.checkpoints.components import place
from lesion.checkpoints.masks import Masks

NAMES = zoo_models()


def size(name: str) -> int:
    return sum(path.stat().st_size for path in (zoo_folder() / name).iterdir())


def card(name: str) -> str:
    _, _, below = (zoo_folder() / "README.md").read_text().partition(f"## `{name}`\n")
    return below.partition("\n## ")[0]


def test_sizes() -> None:
    assert set(NAMES) == {"bytes-4l", "bytes-4l-python", "python-8l", "relu-4l", "vit-digits"}
    assert sum(map(size, NAMES)) < 60e6
    assert size("relu-4l") < 10e6
    assert size("vit-digits") < 3e6


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_card_and_says_how_it_was_made(name: str) -> None:
    text = card(name)
    for line in ("data", "training", "cost", "licence"):
        assert f"| {line} |" in text, line
    assert "| loss |" in text or "| accuracy |" in text
    made = json.loads((zoo_folder() / name / "training.json").read_text())
    losses = [row[1] for row in made["loss"]] if "loss" in made else [row["loss_nats"] for row in made["curve"]]
    assert losses[-1] < losses[0]
    loaded = lesion.load(f"zoo:{name}")
    n_parameters = sum(parameter.numel() for parameter in loaded.anatomy.model.parameters())
    assert f"{n_parameters:,}" in text


def test_the_pair_has_zero_modes_as_its_card_says(tmp_path: Path) -> None:
    outcome = lesion.zero_modes.diff("zoo:bytes-4l", "zoo:bytes-4l-python", look=["none"], out=tmp_path / "pair")
    table = outcome.tables["zero_modes"]
    projections = table[[place(name).is_projection for name in table["tensor"]]]
    found = int(projections["n_zero_modes"].sum())
    assert f"{found:,}" in card("bytes-4l-python")
    assert 0.10 < found / projections["n_weights"].sum() < 0.30
    kept = json.loads((zoo_folder() / "bytes-4l-python" / "zero-modes.json").read_text())
    sums = {
        dtype: sum(row["n_zero_modes"] for row in rows if row["layer"] is not None and row["component"] != "norm")
        for dtype, rows in kept.items()
    }
    assert sums["bf16"] == found == sum(Masks.load(tmp_path / "pair").count(name) for name in projections["tensor"])
    assert 7 < sums["bf16"] / sums["fp16"] < 9
    assert sums["fp32"] < 10


@torch.inference_mode()
def test_the_pair_copies() -> None:
    """Random printable ASCII, said three times; the ids of bytes are those of the tokenizer's own alphabet."""
    generator = torch.Generator().manual_seed(0)
    for name, least in (("bytes-4l", 0.9), ("bytes-4l-python", 0.85)):
        loaded = lesion.load(f"zoo:{name}")
        ascii_ids = torch.tensor(loaded.tokenizer("".join(map(chr, range(33, 127))))["input_ids"])
        drawn = ascii_ids[torch.randint(len(ascii_ids), (64, 11), generator=generator)]
        begin = torch.full((64, 1), loaded.tokenizer.bos_token_id)
        ids = torch.cat([begin, drawn, drawn, drawn], dim=1)
        right = loaded.anatomy.model(ids).logits[:, :-1].argmax(-1) == ids[:, 1:]
        assert right[:, 12:22].float().mean() > least
        assert right[:, 23:].float().mean() > 0.98
        assert right[:, 1:11].float().mean() < 0.1  # nothing can be known of the first time


def test_the_digits_are_read() -> None:
    table = lesion.layers("zoo:vit-digits", "digits:test", interventions=["drop"]).tables["layers"]
    assert table["n_documents"].iloc[0] == 360
    assert table["top1_clean"].iloc[0] > 0.95
    assert f"{100 * table['top1_clean'].iloc[0]:.1f} ±" in card("vit-digits")


@torch.inference_mode()
def test_the_relu_model_has_dead_neurons_and_neurons_of_few_tokens() -> None:
    """On text that it has not seen, counted by hand; detectors as in spec `neurons`, section 4.2."""
    loaded = lesion.load("zoo:relu-4l")
    text = lesion.load_text("stdlib", loaded.tokenizer, context=256, tokens=20_000)
    firing: list[list[torch.Tensor]] = [[] for _ in range(4)]
    ids = []
    for layer, block in enumerate(loaded.anatomy.blocks):
        block.get_submodule("fc2").register_forward_pre_hook(
            lambda module, given, layer=layer: firing[layer].append(given[0].flatten(0, -2) > 0)
        )
    for index in range(len(text.lengths)):
        batch = text.batch([index])
        loaded.anatomy.model(**batch.model_inputs())
        ids.append(batch.ids.flatten())
    tokens = torch.cat(ids)
    occurrences = torch.bincount(tokens, minlength=512).float()
    n_dead, n_few, n_detectors = 0, 0, 0
    for layer in range(4):
        active = torch.cat(firing[layer]).float()
        by_token = torch.zeros(512, 2048).index_add_(0, tokens, active)
        total = by_token.sum(0)
        living = total > 0
        needed = (by_token.sort(0, descending=True).values.cumsum(0) < 0.95 * total).sum(0) + 1
        detected = (by_token >= 0.95 * occurrences[:, None]) & (occurrences[:, None] > 0)
        share = (by_token * detected).sum(0) / total.clamp_min(1)
        n_dead += int((~living).sum())
        n_few += int((living & (needed <= 5)).sum())
        n_detectors += int((living & (needed <= 5) & (share >= 0.95)).sum())
    assert n_dead > 1000
    assert n_few > 1000
    assert n_detectors >= 5
