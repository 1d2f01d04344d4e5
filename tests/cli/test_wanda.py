"""`lesion zero-modes wanda` from the shell."""

import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lesion.cli import app
from lesion.cli.zero_modes.wanda import _stages

TEXT = ["--data", "text.jsonl", "--tokens", "200", "--context", "32"]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["zero-modes", "wanda", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def masks(tiny_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "base")
    shutil.copytree(tiny_folder, "tuned")
    tensors = load_file("base/model.safetensors")
    for value in tensors.values():
        value.flatten()[::4] += 0.5
    save_file(tensors, "tuned/model.safetensors", metadata={"format": "pt"})
    result = CliRunner().invoke(
        app, ["zero-modes", "diff", "base", "tuned", "--look", "none", "--out", "masks", "--quiet"]
    )
    assert result.exit_code == 0


def test_a_table_of_tenths(masks: None) -> None:
    code, said, noted = run("tuned", "masks", *TEXT, "--out", "run")
    assert code == 0, noted
    rows = pd.read_parquet("run/tables/zero_modes_wanda.parquet")
    found = rows[rows["component"] == "projections"].set_index(["by", "decile"])
    lines = [line.split() for line in said.splitlines()]
    for decile in range(1, 11):
        line = next(line for line in lines if line and line[0] == str(decile))
        for place, by in enumerate(("wanda", "magnitude", "activation")):
            cells = found.loc[(by, decile)]
            assert line[1 + 2 * place : 3 + 2 * place] == [f"{100 * cells.fraction:.2f}", f"({cells.over_mean:.2f})"]
    assert "(75.0" in said  # three weights of four were left alone
    assert said.endswith("tables and norms: run\nreport: run/report.html\n")
    assert "zero modes" in Path("run/report.html").read_text()
    assert "ranking weights" in noted


def test_json_and_the_same_command_again(masks: None) -> None:
    code, said, noted = run("tuned", "masks", *TEXT, "--json")
    assert (code, noted) == (0, "")
    found = json.loads(said)
    assert found["run"].startswith("runs/zero-modes-wanda-tuned-")
    assert (found["status"], found["warnings"]) == ("complete", [])
    assert {name: Path(path).is_file() for name, path in found["tables"].items()} == {
        "zero_modes_wanda": True,
        "zero_modes_wanda_neurons": True,
    }
    code, said, noted = run("tuned", "masks", *TEXT)
    assert (code, "complete already" in noted, found["run"] in said) == (0, True, True)
    code, said, noted = run("tuned", "masks", *TEXT, "--seed", 1, "--quiet")
    assert (code, said, noted) == (0, "", "")
    assert len(list(Path("runs").iterdir())) == 2


def test_a_terminal_sees_tokens_and_then_weights(masks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    shown: list[str] = []
    console = Console(force_terminal=True, file=io.StringIO())
    status = console.status

    def watched(line: str) -> object:
        shown.append(line)
        return status(line)

    monkeypatch.setattr(console, "status", watched)
    with _stages(console) as (progress, on_weights):
        progress(10, 20)
        progress(20, 20)
        on_weights(5, 30)
        on_weights(30, 30)
    assert shown == ["ranking weights: 5 of 30"]


@pytest.mark.parametrize(("arguments", "says"), [
    (["nowhere/at/all", "masks"], "nowhere"),
    (["tuned", "nothing"], "no masks"),
    (["tuned", "masks", "--batch-size", "many"], "--batch-size"),
    (["tuned", "masks", "--max-memory", "lots"], "--max-memory"),
    (["tuned", "masks", "--executor", "moon"], "--executor"),
    (["tuned", "masks", "--context", "4000"], "--context 4000 is longer than the 64 positions"),
    (["tuned", "masks", "--data", "nothing.txt"], "nothing.txt"),
    (["tuned", "masks", "--resume", "--out", "x"], "no run in x"),
    (["tuned", "masks", "--resume", "--overwrite"], "exclude each other"),
    (["tuned", "masks", "--out", "base"], "not a lesion run folder"),
])  # fmt: skip
def test_bad_input(masks: None, arguments: list[str], says: str) -> None:
    code, said, noted = run(*arguments)
    assert (code, said) == (2, "")
    assert says in noted
    assert len(noted.strip().splitlines()) == 1
    assert not Path("x").exists()


def test_a_base_model_is_said_to_be_another(masks: None) -> None:
    code, _, noted = run("base", "masks", *TEXT, "--out", "run")
    assert code == 0
    assert "warning: base is not the tuned checkpoint" in noted.replace("\n", " ")
