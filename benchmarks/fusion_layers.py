"""Fusion layers beside the matrix products they consist of: python -m benchmarks.fusion_layers [--quick].

Forward and backward with two modalities of 512 channels in batches of 64, the size of the GMF paper. The bare
products are those of the four maps of each modality and of their gradients, 24 calls of torch.mm on tensors laid out
as the layer's are, and nothing else: no bias, no loss, no graph. Every round measures all in turn; ratios are medians
of the rounds' ratios; times are CPU times. Memory once allocated is kept, as torch does on a GPU, unless told
(`--allocator`): glibc gives it back after each step, and fetching it again costs both the products and what is between.
"""

import statistics
from collections.abc import Callable

import torch

from fusion import LAYERS, FusionLayer
from fusion.evaluation.cost import operations
from pnp.compiled.memory import keep_freed_memory

from .measure import options, per_call, table

DIMS = {"audio": 512, "video": 512}
BATCH = 64
BARE = "bare products of gmf"
MEASURED = (
    "concat",
    "sum",
    "gated",
    "low-rank",
    "gmf",
    "scfae",
    "misa",
    "cross-attention",
    "mbt",
    "perceiver",
)


def bare_products() -> Callable[[], None]:
    """Forward and backward of GMF's linear maps as matrix products alone."""
    maps = [
        (torch.randn(BATCH, inputs), torch.randn(outputs, inputs), torch.randn(BATCH, outputs))
        for length in DIMS.values()
        for inputs, outputs in (
            (length, 4 * length),
            (2 * length, 512),
            (2 * length, length),
            (512 + length, length),
        )
    ]

    def products() -> None:
        kept = []  # all gradients of the weights are there at the end of a step
        for values, weight, gradient in maps:
            torch.mm(values, weight.T)
            torch.mm(gradient, weight)
            kept.append(torch.mm(gradient.T, values))

    return products


def both_ways(layer: FusionLayer, compiled: bool = False) -> Callable[[], None]:
    """Forward and backward of a layer, with gradients of its parameters and of the features."""
    features = {name: torch.randn(BATCH, length, requires_grad=True) for name, length in DIMS.items()}
    run = torch.compile(layer) if compiled else layer
    gradient = torch.randn(BATCH, layer.out_features)

    def step() -> None:
        out = run(features)
        torch.autograd.backward(
            [out.concatenated(), *out.losses.values()], [gradient, *(None for _ in out.losses)]
        )
        for values in (*features.values(), *layer.parameters()):
            values.grad = None

    return step


def flops(layer: FusionLayer) -> int:
    """Of one sample, forward."""
    return operations(lambda: layer({name: torch.randn(1, length) for name, length in DIMS.items()}))


def main() -> None:
    """Measure and print."""
    chosen = options(
        __doc__.splitlines()[0],
        rounds={"type": int, "default": 15, "help": "how often each layer has its turn"},
        compiled={"action": "store_true", "help": "compiled layers too (needs a C++ compiler)"},
        allocator={"action": "store_true", "help": "leave glibc as it is, which returns memory at once"},
        layers={"default": ",".join(MEASURED), "help": "which, by name (default: %(default)s)"},
    )
    if not chosen.allocator:
        keep_freed_memory()
    torch.manual_seed(0)
    layers = {name: LAYERS[name](DIMS) for name in chosen.layers.split(",")}
    calls: dict[str, Callable[[], None]] = {BARE: bare_products()}
    calls |= {name: both_ways(layer) for name, layer in layers.items()}
    if chosen.compiled:
        calls |= {
            f"{name}, compiled": both_ways(LAYERS[name](DIMS), compiled=True) for name in ("gmf", "scfae")
        }
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 if chosen.quick else chosen.rounds):
        for name, call in calls.items():
            seconds[name].append(per_call(call).cpu)
    rows = []
    for name, times in seconds.items():
        layer = layers.get(name.removesuffix(", compiled"))
        ratios = [time / bare for time, bare in zip(times, seconds[BARE], strict=True)]
        rows.append(
            (
                name,
                f"{1e3 * statistics.median(times):.2f}",
                f"{statistics.median(ratios):.2f}",
                "" if layer is None else f"{sum(p.numel() for p in layer.parameters()):,}",
                "" if layer is None else f"{flops(layer) / 1e9:.4f}",
            )
        )
    print(f"Forward and backward, {DIMS}, batch {BATCH}, {torch.get_num_threads()} thread(s)\n")
    print(table(("layer", "ms", "ratio to the bare products", "parameters", "GFLOP, one sample"), rows))


if __name__ == "__main__":
    main()
