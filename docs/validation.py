"""Measure the errors that validation.md reports: python docs/validation.py > docs/validation.md."""

import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import brentq

sys.path.insert(0, str(Path(__file__).parents[1]))

import fusion
import pnp
from fusion.transport import channel_cell, equilibrate, gates
from tests.problems import MEMBRANE, Canonical, DebyeHueckel, GouyChapman, SaltDiffusion
from tests.spectral import SpectralCell, two_sided
from tests.test_pnp_gradients import AT_REST, GIVEN_TIMES, KINDS, gradient_error, one_step_per_time
from tests.test_pnp_transient import relaxation

CASES = [(voltage, debye) for voltage in (1.0, 4.0, 10.0) for debye in (0.1, 0.01, 0.001)]
NODES = (101, 201, 401)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def steady() -> str:
    """Canonical cells against the exact solution."""
    rows = []
    for voltage, debye in CASES:
        problem = Canonical(voltage, debye)
        charges, potential = [], 0.0
        for nodes in NODES:
            cell = problem.cell()
            solution = pnp.solve_steady(cell, pnp.Grid.refined(cell, nodes))
            charges.append(float(pnp.diffuse_charge(solution)) / problem.charge - 1)
            potential = np.abs(
                solution.potential.numpy() - problem.potential(solution.positions.numpy())
            ).max()
        order = math.log2(charges[1] / charges[2])
        rows.append(
            [
                f"{voltage:g}",
                f"{debye:g}",
                *(f"{error:.1e}" for error in charges),
                f"{order:.3f}",
                f"{potential:.1e}",
            ]
        )
    head = [
        "U₀ (V_T)",
        "ε",
        *(f"error of Q, {n} nodes" for n in NODES),
        "order",
        f"error of φ, {NODES[-1]} nodes",
    ]
    return table(head, rows)


def closed_forms() -> str:
    """Other steady states and decays against their closed forms."""
    rows = []
    linear = DebyeHueckel(0.1)
    cell = linear.cell()
    sigma = float(pnp.surface_charge(pnp.solve_steady(cell)).left)
    rows.append(
        ["Debye-Hückel response of a closed cell", "surface charge", sigma / linear.surface_charge - 1]
    )
    layer = GouyChapman(6.0)
    solution = pnp.solve_steady(layer.cell())
    sigma = float(pnp.surface_charge(solution).left)
    rows.append(
        ["Gouy-Chapman against a reservoir", "surface charge (Grahame)", sigma / layer.surface_charge() - 1]
    )
    profile = np.abs(solution.potential.numpy() - layer.potential(solution.positions.numpy())).max()
    rows.append(["", "potential (V_T)", profile])
    volts = torch.tensor(float(layer.voltage), dtype=torch.float64, requires_grad=True)
    charged = pnp.solve_steady(layer.cell(left=pnp.Electrode(potential=volts)))
    (slope,) = torch.autograd.grad(pnp.surface_charge(charged).left, volts)
    rows.append(["", "capacitance, by the gradient", float(slope) / layer.capacitance - 1])
    voltage, debye_length = 7.0, 1e3
    z = torch.linspace(-1, 1, 9, dtype=torch.float64)
    found = gates(equilibrate(channel_cell(z, voltage=voltage, debye_length=debye_length)))
    rows.append(
        [
            "dilute channels around a ground",
            "gate (logistic)",
            float((found - torch.sigmoid(z * voltage)).abs().max()),
        ]
    )
    return table(["what", "quantity", "error"], [[a, b, f"{c:.1e}"] for a, b, c in rows])


