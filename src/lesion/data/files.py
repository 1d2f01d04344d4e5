"""Text from the file system: a file, a folder, or a glob."""

import codecs
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lesion.data.documents import BadRows, Document, expanded, hash_order
from lesion.data.rows import ROW_READERS
from lesion.errors import InputError

# What a folder is searched for. A file that is named, or that a glob matches, may have any suffix.
TEXT_KINDS = """
    txt text md markdown rst adoc org tex html htm xml css scss srt vtt log py pyi pyx js jsx ts tsx mjs java kt scala
    groovy c h cc cpp cxx hh hpp cu cuh m mm cs fs go rs swift rb php pl pm lua r jl hs ml mli ex exs erl clj lisp el
    scm f f90 pas d nim zig dart v sv vhd sql sh bash zsh fish ps1 bat vim awk cmake mk toml yaml yml ini cfg proto
    graphql tf lean
"""
TEXT_SUFFIXES = frozenset(f".{kind}" for kind in TEXT_KINDS.split())
# `.json` in a folder is configuration more often than rows of text: it is read where it is named.
FOLDER_SUFFIXES = TEXT_SUFFIXES | {".jsonl", ".ndjson", ".parquet", ".csv", ".tsv"}
SNIFFED_BYTES = 8192


class Files:
    """The documents of one file, of a folder's text files, or of the files that a glob matches.

    Files come in an order fixed by a hash of their path below the folder; rows of a file keep their order.

    Args:
        spec: path of a file or folder, or a glob (`**` does not follow links).
        column: where rows have their text; None looks for `text`, `content`, `document`.

    Raises:
        InputError: nothing there, nothing matched, no text in the folder, an empty file.
    """

    def __init__(self, spec: str, column: str | None) -> None:
        self.spec = spec
        self.column = column
        self.base, self.paths = _find(spec)

    def identity(self) -> object:
        """Path, size and time of change of every file."""
        try:
            stats = [(path, path.stat()) for path in self.paths]
        except OSError as error:
            raise InputError(f"{self.spec}: {error.filename} vanished or cannot be read: {error.strerror}") from error
        # fsencode().hex(): a file name need not be text
        files = [(os.fsencode(path.resolve()).hex(), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        return {"files": files, "column": self.column}

    def documents(self, bad_rows: BadRows) -> Iterator[Document]:
        """One document a file, or one a row."""
        for path in self.paths:
            reader = ROW_READERS.get(path.suffix.lower())
            try:
                if reader is not None:
                    yield from reader(path, self.column, bad_rows)
                else:
                    yield from _read_text(path, bad_rows)
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def is_glob(spec: str) -> bool:
    """Whether a path has wildcards."""
    return any(character in spec for character in "*?[")


def match(pattern: str) -> tuple[Path, list[Path]]:
    """The folder where the wildcards of a glob begin, and the files that it matches."""
    parts = expanded(pattern).parts
    first = next((index for index, part in enumerate(parts) if is_glob(part)), len(parts))
    base = Path(*parts[:first])
    try:
        return base, [path for path in base.glob(str(Path(*parts[first:]))) if path.is_file()]
    except ValueError as error:
        raise InputError(f"'{pattern}' is not a glob that can be used: {error}") from error


def _find(spec: str) -> tuple[Path, list[Path]]:
    path = expanded(spec)
    if path.is_dir():
        return path, _in_hash_order(path, _folder_files(path))
    if path.is_file():
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty; give --data a file that holds text")
        return path.parent, [path]
    if path.exists():
        raise InputError(f"{path} is neither a file nor a folder")
    if not is_glob(spec):
        raise InputError(
            f"there is no file or folder '{spec}'; --data takes a path, a glob, stdlib, stdlib:code, stdlib:prose, "
            "hf:ID[:CONFIG][@SPLIT][#COLUMN], or name=DATA"
        )
    base, matched = match(spec)
    if not matched:
        raise InputError(f"the glob '{spec}' matches no file")
    return base, _in_hash_order(base, matched)


def _in_hash_order(base: Path, paths: list[Path]) -> list[Path]:
    return sorted(sorted(paths), key=lambda path: hash_order(path.relative_to(base).as_posix()))


def _folder_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    others: Counter[str] = Counter()
    for path in _walk(folder):
        if path.suffix.lower() in FOLDER_SUFFIXES:
            found.append(path)
        else:
            others[path.suffix or "no suffix"] += 1
    if not found:
        seen = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5)) or "no files at all"
        raise InputError(f"the folder {folder} holds no text files (.txt .md .py .jsonl .parquet ...); found: {seen}")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, without hidden ones; linked folders are followed, each folder is entered once."""
    entered = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        stat = Path(root).stat()
        if (stat.st_dev, stat.st_ino) in entered:
            folders.clear()
            continue
        entered.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(root, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _read_text(path: Path, bad_rows: BadRows) -> Iterator[Document]:
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    nul = data.find(b"\0", 0, SNIFFED_BYTES)
    if nul >= 0:
        bad_rows.reject(f"{path} is a binary file (byte {nul} is NUL), not UTF-8 text")
        return
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        bad_rows.reject(f"{path}:{line}: byte {error.start} of the file is not UTF-8")
        return
    yield Document(str(path), text.replace("\r\n", "\n"))
