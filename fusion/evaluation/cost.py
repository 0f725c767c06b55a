"""What a model costs: floating-point operations, and time beside another model."""

import time
from collections.abc import Mapping
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..model import FusionModel

WARM_UP = 3
"""Rounds that are not counted."""


@torch.no_grad()
def flops(model: FusionModel) -> int:
    """Floating-point operations of one sample's forward pass with all modalities, two for a multiply-add.

    Those of matrix products, counted as they run by :class:`torch.utils.flop_counter.FlopCounterMode`; what
    is done entry by entry is left out, as usual.
    """
    was_training = model.training
    counter = FlopCounterMode(display=False)
    with counter:
        model.eval()(_sample(model, 1))
    model.train(was_training)
    return int(counter.get_total_flops())


def relative_times(
    models: Mapping[str, FusionModel], *, beside: FusionModel, batch: int = 64, rounds: int = 40
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
                own, bar = _seconds(model, batch), _seconds(beside, batch)
            else:
                bar, own = _seconds(beside, batch), _seconds(model, batch)
            if number >= WARM_UP:
                ratios[name].append(own / bar)
    return {name: median(found) for name, found in ratios.items()}


def _seconds(model: FusionModel, batch: int) -> float:
    features = {name: values.requires_grad_() for name, values in _sample(model, batch).items()}
    was_training = model.training
    state = {name: values.clone() for name, values in model.named_buffers()}
    model.train()
    on_gpu = next(iter(features.values())).is_cuda
    clock = time.perf_counter if on_gpu else time.process_time
    _wait(on_gpu)
    began = clock()
    predicted = model(features)
    torch.stack([predicted.logits.sum(), *predicted.losses.values()]).sum().backward()
    _wait(on_gpu)
    seconds = clock() - began
    model.zero_grad()
    model.train(was_training)
    for name, values in model.named_buffers():  # running statistics saw noise
        values.copy_(state[name])
    return seconds


def _sample(model: FusionModel, batch: int) -> dict[str, Tensor]:
    like = next(model.parameters())
    return {name: like.new_empty(batch, length).normal_() for name, length in model.layer.dims.items()}


def _wait(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()
