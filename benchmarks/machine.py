"""What a timing depends on beside the code: malloc."""

from __future__ import annotations

import os
import sys

TUNED_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def with_tuned_malloc() -> None:
    """Start this program again with a glibc malloc that keeps large blocks, unless it runs so already.

    By default glibc maps every block above some 32 MiB anew and the kernel zeroes its pages at first touch: a copy of
    64 MB takes 20 times as long as with warm memory.
    """
    if any(os.environ.get(name) != value for name, value in TUNED_MALLOC.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **TUNED_MALLOC})  # read once, at start
