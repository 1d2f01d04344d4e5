"""Run folders: refused when foreign, locked while in use, resumed when the same, whole when complete."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lesion.errors import RunFolderError
from lesion.results import RunFolder, RunView

IDENTITY: dict[str, Any] = {"study": "layers", "arguments": {"context": 256, "layers": None}, "model": "f00d"}
FIELDS: dict[str, Any] = {"study": "layers", "command": "lesion layers x", "arguments": {"context": 256}}
TABLE = pd.DataFrame({"layer": [0, 1], "loss_nats": [1.5, None]})


def opened(path: Path, **changes: Any) -> RunFolder:
    return RunFolder.open(path, **{"identity": IDENTITY, "manifest": FIELDS, **changes})


def completed(path: Path) -> Path:
    with opened(path) as run:
        run.write_table("layers", TABLE)
        run.write_arrays("means", {"a": np.ones((2, 2), dtype=np.float32)}, {"unit": "nats"})
        run.shard_store("p").commit(0, {"a": np.ones(1)}, {})
        run.log("two\nlines \x1b[31m")
        run.finish("complete", counts={"n_tokens": 10})
    return path


def test_a_complete_run(tmp_path: Path) -> None:
    path = completed(tmp_path / "deep" / "run")
    view = RunView.open(path)
    assert view.tables == ["layers"]
    pd.testing.assert_frame_equal(view.table("layers"), TABLE)
    assert np.array_equal(view.arrays("means")["a"], np.ones((2, 2)))
    assert view.manifest["schema"] == 1
    assert view.manifest["tables"]["layers"]["rows"] == 2
    assert view.manifest["status"] == "complete"
    assert view.manifest["finished"] is not None
    assert view.manifest["counts"] == {"n_tokens": 10}
    assert len((path / "log.txt").read_text().splitlines()) == 1
    assert not (path / "shards").exists()
    names = {entry.name for entry in path.iterdir()}
    assert names == {"run.json", "tables", "arrays", "log.txt", ".lock"}
    with opened(path) as again:
        assert again.is_complete
    assert json.loads((path / "run.json").read_text()) == view.manifest


def test_resume_keeps_start_shards_and_plan(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        started = run.manifest["started"]
        run.shard_store("p").commit(0, {"a": np.ones(1)}, {})
        run.finish("partial")
        assert run.manifest["finished"] is not None
    with opened(tmp_path, manifest={**FIELDS, "device": "cuda"}) as run:
        assert not run.is_complete
        assert run.manifest["status"] == "running"
        assert run.manifest["finished"] is None
        assert (run.manifest["started"], run.manifest["plan"], run.manifest["device"]) == (started, "p", "cuda")
        assert run.manifest["resumed"] == 1
        assert run.shard_store("p").done() == {0}


def test_another_identity_is_refused_with_the_difference(tmp_path: Path) -> None:
    completed(tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    other = {**IDENTITY, "arguments": {"context": 512, "layers": None}}
    with pytest.raises(RunFolderError, match=r"arguments\.context: 256 → 512\); pass --overwrite"):
        opened(tmp_path, identity=other)
    assert (tmp_path / "run.json").read_bytes() == before
    with opened(tmp_path, identity=other, overwrite=True) as run:
        assert not run.is_complete
        assert run.manifest["tables"] == {}
        assert not (tmp_path / "tables").exists()
    with opened(tmp_path, identity=other):  # the lock of the refused attempt was released
        pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"schema": 1, "ident', "damaged"),
        (b"[]", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b'{"schema": 2}', "has schema 2, this lesion reads 1"),
        (b'{"schema": 1, "identity": {}, "status": "complete"}', "fields: tables, arrays"),
        (b'{"schema": 1, "identity": {}, "status": "done", "tables": {}, "arrays": {}}', "fields: status"),
    ],
)
def test_damaged_manifest(tmp_path: Path, content: bytes, message: str) -> None:
    completed(tmp_path)
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunFolderError, match=message) as caught:
        opened(tmp_path)
    assert "--overwrite" in str(caught.value)
    with pytest.raises(RunFolderError, match=message):
        RunView.open(tmp_path)
    with opened(tmp_path, overwrite=True) as run:
        assert run.manifest["status"] == "running"


def test_lost_or_edited_table_is_found_and_run_again(tmp_path: Path) -> None:
    completed(tmp_path)
    table = tmp_path / "tables" / "layers.parquet"
    TABLE.assign(loss_nats=9.0).to_parquet(table, index=False)
    with pytest.raises(RunFolderError, match="edited or damaged"):
        RunView.open(tmp_path).table("layers")
    with opened(tmp_path) as run:
        assert not run.is_complete
        run.write_table("layers", TABLE)
        run.finish("complete")
        assert run.is_complete
    table.unlink()
    with pytest.raises(RunFolderError, match="is missing"):
        RunView.open(tmp_path).table("layers")
    with pytest.raises(RunFolderError, match="not recorded"):
        RunView.open(tmp_path).table("stages")


def test_foreign_places_are_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(RunFolderError, match="is a file"):
        opened(tmp_path / "file")
    with pytest.raises(RunFolderError, match=r"not a lesion run folder \(it holds 'thesis.tex'"):
        opened(tmp_path / "other", overwrite=True)
    with pytest.raises(RunFolderError, match="cannot use"):
        opened(tmp_path / "loop")
    with pytest.raises(RunFolderError, match="cannot use"):
        opened(tmp_path / ("n" * 300))
    with pytest.raises(RunFolderError, match="cannot use"):
        opened(tmp_path / "file" / "below")
    with pytest.raises(RunFolderError, match=r"has no run\.json"):
        RunView.open(tmp_path / "other")
    assert [entry.name for entry in (tmp_path / "other").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("foreign", ["notes.md", "figures/photo.jpg", "tables/mine.csv"])
def test_overwrite_never_removes_foreign_files(tmp_path: Path, foreign: str) -> None:
    completed(tmp_path)
    (tmp_path / foreign).parent.mkdir(exist_ok=True)
    (tmp_path / foreign).write_text("mine")
    with pytest.raises(RunFolderError, match="not lesion's"):
        opened(tmp_path, overwrite=True)
    assert RunView.open(tmp_path).table("layers").shape == (2, 2)
    (tmp_path / foreign).unlink()
    with opened(tmp_path, overwrite=True):
        assert not (tmp_path / "log.txt").exists()


def test_overwrite_does_not_follow_a_link(tmp_path: Path) -> None:
    completed(tmp_path / "run")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.png").write_text("mine")
    (tmp_path / "run" / "figures").symlink_to(outside)
    with pytest.raises(RunFolderError, match="'figures'"):
        opened(tmp_path / "run", overwrite=True)
    assert (outside / "a.png").exists()


def test_leftovers_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.shard_store("p").commit(0, {"a": np.ones(1)}, {})
    left = [tmp_path / ".run.json.0.partial", tmp_path / "shards" / ".000001.safetensors.0.partial"]
    for path in left:
        path.write_bytes(b"half")
    with opened(tmp_path) as run:
        assert not any(path.exists() for path in left)
        assert run.shard_store("p").done() == {0}


HOLD = """
import sys
from lesion.results import RunFolder
with RunFolder.open(sys.argv[1], identity={"a": 1}, manifest={}) as run:
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_process_is_refused_and_a_dead_one_is_forgotten(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match=rf"in use by another run \(process {holder.pid} on "):
            opened(tmp_path, identity={"a": 1})
        holder.kill()
        holder.wait()
    with opened(tmp_path, identity={"a": 1}) as run:
        assert run.manifest["status"] == "running"
        with pytest.raises(RunFolderError, match="in use"):
            opened(tmp_path, identity={"a": 1})


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("boom"), "failed"), (KeyboardInterrupt(), "partial")])
def test_an_exception_is_recorded_and_the_lock_released(tmp_path: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), opened(tmp_path):
        raise error
    found = RunView.open(tmp_path).manifest
    assert found["status"] == status
    assert type(error).__name__ in found["reason"]
    with opened(tmp_path) as run:
        assert "reason" not in run.manifest
        run.finish("complete")
    with pytest.raises(ZeroDivisionError), opened(tmp_path):
        raise ZeroDivisionError  # after completion: the run stays complete
    assert RunView.open(tmp_path).manifest["status"] == "complete"


