"""Random numbers that depend on a seed alone and leave the caller's generators as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, *stream: int) -> Iterator[None]:
    """Seed torch's generators for a block from `(seed, *stream)` and restore them after it.

    Streams are independent: the numbers drawn in epoch 7 do not depend on what was drawn in epoch 6, so
    that a resumed training needs no stored generator state.

    Raises:
        ValueError: A negative seed.
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}.")
    state = np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        torch.manual_seed(int(state[0]))
        yield
