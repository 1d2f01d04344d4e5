"""`zero-modes overlap` as a run: tables and their sums, where the weights come from, and what is warned of."""

import json
import math
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import lesion
from lesion.checkpoints.compare import Options
from lesion.checkpoints.components import place
from lesion.errors import InputError, RunFolderError
from lesion.studies.zero_modes import diff, overlap
from tests.checkpoints.pairs import as_bits, random_tensors, tuned_from, write

COLUMNS = [
    *("a", "b", "tensor", "layer", "component", "n_weights", "n_a", "n_b", "n_both", "n_either"),
    *("jaccard", "share_of_a", "share_of_b", "n_both_by_chance", "n_both_by_chance_sd", "jaccard_by_chance"),
    *("over_chance", "n_both_by_chance_in_exponents", "n_both_by_chance_in_exponents_sd", "over_chance_in_exponents"),
]
COLUMNS_OF_ALL = [
    *("tensor", "layer", "component", "n_masks", "n_weights", "n_in_all", "n_in_any", "n_in_all_by_chance"),
    *("n_in_any_by_chance", "n_in_all_by_chance_in_exponents", "over_chance", "over_chance_in_exponents"),
]
EXACT = 1e-12
"""Relative: sums of some twenty float64 numbers."""


@pytest.fixture
def tensors() -> dict[str, dict[str, Tensor]]:
    base = random_tensors(0)
    return {"base": base, **{name: tuned_from(base, seed) for seed, name in enumerate(("one", "two", "three"), 1)}}


@pytest.fixture
def runs(tensors: dict[str, dict[str, Tensor]], tmp_path: Path) -> list[str]:
    """Run folders of three fine-tunings of one base, stored in bfloat16."""
    models = {name: write(tmp_path / "models" / name, own) for name, own in tensors.items()}
    for name in ("one", "two", "three"):
        diff(models["base"], models[name], out=tmp_path / name, look=["none"])
    return [str(tmp_path / name) for name in ("one", "two", "three")]


def same(tensors: dict[str, dict[str, Tensor]], name: str) -> dict[str, Tensor]:
    return {key: as_bits(tensor) == as_bits(tensors["base"][key]) for key, tensor in tensors[name].items()}


def sums(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["tensor"].isna()]


def test_rows_and_sums(runs: list[str], tensors: dict[str, dict[str, Tensor]]) -> None:
    outcome = overlap(runs[:2])
    table = outcome.tables["zero_modes_overlap"]
    assert list(table.columns) == COLUMNS
    assert set(outcome.tables) == {"zero_modes_overlap", "zero_modes_overlap_uncompared"}
    one, two = same(tensors, "one"), same(tensors, "two")
    assert sorted(table["tensor"].dropna()) == sorted(one)
    components = {key: place(key).component for key in one}
    wanted: dict[str, list[str]] = {
        name: [key for key in one if components[key] == name] for name in components.values()
    }
    wanted["projections"] = [key for key in one if place(key).is_projection]
    wanted["all"] = list(one)
    assert set(sums(table)["component"]) == set(wanted)
    rows = [(row, [row["tensor"]]) for row in table[table["tensor"].notna()].to_dict("records")]
    rows += [(row, wanted[row["component"]]) for row in sums(table).to_dict("records")]
    for row, keys in rows:
        n_a, n_b = (sum(int(side[key].sum()) for key in keys) for side in (one, two))
        n_both = sum(int((one[key] & two[key]).sum()) for key in keys)
        chance = sum(float(one[key].sum()) * float(two[key].sum()) / one[key].numel() for key in keys)
        assert (row["a"], row["b"]) == ("one", "two")
        assert (row["n_a"], row["n_b"], row["n_both"], row["n_either"]) == (n_a, n_b, n_both, n_a + n_b - n_both)
        assert row["n_weights"] == sum(one[key].numel() for key in keys)
        assert row["n_both_by_chance"] == pytest.approx(chance, rel=EXACT)
        assert row["jaccard"] == pytest.approx(n_both / (n_a + n_b - n_both), rel=EXACT)
        assert row["share_of_a"] == pytest.approx(n_both / n_a, rel=EXACT)
        assert row["share_of_b"] == pytest.approx(n_both / n_b, rel=EXACT)
        assert row["jaccard_by_chance"] == pytest.approx(chance / (n_a + n_b - chance), rel=EXACT)
        assert row["over_chance"] == pytest.approx(n_both / chance, rel=EXACT)
        in_exponents = row["n_both_by_chance_in_exponents"]
        assert row["over_chance_in_exponents"] == pytest.approx(n_both / in_exponents, rel=EXACT)
    by_tensor = table[table["tensor"].notna()]
    total = sums(table).set_index("component").loc["all"]
    for column in ("n_both_by_chance_sd", "n_both_by_chance_in_exponents_sd"):
        assert total[column] == pytest.approx(math.sqrt((by_tensor[column] ** 2).sum()), rel=EXACT)
    assert outcome.warnings == []


