"""One training step with the grounded layer beside one with GMF: python -m benchmarks.grounded_cost [--rounds N].

Two modalities of 512 channels in batches of 64, the size of the GMF paper, ten classes: forward, backward and step of
AdamW of the whole model with its head. A cell that follows its features is measured over all passes from one settling
to the next, one settling included, with a memory that is full. Medians of rounds in which every layer has its turn; CPU
time. `python -m benchmarks.grounded --page` shows what was found.
"""

from collections.abc import Callable

import torch

import fusion
from fusion.layers.cell_gmf import CellGMF
from pnp.compiled.memory import keep_freed_memory

from .measure import Cost, alternating, clock, load, options, save, table

DIMS = {"audio": 512, "video": 512}
BATCH, CLASSES = 64, 10
NAME = "grounded/cost"
PASSES = 20


def training_step(layer: fusion.FusionLayer) -> tuple[fusion.FusionModel, Callable[[], None]]:
    """A model around the layer, and one step of its training on a batch of noise."""
    model = fusion.FusionModel(layer, CLASSES)
    optimiser = torch.optim.AdamW(model.parameters())
    features = {name: torch.randn(BATCH, length, requires_grad=True) for name, length in DIMS.items()}
    label = torch.arange(BATCH) % CLASSES

    def step() -> None:
        found = model(features)
        loss = torch.nn.functional.cross_entropy(found.logits, label)
        optimiser.zero_grad()
        torch.stack([loss, *found.losses.values()]).sum().backward()
        optimiser.step()

    return model, step


def layers() -> dict[str, fusion.FusionLayer]:
    """GMF, a cell that was fitted, and one that follows its features."""
    samples = {name: torch.randn(10 * sum(DIMS.values()), length) for name, length in DIMS.items()}
    fitted = CellGMF(DIMS)
    fitted.fit(samples)
    following = CellGMF(DIMS)
    following.follow()
    following.fit(samples)
    return {"gmf": fusion.GMF(DIMS), "cell, fitted": fitted, "cell, following": following}


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step, parameters of the layer and of the whole model."""
    keep_freed_memory()
    torch.manual_seed(0)
    calls, counts, found = {}, {}, {}
    for name, layer in layers().items():
        model, step = training_step(layer)
        step()
        passes = layer.refresh if isinstance(layer, CellGMF) and layer.moments is not None else PASSES
        calls[name] = _repeated(step, passes)
        counts[name] = passes
        found[name] = {
            "layer": sum(one.numel() for one in layer.parameters()),
            "model": sum(one.numel() for one in model.parameters()),
        }
    costs: dict[str, Cost] = alternating(calls, rounds, clock)
    for name, cost in costs.items():
        found[name]["milliseconds"] = 1e3 * cost.cpu / counts[name]
    return found


def _repeated(step: Callable[[], None], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            step()

    return run


def cost_table() -> str:
    """Markdown, of what was measured."""
    found = load(NAME) or {}
    rows = [
        [
            name,
            f"{one['milliseconds']:.0f}",
            f"{one['milliseconds'] / found['gmf']['milliseconds']:.2f}",
            f"{one['layer']:,}",
            f"{one['model']:,}",
        ]
        for name, one in found.items()
    ]
    return table(["", "ms", "beside gmf", "parameters of the layer", "of the model, with its head"], rows)


def main() -> None:
    """Measure, keep, print."""
    chosen = options(
        __doc__.splitlines()[0],
        rounds={"type": int, "default": 5, "help": "how often each layer has its turn"},
    )
    torch.set_num_threads(1)
    save(NAME, measure(1 if chosen.quick else chosen.rounds))
    print(cost_table())


if __name__ == "__main__":
    main()
