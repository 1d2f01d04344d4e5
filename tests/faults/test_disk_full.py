"""Fault 44: the disk is full at each write in turn. One line, nothing that looks whole and is not, and it goes on."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

import lesion
from lesion.anatomy import Model
from lesion.data import TextData
from lesion.errors import LesionError
from lesion.report import write_report
from lesion.results import RunView
from tests.faults.conftest import Run
from tests.faults.disk import Disk, disk_full

MOST = 300
"""Operations of a run, generously: a loop that gets there would never end."""


@pytest.fixture
def few(loaded: Model, text_file: Path) -> TextData:
    """Text for two shards: there are many runs of it."""
    return lesion.load_text(str(text_file), loaded.tokenizer, context=32, tokens=100)


def is_one_line(error: LesionError | None) -> bool:
    return "No space left on device" in str(error) and "\n" not in str(error)


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".partial")]


def assert_equal(tables: dict[str, pd.DataFrame], whole: dict[str, pd.DataFrame]) -> None:
    assert tables.keys() == whole.keys()
    for name, table in whole.items():
        pd.testing.assert_frame_equal(tables[name], table, check_exact=True)


def attempted(work: Callable[[], object], number: int, *, once: bool) -> tuple[Disk, LesionError | None]:
    """Does the work on a disk that is full at operation `number`."""
    with disk_full(number, once=once) as disk:
        try:
            work()
        except LesionError as error:
            return disk, error
    return disk, None


@pytest.mark.parametrize(("once", "step"), [
    pytest.param(True, 1, id="at that moment", marks=pytest.mark.slow),
    pytest.param(False, 1, id="from then on", marks=pytest.mark.slow),
    pytest.param(False, 5, id="from every fifth on"),
])  # fmt: skip
def test_a_run(run: Run, few: TextData, tmp_path: Path, once: bool, step: int) -> None:
    """At each operation in turn; the same call then goes on to the same tables, bit for bit."""
    small = partial(run, layers=[0], data=few)
    whole = small(tmp_path / "whole").tables
    kept_shards = 0
    for number in range(1, MOST, step):
        out = tmp_path / str(number)
        disk, error = attempted(partial(small, out), number, once=once)
        if not disk.failed:
            break
        assert is_one_line(error), number
        if (out / "run.json").exists() and RunView.open(out).manifest["status"] == "complete":
            assert_equal({name: RunView.open(out).table(name) for name in whole}, whole)  # only a sync was left to do
        kept_shards += len(list(out.glob("shards/*.safetensors")))
        assert_equal(small(out).tables, whole)
        assert RunView.open(out).manifest["status"] == "complete"
        assert not leftovers(out)
    assert disk.done > 30  # the faults were put where the run writes
    assert kept_shards > 10 / step  # and what had been done before them was kept


@pytest.mark.parametrize("once", [True, False], ids=["at that moment", "from then on"])
def test_the_token_cache(loaded: Model, text_file: Path, tmp_path: Path, once: bool) -> None:
    def read(cache: Path) -> str:
        return lesion.load_text(str(text_file), loaded.tokenizer, context=32, cache=cache).fingerprint

    whole = read(tmp_path / "whole")
    for number in range(1, MOST):
        cache = tmp_path / str(number)
        disk, error = attempted(partial(read, cache), number, once=once)
        if not disk.failed:
            break
        assert is_one_line(error), number
        assert read(cache) == whole
        assert len(list((cache / "tokens").iterdir())) == 1, number
    assert disk.done > 6


def test_a_report(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out)
    page = write_report(out)
    whole = page.read_bytes()
    for number in range(1, MOST, 3):
        page.write_text("old")
        disk, error = attempted(partial(write_report, out), number, once=False)
        if not disk.failed:
            break
        assert is_one_line(error), number
        assert page.read_bytes() in (b"old", whole), number
        assert not leftovers(out)
    assert disk.done > 10
    assert page.read_bytes() == whole


PROGRAM = """
import resource, signal, sys
import lesion
from lesion.engine import plan
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
plan.SHARD_OPERATIONS = {"cpu": 1}
try:
    reading = lesion.Reading(tokens=400, context=32)
    lesion.layers(sys.argv[1], sys.argv[2], interventions=["drop"], batch_size=2, out=sys.argv[3], reading=reading)
except lesion.LesionError as error:
    sys.exit(f"error: {error}")
"""


def test_a_file_that_may_not_grow(
    tiny_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For real: the operating system lets no file grow beyond 2000 bytes, which is less than a manifest."""
    command = [sys.executable, "-c", PROGRAM, tiny_folder, text_file, tmp_path / "run"]
    stopped = subprocess.run(command, capture_output=True, text=True, check=False)
    assert stopped.returncode == 1
    assert stopped.stderr.startswith("error: ")
    assert "File too large" in stopped.stderr
    assert stopped.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "run.json").exists()
    assert not leftovers(tmp_path / "run")
    monkeypatch.setattr("lesion.engine.plan.SHARD_OPERATIONS", {"cpu": 1})
    asked = {"interventions": ["drop"], "batch_size": 2, "reading": lesion.Reading(tokens=400, context=32)}
    whole = lesion.layers(tiny_folder, str(text_file), **asked).tables  # type: ignore[arg-type]
    again = lesion.layers(tiny_folder, str(text_file), out=tmp_path / "run", **asked).tables  # type: ignore[arg-type]
    assert_equal(again, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 512 KiB, where the machine lets a test mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("pages", [0, 2, 5])
def test_a_real_disk_that_is_full(run: Run, small_disk: Path, tmp_path: Path, pages: int) -> None:
    """`pages` of 4 KiB are left: for nothing, for a manifest and a shard, for some shards."""
    whole = run(tmp_path / "whole").tables
    (small_disk / "run").mkdir()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - pages * 4096))
    with pytest.raises(LesionError, match="No space left on device"):
        run(small_disk / "run")
    ballast.unlink()
    assert_equal(run(small_disk / "run").tables, whole)
    assert not leftovers(small_disk / "run")
