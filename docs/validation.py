"""Measure the errors that validation.md reports: python docs/validation.py > docs/validation.md."""

import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import brentq

sys.path.insert(0, str(Path(__file__).parents[1]))

import fusion
import pnp
from fusion.grounded.transport import channel_cell, equilibrate, gates
from tests import reference, sweep
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


def references() -> str:
    """All of `reference_values.json`, kind by kind and quantity by quantity."""
    rows = []
    kinds = dict.fromkeys((entry["kind"], entry["quantity"]) for entry in reference.entries())
    tight = {"step_control": pnp.StepControl(relative=1e-5, absolute=1e-7)}
    for kind, quantity in kinds:
        if kind == "reversal_limit":  # which no cell reaches; see above
            continue
        if kind == "transient" and quantity != "diffuse_charge":  # of the same long runs
            continue
        plain, better = [], []
        for group in reference.alike(reference.entries(kind, quantity)):
            solution = reference.solve(group, 201, **(tight if kind == "transient" else {}))

            def found(one: pnp.Solution, entry: reference.Entry = group[0]) -> torch.Tensor:
                return reference.measure(entry, one).detach()

            wanted = reference.values(group).reshape(found(solution).shape)
            plain.append(reference.relative_error(found(solution), wanted).ravel())
            capacitance = quantity in reference.BY_VOLTAGE  # its coarse cell has a potential of its own
            value = found(solution) if capacitance else solution.richardson(found).value
            better.append(reference.relative_error(value, wanted).ravel())
        one, two = np.concatenate(plain), np.concatenate(better)
        extrapolated = "" if quantity in reference.BY_VOLTAGE else f"{np.median(two):.0e}"
        most = "" if quantity in reference.BY_VOLTAGE else f"{two.max():.0e}"
        name = f"{kind.replace('_', ' ')}: {quantity.replace('_', ' ')}"
        rows.append([name, str(one.size), f"{np.median(one):.0e}", f"{one.max():.0e}", extrapolated, most])
    head = ["kind: quantity", "values", "median error", "largest", "extrapolated: median", "largest"]
    return table(head, rows)


def ends_and_media() -> str:
    """What the other ends and media must give, in closed form."""
    zero, bath = pnp.Electrode(potential=0.0), pnp.Reservoir(concentrations=1.0, potential=0.0)
    rows = []

    def salt(**changes: object) -> pnp.Cell:
        return Canonical(0.0, 0.1).cell(**({"left": zero, "right": zero} | changes))

    def row(what: str, quantity: str, found: torch.Tensor, wanted: float) -> None:
        rows.append([what, quantity, f"{float((found / wanted - 1).abs().max()):.0e}"])

    wall = pnp.solve_steady(salt(left=pnp.ChargedWall(charge=1.0), right=bath, length=4.0))
    row(
        "charged wall and bath (Grahame)",
        "potential",
        wall.potential[0],
        2 * math.asinh(1 / math.sqrt(8 * 0.02)),
    )
    grid = pnp.Grid.uniform(salt(), 41)
    ring = pnp.Periodic(potential_drop=3.0)
    row(
        "ring in a constant field (Ohm)",
        "current",
        pnp.current_density(pnp.solve_steady(salt(left=ring, right=ring), grid)),
        3.0,
    )
    pushed = pnp.solve_transient(salt(left=pnp.Electrode(current=0.5)), grid, times=[0.1, 0.2, 0.4])
    row("current into a blocking electrode", "charge", pnp.surface_charge(pushed).left / pushed.times, 0.5)
    ramped = salt(left=pnp.Electrode(potential=pnp.ramp(0.0, 1.0, duration=0.1)))
    begun = pnp.current_density(pnp.solve_transient(ramped, grid, times=[0.0]))
    row("start of a ramp", "displacement current", begun, 10 * 0.02 / 2)
    slabs = Canonical(0.0, 1e4).cell(
        left=pnp.Electrode(potential=1.0), permittivity_profile=lambda x: torch.where(x < 1, 1.0, 5.0)
    )
    charge = pnp.surface_charge(pnp.solve_steady(slabs, pnp.Grid.uniform(slabs, 41))).left
    row("two dielectrics in series, hardly any ions", "charge", charge, 2e8 / (1 + 1 / 5))
    other = pnp.Reservoir(concentrations=3.0, potential=0.0)
    layered = salt(left=bath, right=other, diffusivity_profile=lambda x: 1 / (1 + x))
    flux = pnp.ion_flux(pnp.solve_steady(layered, pnp.Grid.uniform(layered, 401)))
    row("salt through a medium of D = 1/(1+x)", "flux", flux, -2 / 4)
    ions = [pnp.Species(name, valence=z, diffusivity=1.0) for name, z in (("+", 1), ("-", -1), ("pair", 0))]
    pairing = pnp.Electrolyte.dimensionless(
        ions,
        permittivity=0.02,
        reactions=[pnp.Reaction({"+": 1, "-": 1}, {"pair": 1}, forward=5.0, backward=2.0)],
    )
    cell = pnp.Cell(pairing, length=2.0, concentrations=1.0, left=pnp.Electrode(potential=4.0), right=zero)
    c = pnp.solve_steady(cell).concentrations
    row("ion pairs at rest (mass action)", "constant at every node", c[0] * c[1] / c[2], 2 / 5)
    return table(["what", "quantity", "largest error"], rows)


