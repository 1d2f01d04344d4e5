"""The shell: what a newcomer types, what comes back, and exit codes."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from lesion.cli import app
from lesion.cli.sweeps import duration
from tests.support import tiny_model

INTERRUPTED = "interrupted; the same command, without --overwrite, goes on where this one stopped"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, says: str) -> None:
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output


def sweep(model: Path, text: Path, *more: object) -> Result:
    return run("layers", model, "--data", text, "--tokens", 300, "--context", 32, *more)


def test_a_run_from_end_to_end(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    result = sweep(tiny_folder, text_file, "--out", "run")
    assert result.exit_code == 0, result.output
    page = tmp_path / "run" / "report.html"
    *table, last = result.stdout.strip().splitlines()
    assert last == f"report: {page}"
    assert "KL (nats)" in "".join(table)
    assert len([line for line in table if "±" in line]) == 11
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert {path.suffix for path in (tmp_path / "run" / "figures").iterdir()} == {".svg", ".png"}
    again = sweep(tiny_folder, text_file, "--out", "run")
    assert "complete already" in again.stderr


def test_without_out_the_arguments_name_the_folder(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    first = json.loads(sweep(tiny_folder, text_file, "--json").stdout)
    second = json.loads(sweep(tiny_folder, text_file, "--json").stdout)
    other = json.loads(sweep(tiny_folder, text_file, "--json", "--layers", "0,1-2").stdout)
    assert first["run"] == second["run"] != other["run"]
    assert Path(first["run"]).name.startswith("layers-")
    assert first["status"] == "complete"
    assert len(pd.read_parquet(first["tables"]["layers"])) == 11


def test_quiet_says_nothing(tiny_folder: Path, text_file: Path) -> None:
    result = sweep(tiny_folder, text_file, "--quiet", "--out", "run")
    assert (result.exit_code, result.output) == (0, "")


def test_two_domains_and_a_selection(tiny_folder: Path, text_file: Path) -> None:
    result = run(
        *("layers", tiny_folder, "--data", f"one={text_file}", "--data", f"two={text_file}", "--tokens", 200),
        *("--context", 32, "--interventions", "drop, swap", "--layers", "1-2", "--json", "--edit", "drop-attn:0"),
    )
    assert result.exit_code == 0, result.output
    table = pd.read_parquet(json.loads(result.stdout)["tables"]["layers_by_domain"])
    assert set(table["domain"]) == {"one", "two"}
    pairs = set(zip(table["intervention"], table["layer"], strict=True))
    assert pairs == {("drop", 1), ("drop", 2), ("swap", 1)}


@pytest.mark.parametrize(("arguments", "says"), [
    (["--interventions", "drop,melt"], "give one or more, each once, of drop, swap, drop-attn, drop-mlp"),
    (["--interventions", ""], "give one or more"),
    (["--layers", "9"], "the model has layers 0 to 2"),
    (["--layers", "a-b"], "for example 0,2,5-7"),
    (["--layers", "1,2-0"], "ranges upwards"),
    (["--layers", "0-99999999999"], "for example 0,2,5-7"),
    (["--layers", "9" * 5000], "for example 0,2,5-7"),
    (["--edit", "drop:" + "9" * 5000], "names no block"),
    (["--batch-size", "9" * 5000], "or auto"),
    (["--data", "~nobody-of-this-name/text"], "home folder that is not there"),
    (["--device", "meta"], "not a device that can be used"),
    (["--edit", "drop:9"], "blocks 0 to 2"),
    (["--edit", "explode:1"], "not an edit that is known"),
    (["--batch-size", "none"], "or auto"),
    (["--context", "65"], "longer than the 64 positions"),
    (["--data", "nowhere.txt"], "nowhere.txt"),
    (["--resume"], "no run in"),
    (["--resume", "--overwrite"], "exclude each other"),
    (["--device", "abacus"], "not a device"),
    (["--dtype", "int4"], "not known"),
])  # fmt: skip
def test_bad_arguments(tiny_folder: Path, text_file: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    given = [] if "--data" in arguments else ["--data", str(text_file)]
    context = [] if "--context" in arguments else ["--context", "32"]
    refused(run("layers", tiny_folder, *given, *context, "--out", "run", *arguments), says)
    assert not (tmp_path / "run").exists()


def test_bad_models(text_file: Path, tmp_path: Path) -> None:
    refused(run("layers", "./nowhere", "--data", text_file), "no model folder at ./nowhere")
    refused(run("layers", "nobody/nothing", "--data", text_file), "the hub cannot be asked")
    (tmp_path / "empty").mkdir()
    refused(run("layers", "empty", "--data", text_file), "no config.json")
    assert not (tmp_path / "runs").exists()


def test_bad_text(tiny_folder: Path, tmp_path: Path) -> None:
    bad = {
        "empty.txt": ("", "empty"),
        "blank.txt": (" \n\n", "blank"),
        "broken.jsonl": ('{"text": "a b c"}\n{"text": \n', "broken.jsonl:2"),
        "column.jsonl": ('{"title": "a"}\n', "title"),
    }
    for name, (content, says) in bad.items():
        (tmp_path / name).write_text(content)
        refused(sweep(tiny_folder, tmp_path / name), says)
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_something_else_is_left_alone(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    refused(sweep(tiny_folder, text_file, "--out", "run", "--overwrite"), "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_the_report_can_be_written_again(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    sweep(tiny_folder, text_file, "--out", "run", "--quiet")
    page = tmp_path / "run" / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert run("report", "run").exit_code == 0
    assert page.read_bytes() == before
    refused(run("report", "nothing"), "nothing")


def test_an_interrupt_says_how_to_go_on(tiny_folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lesion.engine.runners import MemoryRunner

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MemoryRunner, "run", interrupt)
        stopped = sweep(tiny_folder, text_file, "--out", "run")
    assert (stopped.exit_code, stopped.stderr.strip()) == (
        130,
        "interrupted; the same command, without --overwrite, goes on where this one stopped",
    )
    assert sweep(tiny_folder, text_file, "--out", "run").exit_code == 0


def test_a_report_of_a_mangled_manifest(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    sweep(tiny_folder, text_file, "--out", "run", "--quiet")
    path = tmp_path / "run" / "run.json"
    manifest = json.loads(path.read_text())
    del manifest["model"]["norm"]
    path.write_text(json.dumps(manifest))
    refused(run("report", "run"), "'norm'")


def test_being_terminated_is_an_interrupt(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    """A scheduler's SIGTERM: exit code 130, a run that can go on, and nothing left running."""
    command = [sys.executable, "-m", "lesion.cli", "layers", tiny_folder, "--data", text_file, "--context", "32"]
    command += ["--tokens", "100000000", "--pack", "--batch-size", "1", "--out", "run"]
    text_file.write_text("\n".join([text_file.read_text()] * 3000))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: (tmp_path / "run" / "run.json").exists(), process)
            process.terminate()
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, said.strip().splitlines()[-1]) == (130, INTERRUPTED)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "partial"


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if happened() or process.poll() is not None:
            return
        time.sleep(0.1)


