"""The embedded text: the running Python's standard library, its sources and its prose documentation."""

import ast
import functools
import io
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lesion.data.documents import BadRows, Document, hash_order
from lesion.errors import InputError

Part = Literal["code", "prose"]
MIN_DOCSTRING = 400  # characters: shorter docstrings say too little to be a document
TOPICS = "pydoc_data/topics.py"
# Tests are not typical code, the others differ between machines with the same Python.
LEFT_OUT_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib-dynload"}
LEFT_OUT_FILES = {"sitecustomize.py", "usercustomize.py"}


class StandardLibrary:
    """Sources (one file, one document) and prose (help topics and long docstrings, one document each).

    The order is fixed by a hash of the documents' names, so that any token budget is a fair sample, the same
    wherever the same Python runs.

    Args:
        parts: `code`, `prose`, or both.
    """

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.parts = parts

    def identity(self) -> object:
        """The parts and the version of Python."""
        return {"stdlib": list(self.parts), "python": sys.version, "folder": str(_folder())}

    def documents(self, bad_rows: BadRows) -> Iterator[Document]:
        """Code and prose interleaved by the hash of their names; a file of code is read when its turn comes."""
        texts: list[tuple[str, Path | str]] = []
        if "code" in self.parts:
            texts += [(name, path) for name, path in _source_files().items() if name != TOPICS]
        if "prose" in self.parts:
            texts += _prose()
        for name, text in sorted(texts, key=lambda item: hash_order(item[0])):
            yield Document(f"stdlib:{name}", text if isinstance(text, str) else _read(text))


def _folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


@functools.cache
def _source_files() -> dict[str, Path]:
    folder = _folder()
    files = {}
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        machine_specific = any(part.startswith(("_sysconfigdata", "config-")) for part in relative.parts)
        if machine_specific or LEFT_OUT_FOLDERS & set(relative.parts) or path.name in LEFT_OUT_FILES:
            continue
        if path.stat().st_size:
            files[relative.as_posix()] = path
    if not files:
        raise InputError(f"stdlib: this Python has no library sources in {folder}; give --data a file or folder")
    return files


@functools.cache
def _prose() -> list[tuple[str, Path | str]]:
    documents: list[tuple[str, Path | str]] = []
    seen = set()
    for name, path in _source_files().items():
        found = _topics(path) if name == TOPICS else _docstrings(ast.parse(_read(path)), f"{name}:")
        for document_name, text in found:
            if text not in seen:
                seen.add(text)
                documents.append((document_name, text))
    return documents


def _topics(path: Path) -> Iterator[tuple[str, str]]:
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.Assign):
            for topic, text in ast.literal_eval(statement.value).items():
                yield f"topic:{topic}", text


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Long docstrings below a node, named by the path to them; code within functions and branches counts, too."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring is not None and len(docstring) >= MIN_DOCSTRING:
            yield name, docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler):
            inner = getattr(child, "name", None)
            yield from _docstrings(child, f"{name}.{inner}" if inner else name)


def _read(path: Path) -> str:
    data = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return data.decode(encoding).replace("\r\n", "\n")