@pytest.mark.parametrize("status", ["new", "running", "complete"])
def test_an_interrupt_while_the_folder_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    """The manifest is there already, and nobody has entered the run yet: it is not left as if it went on."""
    if status == "running":
        opened(tmp_path).release()
    if status == "complete":
        completed(tmp_path)

    def interrupt(self: RunFolder, notes: list[str]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "_say", interrupt)
        with pytest.raises(KeyboardInterrupt):
            opened(tmp_path)
    found = RunView.open(tmp_path).manifest
    assert found["status"] == ("complete" if status == "complete" else "partial")
    with opened(tmp_path) as run:  # the lock was released
        assert run.is_complete == (status == "complete")


def test_names_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        for name in ("../x", "a/b", ".hidden", ""):
            with pytest.raises(ValueError, match="not a name"):
                run.write_table(name, TABLE)
        with pytest.raises(ValueError, match="not a text file"):
            run.write_text("run.json", "{}")


def test_what_stands_behind_a_changed_fingerprint_is_shown(tmp_path: Path) -> None:
    """Another model is refused by name, and with the lines of its configuration that differ."""
    fields = {**FIELDS, "model": {"name": "base", "configuration": {"rope": {"theta": 1e4}, "layers": 2}}}
    completed_as = {**IDENTITY, "model": "ab" * 32}
    with opened(tmp_path, identity=completed_as, manifest=fields) as run:
        run.finish("complete")
    other = {**FIELDS, "model": {"name": "tuned", "configuration": {"rope": {"theta": 5e5}, "layers": 2}}}
    with pytest.raises(RunFolderError) as caught:
        opened(tmp_path, identity={**IDENTITY, "model": "cd" * 32}, manifest=other)
    said = str(caught.value)
    assert "belongs to another run of base (model: abababababab… → cdcdcdcdcdcd…; " in said
    assert "configuration.rope.theta: 10000.0 → 500000.0)" in said
    assert "configuration.layers" not in said
    with opened(tmp_path, identity=completed_as, manifest=other) as run:  # described anew, and the same run
        assert run.is_complete