def transients() -> str:
    """Charging against spectral elements in space and Radau in time."""
    rows = []
    for voltage, debye in ((1.0, 0.1), (4.0, 0.1), (10.0, 0.1), (1.0, 0.01), (4.0, 0.01)):
        times = debye * np.array([0.1, 0.3, 1.0, 3.0, 10.0])
        inner = debye * max(1 / math.cosh(voltage / 2), debye)
        reference = SpectralCell(two_sided(2.0, 1.5 * inner, 16), 2 * debye**2, (voltage, -voltage))
        exact = reference.diffuse_charge(reference.solve(times, 1e-9))
        cell = Canonical(voltage, debye).cell()
        errors, steps = [], 0
        for control in (pnp.StepControl(), pnp.StepControl(relative=1e-6, absolute=1e-8)):
            solution = pnp.solve_transient(
                cell, pnp.Grid.refined(cell, 201), times=times, step_control=control
            )
            errors.append(np.abs(pnp.diffuse_charge(solution).numpy() / exact - 1).max())
            steps = steps or int(solution.stats.steps)
        check = solution.check()
        rows.append(
            [
                f"{voltage:g}",
                f"{debye:g}",
                str(steps),
                *(f"{error:.1e}" for error in errors),
                f"{float(check.amount_error):.0e}",
                f"{float(check.gauss_error):.0e}",
            ]
        )
    head = ["U₀ (V_T)", "ε", "steps", "error of Q(t), default", "tolerance 1e-6", "amounts", "Gauss's law"]
    return table(head, rows)


def reversal() -> str:
    """Potential without current between two baths of K, Na and Cl."""
    rows = []
    for permittivity, limit, name in (
        (100.0, MEMBRANE.reversal_constant_field(), "Goldman-Hodgkin-Katz"),
        (1e-8, MEMBRANE.reversal_neutral(), "Planck"),
    ):

        def current(voltage: float, permittivity: float = permittivity) -> float:
            cell = MEMBRANE.cell(voltage, permittivity)
            return float(pnp.current_density(pnp.solve_steady(cell, pnp.Grid.refined(cell, 201))).mean())

        found = brentq(current, -5.0, 5.0, xtol=1e-12)
        rows.append([name, f"{permittivity:g}", f"{found:.6f}", f"{limit:.6f}", f"{found - limit:.1e}"])
    return table(["limit", "ε²", "found (V_T)", "limit (V_T)", "difference"], rows)


def guarantees(count: int = 300) -> str:
    """Random cells of every kind: how many are solved, and the worst of what they must keep."""
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    rows = []
    for kind in ("blocking", "Stern layer", "ground", "electrode and reservoir", "two reservoirs"):
        bound = 5 if "reservoir" in kind else 40
        valences = torch.stack([uniform(0.5, 3, count), -uniform(0.5, 3, count)], dim=-1)
        cations = 10 ** uniform(-1, 1, count)
        filling = torch.stack([cations, -cations * valences[:, 0] / valences[:, 1]], dim=-1)
        ions = [
            pnp.Species(n, valence=valences[:, i], diffusivity=10 ** uniform(-1, 1, count))
            for i, n in enumerate("+-")
        ]
        permittivity = 10 ** uniform(-6, 0, count) * (valences**2 * filling).sum(-1)
        left = pnp.Electrode(
            potential=uniform(-bound, bound, count),
            stern_capacitance=10 ** uniform(-2, 3, count) if kind == "Stern layer" else None,
        )
        right = pnp.Electrode(potential=uniform(-bound, bound, count))
        if "reservoir" in kind:
            baths = filling * 10 ** uniform(-1, 1, count)[:, None]
            right = pnp.Reservoir(concentrations=baths, potential=right.potential)
        if kind == "two reservoirs":
            left = pnp.Reservoir(concentrations=filling, potential=left.potential)
        cell = pnp.Cell(
            pnp.Electrolyte.dimensionless(ions, permittivity=permittivity),
            length=1.0,
            concentrations=filling,
            left=left,
            right=right,
            ground=uniform(0.1, 0.9, count) if kind == "ground" else None,
        )
        solution = pnp.solve_steady(cell, throw=False)
        check, solved = solution.check(), solution.solved
        finite = bool(
            torch.isfinite(solution.concentrations).all() and torch.isfinite(solution.potential).all()
        )
        rows.append(
            [
                kind,
                f"±{bound}",
                f"{int(solved.sum())} of {count}",
                "none" if finite else "some",
                f"{float(check.smallest_concentration[solved].min()):.0e}",
                f"{float(check.amount_error[solved].max()):.0e}" if cell.is_closed else "open",
                f"{float(check.gauss_error[solved].max()):.0e}",
            ]
        )
    head = ["ends", "U (V_T)", "solved", "NaN", "smallest c", "amounts", "Gauss's law"]
    return table(head, rows)


