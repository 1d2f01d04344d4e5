"""A shard that comes back is the shard that was committed; anything else is missing."""

from pathlib import Path

import numpy as np
import pytest

from lesion.errors import RunFolderError
from lesion.results import ShardStore

ARRAYS = {
    "sum": np.arange(6, dtype=np.float64).reshape(2, 3).T,  # not contiguous
    "count": np.array(2**53 + 1, dtype=np.int64),
    "none": np.zeros((0, 3), dtype=np.float32),
    "flag": np.array([True, False]),
}


@pytest.fixture
def store(tmp_path: Path) -> ShardStore:
    made = ShardStore(tmp_path / "shards", "plan-a")
    made.commit(3, ARRAYS, {"seconds": 1.5, "batches": [1, 2]})
    return made


def test_round_trip_is_exact(store: ShardStore) -> None:
    loaded = store.load(3)
    assert loaded is not None
    assert loaded.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        assert np.array_equal(loaded[name], array)
    assert store.info(3) == {"seconds": 1.5, "batches": [1, 2]}
    assert store.done() == {3}
    assert store.load(4) is None


def test_any_flipped_byte_is_found_and_the_file_removed(store: ShardStore) -> None:
    path = store.folder / "000003.safetensors"
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[position] ^= 0x01
        path.write_bytes(bytes(flipped))
        # a flip inside the header that changes only the order or the white space would be harmless; none is
        assert store.load(3) is None, position
        assert not path.exists()
    path.write_bytes(whole)
    assert store.load(3) is not None


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64])
def test_garbage_and_truncation_are_missing(store: ShardStore, content: bytes) -> None:
    path = store.folder / "000003.safetensors"
    path.write_bytes(content)
    assert store.done() == set()
    assert not path.exists()


def test_another_plan_or_index_is_missing(store: ShardStore) -> None:
    path = store.folder / "000003.safetensors"
    path.rename(store.folder / "000005.safetensors")
    assert store.done() == set()  # a renamed shard is not shard 5
    store.commit(3, ARRAYS, {})
    assert ShardStore(store.folder, "plan-a").done() == {3}
    assert ShardStore(store.folder, "plan-b").done() == set()


def test_same_index_again_replaces(store: ShardStore) -> None:
    store.commit(3, {"sum": np.ones(1)}, {})
    loaded = store.load(3)
    assert loaded is not None
    assert list(loaded) == ["sum"]


def test_clear_removes_shards_but_no_other_file(store: ShardStore) -> None:
    other = store.folder / "note.txt"
    other.write_text("mine")
    store.clear()
    assert list(store.folder.iterdir()) == [other]
    other.unlink()
    store.commit(0, ARRAYS, {})
    store.clear()
    assert not store.folder.exists()
    assert store.done() == set()


def test_unwritable_place_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "shards").write_text("a file")
    with pytest.raises(RunFolderError, match="cannot write"):
        ShardStore(tmp_path / "shards", "p").commit(0, ARRAYS, {})
