"""Faults 37, 46, 48, 49 and 50: runs that share a folder, and folders that somebody changed."""

import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

from lesion.anatomy import Model, adopt
from lesion.data import TextData
from lesion.errors import RunFolderError
from lesion.results import RunView
from tests.faults.conftest import Run


def stopped(run: Run, out: Path, *, share: float = 0.8) -> list[Path]:
    """An interrupted run; returns its shards."""

    def stop(done: int, total: int) -> None:
        if done > share * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(out, progress=stop)
    return sorted((out / "shards").glob("*.safetensors"))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The batches that were asked for, to see what was computed again."""
    asked: list[object] = []
    original = TextData.batch
    monkeypatch.setattr(TextData, "batch", lambda self, indices: (asked.append(indices), original(self, indices))[1])
    return asked


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


HARMS: dict[str, Callable[[list[Path]], object]] = {
    "edited": lambda shards: flip(shards[0]),
    "deleted": lambda shards: shards[0].unlink(),
    "half written": lambda shards: shards[0].write_bytes(shards[0].read_bytes()[:200]),
    "empty": lambda shards: shards[0].write_bytes(b""),
    "one twice": lambda shards: shards[1].write_bytes(shards[0].read_bytes()),
    "exchanged": lambda shards: [
        path.write_bytes(content)
        for path, content in zip(shards[:2], [shards[1].read_bytes(), shards[0].read_bytes()], strict=True)
    ],
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
def test_harmed_shards_are_computed_again(
    run: Run, tmp_path: Path, batches: list[object], harm: Callable[[list[Path]], object]
) -> None:
    whole = run(tmp_path / "whole").tables
    harm(stopped(run, tmp_path / "harmed"))
    stopped(run, tmp_path / "whole but stopped")
    computed = {}
    for name in ("harmed", "whole but stopped"):
        batches.clear()
        tables = run(tmp_path / name).tables
        computed[name] = len(batches)
        for table in whole:
            pd.testing.assert_frame_equal(tables[table], whole[table], check_exact=True)
    assert computed["harmed"] > computed["whole but stopped"]


def test_shards_of_another_model_are_not_merged(run: Run, tmp_path: Path, loaded: Model) -> None:
    """The same text and plan with other weights: a shard that was copied over is computed again."""
    whole = run(tmp_path / "whole").tables["layers"]
    network = deepcopy(loaded.anatomy.model)
    with torch.no_grad():
        network.model.layers[1].mlp.up_proj.weight.mul_(2)
    foreign = stopped(partial(run, model=adopt(network, loaded.tokenizer)), tmp_path / "other")
    shards = stopped(run, tmp_path / "run")
    assert [path.name for path in shards] == [path.name for path in foreign]
    for path, other in zip(shards, foreign, strict=True):
        assert path.read_bytes() != other.read_bytes()
        path.write_bytes(other.read_bytes())
    pd.testing.assert_frame_equal(run(tmp_path / "run").tables["layers"], whole, check_exact=True)


def test_a_table_that_was_edited_is_made_again(run: Run, tmp_path: Path) -> None:
    whole = run(tmp_path / "run").tables
    flip(tmp_path / "run" / "tables" / "layers.parquet")
    again = run(tmp_path / "run")
    assert not again.resumed_complete
    pd.testing.assert_frame_equal(again.tables["layers"], whole["layers"], check_exact=True)
    assert run(tmp_path / "run").resumed_complete


@pytest.mark.parametrize("content", ["", "{", '{"schema": 1}', "null", '{"schema": 1, "identity": {"a": '])
def test_a_harmed_manifest_is_refused_and_overwritten_when_asked(run: Run, tmp_path: Path, content: str) -> None:
    """It is written in one step, so that no fault of ours leaves one: somebody was here, and is told."""
    whole = run(tmp_path / "run").tables["layers"]
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"run\.json is damaged .* pass --overwrite to start again"):
        run(tmp_path / "run")
    again = run(tmp_path / "run", overwrite=True).tables["layers"]
    pd.testing.assert_frame_equal(again, whole, check_exact=True)


@pytest.mark.parametrize(("change", "says"), [
    ({"layers": [0]}, r"arguments\.layers: \[0,2\] → \[0\]"),
    ({"interventions": ["swap"], "layers": [0]}, r"arguments\.interventions: \[\"drop\"\] → \[\"swap\"\]"),
    ({"edits": ["drop:1"]}, r"arguments\.edits: \[\] → \[\"drop:1\"\]"),
    ({"batch_size": 3}, r"arguments\.batch_size: 2 → 3"),
    ({"seed": 1}, r"arguments\.seed: 0 → 1"),
])  # fmt: skip
def test_other_arguments_are_refused_with_the_difference(
    run: Run, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    shards = stopped(run, tmp_path / "run")
    with pytest.raises(RunFolderError, match=says):
        run(tmp_path / "run", **change)
    assert sorted((tmp_path / "run" / "shards").glob("*.safetensors")) == shards
    run(tmp_path / "run")


HOLD = """
import sys
from pathlib import Path
from lesion.results.lock import FolderLock
folder = Path(sys.argv[1])
folder.mkdir()
lock = FolderLock(folder)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_run_in_the_folder_is_refused_and_a_dead_one_forgotten(run: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match=rf"in use by another run \(process {holder.pid} on .*\)"):
            run(tmp_path / "run")
        with pytest.raises(RunFolderError, match="in use"):
            run(tmp_path / "run", overwrite=True)
        assert not (tmp_path / "run" / "run.json").exists()
        holder.kill()
        holder.wait()
    assert (tmp_path / "run" / ".lock.holder").exists()  # as a killed process leaves it
    assert not run(tmp_path / "run").resumed_complete
    assert not (tmp_path / "run" / ".lock.holder").exists()


def test_a_clock_that_jumps(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is decided by the time of day: a run that was begun tomorrow goes on today."""
    whole = run(tmp_path / "whole").tables["layers"]
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 1e8)
    monkeypatch.setattr("lesion.results.manifest.now", lambda: "2099-01-01T00:00:00+00:00")
    stopped(run, tmp_path / "run")
    monkeypatch.setattr(time, "time", lambda: real() - 1e8)
    monkeypatch.setattr("lesion.results.manifest.now", lambda: "1970-01-01T00:00:00+00:00")
    tables = run(tmp_path / "run").tables
    pd.testing.assert_frame_equal(tables["layers"], whole, check_exact=True)
    manifest = RunView.open(tmp_path / "run").manifest
    assert (manifest["started"][:4], manifest["finished"][:4]) == ("2099", "1970")
    assert manifest["timings"]["seconds"] > 0
