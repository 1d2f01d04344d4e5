"""`lesion train` from the shell: what it prints, and what is left when it is killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from lesion.cli import app

PRETRAIN = ["pretrain", "--config", "llama-tiny", "--data", "text.txt", "--vocabulary", "280", "--context", "16"]
SHORT = ["--steps", "4", "--batch-size", "2", "--warmup", "1", "--held-out", "0.1", "--log-every", "2"]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["train", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(autouse=True)
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n".join(f"word{number % 37} and {number * number % 101}" for number in range(1500)))


def test_pretrain_and_finetune(tmp_path: Path) -> None:
    code, said, noted = run(*PRETRAIN, *SHORT, "--out", "base", "--store", "bf16, fp32")
    assert code == 0, noted
    held_out = pd.read_parquet("base/tables/training_evaluation.parquet").iloc[-1]
    lines = said.splitlines()
    assert lines[0] == (
        f"held out: {held_out.loss_nats:.4f} ± {held_out.loss_nats_sem:.4f} nats, {100 * held_out.top1:.2f} % right"
    )
    assert lines[1:] == ["models: base/models/step-000004", "tables and report: base/report.html"]
    assert "step 4 of 4, loss " in noted
    assert "tokens a second" in noted
    assert sorted(path.name for path in Path("base/models/step-000004").iterdir()) == ["bf16", "fp32"]
    assert Path("base/report.html").stat().st_size > 10_000
    start = "base/models/step-000004/bf16"
    code, said, noted = run("finetune", start, "--data", "text.txt", "--context", 16, *SHORT, "--count-every", 1)
    assert code == 0, noted
    folder = next(Path("runs").iterdir())
    assert folder.name.startswith("train-finetune-bf16-")
    assert f"models: {folder}/models/step-000004" in said
    assert {path.name for path in (folder / "figures").iterdir()} >= {"training_loss.svg", "training_zero_modes.png"}


def test_json_and_the_same_command_again() -> None:
    code, said, noted = run(*PRETRAIN, *SHORT, "--json")
    assert (code, noted) == (0, "")
    found = json.loads(said)
    assert found["model"] == f"{found['run']}/models/step-000004"
    assert found["warnings"] == []
    assert found["held_out"]["step"] == 4
    assert found["held_out"]["top1"] >= 0
    assert set(found["tables"]) == {"training", "training_evaluation"}
    assert Path(found["report"]).is_file()
    code, said, noted = run(*PRETRAIN, *SHORT)
    assert (code, "complete already" in noted, found["model"] in said) == (0, True, True)
    code, said, noted = run(*PRETRAIN, *SHORT, "--seed", 1, "--quiet")
    assert (code, said, noted) == (0, "", "")
    assert len(list(Path("runs").iterdir())) == 2


def test_one_sequence_has_no_standard_error() -> None:
    code, said, _ = run(*PRETRAIN, *SHORT[:-4], "--held-out", "0.1", "--tokens", "160", "--json")
    found = json.loads(said)
    assert (code, found["held_out"]["n_tokens"], found["held_out"]["loss_nats_sem"]) == (0, 15, None)
    code, said, _ = run(*PRETRAIN, *SHORT[:-4], "--held-out", "0.1", "--tokens", "160")
    assert (code, "±" in said, " nats, " in said) == (0, False, True)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["pretrain", "--config", "gpt-5"], "error: --config 'gpt-5' is not known; there are llama-1l,"),
        ([*PRETRAIN, "--resume", "--overwrite"], "error: --resume and --overwrite exclude each other"),
        ([*PRETRAIN, "--resume", "--out", "nothing"], "error: --resume: nothing holds no run"),
        ([*PRETRAIN, "--store", "int8"], "error: --store 'int8': give one or more of bf16, fp16, fp32"),
        ([*PRETRAIN, "--learning-rate", "0"], "error: --learning-rate 0.0 trains nothing"),
        ([*PRETRAIN, "--tokenizer", "zoo:python-8l"], "error: --vocabulary 280 is of a tokenizer trained on the data"),
        (
            [*PRETRAIN[:5], "--tokenizer", "owner/nothing"],
            "error: --tokenizer owner/nothing cannot be fetched from the hub",
        ),
        ([*PRETRAIN[:5], "--tokenizer", "./nothing"], "error: there is no model folder at ./nothing"),
        ([*PRETRAIN, "--held-out", "0.001", "--tokens", "200"], "error: --held-out 0.001 of 13 sequences is none"),
        ([*PRETRAIN, "--device", "tpu"], "error: --device 'tpu': training takes auto, cpu or cuda"),
        (["pretrain", "--config", "vit-digits", "--context", "9"], "error: --context: for text only"),
        (["pretrain", "--config", "vit-digits"], "error: vit-digits reads images, from one source"),
        (["finetune", "zoo:nothing"], "error: the zoo has no model 'nothing'"),
        (["finetune", "zoo:python-8l", "--context", "500"], "error: --context 500 is longer than the 256 positions"),
    ],
)
def test_errors_are_one_line(arguments: list[str], line: str) -> None:
    code, said, noted = run(*arguments)
    assert (code, said, len(noted.splitlines())) == (2, "", 1), noted
    assert noted.startswith(line)


def test_a_tokenizer_that_is_there_already() -> None:
    arguments = [*PRETRAIN[:5], "--context", "16", *SHORT, "--quiet"]
    assert run(*arguments, "--tokenizer", "zoo:python-8l", "--out", "zoo")[0] == 0
    assert json.loads(Path("zoo/models/step-000004/bf16/config.json").read_text())["vocab_size"] == 2048


LONG = [
    *("--steps", "150", "--batch-size", "2", "--warmup", "5", "--held-out", "0.1", "--log-every", "7"),
    *("--store", "bf16,fp32", "--count-every", "1", "--evaluate-every", "30", "--store-every", "50"),
    *("--save-every", "3", "--quiet"),
]


def started(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lesion.cli", "train", *PRETRAIN, *LONG, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def steps_done(run: Path) -> int:
    return max((int(path.name.rpartition("-")[2]) for path in run.glob("trainer/checkpoint-*")), default=0)


def stopped(run: str, after: int, delay: float, how: signal.Signals) -> tuple[int, str]:
    """Sends a signal some time after a step was saved; how the process ended, and what it said."""
    process = started("--out", run)
    for _ in range(6000):
        if steps_done(Path(run)) >= after or process.poll() is not None:
            break
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(how)
    said = process.communicate()[1].decode()
    return process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_at_random_moments_and_gone_on(how: signal.Signals) -> None:
    """Three times, in whatever the process was doing then: weights and tables are those of a run left alone."""
    generator = random.Random(int(how))
    for after in (1, 40, 90):
        code, said = stopped("stopped", after + generator.randrange(30), 0.3 * generator.random(), how)
        if how == signal.SIGKILL:
            assert code == -signal.SIGKILL
        else:
            assert code == 130
            assert said.startswith("interrupted; the same command")
            assert json.loads(Path("stopped/run.json").read_text())["status"] == "partial"
    assert steps_done(Path("stopped")) >= 90
    for name in ("stopped", "whole"):
        assert started("--out", name).wait() == 0
    manifest = json.loads(Path("stopped/run.json").read_text())
    assert (manifest["status"], manifest["resumed"], manifest["warnings"]) == ("complete", 3, [])
    assert "resumed" not in json.loads(Path("whole/run.json").read_text())
    models = sorted(path.relative_to("whole") for path in Path("whole").rglob("model.safetensors"))
    assert models == sorted(path.relative_to("stopped") for path in Path("stopped").rglob("model.safetensors"))
    assert len(models) == 8
    for path in models:
        first, second = load_file("whole" / path), load_file("stopped" / path)
        assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("training", "training_evaluation", "training_zero_modes"):
        tables = [pd.read_parquet(f"{one}/tables/{name}.parquet") for one in ("whole", "stopped")]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
