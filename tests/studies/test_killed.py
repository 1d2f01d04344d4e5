"""A run that is killed, at any moment, goes on to the tables of one that never was."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

import lesion
from lesion.engine import plan
from lesion.studies.setting import Reading

MOMENTS = 20


def run(model: Path, text: Path, out: Path) -> None:
    lesion.layers(model, str(text), interventions=("drop", "swap"), reading=Reading(context=24), batch_size=1, out=out)


def killed_after(seconds: float, model: Path, text: Path, out: Path) -> bool:
    """Starts the run in a process of its own, and kills it; whether it was still going."""
    child = os.fork()
    if child == 0:
        try:
            run(model, text, out)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def tables(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "tables").iterdir())}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of fork beside threads, in Python 3.12
def test_twenty_moments(tiny_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plan.SHARD_OPERATIONS, "cpu", 1)  # a shard a batch, twelve of them
    run(tiny_folder, text_file, tmp_path / "whole")
    whole = tables(tmp_path / "whole")
    assert set(whole) == {"layers.parquet", "layers_by_domain.parquet"}
    started = time.monotonic()
    run(tiny_folder, text_file, tmp_path / "timed")  # the first one also loads what later ones find loaded
    duration = time.monotonic() - started
    moments = random.Random(0)
    left: list[int] = []
    for attempt in range(4 * MOMENTS):
        out = tmp_path / f"killed-{attempt}"
        if not killed_after(moments.uniform(0, duration), tiny_folder, text_file, out):
            continue  # it had ended before
        left.append(len(list(out.glob("shards/*.safetensors"))))
        run(tiny_folder, text_file, out)
        assert tables(out) == whole
        assert not list(out.glob("**/*.partial"))
        assert not (out / "shards").exists()
        if len(left) == MOMENTS:
            break
    assert len(left) == MOMENTS
    assert len(set(left)) >= 4, f"kills came at too few different points to say anything: shards left {left}"
