"""`lesion zero-modes overlap` and `dynamics` from the shell."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import lesion
from lesion.cli import app
from tests.checkpoints.pairs import random_tensors, tuned_from, write


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["zero-modes", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(autouse=True)
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base and three checkpoints, of the folders' names in the working directory."""
    monkeypatch.chdir(tmp_path)
    base = random_tensors(0)
    write(Path("base"), base)
    for seed, name in enumerate(("one", "two", "three"), 1):
        write(Path(name), tuned_from(base, seed, share=0.6))


def pairs() -> None:
    for name in ("one", "two", "three"):
        assert run("diff", "base", name, "--out", f"run-{name}", "--quiet")[0] == 0


def test_overlap() -> None:
    pairs()
    code, said, warned = run("overlap", "first=run-one", "run-two", "run-three", "--out", "shared")
    assert code == 0
    assert warned == ""
    assert "A = first, B = run-two" in said
    assert "A = run-two, B = run-three" in said
    assert "in all 3 masks, projections" in said
    assert "report: shared/report.html" in said
    assert Path("shared/report.html").is_file()
    table = pd.read_parquet("shared/tables/zero_modes_overlap.parquet")
    row = table[(table["component"] == "projections") & (table["b"] == "run-two")].iloc[0]
    line = next(line for line in said.splitlines() if line.startswith("projections"))
    assert f"{row['share_of_a']:.2%}" in line
    assert f"{row['jaccard']:.4f}" in line
    assert f"{row['over_chance']:.3f} ± {row['n_both_by_chance_sd'] / row['n_both_by_chance']:.3f}" in line
    sd = row["n_both_by_chance_in_exponents_sd"] / row["n_both_by_chance_in_exponents"]
    assert f"{row['over_chance_in_exponents']:.3f} ± {sd:.3f}" in line
    code, _, warned = run("overlap", "first=run-one", "run-two", "run-three", "--out", "shared")
    assert code == 0
    assert "This run was complete already." in warned


def test_overlap_without_weights() -> None:
    pairs()
    Path("base").rename("elsewhere")
    code, said, warned = run("overlap", "run-one", "run-two")
    assert code == 0
    assert "pass --weights" in warned.replace("\n", " ")
    assert "nan" not in said
    code, said, warned = run("overlap", "run-one", "run-two", "--weights", "elsewhere", "--json")
    assert code == 0
    found = json.loads(said)
    assert warned == ""
    assert found["warnings"] == []
    assert Path(found["run"]).parent == Path("runs")
    table = pd.read_parquet(found["tables"]["zero_modes_overlap"])
    assert table["over_chance_in_exponents"].notna().any()


def test_dynamics_and_an_edited_checkpoint() -> None:
    code, said, warned = run("dynamics", "base", "one", "two", "three", "--out", "run")
    assert code == 0
    assert warned == ""
    assert "3 checkpoints after the start" in said.replace("\n", " ")
    table = pd.read_parquet("run/tables/zero_modes_dynamics.parquet")
    row = table[(table["component"] == "projections") & (table["checkpoint"] == 3)].iloc[0]
    line = next(line for line in said.splitlines() if line.startswith("three"))
    assert [f"{100 * row[name]:.2f}" for name in ("fraction", "fraction_never_changed")] == line.split()[1:3]
    assert f"{100 * row['share_came_back']:.2f}" == line.split()[-1]
    code, _, _ = run("apply", "three", "run/arrays/never_changed.safetensors", "--out", "edited")
    assert code == 0
    name = "model.layers.1.mlp.gate_proj.weight"
    never = lesion.Masks.load("run/arrays/never_changed.safetensors")[name]
    before, after = load_file("three/model.safetensors")[name], load_file("edited/model.safetensors")[name]
    assert torch.equal(after, torch.where(never, 0.0, before))
    assert not torch.equal(after, before)
    assert "complete already" in run("dynamics", "base", "one", "two", "three", "--out", "run")[2]


def test_dynamics_in_json_and_quiet() -> None:
    code, said, _ = run("dynamics", "base", "one", "two", "--cast", "bf16", "--json")
    assert code == 0
    found = json.loads(said)
    assert found["n_checkpoints"] == 2
    assert Path(found["report"]).is_file()
    assert found["note"].startswith("2 checkpoints")
    assert set(found["tables"]) == {"zero_modes_dynamics", "zero_modes_dynamics_uncompared"}
    assert all(Path(path).is_file() for path in found["tables"].values())
    assert run("dynamics", "base", "one", "two", "--out", "quiet", "--quiet") == (0, "", "")


@pytest.mark.parametrize(("arguments", "says"), [
    (["overlap", "run-one"], "two or more masks; 1 given"),
    (["overlap", "run-one", "x=run-one"], "the same file of masks"),
    (["overlap", "run-one", "nowhere"], "no masks at nowhere"),
    (["overlap", "run-one", "run-two", "--weights", "nowhere/at/all"], "nowhere"),
    (["overlap", "a=run-one", "a=run-two"], "two are called 'a'"),
    (["dynamics", "base", "one"], "at least two later checkpoints"),
    (["dynamics", "base", "one", "one"], "same files"),
    (["dynamics", "base", "one", "nowhere/at/all"], "nowhere"),
    (["dynamics", "base", "one", "two", "--out", "base"], "base"),
])  # fmt: skip
def test_bad_input(arguments: list[str], says: str) -> None:
    pairs()
    code, said, complained = run(*arguments)
    assert code == 2
    assert said == ""
    assert says in complained
    assert len(complained.strip().splitlines()) == 1
    assert not Path("runs").exists()
