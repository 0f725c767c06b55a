"""Cells of the table of reference values, `pnp/reference_values.json`, built for `pnp`.

    for group in alike(entries("steady")):
        solution = pnp.solve_steady(build(*group))
        found = measure(group[0], solution)

Several entries become one batched cell where their shapes allow it; `measure` then gives one row for each.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pnp

Entry = dict[str, Any]
BY_VOLTAGE = ("differential_capacitance", "reversal_potential")
"""Quantities for which a cell's potential must require a gradient."""


def entries(kind: str | None = None, quantity: str | None = None) -> list[Entry]:
    """All entries of one kind and quantity (of all, unless told)."""
    return [
        entry
        for entry in pnp.reference_values()["entries"]
        if kind in (None, entry["kind"]) and quantity in (None, entry["quantity"])
    ]


def alike(some: Sequence[Entry]) -> list[list[Entry]]:
    """Groups of entries of one quantity whose cells fit into one batch, at the same times or frequencies."""
    groups: dict[str, list[Entry]] = {}
    for entry in some:
        arguments = [entry.get(name) for name in ("quantity", "times", "frequencies")]
        groups.setdefault(repr([_shape(entry["cell"]), *arguments]), []).append(entry)
    return list(groups.values())


def build(*group: Entry, **changes: Any) -> pnp.Cell:
    """The cell of an entry or, of several, a batch of their cells along a first axis.

    `changes` replace numbers of the description, as in `build(entry, permittivity=1e-4)`. A potential that
    is asked for starts at the tabulated value.
    """
    wide = len(group) > 1
    rows = [_described(entry) | changes for entry in group]
    cell = _stacked(rows) if wide else _as_tensors(rows[0])
    asked = {entry["quantity"] for entry in group}
    if "differential_capacitance" in asked:
        cell["left"]["potential"].requires_grad_()
    if "reversal_potential" in asked:
        cell["right"]["potential"].requires_grad_()
    columns = zip(
        *(cell[name].unbind(-1) for name in ("valences", "diffusivities", "diameters")), strict=True
    )
    species = [
        pnp.Species(f"s{i}", valence=z, diffusivity=d, diameter=a) for i, (z, d, a) in enumerate(columns)
    ]
    return pnp.Cell(
        pnp.Electrolyte.dimensionless(species, permittivity=cell["permittivity"]),
        length=cell["length"],
        concentrations=cell["filling"],
        fixed_charge=cell["fixed_charge"],
        left=_end(cell["left"]),
        right=_end(cell["right"]),
    )


def measure(entry: Entry, solution: pnp.Solution) -> Tensor:
    """The quantity of an entry, `(*batch)`, or `(*batch, time)` and `(*batch, frequency)`."""
    return OBSERVABLES[entry["quantity"]](entry, solution)


def values(group: Sequence[Entry]) -> Tensor:
    """What the table says, one row for each entry."""
    return torch.tensor([entry["value"] for entry in group], dtype=torch.float64)


def solve(group: Sequence[Entry], nodes: int | None = None, **settings: Any) -> pnp.Solution:
    """The batch of a group, solved on the default grid or on a refined one of so many nodes."""
    cell = build(*group)
    grid = None if nodes is None else pnp.Grid.refined(cell, nodes)
    if group[0]["kind"] == "transient":
        return pnp.solve_transient(cell, grid, times=group[0]["times"], **settings)
    return pnp.solve_steady(cell, grid, **settings)


def _described(entry: Entry) -> dict[str, Any]:
    cell = {name: part for name, part in entry["cell"].items() if name != "limit"}
    if entry["quantity"] == "reversal_potential":
        cell["right"] = cell["right"] | {"potential": entry["value"]}
    return cell


def _end(end: dict[str, Any]) -> pnp.Electrode | pnp.Reservoir:
    if end["type"] == "reservoir":
        return pnp.Reservoir(concentrations=end["concentrations"], potential=end["potential"])
    return pnp.Electrode(
        potential=end["potential"],
        stern_capacitance=end["stern_capacitance"],
        reactions=[_deposition(reaction) for reaction in end["reactions"]],
    )