def counting(seeds: int = 8) -> str:
    """Shared directions found without being told how many there are."""
    rows = []
    for samples in (500, 2000, 10_000):
        cells = []
        for shared in (0, 2, 5, 10):
            found = [
                fusion.dissociate(
                    fusion.shared_private(
                        samples, {"a": 32, "b": 24}, shared=shared, private=8, noise=0.3, seed=seed
                    )[0].modalities
                )
                .channels["a"]
                .invariant_dimension
                for seed in range(seeds)
            ]
            cells.append(f"{np.mean(found):.2f} ± {np.std(found, ddof=1):.2f}")
        rows.append([f"{samples:,}", *cells])
    return table(["samples", *(f"{shared} shared" for shared in (0, 2, 5, 10))], rows)


def decay() -> str:
    """A neutral salt of equal diffusivities, which diffuses as if uncharged."""
    problem = SaltDiffusion()
    cell, rows = problem.cell(), []
    for nodes in (21, 41, 81):
        grid = pnp.Grid.uniform(cell, nodes)
        mode = torch.tensor(problem.profile(grid.nodes.numpy())).expand(2, -1)
        end = 1 / problem.rate
        solution = pnp.solve_transient(
            cell, grid, times=[end], initial=mode, step_control=pnp.StepControl(relative=1e-7, absolute=1e-9)
        )
        exact = torch.tensor(problem.profile(grid.nodes.numpy(), math.exp(-1)))
        rows.append([str(nodes), f"{float((solution.concentrations[-1, 0] - exact).abs().max()):.1e}"])
    return table(["nodes", "largest error of c after one decay time"], rows)


def steps() -> str:
    """Error of the time steps alone: on a uniform grid a cosine decays at a rate that is known."""
    problem, nodes, rows = SaltDiffusion(), 17, []
    end = 1.5 / problem.rate
    for relative in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
        control = pnp.StepControl(relative=relative, absolute=relative * 1e-2)
        solution = relaxation(problem, nodes, [end], control)
        exact = problem.profile(solution.positions.numpy(), math.exp(-problem.rate_on(nodes - 1) * end))
        error = np.abs(solution.concentrations[0, 0].numpy() - exact).max()
        rows.append([f"{relative:.0e}", str(int(solution.stats.steps)), f"{error:.1e}"])
    return table(["tolerance", "steps", "largest error of c"], rows)


def small_signals() -> str:
    """Charging at voltages that hardly move the concentrations, whose error is controlled."""
    rows, times = [], [0.03, 0.1, 0.2]
    for voltage in (1.0, 0.1, 0.01, 0.001):
        reference = SpectralCell(two_sided(2.0, 0.1, 14), 0.02, (voltage, -voltage))
        charge = reference.diffuse_charge(reference.solve(times, 1e-9 * voltage))
        cell, errors = Canonical(voltage, 0.1).cell(), []
        for relative in (1e-4, 1e-6, 1e-8):
            control = pnp.StepControl(relative=relative, absolute=relative * 1e-2)
            solution = pnp.solve_transient(
                cell, pnp.Grid.refined(cell, 401), times=times, step_control=control
            )
            errors.append(f"{np.abs(pnp.diffuse_charge(solution).numpy() / charge - 1).max():.1e}")
        rows.append([f"{voltage:g}", *errors])
    return table(["U₀ (V_T)", "tolerance 1e-4", "tolerance 1e-6", "tolerance 1e-8"], rows)


