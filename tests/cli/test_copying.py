"""`lesion copying` from the shell."""

import json
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import lesion
from lesion.cli import app
from tests import induction
from tests.support import tiny_model

FEW = ["--tasks", "tokens", "--examples", "12"]
PLAIN = ["--heads", "none"]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["copying", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model made by hand, and masks in which all its weights are zero modes but the MLPs'."""
    folder = tmp_path_factory.mktemp("models")
    base, tuned = induction.save(folder / "base"), induction.save(folder / "tuned")
    tensors = load_file(tuned / "model.safetensors")
    for name, tensor in tensors.items():
        if ".mlp." in name:
            tensor += 1e-3
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    lesion.zero_modes.diff(str(base), str(tuned), out=folder / "masks", look=["none"])
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def line_of(said: str, start: str) -> list[str]:
    return next(line for line in said.splitlines() if line.startswith(start))[len(start) :].split()


def test_tables_on_the_terminal(models: Path) -> None:
    code, said, noted = run(models / "tuned", *FEW, "--condition", "drop-attn:1", "--out", "run")
    assert (code, "error" in noted) == (0, False)
    rows = pd.read_parquet("run/tables/copying.parquet").set_index("condition")
    assert line_of(said, "tokens, none")[0] == f"{100 * rows.loc['none', 'accuracy']:.1f}" == "100.0"
    assert line_of(said, "tokens, drop-attn:1")[0] == "0.0"
    change = rows.loc["drop-attn:1"]
    low, high = (f"{100 * change[f'accuracy_change_{end}']:.1f}" for end in ("low", "high"))
    assert line_of(said, "tokens, drop-attn:1")[4:8] == ["-100.0", f"({low}", "to", f"{high})"]
    assert "induction heads (1 of 4 heads)" in said
    assert line_of(said, "1:1")[0] == "1.000"
    assert said.endswith("tables and maps: run\nreport: run/report.html\n")
    assert "Copying and induction heads" in Path("run/report.html").read_text()


def test_json_and_the_same_command_again(models: Path) -> None:
    code, said, noted = run(models / "tuned", *FEW, *PLAIN, "--json")
    assert (code, noted) == (0, "")
    found = json.loads(said)
    assert found["run"].startswith("runs/copying-tuned-")
    assert (found["status"], found["warnings"]) == ("complete", [])
    assert set(found["tables"]) == {"copying", "copying_depths"}
    assert all(Path(path).is_file() for path in found["tables"].values())
    code, said, noted = run(models / "tuned", *FEW, *PLAIN)
    assert (code, "complete already" in noted, found["run"] in said) == (0, True, True)
    code, said, noted = run(models / "tuned", *FEW, *PLAIN, "--seed", 1, "--quiet")
    assert (code, said, noted) == (0, "", "")
    assert len(list(Path("runs").iterdir())) == 2


def test_masks_make_conditions(models: Path) -> None:
    sets = [
        "--masks",
        models / "masks",
        "--kinds",
        "zero_modes,random",
        "--scopes",
        "layers,head:1:1",
        "--seeds",
        "0,5",
    ]
    code, said, _ = run(models / "tuned", *FEW, *sets, "--out", "run", "--heads", "1:1,0:0", "--maps", "--generate", 2)
    assert code == 0
    rows = pd.read_parquet("run/tables/copying.parquet")
    scopes = ("layer:0", "layer:1", "head:1:1")
    names = [f"{name}" for s in scopes for name in (f"zero_modes@{s}", f"random@{s}#0", f"random@{s}#5")]
    assert rows["condition"].tolist() == ["none", *names]
    assert rows.set_index("condition").loc["zero_modes@head:1:1", "accuracy"] == 0.0
    assert "zero_modes@layer:0" in said
    attention = pd.read_parquet("run/tables/copying_attention.parquet")
    assert set(zip(attention["layer"], attention["head"], strict=True)) == {(1, 1), (0, 0)}
    assert pd.read_parquet("run/tables/copying_generation.parquet")["step"].max() == 2
    manifest = json.loads(Path("run/run.json").read_text())
    assert manifest["followed"] == ["1:1", "0:0"]
    assert set(manifest["identity"]) >= {"masks", "model", "data"}


def test_options_reach_the_study(models: Path) -> None:
    options = ["--cut", "end", "--bos", "never", "--edit", "drop-attn:0", "--heads", "none", "--batch-size", 5]
    code, said, _ = run(models / "tuned", *FEW, *options, "--out", "run")
    assert code == 0
    assert "induction" not in said
    arguments = json.loads(Path("run/run.json").read_text())["arguments"]
    chosen = {name: arguments[name] for name in ("cut", "bos", "edits", "heads", "batch_size", "tasks", "examples")}
    assert chosen == {
        **{"cut": "end", "bos": "never", "edits": ["drop-attn:0"], "heads": "none", "batch_size": 5},
        **{"tasks": ["tokens"], "examples": 12},
    }
    assert pd.read_parquet("run/tables/copying.parquet")["accuracy"].iloc[0] < 0.5
    code, _, _ = run(models / "tuned", *FEW, "--through-text", "--threshold", 0.9, "--out", "text", "--quiet")
    assert code == 0
    arguments = json.loads(Path("text/run.json").read_text())["arguments"]
    assert (arguments["through_text"], arguments["threshold"]) == (True, 0.9)


def test_resume_and_overwrite(models: Path) -> None:
    few = [*FEW, *PLAIN, "--out", "run"]
    code, _, noted = run(models / "tuned", *few, "--resume")
    assert (code, "there is no run in run" in noted) == (2, True)
    assert run(models / "tuned", *few, "--quiet")[0] == 0
    assert run(models / "tuned", *few, "--quiet", "--resume")[0] == 0
    code, _, noted = run(models / "tuned", *few, "--cut", "end")
    assert (code, "belongs to another run" in noted) == (2, True)
    assert run(models / "tuned", *few, "--cut", "end", "--overwrite", "--quiet")[0] == 0


@pytest.mark.parametrize(("arguments", "says"), [
    (["--tasks", "verbs"], "--tasks 'verbs'"),
    (["--tasks", "integers"], "has no tokens for integers such as"),
    (["--heads", "first"], "--heads 'first'"),
    (["--heads", "1:7"], "--heads 1:7"),
    (["--threshold", "2"], "--threshold 2"),
    (["--scopes", "layers"], "--scopes says which weights of masks are set; give the masks, with --masks"),
    (["--masks", "nowhere"], "there are no masks at"),
    (["--masks", "nowhere", "--seeds", "a"], "--seeds"),
    (["--masks", "nowhere", "--kinds", "zeros"], "--kinds 'zeros'"),
    (["--condition", "drop:7"], "the model has blocks 0 to 1, not 7"),
    (["--edit", "fall:7"], "'fall:7' is not an edit"),
    (["--generate", "-1"], "--generate -1"),
    (["--examples", "1"], "--examples 1"),
    (["--batch-size", "many"], "--batch-size"),
    (["--max-memory", "lots"], "--max-memory"),
    (["--resume", "--overwrite"], "exclude each other"),
])  # fmt: skip
def test_errors_are_one_line(models: Path, arguments: list[str], says: str) -> None:
    given = arguments if "--tasks" in arguments else [*FEW[:2], *arguments]
    code, said, noted = run(models / "tuned", *given)
    assert (code, said) == (2, "")
    assert noted.startswith("error: ")
    assert says in noted
    assert noted.count("\n") == 1
    assert not Path("runs").exists()


def test_a_masked_model_is_refused(tmp_path: Path, models: Path) -> None:
    tiny_model("bert", vocab_size=40).save_pretrained("bert")  # type: ignore[operator]
    induction.tokenizer().save_pretrained("bert")
    code, _, noted = run("bert", *FEW)
    assert (code, "predicts masked tokens; copying is measured on models" in noted) == (2, True)