def _deposition(reaction: dict[str, Any]) -> pnp.ElectrodeReaction:
    return pnp.ElectrodeReaction(
        {f"s{int(reaction['species'].reshape(-1)[0])}": 1},
        {},
        rate_constant=reaction["rate_constant"],
        standard_potential=reaction["standard_potential"],
        transfer_coefficient=reaction["transfer_coefficient"],
        standard_concentration=reaction["reference_concentration"],
    )


def _shape(part: Any) -> Any:
    """A description without its numbers (but for which species reacts)."""
    if isinstance(part, dict):
        return {name: value if name == "species" else _shape(value) for name, value in part.items()}
    if isinstance(part, list):
        return [_shape(one) for one in part]
    return part if part is None or isinstance(part, str) else "number"


def _as_tensors(part: Any) -> Any:
    return _map(part, lambda number: torch.tensor(number, dtype=torch.float64))


def _map(part: Any, function: Callable[[Any], Tensor]) -> Any:
    if isinstance(part, dict):
        return {name: _map(value, function) for name, value in part.items()}
    if isinstance(part, list) and not all(isinstance(one, int | float) for one in part):
        return [_map(one, function) for one in part]
    return part if part is None or isinstance(part, str) or part == [] else function(part)


def _stacked(rows: Sequence[Any]) -> Any:
    """Descriptions of one shape as one, whose numbers are tensors along a first axis."""
    first = rows[0]
    if isinstance(first, dict):
        return {name: _stacked([row[name] for row in rows]) for name in first}
    if isinstance(first, list) and not all(isinstance(one, int | float) for one in first):
        return [_stacked(column) for column in zip(*rows, strict=True)]
    if first is None or isinstance(first, str) or first == []:
        return first
    return torch.tensor(rows, dtype=torch.float64)


def _midplane(profile: Tensor) -> Tensor:
    """At the node in the middle, of an odd number of nodes."""
    return profile[..., profile.shape[-1] // 2]


def _slope(value: Tensor, potential: Tensor) -> Tensor:
    """Derivative of every element's value with respect to its own potential."""
    (slope,) = torch.autograd.grad(value.sum(), potential, retain_graph=True)
    return slope


def _current(entry: Entry, solution: pnp.Solution) -> Tensor:
    return pnp.current_density(solution).mean(-1)


def _capacitance(entry: Entry, solution: pnp.Solution) -> Tensor:
    return _slope(pnp.surface_charge(solution).left, solution.cell.left.potential)


def _reversal(entry: Entry, solution: pnp.Solution) -> Tensor:
    """One step of Newton's method from the potential of the solution, which is near."""
    potential = solution.cell.right.potential
    current = _current(entry, solution)
    return (potential - current / _slope(current, potential)).detach()


def _impedance(entry: Entry, solution: pnp.Solution) -> Tensor:
    return pnp.impedance(solution, [omega / (2 * math.pi) for omega in entry["frequencies"]])


OBSERVABLES: dict[str, Callable[[Entry, pnp.Solution], Tensor]] = {
    "diffuse_charge": lambda entry, solution: pnp.diffuse_charge(solution),
    "surface_charge": lambda entry, solution: pnp.surface_charge(solution).left,
    "differential_capacitance": _capacitance,
    "midplane_concentration": lambda entry, solution: _midplane(solution.concentrations[..., 0, :]),
    "midplane_potential": lambda entry, solution: _midplane(solution.potential),
    "reversal_potential": _reversal,
    "current_density": _current,
    "impedance_real": lambda entry, solution: _impedance(entry, solution).real,
    "impedance_imag": lambda entry, solution: _impedance(entry, solution).imag,
}


def relative_error(found: Tensor, wanted: Tensor) -> np.ndarray:
    """Of values, or of rows of values against the largest of the row."""
    size = wanted.abs() if wanted.dim() < 2 else wanted.abs().amax(-1, keepdim=True)
    return ((found - wanted).abs() / size).detach().numpy()
