"""Cells described in TOML files, for people who do not want to write Python.

    electrolyte, cell, two ends, and what to run

Keys are the arguments of `pnp.Cell` and its parts, quantities carry their units, and every mistake is an error
that names the line. `docs/examples` holds files to start from.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cell import Cell, Profile
from ..electrolyte import Electrolyte, Species
from ..grid import Grid
from ..reactions import Reaction
from ..solvers.step_size import StepControl
from . import units
from .described_ends import read_ends, read_stoichiometry
from .sweep import Axis, check_axes, read_axes
from .toml_lines import read_toml
from .toml_tables import Reading, Table, pointing
from .units import Kind


@dataclass(frozen=True)
class Steady:
    """Solve for the steady state."""


@dataclass(frozen=True, eq=False)
class Transient:
    """Solve in time.

    Attributes:
        times: When to look [s], `(time,)`.
        logarithmic: Whether they are spread over decades.
        step_control: Tolerances of the steps.
    """

    times: Tensor
    logarithmic: bool
    step_control: StepControl


@dataclass(frozen=True, eq=False)
class Impedance:
    """Solve for the steady state and its response to small signals of `frequencies` [Hz], `(frequency,)`."""

    frequencies: Tensor


@dataclass(frozen=True, eq=False)
class Description:
    """A cell, and what to do with it.

    Attributes:
        title: For people; default: the name of the file.
        path, text: The file.
        cell, grid: What to solve.
        run: What to solve for.
        axes: What the batch axes of the cell are, in order.
        parts: Tables that may be to blame for what a solver refuses.
    """

    title: str
    path: Path
    text: str
    cell: Cell
    grid: Grid
    run: Steady | Transient | Impedance
    axes: list[Axis]
    parts: list[Table]


def read_description(path: Path | str) -> Description:
    """Read a cell from a TOML file.

    Raises:
        OSError: The file cannot be read.
        DescriptionError: It is no TOML, or says something that cannot be meant; names the line.
        ImportError: It holds units, and pint is not installed.
    """
    file = read_toml(Path(path))
    reading = Reading(file, file.content.get("dimensionless") is True, read_axes(file))
    root = Table(reading, (), file.content)
    root.flag("dimensionless")
    root.get("sweep", None)
    title = root.text("title", file.path.stem)
    species = root.tables("species")
    electrolyte, filling = _electrolyte(root, species)
    cell, grid = _cell(root, species, electrolyte, filling)
    parts = [root.table(key) for key in ("run", "cell", "left", "right")]
    run = _run(parts[0])
    root.finish()
    check_axes(file, reading.axes, reading.quantities)
    return Description(title, file.path, file.text, cell, grid, run, reading.axes, parts)


def _electrolyte(root: Table, tables: list[Table]) -> tuple[Electrolyte, dict[str, Any]]:
    """The electrolyte, and the filling [mol m⁻³] by species."""
    if not tables:
        raise root.missing("species", "at least one table [[species]]")
    species, filling = [], {}
    for table in tables:
        one, concentration = _species(table)
        if one.name in filling:
            raise table.error("name", f'there are two species of the name "{one.name}".')
        species.append(one)
        filling[one.name] = concentration
    make, arguments = _solvent(root)
    reactions = []
    for table in root.tables("reaction"):
        reactions.append(_reaction(table, list(filling)))
        with pointing(table):
            make(species, reactions=reactions[-1:], **arguments)
    with pointing(root):
        return make(species, reactions=reactions, **arguments), filling


def _solvent(root: Table) -> tuple[Callable[..., Electrolyte], dict[str, Any]]:
    """What makes the electrolyte out of species, and the arguments that belong to the solvent."""
    diameter = root.quantity("solvent_diameter", units.LENGTH, None)
    if root.reading.dimensionless:
        return Electrolyte.dimensionless, {
            "solvent_diameter": diameter,
            "permittivity": root.quantity("permittivity"),
        }
    return Electrolyte, {
        "solvent_diameter": diameter,
        "relative_permittivity": root.quantity("relative_permittivity", default=78.5),
        "temperature": root.quantity("temperature", units.TEMPERATURE, 298.15),
    }


def _species(table: Table) -> tuple[Species, Any]:
    """A species, and its concentration in the filling."""
    name = table.text("name")
    table.name = f"species.{name}"  # which sweeps call it by
    numbers = {
        "valence": table.quantity("valence"),
        "diffusivity": table.quantity("diffusivity", units.DIFFUSIVITY),
        "diameter": table.quantity("diameter", units.LENGTH, 0.0),
    }
    concentration = table.quantity("concentration", units.CONCENTRATION)
    table.finish()
    with pointing(table):
        return Species(name, **numbers), concentration


def _reaction(table: Table, species: list[str]) -> Reaction:
    reactants = read_stoichiometry(table, "reactants", species)
    products = read_stoichiometry(table, "products", species)
    forward = table.quantity("forward", units.rate_constant(sum(reactants.values())))
    backward = table.quantity("backward", units.rate_constant(sum(products.values())))
    table.finish()
    with pointing(table):
        return Reaction(reactants, products, forward=forward, backward=backward)


def _cell(
    root: Table, species: list[Table], electrolyte: Electrolyte, filling: dict[str, Any]
) -> tuple[Cell, Grid]:
    table, left, right = root.table("cell"), root.table("left"), root.table("right")
    arguments = {
        "length": table.quantity("length", units.LENGTH),
        "ground": table.quantity("ground", units.LENGTH, None),
        "fixed_charge": table.quantity("fixed_charge", units.CONCENTRATION, None),
        "charged": table.flag("charged"),
    }
    nodes = table.integer("nodes", 200, at_least=3)
    spacing = table.choice("grid", ("refined", "uniform"), "refined")
    table.finish()
    ends = read_ends(left, right, electrolyte, filling)
    layers = [_layer(one) for one in root.tables("layer")]
    if arguments["fixed_charge"] is None:
        arguments["fixed_charge"] = 0.0
    elif layers:
        raise table.error("fixed_charge", "the fixed charge is given either for the cell or for its layers.")
    if layers:
        arguments |= _profiles(layers)
    baths = [end.table("concentrations") for end in (left, right) if "concentrations" in end.content]
    with pointing(table, left, right, *baths, *species):
        cell = Cell(electrolyte, concentrations=filling, left=ends[0], right=ends[1], **arguments)
        return cell, (Grid.uniform if spacing == "uniform" else Grid.refined)(cell, nodes)


@dataclass(frozen=True)
class _Layer:
    """Part of the cell of another material: a membrane, for instance."""

    start: float
    end: float
    fixed_charge: float
    permittivity: float
    diffusivity: float

    def share(self, positions: Tensor) -> Tensor:
        """One inside, zero outside, one half on the border."""
        blur = 1e-6 * (self.end - self.start)  # so that rounding does not decide about a node on the border
        beyond = ((positions - self.start) / blur).clamp(-1, 1) + 1
        return beyond * (((self.end - positions) / blur).clamp(-1, 1) + 1) / 4


def _layer(table: Table) -> _Layer:
    layer = _Layer(
        start=table.constant("from", units.LENGTH),
        end=table.constant("to", units.LENGTH),
        fixed_charge=table.constant("fixed_charge", units.CONCENTRATION, 0.0),
        permittivity=table.constant("permittivity_factor", default=1.0),
        diffusivity=table.constant("diffusivity_factor", default=1.0),
    )
    table.finish()
    if layer.end <= layer.start:
        raise table.error("to", f"{table.full_name('to')} must lie beyond {table.full_name('from')}.")
    for key, factor in (("permittivity", layer.permittivity), ("diffusivity", layer.diffusivity)):
        if not 0 < factor < math.inf:
            raise table.error(
                f"{key}_factor", f"{table.full_name(f'{key}_factor')} must be above 0, got {factor:g}."
            )
    return layer


def _profiles(layers: list[_Layer]) -> dict[str, Profile]:
    """Arguments of the cell that depend on position; where layers overlap, charges add and factors multiply."""

    def fixed_charge(nodes: Tensor) -> Tensor:
        return sum((layer.fixed_charge * layer.share(nodes) for layer in layers), torch.zeros_like(nodes))

    def factor(name: str) -> Profile:
        def profile(middles: Tensor) -> Tensor:
            factors = [1 + (getattr(layer, name) - 1) * layer.share(middles) for layer in layers]
            return torch.stack(factors).prod(0)

        return profile

    profiles: dict[str, Profile] = {"fixed_charge": fixed_charge}
    for name in ("permittivity", "diffusivity"):
        if any(getattr(layer, name) != 1.0 for layer in layers):
            profiles[f"{name}_profile"] = factor(name)
    return profiles


def _run(table: Table) -> Steady | Transient | Impedance:
    kind = table.choice("kind", ("steady", "transient", "impedance"))
    run: Steady | Transient | Impedance = Steady()
    if kind == "transient":
        times, logarithmic = _points(table, "times", units.TIME)
        run = Transient(times, logarithmic, _step_control(table))
    elif kind == "impedance":
        run = Impedance(_points(table, "frequencies", units.FREQUENCY)[0])
    table.finish()
    return run


def _step_control(table: Table) -> StepControl:
    default = StepControl()
    tolerances = {}
    for name in ("relative", "absolute"):
        key = f"{name}_tolerance"
        tolerances[name] = table.constant(key, default=getattr(default, name))
        if not 0 < tolerances[name] < 1:
            raise table.error(key, f"run.{key} must be between 0 and 1, got {tolerances[name]:g}.")
    return StepControl(**tolerances, max_steps=table.integer("max_steps", default.max_steps))


def _points(table: Table, key: str, kind: Kind) -> tuple[Tensor, bool]:
    """Increasing numbers, from a list or from a table `from, to, count, spacing`; and whether over decades."""
    if isinstance(table.get(key), dict):
        return _spread(table.table(key), kind)
    points = table.quantities(key, kind)
    wrong = torch.nonzero((points.diff() <= 0) | ~torch.isfinite(points[1:]))
    if wrong.numel() or not 0 <= float(points[0]) < math.inf:
        index = int(wrong[0]) + 1 if wrong.numel() else 0
        raise table.error(key, f"{table.full_name(key)} must increase from zero on.", index)
    positive = points[points > 0]
    return points, bool(positive.numel()) and bool(positive[-1] > 1000 * positive[0])


def _spread(table: Table, kind: Kind) -> tuple[Tensor, bool]:
    start, end = table.constant("from", kind), table.constant("to", kind)
    count = table.integer("count", at_least=2)
    spacing = table.choice("spacing", ("logarithmic", "linear"), "logarithmic")
    table.finish()
    if not start < end < math.inf:
        raise table.error("to", f"{table.full_name('to')} must be above {table.full_name('from')}.")
    if spacing == "linear" and start >= 0:
        return torch.linspace(start, end, count, dtype=torch.float64), False
    if start <= 0:
        raise table.error("from", f'{table.full_name("from")} must be above zero, unless spacing = "linear".')
    points = torch.logspace(math.log10(start), math.log10(end), count, dtype=torch.float64)
    points[0], points[-1] = start, end
    return points, True
