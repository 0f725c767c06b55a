"""The table of reference values: whole, and a few of its entries by other routes, without `pnp`."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad, solve_bvp
from scipy.optimize import brentq

from .spectral import SpectralCell, two_sided

TABLE = json.loads((Path(__file__).parents[1] / "pnp" / "reference_values.json").read_text(encoding="utf-8"))
ENTRIES = {entry["id"]: entry for entry in TABLE["entries"]}
FIELDS = {"id", "kind", "cell", "quantity", "value", "error", "method"}
OF_CELL = {
    "length",
    "permittivity",
    "fixed_charge",
    "valences",
    "diffusivities",
    "filling",
    "diameters",
    "left",
    "right",
}
OF_END = {
    "electrode": {"type", "potential", "stern_capacitance", "reactions"},
    "reservoir": {"type", "potential", "concentrations"},
}
ARGUMENTS = {"transient": "times", "impedance": "frequencies"}


def numbers(part):
    """Every number in a part of the table."""
    if isinstance(part, dict | list):
        parts = part.values() if isinstance(part, dict) else part
        return [number for one in parts for number in numbers(one)]
    return [part] if isinstance(part, int | float) else []


def cell_of(prefix):
    return next(entry["cell"] for name, entry in ENTRIES.items() if name.startswith(prefix))


def assert_in_table(name, value, tolerance):
    """Absolute for small values, relative for others."""
    assert value == pytest.approx(ENTRIES[name]["value"], rel=tolerance, abs=tolerance)


def test_table_is_large_and_names_are_unique():
    assert len(TABLE["entries"]) == len(ENTRIES) >= 60
    assert {entry["quantity"] for entry in TABLE["entries"]} == set(TABLE["quantities"])


@pytest.mark.parametrize("kind", sorted({entry["kind"] for entry in TABLE["entries"]}))
def test_entries_are_whole(kind):
    for entry in (one for one in TABLE["entries"] if one["kind"] == kind):
        argument = {ARGUMENTS[kind]} if kind in ARGUMENTS else set()
        assert set(entry) == FIELDS | argument
        values, errors = (np.atleast_1d(entry[field]) for field in ("value", "error"))
        assert values.shape == errors.shape
        assert all(len(entry[name]) == len(values) for name in argument)
        assert np.isfinite(numbers(entry)).all()
        assert (errors > 0).all()
        assert (errors <= 1e-9 * np.maximum(1, np.abs(values))).all()


def test_cells_are_whole():
    for entry in TABLE["entries"]:
        cell = entry["cell"]
        assert set(cell) - {"limit"} == OF_CELL
        assert ("limit" in cell) == (cell["permittivity"] is None)
        assert len({len(cell[name]) for name in ("valences", "diffusivities", "filling", "diameters")}) == 1
        assert np.dot(cell["valences"], cell["filling"]) + cell["fixed_charge"] == pytest.approx(0, abs=1e-12)
        for end in (cell["left"], cell["right"]):
            assert set(end) == OF_END[end["type"]]


@pytest.mark.parametrize("name", ["U0.1-eps1", "U4-eps0.1", "U10-eps0.03", "U2-eps0.01"])
def test_canonical_cell_by_quadrature(name):
    """Its integrals by scipy instead of elliptic functions."""
    cell = cell_of(f"canonical-{name}")
    debye, top = math.sqrt(cell["permittivity"] / 2), math.sinh(cell["left"]["potential"] / 2)

    def integrals(b):
        def integral(function):
            return quad(function, 0, math.asinh(top / b), epsabs=0, epsrel=1e-12, limit=200)[0]

        first = integral(lambda v: 1 / math.hypot(1, b * math.sinh(v)))
        return first, integral(lambda v: (b * math.sinh(v)) ** 2 / math.hypot(1, b * math.sinh(v)))

    def excess(log_b):
        first, second = integrals(math.exp(log_b))
        return debye**2 * first * (first + 2 * second) - 1

    b = math.exp(brentq(excess, -1 / debye - 5, math.log(top) + 5, xtol=1e-14, rtol=1e-14))
    root = debye * integrals(b)[0]
    steep = math.hypot(b, top)
    assert_in_table(f"canonical-{name}-midplane_concentration", root**2, 1e-10)
    assert_in_table(f"canonical-{name}-surface_charge", 4 * debye * root * steep, 1e-10)
    assert_in_table(f"canonical-{name}-diffuse_charge", 4 * debye * root * (steep - b), 1e-10)


def layer_by_collocation(cell):
    """Surface charge of ions of one diameter at rest before a bath, from Poisson's equation alone."""
    z, c = np.array(cell["valences"])[:, None], np.array(cell["right"]["concentrations"])[:, None]
    volume, left, permittivity = cell["diameters"][0] ** 3, cell["left"], cell["permittivity"]
    stern, length = left["stern_capacitance"], 25.0

    def poisson(_x, y):
        points = c / (1 - volume * c.sum()) * np.exp(-z * y[0])
        return np.stack([y[1], -(z * points).sum(0) / (1 + volume * points.sum(0)) / permittivity])

    def ends(a, b):
        drop = left["potential"] - a[0]
        return np.array([drop if stern is None else permittivity * a[1] + stern * drop, b[0]])

    x = two_sided(length, 0.02, 80)
    found = solve_bvp(
        poisson, ends, x, np.stack([left["potential"] * np.exp(-x), -np.exp(-x)]), tol=1e-9, max_nodes=20_000
    )
    assert found.success
    return -permittivity * found.y[1, 0]


