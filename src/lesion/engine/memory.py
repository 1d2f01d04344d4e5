"""How this process gets its memory, and gives it back."""

import ctypes
import sys
from functools import cache
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST = 2**31 - 1
ALWAYS_ACCEPTED = 32 << 20
"""The largest mmap threshold that every 64-bit glibc takes."""
LOOSE = 64 << 20
"""Bytes that may lie free in the allocator before they are given back."""


class _Mallinfo2(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks"),
            "keepcost",
        )
    )


@cache
def _glibc() -> Any:
    """The C library, if it is glibc."""
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None


def keep_pages() -> bool:
    """Lets the allocator keep freed memory for the next large tensor instead of handing its pages back.

    On a CPU every call of a block frees and asks for megabytes, and fetching their pages anew costs up to a quarter of
    the time (`benchmarks/stacking.py --keep-pages`). It holds for the whole process, so that only the command line
    does it; memory in use stays at its peak until the process ends, or until `give_back`.

    Returns:
        Whether it could be done (glibc on Linux).
    """
    library = _glibc()
    if library is None:
        return False
    large = library.mallopt(M_MMAP_THRESHOLD, LARGEST) or library.mallopt(M_MMAP_THRESHOLD, ALWAYS_ACCEPTED)
    return bool(large and library.mallopt(M_TRIM_THRESHOLD, LARGEST))


def give_back() -> bool:
    """Hands freed memory back to the system if much of it lies in the allocator.

    Between two blocks of a streamed model nothing large is in use, yet what was freed stays: in pieces between small
    things that live on it grew by tens of megabytes a block.

    Returns:
        Whether there was any, and a way to do it.
    """
    library = _glibc()
    if library is None:
        return False
    if hasattr(library, "mallinfo2"):  # glibc 2.33
        library.mallinfo2.restype = _Mallinfo2
        if library.mallinfo2().fordblks < LOOSE:
            return False
    return bool(library.malloc_trim(0))