def test_chance_is_within_each_tensor(tmp_path: Path) -> None:
    """Two masks that are full in one tensor and empty in the other share it all, which in each tensor is chance."""
    base = {f"model.layers.0.mlp.{part}_proj.weight": torch.ones(10, 10) for part in ("gate", "up")}
    moved = {name: tensor + (1 if "up" in name else 0) for name, tensor in base.items()}
    folders = [write(tmp_path / name, base | own) for name, own in (("base", {}), ("a", moved))]
    far = {name: tensor + (2 if "up" in name else 0) for name, tensor in base.items()}
    folders.append(write(tmp_path / "b", far))
    for name, folder in (("run-a", folders[1]), ("run-b", folders[2])):
        diff(folders[0], folder, out=tmp_path / name, look=["none"])
    outcome = overlap([tmp_path / "run-a", tmp_path / "run-b"])
    total = sums(outcome.tables["zero_modes_overlap"]).set_index("component").loc["projections"]
    assert (total["n_a"], total["n_b"], total["n_both"]) == (100, 100, 100)
    assert (total["n_both_by_chance"], total["over_chance"], total["n_both_by_chance_sd"]) == (100, 1.0, 0.0)
    up = outcome.tables["zero_modes_overlap"].set_index("tensor").loc["model.layers.0.mlp.up_proj.weight"]
    ratios = [name for name in COLUMNS if name.startswith(("jaccard", "share", "over"))]
    assert up[ratios].isna().all()
    assert (up["n_both_by_chance"], up["n_both"]) == (0, 0)
    assert [line for line in outcome.warnings if "has no zero modes in 1 tensors" in line and "up_proj" in line] == (
        outcome.warnings
    )
    assert len(outcome.warnings) == 2


def test_three_masks_together(runs: list[str], tensors: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    outcome = overlap(runs, out=tmp_path / "run")
    table = outcome.tables["zero_modes_overlap_all"]
    assert list(table.columns) == COLUMNS_OF_ALL
    masks = [same(tensors, name) for name in ("one", "two", "three")]
    by_tensor = table[table["tensor"].notna()].set_index("tensor")
    assert by_tensor["n_in_all"].to_dict() == {
        key: int((masks[0][key] & masks[1][key] & masks[2][key]).sum()) for key in masks[0]
    }
    assert by_tensor["n_in_any"].to_dict() == {
        key: int((masks[0][key] | masks[1][key] | masks[2][key]).sum()) for key in masks[0]
    }
    total = sums(table).set_index("component").loc["all"]
    chance = sum(
        mask.numel() * math.prod(float(own[key].double().mean()) for own in masks) for key, mask in masks[0].items()
    )
    assert total["n_in_all_by_chance"] == pytest.approx(chance, rel=EXACT)
    assert total["over_chance"] == pytest.approx(total["n_in_all"] / chance, rel=EXACT)
    assert set(table["n_masks"]) == {3}
    pairs = outcome.tables["zero_modes_overlap"]
    assert list(dict.fromkeys(zip(pairs["a"], pairs["b"], strict=True))) == list(
        combinations(["one", "two", "three"], 2)
    )
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["n_masks"] == 3
    assert [one["name"] for one in manifest["masks"]] == ["one", "two", "three"]
    assert manifest["weights"]["name"].endswith("models/base")


def test_the_same_command_again(runs: list[str], tmp_path: Path) -> None:
    first = overlap(runs, out=tmp_path / "out", name_folder=True)
    again = overlap(runs, out=tmp_path / "out", name_folder=True)
    assert again.resumed_complete
    assert not first.resumed_complete
    assert again.path == first.path
    for name, table in first.tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table, check_dtype=False)
    assert overlap(runs[:2], out=tmp_path / "out", name_folder=True).path != first.path
    with pytest.raises(RunFolderError, match="another run"):
        overlap(runs[::-1], out=first.path)
    (~lesion.Masks.load(runs[0])).save(Path(runs[0]) / "arrays" / "zero_modes.safetensors")
    with pytest.raises(RunFolderError, match="another run"):
        overlap(runs, out=first.path)
    assert not overlap(runs, out=first.path, overwrite=True).resumed_complete


