"""The figures that docs/design_decisions.md gives as reasons: python -m benchmarks.choices [NAME ...].

Counts and errors, no times: what was chosen is measured beside what was not, as far as it is still in the repository.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import pnp
from pnp.compiled import torch_only
from pnp.compiled.many import few_ions
from pnp.solvers import integration, many_species, rosenbrock
from tests import sweep

from . import cells, grounded
from .measure import table

RODAS3 = (
    0.5,
    ((), (0.0,), (2.0, 0.0), (2.0, 0.0, 1.0)),
    ((), (4.0,), (1.0, -1.0), (1.0, -1.0, -8 / 3)),
)
RODAS4_LAST = (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.687886036105895)
RODAS4 = (
    0.25,
    (
        (),
        (1.544,),
        (0.9466785280815826, 0.2557011698983284),
        (3.314825187068521, 2.896124015972201, 0.9986419139977817),
        RODAS4_LAST,
        (*RODAS4_LAST, 1.0),
    ),
    (
        (),
        (-5.6688,),
        (-2.430093356833875, -0.2063599157091915),
        (-0.1073529058151375, -9.594562251023355, -20.47028614809616),
        (7.496443313967647, -10.24680431464352, -33.99990352819905, 11.7089089320616),
        (8.083246795921522, -7.981132988064893, -31.52159432874371, 16.31930543123136, -6.058818238834054),
    ),
)
RODAS4P_LAST = (-7.170454962423024, -4.741636671481785, -16.31002631330971, -1.062004044111401)
RODAS4P = (
    0.25,
    (
        (),
        (3.0,),
        (1.831036793486759, 0.4955183967433795),
        (2.304376582692669, -0.05249275245743001, -1.176798761832782),
        RODAS4P_LAST,
        (*RODAS4P_LAST, 1.0),
    ),
    (
        (),
        (-12.0,),
        (-8.791795173947035, -2.207865586973518),
        (10.81793056857153, 6.780270611428266, 19.5348594464241),
        (34.19095006749676, 15.49671153725963, 54.7476087596413, 14.16005392148534),
        (34.62605830930532, 15.30084976114473, 56.99955578662667, 18.40807009793095, -5.714285714285717),
    ),
)
"""Share of the step, and what is reached and remembered in a stage, as in pnp/solvers/rosenbrock.py.

References:
    Hairer & Wanner, Solving Ordinary Differential Equations II, section IV.7 (1996): RODAS4;
    Steinebach, Preprint 1741, TH Darmstadt (1995): RODAS4P (RODASP);
    Sandu et al., Atmospheric Environment 31, 3459 (1997): RODAS3.
