"""A file is either the old one or the whole new one, and nothing else is left."""

import errno
import os
import stat
from pathlib import Path

import pytest

from lesion.errors import RunFolderError
from lesion.results import atomic_write, file_digest


def test_writes_whole_file_and_leaves_no_other(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    atomic_write(target, lambda path: path.write_text("new"))
    assert target.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_writer_that_raises_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def writer(path: Path) -> None:
        path.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        atomic_write(target, writer)
    assert target.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    def writer(path: Path) -> None:
        path.write_bytes(b"half")
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(RunFolderError, match=r"cannot write .*a\.txt: No space left on device; free space"):
        atomic_write(tmp_path / "a.txt", writer)
    assert list(tmp_path.iterdir()) == []


def test_temporary_is_in_the_folder_of_the_target(tmp_path: Path) -> None:
    seen: list[Path] = []

    def writer(path: Path) -> None:
        seen.append(path)
        path.write_bytes(b"")

    atomic_write(tmp_path / ("n" * 250), writer)  # the temporary name must not exceed 255 bytes when the target's fits
    assert seen[0].parent == tmp_path
    assert not seen[0].exists()


def test_digest_follows_content(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"abc")
    assert file_digest(target) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    target.write_bytes(b"abd")
    assert not file_digest(target).startswith("ba7816bf")


@pytest.mark.parametrize(("number", "kept"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_folder_that_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kept: bool
) -> None:
    """Some network file systems cannot sync a folder and say EINVAL; anything else is a fault of the disk."""
    sync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    if kept:
        atomic_write(tmp_path / "a.txt", lambda path: path.write_text("new"))
        assert (tmp_path / "a.txt").read_text() == "new"
    else:
        with pytest.raises(RunFolderError, match="Input/output error"):
            atomic_write(tmp_path / "a.txt", lambda path: path.write_text("new"))
