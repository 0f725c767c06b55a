"""Every kind of cell of pnp/reference_values.json: solved, measured and extrapolated.

Errors are relative to the value, of rows to the largest of the row, of concentrations that of their logarithm (the
chemical potential, in thermal voltages) to the potential, and of impedances to |Z|.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch

import pnp

from .reference import alike, build, entries, measure, relative_error, solve, values

TABLE = entries()
NODES = {
    "steady": 201,
    "double_layer": 201,
    "steric": 401,
    "reversal": 201,
    "open_current": 201,
    "reactive": 201,
}
GRID, EXTRAPOLATED = 2e-3, 1e-5
"""Bounds of the errors: of the grid, whose first spacing is 1/50 (1/100) of the inner Debye length and which grows
with the distance, and of the fourth order that is left without the second. Forty thermal voltages take the most."""


def label(group):
    return f"{group[0]['id']}+{len(group) - 1}"


def of_concentration(entry):
    return entry["quantity"] == "midplane_concentration"


def groups(*kinds):
    return [group for kind in kinds for group in alike(entries(kind))]


def assert_within_two(estimates, errors, size):
    """Estimates of errors that are not yet rounding."""
    counted = errors > 1e-8 * size
    assert counted.any()
    ratios = (estimates / errors)[counted]
    assert float(ratios.min()) > 0.5
    assert float(ratios.max()) < 2.0


def assert_agrees(group, solution, grid=GRID, extrapolated=EXTRAPOLATED):
    """A batch of solutions, its extrapolation and the estimate of its error against the table."""
    wanted = values(group)
    logarithms = of_concentration(group[0])
    wanted = torch.log(wanted) if logarithms else wanted
    size = wanted.abs()
    if logarithms:
        size = torch.tensor([max(1.0, 2 * abs(entry["cell"]["left"]["potential"])) for entry in group])

    def quantity(some):
        found = measure(group[0], some)
        return torch.log(found) if logarithms else found

    limit = solution.richardson(quantity)
    errors = (quantity(solution) - wanted).abs().detach()
    assert float((errors / size).max()) < grid
    assert float(((limit.value - wanted).abs() / size).max()) < extrapolated
    assert_within_two(limit.error, errors, size)


def test_every_entry_is_in_one_group():
    found = [entry["id"] for group in alike(TABLE) for entry in group]
    assert sorted(found) == sorted(entry["id"] for entry in TABLE)
    compared = {*NODES, "impedance", "reversal_limit", "transient"}
    assert compared == {entry["kind"] for entry in TABLE}


@pytest.mark.parametrize("group", groups(*NODES), ids=label)
def test_steady_values(group):
    # On 201 nodes the layer of 80 thermal voltages is not yet where the orders show.
    assert_agrees(group, solve(group, 401 if of_concentration(group[0]) else NODES[group[0]["kind"]]))


def test_equilibria_know_small_concentrations():
    (group,) = (one for one in alike(entries("steady", "midplane_concentration")) if len(one) > 20)
    group = [entry for entry in group if entry["value"] < 1e-6]
    assert min(entry["value"] for entry in group) < 1e-32
    cell = build(*group)
    assert_agrees(group, pnp.solve_equilibrium(cell, pnp.Grid.refined(cell, 401)))


def test_extrapolation_is_of_fourth_order():
    group = groups("reactive")[0]
    errors = []
    for nodes in (101, 201, 401):
        limit = solve(group, nodes).richardson(lambda some: measure(group[0], some))
        errors.append((limit.value - values(group)).abs())
    orders = [torch.log2(a / b) for a, b in pairwise(errors)]
    assert torch.allclose(torch.stack(orders), torch.tensor(4.0, dtype=torch.float64), atol=0.3)


def test_default_grid_and_single_cells():
    for kind in NODES:
        group = alike(entries(kind))[0]
        entry = group[-1]
        single = measure(entry, pnp.solve_steady(build(entry)))
        assert single.shape == ()
        in_batch = measure(entry, solve(group, 201))[-1]
        assert float(single) == pytest.approx(float(in_batch), rel=1e-9)


# ---- impedance


def impedances():
    real, imag = (entries("impedance", f"impedance_{part}") for part in ("real", "imag"))
    for one, two in zip(real, imag, strict=True):
        assert one["cell"] == two["cell"]
        yield one, torch.complex(*(torch.tensor(entry["value"], dtype=torch.float64) for entry in (one, two)))


@pytest.mark.parametrize(
    ("entry", "wanted"), list(impedances()), ids=lambda part: part["id"] if isinstance(part, dict) else ""
)
def test_impedances(entry, wanted):
    solution = solve([entry], 201)

    def quantity(some):
        return pnp.impedance(some, [omega / (2 * np.pi) for omega in entry["frequencies"]])

    found, limit = quantity(solution), solution.richardson(quantity)
    errors = (found - wanted).abs() / wanted.abs()
    assert float(errors.max()) < 2e-4
    assert float(((limit.value - wanted).abs() / wanted.abs()).max()) < 1e-6
    # At 1e5 the nodes are too far apart for the diffusion length, sqrt(D/omega), for an order to show.
    resolved = torch.tensor(entry["frequencies"]) < 1e5
    assert_within_two(*(part[resolved] for part in (limit.error, (found - wanted).abs(), wanted.abs())))


# ---- limits


@pytest.mark.parametrize("salt", ["membrane", "binary"])
@pytest.mark.parametrize(
    ("limit", "permittivities", "smallest"), [("infinite", (1e4, 1e6), 1e-6), ("zero", (1e-4, 2.5e-5), 3e-4)]
)
def test_reversal_potentials_in_the_limits(salt, limit, permittivities, smallest):
    (entry,) = (one for one in entries("reversal_limit") if one["id"].startswith(f"{salt}-{limit}"))
    errors = []
    for permittivity in permittivities:
        cell = build(entry, permittivity=permittivity)
        solution = pnp.solve_steady(cell, pnp.Grid.uniform(cell, 401))
        errors.append(float(solution.richardson(lambda some: measure(entry, some)).value) - entry["value"])
    # The deviation is proportional to the permittivity, or to its inverse.
    factor = max(permittivities) / min(permittivities)
    assert errors[0] == pytest.approx(factor * errors[1], rel=0.1)
    assert abs(errors[1]) < smallest


# ---- transients

CHARGING = alike(entries("transient", "diffuse_charge"))


def assert_evolves(group, measured, bound):
    """What is `measured(entry)` of a batch, for every quantity of its cells."""
    names = {entry["id"].removesuffix("diffuse_charge") for entry in group}
    for quantity in ("diffuse_charge", "surface_charge", "midplane_concentration"):
        same = [one for one in entries("transient", quantity) if one["id"].removesuffix(quantity) in names]
        assert len(same) == len(group)
        assert relative_error(measured(same[0]), values(same)).max() < bound


@pytest.mark.parametrize("group", CHARGING[:3], ids=label)
def test_charging_at_default_tolerance(group):
    # The grid makes up to 2.4e-3 of the error (ten thermal voltages), the steps up to 5e-4.
    solution = solve(group, 101)
    assert_evolves(group, lambda entry: measure(entry, solution), 3e-3)


def test_charging_behind_stern_layers_extrapolated():
    (group,) = CHARGING[3:]
    solution = solve(group, 101, step_control=pnp.StepControl(relative=3e-5, absolute=3e-7))
    coarse = solution.again(solution.grid.coarsened())
    assert_evolves(group, lambda entry: (4 * measure(entry, solution) - measure(entry, coarse)) / 3, 1e-4)
    # Without it, the grid dominates.
    with pytest.raises(AssertionError):
        assert_evolves(group, lambda entry: measure(entry, solution), 2e-4)
