"""What every source of text yields, and what happens to a row that cannot be used."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from lesion.errors import InputError

OnBadRow = Literal["fail", "skip"]
TEXT_COLUMNS = ("text", "content", "document")


@dataclass(frozen=True, slots=True)
class Document:
    """One document: where it comes from, for messages and for its place in the order, and its text."""

    name: str
    text: str


class BadRows:
    """Stops at the first row that cannot be used, or counts such rows.

    Args:
        policy: `fail` raises `InputError`, `skip` counts.
    """

    def __init__(self, policy: OnBadRow) -> None:
        self.policy = policy
        self.count = 0

    def reject(self, message: str) -> None:
        """Raises `InputError(message)`, or counts one row."""
        if self.policy == "fail":
            raise InputError(f"{message}; mend it, or leave such rows out with --on-bad-row skip")
        self.count += 1


@runtime_checkable
class Source(Protocol):
    """Where the documents of one domain come from."""

    def identity(self) -> object:
        """Something JSON can hold that differs whenever the documents may differ."""
        ...

    def documents(self, bad_rows: BadRows) -> Iterator[Document]:
        """The documents in their fixed order, read only as far as they are asked for."""
        ...


def usable_text(value: object, where: str, bad_rows: BadRows) -> str | None:
    """The value as text, or None after it was rejected: null, not a string, or not encodable as UTF-8."""
    if value is None:
        bad_rows.reject(f"{where}: the text is null")
        return None
    if not isinstance(value, str):
        bad_rows.reject(f"{where}: the text is {type(value).__name__}, not a string")
        return None
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        bad_rows.reject(
            f"{where}: character {error.start} of the text is U+{ord(value[error.start]):04X}, a lone surrogate"
        )
        return None
    return value


def expanded(path: str) -> Path:
    """A path in which `~` and `~user` stand for home folders.

    Raises:
        InputError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path[:200]!r} names a home folder that is not there: {error}") from None


def shown_name(path: Path) -> str:
    """The last part of a path as text: a name on disk may be any bytes, one in a table may not."""
    return os.fsencode(path.name).decode("utf-8", "replace")


def text_column(found: Sequence[str], asked: str | None, where: str) -> str:
    """The column that holds the text: the one asked for, or the first of `text`, `content`, `document`.

    Raises:
        InputError: there is no such column; the message lists those there are.
    """
    columns = ", ".join(found) or "none"
    if asked is not None:
        if asked not in found:
            raise InputError(f"{where} has no column '{asked}'; columns found: {columns}")
        return asked
    for column in TEXT_COLUMNS:
        if column in found:
            return column
    raise InputError(
        f"{where} has no text column ({', '.join(TEXT_COLUMNS)}); columns found: {columns}; name one with #COLUMN"
    )


def hash_order(name: str, salt: str = "") -> bytes:
    """Sort key that puts names in an arbitrary order, the same everywhere."""
    return hashlib.sha256(os.fsencode(salt) + os.fsencode(name)).digest()
