"""Make pnp/reference_values.json, what known cells must give: python docs/reference_values.py.

Every entry of the table holds a cell, the definition of one quantity, its value and a bound of the value's absolute
error. Nothing here is computed with `pnp`; other solvers can be held against the table too.

Conventions: dimensionless, thermal voltage and Faraday constant are one. On 0 <= x <= length

    -permittivity phi'' = sum_i z_i c_i + fixed_charge,    J_i = -D_i (c_i' + z_i c_i phi' + c_i mu'),

with mu = -ln(1 - sum_j a_j^3 c_j) for ions of diameter a and zero for points. A closed cell starts from `filling`,
uniform, which also fixes the amounts in its steady state; between two baths, or a wall and a bath, the steady state
does not depend on it. An electrode's Stern layer obeys surface charge = stern_capacitance * (potential - phi). The
numbers of a cell are exact: the value belongs to the doubles that are written, not to decimals nearby.

How the errors are found:

* Closed forms are evaluated by mpmath with 40 and with 80 digits. What remains is the rounding to doubles.
* Boundary value problems are solved by scipy's collocation with two tolerances, transients by spectral elements and
  Radau's method (`tests/spectral.py`) with two degrees and two tolerances. The error is three times the difference,
  the largest over the times, and 1e-12 for rounding; the coarser run makes nearly all of it, so the bound is wide.

References:
    | Planck, Ann. Phys. 276, 561 (1890)
    | Hodgkin & Katz, J. Physiol. 108, 37 (1949)
    | Kilic, Bazant & Ajdari, Phys. Rev. E 75, 021502 (2007)
    | Bazant, Chu & Bayly, SIAM J. Appl. Math. 65, 1463 (2005)
    | Bazant, Thornton & Ajdari, Phys. Rev. E 70, 021506 (2004)
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from mpmath import mp, mpf
from numpy.polynomial import Legendre
from scipy.integrate import solve_bvp

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.spectral import SpectralCell, gauss_lobatto, two_sided

TABLE = Path(__file__).parents[1] / "pnp" / "reference_values.json"
DIGITS = 40
COARSE, FINE = 1e-8, 1e-10
"""Tolerances of the boundary value problems."""
SAFETY, ROUNDING = 3.0, 1e-12
CHARGING = (0.1, 0.3, 1.0, 3.0, 10.0)

QUANTITIES = {
    "diffuse_charge": "half of the integral of |sum z c + fixed_charge| over the cell, per area",
    "surface_charge": "charge of the left electrode per area, -permittivity phi'(0)",
    "differential_capacitance": "derivative of surface_charge with respect to the left potential",
    "midplane_concentration": "concentration of the first species at x = length/2",
    "midplane_potential": "phi at x = length/2",
    "reversal_potential": "potential of the right end at which no current flows; it replaces the cell's null",
    "current_density": "sum z J, positive to the right",
    "impedance_real": "real part of (left minus right potential)/current per area, for small signals "
    "exp(+i omega t); current is the ions' and the displacement's, frequencies are angular",
    "impedance_imag": "imaginary part of the same impedance",
}
LIMITS = {
    "zero": "limit of permittivity to zero: electroneutral between the ends (Planck)",
    "infinite": "limit of permittivity to infinity: the field is constant (Goldman, Hodgkin and Katz)",
}
RATE = (
    "rate (reduction) = k c0 [(c/c0) exp(-alpha n (Delta - E0)) - exp((1 - alpha) n (Delta - E0))] with "
    "Delta = potential - phi at the wall, k rate_constant, c0 reference_concentration, alpha transfer_coefficient, "
    "n electrons, E0 standard_potential; it takes up ions of `species` (an index) at this rate per area, and its "
    "product is a solid of unit activity"
)

Cell = dict[str, Any]
Entry = dict[str, Any]
Values = Mapping[str, tuple[Any, Any]]
"""Value and error of each quantity, numbers or lists."""


# The form of the table


def electrode(
    potential: float, stern: float | None = None, reactions: Sequence[Mapping] = ()
) -> dict[str, Any]:
    return {
        "type": "electrode",
        "potential": potential,
        "stern_capacitance": stern,
        "reactions": list(reactions),
    }


def reservoir(concentrations: Sequence[float], potential: float | None = 0.0) -> dict[str, Any]:
    return {"type": "reservoir", "potential": potential, "concentrations": list(concentrations)}


def cell(permittivity: float | None, left: Mapping, right: Mapping, **changes: Any) -> Cell:
    """A 1:1 salt of unit concentration, unless told."""
    return {
        "length": 1.0,
        "permittivity": permittivity,
        "fixed_charge": 0.0,
        "valences": [1.0, -1.0],
        "diffusivities": [1.0, 1.0],
        "filling": [1.0, 1.0],
        "diameters": [0.0, 0.0],
        "left": left,
        "right": right,
    } | changes


def canonical_cell(voltage: float, debye: float, stern: float | None = None, **changes: Any) -> Cell:
    """Two half widths long, electrodes at plus and minus `voltage`."""
    left, right = electrode(voltage, stern), electrode(-voltage, stern)
    return cell(2 * debye**2, left, right, **{"length": 2.0} | changes)


def upward(error: float) -> float:
    """Two figures, never smaller."""
    return float(f"{1.05 * error:.1e}")


def entries(name: str, kind: str, cell: Cell, values: Values, method: str, **more: Any) -> Iterator[Entry]:
    """One entry for each quantity of `values`: value and error."""
    for quantity, (value, error) in values.items():
        listed = np.ndim(value) > 0
        yield {
            "id": f"{name}-{quantity}",
            "kind": kind,
            "cell": cell,
            "quantity": quantity,
            **more,
            "value": [float(v) for v in value] if listed else float(value),
            "error": [upward(float(e)) for e in error] if listed else upward(float(error)),
            "method": method,
        }


# Closed forms, with many digits


def exactly(formula: Callable[[], Mapping[str, Any]]) -> Values:
    """Values and errors of a formula of mpmath: what twice the digits change, and two roundings."""
    with mp.workdps(DIGITS):
        once = formula()
    with mp.workdps(2 * DIGITS):
        twice = formula()
        return {name: _rounded(once[name], value) for name, value in twice.items()}


def _rounded(once: Any, twice: Any) -> tuple[Any, Any]:
    if isinstance(twice, list):
        pairs = [_rounded(a, b) for a, b in zip(once, twice, strict=True)]
        return [a for a, _ in pairs], [b for _, b in pairs]
    return twice, abs(twice - once) + 2 * abs(twice) * mpf(2) ** -53


def canonical_integrals(b: mpf, top: mpf) -> tuple[mpf, mpf]:
    """Of 1/w and t^2/w from 0 to `top`, w^2 = (1 + t^2)(b^2 + t^2), in Carlson's symmetric forms."""
    b2, s2 = b**2, top**2
    first = top * mp.elliprf(b2, b2 * (1 + s2), b2 + s2)
    second = b2 * top**3 / 3 * mp.elliprd(b2 * (1 + s2), b2 + s2, b2)
    return first, second