@pytest.mark.parametrize(
    "name",
    [
        "gouy_chapman-z1-U2-CSinf",
        "gouy_chapman-z2-U-3-CS5",
        "gouy_chapman-z2-U2-CS0.5",
        "steric-U1-nu0.5",
        "steric-U10-nu0.1",
        "steric-U25-nu0.5",
    ],
)
def test_double_layers_by_collocation(name):
    cell = cell_of(name + "-")
    assert_in_table(f"{name}-surface_charge", layer_by_collocation(cell), 1e-8)
    voltage, step = cell["left"]["potential"], 1e-3
    charges = [
        layer_by_collocation(cell | {"left": cell["left"] | {"potential": voltage + shift}})
        for shift in (-step, step)
    ]
    assert_in_table(f"{name}-differential_capacitance", np.diff(charges)[0] / (2 * step), 1e-5)


@pytest.mark.parametrize("nu", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("voltage", [1, 5, 10, 25, 50])
def test_steric_layers_by_quadrature(voltage, nu):
    """The pressure on the wall, permittivity/2 phi'^2, is the charge density integrated over the potential."""
    name = f"steric-U{voltage}-nu{nu:g}"
    permittivity = cell_of(name)["permittivity"]

    def density(phi):
        return 2 * math.sinh(phi) / (1 + 2 * nu * math.sinh(phi / 2) ** 2)

    pressure = quad(density, 0, voltage, epsabs=0, epsrel=1e-12, limit=200)[0]
    charge = math.sqrt(2 * permittivity * pressure)
    assert_in_table(f"{name}-surface_charge", charge, 1e-11)
    assert_in_table(f"{name}-differential_capacitance", permittivity * density(voltage) / charge, 1e-11)


def chebyshev(degree, length):
    """Points and differentiation matrix on [0, length]."""
    x = -np.cos(np.pi * np.arange(degree + 1) / degree)
    weight = np.r_[2, np.ones(degree - 1), 2] * (-1.0) ** np.arange(degree + 1)
    matrix = np.outer(weight, 1 / weight) / (x[:, None] - x[None, :] + np.eye(degree + 1))
    np.fill_diagonal(matrix, 0.0)
    np.fill_diagonal(matrix, -matrix.sum(1))
    return length * (x + 1) / 2, matrix * 2 / length


def impedance_by_collocation(cell, omega, degree=96):
    """Of the linearised equations: every species in turn, then the potential."""
    (_, slope), points = chebyshev(degree, cell["length"]), degree + 1
    count, permittivity = len(cell["valences"]), cell["permittivity"]
    ions = list(zip(cell["valences"], cell["diffusivities"], cell["filling"], strict=True))
    matrix = np.zeros((count + 1, points, count + 1, points), dtype=complex)
    right = np.zeros((count + 1, points))
    for i, (z, d, c) in enumerate(ions):
        matrix[i, :, i] = 1j * omega * np.eye(points) - d * slope @ slope
        matrix[i, :, -1] = -d * z * c * slope @ slope
        for wall in (0, -1):
            matrix[i, wall, i], matrix[i, wall, -1] = slope[wall], z * c * slope[wall]
        matrix[-1, :, i] = -z * np.eye(points)
    matrix[-1, :, -1] = -permittivity * slope @ slope
    for wall, end, out, potential in ((0, "left", 1, 0.5), (-1, "right", -1, -0.5)):
        stern = cell[end]["stern_capacitance"]
        matrix[-1, wall] = 0
        matrix[-1, wall, -1] = 0 if stern is None else -out * permittivity * slope[wall]
        matrix[-1, wall, -1, wall] += 1 if stern is None else stern
        right[-1, wall] = potential if stern is None else stern * potential
    flat = np.linalg.solve(matrix.reshape(right.size, right.size), right.ravel())
    return 1 / (1j * omega * -permittivity * slope[0] @ flat[-points:])


@pytest.mark.parametrize("name", ["eps0.3", "eps0.03", "unequal", "asymmetric", "stern"])
def test_impedance_by_collocation(name):
    real, imag = (ENTRIES[f"impedance-{name}-impedance_{part}"] for part in ("real", "imag"))
    for omega, a, b in zip(real["frequencies"], real["value"], imag["value"], strict=True):
        # Ions that are nearly at rest leave the matrix nearly singular.
        bound = 1e-8 if omega >= 1 else 1e-5
        assert impedance_by_collocation(real["cell"], omega) == pytest.approx(a + 1j * b, rel=bound)


def test_transients_and_impedance_agree():
    """1/Z is i omega times the Fourier integral of the charging rate after a step of a low voltage."""
    real, imag = (ENTRIES[f"impedance-unequal-impedance_{part}"] for part in ("real", "imag"))
    voltage, end = 1e-3, 3.0
    cell = SpectralCell(
        two_sided(1.0, 0.05, 8),
        real["cell"]["permittivity"],
        (voltage / 2, -voltage / 2),
        diffusivities=real["cell"]["diffusivities"],
    )
    nodes, weights = np.polynomial.legendre.leggauss(300)
    times = end * ((nodes + 1) / 2) ** 2  # the charge has a root of the time at the beginning
    charge = cell.surface_charge(cell.solve([*times, end], 1e-9))
    for omega, a, b in list(zip(real["frequencies"], real["value"], imag["value"], strict=True))[1:4]:
        missing = (charge[:-1] - charge[-1]) * np.exp(-1j * omega * times) * end * (nodes + 1) / 2
        admittance = 1j * omega * (charge[-1] + 1j * omega * weights @ missing) / voltage
        assert 1 / admittance == pytest.approx(a + 1j * b, rel=1e-5), omega


@pytest.mark.parametrize("salt", ["membrane", "binary"])
def test_limits_of_junctions(salt):
    """No current flows at the tabulated potential: the fluxes by quadrature, for either potential profile."""
    for limit in ("zero", "infinite"):
        entry = ENTRIES[f"{salt}-{limit}-reversal_potential"]
        voltage, cell = entry["value"], entry["cell"]
        left, right = (np.array(cell[end]["concentrations"]) for end in ("left", "right"))
        ratio, currents = right.sum() / left.sum(), []

        def potential(x, limit=limit, voltage=voltage, ratio=ratio):
            return voltage * (x if limit == "infinite" else math.log(1 + (ratio - 1) * x) / math.log(ratio))

        for z, d, a, b in zip(cell["valences"], cell["diffusivities"], left, right, strict=True):
            resistance = quad(lambda x, z=z: math.exp(z * potential(x)), 0, 1, epsabs=1e-13)[0]
            currents.append(z * d * (a - b * math.exp(z * voltage)) / resistance)
        assert sum(currents) == pytest.approx(0, abs=1e-12)


def rate(reaction, concentration, drop):
    """Frumkin, Butler and Volmer."""
    eta, alpha = drop - reaction["standard_potential"], reaction["transfer_coefficient"]
    return reaction["rate_constant"] * (concentration * np.exp(-alpha * eta) - np.exp((1 - alpha) * eta))


def steady_residual(cell, degree):
    """Residual of concentrations and potential on Chebyshev points, and the fluxes they have."""
    _, slope = chebyshev(degree, cell["length"])
    z, d = (np.array(cell[name])[:, None] for name in ("valences", "diffusivities"))
    ends = ((0, cell["left"], 1), (-1, cell["right"], -1))
    primitive = slope.copy()
    primitive[0] = np.eye(degree + 1)[0]

    def split(flat):
        state = flat.reshape(-1, degree + 1)
        return state[:-1], state[-1]

    def fluxes(flat):
        c, phi = split(flat)
        return -d * (c @ slope.T + z * c * (slope @ phi))

    def residual(flat):
        (c, phi), flux = split(flat), fluxes(flat)
        ions = flux @ slope.T
        poisson = -cell["permittivity"] * slope @ (slope @ phi) - (z * c).sum(0)
        for wall, end, out in ends:
            drop = end["potential"] - phi[wall]
            if end["type"] == "reservoir":
                ions[:, wall], poisson[wall] = c[:, wall] - end["concentrations"], drop
                continue
            ions[:, wall] = flux[:, wall]
            ions[0, wall] += out * rate(end["reactions"][0], c[0, wall], drop)
            field = out * cell["permittivity"] * (slope[wall] @ phi)
            poisson[wall] = field + end["stern_capacitance"] * drop
        if (
            ends[0][1]["type"] == "electrode"
        ):  # no flux at one wall follows from the other; the amount is missing
            inner = np.r_[0, c[1, 1:]]
            ions[1, 0] = np.linalg.solve(primitive, inner)[-1] - cell["filling"][1] * cell["length"]
        return np.concatenate([ions.ravel(), poisson])

    return residual, fluxes


def current_by_collocation(cell, degree=56):
    """Of the steady state, by Newton's method from the uniform cell, with derivatives by complex steps."""
    residual, fluxes = steady_residual(cell, degree)
    state = np.repeat([*cell["filling"], 0.0], degree + 1)
    for _ in range(12):
        probes = 1e-30j * np.eye(len(state))
        slopes = np.stack([residual(state + probe).imag / 1e-30 for probe in probes], axis=1)
        state = state - np.linalg.solve(slopes, residual(state))
    assert np.abs(residual(state)).max() < 1e-7
    return float((np.array(cell["valences"]) @ fluxes(state)).mean())


@pytest.mark.parametrize("name", ["reactive1", "reactive3", "reactive6", "membrane-permittivity1-V3"])
def test_currents_by_collocation(name):
    entry = ENTRIES[f"{name}-current_density"]
    assert current_by_collocation(entry["cell"]) == pytest.approx(entry["value"], rel=1e-9)


@pytest.mark.parametrize("name", ["membrane-permittivity0.1", "binary-permittivity1"])
def test_no_current_at_the_reversal_potential(name):
    entry = ENTRIES[f"{name}-reversal_potential"]
    cell = entry["cell"] | {"right": entry["cell"]["right"] | {"potential": entry["value"]}}
    assert current_by_collocation(cell) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["steric_closed-U4-nu0.2", "steric_closed-U40-nu0.5"])
