"""How this process gets its memory."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST = 2**31 - 1
ALWAYS_ACCEPTED = 32 << 20
"""The largest mmap threshold that every 64-bit glibc takes."""


def keep_pages() -> bool:
    """Lets the allocator keep freed memory for the next large tensor instead of handing its pages back.

    On a CPU every call of a block frees and asks for megabytes, and fetching their pages anew costs up to a quarter of
    the time (`benchmarks/stacking.py --keep-pages`). It holds for the whole process, so that only the command line
    does it; memory in use stays at its peak until the process ends.

    Returns:
        Whether it could be done (glibc on Linux).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    large = mallopt(M_MMAP_THRESHOLD, LARGEST) or mallopt(M_MMAP_THRESHOLD, ALWAYS_ACCEPTED)
    return bool(large and mallopt(M_TRIM_THRESHOLD, LARGEST))