def test_shards_belong_to_a_run_and_not_only_to_a_plan(tmp_path: Path) -> None:
    """Plans of two models on one text are equal; a shard that was copied from the other run must not be merged."""
    for name, model in (("a", "f00d"), ("b", "beef")):
        with opened(tmp_path / name, identity={**IDENTITY, "model": model}) as run:
            run.shard_store("p").commit(0, {"a": np.ones(1)}, {})
    home, other = (tmp_path / name / "shards" / "000000.safetensors" for name in "ab")
    with opened(tmp_path / "a") as run:
        assert run.shard_store("p").done() == {0}
    home.write_bytes(other.read_bytes())
    with opened(tmp_path / "a") as run:
        assert run.shard_store("p").done() == set()


def test_what_changed_while_it_ran_is_not_kept(tmp_path: Path) -> None:
    changed: list[str] = []

    def check() -> None:
        if changed:
            raise RunFolderError(changed[0])

    def run_on() -> None:
        with opened(tmp_path, check=check) as run:
            store = run.shard_store("p")
            store.commit(0, {"a": np.ones(1)}, {})
            changed.append("weights")
            with pytest.raises(RunFolderError, match="weights"):
                store.commit(1, {"a": np.ones(1)}, {})
            assert store.done() == {0}
            run.finish("complete")

    with pytest.raises(RunFolderError, match="weights"):
        run_on()
    assert RunView.open(tmp_path).manifest["status"] == "failed"
    changed.clear()
    with opened(tmp_path, check=check) as run:
        assert run.shard_store("p").done() == {0}
        run.finish("complete")
        assert run.is_complete


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the system says is mounted from elsewhere; it cannot be mounted in a test."""
    mounts = [("/", "ext4"), (str(tmp_path / "far"), "NFS4"), (str(tmp_path / "far" / "near"), "ext4")]
    monkeypatch.setattr(
        "lesion.results.filesystem.psutil.disk_partitions",
        lambda all: [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in mounts],
    )
    (tmp_path / "far" / "near").mkdir(parents=True)
    return tmp_path / "far"


def test_a_lock_that_other_machines_may_not_see_is_said(mounted: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), opened(mounted / "run") as run:
        run.finish("complete", warnings=["of the data"])
    first, second = RunView.open(mounted / "run").manifest["warnings"]
    assert "is on a nfs4 file system, where a lock may not be seen by other machines; run one" in first
    assert second == "of the data"
    assert first in caplog.text
    assert first in (mounted / "run" / "log.txt").read_text()
    (mounted / "run" / ".lock.holder").write_text("77 on elsewhere\n")
    with opened(mounted / "run", overwrite=True) as run:
        run.finish("complete")
    assert "process 77 on elsewhere has not given" in RunView.open(mounted / "run").manifest["warnings"][0]
    with opened(mounted / "near" / "run") as run:
        run.finish("complete")
    assert "warnings" not in RunView.open(mounted / "near" / "run").manifest


def test_a_file_system_without_locks_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*arguments: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("lesion.results.lock.FileLock.acquire", no_locks)
    with pytest.raises(RunFolderError, match=r"cannot lock .*does not appear to support flock; pass another --out"):
        opened(tmp_path)
