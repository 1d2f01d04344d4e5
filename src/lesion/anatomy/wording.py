"""What of transformers reaches the user: errors and lists of names in one line, and no bars or reports."""

import contextlib
from collections.abc import Iterator, Sequence

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


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers' loading report is replaced by our own errors."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
