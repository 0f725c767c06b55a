"""The solvers where the tensors are: on the device of `--device`, and on a GPU as on a CPU."""

import pytest
import torch

import pnp

from .problems import electrolyte
from .test_pnp_gradients import Parametrised
from .test_pnp_steady import many_species

SOLVES = {
    "steady": pnp.solve_steady,
    "equilibrium": pnp.solve_equilibrium,
    "transient": lambda cell, grid: pnp.solve_transient(cell, grid, times=[0.001, 0.02]),
}


def charged(device: torch.device) -> pnp.Cell:
    voltage = torch.tensor([0.5, 3.0], dtype=torch.float64, device=device, requires_grad=True)
    return pnp.Cell(
        electrolyte(0.1, (1.0, -2.0), (1.0, 0.3)),
        length=1.0,
        concentrations=[1.0, 0.5],
        left=pnp.Electrode(potential=voltage),
        right=pnp.Electrode(potential=-1.0, stern_capacitance=2.0),
        ground=0.4,
    )


@pytest.mark.parametrize("name", SOLVES)
def test_solutions_live_where_the_cell_does(name, device):
    cell = charged(device)
    solution = SOLVES[name](cell, pnp.Grid.refined(cell, 31))
    assert cell.device == solution.potential.device == solution.concentrations.device
    assert cell.device.type == device.type
    for observable in (pnp.amounts, pnp.current_density, pnp.free_energy, pnp.debye_length):
        assert observable(solution).device == cell.device
    assert bool(solution.check().passed.all())
    (gradient,) = torch.autograd.grad(pnp.free_energy(solution).sum(), cell.left.potential)
    assert gradient.device == cell.device
    assert torch.isfinite(gradient).all()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["electrodes and ground", "bath and Stern layer with ground"])
@pytest.mark.parametrize("name", ["steady", "transient"])
def test_gpu_agrees_with_cpu(name, kind):
    found = []
    for where in ("cpu", "cuda"):
        vector = Parametrised(kind).start.to(where).requires_grad_()
        solution = SOLVES[name](*Parametrised(kind)(vector))
        (gradient,) = torch.autograd.grad(pnp.free_energy(solution).sum(), vector)
        found.append(
            [value.detach().cpu() for value in (solution.potential, solution.concentrations, gradient)]
        )
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
def test_many_species_on_a_gpu():
    plain = many_species(40)
    moved = many_species(
        40, left=pnp.Electrode(potential=torch.tensor(3.0, dtype=torch.float64, device="cuda"))
    )
    one = pnp.solve_equilibrium(plain, pnp.Grid.refined(plain, 61))
    two = pnp.solve_equilibrium(moved, pnp.Grid.refined(moved, 61))
    assert two.potential.is_cuda
    assert torch.allclose(one.potential, two.potential.cpu(), atol=1e-11)