def gradients() -> str:
    """Backward passes against central differences, for every number of a cell and every kind of end."""

    def transient(cell: pnp.Cell, grid: pnp.Grid) -> pnp.Solution:
        return pnp.solve_transient(cell, grid, times=GIVEN_TIMES)

    rows = []
    for kind in KINDS:
        steady = f"{gradient_error(pnp.solve_steady, kind)[0]:.1e}"
        rest = f"{gradient_error(pnp.solve_equilibrium, kind)[0]:.1e}" if kind in AT_REST else "never at rest"
        with one_step_per_time():
            rows.append([kind, steady, rest, f"{gradient_error(transient, kind)[0]:.1e}"])
    return table(["ends", "`solve_steady`", "`solve_equilibrium`", "`solve_transient`"], rows)


PAGE = """# Validation

Every number on this page was measured by `python docs/validation.py`, which prints the page. The same comparisons,
with bounds, are in the tests. Potentials are in thermal voltages $V_T$; *error* is relative unless said.

## Steady states against the exact solution

The canonical cell: a 1:1 salt between electrodes at $\\pm U_0$, $\\epsilon = \\lambda_D/(L/2)$, on refined grids. The
exact solution is an elliptic integral and one scalar equation for the amounts (`pnp/analytic.py`, checked against
`scipy.integrate` in the tests). $Q$ is the diffuse charge. The order of the scheme is two, as it should be.

{steady}
From a cold start at $U_0 = 80$ and $\\epsilon = 10^{{-3}}$ Newton's method takes about 20 iterations, without a ramp.

## Closed forms

Default grids of 200 nodes.

{closed_forms}
A neutral salt of equal diffusivities diffuses as if it were not charged; a cosine decays (uniform grids):

{decay}
## Transients against an independent method

Charging of the canonical cell from the mixed state to ten charging times $\\epsilon L^2/4D$, on 201 nodes, against
Gauss-Lobatto spectral elements in space and Radau's method in time (`tests/spectral.py`, which shares no code with
`pnp`). The largest error over the times, at the default tolerance and at one a hundred times tighter, where the
error of the grid is what remains; then what must be conserved.

{transients}
A neutral salt between blocking walls on a uniform grid has no error of space, which leaves that of the steps: of
second order, so that it falls as the tolerance to the power 2/3.

{steps}
The tolerance is one of the concentrations. A signal that is small beside them needs a tighter one: largest error of
$Q(t)$ within two charging times, at $\\epsilon = 0.1$ on 401 nodes.

{small_signals}
## Reversal potentials

The potential between two baths of K⁺, Na⁺ and Cl⁻ at which no current flows, in a layer thin against its Debye
length (Goldman, Hodgkin and Katz) and thick against it (Planck):

{reversal}
## Random cells

Random valences (0.5 to 3), diffusivities and fillings over two decades, Debye lengths over three, on default grids.
The potentials of cells with a reservoir are smaller because a reservoir feeds a wall without end: at 3 × 10 thermal
volts the wall would hold $10^{{13}}$ times the bath.

{guarantees}
Free energy that never increases, charge conjugation, mirror symmetry, and batches that equal single solves to 1e-12
are tested on random cells by `tests/test_pnp_invariants.py`.

## Gradients

Backward passes against central differences of step 1e-5, whose own error is about 1e-9: largest error, relative to
one and the derivative, over seven observables and 28 numbers of a cell: valences, diffusivities, filling,
permittivity, temperature, potentials, Stern capacitances, baths, fixed charge, length, and the positions of the ground
and of every node. Transients take one step from each of four times to the next; steps that adapt are constants of a
gradient, which is then right to the error of the steps.

{gradients}
## Features as ions: counting what is shared

Sum of the gates of one of two synthetic modalities (32 and 24 channels, 8 private latents each), mean and standard
deviation over 8 seeds. Nobody told the cell how many directions are shared.

{counting}"""


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts = (
        steady,
        closed_forms,
        decay,
        transients,
        steps,
        small_signals,
        reversal,
        guarantees,
        gradients,
        counting,
    )
    print(PAGE.format(**{part.__name__: part() for part in parts}), end="")
