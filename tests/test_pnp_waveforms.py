"""Waveforms by themselves, and cells that follow them: linear response, jumps, displacement currents, voltammetry."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from mpmath import mp

import pnp
from pnp import compiled
from pnp.solvers import integration

from .problems import electrolyte


def tensor(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# ---- waveforms


TIMES = tensor(0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.3, 2.0, 5.0)


def at(wave: pnp.Waveform, times: torch.Tensor = TIMES) -> torch.Tensor:
    """Values at all times, of a wave without batch axes."""
    return torch.stack([wave(time) for time in times])


def test_step():
    wave = pnp.step(-0.3, 0.7, at=0.5)
    assert at(wave).tolist() == [-0.3] * 3 + [0.7] * 6
    # At the jump `within` says which side is meant.
    assert (float(wave(0.5, 0.4)), float(wave(0.5, 0.6))) == (-0.3, 0.7)
    assert (float(wave.low), float(wave.high), wave.breaks.tolist()) == (-0.3, 0.7, [0.5])
    assert float(wave.rate(tensor(0.5))) == 0.0


def test_piecewise_linear():
    times, values = [0.25, 0.5, 2.0], [1.0, -1.0, 0.5]
    wave = pnp.piecewise_linear(times, values)
    assert np.allclose(at(wave), np.interp(TIMES, times, values), rtol=0, atol=1e-15)
    assert (float(wave.low), float(wave.high), wave.breaks.tolist()) == (-1.0, 1.0, times)
    # At a kink the rate is that of the line that begins there.
    rates = torch.stack([wave.rate(time) for time in tensor(0.0, 0.25, 0.4, 0.5, 1.9, 2.0, 3.0)])
    assert torch.allclose(rates, tensor(0, -8, -8, 1, 1, 0, 0), rtol=0, atol=1e-12)
    # Beyond a kink a line goes on where the moment `within` says so.
    assert float(wave(0.6, 0.4)) == pytest.approx(1 - 8 * 0.35)


def test_ramp():
    wave = pnp.ramp(0.2, 1.0, duration=0.5)
    assert torch.allclose(at(wave), tensor(0.2, 0.36, 0.6, *[1.0] * 6))
    assert wave.breaks.tolist() == [0.0, 0.5]
    assert [float(wave.rate(tensor(t))) for t in (0.0, 0.3, 0.5)] == pytest.approx([1.6, 1.6, 0.0])


def test_triangle():
    wave = pnp.triangle(0.5, -1.0, rate=3.0, cycles=2)
    # a leg takes 0.5; back at the start after each cycle, and from the last one on
    assert torch.allclose(at(wave), tensor(0.5, 0.2, -0.25, -1.0, -0.25, 0.5, -0.4, 0.5, 0.5))
    assert torch.allclose(wave.breaks, tensor(0.0, 0.5, 1.0, 1.5, 2.0))
    assert [float(wave.rate(tensor(t))) for t in (0.0, 0.5, 1.2, 1.7, 2.1)] == pytest.approx(
        [-3, 3, -3, 3, 0]
    )
    assert (float(wave.low), float(wave.high)) == (-1.0, 0.5)


def test_sine():
    wave = pnp.sine(-0.7, 0.4, offset=0.1, phase=0.3)
    angle = 2 * math.pi * 0.4 * TIMES + 0.3
    assert torch.allclose(at(wave), 0.1 - 0.7 * torch.sin(angle), rtol=1e-14)
    rates = torch.stack([wave.rate(time) for time in TIMES])
    assert torch.allclose(rates, -0.7 * 0.8 * math.pi * torch.cos(angle), rtol=1e-13)
    assert (float(wave.low), float(wave.high)) == pytest.approx((-0.6, 0.8))
    assert wave.breaks.numel() == 0


BATCHES = {
    "step": lambda a, b: pnp.step(a, b, at=0.5 + 0 * a),
    "ramp": lambda a, b: pnp.ramp(a, b, duration=1.0 + a**2),
    "triangle": lambda a, b: pnp.triangle(a, b, rate=2.0 + a, cycles=2),
    "sine": lambda a, b: pnp.sine(a, 1.0 + b**2, offset=b, phase=a),
    "piecewise_linear": lambda a, b: pnp.piecewise_linear(
        torch.stack([0 * a, 1 + a**2, 3 + a**2], -1), torch.stack([a, b, a], -1)
    ),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_batch_of_waves_is_its_elements(kind):
    a, b = torch.rand(3, 1, dtype=torch.float64), torch.rand(2, dtype=torch.float64) - 1.5
    wide = BATCHES[kind](*torch.broadcast_tensors(a, b))
    assert wide.batch_shape == (3, 2)
    moments = torch.rand(3, 2, dtype=torch.float64) * 3
    values, rates = wide(moments), wide.rate(moments)
    for i in range(3):
        for j in range(2):
            one = BATCHES[kind](a[i, 0], b[j])
            assert one.batch_shape == ()
            assert float(values[i, j]) == pytest.approx(float(one(moments[i, j])), rel=1e-14)
            assert float(rates[i, j]) == pytest.approx(float(one.rate(moments[i, j])), rel=1e-13)
            assert torch.allclose(wide.breaks[i, j] if wide.breaks.numel() else wide.breaks, one.breaks)
            assert (float(wide.low[i, j]), float(wide.high[i, j])) == (float(one.low), float(one.high))


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("what", ["value", "rate"])
def test_gradients_of_waves(kind, what):
    moments = tensor(0.2, 0.8, 2.3)

    def numbers(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        wave = BATCHES[kind](*torch.broadcast_tensors(a.expand(3), b.expand(3)))
        return wave(moments) if what == "value" else wave.rate(moments)

    given = [tensor(0.4).requires_grad_(), tensor(-0.7).requires_grad_()]
    if kind == "step" and what == "rate":
        assert not numbers(*given).requires_grad
        return
    assert torch.autograd.gradcheck(numbers, given)


def test_wave_of_ones_own():
    wave = pnp.Waveform(lambda time, within: torch.exp(-time) * (within < 1), low=0.0, high=1.0, breaks=[1.0])
    cell = blocking(left=pnp.Electrode(potential=wave))
    grid = pnp.Grid.uniform(cell, 21)
    solution = pnp.solve_transient(cell, grid, times=[0.2, 1.0, 1.5], step_control=LOOSE)
    assert torch.allclose(solution.potential[:, 0], tensor(math.exp(-0.2), 0.0, 0.0), rtol=1e-12)


# ---- linear response


@dataclass(frozen=True)
class Linear:
    """Blocking electrodes a unit length apart, of equal diffusivities one, and their exact response to small voltages.

    References:
        Debye & Falkenhagen, Phys. Z. 29, 121 (1928).
    """

    debye: float = 0.1
    stern: float | None = None

    def cell(self, left: Any) -> pnp.Cell:
        return pnp.Cell(
            electrolyte(2 * self.debye**2),
            length=1.0,
            concentrations=1.0,
            left=pnp.Electrode(potential=left, stern_capacitance=self.stern),
            right=pnp.Electrode(potential=0.0, stern_capacitance=self.stern),
        )

    def impedance(self, s: Any) -> Any:
        """At the complex frequency s, with numbers of mpmath or Python."""
        debye, permittivity = mp.mpf(self.debye), 2 * mp.mpf(self.debye) ** 2
        turn = s * debye**2
        kappa = mp.sqrt(1 + turn) / debye
        ions = (2 * mp.tanh(kappa / 2) / kappa + turn) / (s * permittivity * (1 + turn))
        return ions if self.stern is None else ions + 2 / (s * self.stern)

    def on_ramp(self, time: float, current: bool = False) -> float:
        """Charge of the left electrode, or current, while its potential rises by one in a unit of time.

        Talbot's inverse of the Laplace transform 1/s² of the potential over s Z(s), or over Z(s).
        """

        def transform(s: Any) -> Any:
            return 1 / (s**2 * self.impedance(s) * (1 if current else s))

        return float(mp.invertlaplace(transform, time, method="talbot")) if time > 0 else 0.0


SMALL = 0.02
"""Of this voltage a half, cubed, is what is not linear: 1e-5 of the response."""
TIGHT = pnp.StepControl(relative=1e-7, absolute=1e-7)
"""Changes of the concentrations are as small as the voltage, and a part in 1e5 of them counts."""


@pytest.mark.parametrize("stern", [None, 0.1])
def test_response_to_a_ramp_and_to_a_triangle(stern):
    """Superposed ramps: the response to one bends where another begins."""
    case, times = Linear(stern=stern), tensor(0.05, 0.1, 0.15, 0.2, 0.25)
    ramp = pnp.ramp(0.0, SMALL, duration=0.1)
    triangle = pnp.triangle(0.0, SMALL, rate=SMALL / 0.1)
    batch = pnp.Waveform(
        lambda time, within: torch.stack([w(time[i], within[i]) for i, w in enumerate((ramp, triangle))]),
        low=torch.zeros(2),
        high=torch.full((2,), SMALL),
        breaks=torch.stack([torch.nn.functional.pad(ramp.breaks, (0, 1), value=0.1), triangle.breaks]),
    )
    cell = case.cell(batch)
    solution = pnp.solve_transient(cell, pnp.Grid.uniform(cell, 81), times=times, step_control=TIGHT)
    found = solution.richardson(lambda some: pnp.surface_charge(some).left).value / SMALL
    # The current jumps at the kinks, and counts between them.
    currents = solution.richardson(lambda some: pnp.current_density(some)[..., 0]).value[:, ::2] / SMALL
    kinks = {0: ((0.0, 1), (0.1, -1)), 1: ((0.0, 1), (0.1, -2), (0.2, 1))}
    for row, bends in kinks.items():
        for given, moments, current, bound in (
            (found, times, False, 3e-4),
            (currents, times[::2], True, 1e-3),
        ):
            wanted = np.array(
                [sum(sign * 10 * case.on_ramp(float(t) - t0, current) for t0, sign in bends) for t in moments]
            )
            assert np.abs(given[row].numpy() - wanted).max() < bound * np.abs(wanted).max()
    # They differ after the vertex, and had been one before.
    assert torch.allclose(found[0, :2], found[1, :2], rtol=1e-6)
    assert float((found[0, 3] / found[1, 3]).abs()) > 2


@pytest.mark.parametrize("frequency", [0.3, 3.0])
def test_response_to_a_sine_is_the_impedance(frequency):
    """Amplitude and phase of the current in the second period; the first charges, in a time of 0.01."""
    case = Linear(stern=0.1)
    cell = case.cell(pnp.sine(SMALL, frequency, phase=0.4))
    grid = pnp.Grid.uniform(cell, 61)
    turns = torch.arange(8, dtype=torch.float64) / 8
    solution = pnp.solve_transient(cell, grid, times=(1 + turns) / frequency, step_control=TIGHT)
    # Orthogonal over the period: the phasor of SMALL sin(2 pi f t + phase) is SMALL.
    rotation = torch.exp(-1j * (2 * math.pi * turns + 0.4))
    phasor = 2j * (pnp.current_density(solution)[:, 0] * rotation).mean() / SMALL
    impedance = pnp.impedance(pnp.solve_steady(cell, grid), [frequency])[0]
    assert abs(complex(phasor * impedance) - 1) < 2e-3
    exact = complex(case.impedance(2j * math.pi * frequency))
    assert abs(complex(phasor) * exact - 1) < 4e-3
    # What is compared is neither a mere resistance nor a mere capacitance.
    assert 0.1 < math.atan2(-exact.imag, exact.real) < 1.55


@pytest.mark.parametrize("stern", [None, 0.1])
def test_current_at_the_start_of_a_ramp_is_displacement(stern):
    """No ion has moved: the geometric capacitance, in series with the Stern layers, times the rate."""
    rates = tensor(3.0, -0.2)
    cell = Linear(stern=stern).cell(pnp.ramp(0.0, 2 * rates, duration=2.0))
    cell = replace(cell, permittivity_profile=lambda x: 1 + x)
    grid = pnp.Grid.uniform(cell, 401)
    current = pnp.current_density(pnp.solve_transient(cell, grid, times=[0.0, 1e-6]))
    elastance = math.log(2) / 0.02 + (2 / stern if stern else 0)
    assert torch.allclose(current[:, 0], (rates / elastance)[:, None].expand(-1, 400), rtol=1e-6)
    # At the right end the same ramp drives it backwards.
    mirrored = replace(cell, left=cell.right, right=cell.left)
    back = pnp.current_density(pnp.solve_transient(mirrored, grid, times=[0.0, 1e-6]))
    assert torch.allclose(back[:, 0], -current[:, 0], rtol=1e-12)


# ---- jumps


def blocking(**changes: Any) -> pnp.Cell:
    arguments = {
        "length": 1.0,
        "concentrations": [1.0, 0.5],
        "left": pnp.Electrode(potential=1.5),
        "right": pnp.Electrode(potential=-0.5, stern_capacitance=0.3),
    }
    return pnp.Cell(electrolyte(0.05, (1.0, -2.0), (1.0, 0.4)), **(arguments | changes))


LOOSE = pnp.StepControl(relative=1e-3, absolute=1e-5)


@pytest.mark.parametrize("end", ["electrode", "stern", "bath", "current"])
def test_step_is_a_restart(end, monkeypatch):
    """Stopped at the jump and begun again with the other potential; the output there is the state just after it.

    All in torch and by TR-BDF2, as waveforms are.
    """
    monkeypatch.setattr(integration, "suits", lambda system: False)

    def boundary(level: Any) -> Any:
        if end == "bath":
            return pnp.Reservoir(concentrations=[1.0, 0.5], potential=level)
        if end == "current":
            return pnp.Electrode(current=level, stern_capacitance=0.3)
        return pnp.Electrode(potential=level, stern_capacitance=0.3 if end == "stern" else None)

    jump, later = 0.13, tensor(0.02, 0.3)
    whole = blocking(left=boundary(pnp.step(0.6, -1.2, at=jump)))
    grid = pnp.Grid.uniform(whole, 31)
    through = pnp.solve_transient(whole, grid, times=[0.05, jump, *(jump + later)], step_control=LOOSE)
    before, after = blocking(left=boundary(0.6)), blocking(left=boundary(-1.2))
    with compiled.torch_only():
        until = pnp.solve_transient(before, grid, times=[0.05, jump], step_control=LOOSE)
        again = pnp.solve_transient(after, grid, times=[0.0, *later], initial=until.at(1), step_control=LOOSE)
    assert torch.allclose(through.concentrations[:2], until.concentrations, rtol=1e-12)
    assert torch.allclose(through.concentrations[1:], again.concentrations, rtol=1e-9)
    assert torch.allclose(through.potential[1:], again.potential, rtol=0, atol=1e-9)
    assert torch.allclose(through.potential[0], until.potential[0], rtol=0, atol=1e-12)
    moved = (through.potential[1] - until.potential[1]).abs().max()
    assert float(moved) > 1.0 if end != "current" else float(moved) < 1e-9
    # Its current is that of the state after the jump, too.
    assert torch.allclose(pnp.current_density(through)[1:], pnp.current_density(again), rtol=1e-8)


def test_elements_jump_each_at_its_own_time():
    jumps, levels = tensor(0.02, 0.1, 0.6), tensor(-1.0, 0.5, 2.0)
    cell = blocking(left=pnp.Electrode(potential=pnp.step(0.8, levels, at=jumps)))
    grid = pnp.Grid.uniform(cell, 21)
    times = [0.1, 0.4]
    together = pnp.solve_transient(cell, grid, times=times, step_control=LOOSE)
    for index in range(3):
        wave = pnp.step(0.8, float(levels[index]), at=float(jumps[index]))
        one = blocking(left=pnp.Electrode(potential=wave))
        alone = pnp.solve_transient(one, grid, times=times, step_control=LOOSE)
        assert torch.allclose(together.concentrations[index], alone.concentrations, rtol=1e-9)
        assert torch.allclose(together.potential[index], alone.potential, rtol=0, atol=1e-9)
    assert torch.allclose(together.potential[:, :, 0], tensor(-1.0, 0.5, 0.8)[:, None].expand(-1, 2))


def test_breaks_are_met_whether_or_not_they_are_asked_for():
    wave = pnp.piecewise_linear([0.1, 0.1001, 0.3], [0.2, 2.0, -1.0])
    cell = blocking(left=pnp.Electrode(potential=wave))
    grid = pnp.Grid.uniform(cell, 21)
    few = pnp.solve_transient(cell, grid, times=[0.5], step_control=LOOSE)
    many = pnp.solve_transient(cell, grid, times=[0.05, 0.1, 0.10005, 0.3, 0.4, 0.5], step_control=LOOSE)
    assert torch.allclose(few.concentrations[-1], many.concentrations[-1], rtol=1e-4)
    assert torch.allclose(many.potential[:, 0], tensor(0.2, 0.2, 1.1, -1.0, -1.0, -1.0), rtol=0, atol=1e-9)


def test_short_pulse_is_not_stepped_over():
    """A cell that has long been at rest takes a pulse of current with all of its charge."""
    pulse = pnp.piecewise_linear([2.0, 2.0005, 2.001], [0.0, 200.0, 0.0])
    cell = blocking(left=pnp.Electrode(current=pulse), right=pnp.Electrode(potential=0.0))
    grid = pnp.Grid.uniform(cell, 21)
    solution = pnp.solve_transient(cell, grid, times=[3.0], step_control=LOOSE)
    assert float(pnp.surface_charge(solution).left[0]) == pytest.approx(0.1, rel=1e-3)
    # Unlike one that says nothing of its kinks.
    blind = pnp.Waveform(lambda time, within: pulse(time, time), low=0.0, high=200.0)
    missed = replace(cell, left=pnp.Electrode(current=blind))
    solution = pnp.solve_transient(missed, grid, times=[3.0], step_control=LOOSE)
    assert abs(float(pnp.surface_charge(solution).left[0])) < 1e-3


def test_constant_wave_is_a_constant(monkeypatch):
    monkeypatch.setattr(integration, "suits", lambda system: False)
    wave = pnp.Waveform(lambda time, within: 0 * time + 1.5, low=1.5, high=1.5)
    grid = pnp.Grid.uniform(blocking(), 21)
    with compiled.torch_only():
        one, two = (
            pnp.solve_transient(cell, grid, times=[0.01, 0.3], step_control=LOOSE)
            for cell in (blocking(), blocking(left=pnp.Electrode(potential=wave)))
        )
    assert torch.allclose(one.concentrations, two.concentrations, rtol=1e-13)
    steady = pnp.solve_steady(blocking(left=pnp.Electrode(potential=pnp.step(1.5, 9.0, at=0.1))), grid)
    assert torch.allclose(steady.potential, pnp.solve_steady(blocking(), grid).potential, atol=1e-13)


def test_default_grid_resolves_the_extremes_of_a_wave():
    wave = pnp.triangle(0.0, 8.0, rate=1.0)
    spacings = [
        pnp.Grid.refined(blocking(left=pnp.Electrode(potential=level)), 101).spacings
        for level in (wave, 8.0, 0.0)
    ]
    assert torch.equal(spacings[0], spacings[1])
    assert float(spacings[0][0]) < 0.3 * float(spacings[2][0])


# ---- voltammetry


@pytest.fixture(scope="module")
def voltammogram() -> pnp.Solution:
    """Four cycles between 0 and 4 thermal voltages, 8 outputs a leg at the points of Gauss's quadrature."""
    points = (np.polynomial.legendre.leggauss(8)[0] + 1) / 2
    leg = 0.25
    times = np.concatenate([[leg * k, *(leg * (k + points))] for k in range(8)] + [[8 * leg]])
    wave = pnp.triangle(0.0, 4.0, rate=4.0 / leg, cycles=4)
    cell = blocking(left=pnp.Electrode(potential=wave), right=pnp.Electrode(potential=0.0))
    return pnp.solve_transient(cell, pnp.Grid.uniform(cell, 31), times=times, step_control=LOOSE)