def small_signal() -> str:
    """Impedance against its closed form, and against a sine followed in time."""
    frequencies = torch.tensor([0.01, 1.0, 100.0, 1e4], dtype=torch.float64)
    omega, permittivity, rows = 2 * math.pi * frequencies, 2 * 0.1**2, []
    ratio = 1j * omega * 0.01  # times the Debye time
    reach = torch.sqrt(1 + ratio) / 0.1 / 2
    exact = (ratio + torch.tanh(reach) / reach) / (1 + ratio) / (1j * omega * permittivity)
    for nodes in (101, 201, 401):
        cell = Canonical(0.0, 0.1).cell(length=1.0)
        found = pnp.impedance(pnp.solve_steady(cell, pnp.Grid.refined(cell, nodes)), frequencies)
        rows.append([str(nodes), *(f"{error:.1e}" for error in (found / exact - 1).abs().tolist())])
    return table(["nodes", *(f"{f:g} D/L²" for f in frequencies.tolist())], rows)


def sine_in_time() -> str:
    """Largest deviation of the impedance that a sine in time shows, about a reacting steady state."""
    deposition = pnp.ElectrodeReaction({"s0": 1}, {}, rate_constant=1.0)
    amplitude, frequency, rows = 1e-3, 2.0, []

    def cell(potential: float | pnp.Waveform) -> pnp.Cell:
        left, right = (
            pnp.Electrode(potential=one, stern_capacitance=0.2, reactions=deposition)
            for one in (potential, 0.0)
        )
        return Canonical(0.0, 0.1).cell(length=1.0, left=left, right=right)

    grid = pnp.Grid.refined(cell(1.0), 101)
    steady_state = pnp.solve_steady(cell(1.0), grid)
    wanted = pnp.impedance(steady_state, [frequency])
    times = torch.linspace(3, 4, 33, dtype=torch.float64)[:-1] / frequency
    for relative in (1e-5, 1e-6, 1e-7):
        moved = pnp.solve_transient(
            cell(pnp.sine(amplitude, frequency, offset=1.0)),
            grid,
            times=times,
            initial=steady_state,
            step_control=pnp.StepControl(relative=relative, absolute=1e-2 * relative),
        )
        current = pnp.current_density(moved)[:, 0] - pnp.current_density(steady_state)[0]
        phase = torch.exp(-2j * math.pi * frequency * times)
        found = amplitude / (2j * (current * phase).mean())
        rows.append(
            [f"{relative:.0e}", str(int(moved.stats.steps)), f"{float((found / wanted - 1).abs()):.1e}"]
        )
    return table(["tolerance of the steps", "steps", "difference of the impedance"], rows)


def guarantees(count: int = 230) -> str:
    """Random cells of every kind of end in every medium: how many are solved, and the worst of what they keep."""
    rows, solved_of_all, finite_of_all = [], 0, True
    for ends in sweep.ENDS:
        shares, keeps = [], []
        for medium in sweep.MEDIA:
            cell = sweep.random_cells(ends, medium, count)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", pnp.UnderResolvedWarning)
                solution = pnp.solve_steady(cell, throw=False)
            check, solved = solution.check(), solution.solved
            states = (solution.concentrations, solution.potential)
            finite_of_all &= all(bool(torch.isfinite(one).all()) for one in states)
            worst = (
                float(check.amount_error[solved].max()),
                float(check.gauss_error[solved].max()),
                float(check.residual[solved].max()),
            )
            keeps.append((float(check.smallest_concentration[solved].min()), *worst))
            shares.append(str(int(solved.sum())))
            solved_of_all += int(solved.sum())
        columns = list(zip(*keeps, strict=True))
        numbers = [min(columns[0]), *(max(column) for column in columns[1:])]
        rows.append([ends, f"±{sweep.ENDS[ends]:g}", *shares, *(f"{number:.0e}" for number in numbers)])
    head = ["ends", "U (V_T)", *sweep.MEDIA, "smallest c", "amounts", "Gauss's law", "residual"]
    total = count * len(sweep.ENDS) * len(sweep.MEDIA)
    share = 100 * solved_of_all / total
    return (
        table(head, rows)
        + f"\nOf {total:,} cells {solved_of_all:,} were solved ({share:.1f} %), and every one of those meets the "
        f"guarantees; {total - solved_of_all} were reported as failed, with the reason. "
        f"NaN in a result: {'none' if finite_of_all else 'some'}.\n"
    )


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

