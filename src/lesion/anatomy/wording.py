"""How errors of libraries and lists of names are put into one line."""

from collections.abc import Sequence

LONGEST_REASON = 400
"""Characters of an error of transformers that are passed on; some list every model there is."""


def first_line(error: BaseException) -> str:
    """The first line of a message, and the next where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    message = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return message if len(message) <= LONGEST_REASON else f"{message[:LONGEST_REASON]} …"


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
