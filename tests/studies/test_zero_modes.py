"""`zero-modes diff` as a run: tables, masks and summary against torch on the loaded tensors."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import lesion
from lesion.checkpoints.compare import Options
from lesion.checkpoints.components import place
from lesion.errors import InputError, RunFolderError
from lesion.studies.zero_modes import diff


@pytest.fixture
def pair(tiny_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A tiny LLaMA stored in bfloat16, and one that was moved by less than some of its weights can show."""
    for name, change in (("base", 0.0), ("tuned", 1e-3)):
        shutil.copytree(tiny_folder, tmp_path / name)
        generator = torch.Generator().manual_seed(1)
        tensors = load_file(tiny_folder / "model.safetensors")
        moved = {
            key: (value.bfloat16().float() + change * torch.randn(value.shape, generator=generator)).bfloat16()
            for key, value in tensors.items()
        }
        save_file(moved, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "base", tmp_path / "tuned"


def same(pair: tuple[Path, Path]) -> dict[str, torch.Tensor]:
    base, tuned = (load_file(folder / "model.safetensors") for folder in pair)
    return {key: base[key].view(torch.int16) == tuned[key].view(torch.int16) for key in tuned}


def test_a_run(pair: tuple[Path, Path], tmp_path: Path) -> None:
    outcome = diff(str(pair[0]), str(pair[1]), out=tmp_path / "run", options=Options(ulps=50))
    expected = same(pair)
    rows = outcome.tables["zero_modes"].set_index("tensor")
    assert rows["n_zero_modes"].to_dict() == {key: int(mask.sum()) for key, mask in expected.items()}
    assert 0.05 < rows["n_zero_modes"].sum() / rows["n_weights"].sum() < 0.95
    masks = lesion.Masks.load(tmp_path / "run")
    assert set(masks.names) == set(expected)
    for key, mask in expected.items():
        assert torch.equal(masks[key], mask), key
    projections = [mask for key, mask in expected.items() if place(key).is_projection]
    total = outcome.tables["zero_modes_summary"].query("component == 'projections'").iloc[0]
    assert total["n_weights"] == sum(mask.numel() for mask in projections)
    assert total["n_zero_modes"] == sum(int(mask.sum()) for mask in projections)
    assert total["fraction"] == pytest.approx(total["n_zero_modes"] / total["n_weights"])
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete"
    assert outcome.warnings == []


def test_the_summary_adds_up(pair: tuple[Path, Path]) -> None:
    tables = diff(str(pair[0]), str(pair[1])).tables
    rows, summary = tables["zero_modes"], tables["zero_modes_summary"]
    places = summary[summary["component"] != "projections"]
    assert places["n_zero_modes"].sum() == rows["n_zero_modes"].sum()
    one = places[(places["layer"] == 1) & (places["component"] == "gate")].iloc[0]
    gate = rows[rows["tensor"] == "model.layers.1.mlp.gate_proj.weight"].iloc[0]
    assert (one["n_weights"], one["n_zero_modes"]) == (gate["n_weights"], gate["n_zero_modes"])


def test_components_are_their_matrices_taken_together(pair: tuple[Path, Path]) -> None:
    tables = diff(str(pair[0]), str(pair[1]), options=Options(ulps=10**6)).tables
    masks, weights = same(pair), load_file(pair[1] / "model.safetensors")
    names = [name for name in masks if name.endswith("gate_proj.weight")]
    assert len(names) > 1
    gate = tables["zero_modes_components"].set_index("component").loc["gate"]
    relative = torch.cat([(weights[n].double().abs() / weights[n].double().abs().mean())[masks[n]] for n in names])
    squares = [
        torch.cat([weights[n].double()[mask[n]].square() for n in names]).sum() for mask in (masks, weights_all(masks))
    ]
    assert gate["mean_abs_zero_modes_over_matrix"] == pytest.approx(float(relative.mean()), rel=1e-6)
    assert gate["share_of_squares"] == pytest.approx(float(squares[0] / squares[1]), rel=1e-6)
    assert gate["mean_abs_zero_modes_over_matrix"] > 1.1  # large weights are hard to move in bfloat16
    moved = tables["zero_modes_ulps"].query("component == 'gate'")
    assert moved["n_ulps"].sum() == gate["n_weights"] - gate["n_zero_modes"]
    ones = moved[moved["ulps_to"] == 1]["n_ulps"].sum()
    assert gate["share_one_ulp"] == pytest.approx(ones / moved["n_ulps"].sum())
    assert "zero_modes_ulps" not in diff(str(pair[0]), str(pair[1])).tables


def weights_all(masks: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.ones_like(mask) for name, mask in masks.items()}


def test_the_same_command_again_reads_what_is_there(pair: tuple[Path, Path], tmp_path: Path) -> None:
    first = diff(str(pair[0]), str(pair[1]), out=tmp_path, name_folder=True)
    again = diff(str(pair[0]), str(pair[1]), out=tmp_path, name_folder=True)
    assert again.resumed_complete
    assert again.path == first.path
    for name, table in first.tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table, check_dtype=False)
    assert first.path is not None
    (first.path / "arrays" / "zero_modes.safetensors").write_bytes(b"edited")
    assert not diff(str(pair[0]), str(pair[1]), out=tmp_path, name_folder=True).resumed_complete
    lesion.Masks.load(first.path)


def test_other_arguments_and_other_pairs_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    diff(str(pair[0]), str(pair[1]), out=tmp_path / "run")
    with pytest.raises(RunFolderError, match="another run"):
        diff(str(pair[0]), str(pair[1]), out=tmp_path / "run", options=Options(ulps=3))
    with pytest.raises(RunFolderError, match="another run"):
        diff(str(pair[1]), str(pair[0]), out=tmp_path / "run")
    with pytest.raises(InputError, match="same files"):
        diff(str(pair[0]), str(pair[0]), out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_of_nan_in_tuned_it_is_said_which_sizes_are_not_known(pair: tuple[Path, Path]) -> None:
    name = "model.layers.1.mlp.gate_proj.weight"
    assert not any("NaN" in line for line in diff(str(pair[0]), str(pair[1])).warnings)
    for side, is_said in ((0, False), (1, True)):  # sizes are those of TUNED
        path = pair[side] / "model.safetensors"
        tensors = load_file(path)
        tensors[name][0, 0] = float("nan")
        save_file(tensors, path, metadata={"format": "pt"})
        outcome = diff(str(pair[0]), str(pair[1]))
        assert "1 weights are NaN on one side or both" in outcome.warnings
        assert any(line.startswith(f"{name}: NaN in TUNED") for line in outcome.warnings) == is_said
        rows = outcome.tables["zero_modes"].set_index("tensor")
        assert rows["mean_abs"].isna().to_dict() == {each: is_said and each == name for each in rows.index}


def test_what_a_reader_must_know_is_said(pair: tuple[Path, Path]) -> None:
    path = pair[0] / "model.safetensors"
    tensors = {key: value.half() for key, value in load_file(path).items()}
    tensors.pop("model.norm.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    outcome = diff(str(pair[0]), str(pair[1]))
    assert any("float16" in line and "compared as float32" in line for line in outcome.warnings)
    assert any("1 tensor has no counterpart" in line for line in outcome.warnings)
    assert outcome.tables["zero_modes_uncompared"]["tensor"].tolist() == ["model.norm.weight"]
