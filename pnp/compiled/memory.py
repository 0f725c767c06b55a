"""Memory that a solve frees stays with the process for the next one."""

import ctypes
import os
import platform
from functools import cache

KEPT = 2**29
"""Bytes."""
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""What glibc's `malloc.h` calls M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""
LARGEST = 2**25
"""Bytes of a block that glibc keeps at all."""


@cache
def keep_freed_memory() -> None:
    """Have glibc keep up to half a gigabyte of what was freed, in blocks of up to 32 MB.

    Otherwise it returns to the system what a batch of a thousand cells has freed, and gets it back page by page at the
    next solve, for a third of what that costs. Whoever has told glibc in the environment what to keep is obeyed; other
    allocators take no notice.
    """
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not told:
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, LARGEST)
        libc.mallopt(TRIM_THRESHOLD, KEPT)