def test_steric_cell_by_quadrature(name):
    """Length and amounts of a closed cell from the first integral of its Poisson equation."""
    entry, middle = (ENTRIES[f"{name}-{q}"] for q in ("surface_charge", "midplane_concentration"))
    cell, c = entry["cell"], middle["value"]
    volume, permittivity = cell["diameters"][0] ** 3, cell["permittivity"]
    nu = 2 * volume * c

    def crowd(phi):
        return 1 + 2 * nu * math.sinh(phi / 2) ** 2

    top = cell["left"]["potential"]
    squared = (entry["value"] / permittivity) ** 2 - 2 / (permittivity * volume) * math.log(crowd(top))

    def slope(phi):
        return math.sqrt(squared + 2 / (permittivity * volume) * math.log(crowd(phi)))

    def integral(function):
        return 2 * quad(function, 0, top, epsabs=0, epsrel=1e-11, limit=500)[0]

    assert integral(lambda phi: 1 / slope(phi)) == pytest.approx(cell["length"], rel=1e-6)
    amount = integral(lambda phi: c * math.cosh(phi) / crowd(phi) / slope(phi))
    assert amount == pytest.approx(cell["filling"][0] * cell["length"], rel=1e-6)


def test_charging_ends_at_rest():
    """The last diffuse charges are near those of the steady cell, and never beyond its surface charge."""
    for name in (
        "U1-eps0.1",
        "U4-eps0.1",
        "U10-eps0.1",
        "U1-eps0.03",
        "U4-eps0.03",
        "U1-eps0.01",
        "U4-eps0.01",
    ):
        charging = ENTRIES[f"charging-{name}-diffuse_charge"]["value"]
        rest = ENTRIES[f"canonical-{name}-diffuse_charge"]["value"]
        assert np.all(np.diff(charging) > 0)
        assert 0.9 * rest < charging[-1] < rest * (1 + 1e-9)
