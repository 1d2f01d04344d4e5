"""What a run folder may hold, and how one is told from a folder that is somebody else's."""

import re
import shutil
from pathlib import Path

from lesion.errors import RunFolderError
from lesion.results.atomic import TEMPORARY_SUFFIX

MANIFEST = "run.json"
LOCK, HOLDER = ".lock", ".lock.holder"
LOG, REPORT = "log.txt", "report.html"
FOLDERS = {
    "tables": {".parquet"},
    "arrays": {".safetensors"},
    "figures": {".svg", ".png"},
    "shards": {".safetensors"},
}
TREES = {
    "models": re.compile(r"step-\d+/(bf16|fp16|fp32)/[^/]+\.(json|safetensors|jinja|txt|model)"),
    "trainer": re.compile(r"checkpoint-\d+/[^/]+\.(json|safetensors|pt|pth|bin|whole)"),
}
"""Folders of folders, and the paths of files in them; `trainer` is what a run that trains a model needs to go on."""
FILES = {MANIFEST, LOCK, HOLDER, LOG, REPORT}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def checked_name(name: str) -> str:
    """`name`, if it can name a table or an array file: no separators, no leading dot."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a name for a table or arrays: {name!r}")
    return name


def preflight(path: Path) -> None:
    """Makes the folder if need be, and refuses one that is not a run folder.

    Raises:
        RunFolderError: `path` is a file, cannot be made or written, or holds something else.
    """
    try:
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"--out {path} is a file, not a folder; pass another --out")
        path.mkdir(parents=True, exist_ok=True)
        entries = [entry for entry in path.iterdir() if not _is_trace(entry)]
        if entries and not (path / MANIFEST).is_file():
            raise RunFolderError(
                f"{path} is not a lesion run folder (it holds {entries[0].name!r} and no {MANIFEST}); "
                "pass an empty or new folder as --out"
            )
        probe = path / f".probe{TEMPORARY_SUFFIX}"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise RunFolderError(f"cannot use {path} as a run folder: {reason}; pass another --out") from error


def empty(path: Path) -> None:
    """Removes what a run wrote, except the manifest and the lock, which are replaced and kept.

    Raises:
        RunFolderError: the folder holds anything that lesion did not write; nothing is removed then.
    """
    foreign = _foreign(path)
    if foreign:
        listed = ", ".join(repr(str(entry.relative_to(path))) for entry in foreign[:5])
        raise RunFolderError(
            f"{path} is not overwritten: it holds files that are not lesion's ({listed}); "
            "move them or pass another --out"
        )
    for name in (*FOLDERS, *TREES):
        if (path / name).exists():
            shutil.rmtree(path / name)
    for name in (LOG, REPORT):
        (path / name).unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Removes the unfinished files and folders that a killed process left; call it only under the lock."""
    for folder in (path, *(path / name for name in (*FOLDERS, *TREES))):
        for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def _is_trace(entry: Path) -> bool:
    return entry.name in {LOCK, HOLDER} or (entry.name.startswith(".") and entry.name.endswith(TEMPORARY_SUFFIX))


def _foreign(path: Path) -> list[Path]:
    found = []
    for entry in sorted(path.iterdir()):
        if entry.name in FOLDERS and entry.is_dir() and not entry.is_symlink():
            allowed = FOLDERS[entry.name]
            found += [inner for inner in sorted(entry.iterdir()) if not _is_ours(inner, allowed)]
        elif entry.name in TREES and entry.is_dir() and not entry.is_symlink():
            found += _foreign_in_tree(entry, TREES[entry.name])
        elif not (_is_trace(entry) or (entry.name in FILES and entry.is_file())):
            found.append(entry)
    return found


def _foreign_in_tree(folder: Path, allowed: re.Pattern[str]) -> list[Path]:
    """Files (and links) of a tree whose paths are not those that lesion writes; folders are made on the way."""
    inner = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    names = [(path, path.relative_to(folder).as_posix()) for path in inner]
    return [path for path, name in names if path.is_symlink() or not allowed.fullmatch(name)]


def _is_ours(entry: Path, suffixes: set[str]) -> bool:
    return _is_trace(entry) or (entry.suffix in suffixes and entry.is_file())
