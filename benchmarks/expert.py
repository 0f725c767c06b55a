"""An expert's solver in numpy, one cell after another: what `pnp` is measured against.

Scharfetter-Gummel finite volumes for a 1:1 salt of equal diffusivities between blocking electrodes, all unknowns in
one Newton iteration, LAPACK's band solver; steady states, and transients by adaptive TR-BDF2. It shares no code with
`pnp` and takes every advantage that the special case offers: one Bernoulli function serves both ions, and the order
(cation, potential, anion) of the unknowns at a node makes the band as narrow as it can be.

Lengths in half widths (the cell is 0..2), potentials in thermal voltages, mean concentrations one, unit
diffusivities; `debye` is the Debye length, so the permittivity is 2 debye². Q is the diffuse charge of one half,
the integral of |c+ - c-|/2 over it.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dgbsv, dgbtrf, dgbtrs

FIELDS = 3
BAND = 4
MIDDLE, WIDTH = 2 * BAND, 3 * BAND + 1
CATION, POTENTIAL, ANION = range(FIELDS)
IONS = slice(0, FIELDS, 2)
KEEP_AT_LEAST = 0.1
NEGLIGIBLE = 1e-14
GAMMA = 2 - math.sqrt(2)
SPAN = GAMMA * (2 - GAMMA)
ERROR = (-3 * GAMMA**2 + 4 * GAMMA - 2) / (6 * (2 - GAMMA))
FIRST_STEP = 1e-3
CONVERGED, FRESH, SLOW, MOST_CORRECTIONS = 0.02, 0.1, 0.3, 20
"""Of the corrections of a stage, in units of the tolerated error; they are cheap while the matrix is kept."""


class ExpertError(RuntimeError):
    """No solution was found."""


def graded_nodes(voltage: float, debye: float, nodes: int) -> np.ndarray:
    """A two-sided sinh map on 0..2 for an odd number of nodes; 0.02 (200/nodes) inner Debye lengths at the walls."""
    inner = debye * max(1 / math.cosh(voltage / 2), debye)
    ratio = 0.02 * 200 / nodes * inner * (nodes - 1) / 2
    grading = 1.0
    for _ in range(60):  # sinh(a) = a / ratio
        better = math.asinh(grading / ratio)
        grading, moved = better, abs(better - grading)
        if moved < 1e-14 * better:
            break
    distance = np.sinh(grading * np.linspace(0, 1, nodes // 2 + 1)) / math.sinh(grading)
    return np.concatenate([distance, 2 - distance[-2::-1]])


def bernoulli(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """B(x) = x/(exp(x) - 1) and its derivative (within 1e-5 where that hardly matters)."""
    small = np.abs(x) < 1e-5
    safe = np.where(small, 1e-5, x)
    rest = np.expm1(safe)
    value = safe / rest
    slope = (1 - value) / rest - value
    np.copyto(value, 1 - x / 2 + x * x / 12, where=small)
    return value, slope


@dataclass(frozen=True)
class Result:
    """State `(field, node)`, the fields in the order cation, potential, anion, and the cost."""

    state: np.ndarray
    iterations: int


@dataclass(frozen=True)
class Charging:
    """Diffuse charge at the requested times, and the cost."""

    charges: np.ndarray
    steps: int
    rejected: int
    factorisations: int
    iterations: int


class Expert:
    """Equations of one cell on given nodes, assembled into one band matrix."""

    def __init__(self, voltage: float, debye: float, nodes: np.ndarray) -> None:
        self.voltage, self.count = voltage, len(nodes)
        spacings = nodes[1:] - nodes[:-1]
        self.volumes = np.zeros(self.count)
        self.volumes[:-1] += spacings / 2
        self.volumes[1:] += spacings / 2
        self.inverse = 1 / spacings
        self.start = np.ones((FIELDS, self.count))
        self.start[POTENTIAL] = voltage * (1 - nodes)
        self.weight = weight = 2 * debye**2 * self.inverse
        # What does not change from one matrix to the next: Gauss's law. Column j of the matrix is row j here.
        fixed = np.zeros((self.count, FIELDS, WIDTH))
        fixed[1:-1, CATION, MIDDLE + 1] = -self.volumes[1:-1]
        fixed[1:-1, ANION, MIDDLE - 1] = self.volumes[1:-1]
        fixed[1:-1, POTENTIAL, MIDDLE] = weight[1:] + weight[:-1]
        fixed[0, POTENTIAL, MIDDLE] = fixed[-1, POTENTIAL, MIDDLE] = 1.0
        fixed[2:, POTENTIAL, MIDDLE - 3] = -weight[1:]
        fixed[:-2, POTENTIAL, MIDDLE + 3] = -weight[:-1]
        self.fixed, self.matrix = fixed, fixed.copy()
        self.band = self.matrix.reshape(-1, WIDTH).T
        self.residual = np.zeros((self.count, FIELDS))

    def charge(self, state: np.ndarray) -> float:
        """Diffuse charge of one half."""
        return float(self.volumes @ np.abs(state[CATION] - state[ANION])) / 4

    def edges(self, state: np.ndarray) -> tuple[np.ndarray, ...]:
        """Scharfetter-Gummel fluxes of cation and anion, and what their derivatives are made of."""
        cation, potential, anion = state
        drop = potential[1:] - potential[:-1]
        up, slope = bernoulli(drop)
        up *= self.inverse
        slope *= self.inverse
        down = up + drop * self.inverse
        return up * cation[:-1] - down * cation[1:], down * anion[:-1] - up * anion[1:], up, down, slope

    def balance(self, state: np.ndarray, edges: tuple[np.ndarray, ...]) -> np.ndarray:
        """Residuals `(node, field)` of the steady balances and of Gauss's law."""
        residual = self.residual
        for field, flux in ((CATION, edges[0]), (ANION, edges[1])):
            column = residual[:, field]
            column[:-1] = flux
            column[-1] = 0.0
            column[1:] -= flux
        cation, potential, anion = state
        field = (potential[1:] - potential[:-1]) * self.weight
        charge = self.volumes * (cation - anion)
        residual[1:-1, POTENTIAL] = field[:-1] - field[1:] - charge[1:-1]
        residual[0, POTENTIAL] = potential[0] - self.voltage
        residual[-1, POTENTIAL] = potential[-1] + self.voltage
        return residual

    def assemble(self, state: np.ndarray, edges: tuple[np.ndarray, ...], storage: np.ndarray | None) -> None:
        """The band matrix of the balances, with `storage` on the diagonal of the ions."""
        _, _, up, down, slope = edges
        cation, _, anion = state
        matrix = self.matrix
        np.copyto(matrix, self.fixed)
        for field, behind, ahead in ((CATION, up, down), (ANION, down, up)):
            diagonal = matrix[:, field, MIDDLE]
            if storage is not None:
                diagonal[:] = storage
            diagonal[:-1] += behind
            diagonal[1:] += ahead
            np.negative(ahead, out=matrix[1:, field, MIDDLE - 3])
            np.negative(behind, out=matrix[:-1, field, MIDDLE + 3])
        # Rows of the ions in the columns of the potential: the cation's one above, the anion's one below.
        cation_slope = slope * (cation[:-1] - cation[1:]) - self.inverse * cation[1:]
        anion_slope = slope * (anion[:-1] - anion[1:]) + self.inverse * anion[:-1]
        for near, by_drop in ((MIDDLE - 1, cation_slope), (MIDDLE + 1, anion_slope)):
            own = matrix[:, POTENTIAL, near]
            np.negative(by_drop, out=own[:-1])
            own[1:] -= by_drop
            matrix[1:, POTENTIAL, near - 3] = by_drop
            matrix[:-1, POTENTIAL, near + 3] = by_drop

    def pin(self, row: int) -> None:
        """Replace one row of the matrix by that of the identity."""
        # The entry of row r and column c stands at r - c + MIDDLE of the column's own WIDTH.
        flat, low, high = self.matrix.ravel(), max(row - BAND, 0), min(row + BAND, FIELDS * self.count - 1)
        here, stride = row + MIDDLE, WIDTH - 1
        flat[here + stride * low : here + stride * high + 1 : stride] = 0.0
        flat[here + stride * row] = 1.0

    def steady(self, tolerance: float = 1e-8, most: int = 60) -> Result:
        """Newton's method from uniform concentrations and a linear potential, with the amounts imposed."""
        state, volumes, amount = self.start.copy(), self.volumes, self.volumes.sum()
        sides = np.zeros((3, self.count, FIELDS))
        columns = sides.reshape(3, -1).T
        for iteration in range(1, most + 1):
            edges = self.edges(state)
            self.assemble(state, edges, None)
            sides[0] = self.balance(state, edges)
            sides[1:] = 0.0
            for side, field in ((1, CATION), (2, ANION)):
                node = int(state[field].argmax())
                self.pin(FIELDS * node + field)
                sides[0, node, field] = 0.0
                sides[side, node, field] = 1.0
            info = dgbsv(BAND, BAND, self.band, columns, overwrite_ab=1, overwrite_b=1)[-1]
            if info:
                raise ExpertError("singular matrix")
            # The two numbers that the pinned nodes change by follow from the two amounts.
            (a, b), (c, d), (e, f) = (volumes @ sides[:, :, IONS]).tolist()
            a, b = volumes @ state[CATION] - amount - a, volumes @ state[ANION] - amount - b
            update = sides[0] + (a * f - b * e) / (c * f - d * e) * sides[1]
            update += (b * c - a * d) / (c * f - d * e) * sides[2]
            moved, limited = apply(state, update.T)
            if moved < tolerance and not limited:
                return Result(state, iteration)
        raise ExpertError(f"no convergence in {most} iterations")

    def charging(self, times: np.ndarray, relative: float = 1e-4, absolute: float = 1e-6) -> Charging:
        """Diffuse charge at increasing `times` after the potentials are switched on, by adaptive TR-BDF2."""
        state, volumes = self.start.copy(), self.volumes
        # An array of the ions (cation, anion) beside the state: its rows as a view.
        before, rate = None, self.rates(state)
        time, step, euler, done = 0.0, FIRST_STEP * float(self.weight[0] / self.inverse[0]) / 2, True, 0
        charges, counts = np.zeros(len(times)), {"steps": 0, "rejected": 0}
        self.factorisations = self.iterations = 0
        while done < len(times):
            tau = step if euler else GAMMA / 2 * step
            ions = state[IONS]
            trial = state.copy()
            if before is not None and not euler:
                # The straight line through the last step is the first guess; never through zero.
                guess = ions + (GAMMA * step / before[0]) * (ions - before[1])
                trial[IONS] = np.maximum(guess, KEEP_AT_LEAST * ions)
                trial[POTENTIAL] += (GAMMA * step / before[0]) * (state[POTENTIAL] - before[2])
            weight = absolute + relative * np.abs(ions)
            known = ions if euler else ions + tau * rate
            ok = self.stage(trial, known, tau, weight, fresh=True)
            if ok and euler:
                end = (trial[IONS] - known) / tau
                error = step / 2 * (end - rate)
            elif ok:
                middle, known = (trial[IONS] - known) / tau, (trial[IONS] - (1 - SPAN) * ions) / SPAN
                first = trial[POTENTIAL] - state[POTENTIAL]
                guess = trial[IONS] + (1 - GAMMA) / GAMMA * (trial[IONS] - ions)
                trial[IONS] = np.maximum(guess, KEEP_AT_LEAST * trial[IONS])
                trial[POTENTIAL] += (1 - GAMMA) / GAMMA * first
                ok = self.stage(trial, known, tau, weight, fresh=False)
                end = (trial[IONS] - known) / tau
                error = ERROR * step * (rate / GAMMA - middle / (GAMMA * (1 - GAMMA)) + end / (1 - GAMMA))
            if ok:
                # The stiff part of the estimate is filtered by the matrix of the step.
                sides = np.zeros((self.count, FIELDS))
                sides[:, CATION], sides[:, ANION] = volumes / tau * error
                error = self.substitute(sides).T[IONS] / weight
                norm = math.sqrt(float(np.vdot(error, error)) / error.size)
            if not ok or norm > 1:
                counts["rejected"] += 1
                step *= max(0.2, 0.9 * norm ** (-1 / (2 if euler else 3))) if ok else (0.2 if euler else 1.0)
                euler |= not ok
                if step < 1e-16:
                    raise ExpertError(f"no step from {time:g}")
                continue
            last = int(np.searchsorted(times, time + step, side="right"))
            for index in range(done, last):
                share = (times[index] - time) / step
                charges[index] = self.between(ions, trial[IONS], step * rate, step * end, share)
            before = (step, ions.copy(), state[POTENTIAL].copy())
            time, done, state, rate = time + step, last, trial, end
            counts["steps"] += 1
            step *= min(5.0, max(0.2, 0.9 * max(norm, 1e-12) ** (-1 / (2 if euler else 3))))
            euler = False
        return Charging(charges, counts["steps"], counts["rejected"], self.factorisations, self.iterations)

    def rates(self, state: np.ndarray) -> np.ndarray:
        """Rates of change of cation and anion, `(2, node)`."""
        return -self.balance(state, self.edges(state)).T[IONS] / self.volumes

    def stage(
        self, state: np.ndarray, known: np.ndarray, tau: float, weight: np.ndarray, fresh: bool
    ) -> bool:
        """Solve c = known + tau dc/dt in place, with the last matrix as long as that contracts fast."""
        storage, last = self.volumes / tau, math.inf
        for _ in range(MOST_CORRECTIONS):
            edges = self.edges(state)
            if fresh:
                self.assemble(state, edges, storage)
                self.factors, self.pivots, info = dgbtrf(self.band, BAND, BAND, overwrite_ab=1)
                self.factorisations += 1
                if info:
                    return False
            residual = self.balance(state, edges)
            residual[:, IONS] += (storage * (state[IONS] - known)).T
            update = self.substitute(residual).T
            self.iterations += 1
            proposed = state[IONS] - update[IONS]
            least = KEEP_AT_LEAST * state[IONS]
            limited = float((proposed - least).min()) < 0
            state[IONS] = np.maximum(proposed, least) if limited else proposed
            state[POTENTIAL] -= update[POTENTIAL]
            scaled = update[IONS] / weight
            moved = math.sqrt(float(np.vdot(scaled, scaled)) / scaled.size)
            if not math.isfinite(moved):
                return False
            contraction = moved / last
            # A fresh matrix converges quadratically, an old one by the factor that was seen. None was seen after the
            # first correction by that of the first stage, which is taken as enough: more of them cost a third more
            # and change no error.
            left = moved * (FRESH if fresh else min(contraction, 1.0))
            if left < CONVERGED and not limited:
                return True
            fresh, last = limited or contraction > SLOW, moved
        return False

    def substitute(self, sides: np.ndarray) -> np.ndarray:
        """Solve with the last factors for a right-hand side `(node, field)`, in place."""
        column = sides.reshape(-1, 1)
        dgbtrs(self.factors, BAND, BAND, column, self.pivots, overwrite_b=1)
        return sides

    def between(
        self, start: np.ndarray, end: np.ndarray, at_start: np.ndarray, at_end: np.ndarray, share: float
    ) -> float:
        """Diffuse charge within a step, from the cubic through states and rates (times the step) at its ends."""
        s, rest = share, 1 - share
        cubic = (
            rest * start + s * end + s * rest * (rest * (at_start - end + start) - s * (at_end - end + start))
        )
        return float(self.volumes @ np.abs(cubic[0] - cubic[1])) / 4


def apply(state: np.ndarray, update: np.ndarray) -> tuple[float, bool]:
    """Take a limited Newton step in place; the largest relative change, and whether the limiter mattered."""
    state[POTENTIAL] -= update[POTENTIAL]
    moved, limited = float((np.abs(update[POTENTIAL]) / (1 + np.abs(state[POTENTIAL]))).max()), False
    for field in (CATION, ANION):
        old = state[field]
        new = old - update[field]
        least = KEEP_AT_LEAST * old
        floor = NEGLIGIBLE * float(new.max())
        if float((new - least).min()) < 0:
            limited |= bool(((new < least) & (old > floor)).any())
            np.maximum(new, least, out=new)
        moved = max(moved, float((np.abs(new - old) / np.maximum(new, floor)).max()))
        state[field] = new
    return moved, limited
