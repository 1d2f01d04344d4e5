"""The allocator is told once, and only where it listens."""

import subprocess
import sys

import pytest

from lesion.engine import keep_pages

FAULTS = """
import resource, sys, torch
from lesion.engine import keep_pages
if sys.argv[1] == "keep":
    assert keep_pages()
torch.set_num_threads(1)
for _ in range(3):
    torch.ones(12_000_000), torch.ones(12_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(12_000_000), torch.ones(12_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator only")
def test_freed_memory_is_used_again() -> None:
    """Twenty tensors of 48 MB, two at a time: their pages anew each time, or never."""
    if not keep_pages():
        pytest.skip("the C library of this machine has no mallopt")
    faults = {
        kind: int(
            subprocess.run([sys.executable, "-c", FAULTS, kind], capture_output=True, text=True, check=True).stdout
        )
        for kind in ("leave", "keep")
    }
    assert faults["keep"] * 4 < faults["leave"]
