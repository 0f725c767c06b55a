"""Memory that a solve frees stays with the process for the next one."""

from functools import cache

import torch

LARGEST = 2**25 - 2**17
"""Just below what glibc always returns to the system."""


@cache
def keep_freed_memory() -> None:
    """Take and give back one block of 32 MB, which is never written to.

    From then on glibc, which adapts to the largest block it has seen, keeps up to twice that for blocks to come. Until
    then it returns to the system what a batch of a thousand cells has freed, and gets it back page by page at the next
    solve, for a third of what that costs. Other allocators take no notice.
    """
    torch.empty(LARGEST, dtype=torch.uint8)