def canonical_slope(debye: mpf, top: mpf) -> mpf:
    """The b at which the cell holds its ions.

    With s = sinh(|phi|/2), Poisson's equation debye^2 phi'' = A sinh(phi) on -1 < x < 1 has the first integral
    phi'^2 = (4A/debye^2)(s^2 + b^2), so that 1 = debye/sqrt(A) I0 is the half width and
    1 = A + 2 sqrt(A) debye I2 the amount of either ion in it; A is eliminated.
    """

    def excess(log_b: mpf) -> mpf:
        first, second = canonical_integrals(mp.exp(log_b), top)
        return mp.log(debye**2 * first * (first + 2 * second))

    voltage = 2 * mp.asinh(top)
    with mp.workdps(20):
        bracket = (-2 / debye - voltage - 10, voltage + 5)
        start = mp.findroot(excess, bracket, solver="anderson", tol=1e-12)
    return mp.exp(mp.findroot(excess, (start, start * (1 + mpf(10) ** -9)), solver="secant"))


def canonical(cell: Cell, wall: mpf | None = None) -> dict[str, mpf]:
    """Exact steady state of the canonical cell; `wall` is the potential at the left wall."""
    debye, wall = mp.sqrt(mpf(cell["permittivity"]) / 2), wall or mpf(cell["left"]["potential"])
    top = mp.sinh(wall / 2)
    b = canonical_slope(debye, top)
    root = debye * canonical_integrals(b, top)[0]
    steep = mp.hypot(top, b)
    return {
        "diffuse_charge": 4 * debye * root * top**2 / (steep + b),
        "surface_charge": 4 * debye * root * steep,
        "midplane_concentration": root**2,
    }


def canonical_stern(cell: Cell) -> dict[str, mpf]:
    """The same behind equal Stern layers: what the diffuse layer holds, the Stern layer holds too."""
    voltage, stern = mpf(cell["left"]["potential"]), mpf(cell["left"]["stern_capacitance"])

    def excess(wall: mpf) -> mpf:
        return canonical(cell, wall)["surface_charge"] - stern * (voltage - wall)

    with mp.workdps(20):
        start = mp.findroot(excess, (voltage / 1000, voltage), solver="anderson", tol=1e-12)
    return canonical(cell, mp.findroot(excess, (start, start * (1 + mpf(10) ** -9)), solver="secant"))