"""


@contextmanager
def tableau(share: float, reached: Sequence, remembered: Sequence, order: float) -> Iterator[None]:
    """Rosenbrock steps with other coefficients for a while; `order` is that of the embedded method."""
    others = patch.multiple(rosenbrock, SHARE=share, REACHED=reached, REMEMBERED=remembered)
    with others, patch.object(integration, "ORDER", order):
        yield


def charged(cell: pnp.Cell, tolerance: float) -> tuple[Tensor, pnp.solution.Statistics]:
    """Q at the twenty moments of the benchmark, in torch, and what it took."""
    control = pnp.StepControl(relative=tolerance, absolute=tolerance / 100)
    with torch_only():
        found = pnp.solve_transient(cell, times=torch.as_tensor(cells.MOMENTS), step_control=control)
    return pnp.diffuse_charge(found) / 2, found.stats


def steps() -> str:
    """Steps and the error of time of several methods, on the twelve cells of benchmarks/transient.py."""
    cell = cells.cell_of(**cells.as_parameters(*cells.sample(12)))
    exact, _ = charged(cell, 1e-8)
    now = rosenbrock.SHARE, rosenbrock.REACHED, rosenbrock.REMEMBERED, rosenbrock.ORDER
    methods: dict[str, Any] = {
        "RODASP2": tableau(*now),
        "RODAS4P": tableau(*RODAS4P, 3.0),
        "RODAS4": tableau(*RODAS4, 3.0),
        "RODAS3": tableau(*RODAS3, 2.0),
        "TR-BDF2": patch.object(integration, "suits", lambda system: False),
    }
    rows = []
    for name, method in methods.items():
        with method:
            for tolerance in (1e-2, 1e-3):
                found, stats = charged(cell, tolerance)
                error = (found / exact - 1).abs().amax(-1)
                count = stats.steps.double()
                rows.append(
                    [
                        name,
                        f"{tolerance:.0e}",
                        f"{count.mean():.1f}",
                        f"{stats.rejected.double().mean():.1f}",
                        f"{(stats.iterations / count).mean():.1f}",
                        f"{error.median():.0e}",
                    ]
                )
    return table(["method", "tolerance", "steps", "refused", "solves a step", "error of time, median"], rows)


def refusals() -> str:
    """How many of all steps left a negative concentration, from 1 to 80 thermal volts."""
    voltages, debye = (
        axis.flatten() for axis in np.meshgrid(np.geomspace(1, 80, 12), np.geomspace(0.005, 0.1, 4))
    )
    cell = cells.cell_of(**cells.as_parameters(voltages, debye))
    take, seen = rosenbrock.RosenbrockStep.take, [0, 0]

    def counting(step: rosenbrock.RosenbrockStep) -> Any:
        result = take(step)
        seen[0] += result.converged.numel()
        seen[1] += int((~result.converged).sum())
        return result

    with patch.object(rosenbrock.RosenbrockStep, "take", counting):
        _, stats = charged(cell, 1e-4)
    return f"{seen[1]} of {seen[0]} steps of {len(voltages)} cells; by {stats.method}\n"


def products() -> str:
    """Products of GMRES in the time steps of many species."""
    gmres, seen = many_species.gmres, list[int]()

    def counting(apply: Callable, *rest: Any) -> Tensor:
        calls = itertools.count()
        found = gmres(lambda x: (next(calls), apply(x))[1], *rest)
        seen.append(next(calls))
        return found

    rows = []
    for count in (8, 32, 128, 512):
        cell = cells.many_species(count)
        seen.clear()
        with patch.object(many_species, "gmres", counting):
            pnp.solve_transient(cell, pnp.Grid.refined(cell, 101), times=[0.1, 1.0])
        rows.append([str(count), f"{np.mean(seen):.1f}", str(max(seen))])
    return table(["species", "products, mean", "most"], rows)


def few() -> str:
    """Equilibria of 512 species and of the sixteen ions with the same moments, potentials compared."""
    many, rows = cells.many_species(512), []
    amounts = many.concentrations.expand(1, 512).numpy()
    valences, kept = few_ions(many.electrolyte.valences.expand(1, 512).numpy(), amounts)
    ions = [pnp.Species(f"s{i}", valence=float(z), diffusivity=1.0) for i, z in enumerate(valences[0])]
    stand_in = pnp.Electrolyte.dimensionless(ions, permittivity=many.electrolyte.permittivity)
    for voltage in (1.0, 3.0, 10.0, 100.0):
        many = cells.many_species(512, voltage=voltage)
        grid = pnp.Grid.refined(many, cells.NODES)
        others = replace(many, electrolyte=stand_in, concentrations=torch.as_tensor(kept[0]))
        potentials = [pnp.solve_steady(one, grid).potential for one in (many, others)]
        rows.append([f"{voltage:g}", f"{(potentials[0] - potentials[1]).abs().max() / voltage:.0e}"])
    return table(["voltage", "largest difference"], rows)


def iterations() -> str:
    """Newton iterations of a thousand equilibria, compiled (in the potential alone) and coupled."""
    cell = cells.cell_of(*(torch.as_tensor(one) for one in cells.sample(1000)))
    scalar = pnp.solve_steady(cell).stats
    with torch_only():
        coupled = pnp.solve_steady(cell).stats
    rows = [
        [stats.solver, f"{stats.iterations.double().mean():.1f}", str(int(stats.iterations.max()))]
        for stats in (scalar, coupled)
    ]
    return table(["solver", "iterations, mean", "most"], rows)


def turned() -> str:
    """Impedance of cells and of their mirror images, 20 of each kind of tests/sweep.py with two electrodes or baths."""
    frequencies, rows = torch.logspace(-3, 3, 7, dtype=torch.float64), []
    for ends, medium in sweep.kinds():
        if ends in ("electrodes and ground", "periodic", "charged walls", "charged wall and electrode"):
            continue
        steady = pnp.solve_steady(sweep.random_cells(ends, medium, 20), throw=False)
        cell = sweep.random_cells(ends, medium, 20, only=steady.solved.nonzero().flatten().tolist())
        here, there = (
            pnp.impedance(pnp.solve_steady(one), frequencies) for one in (cell, sweep.mirrored(cell))
        )
        difference = (here / there - 1).abs().amax(-1)
        kind = f"{ends}, {medium}"
        rows.append([kind, str(len(difference)), f"{difference.median():.0e}", f"{difference.max():.0e}"])
    return table(["kind", "cells", "difference, median", "largest"], rows)


def gates() -> str:
    """R² of private latents from the invariant parts, with gates that close and with gates that never quite do."""
    rows = []
    for name, opening in (("closed is closed", grounded.opening), ("never quite", lambda gates: gates)):
        with patch("fusion.grounded.settled.opening", opening):
            scores = [grounded.untrained(seed, grounded.TWO)["invariant, private"] for seed in range(4)]
        rows.append([name, f"{np.mean(scores):.2f}"])
    return table(["gates", "R²"], rows)


def main() -> None:
    """See the module."""
    sections = {one.__name__: one for one in (steps, refusals, products, few, iterations, turned, gates)}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(sections)}; default: all")
    chosen = parser.parse_args().names or list(sections)
    torch.set_num_threads(1)
    for name in chosen:
        print(f"{sections[name].__doc__}\n\n{sections[name]()}")


if __name__ == "__main__":
    main()
