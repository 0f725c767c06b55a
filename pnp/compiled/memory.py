"""Memory that a solve frees stays with the process for the next one.

The system clears every page that it gives out, which costs a third of a solve or more.
"""

import ctypes
import os
import platform
import weakref
from functools import cache

import numpy as np

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
    next solve. Whoever has told glibc in the environment what to keep is obeyed; other allocators take no notice.
    """
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not told:
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, LARGEST)
        libc.mallopt(TRIM_THRESHOLD, KEPT)


class Blocks:
    """Blocks of one size, lent out again once nothing refers to them; of the size that was asked for last.

    Where glibc may choose, tapes lie somewhere else at every solve, and for many solves partly on new pages.

    Example:
        >>> blocks = Blocks()
        >>> first = blocks.lend(100)
        >>> where = first.ctypes.data
        >>> del first
        >>> blocks.lend(100).ctypes.data == where
        True
    """

    def __init__(self, most: int = KEPT) -> None:
        self.most = most
        self.size = 0
        self.free: list[np.ndarray] = []

    def lend(self, size: int) -> np.ndarray:
        """Bytes, of any value; views of them count as well, and tensors made of those."""
        if size != self.size:
            self.free, self.size = [], size
        try:
            block = self.free.pop()
        except IndexError:
            block = np.empty(size, np.uint8)
        # Views of arrays refer to what the array itself is a view of, unless that is no array.
        lent = np.frombuffer(block.data, np.uint8)
        weakref.finalize(lent, self._take_back, block).atexit = False
        return lent

    def _take_back(self, block: np.ndarray) -> None:
        if block.size == self.size and (len(self.free) + 1) * self.size <= self.most:
            self.free.append(block)