def steady_canonical() -> Iterator[Entry]:
    method = "Elliptic integrals in Carlson's forms and one scalar equation for the amounts"
    voltages, debyes = (0.1, 1.0, 2.0, 4.0, 10.0, 20.0, 40.0, 80.0), (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
    for voltage, debye in product(voltages, debyes):
        one = canonical_cell(voltage, debye)
        yield from entries(
            f"canonical-U{voltage:g}-eps{debye:g}", "steady", one, exactly(partial(canonical, one)), method
        )
    for voltage, debye in product((1.0, 4.0, 10.0), (0.1, 0.01)):
        one = canonical_cell(voltage, debye, 2 * debye)
        yield from entries(
            f"canonical_stern-U{voltage:g}-eps{debye:g}",
            "steady",
            one,
            exactly(partial(canonical_stern, one)),
            method + ", and a second one for the drop in the Stern layers",
        )


def grahame(cell: Cell, wall: mpf) -> tuple[mpf, mpf]:
    """Charge and differential capacitance of a diffuse layer of point ions before a bath at zero potential."""
    salt = list(zip(cell["valences"], cell["right"]["concentrations"], strict=True))
    pressure = sum(c * mp.expm1(-z * wall) for z, c in salt)
    charge = mp.sign(wall) * mp.sqrt(2 * cell["permittivity"] * pressure)
    return charge, -cell["permittivity"] * sum(z * c * mp.exp(-z * wall) for z, c in salt) / charge


def layer(cell: Cell) -> dict[str, mpf]:
    """Gouy-Chapman, behind a Stern layer where there is one."""
    voltage, stern = mpf(cell["left"]["potential"]), cell["left"]["stern_capacitance"]
    if stern is None:
        charge, capacitance = grahame(cell, voltage)
        return {"surface_charge": charge, "differential_capacitance": capacitance}
    wall = mp.findroot(
        lambda wall: grahame(cell, wall)[0] - stern * (voltage - wall),
        (voltage * mpf(10) ** -6, voltage),
        solver="anderson",
        tol=mpf(10) ** (10 - 2 * mp.dps),
        maxsteps=200,
    )
    charge, capacitance = grahame(cell, wall)
    return {"surface_charge": charge, "differential_capacitance": 1 / (1 / capacitance + 1 / mpf(stern))}


def double_layers() -> Iterator[Entry]:
    """Of point ions, from 40 Debye lengths and more away from a bath, whose distance is not felt."""
    for (z, c), stern in product((((1.0, -1.0), (1.0, 1.0)), ((2.0, -1.0), (0.5, 1.0))), (None, 0.5, 5.0)):
        for voltage in (-3.0, 0.5, 2.0, 6.0):
            one = cell(
                2.0, electrode(voltage, stern), reservoir(c), length=40.0, valences=list(z), filling=list(c)
            )
            yield from entries(
                f"gouy_chapman-z{z[0]:g}-U{voltage:g}-CS{stern or math.inf:g}",
                "double_layer",
                one,
                exactly(partial(layer, one)),
                "Grahame's equation" + (" and a scalar one for the drop in the Stern layer" if stern else ""),
            )


def steric_layer(cell: Cell) -> dict[str, mpf]:
    """Double layer of 1:1 ions of equal diameter before a bath (Kilic, Bazant and Ajdari).

    Ions at rest have c/(1 - v sum c) = g exp(-z phi), and the bath gives g: with nu = 2 v c0 the charge density is
    -2 c0 sinh(phi)/(1 + 2 nu sinh(phi/2)^2), and permittivity/2 phi'^2 its integral over phi.
    """
    voltage, permittivity = mpf(cell["left"]["potential"]), mpf(cell["permittivity"])
    volume = mpf(cell["diameters"][0]) ** 3
    nu = 2 * volume * cell["right"]["concentrations"][0]
    crowd = 1 + 2 * nu * mp.sinh(voltage / 2) ** 2
    charge = mp.sign(voltage) * mp.sqrt(2 * permittivity / volume * mp.log(crowd))
    capacitance = permittivity / volume * nu * mp.sinh(voltage) / crowd / charge
    return {"surface_charge": charge, "differential_capacitance": capacitance}


def steric_layers() -> Iterator[Entry]:
    for voltage, nu in product((1.0, 5.0, 10.0, 25.0, 50.0), (0.01, 0.1, 0.5)):
        diameter = (nu / 2) ** (1 / 3)
        one = cell(
            2.0, electrode(voltage), reservoir((1.0, 1.0)), length=60.0, diameters=[diameter, diameter]
        )
        yield from entries(
            f"steric-U{voltage:g}-nu{nu:g}",
            "steric",
            one,
            exactly(partial(steric_layer, one)),
            "First integral of the Poisson equation modified for the ions' volume",
        )


def impedance(cell: Cell, frequencies: Sequence[float]) -> dict[str, list[mpf]]:
    """Of uniform, uncharged, blocking ions, by the modes of the linear equations, all odd about the middle.

    i omega c = D (c'' - z c0 (z.c)/permittivity) has solutions v sinh(kappa x), where kappa^2 and v are the
    eigenpairs of a small matrix; phi = -sum_k (z.v_k)/(permittivity kappa_k^2) a_k sinh(kappa_k x) + B x. Fluxes
    that vanish at the walls fix the amplitudes a for B = 1, and the current is what charges the electrodes.
    """
    values = [_impedance(cell, mpf(omega)) for omega in frequencies]
    return {"impedance_real": [v.real for v in values], "impedance_imag": [v.imag for v in values]}


def _impedance(cell: Cell, omega: mpf) -> mp.mpc:
    z, d, c0 = (mp.matrix(cell[name]) for name in ("valences", "diffusivities", "filling"))
    permittivity, half, count = mpf(cell["permittivity"]), mpf(cell["length"]) / 2, len(z)
    rates = mp.matrix(count, count)
    for i, j in product(range(count), repeat=2):
        rates[i, j] = (i == j) * 1j * omega / d[i] + z[i] * c0[i] * z[j] / permittivity
    squares, vectors = mp.eig(rates)
    kappas = [mp.sqrt(square) for square in squares]
    bends = [(z.T * vectors)[k] / (permittivity * kappas[k] ** 2) for k in range(count)]
    # Amplitudes are those of a_k cosh(kappa_k length/2).
    fluxes = mp.matrix(count, count)
    for i, k in product(range(count), repeat=2):
        fluxes[i, k] = kappas[k] * (vectors[i, k] - z[i] * c0[i] * bends[k])
    amplitudes = mp.lu_solve(fluxes, -mp.matrix([z[i] * c0[i] for i in range(count)]))
    waves = [a * bend for a, bend in zip(amplitudes, bends, strict=True)]
    charge = permittivity * (sum(w * k for w, k in zip(waves, kappas, strict=True)) - 1)
    drop = 2 * sum(w * mp.tanh(k * half) for w, k in zip(waves, kappas, strict=True)) - 2 * half
    stern = sum(1 / mpf(s) for s in (cell[end]["stern_capacitance"] for end in ("left", "right")) if s)
    return (drop / charge + stern) / (1j * omega)


def impedance_closed(cell: Cell, frequencies: Sequence[float]) -> dict[str, list[mpf]]:
    """The same for a 1:1 salt of equal diffusivities (Debye and Falkenhagen's length), in one line."""
    permittivity, length, d = (
        mpf(v) for v in (cell["permittivity"], cell["length"], cell["diffusivities"][0])
    )
    debye2 = permittivity / (2 * mpf(cell["filling"][0]))
    values = []
    for omega in map(mpf, frequencies):
        turn = 1j * omega * debye2 / d
        kappa = mp.sqrt((1 + turn) / debye2)
        values.append(
            (2 * mp.tanh(kappa * length / 2) / kappa + turn * length)
            / (1j * omega * permittivity * (1 + turn))
        )
    return {"impedance_real": [v.real for v in values], "impedance_imag": [v.imag for v in values]}


def impedances() -> Iterator[Entry]:
    frequencies = [0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5]
    for debye in (0.3, 0.1, 0.03):
        blocking = cell(2 * debye**2, electrode(0.0), electrode(0.0))
        method = "Linear equations in closed form: kappa^2 = (1 + i omega debye^2/D)/debye^2"
        values = exactly(partial(impedance_closed, blocking, frequencies))
        yield from entries(
            f"impedance-eps{debye:g}", "impedance", blocking, values, method, frequencies=frequencies
        )
    unequal = cell(0.02, electrode(0.0), electrode(0.0), diffusivities=[0.5, 2.0])
    asymmetric = unequal | {"valences": [2.0, -1.0], "filling": [0.5, 1.0]}
    stern = unequal | {"left": electrode(0.0, 0.1), "right": electrode(0.0, 0.3)}
    for name, one in (("unequal", unequal), ("asymmetric", asymmetric), ("stern", stern)):
        method = "Linear equations by their modes in closed form: the eigenpairs of a matrix of two rows"
        values = exactly(partial(impedance, one, frequencies))
        yield from entries(f"impedance-{name}", "impedance", one, values, method, frequencies=frequencies)


# Junctions of two baths


def junction_cell(permittivity: float | None, voltage: float | None, salt: str, **more: Any) -> Cell:
    """`salt` is membrane (K, Na and Cl) or binary (KCl)."""
    z, d, left, right = {
        "membrane": ([1.0, 1.0, -1.0], [1.96, 1.33, 2.03], [1.4, 0.1, 1.5], [0.05, 5.05, 5.1]),
        "binary": ([1.0, -1.0], [1.96, 2.03], [3.0, 3.0], [1.0, 1.0]),
    }[salt]
    rest = {"valences": z, "diffusivities": d, "diameters": [0.0] * len(z)}
    middle = [(a + b) / 2 for a, b in zip(left, right, strict=True)]
    return cell(permittivity, reservoir(left), reservoir(right, voltage), filling=middle, **rest, **more)


def junction_species(cell: Cell) -> list[tuple[mpf, mpf, mpf, mpf]]:
    """Valence, diffusivity, left and right concentration of every ion."""
    baths = (cell[end]["concentrations"] for end in ("left", "right"))
    rows = zip(cell["valences"], cell["diffusivities"], *baths, strict=True)
    return [tuple(map(mpf, row)) for row in rows]


def constant_field(cell: Cell) -> dict[str, mpf]:
    """Reversal potential of univalent ions in a constant field."""
    out = sum(d * (left if z > 0 else right) for z, d, left, right in junction_species(cell))
    back = sum(d * (right if z > 0 else left) for z, d, left, right in junction_species(cell))
    return {"reversal_potential": mp.log(out / back)}


def neutral(cell: Cell) -> dict[str, mpf]:
    """Reversal potential of univalent ions without space charge.

    The total concentration T is linear and phi' proportional to 1/T, so that phi = V ln(T/T_l)/ln(T_r/T_l) and
    J = D (c_l - c_r exp(z V))/integral of exp(z phi).
    """
    ions = junction_species(cell)
    ratio = sum(ion[3] for ion in ions) / sum(ion[2] for ion in ions)

    def current(voltage: mpf) -> mpf:
        total = mpf(0)
        for z, d, left, right in ions:
            power = z * voltage / mp.log(ratio) + 1
            total += z * d * (left - right * mp.exp(z * voltage)) * power / (ratio**power - 1)
        return total

    start = mpf(-3) / 7
    return {"reversal_potential": mp.findroot(current, (start, start / 2), solver="secant")}


def solved(ode: Callable, ends: Callable, first: Any, tolerance: float) -> Any:
    """scipy's collocation, from anything with a mesh `x`, states `y` and parameters `p`."""
    found = solve_bvp(ode, ends, first.x, first.y, first.p, tol=tolerance, bc_tol=1e-12, max_nodes=200_000)
    if not found.success:
        raise RuntimeError(found.message)
    return found


def first_guess(length: float, debye: float, rows: Callable[[np.ndarray], Sequence], parameters: Any) -> Any:
    """Where a boundary value problem starts: a mesh that is fine at both ends and rows of states on it."""
    x = two_sided(length, min(debye, length / 20) / 10, 80)
    y = np.stack([np.broadcast_to(row, x.shape) for row in rows(x)])
    return SimpleNamespace(x=x, y=y, p=np.asarray(parameters, dtype=float))


def at_part(cell: Cell, part: float) -> Cell:
    """The cell at a part of its voltage."""
    ends = {end: cell[end] for end in ("left", "right")}
    return cell | {name: end | {"potential": part * end["potential"]} for name, end in ends.items()}


def by_two_tolerances(solve: Callable[[Any, float], Any], first: Any, read: Callable) -> Values:
    coarse = solve(first, COARSE)
    before, after = read(coarse), read(solve(coarse, FINE))
    floor = {name: ROUNDING * max(1.0, abs(value)) for name, value in after.items()}
    return {name: (value, SAFETY * abs(value - before[name]) + floor[name]) for name, value in after.items()}


def junction(cell: Cell, first: Any, tolerance: float) -> Any:
    """States c, phi and phi'; parameters are the fluxes and the potential on the right."""
    z, d = (np.array(cell[name]) for name in ("valences", "diffusivities"))
    left, right = (np.array(cell[end]["concentrations"]) for end in ("left", "right"))
    voltage, count = cell["right"]["potential"], len(z)

    def ode(_x: np.ndarray, y: np.ndarray, p: np.ndarray) -> np.ndarray:
        slopes = -(p[:count] / d)[:, None] - z[:, None] * y[:count] * y[-1]
        return np.concatenate([slopes, y[-1:], -(z @ y[:count] / cell["permittivity"])[None]])

    def ends(a: np.ndarray, b: np.ndarray, p: np.ndarray) -> np.ndarray:
        last = z @ p[:count] if voltage is None else p[-1] - voltage
        return np.concatenate([a[:count] - left, b[:count] - right, [a[-2], b[-2] - p[-1], last]])

    return solved(ode, ends, first, tolerance)


def junction_values(cell: Cell) -> Values:
    count, voltage = len(cell["valences"]), cell["right"]["potential"]
    baths, drop = [cell[end]["concentrations"] for end in ("left", "right")], voltage or 0.0

    def linear(x: np.ndarray) -> list:
        return [*(a + (b - a) * x for a, b in zip(*baths, strict=True)), drop * x, drop]

    first = first_guess(cell["length"], math.sqrt(cell["permittivity"] / 10), linear, [0.0] * count + [drop])

    def read(found: Any) -> dict[str, float]:
        if voltage is None:
            return {"reversal_potential": found.p[-1]}
        return {"current_density": np.dot(cell["valences"], found.p[:count])}

    return by_two_tolerances(partial(junction, cell), first, read)


def junctions() -> Iterator[Entry]:
    for salt in ("membrane", "binary"):
        for limit, formula in (("infinite", constant_field), ("zero", neutral)):
            one = junction_cell(None, None, salt, limit=limit)
            method = f"Closed form in the {LIMITS[limit]}"
            values = exactly(partial(formula, one))
            yield from entries(f"{salt}-{limit}", "reversal_limit", one, values, method)
        method = "scipy.integrate.solve_bvp with the fluxes as parameters"
        for permittivity in (10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4):
            one = junction_cell(permittivity, None, salt)
            name = f"{salt}-permittivity{permittivity:g}"
            yield from entries(name, "reversal", one, junction_values(one), method)
        for permittivity, voltage in product((1.0, 0.01), (-2.0, 3.0)):
            one = junction_cell(permittivity, voltage, salt)
            name = f"{salt}-permittivity{permittivity:g}-V{voltage:g}"
            yield from entries(name, "open_current", one, junction_values(one), method)


# Electrode reactions


def rate(reaction: Mapping[str, float], concentration: float, drop: float) -> float:
    """Frumkin-Butler-Volmer, see RATE."""
    unit, alpha = reaction["reference_concentration"], reaction["transfer_coefficient"]
    eta = reaction["electrons"] * (drop - reaction["standard_potential"])
    forward = concentration / unit * math.exp(-alpha * eta)
    return reaction["rate_constant"] * unit * (forward - math.exp((1 - alpha) * eta))


def reactive(cell: Cell, first: Any, tolerance: float) -> Any:
    """States cation, anion, phi, phi' and the anions so far; the parameter is the cations' flux."""
    (d, _), permittivity, length = cell["diffusivities"], cell["permittivity"], cell["length"]
    sides = (cell["left"], 1), (cell["right"], -1)

    def ode(_x: np.ndarray, y: np.ndarray, p: np.ndarray) -> np.ndarray:
        cation, anion, _, slope, _ = y
        return np.stack(
            [-p[0] / d - cation * slope, anion * slope, slope, -(cation - anion) / permittivity, anion]
        )

    def ends(a: np.ndarray, b: np.ndarray, p: np.ndarray) -> np.ndarray:
        rows = [a[4], b[4] - cell["filling"][1] * length]
        for (end, into), y in zip(sides, (a, b), strict=True):
            drop = end["potential"] - y[2]
            rows.append(into * permittivity * y[3] + end["stern_capacitance"] * drop)
            rows.append(into * p[0] + rate(end["reactions"][0], y[0], drop))
        return np.array(rows)

    return solved(ode, ends, first, tolerance)


def reactive_values(cell: Cell) -> Values:
    """From rest up to the voltage of the cell, in steps."""
    debye, steps = math.sqrt(cell["permittivity"] / 2), 8
    found = first_guess(cell["length"], debye, lambda x: [1.0, 1.0, 0.0, 0.0, x], [0.0])
    for step in range(1, steps):
        found = reactive(at_part(cell, step / steps), found, 1e-4)

    def read(found: Any) -> dict[str, float]:
        return {"current_density": found.p[0], "surface_charge": -cell["permittivity"] * found.y[3, 0]}

    return by_two_tolerances(partial(reactive, cell), found, read)


def reaction(rate_constant: float, alpha: float = 0.5, standard: float = 0.0) -> dict[str, float]:
    return {
        "species": 0,
        "rate_constant": rate_constant,
        "transfer_coefficient": alpha,
        "electrons": 1,
        "standard_potential": standard,
        "reference_concentration": 1.0,
    }


def reactions() -> Iterator[Entry]:
    """Thin films between two electrodes where the cation reacts (Bazant, Chu and Bayly)."""
    for number, (left, right, voltage, debye, stern) in enumerate(
        (
            (reaction(1.0), reaction(1.0), 1.0, 0.1, (0.2, 0.2)),
            (reaction(0.1), reaction(0.1), 2.0, 0.03, (0.06, 0.06)),
            (reaction(10.0), reaction(10.0), -1.0, 0.3, (1.0, 1.0)),
            (reaction(1.0, 0.3), reaction(2.0, 0.6), -3.0, 0.1, (0.2, 0.5)),
            (reaction(10.0), reaction(10.0), 4.0, 0.03, (0.3, 0.3)),
            (reaction(0.5, 0.5, 0.4), reaction(0.5, 0.5, -0.2), 0.0, 0.1, (0.2, 0.2)),
        ),
        start=1,
    ):
        ends = electrode(voltage, stern[0], [left]), electrode(-voltage, stern[1], [right])
        one = cell(2 * debye**2, *ends, diffusivities=[1.0, 0.7])
        method = "scipy.integrate.solve_bvp with the flux as a parameter"
        yield from entries(f"reactive{number}", "reactive", one, reactive_values(one), method)


# Closed cells at rest that have no closed form


def at_rest(cell: Cell, first: Any, tolerance: float) -> Any:
    """States phi, phi' and the amounts so far; parameters are ln g of c/(1 - v sum c) = g exp(-z phi)."""
    z, volume = np.array(cell["valences"]), cell["diameters"][0] ** 3
    amounts, count = np.array(cell["filling"]) * cell["length"], len(cell["valences"])

    def ode(_x: np.ndarray, y: np.ndarray, p: np.ndarray) -> np.ndarray:
        c = concentrations(z, volume, y[0], p)
        return np.stack([y[1], -(z @ c + cell["fixed_charge"]) / cell["permittivity"], *c])

    def ends(a: np.ndarray, b: np.ndarray, _p: np.ndarray) -> np.ndarray:
        walls = [a[0] - cell["left"]["potential"], b[0] - cell["right"]["potential"]]
        return np.concatenate([walls, a[2:], b[2 : 2 + count] - amounts])

    return solved(ode, ends, first, tolerance)


def concentrations(z: np.ndarray, volume: float, phi: np.ndarray, log_g: np.ndarray) -> np.ndarray:
    points = np.exp(log_g[:, None] - z[:, None] * phi)
    return points / (1 + volume * points.sum(0))


def at_rest_values(cell: Cell) -> Values:
    """From the mixed cell up to the voltage of the cell, in steps."""
    z, volume, filling = np.array(cell["valences"]), cell["diameters"][0] ** 3, np.array(cell["filling"])
    debye, steps = math.sqrt(cell["permittivity"] / (z**2 @ filling)), 10
    log_g = np.log(filling / (1 - volume * filling.sum()))
    found = first_guess(cell["length"], debye, lambda x: [0.0, 0.0, *(filling[:, None] * x)], log_g)
    for step in range(1, steps):
        found = at_rest(at_part(cell, step / steps), found, 1e-4)

    def read(found: Any) -> dict[str, float]:
        middle = found.sol(cell["length"] / 2)[0]
        cation = concentrations(z, volume, np.array([middle]), found.p)[0, 0]
        charge = {"surface_charge": -cell["permittivity"] * found.y[1, 0]}
        return charge | {"midplane_concentration": cation, "midplane_potential": middle}

    return by_two_tolerances(partial(at_rest, cell), found, read)


def closed_cells() -> Iterator[Entry]:
    method = "scipy.integrate.solve_bvp with the amounts as states"
    salt = {"valences": [2.0, -1.0], "filling": [0.5, 1.0]}
    cells = {f"asymmetric-U{u:g}": canonical_cell(u, 0.1, **salt) for u in (1.0, 4.0)}
    cells["fixed_charge-U2"] = canonical_cell(2.0, 0.1, fixed_charge=-0.5, filling=[1.5, 1.0])
    for name, one in cells.items():
        yield from entries(name, "steady", one, at_rest_values(one), method)
    for voltage, nu in ((1.0, 0.2), (4.0, 0.2), (10.0, 0.2), (40.0, 0.5)):
        diameter = (nu / 2) ** (1 / 3)
        one = canonical_cell(voltage, 0.1, diameters=[diameter, diameter])
        values = at_rest_values(one)
        del values["midplane_potential"]  # zero
        yield from entries(f"steric_closed-U{voltage:g}-nu{nu:g}", "steric", one, values, method)


# Transients


def absolute_integral(cell: SpectralCell, density: np.ndarray) -> float:
    """Of |density|, between the roots of its polynomials."""
    nodes, total = gauss_lobatto(cell.degree)[0], 0.0
    for element, half in enumerate(np.diff(cell.ends) / 2):
        part = density[element * cell.degree :][: cell.degree + 1]
        series = Legendre.fit(nodes, part, cell.degree, domain=[-1, 1]).trim(1e-15 * np.abs(part).max())
        roots = series.roots() if series.degree() else np.array([])
        inside = np.sort(roots[(np.abs(roots.imag) < 1e-12) & (np.abs(roots.real) < 1)].real)
        total += half * np.abs(np.diff(series.integ()(np.array([-1.0, *inside, 1.0])))).sum()
    return total


def charging(cell: Cell, times: Sequence[float], degree: int, tolerance: float) -> dict[str, np.ndarray]:
    debye = math.sqrt(cell["permittivity"] / np.dot(np.square(cell["valences"]), cell["filling"]))
    steepest = max(abs(z) for z in cell["valences"]) * cell["left"]["potential"] / 2
    inner = debye * max(1 / math.cosh(steepest), debye)
    spectral = SpectralCell(
        ends=two_sided(cell["length"], 1.5 * inner, 16),
        permittivity=cell["permittivity"],
        potentials=(cell["left"]["potential"], cell["right"]["potential"]),
        stern=(cell["left"]["stern_capacitance"], cell["right"]["stern_capacitance"]),
        degree=degree,
        **{name: cell[name] for name in ("valences", "diffusivities", "filling")},
    )
    states = spectral.solve(times, tolerance)
    density, middle = spectral.charge_density(states), len(spectral.mass) // 2
    return {
        "diffuse_charge": np.array([absolute_integral(spectral, one) / 2 for one in density.T]),
        "surface_charge": spectral.surface_charge(states),
        "midplane_concentration": states[middle],
    }


def charging_values(cell: Cell, times: Sequence[float]) -> Values:
    coarse, fine = charging(cell, times, 10, 1e-9), charging(cell, times, 12, 1e-10)
    error = {name: SAFETY * np.abs(fine[name] - coarse[name]).max() for name in fine}
    return {name: (value, np.full(len(times), error[name] + ROUNDING)) for name, value in fine.items()}


def transients() -> Iterator[Entry]:
    cases = ((1.0, 0.1), (4.0, 0.1), (10.0, 0.1), (1.0, 0.03), (4.0, 0.03), (1.0, 0.01), (4.0, 0.01))
    cells = {f"charging-U{u:g}-eps{debye:g}": (canonical_cell(u, debye), debye) for u, debye in cases}
    salt = {"valences": [2.0, -1.0], "diffusivities": [0.7, 2.0], "filling": [0.5, 1.0], "permittivity": 0.03}
    cells["charging-asymmetric"] = canonical_cell(2.0, 0.1) | salt, 0.1
    stern = {"left": electrode(4.0, 0.2), "right": electrode(-4.0, 0.4)}
    cells["charging-stern"] = canonical_cell(4.0, 0.1) | stern, 0.1
    for name, (one, debye) in cells.items():
        times = [debye * factor for factor in CHARGING]
        method = "Gauss-Lobatto spectral elements and Radau IIA, degree 12 and tolerance 1e-10"
        yield from entries(name, "transient", one, charging_values(one, times), method, times=times)


def table() -> dict[str, Any]:
    parts = (
        steady_canonical,
        double_layers,
        steric_layers,
        impedances,
        junctions,
        reactions,
        closed_cells,
        transients,
    )
    return {
        "description": "Reference values of Poisson-Nernst-Planck cells, made by docs/reference_values.py",
        "conventions": {
            "id": "U left potential, V right one, eps Debye length over length (canonical: half), CS Stern "
            "capacitance, nu volume fraction of both ions at unit concentration",
            "units": "dimensionless, thermal voltage and Faraday constant are one",
            "poisson": "-permittivity phi'' = sum_i z_i c_i + fixed_charge on 0 <= x <= length",
            "flux": "J_i = -D_i (c_i' + z_i c_i phi' + c_i mu'), mu = -ln(1 - sum_j a_j^3 c_j), a diameters",
            "null": "no Stern layer; a permittivity that is a limit; the potential that is asked for",
            "filling": "uniform concentrations at time zero, which fix the amounts in a closed cell",
            "reactive": "of ions that react the amount is free, that of the others is filling * length",
            "stern": "surface charge = stern_capacitance * (potential - phi at the wall)",
            "reactions": RATE,
            "limit": LIMITS,
            "error": "bound of the absolute error of the value, for the doubles that are written",
        },
        "quantities": QUANTITIES,
        "entries": [entry for part in parts for entry in part()],
    }


if __name__ == "__main__":
    made = table()
    TABLE.write_text(json.dumps(made, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for kind, count in Counter(entry["kind"] for entry in made["entries"]).items():
        errors = [np.max(entry["error"]) for entry in made["entries"] if entry["kind"] == kind]
        print(f"{kind:16s} {count:4d} entries, largest error {max(errors):.1e}")
