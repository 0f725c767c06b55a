"""Other codes on the same cells, each with `steady` and, where it has one, `transient`: both return Q.

Q is the diffuse charge of one half (see `cells.py`). Every peer gets what a user who knows it would give: the graded
nodes of everyone else where it takes a grid, its model set up once where it allows that (not on the clock), and a
state that is conserved and free of flux at the walls. Install them with `pip install ".[benchmark]"`.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from .cells import MOMENTS, NODES
from .expert import GAMMA, graded_nodes


class Peer:
    """Another code.

    Attributes:
        name: What tables call it.
        enough: Cells of a steady comparison; the cost of one is well known from these.
        tolerances, grids: Of the transients.
    """

    name: ClassVar[str]
    enough: ClassVar[int] = 10
    tolerances: ClassVar[Sequence[float]] = ()
    grids: ClassVar[Sequence[int]] = (NODES,)

    def prepare(self) -> None:
        """Import and set up what needs no cell; raises ImportError where the code is missing."""

    def steady(self, voltage: float, debye: float, nodes: int = NODES) -> float:
        """Q of the steady state."""
        raise NotImplementedError

    def transient(
        self, voltage: float, debye: float, nodes: int, tolerance: float, times: np.ndarray
    ) -> np.ndarray:
        """Q at times in units of the half width squared over the diffusivity."""
        raise NotImplementedError

    def steady_charges(self, voltages: np.ndarray, debye: np.ndarray, nodes: int = NODES) -> np.ndarray:
        """Q of one cell after another, NaN where the code fails."""
        found = np.full(len(voltages), np.nan)
        for index, (voltage, length) in enumerate(zip(voltages.tolist(), debye.tolist(), strict=True)):
            try:
                found[index] = self.steady(voltage, length, nodes)
            except Exception as problem:  # of whatever kind: the codes have many
                print(
                    f"{self.name}: no steady state at U0 = {voltage:.3g}, eps = {length:.3g}: {str(problem)[:90]}"
                )
        return found

    def transient_charges(
        self, voltages: np.ndarray, debye: np.ndarray, tolerance: float, nodes: int
    ) -> np.ndarray:
        """Q at ten charging times of one cell after another, `(cell, time)`, NaN where the code fails."""
        found = np.full((len(voltages), len(MOMENTS)), np.nan)
        for index, (voltage, length) in enumerate(zip(voltages.tolist(), debye.tolist(), strict=True)):
            try:
                found[index] = self.transient(voltage, length, nodes, tolerance, length * MOMENTS)
            except Exception as problem:
                print(
                    f"{self.name}: no transient at U0 = {voltage:.3g}, eps = {length:.3g}: {str(problem)[:90]}"
                )
        return found


def control_volumes(positions: np.ndarray) -> np.ndarray:
    """Of nodes, to the middle of their edges."""
    half = np.diff(positions) / 2
    return np.append(half, 0.0) + np.append(0.0, half)


class SolveBvp(Peer):
    """scipy's collocation on what is left of the steady state of a symmetric salt, Poisson-Boltzmann's equation.

    Neither a transient nor unequal ions, but the best that scipy offers for this very problem. In half a cell
    debye² phi'' = A sinh(phi) and n' = A cosh(phi), with A from n(1) = 1; analytic Jacobians, few nodes and a loose
    tolerance, because the method is of fourth order: tighter ones cost up to twice as much for errors of 3e-7.
    """

    name = "scipy solve_bvp (reduced)"
    enough = 50

    def steady(self, voltage: float, debye: float, nodes: int = NODES) -> float:
        from scipy.integrate import solve_bvp

        square = debye**2

        def slopes(x: np.ndarray, y: np.ndarray, p: np.ndarray) -> np.ndarray:
            middle = np.exp(p[0])
            return np.stack([y[1], middle / square * np.sinh(y[0]), middle * np.cosh(y[0])])

        def slopes_by(x: np.ndarray, y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            middle, sinh, cosh = np.exp(p[0]), np.sinh(y[0]), np.cosh(y[0])
            by_state, by_parameter = np.zeros((3, 3, len(x))), np.zeros((3, 1, len(x)))
            by_state[0, 1] = 1.0
            by_state[1, 0], by_state[2, 0] = middle / square * cosh, middle * sinh
            by_parameter[1, 0], by_parameter[2, 0] = middle / square * sinh, middle * cosh
            return by_state, by_parameter

        def ends(a: np.ndarray, b: np.ndarray, p: np.ndarray) -> np.ndarray:
            return np.array([a[0], a[2], b[0] - voltage, b[2] - 1.0])

        x = graded_nodes(voltage, debye, max(nodes // 4, 21) | 1)
        x = 1 - x[: len(x) // 2 + 1][::-1]
        layer = math.tanh(voltage / 4) * np.exp(-(1 - x) / debye)
        guess = np.stack([4 * np.arctanh(layer), 4 * layer / (1 - layer**2) / debye, x])
        middle = -math.log1p(4 * debye * math.sinh(voltage / 4) ** 2)
        found = solve_bvp(slopes, ends, x, guess, p=[middle], tol=1e-2, fun_jac=slopes_by)
        if not found.success:
            raise RuntimeError(found.message)
        return square * float(found.y[1, -1] - found.y[1, 0])


class PyBaMM(Peer):
    """PyBaMM's expressions and its IDAKLU solver (SUNDIALS' variable-order BDF, sparse direct solves).

    With the Scharfetter-Gummel fluxes and nodes of everyone else instead of its own central fluxes between centres, so
    that errors are those of the solver alone. One model serves all cells, which are its inputs. The steady state is
    a transient to 100 diffusion times.
    """

    name = "PyBaMM IDAKLU"
    tolerances = (1e-3, 3e-4, 1e-4, 1e-5)
    grids = (NODES, 401)

    def __init__(self) -> None:
        self._models: dict[int, Any] = {}
        self._solvers: dict[tuple[int, float], Any] = {}

    def prepare(self) -> None:
        import pybamm

        pybamm.set_logging_level("ERROR")
        for nodes in self.grids:
            self._model(nodes)
        self.steady(1.0, 0.1)
        for nodes in self.grids:
            for tolerance in self.tolerances:
                self.transient(1.0, 0.1, nodes, tolerance, 0.1 * MOMENTS)

    def _model(self, nodes: int) -> Any:
        import pybamm
        from scipy.sparse import csr_matrix, diags

        if nodes in self._models:
            return self._models[nodes]
        # A model of trivial equations is discretised first, so that the expressions below know how long vectors are.
        model = pybamm.BaseModel()
        names = ("cation", "anion", "potential")
        symbols = [pybamm.Variable(name, domain="cell") for name in names]
        voltage, permittivity = pybamm.InputParameter("voltage"), pybamm.InputParameter("permittivity")
        inverse = pybamm.InputParameter("inverse", expected_size=nodes - 1)
        volumes = pybamm.InputParameter("volumes", expected_size=nodes)
        start = pybamm.InputParameter("start", expected_size=nodes)
        model.rhs = {one: -one for one in symbols[:2]}
        model.algebraic = {symbols[2]: symbols[2]}
        model.initial_conditions = {one: pybamm.Scalar(1.0) for one in symbols}
        space = pybamm.SpatialVariable("x", domain=["cell"], coord_sys="cartesian")
        geometry = {"cell": {space: {"min": pybamm.Scalar(0), "max": pybamm.Scalar(2)}}}
        mesh = pybamm.Mesh(geometry, {"cell": pybamm.Uniform1DSubMesh}, {space: nodes})
        discretisation = pybamm.Discretisation(mesh, {"cell": pybamm.FiniteVolume()})
        discretisation.process_model(model)
        cation, anion, potential = (
            pybamm.StateVector(slice(i * nodes, (i + 1) * nodes)) for i in range(len(names))
        )

        difference = csr_matrix(diags([-1.0, 1.0], [0, 1], shape=(nodes - 1, nodes)))
        behind = pybamm.Matrix(csr_matrix(diags([1.0], [0], shape=(nodes - 1, nodes))))
        ahead = pybamm.Matrix(csr_matrix(diags([1.0], [1], shape=(nodes - 1, nodes))))
        divergence = pybamm.Matrix(csr_matrix(-difference.T))
        inside = np.ones(nodes)
        inside[[0, -1]] = 0.0
        wall = np.zeros(nodes)
        wall[0], wall[-1] = 1.0, -1.0

        drop = pybamm.Matrix(difference) @ potential
        half = drop / 2 + 1e-10  # never exactly zero over zero
        even = half / pybamm.sinh(half)
        up, down = even * pybamm.exp(-half) * inverse, even * pybamm.exp(half) * inverse
        fluxes = {
            cation: up * (behind @ cation) - down * (ahead @ cation),
            anion: down * (behind @ anion) - up * (ahead @ anion),
        }
        rates = [-(divergence @ flux) / volumes for flux in fluxes.values()]
        gauss = divergence @ (permittivity * drop * inverse) + volumes * (cation - anion)
        outside = pybamm.Vector(1 - inside) * potential - pybamm.Vector(wall) * voltage
        held = pybamm.Vector(inside) * gauss + outside
        ones = pybamm.Vector(np.ones(nodes))
        model.rhs = dict(zip(symbols[:2], rates, strict=True))
        model.concatenated_rhs = pybamm.numpy_concatenation(*rates)
        model.algebraic, model.concatenated_algebraic = {symbols[2]: held}, pybamm.numpy_concatenation(held)
        model.initial_conditions = dict(zip(symbols, (ones, ones, start), strict=True))
        model.concatenated_initial_conditions = pybamm.numpy_concatenation(ones, ones, start)
        self._models[nodes] = model
        return model

    def steady(self, voltage: float, debye: float, nodes: int = NODES) -> float:
        return float(self.transient(voltage, debye, nodes, 1e-4, np.array([100.0]))[0])

    def transient(
        self, voltage: float, debye: float, nodes: int, tolerance: float, times: np.ndarray
    ) -> np.ndarray:
        import pybamm

        key = nodes, tolerance
        if key not in self._solvers:
            self._solvers[key] = pybamm.IDAKLUSolver(rtol=tolerance, atol=tolerance / 100)
        positions = graded_nodes(voltage, debye, nodes)
        volumes = control_volumes(positions)
        inputs = {
            "voltage": voltage,
            "permittivity": 2 * debye**2,
            "inverse": 1 / np.diff(positions),
            "volumes": volumes,
            "start": voltage * (1 - positions),
        }
        moments = np.concatenate([[0.0], times])
        found = self._solvers[key].solve(
            self._model(nodes), moments[[0, -1]], inputs=inputs, t_interp=moments
        )
        state = found.y if isinstance(found.y, np.ndarray) else found.y.full()
        return volumes @ np.abs(state[:nodes, 1:] - state[nodes : 2 * nodes, 1:]) / 4


class Devsim(Peer):
    """devsim, a simulator of semiconductor devices: Scharfetter-Gummel fluxes, Newton's method, MKL's direct solver.

    It has no amounts to impose, so the steady state of a closed cell is reached by implicit steps in time that grow;
    every one of them keeps the ions. A device and its equations are set up for every cell, on the clock, because a
    device is a mesh.
    """

    name = "devsim"
    tolerances = (3e-1, 1e-1)

    def prepare(self) -> None:
        try:
            import devsim
        except RuntimeError as problem:  # its linear algebra is missing
            raise ImportError(str(problem)) from problem
        devsim.set_parameter(name="debug_level", value="info")

    def steady(self, voltage: float, debye: float, nodes: int = NODES) -> float:
        with self._device(voltage, debye, nodes) as volumes:
            for step in (debye**2, 0.03, 3.0, 300.0, 3000.0):
                self._solve(type="transient_bdf1", tdelta=step, charge_error=1e10)
            return self._charge(volumes)

    def transient(
        self, voltage: float, debye: float, nodes: int, tolerance: float, times: np.ndarray
    ) -> np.ndarray:
        """TR-BDF2 steps that grow in proportion to the time, by `tolerance` a step, and end on the moments."""
        charges, now, step = [], 0.0, 1e-3 * debye**2
        with self._device(voltage, debye, nodes) as volumes:
            self._solve(type="transient_bdf1", tdelta=step, charge_error=1e10)
            now += step
            for moment in times.tolist():
                while now < moment * (1 - 1e-9):
                    step = (moment - now) / math.ceil((moment - now) / max(tolerance * now, step))
                    for method in ("transient_tr", "transient_bdf2"):
                        self._solve(type=method, tdelta=step, gamma=GAMMA, charge_error=1e10)
                    now += step
                charges.append(self._charge(volumes))
        return np.array(charges)

    @contextmanager
    def _device(self, voltage: float, debye: float, nodes: int) -> Iterator[np.ndarray]:
        """A device for one cell, its control volumes, and silence on the console."""
        import devsim

        console, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        try:
            yield self._build(voltage, debye, nodes)
        finally:
            devsim.delete_device(device="cell")
            devsim.delete_mesh(mesh="cell")
            os.dup2(console, 1)
            os.close(console)
            os.close(nowhere)

    @staticmethod
    def _solve(**how: Any) -> None:
        import devsim

        devsim.solve(absolute_error=1e-5, relative_error=1e10, maximum_iterations=60, **how)

    def _charge(self, volumes: np.ndarray) -> float:
        import devsim

        cation, anion = (
            np.array(devsim.get_node_model_values(device="cell", region="cell", name=name))
            for name in ("Cation", "Anion")
        )
        return float(volumes @ np.abs(cation - anion)) / 4

    def _build(self, voltage: float, debye: float, nodes: int) -> np.ndarray:
        import devsim

        where = {"device": "cell", "region": "cell"}
        positions = graded_nodes(voltage, debye, nodes)
        spacings = np.diff(positions)
        devsim.create_1d_mesh(mesh="cell")
        tags = {0: "left", nodes - 1: "right"}
        for index, position in enumerate(positions.tolist()):
            step = spacings[min(index, nodes - 2)]
            devsim.add_1d_mesh_line(mesh="cell", pos=position, ps=2 * step, tag=tags.get(index, f"n{index}"))
        for end in ("left", "right"):
            devsim.add_1d_contact(mesh="cell", name=end, tag=end, material="metal")
        devsim.add_1d_region(mesh="cell", material="water", region="cell", tag1="left", tag2="right")
        devsim.finalize_mesh(mesh="cell")
        devsim.create_device(mesh="cell", device="cell")

        def node(name: str, equation: str) -> None:
            devsim.node_model(name=name, equation=equation, **where)

        def edge(name: str, equation: str, by: Sequence[str] = ()) -> None:
            devsim.edge_model(name=name, equation=equation, **where)
            for field in by:
                for side in ("n0", "n1"):
                    derivative = f"simplify(diff({equation}, {field}@{side}))"
                    devsim.edge_model(name=f"{name}:{field}@{side}", equation=derivative, **where)

        devsim.set_parameter(device="cell", name="hold", value=1.0)
        devsim.set_parameter(device="cell", name="voltage", value=0.0)
        start = {"Potential": np.zeros(nodes), "Cation": np.ones(nodes), "Anion": np.ones(nodes)}
        for name, values in start.items():
            devsim.node_solution(name=name, **where)
            devsim.set_node_values(name=name, values=values.tolist(), **where)
            devsim.edge_from_node_model(node_model=name, **where)
        edge("Drop", "Potential@n1 - Potential@n0", ["Potential"])
        edge("Up", "B(Drop)")
        edge("Up:Potential@n0", "-dBdx(Drop)")
        edge("Up:Potential@n1", "dBdx(Drop)")
        flux = "EdgeInverseLength * (Up * {0}@n0 - (Up + Drop) * {0}@n1)"
        edge("CationFlux", flux.format("Cation"), ["Potential", "Cation"])
        flux = "EdgeInverseLength * ((Up + Drop) * {0}@n0 - Up * {0}@n1)"
        edge("AnionFlux", flux.format("Anion"), ["Potential", "Anion"])
        edge("Displacement", f"{-2 * debye**2!r} * EdgeInverseLength * Drop", ["Potential"])
        node("MinusCharge", "Anion - Cation")
        node("MinusCharge:Anion", "1")
        node("MinusCharge:Cation", "-1")
        for ion in ("Cation", "Anion"):
            node(f"{ion}:{ion}", "1")
            node(f"{ion}Held", f"hold * ({ion} - 1)")
            node(f"{ion}Held:{ion}", "hold")
            devsim.equation(
                name=f"{ion}Balance",
                variable_name=ion,
                edge_model=f"{ion}Flux",
                node_model=f"{ion}Held",
                time_node_model=ion,
                variable_update="positive",
                **where,
            )
        devsim.equation(
            name="Gauss",
            variable_name="Potential",
            edge_model="Displacement",
            node_model="MinusCharge",
            variable_update="default",
            **where,
        )
        for end, value in (("left", "voltage"), ("right", "-voltage")):
            here = {"device": "cell", "contact": end}
            devsim.contact_node_model(name=f"{end}Held", equation=f"Potential - ({value})", **here)
            devsim.contact_node_model(name=f"{end}Held:Potential", equation="1", **here)
            devsim.contact_equation(name="Gauss", node_model=f"{end}Held", **here)
        # In time it starts only from a state that it has called steady: ions held to one, no voltage.
        devsim.solve(type="transient_dc", absolute_error=1e-5, relative_error=1e10, maximum_iterations=10)
        devsim.set_parameter(device="cell", name="hold", value=0.0)
        devsim.set_parameter(device="cell", name="voltage", value=voltage)
        return control_volumes(positions)


class Matscipy(Peer):
    """matscipy's solver of Poisson-Nernst-Planck systems: uniform grids, dense Newton iterations, SI units.

    Its test of convergence is often not met within its 20 iterations; what it returns is taken as it is.
    """

    name = "matscipy"
    enough = 2

    def prepare(self) -> None:
        import logging

        import matscipy.electrochemistry  # noqa: F401

        logging.disable(logging.WARNING)  # a line an iteration

    def steady(self, voltage: float, debye: float, nodes: int = NODES) -> float:
        from matscipy.electrochemistry import PoissonNernstPlanckSystem
        from scipy import constants

        temperature, relative, concentration = 298.15, 79.0, 1.0
        thermal = constants.R * temperature / constants.value("Faraday constant")
        screening = relative * constants.epsilon_0 * thermal / constants.value("Faraday constant")
        length = 2 * math.sqrt(screening / (2 * concentration)) / debye
        system = PoissonNernstPlanckSystem(
            c=np.full(2, concentration),
            z=np.array([1, -1]),
            L=length,
            T=temperature,
            delta_u=2 * voltage * thermal,
            relative_permittivity=relative,
            N=nodes - 1,
            e=1e-6,
        )
        system.use_standard_cell_bc()
        system.solve()
        charge = np.abs(system.concentration[0] - system.concentration[1])
        return float(np.trapezoid(charge, system.grid)) / (2 * concentration * length)


class FiPy(Peer):
    """FiPy on Poisson-Boltzmann's equation with both amounts given, iterated as its manual does for nonlinear sources.

    Coupled, Nernst-Planck equations took it 7 s a cell, where it solved them; by turns, with exponential convection, it
    stopped at errors of up to 5 %. The cells of its mesh lie between the nodes of the others.
    """

    name = "FiPy (reduced)"

    def prepare(self) -> None:
        os.environ.setdefault(
            "FIPY_SOLVERS", "scipy"
        )  # looked at on import; its others are packages to install

        import fipy  # noqa: F401

    def steady(self, voltage: float, debye: float, nodes: int = NODES) -> float:
        from fipy import CellVariable, DiffusionTerm, Grid1D, ImplicitSourceTerm
        from fipy.solvers.scipy import LinearLUSolver

        widths = np.diff(graded_nodes(voltage, debye, nodes))
        mesh = Grid1D(dx=widths)
        potential = CellVariable(mesh=mesh, value=voltage * (1 - mesh.cellCenters.value[0]))
        potential.constrain(voltage, mesh.facesLeft)
        potential.constrain(-voltage, mesh.facesRight)
        before, cations, anions = (CellVariable(mesh=mesh) for _ in range(3))
        screening = cations + anions
        source = cations - anions + screening * before
        equation = (
            DiffusionTerm(coeff=2 * debye**2, var=potential)
            - ImplicitSourceTerm(coeff=screening, var=potential)
            + source
            == 0
        )
        solver = LinearLUSolver(tolerance=1e-15)  # with its own it stops iterating early
        for _ in range(100):
            before.setValue(potential.value)
            for ions, valence in ((cations, 1), (anions, -1)):
                factors = np.exp(-valence * before.value - abs(voltage))
                ions.setValue(factors * widths.sum() / (factors * widths).sum())
            equation.sweep(var=potential, solver=solver)
            change = potential.value - before.value
            largest = np.abs(change).max()
            if largest < 1e-8:
                return float((np.abs(cations.value - anions.value) * widths).sum()) / 4
            potential.setValue(before.value + change / max(largest, 1.0))
        raise RuntimeError("100 iterations were not enough")


PEERS = (SolveBvp, PyBaMM, Devsim, Matscipy, FiPy)


def available(kind: str) -> Iterator[tuple[str, Peer]]:
    """The peers that are installed and can do what is asked, `steady` or `transient`."""
    for make in PEERS:
        if getattr(make, kind) is getattr(Peer, kind):
            continue
        peer = make()
        try:
            peer.prepare()
        except ImportError as problem:
            print(f"{peer.name} is left out: {problem}")
            continue
        yield peer.name, peer
