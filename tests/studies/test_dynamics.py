"""`zero-modes dynamics` as a run: tables and sums, masks that every command takes, and what is said."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

import lesion
from lesion.checkpoints.compare import Options
from lesion.checkpoints.components import PROJECTIONS, place
from lesion.errors import InputError, ModelError, RunFolderError
from lesion.studies.zero_modes import diff, dynamics, overlap
from tests.checkpoints.pairs import as_bits, random_tensors, tuned_from, write

COLUMNS = [
    *("checkpoint", "name", "tensor", "layer", "component", "n_weights", "n_zero_modes", "fraction"),
    *("n_never_changed", "fraction_never_changed", "n_came_back", "fraction_came_back", "share_came_back"),
]


@pytest.fixture
def tensors() -> list[dict[str, Tensor]]:
    start = random_tensors(0, n_layers=3)
    return [start, *(tuned_from(start, seed, share=0.6) for seed in (1, 2, 3))]


@pytest.fixture
def folders(tensors: list[dict[str, Tensor]], tmp_path: Path) -> list[str]:
    return [write(tmp_path / "series" / f"checkpoint-{10 * step}", own) for step, own in enumerate(tensors)]


def test_rows_and_sums(folders: list[str], tensors: list[dict[str, Tensor]]) -> None:
    outcome = dynamics(folders)
    table = outcome.tables["zero_modes_dynamics"]
    assert list(table.columns) == COLUMNS
    assert list(dict.fromkeys(zip(table["checkpoint"], table["name"], strict=True))) == [
        (1, "checkpoint-10"),
        (2, "checkpoint-20"),
        (3, "checkpoint-30"),
    ]
    keys = list(tensors[0])
    groups: dict[tuple[int | None, str], list[str]] = {}
    for key in keys:
        where = place(key)
        groups.setdefault((None, where.component), []).append(key)
        if where.layer is not None:
            groups.setdefault((where.layer, where.component), []).append(key)
    groups[None, "projections"] = [key for key in keys if place(key).is_projection]
    same = [{key: as_bits(own[key]) == as_bits(tensors[0][key]) for key in keys} for own in tensors]
    for step in (1, 2, 3):
        rows = table[table["checkpoint"] == step]
        assert sorted(rows["tensor"].dropna()) == sorted(keys)
        found = [(row, [row["tensor"]]) for row in rows[rows["tensor"].notna()].to_dict("records")]
        sums = rows[rows["tensor"].isna()].to_dict("records")
        places = [(None if pd.isna(row["layer"]) else row["layer"], row["component"]) for row in sums]
        assert len(places) == len(set(places))
        assert set(places) == set(groups)
        found += [(row, groups[spot]) for row, spot in zip(sums, places, strict=True)]
        for row, members in found:
            n_weights = sum(tensors[0][key].numel() for key in members)
            n_zero_modes = sum(int(same[step][key].sum()) for key in members)
            never = [torch.stack([one[key] for one in same[1 : step + 1]]).all(0) for key in members]
            n_never = sum(int(mask.sum()) for mask in never)
            assert (row["n_weights"], row["n_zero_modes"]) == (n_weights, n_zero_modes)
            assert (row["n_never_changed"], row["n_came_back"]) == (n_never, n_zero_modes - n_never)
            assert row["fraction"] == n_zero_modes / n_weights
            assert row["fraction_never_changed"] == n_never / n_weights
            assert row["fraction_came_back"] == (n_zero_modes - n_never) / n_weights
            assert row["share_came_back"] == (n_zero_modes - n_never) / n_zero_modes
    assert (table[table["checkpoint"] == 1]["n_came_back"] == 0).all()
    assert (table[table["checkpoint"] > 1]["n_came_back"] > 0).any()
    assert outcome.warnings == []
    assert len(outcome.tables["zero_modes_dynamics_uncompared"]) == 0


def test_the_last_row_is_that_of_the_pair(folders: list[str], tmp_path: Path) -> None:
    outcome = dynamics(folders, out=tmp_path / "series-run")
    pair = diff(folders[0], folders[-1], out=tmp_path / "pair")
    table = outcome.tables["zero_modes_dynamics"]
    last = table[(table["checkpoint"] == 3) & table["tensor"].notna()].set_index("tensor")
    expected = pair.tables["zero_modes"].set_index("tensor")
    for column in ("n_weights", "n_zero_modes", "fraction", "component"):
        assert last[column].to_dict() == expected[column].to_dict()
    masks = [tmp_path / run / "arrays" / "zero_modes.safetensors" for run in ("series-run", "pair")]
    assert masks[0].read_bytes() == masks[1].read_bytes()
    never = lesion.Masks.load(tmp_path / "series-run" / "arrays" / "never_changed.safetensors")
    zero_modes = lesion.Masks.load(tmp_path / "series-run")
    n_never = {name: never.count(name) for name in never}
    assert n_never == last["n_never_changed"].to_dict()
    assert all((never - zero_modes).count(name) == 0 for name in never)
    assert any((zero_modes - never).count(name) for name in never)


def test_other_commands_take_the_run(folders: list[str], tmp_path: Path) -> None:
    dynamics(folders, out=tmp_path / "run")
    diff(folders[0], folders[1], out=tmp_path / "first")
    found = overlap([tmp_path / "run", tmp_path / "first", tmp_path / "run" / "arrays" / "never_changed.safetensors"])
    total = found.tables["zero_modes_overlap"].query("component == 'all'").set_index(["a", "b"])
    assert total.loc[("run", "never_changed"), "share_of_b"] == 1.0
    assert total.loc[("first", "never_changed"), "share_of_b"] == 1.0
    assert total.loc[("run", "first"), "share_of_b"] < 1.0
    assert total["over_chance_in_exponents"].notna().all()


def test_the_run_is_recorded_and_not_repeated(folders: list[str], tmp_path: Path) -> None:
    first = dynamics(folders, out=tmp_path / "out", name_folder=True)
    again = dynamics(folders, out=tmp_path / "out", name_folder=True)
    assert again.resumed_complete
    assert not first.resumed_complete
    for name, table in first.tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table, check_dtype=False)
    assert first.path is not None
    manifest = json.loads((first.path / "run.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["study"] == "zero-modes dynamics"
    assert manifest["n_checkpoints"] == 3
    assert manifest["note"].startswith("3 checkpoints after the start")
    assert [one["called"] for one in manifest["checkpoints"]] == [Path(folder).name for folder in folders]
    assert (manifest["base"]["name"], manifest["tuned"]["name"]) == (folders[0], folders[3])
    assert set(manifest["arrays"]) == {"zero_modes", "never_changed"}
    with pytest.raises(RunFolderError, match="another run"):
        dynamics(folders[:3], out=first.path)
    with pytest.raises(RunFolderError, match="another run"):
        dynamics([folders[0], folders[2], folders[1], folders[3]], out=first.path)
    with pytest.raises(RunFolderError, match="another run"):
        dynamics(folders, cast="bf16", out=first.path)
    (first.path / "arrays" / "never_changed.safetensors").write_bytes(b"edited")
    assert not dynamics(folders, out=first.path).resumed_complete
    lesion.Masks.load(first.path / "arrays" / "never_changed.safetensors")


def test_what_a_reader_must_know_is_said(tensors: list[dict[str, Tensor]], tmp_path: Path) -> None:
    wide = {name.removeprefix("model."): tensor.float() for name, tensor in tensors[1].items()}
    wide.pop("lm_head.weight")
    series = [tensors[0], wide, tensors[2]]
    folders = [write(tmp_path / name, own) for name, own in zip("abc", series, strict=True)]
    outcome = dynamics(folders)
    assert outcome.warnings == [
        "a has tensors stored as bfloat16, b as float32: they were compared as float32",
        "names in b differ from the last checkpoint's by 'model.', which was left out",
        "1 tensors are not in all checkpoints with one shape; the table zero_modes_dynamics_uncompared names them",
    ]
    left = outcome.tables["zero_modes_dynamics_uncompared"].to_dict("records")
    assert [(row["checkpoint"], row["name"], row["tensor"]) for row in left] == [(1, "b", "lm_head.weight")]
    assert "lm_head.weight" not in set(outcome.tables["zero_modes_dynamics"]["tensor"])
    assert "rounded to bf16" in dynamics(folders, cast="bf16").warnings[1]


def test_rounding_makes_zero_modes_here_as_in_a_pair(tensors: list[dict[str, Tensor]], tmp_path: Path) -> None:
    series = [{name: tensor.float() * (1 + step * 1e-3) for name, tensor in tensors[0].items()} for step in range(3)]
    folders = [write(tmp_path / f"step-{step}", own) for step, own in enumerate(series)]
    pair = diff(folders[0], folders[2], options=Options(cast="bf16")).tables["zero_modes_summary"].iloc[-1]
    for cast, n_zero_modes in (("bf16", pair["n_zero_modes"]), (None, 0)):
        outcome = dynamics(folders, cast=cast)  # type: ignore[arg-type]
        table = outcome.tables["zero_modes_dynamics"]
        assert table.iloc[-1]["component"] == "projections"
        assert table.iloc[-1]["n_zero_modes"] == n_zero_modes
    assert pair["n_zero_modes"] > 0
    assert table["share_came_back"].isna().all()
    n_tensors = len(series[0])
    assert outcome.warnings == [
        f"{n_tensors} tensors have no zero modes at a checkpoint: their share_came_back is NaN there"
    ]


def test_bad_series(folders: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two later checkpoints; 2 given"):
        dynamics(folders[:2])
    with pytest.raises(InputError, match="are the same files"):
        dynamics([*folders, folders[1]], out=tmp_path / "run")
    shutil.copytree(folders[3], tmp_path / "final")
    with pytest.raises(InputError, match="hold the same bytes"):
        dynamics([*folders, str(tmp_path / "final")], out=tmp_path / "run")
    bert = write(tmp_path / "bert", random_tensors(9), config={"model_type": "bert"})
    with pytest.raises(InputError, match="only checkpoints of one architecture"):
        dynamics([*folders, bert], out=tmp_path / "run")
    with pytest.raises(ModelError, match="no model folder"):
        dynamics([*folders, str(tmp_path / "nowhere")])
    assert not (tmp_path / "run").exists()


def test_components_of_sums_come_in_their_usual_order(folders: list[str]) -> None:
    table = dynamics(folders).tables["zero_modes_dynamics"]
    sums = table[table["tensor"].isna() & table["layer"].isna() & (table["checkpoint"] == 2)]
    assert sums["component"].tolist() == [*"qkvo", "gate", "up", "down", "embed", "unembed", "norm", "projections"]
    inside = table[table["tensor"].isna() & (table["layer"] == 2) & (table["checkpoint"] == 2)]
    assert inside["component"].tolist() == [*"qkvo", "gate", "up", "down", "norm"]
    assert set(sums["component"]) - PROJECTIONS == {"embed", "unembed", "norm", "projections"}