Default grids of 201 nodes.

{closed_forms}
A neutral salt of equal diffusivities diffuses as if it were not charged; a cosine decays (uniform grids):

{decay}
## Transients against an independent method

Charging of the canonical cell from the mixed state to ten charging times $\\epsilon L^2/4D$, on 201 nodes, against
Gauss-Lobatto spectral elements in space and Radau's method in time (`tests/spectral.py`, which shares no code with
`pnp`). The largest error over the times, at the default tolerance and at one a hundred times tighter, where the
error of the grid is what remains; then what must be conserved.

{transients}
A neutral salt between blocking walls on a uniform grid has no error of space, which leaves that of the steps. The
method is of fourth order, and what is held at the tolerance is the error of an embedded one of third.

{steps}
The tolerance is one of the concentrations. A signal that is small beside them may need a tighter one: largest error of
$Q(t)$ within two charging times, at $\\epsilon = 0.1$ on 401 nodes.

{small_signals}
## Reversal potentials

The potential between two baths of K⁺, Na⁺ and Cl⁻ at which no current flows, in a layer thin against its Debye
length (Goldman, Hodgkin and Katz) and thick against it (Planck):

{reversal}
## Reference values

Every entry of `pnp/reference_values.json`: exact steady cells (elliptic integrals in many digits), double layers,
steric double layers, transients by spectral elements, reversal potentials, currents with Frumkin-Butler-Volmer kinetics
and impedances, each with a stated error, made by `docs/reference_values.py`, which shares no code with `pnp`. Refined
grids of 201 nodes; then extrapolated from every other node by `solution.richardson`, which is of fourth order. Voltages
reach 80 thermal voltages and Debye lengths $10^{{-3}}$ of the cell; the largest error of a midplane concentration is
that of 3e-33 of the mean, between electrodes at ±80. Quantities that are themselves gradients are not extrapolated.

{references}
## Other ends and media

{ends_and_media}
Solutions made up with sympy (position-dependent permittivity, diffusivity, fixed charge, ions of finite size,
reactions: order 1.96 to 2.02), charged and periodic cells against `scipy.integrate.solve_bvp`, kinetics against
`solve_ivp`, transients of crowded and reacting cells against Chebyshev collocation, and ramps against inverted Laplace
transforms are in `tests/test_pnp_manufactured.py`, `test_pnp_ends.py`, `test_pnp_reactions.py` and
`test_pnp_waveforms.py`.

## Impedance

Relative error of the impedance of a blocking cell at $U = 0$, $\\lambda_D = L/10$, against the closed form of the
linear equations:

{small_signal}
About a biased steady state with Butler-Volmer kinetics and Stern layers at both electrodes there is no closed form; a
small sine is followed in time instead, on the same grid (of 101 nodes):

{sine_in_time}
## Random cells

Every kind of end in every kind of medium (`tests/sweep.py`): random valences (0.5 to 3), diffusivities, fillings and
baths over two decades, Debye lengths over three, rate constants, Stern layers and reactions over four; *finite ions* of
two sizes fill up to half of the room; *association* joins a cation and an anion into a pair; *layers* jump in
permittivity by up to ten and vary in diffusivity. Solved of {each} each, from a cold start on default grids:

{guarantees}
What fails lies at extremes: currents far above the limiting one, walls charged with nearly all ions there are, ions of
finite size packed until hardly any solvent is left, pairs that form in a cell that is depleted of either ion.
Potentials of cells with a bath are smaller because a bath feeds a wall without end: at 3 × 10 thermal volts the wall
would hold $10^{{13}}$ times the bath.

Free energy that never increases, charge conjugation, mirror symmetry, and batches that equal single solves to 1e-12
are tested on random cells by `tests/test_pnp_invariants.py`.

## Gradients

Backward passes against central differences of step 1e-5, whose own error is about 1e-9: largest error, relative to
one and the derivative, over seven observables and every number of a cell: valences, diffusivities, filling,
permittivity, temperature, potentials, Stern capacitances, baths, fixed charge, length, rate constants, currents, wall
charges, ion sizes, profiles, waveforms, and the positions of the ground and of every node. Transients take one step
from each of four times to the next; steps that adapt are constants of a gradient, which is then right to the error of
the steps.

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
        references,
        ends_and_media,
        small_signal,
        sine_in_time,
        guarantees,
        gradients,
        counting,
    )
    print(PAGE.format(each=230, **{part.__name__: part() for part in parts}), end="")
