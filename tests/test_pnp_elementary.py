"""Elementary functions give every number the same value wherever it stands."""

import pytest
import torch

from pnp import elementary


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "cosh", "sinh", "tanh"])
def test_values_do_not_depend_on_the_place(name):
    function = getattr(elementary, name)
    x = torch.linspace(0.01, 9, 2 * 131, dtype=torch.float64)
    whole = function(x)
    assert torch.allclose(whole, getattr(torch, name)(x), rtol=1e-15, atol=0)
    for start, stop in ((0, 1), (3, 10), (130, 262)):
        assert torch.equal(function(x[start:stop]), whole[start:stop])
    assert torch.equal(function(x.reshape(2, 131)[:, ::3]), whole.reshape(2, 131)[:, ::3])
    assert function(x[:0]).shape == (0,)
    assert torch.autograd.gradcheck(function, x[:5].clone().requires_grad_())