def per_leg(row: torch.Tensor) -> torch.Tensor:
    """Of outputs, those within the legs, `(leg, point)`."""
    return row[:-1].reshape(8, 9)[:, 1:]


def test_charge_of_the_metal_is_the_integral_of_the_current(voltammogram):
    weights = torch.from_numpy(np.polynomial.legendre.leggauss(8)[1]) / 2 * 0.25
    passed = per_leg(pnp.current_density(voltammogram)[:, 0]) @ weights
    charge = pnp.surface_charge(voltammogram).left[::9].diff()
    # The first leg begins with the singular charging of an empty layer.
    assert torch.allclose(passed[1:], charge[1:], rtol=0, atol=2e-3 * float(charge.abs().max()))
    assert bool((charge[::2] > 0).all() & (charge[1::2] < 0).all())


def test_voltammogram_becomes_periodic(voltammogram):
    current = per_leg(pnp.current_density(voltammogram)[:, 0]).reshape(4, 16)
    drift = (current[1:] - current[:-1]).abs().amax(-1) / current.abs().max()
    assert float(drift[0]) > 1e-3
    assert float(drift[2]) < 0.2 * float(drift[0])
    # The current changes its sign with the direction of the scan, and encloses an area.
    weights = torch.from_numpy(np.polynomial.legendre.leggauss(8)[1]) / 2 * 4.0
    area = (current[-1, :8] * weights).sum() - (current[-1, 8:] * weights).sum()
    assert float(area) > 0
    # Over a cycle that ends where it began, work is lost.
    volts = per_leg(voltammogram.potential[:, 0]).reshape(4, 16)
    work = (volts[-1] * current[-1] * torch.cat([weights, weights])).sum()
    assert float(work) > 0.05 * float(area)


