"""Differentiable, batched, structure-preserving Poisson-Nernst-Planck cells on torch tensors.

    cell -> grid -> solve -> observe -> plot

Describe an electrolyte and a :class:`Cell`, solve it with :func:`solve_steady`, :func:`solve_transient` or
:func:`solve_equilibrium`, read observables off the :class:`Solution` (:func:`impedance` about a steady state), and
draw it with `pnp.plotting`. `python -m pnp` does all of it for a cell described in a TOML file.
"""

from . import palette, sweep
from .boundaries import ChargedWall, Electrode, Periodic, Reservoir
from .cell import Cell
from .certificate import Certificate
from .dataset import to_dataset
from .electrolyte import Electrolyte, Species
from .errors import SolveError, Status, UnderResolvedWarning
from .grid import Grid
from .impedance import impedance
from .observables import (
    amounts,
    charge_density,
    current_density,
    debye_length,
    diffuse_charge,
    electric_field,
    electrode_potential,
    free_energy,
    ion_flux,
    reaction_rate,
    surface_charge,
    total_charge,
)
from .reactions import ElectrodeReaction, Reaction
from .reference import reference_values
from .solution import Solution
from .solvers.equilibrium import solve_equilibrium
from .solvers.newton import Newton
from .solvers.steady import solve_steady
from .solvers.step_size import StepControl
from .solvers.transient import solve_transient
from .waveforms import Waveform, piecewise_linear, ramp, sine, step, triangle

__all__ = [
    "Cell",
    "Certificate",
    "ChargedWall",
    "Electrode",
    "ElectrodeReaction",
    "Electrolyte",
    "Grid",
    "Newton",
    "Periodic",
    "Reaction",
    "Reservoir",
    "Solution",
    "SolveError",
    "Species",
    "Status",
    "StepControl",
    "UnderResolvedWarning",
    "Waveform",
    "amounts",
    "charge_density",
    "current_density",
    "debye_length",
    "diffuse_charge",
    "electric_field",
    "electrode_potential",
    "free_energy",
    "impedance",
    "ion_flux",
    "palette",
    "piecewise_linear",
    "ramp",
    "reaction_rate",
    "reference_values",
    "sine",
    "solve_equilibrium",
    "solve_steady",
    "solve_transient",
    "step",
    "surface_charge",
    "sweep",
    "to_dataset",
    "total_charge",
    "triangle",
]
