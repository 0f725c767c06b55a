"""Elementary functions whose values do not depend on where a number stands in a tensor.

On a CPU, torch computes most of a tensor in vectors and the last few numbers one by one, with other functions that
differ in the last bit. A cell then had other numbers in a batch than alone, which stiff transients show in the
eleventh digit. Here every tensor is filled up to whole vectors.
"""

from collections.abc import Callable

import torch
from torch import Tensor

WHOLE = 64
"""Numbers; more than any processor computes at once."""


def evenly(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of numbers, one by one, that is given whole vectors; what fills them up is one."""

    def evaluated(x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return function(x)
        extra = -x.numel() % WHOLE
        if not extra:
            return function(x.contiguous())
        filled = torch.nn.functional.pad(x.reshape(-1), (0, extra), value=1.0)
        return function(filled)[: x.numel()].reshape(x.shape)

    evaluated.__doc__ = function.__doc__
    return evaluated


exp, expm1, log, log1p = map(evenly, (torch.exp, torch.expm1, torch.log, torch.log1p))
cosh, sinh, tanh = map(evenly, (torch.cosh, torch.sinh, torch.tanh))