def test_slow_scan_follows_the_differential_capacitance():
    """In a scan slow against charging, I = dU/dt times the derivative of the steady charge."""
    potential, rate = tensor(1.0, 3.0).requires_grad_(), 0.1
    steady = blocking(left=pnp.Electrode(potential=potential), right=pnp.Electrode(potential=0.0))
    grid = pnp.Grid.uniform(steady, 41)
    charge = pnp.surface_charge(pnp.solve_steady(steady, grid)).left
    (capacitance,) = torch.autograd.grad(charge.sum(), potential)
    wave = pnp.triangle(0.0, 4.0, rate=rate)
    cell = blocking(left=pnp.Electrode(potential=wave), right=pnp.Electrode(potential=0.0))
    up, down = tensor(1.0, 3.0) / rate, (8.0 - tensor(3.0, 1.0)) / rate
    control = pnp.StepControl(relative=1e-5, absolute=1e-7)
    solution = pnp.solve_transient(cell, grid, times=torch.cat([up, down]), step_control=control)
    current = pnp.current_density(solution)[:, 0] / rate
    assert torch.allclose(current[:2], capacitance, rtol=2e-3)
    assert torch.allclose(current[2:].flip(0), -capacitance, rtol=2e-3)
    assert abs(float(capacitance[0] / capacitance[1]) - 1) > 0.02


def test_gradient_by_the_amplitude_is_the_response_itself():
    """Where the response is linear, the derivative of a charge by the amplitude is charge over amplitude."""
    amplitude = tensor(1e-3).squeeze().requires_grad_()
    cell = Linear().cell(pnp.sine(amplitude, 2.0, phase=0.3))
    solution = pnp.solve_transient(cell, pnp.Grid.uniform(cell, 21), times=[0.3], step_control=LOOSE)
    charge, current = pnp.surface_charge(solution).left[0], pnp.current_density(solution)[0, 0]
    for quantity in (charge, current):
        (slope,) = torch.autograd.grad(quantity, amplitude, retain_graph=True)
        assert float(slope) == pytest.approx(quantity.item() / 1e-3, rel=1e-5)
