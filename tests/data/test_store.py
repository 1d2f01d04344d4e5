"""The token cache: opened when whole, made anew when not, never left half-written."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lesion.data import building, load_text, store
from lesion.errors import InputError


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "x.txt").write_text("a b c d e f")
    return str(tmp_path / "x.txt")


def entries(cache):
    return sorted(path for path in (cache / "tokens").iterdir())


@pytest.fixture
def reads(monkeypatch):
    """How often the documents were read."""
    count = []
    original = building._encoded
    monkeypatch.setattr(building, "_encoded", lambda *args: count.append(1) or original(*args))
    return count


def test_second_call_opens_what_the_first_stored(spec, no_bos, cache, reads):
    first = load_text(spec, no_bos, context=8, cache=cache)
    second = load_text(spec, no_bos, context=8, cache=cache)
    assert len(reads) == 1
    assert first.fingerprint == second.fingerprint
    assert first.description == second.description
    assert second.document(0).tolist() == [4, 5, 6, 7, 8, 9]
    (entry,) = entries(cache)
    assert sorted(path.name for path in entry.iterdir()) == ["domains.npy", "ids.bin", "meta.json", "offsets.npy"]
    assert (entry / "ids.bin").stat().st_size == 12  # 6 ids of uint16


def test_whatever_decides_the_tokens_decides_the_entry(spec, no_bos, silent_bos, adds_bos, cache, reads):
    load = lambda tokenizer=no_bos, **options: load_text(spec, tokenizer, **{"context": 6, "cache": cache, **options})  # noqa: E731
    prints = [load().fingerprint, load(context=5).fingerprint, load(silent_bos).fingerprint]
    for options in ({"tokens": 3}, {"bos": "never"}, {"pack": True}, {"on_bad_row": "skip"}):
        load(**options)
    load(adds_bos)
    assert len(reads) == len(entries(cache)) == 8
    assert len(set(prints)) == 3
    load(seed=7, vocabulary_size=10)  # these decide batches and checks, not what is stored
    assert len(reads) == 8


def test_changed_file_is_read_again(spec, no_bos, cache, reads):
    before = load_text(spec, no_bos, context=8, cache=cache)
    Path(spec).write_text("f b c d e f")
    after = load_text(spec, no_bos, context=8, cache=cache)
    assert len(reads) == 2
    assert before.fingerprint != after.fingerprint
    stat = Path(spec).stat()
    os.utime(spec, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert load_text(spec, no_bos, context=8, cache=cache).fingerprint == after.fingerprint
    assert len(reads) == 3


def test_fingerprint_is_of_content_and_domain_names(spec, no_bos, cache, tmp_path):
    (tmp_path / "other").mkdir()
    copy = tmp_path / "other" / "x.txt"
    copy.write_text("a b c d e f")
    load = lambda spec: load_text(spec, no_bos, context=8, cache=cache).fingerprint  # noqa: E731
    assert load(spec) == load(str(copy))
    assert load(spec) != load(f"other={spec}")


def flip_id(entry):
    ids = np.fromfile(entry / "ids.bin", dtype="<u2")
    ids[2] ^= 1
    ids.tofile(entry / "ids.bin")


def damage(name, change):
    return pytest.param(lambda entry: change(entry / name), id=f"{name}-{change.__name__}")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2])


def delete(path):
    path.unlink()


def overwrite(path):
    path.write_text("{}")


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "harm",
    [
        flip_id,
        *(damage("ids.bin", change) for change in (truncate, delete, empty)),
        *(damage("offsets.npy", change) for change in (truncate, delete, overwrite, empty)),
        *(damage("domains.npy", change) for change in (truncate, delete)),
        *(damage("meta.json", change) for change in (truncate, delete, overwrite, empty)),
    ],
)
def test_damaged_entry_is_made_anew(spec, no_bos, cache, reads, harm, caplog):
    first = load_text(spec, no_bos, context=8, cache=cache)
    (entry,) = entries(cache)
    harm(entry)
    again = load_text(spec, no_bos, context=8, cache=cache)
    assert len(reads) == 2
    assert "is damaged and is made anew" in caplog.text
    assert (again.fingerprint, again.document(0).tolist()) == (first.fingerprint, [4, 5, 6, 7, 8, 9])
    assert entries(cache) == [entry]
    load_text(spec, no_bos, context=8, cache=cache)
    assert len(reads) == 2


def test_failure_leaves_nothing(tmp_path, no_bos, cache):
    (tmp_path / "x.jsonl").write_text('{"text": "a b"}\n{"text": 1}\n')
    with pytest.raises(InputError):
        load_text(str(tmp_path / "x.jsonl"), no_bos, context=8, cache=cache)
    assert entries(cache) == []
    load_text(str(tmp_path / "x.jsonl"), no_bos, context=8, cache=cache, on_bad_row="skip")
    assert len(entries(cache)) == 1


def test_another_process_was_faster(tmp_path):
    target = tmp_path / "tokens" / "key"
    writers = [store.new_store(target, np.dtype("<u2")) for _ in range(2)]
    for writer in [context.__enter__() for context in writers]:
        writer.append([1, 2], 0)
        writer.finish(["x"], {})
    for context in writers:
        context.__exit__(None, None, None)
    assert store.open_store(target).ids.tolist() == [1, 2]
    assert [path.name for path in target.parent.iterdir()] == ["key"]


def test_file_that_changes_while_it_is_read(spec, no_bos, cache, monkeypatch):
    original = building._encoded

    def touch(*args):
        yield from original(*args)
        os.utime(spec, ns=(0, 0))

    monkeypatch.setattr(building, "_encoded", touch)
    with pytest.raises(InputError, match="files changed while they were read"):
        load_text(spec, no_bos, context=8, cache=cache)
    assert entries(cache) == []


def test_cache_that_cannot_be_written(spec, no_bos, cache):
    (cache / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written: Not a directory; set LESION_CACHE"):
        load_text(spec, no_bos, context=8, cache=cache / "file")


def test_full_disk(spec, no_bos, cache, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.os, "fsync", full)
        with pytest.raises(InputError, match="No space left on device; set LESION_CACHE"):
            load_text(spec, no_bos, context=8, cache=cache)
    assert entries(cache) == []
    assert load_text(spec, no_bos, context=8, cache=cache).n_tokens == 6


def test_default_cache_is_that_of_the_environment(spec, no_bos, tmp_path, monkeypatch):
    monkeypatch.setenv("LESION_CACHE", str(tmp_path / "from-environment"))
    load_text(spec, no_bos, context=8)
    assert len(entries(tmp_path / "from-environment")) == 1
    monkeypatch.delenv("LESION_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load_text(spec, no_bos, context=8)
    assert len(entries(tmp_path / "home" / ".cache" / "lesion")) == 1


def test_large_vocabularies_take_four_bytes(spec, cache):
    from transformers import PreTrainedTokenizerFast

    from .conftest import backend

    words = ["[UNK]", *(f"w{i}" for i in range(70_000)), *"abcdef"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend(words), unk_token="[UNK]")
    data = load_text(spec, tokenizer, context=8, cache=cache)
    assert data.document(0).tolist() == list(range(70_001, 70_007))
    (entry,) = entries(cache)
    assert (entry / "ids.bin").stat().st_size == 24


WRITE = """
import sys
from pathlib import Path
import numpy as np
from lesion.data.store import new_store
with new_store(Path(sys.argv[1]), np.dtype("<u2")) as writer:
    writer.append([1, 2], 0)
    print("writing", flush=True)
    sys.stdin.read()
    writer.finish(["x"], {})
