"""`lesion check` and `lesion models`: what is printed, and exit codes."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from lesion.anatomy import known_families, zoo_models
from lesion.cli import app
from lesion.cli.console import TABLE_WIDTH
from lesion.engine.checks import CHECKS
from lesion.interventions import Intervention


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """An intervention that runs another one than it says."""
    original = Intervention.edits_of
    monkeypatch.setattr(Intervention, "edits_of", lambda self, layer: original(self, layer)[1:])


def test_a_table_above_which_the_model_is_described(tiny_folder: Path, text_file: Path) -> None:
    result = run("check", tiny_folder, "--data", text_file, "--context", 32)
    assert (result.exit_code, result.stderr) == (0, "")
    described, sizes, run_as, empty, heading, *rows = result.stdout.splitlines()
    assert described == f"{tiny_folder}: LlamaForCausalLM (family llama, causal)"
    assert sizes.startswith("3 layers, d_model 32, 4 heads of 16 (2 for keys and values), d_mlp 80, 64 positions")
    assert run_as == "float32 on cpu, sdpa attention, pre-norm, attention and MLP in turn, weights not packed"
    assert (empty, heading.split()) == ("", ["check", "verdict", "found", "limit", "detail"])
    names = [*CHECKS, "weights unchanged"]
    assert [row[: len(name)] for row, name in zip(rows, names, strict=True)] == names
    assert all(" ok " in row for row in rows)
    assert not any("WRONG" in row or "…" in row for row in rows)


def test_no_cell_is_cut_off_on_a_narrow_terminal(
    tiny_folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run("check", tiny_folder, "--data", text_file).stdout
    monkeypatch.setenv("COLUMNS", "40")
    assert run("check", tiny_folder, "--data", text_file).stdout == plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    folded = run("check", tiny_folder, "--data", text_file).stdout
    assert "…" not in folded
    assert max(map(len, folded.splitlines()[4:])) <= TABLE_WIDTH < max(map(len, plain.splitlines()[4:]))
    assert "without them logits move by" in " ".join(folded.split())


@pytest.mark.usefixtures("broken")
def test_a_check_that_is_wrong(tiny_folder: Path, text_file: Path) -> None:
    """Exit code 1 and one line, also where nothing else is printed; the table names the check."""
    result = run("check", tiny_folder, "--data", text_file)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: 1 of 25 checks WRONG: lane = context manager")
    wrong = [line for line in result.stdout.splitlines() if "WRONG" in line]
    assert [line.split("  ")[0] for line in wrong] == ["lane = context manager"]
    quiet = run("check", tiny_folder, "--data", text_file, "--quiet")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (1, "", result.stderr)
    summary = json.loads(run("check", tiny_folder, "--data", text_file, "--json").stdout)
    assert summary["verdict"] == "WRONG"


def test_json(tiny_folder: Path, text_file: Path) -> None:
    result = run("check", tiny_folder, "--data", text_file, "--json", "--dtype", "bfloat16")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["verdict"] == "ok"
    assert (found["model"]["n_layers"], found["model"]["dtype"]) == (3, "bfloat16")
    rows = {row["check"]: row for row in found["findings"]}
    assert list(rows) == [*CHECKS, "weights unchanged"]
    assert (rows["site z"]["found"], rows["site z"]["bound"], rows["site z"]["limit"]) == (3.0, "=", 3.0)


def test_quiet_says_nothing(tiny_folder: Path, text_file: Path) -> None:
    result = run("check", tiny_folder, "--data", text_file, "--quiet")
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.parametrize(("arguments", "says"), [
    (["--data", "nowhere.txt"], "nowhere.txt"),
    (["--context", "65"], "longer than the 64 positions"),
    (["--device", "abacus"], "not a device"),
    (["--dtype", "int4"], "not known"),
])  # fmt: skip
def test_bad_arguments(tiny_folder: Path, text_file: Path, arguments: list[str], says: str) -> None:
    given = [] if "--data" in arguments else ["--data", str(text_file)]
    result = run("check", tiny_folder, *given, *arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert says in result.stderr
    assert run("check", "./nowhere").exit_code == 2


def test_logits_that_are_not_finite(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 1e38
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    result = run("check", folder, "--data", text_file)
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert "logits that are not finite" in result.stderr


def test_an_interrupt(tiny_folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lesion.engine.checks.whole.logits", interrupt)
    result = run("check", tiny_folder, "--data", text_file)
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_models() -> None:
    result = run("models")
    assert (result.exit_code, result.stderr) == (0, "")
    for name, family in known_families().items():
        assert any(line.split()[0] == name for line in result.stdout.splitlines() if line)
        assert family.architectures[0] in result.stdout
    assert "gemma3: it reads images beside text" in result.stdout
    assert "zoo:python-8l  LlamaForCausalLM, 1,968,256 parameters, 4.1 MB. A LLaMA that reads Python" in result.stdout
    assert "Neurons: mixtral has no site mlp_post: its MLP is spread over experts" in result.stdout
    assert "…" not in result.stdout


def test_models_as_json() -> None:
    found = json.loads(run("models", "--json").stdout)
    assert {entry["model_type"] for entry in found["families"]} == set(known_families())
    assert [entry["name"] for entry in found["zoo"]] == [f"zoo:{name}" for name in zoo_models()]
    assert {"zoo:python-8l", "zoo:bytes-4l"} <= {entry["name"] for entry in found["zoo"]}
    assert "gemma3" in found["refused"]


def test_help_says_what_the_exit_codes_mean() -> None:
    said = " ".join(run("check", "--help").stdout.split())
    assert "Exit code 0: every check is ok or not applicable; 1: one or more are WRONG; 2: bad input" in said
    assert {"check", "models"} <= set(run("--help").stdout.split())