def test_a_newcomer() -> None:
    assert "layers" in run("--help").stdout
    assert run().exit_code == 2
    assert "--version" in run("--help").stdout
    assert run("--version").stdout.startswith("lesion ")
    typo = run("layer", "x")
    assert typo.exit_code == 2
    assert "layers" in typo.stderr
    assert run("layers").exit_code == 2
    assert "--edit" in run("layers", "--help").stdout


def test_names_that_are_too_long(tiny_folder: Path, text_file: Path) -> None:
    refused(sweep(tiny_folder, text_file, "--out", "y" * 300), "too long")
    refused(sweep(tiny_folder, text_file, "--out", "y" * 300, "--resume"), "too long")


def test_numbers_in_another_dtype_are_another_folder(tiny_folder: Path, text_file: Path) -> None:
    single = json.loads(sweep(tiny_folder, text_file, "--json", "--interventions", "drop").stdout)
    half = json.loads(sweep(tiny_folder, text_file, "--json", "--interventions", "drop", "--dtype", "bfloat16").stdout)
    assert single["run"] != half["run"]


def test_images(tmp_path: Path) -> None:
    """From a folder of an image classifier to its report; its own image processor prepares the pictures."""
    tiny_model("vit", num_labels=10).save_pretrained("vit")
    run_images = ("layers", "vit", "--data", "digits", "--tokens", 60, "--interventions", "drop", "--json")
    plain = json.loads(run(*run_images).stdout)
    assert "was run on 60 images" in Path(plain["report"]).read_text()
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 16, "width": 16},
        "do_convert_rgb": False,
    }
    content = json.dumps({**settings, "image_mean": [0.1], "image_std": [0.3]})
    Path("vit/preprocessor_config.json").write_text(content)
    own = json.loads(run(*run_images, "--out", "own").stdout)
    losses = [pd.read_parquet(found["tables"]["layers"])["loss_clean_nats"][0] for found in (plain, own)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    Path("vit/preprocessor_config.json").write_text("junk")
    refused(run(*run_images), "image processor")
    Path("vit/preprocessor_config.json").unlink()
    refused(run(*run_images, "--pack", "--context", 9), "--context, --pack: for text only")
    tiny_model("vit", num_labels=2).save_pretrained("two")
    refused(run("layers", "two", "--data", "digits"), "only 2 classes")


def test_rows_that_were_left_out_are_said(tiny_folder: Path, text_file: Path) -> None:
    text_file.write_text(text_file.read_text() + "\n{broken\n[]\n")
    everything = ("--out", "run", "--tokens", 100_000)
    refused(sweep(tiny_folder, text_file, *everything), "jsonl:13")
    result = sweep(tiny_folder, text_file, *everything, "--on-bad-row", "skip")
    assert "warning: text: 2 rows could not be read and were left out" in result.stderr
    assert "2 rows could not be read" in Path("run/report.html").read_text()


def test_no_number_is_cut_short_on_a_narrow_terminal(
    tiny_folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = [line for line in sweep(tiny_folder, text_file, "--out", "run").stdout.splitlines() if "±" in line]
    assert len(lines) == 11
    assert all(line.count("±") == 4 and "…" not in line for line in lines)


def test_captions_name_only_what_was_run(tiny_folder: Path, text_file: Path) -> None:
    sweep(tiny_folder, text_file, "--out", "all", "--quiet")
    sweep(tiny_folder, text_file, "--out", "drops", "--quiet", "--interventions", "drop")
    whole, part = (Path(run, "report.html").read_text() for run in ("all", "drops"))
    for caption in (
        "Dropping a block, and swapping it with the next,",
        "on one axis for whole blocks and for their parts",
    ):
        assert caption in whole
        assert caption not in part
    assert "Dropping a block, against the whole model" in part


def test_block_by_block_gives_the_same_table(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    assert sweep(tiny_folder, text_file, "--out", "whole").exit_code == 0
    assert sweep(tiny_folder, text_file, "--out", "streamed", "--stream").exit_code == 0
    tables = [(tmp_path / run / "tables" / "layers.parquet").read_bytes() for run in ("whole", "streamed")]
    assert tables[0] == tables[1]
    weights = [json.loads((tmp_path / run / "run.json").read_text())["weights"] for run in ("whole", "streamed")]
    assert weights[0] == {"streamed": False}
    assert weights[1]["streamed"]
    assert weights[1]["bytes_read"] == weights[1]["bytes_of_blocks"]  # each block once, for the only shard
    assert weights[1]["bytes_read_checking"] == 2 * weights[1]["bytes_of_blocks"]  # the model whole, and by blocks


def test_a_model_larger_than_the_memory(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    weights = (tiny_folder / "model.safetensors").stat().st_size
    assert sweep(tiny_folder, text_file, "--out", "run", "--max-memory", f"{weights}").exit_code == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["weights"]["streamed"]
    refused(sweep(tiny_folder, text_file, "--out", "other", "--max-memory", "20KB"), "also block by block")
    refused(sweep(tiny_folder, text_file, "--max-memory", "4 elephants"), "4GB")
    refused(sweep(tiny_folder, text_file, "--max-memory", "0"), "4GB")
    assert sweep(tiny_folder, text_file, "--out", "larger", "--max-memory", "1.5GiB").exit_code == 0
    assert not json.loads((tmp_path / "larger" / "run.json").read_text())["weights"]["streamed"]


def test_a_dry_run_runs_nothing(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    said = sweep(tiny_folder, text_file, "--dry-run")
    assert said.exit_code == 0
    assert "1 of 1 batches" in said.stdout
    assert not (tmp_path / "runs").exists()
    found = json.loads(sweep(tiny_folder, text_file, "--dry-run", "--json", "--stream").stdout)
    assert found["n_lanes"] == 12
    assert found["weight_bytes_read"] > 0
    refused(sweep(tiny_folder, text_file, "--dry-run", "--layers", "9"), "layers 0 to 2")


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "1 s"), (89.0, "89 s"), (600.0, "10 min"), (12600.0, "3.5 h")])
def test_times_are_said_as_a_person_would(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_other_processes_give_the_same_table(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    assert sweep(tiny_folder, text_file, "--out", "here").exit_code == 0
    assert sweep(tiny_folder, text_file, "--out", "local", "--executor", "local:1").exit_code == 0
    tables = [(tmp_path / run / "tables" / "layers.parquet").read_bytes() for run in ("here", "local")]
    assert tables[0] == tables[1]
    refused(sweep(tiny_folder, text_file, "--executor", "locla"), "ray:ADDRESS")
    refused(run("layers", "no-such-model", "--executor", "local:0"), "local:N")  # said before a model is looked for