"""


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(spec, no_bos, cache):
    stores = cache / "tokens"
    processes = []
    for name in ("living", "killed"):
        command = [sys.executable, "-c", WRITE, str(stores / name)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "writing\n"
        processes.append(process)
    living, killed = processes
    killed.kill()
    killed.communicate()
    (stores / ".key-abc-old").mkdir()  # moved out of the way by a process that was killed then
    assert sorted(path.name[:4] for path in entries(cache)) == [".key", ".kil", ".liv"]
    load_text(spec, no_bos, context=8, cache=cache)
    assert [path.name[:4] for path in entries(cache) if path.name.startswith(".")] == [".liv"]
    living.communicate("")
    assert living.returncode == 0
    assert store.open_store(stores / "living").ids.tolist() == [1, 2]
    assert [path.name for path in entries(cache) if path.name.startswith(".")] == []


def test_a_store_that_nobody_opens_is_removed_in_the_end(spec, no_bos, cache):
    def age(entry, days):
        then = entry.stat().st_mtime - days * 86400
        os.utime(entry, (then, then))

    load_text(spec, no_bos, context=8, cache=cache)
    (entry,) = entries(cache)
    for days, opened, kept in (
        (store.UNUSED_DAYS - 1, False, True),
        (2, True, True),
        (store.UNUSED_DAYS, False, False),
    ):
        age(entry, days)
        if opened:
            load_text(spec, no_bos, context=8, cache=cache)
        load_text(spec, no_bos, context=8, cache=cache, tokens=3 + days)  # makes another store, and tidies up
        assert entry.exists() == kept, days
    assert len(entries(cache)) == 3


def test_a_cache_that_another_process_holds(spec, no_bos, cache, monkeypatch):
    monkeypatch.setattr(store, "LOCK_SECONDS", 0)
    with (
        store._lock(cache / ".tokens.lock"),
        pytest.raises(InputError, match=r"held by another process: .*tokens\.lock"),
    ):
        load_text(spec, no_bos, context=8, cache=cache)
    assert load_text(spec, no_bos, context=8, cache=cache).n_tokens == 6
