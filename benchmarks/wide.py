"""Time and memory of wide features: python -m benchmarks.wide [--fit] [--threads N].

Dissociates 20,000 samples of 128 and 4096 channels, eight latents shared, in this process, and prints wall and
processor time, the peak of resident memory (the features, 0.34 GB, included) and how many directions were found; with
`--fit` a `CellGMF` is fitted to them. The bar is one minute on two cores and 2 GB.
"""

import argparse
import resource
import time

import torch

import fusion
from fusion.layers.cell_gmf import CellGMF

DIMS, SAMPLES, SHARED = {"a": 128, "b": 4096}, 20_000, 8


def features() -> dict[str, torch.Tensor]:
    """Float32, a few thousand samples at a time, so that making them takes no more memory than they do."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(SAMPLES, SHARED, generator=generator)
    made = {}
    for name, length in DIMS.items():
        mixing = torch.randn(SHARED, length, generator=generator) / SHARED**0.5
        made[name] = torch.randn(SAMPLES, length, generator=generator)
        for start in range(0, SAMPLES, 2000):
            made[name][start : start + 2000] += latents[start : start + 2000] @ mixing
    return made


def peak() -> float:
    """Resident memory at its highest so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="fit a CellGMF instead")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = features()
    before, wall, busy = peak(), time.perf_counter(), time.process_time()
    found = CellGMF(DIMS).fit(made) if options.fit else fusion.dissociate(made)
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    counts = ", ".join(f"{name} {one.invariant_dimension:.2f}" for name, one in found.channels.items())
    print(
        f"{'CellGMF.fit' if options.fit else 'dissociate'}: {wall:.1f} s, {busy:.1f} s of processor, "
        f"{before:.2f} GB before and {peak():.2f} GB at the peak; invariant: {counts} (true: {SHARED})"
    )


if __name__ == "__main__":
    main()