def test_copies_are_the_same_and_complements_disjoint(runs: list[str], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "copy")
    (~lesion.Masks.load(runs[0])).save(tmp_path / "rest.safetensors")
    outcome = overlap([runs[0], f"copied={tmp_path / 'copy'}", tmp_path / "rest.safetensors"])
    total = outcome.tables["zero_modes_overlap"].query("component == 'all'").set_index(["a", "b"])
    assert total.loc[("one", "copied"), "jaccard"] == 1.0
    assert total.loc[("one", "rest"), "jaccard"] == 0.0
    assert total.loc[("one", "rest"), "n_either"] == total.loc[("one", "rest"), "n_weights"]
    assert any(line.startswith("rest holds not the zero modes of a pair") for line in outcome.warnings)


@pytest.mark.parametrize("verify", [False, True])
def test_weights_are_the_recorded_base(verify: bool, tensors: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    models = {name: write(tmp_path / "models" / name, own) for name, own in tensors.items()}
    runs = [tmp_path / name for name in ("one", "two")]
    for run in runs:
        diff(models["base"], models[run.name], out=run, verify=verify, look=["none"])
    column = "n_both_by_chance_in_exponents"
    found = overlap(runs)
    assert found.tables["zero_modes_overlap"][column].notna().all()
    assert found.warnings == []
    named = overlap(runs, weights=models["base"])
    pd.testing.assert_frame_equal(named.tables["zero_modes_overlap"], found.tables["zero_modes_overlap"])
    assert named.warnings == []
    other = overlap(runs, weights=models["three"])
    assert not other.tables["zero_modes_overlap"][column].equals(found.tables["zero_modes_overlap"][column])
    assert "is not the base of all masks" in other.warnings[0]
    changed = {name: tensor + 1 for name, tensor in tensors["base"].items()}
    shutil.rmtree(models["base"])
    gone = overlap(runs)
    write(Path(models["base"]), changed)
    for outcome, reason in ((gone, "no model folder"), (overlap(runs), "is not the checkpoint any more")):
        assert outcome.tables["zero_modes_overlap"][column].isna().all()
        assert outcome.tables["zero_modes_overlap"]["n_both_by_chance"].notna().all()
        assert len(outcome.warnings) == 1
        assert reason in outcome.warnings[0]
        assert "pass --weights" in outcome.warnings[0]


def test_files_of_masks_do_not_say_where_the_base_is(runs: list[str], tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        files.append(tmp_path / f"{name}.safetensors")
        shutil.copyfile(tmp_path / name / "arrays" / "zero_modes.safetensors", files[-1])
    outcome = overlap(files)
    assert set(outcome.tables["zero_modes_overlap"]["a"]) == {"one"}
    assert "files of masks do not say where their base is" in outcome.warnings[0]
    mixed = overlap([files[0], runs[1]])
    assert mixed.warnings == []
    assert mixed.tables["zero_modes_overlap"]["over_chance_in_exponents"].notna().any()
    inside = overlap([Path(runs[0]) / "arrays" / "zero_modes.safetensors", files[1]])
    assert inside.warnings == []
    assert set(inside.tables["zero_modes_overlap"]["a"]) == {"one"}


def test_a_sum_over_unknown_exponents_is_unknown(
    runs: list[str], tensors: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    lacking = "model.layers.0.self_attn.q_proj.weight"
    folder = write(tmp_path / "fewer", {key: t for key, t in tensors["base"].items() if key != lacking})
    outcome = overlap(runs[:2], weights=folder)
    table = outcome.tables["zero_modes_overlap"]
    unknown = table[table["over_chance_in_exponents"].isna()]
    assert unknown["tensor"].dropna().tolist() == [lacking]
    assert set(sums(unknown)["component"]) == {"q", "projections", "all"}
    assert any("1 tensors are not among the weights" in line and lacking in line for line in outcome.warnings)


def test_other_bases_and_casts_are_said(runs: list[str], tensors: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    wide = {name: tensor.float() * (1 + 1e-4) for name, tensor in tensors["base"].items()}
    base = write(tmp_path / "wide", wide)
    tuned = write(tmp_path / "tuned", {name: tensor * (1 + 1e-5) for name, tensor in wide.items()})
    for name in ("cast", "cast-too"):
        diff(base, tuned, out=tmp_path / name, options=Options(cast="bf16"))
    outcome = overlap([runs[0], tmp_path / "cast"])
    assert any("different bases (one; cast)" in line for line in outcome.warnings)
    assert any("some masks were made of rounded weights" in line for line in outcome.warnings)
    alike = overlap([tmp_path / "cast", tmp_path / "cast-too"], out=tmp_path / "run")
    assert not any("base" in line or "rounded" in line for line in alike.warnings)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["arguments"]["cast"] == "bf16"


def test_exponents_are_those_of_weights_rounded_as_the_masks_were(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    weight = torch.tensor([[1.9999, 1.9999, 2.0, 2.0]])
    base = write(tmp_path / "base", {name: weight})
    kept = torch.tensor([[1.0, 1.0, 2.0, 2.0]])  # factors: the first two stay
    for run, factor in (("a", 3.0), ("b", 5.0)):
        write(tmp_path / f"tuned-{run}", {name: torch.where(kept == 1, weight, weight * factor)})
        diff(base, str(tmp_path / f"tuned-{run}"), out=tmp_path / run, options=Options(cast="bf16"))
        diff(base, str(tmp_path / f"tuned-{run}"), out=tmp_path / f"{run}-stored")
    cast = overlap([tmp_path / "a", tmp_path / "b"]).tables["zero_modes_overlap"].iloc[0]
    stored = overlap([tmp_path / "a-stored", tmp_path / "b-stored"]).tables["zero_modes_overlap"].iloc[0]
    assert cast["n_both"] == stored["n_both"] == 2
    assert (cast["n_both_by_chance_in_exponents"], stored["n_both_by_chance_in_exponents"]) == (1.0, 2.0)


def test_names(runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("x", "y"):
        shutil.copytree(runs[0], tmp_path / folder / "one")
    found = overlap([tmp_path / "x" / "one", tmp_path / "y" / "one", f"named={runs[1]}"]).tables["zero_modes_overlap"]
    assert list(dict.fromkeys([*found["a"], *found["b"]])) == ["x/one", "y/one", "named"]
    shutil.copytree(runs[2], tmp_path / "a=b")
    monkeypatch.chdir(tmp_path)
    found = overlap(["a=b", "one", "c=./two"]).tables["zero_modes_overlap"]
    assert list(dict.fromkeys([*found["a"], *found["b"]])) == ["a=b", "one", "c"]
    with pytest.raises(InputError, match="two are called 'one'"):
        overlap(["one", "one=two"])


def test_bad_input(runs: list[str], tmp_path: Path) -> None:
    for masks in ([], runs[:1]):
        with pytest.raises(InputError, match=f"two or more masks; {len(masks)} given"):
            overlap(masks)
    for twice in (runs[0], f"again={runs[0]}", f"{runs[0]}/arrays/zero_modes.safetensors"):
        with pytest.raises(InputError, match="the same file of masks"):
            overlap([runs[0], twice])
    (tmp_path / "link").symlink_to(runs[0])
    with pytest.raises(InputError, match="the same file of masks"):
        overlap([runs[0], tmp_path / "link"])
    with pytest.raises(InputError, match="there are no masks at"):
        overlap([runs[0], tmp_path])
    folders = [write(tmp_path / f"far-{n}", {"h.0.mlp.c_fc.weight": torch.full((3, 3), float(n))}) for n in (1, 2)]
    diff(*folders, out=tmp_path / "far", look=["none"])
    with pytest.raises(InputError, match="no tensor of the same name and shape"):
        overlap([runs[0], tmp_path / "far"], out=tmp_path / "run")
    with pytest.raises(InputError, match="not of one architecture"):
        overlap(runs, weights=folders[0], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_zero_modes_at_all(runs: list[str], tensors: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    moved = write(tmp_path / "moved", {name: -tensor for name, tensor in tensors["base"].items()})
    diff(str(tmp_path / "models" / "base"), moved, out=tmp_path / "none")
    outcome = overlap([runs[0], tmp_path / "none"])
    table = outcome.tables["zero_modes_overlap"]
    assert (table["n_b"] == 0).all()
    assert table[["share_of_b", "over_chance", "over_chance_in_exponents"]].isna().all(axis=None)
    assert (table["jaccard"].dropna() == 0).all()
    assert not np.isinf(table.select_dtypes("number").to_numpy(dtype=float, na_value=np.nan)).any()
    assert any(
        line.startswith(f"none has no zero modes in {len(tensors['base'])} tensors") for line in outcome.warnings
    )
