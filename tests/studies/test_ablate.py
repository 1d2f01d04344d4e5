"""`lesion zero-modes ablate`: losses and differences against whole models edited by hand, and its run folder."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor, nn
from transformers import AutoTokenizer

import lesion
from lesion.checkpoints.masks import Masks, MaskWriter
from lesion.checkpoints.scopes import Region
from lesion.checkpoints.selection import select, tensor_seed
from lesion.data import load_text
from lesion.engine.runners import MemoryRunner
from lesion.errors import InputError, InterventionError, ModelError
from lesion.report import write_report
from lesion.studies.zero_modes import ablate
from tests.studies.pair import Pair, write_text
from tests.support import TINY

FAMILIES = ["llama", "gpt2", "gpt_neox", "gemma2", "falcon-40b", "bert"]
ALL_KINDS = ["zero_modes", "complement", "keep_only", "random", "random_matched"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.jsonl")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Pair:
    return Pair("llama", tmp_path_factory.mktemp("llama"), text)


def run(pair: Pair, **options: Any) -> lesion.Outcome:
    given = {"model": pair.tuned, "masks": pair.masks, "data": str(pair.text), "reading": pair.reading, **options}
    return ablate(**given)


class Slow:
    """Whole models in plain transformers, one document at a time in float64."""

    def __init__(self, pair: Pair) -> None:
        family = TINY[pair.name][0]
        self.pair, self.family = pair, family
        self.stored = load_file(pair.tuned / "model.safetensors")
        self.masks = Masks.load(pair.masks)
        tokenizer = AutoTokenizer.from_pretrained(pair.tuned)
        self.data = load_text(str(pair.text), tokenizer, context=32, tokens=500, objective=family.objective)  # type: ignore[arg-type]

    def losses(self, edited: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Sum of losses and number of targets of each document, with some stored tensors replaced."""
        architecture = getattr(transformers, self.family.architectures[0])
        model: nn.Module = architecture.from_pretrained(
            self.pair.tuned, dtype=torch.float64, attn_implementation=self.family.attention
        )
        with torch.no_grad():
            for name, tensor in edited.items():
                model.get_parameter(name).copy_(tensor.double())
        sums, counts = [], []
        with torch.inference_mode():
            for index in range(len(self.data.lengths)):
                batch = self.data.batch([index])
                logits = model.eval()(**batch.model_inputs()).logits[batch.keep].double()
                wanted = batch.targets[batch.keep]
                sums.append(float(nn.functional.cross_entropy(logits, wanted, reduction="sum")))
                counts.append(int(batch.keep.sum()))
        return np.array(sums), np.array(counts)

    def edited(self, kind: str, part: str, seed: int | None) -> dict[str, Tensor]:
        """Projection matrices inside blocks whose name contains `part`, with the weights of a kind set to 0."""
        found = {}
        self.n_set = 0
        for name, weight in self.stored.items():
            is_projection = weight.ndim == 2 and (".layers." in name or ".layer." in name or ".h." in name)
            if not is_projection or part not in name:
                continue
            mask = self.masks[name]
            if kind == "zero_modes":
                chosen = mask
            elif kind in ("complement", "keep_only"):
                chosen = ~mask
            else:
                chosen = select(kind, mask, weight, Region(), seed=tensor_seed(seed or 0, name))  # type: ignore[arg-type]
            self.n_set += int(chosen.sum())
            found[name] = torch.where(chosen, torch.zeros_like(weight), weight)
        return found


