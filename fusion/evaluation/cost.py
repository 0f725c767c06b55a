"""What a model costs: floating-point operations, and time beside another model."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..model import FusionModel
from ..training.batch import Batch

WARM_UP = 3
"""Rounds that are not counted."""


def flops(model: FusionModel, steps: Mapping[str, int] | None = None) -> int:
    """Floating-point operations of one sample's forward pass with all modalities, two for a multiply-add.

    Those of matrix products, see :func:`operations`.

    Arguments:
        model: Any.
        steps: Of the modalities that are sequences; None: there are none.
    """
    was_training, sample = model.training, _sample(model, 1, steps)
    model.eval()
    found = operations(lambda: model(*sample))
    model.train(was_training)
    return found


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products in a call, two for a multiply-add.

    Counted as they run by :class:`torch.utils.flop_counter.FlopCounterMode`; what is done entry by entry is left
    out, as usual. Attention runs as the products it consists of: torch's faster forms of it, and of a whole
    transformer layer where no gradients are wanted, are single calls in which nothing would be counted.
    """
    counter = FlopCounterMode(display=False)
    with counter, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        call()
    return int(counter.get_total_flops())


def relative_times(
    models: Mapping[str, FusionModel],
    *,
    beside: FusionModel,
    batch: int = 64,
    rounds: int = 40,
    steps: Mapping[str, int] | None = None,
) -> dict[str, float]:
    """Time of a forward and backward pass over that of another model, on random features.

    In every round each model runs once, the other one right after or, in every second round, before it, so
    that whatever else the machine does slows both; the median of the rounds' ratios is given. The features
    require gradients, as they do where extractors are trained. On the CPU the time is the processor's, of all
    threads, because a clock on the wall shows what other programs do: with four of them to a core, ratios of
    equal models came out between 0.7 and 0.9 by the clock, and between 0.97 and 1.02 so. A GPU is waited for.

    Arguments:
        models: Name → model.
        beside: The model whose time counts as 1, usually concatenation.
        batch: Samples in a pass.
        rounds: How many are counted, 1 or more.
        steps: See :func:`flops`.

    Raises:
        ValueError: `batch` or `rounds` below 1.
    """
    for name, value in (("batch", batch), ("rounds", rounds)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}.")
    ratios: dict[str, list[float]] = {name: [] for name in models}
    for number in range(WARM_UP + rounds):
        for name, model in models.items():
            if number % 2:
                own, bar = _seconds(model, batch, steps), _seconds(beside, batch, steps)
            else:
                bar, own = _seconds(beside, batch, steps), _seconds(model, batch, steps)
            if number >= WARM_UP:
                ratios[name].append(own / bar)
    return {name: median(found) for name, found in ratios.items()}


def _seconds(model: FusionModel, batch: int, steps: Mapping[str, int] | None) -> float:
    features, present, lengths = _sample(model, batch, steps)
    for values in features.values():
        values.requires_grad_()
    was_training = model.training
    state = {name: values.clone() for name, values in model.named_buffers()}
    model.train()
    on_gpu = next(iter(features.values())).is_cuda
    clock = time.perf_counter if on_gpu else time.process_time
    _wait(on_gpu)
    began = clock()
    predicted = model(features, present, lengths)
    torch.stack([predicted.logits.sum(), *predicted.losses.values()]).sum().backward()
    _wait(on_gpu)
    seconds = clock() - began
    model.zero_grad()
    model.train(was_training)
    for name, values in model.named_buffers():  # running statistics saw noise
        values.copy_(state[name])
    return seconds


def _sample(model: FusionModel, batch: int, steps: Mapping[str, int] | None) -> Batch:
    like, steps = next(model.parameters()), steps or {}
    features = {
        name: like.new_empty(batch, *([steps[name]] if name in steps else []), length).normal_()
        for name, length in model.layer.dims.items()
    }
    return Batch(
        features, {}, {name: torch.full((batch,), n, device=like.device) for name, n in steps.items()}
    )


def _wait(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()
