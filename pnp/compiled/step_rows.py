"""Where things are in the work of transients and of their derivatives; see :mod:`pnp.compiled.lanes` about rows."""

import numpy as np

from ..solvers.rosenbrock import REACHED, REMEMBERED
from .lanes import inlined, kernel

STAGES = len(REACHED)
A = np.array([[*row, *[0.0] * (STAGES - len(row))] for row in REACHED])
C = np.array([[*row, *[0.0] * (STAGES - len(row))] for row in REMEMBERED])
"""Coefficients of the method."""

STIFFNESS, VOLUME, FIXED, POTENTIAL, START, CONCENTRATIONS = range(6)
"""Rows of a node: permittivity over the spacing to its right, control volume, fixed charge in it, potential, the same
at the start of the step; from there on, for every species: concentration, at the start of the step, mobility over the
spacing to the right, what is remembered of earlier stages, and what the balance has of the concentration and of the
potential to the left; then S + 1 rows for the increment of every stage, and the square matrices X and the inverse."""
(
    LEFT_SPRING,
    LEFT_CHARGE,
    RIGHT_SPRING,
    RIGHT_CHARGE,
    STAGE,
    NORM,
    POSITIVE,
    ACCEPTED,
    ARRIVED,
    TAKEN,
    VALENCE,
) = range(11)
"""Rows of a cell, after its nodes: the ends as :func:`pnp.compiled.inputs.pack_cells` puts them; the share of the step
that is implicit; norm of its error, and whether it left no negative concentration; how many steps were accepted before
it, or -1 if it was not, and the output that it ended at, or -1; how many steps were recorded; then valences, amounts,
largest concentrations, and the equations of one node."""

DURATION, OUTPUT, STATES = range(3)
"""Rows of a recorded step, which has a lane for every cell: the share of its length that is implicit, and the output
that it ends at or -1; then for every node the S concentrations and the potential at its start."""


def tape_width(nodes: int, species: int) -> int:
    """Rows of a recorded step."""
    return STATES + (species + 1) * nodes


@inlined
def increments_at(species: int) -> int:
    """Where the increments of a node are."""
    return CONCENTRATIONS + 6 * species


@inlined
def inverse_at(species: int) -> int:
    """Where the inverse of a node is; X comes before it."""
    return increments_at(species) + (STAGES + species + 1) * (species + 1)


@inlined
def rows_of_node(species: int) -> int:
    """How many there are."""
    return inverse_at(species) + (species + 1) ** 2


@kernel
def row_count(nodes: int, species: int) -> int:
    """How many rows the work of one group takes."""
    block = 2 * (species + 1) ** 2
    return nodes * rows_of_node(species) + VALENCE + 3 * species + block + 8 * species


OF_STIFFNESS, OF_VOLUME, OF_FIXED, OF_MOBILITIES = range(4)
"""Rows of a node beside those of the steps: derivatives by what :class:`~pnp.compiled.stepping_adjoint.Coefficients`
list; from there on S of them, and for every stage S + 1 multipliers and S + 1 derivatives q by the state that it looked
at. Those of the last stage begin as the derivatives by the end of the step, and those of the stage before, which looked
at the same state but for one increment, have them in. Of two species, the states themselves are there before."""
ENDS, OF_VALENCES = 0, 4
"""Rows of a cell, after its nodes: derivatives by spring and charge of either end, and by the valences."""


@inlined
def multipliers_at(species: int) -> int:
    """Where the multipliers of a node are."""
    return OF_MOBILITIES + species


@inlined
def pulled_at(species: int) -> int:
    """Where the derivatives q of a node are."""
    return OF_MOBILITIES + species + STAGES * (species + 1)


@inlined
def back_rows_of_node(species: int) -> int:
    """How many rows a node has beside those of the steps."""
    return OF_MOBILITIES + species + 2 * STAGES * (species + 1)


@kernel
def back_row_count(nodes: int, species: int) -> int:
    """How many rows the derivatives of one group take."""
    return nodes * back_rows_of_node(species) + OF_VALENCES + species