def mean_and_sem(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Of a ratio of sums over documents (Cochran, section 2.11)."""
    n, mean = len(sums), sums.sum() / counts.sum()
    return mean, math.sqrt(n / (n - 1) * ((sums - mean * counts) ** 2).sum()) / counts.sum()


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_against_brute_force(family: str, tmp_path: Path, text: Path) -> None:
    found = Pair(family, tmp_path, text)
    table = run(found, kinds=ALL_KINDS, scopes=["all", "layer:1"], seeds=[7]).tables["zero_mode_ablation"]
    slow = Slow(found)
    assert list(table["kind"]) == ["none", *ALL_KINDS, *ALL_KINDS]
    for row in table.to_dict("records"):
        part = {"all": "", "layer:1": ".1."}[row["scope"]]
        seed = None if pd.isna(row["seed"]) else int(row["seed"])
        edited = {} if row["kind"] == "none" else slow.edited(row["kind"], part, seed)
        mean, sem = mean_and_sem(*slow.losses(edited))
        # float32 against float64 on logits of size 10
        assert row["loss_nats"] == pytest.approx(mean, abs=2e-4), row
        assert row["loss_sem"] == pytest.approx(sem, rel=2e-3), row
        assert int(row["n_weights_set"]) == (slow.n_set if edited else 0)
    assert table["loss_nats"].nunique() == len(table) - 2  # with 0, keeping and taking away the rest are one model


def test_differences_are_taken_document_by_document(pair: Pair) -> None:
    outcome = run(pair, scopes=["layer:1"], seeds=[1, 2, 3])
    table, slow = outcome.tables["zero_mode_contrasts"], Slow(pair)
    assert list(table["control"]) == ["random"] * 4 + ["random_matched"] * 4
    assert list(table["n_seeds"]) == [1, 1, 1, 3] * 2
    own, counts = slow.losses(slow.edited("zero_modes", ".1.", None))
    for control in ("random", "random_matched"):
        others = [slow.losses(slow.edited(control, ".1.", seed))[0] for seed in (1, 2, 3)]
        rows = table[table["control"] == control].to_dict("records")
        for row, other in zip(rows, others, strict=False):
            mean, sem = mean_and_sem(own - other, counts)
            reach = stats.t.ppf(0.975, len(counts) - 1) * sem
            assert row["difference_nats"] == pytest.approx(mean, abs=1e-4)
            assert row["difference_sem"] == pytest.approx(sem, rel=5e-3)
            assert row["low_nats"] == pytest.approx(mean - reach, abs=3e-4)
            assert row["high_nats"] == pytest.approx(mean + reach, abs=3e-4)
        pooled = rows[3]
        mean, sem = mean_and_sem(own - np.mean(others, axis=0), counts)
        sd = np.std([other.sum() / counts.sum() for other in others], ddof=1)
        whole = math.sqrt(sem**2 + sd**2 / 3)
        freedom = whole**4 / (sem**4 / (len(counts) - 1) + (sd**2 / 3) ** 2 / 2)
        assert pooled["difference_nats"] == pytest.approx(mean, abs=1e-4)
        assert pooled["seed_sd"] == pytest.approx(sd, rel=1e-2)
        assert pooled["difference_sem"] == pytest.approx(whole, rel=1e-2)
        assert pooled["high_nats"] - pooled["low_nats"] == pytest.approx(
            2 * stats.t.ppf(0.975, freedom) * whole, rel=1e-2
        )
        assert whole > sem


def test_scopes_seeds_and_controls(pair: Pair) -> None:
    table = run(pair, scopes=["layers", "components", "head:1:0", "group:QK"], seeds=[0, 5]).tables[
        "zero_mode_ablation"
    ]
    scopes = ["layer:0", "layer:1", "layer:2"]
    scopes += [f"component:{name}" for name in ("q", "k", "v", "o", "gate", "up", "down")] + ["head:1:0", "group:QK"]
    assert list(dict.fromkeys(table["scope"])) == ["all", *scopes]
    assert len(table) == 1 + len(scopes) * 5
    for scope in scopes:
        rows = table[table["scope"] == scope]
        assert rows["n_weights_set"].nunique() == 1, scope  # controls take as many
        assert (rows["n_zero_modes_set"][rows["kind"] == "zero_modes"] == rows["n_weights_set"].iloc[0]).all()
        drawn = rows[rows["kind"] == "random"]
        assert (drawn["n_zero_modes_set"] < drawn["n_weights_set"]).all()
        assert drawn["loss_nats"].nunique() == 2, scope
    masks, whole = Masks.load(pair.masks), table[table["scope"] == "component:o"].iloc[0]
    assert whole["n_weights_set"] == sum(masks.count(name) for name in masks if "o_proj" in name)


def test_the_model_as_it_is_may_be_named(pair: Pair) -> None:
    with_it = run(pair, kinds=["none", "zero_modes"]).tables["zero_mode_ablation"]
    pd.testing.assert_frame_equal(with_it, run(pair, kinds=["zero_modes"]).tables["zero_mode_ablation"])
    alone = run(pair, kinds=["none"]).tables
    assert list(alone["zero_mode_ablation"]["kind"]) == ["none"]
    assert "zero_mode_contrasts" not in alone


def test_disjoint_weights_are_no_zero_modes(pair: Pair) -> None:
    outcome = run(pair, disjoint=True, seeds=[0])
    table = outcome.tables["zero_mode_ablation"]
    drawn = table[table["kind"].isin(["random", "random_matched"])]
    assert (drawn["n_zero_modes_set"] == 0).all()
    assert drawn["disjoint"].all()
    assert not table.loc[table["kind"] == "zero_modes", "disjoint"].any()


@pytest.mark.parametrize("options", [{"loading": lesion.Loading(stream=True)}, {"executor": "local:1"}])
def test_from_disk_and_elsewhere_the_same_bits(pair: Pair, options: dict[str, Any], tmp_path: Path) -> None:
    asked = {"kinds": ALL_KINDS, "scopes": ["all", "layer:2", "head:0:1"], "seeds": [3]}
    here = run(pair, **asked)
    there = run(pair, **asked, **options, out=tmp_path / "run")
    for name, table in here.tables.items():
        pd.testing.assert_frame_equal(table, there.tables[name], check_exact=True)


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesion.engine.plan.SHARD_OPERATIONS", {"cpu": 1.0})
    whole = run(pair, seeds=[0], batch_size=2, out=tmp_path / "whole")
    original, calls = MemoryRunner.run, []

    def stopped(self: MemoryRunner, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryRunner, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(pair, seeds=[0], batch_size=2, out=tmp_path / "stopped")
    resumed = run(pair, seeds=[0], batch_size=2, out=tmp_path / "stopped", resume=True)
    for name, table in whole.tables.items():
        pd.testing.assert_frame_equal(table, resumed.tables[name], check_exact=True)
    again = run(pair, seeds=[0], batch_size=2, out=tmp_path / "stopped")
    assert again.resumed_complete
    with pytest.raises(lesion.LesionError, match="another run"):
        run(pair, seeds=[1], out=tmp_path / "stopped")


def test_other_masks_under_the_same_name_are_another_run(pair: Pair, tmp_path: Path) -> None:
    masks = Masks.load(pair.masks)
    path = tmp_path / "masks.safetensors"
    masks.save(path)
    run(pair, masks=path, seeds=[0], out=tmp_path / "run")
    (~masks).save(path)
    with pytest.raises(lesion.LesionError, match="another run"):
        run(pair, masks=path, seeds=[0], out=tmp_path / "run")


def test_what_the_model_is_to_the_masks(pair: Pair, tmp_path: Path) -> None:
    def role(model: Path, **options: Any) -> tuple[str, list[str]]:
        outcome = run(pair, model=model, kinds=["zero_modes"], **options)
        return outcome.tables["zero_mode_ablation"]["target"].iloc[0], outcome.warnings

    assert role(pair.tuned) == ("tuned", [])
    assert role(pair.base) == ("base", [])
    other = Pair("llama", tmp_path, pair.text)
    (tuned := load_file(other.tuned / "model.safetensors"))["model.norm.weight"] += 1.0
    from safetensors.torch import save_file

    save_file(tuned, other.tuned / "model.safetensors", metadata={"format": "pt"})
    found, warnings = role(other.tuned)
    assert found == "other"
    assert "neither checkpoint" in warnings[0]
    assert role(other.tuned, target="tuned") == ("tuned", [])


def test_under_an_edit_everything_is_measured(pair: Pair) -> None:
    plain = run(pair, kinds=["zero_modes"], scopes=["layer:2"]).tables["zero_mode_ablation"]
    edit = f"zero-modes:{pair.masks}@layer:0"
    under = run(pair, kinds=["zero_modes"], scopes=["layer:2"], edits=[edit]).tables["zero_mode_ablation"]
    both = run(pair, kinds=["zero_modes"], scopes=["layers:0-2"], edits=["drop-attn:1", "drop-mlp:1"])
    first = run(pair, kinds=["zero_modes"], scopes=["layer:0"]).tables["zero_mode_ablation"]
    assert under["loss_nats"][0] == pytest.approx(first["loss_nats"][1], abs=1e-6)
    assert abs(under["loss_nats"][0] - plain["loss_nats"][0]) > 1e-4
    assert len(both.tables["zero_mode_ablation"]) == 2


def test_blocks_that_an_edit_leaves_out_do_not_count(pair: Pair) -> None:
    dropped = run(pair, seeds=[0], scopes=["all", "layer:1"], edits=["drop:1"])
    table = dropped.tables["zero_mode_ablation"]
    whole = run(pair, seeds=[0], scopes=["all"]).tables["zero_mode_ablation"]
    of_all, of_one = table[table["scope"] == "all"].iloc[1:], table[table["scope"] == "layer:1"]
    assert of_all["n_weights_set"].nunique() == 1  # controls are as many, here too
    assert 0 < of_all["n_weights_set"].iloc[0] < whole["n_weights_set"].iloc[1]
    assert (of_one["n_weights_set"] == 0).all()
    assert any("no weights at all" in warning and "layer:1" in warning for warning in dropped.warnings)
    for edit in (f"zero-modes:{pair.masks}@layer:1", f"random:{pair.masks}@layer:1#0"):
        with pytest.raises(InterventionError, match="another edit leaves out"):
            run(pair, edits=["drop:1", edit])
        with pytest.raises(InterventionError, match="another edit leaves out"):
            lesion.layers(pair.tuned, str(pair.text), edits=["drop:1", edit], reading=pair.reading)


def test_rows_on_top_of_an_edit_of_the_same_matrices_are_pointed_out(pair: Pair, tmp_path: Path) -> None:
    edit = f"zero-modes:{pair.masks}@layer:1"
    asked = {"kinds": ["zero_modes", "random"], "seeds": [0], "edits": [edit]}
    met = run(pair, scopes=["layer:1"], out=tmp_path / "run", **asked)
    assert any("favour the controls" in warning for warning in met.warnings)
    row = met.tables["zero_mode_ablation"].iloc[1]
    assert 0 < row["n_weights_set"] < row["n_weights_in_scope"]
    write_report(tmp_path / "run")
    apart = run(pair, scopes=["layer:2"], **asked)
    assert not any("favour the controls" in warning for warning in apart.warnings)


def test_a_target_that_the_fingerprints_deny_is_pointed_out(pair: Pair) -> None:
    outcome = run(pair, kinds=["none"], target="base")
    assert outcome.tables["zero_mode_ablation"]["target"].iloc[0] == "base"
    assert any("by its fingerprint" in warning and "tuned" in warning for warning in outcome.warnings)


def test_masks_that_are_not_there_are_one_line(pair: Pair) -> None:
    for edit, says in (("zero-modes:nowhere@all", "no masks at"), (f"zero-modes:{pair.masks};mean@all", "is no seed")):
        with pytest.raises(lesion.LesionError, match=says):
            lesion.layers(pair.tuned, str(pair.text), edits=[edit], reading=pair.reading, out=Path("never"))


def test_layers_takes_the_same_edits(pair: Pair) -> None:
    edit = f"zero-modes:{pair.masks}@layer:0"
    table = lesion.layers(
        pair.tuned, str(pair.text), interventions=["drop"], edits=[edit], reading=pair.reading
    ).tables["layers"]
    slow = Slow(pair)
    mean, _ = mean_and_sem(*slow.losses(slow.edited("zero_modes", ".0.", None)))
    assert table["loss_clean_nats"][0] == pytest.approx(mean, abs=2e-4)
    plain, _ = mean_and_sem(*slow.losses({}))
    assert abs(plain - mean) > 1e-3


def test_a_model_in_memory_keeps_its_weights(pair: Pair) -> None:
    loaded = lesion.load(pair.tuned)
    model = loaded.anatomy.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    outcome = run(pair, model=model, tokenizer=loaded.tokenizer, seeds=[0])
    folder = run(pair, seeds=[0])
    assert "in memory" in outcome.warnings[0]
    assert list(outcome.tables["zero_mode_ablation"]["loss_nats"]) == list(
        folder.tables["zero_mode_ablation"]["loss_nats"]
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_no_zero_modes_at_all(pair: Pair, tmp_path: Path) -> None:
    masks = Masks.load(pair.masks)
    shapes = {name: masks.shape(name) for name in masks}
    with MaskWriter(tmp_path / "none.safetensors", shapes, {}) as writer:
        for name, shape in shapes.items():
            writer.write(name, np.zeros(-(-math.prod(shape) // 8), np.uint8))
    outcome = run(pair, masks=tmp_path / "none.safetensors", seeds=[0])
    table = outcome.tables["zero_mode_ablation"]
    assert table["loss_nats"].nunique() == 1
    assert (table["n_weights_set"] == 0).all()
    assert any("no weights at all" in warning for warning in outcome.warnings)
    with pytest.raises(InterventionError, match="no weights at all"):
        run(pair, edits=[f"zero-modes:{tmp_path / 'none.safetensors'}"], seeds=[0])


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"kinds": ["zero-mode"]}, InputError, "not known"),
        ({"kinds": ["random", "random"]}, InputError, "each once"),
        ({"seeds": [1, 1]}, InputError, "each once"),
        ({"seeds": []}, InputError, "whole numbers"),
        ({"scopes": []}, InputError, "names nothing"),
        ({"scopes": ["layer:3"]}, InterventionError, "no layer 3"),
        ({"scopes": ["component:fc1"]}, InterventionError, "has no fc1"),
        ({"scopes": ["head:0:9"]}, InterventionError, "no head 9"),
        ({"disjoint": True, "kinds": ["zero_modes"]}, InputError, "--disjoint"),
        ({"value": "mean", "include": ["embde"]}, InterventionError, "cannot be included"),
        ({"masks": "nowhere"}, InputError, "no masks"),
        ({"edits": ["zero-modes:"]}, InterventionError, "names no masks"),
        ({"edits": ["random:x@all"]}, InputError, "needs a seed"),
    ],
)
def test_refusals(pair: Pair, options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        run(pair, **options)


def test_masks_of_another_model(pair: Pair, tmp_path: Path) -> None:
    other = Pair("gpt2", tmp_path, pair.text)
    with pytest.raises(ModelError, match="do not fit"):
        run(pair, masks=other.masks)
    with pytest.raises(InterventionError, match="has no gate"):
        run(other, scopes=["component:gate"])


def test_manifest(pair: Pair, tmp_path: Path) -> None:
    outcome = run(pair, seeds=[0], out=tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["study"] == "zero-modes ablate"
    assert manifest["arguments"]["target"] == "tuned"
    assert manifest["masks"]["sha256"]
    assert manifest["counts"]["n_lanes"] == 1 + 4 * 3
    assert set(outcome.tables) == {
        "zero_mode_ablation",
        "zero_mode_contrasts",
        "zero_mode_ablation_by_domain",
        "zero_mode_contrasts_by_domain",
    }
