"""Solutions as labelled arrays: `xarray.Dataset` with named axes, coordinates and units. Needs xarray."""

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import observables
from .errors import Status
from .quantity import as_quantity
from .solution import Solution

if TYPE_CHECKING:
    import xarray


class _Variable(NamedTuple):
    """How to get a variable, its axes after batch and time, its SI units, and what it is."""

    values: Callable[[Solution], Tensor | None]
    axes: tuple[str, ...]
    units: str
    long_name: str


_VARIABLES = {
    "potential": _Variable(lambda s: s.potential, ("node",), "V", "electric potential"),
    "concentrations": _Variable(
        lambda s: s.concentrations, ("species", "node"), "mol m-3", "concentration of every species"
    ),
    "pressure": _Variable(lambda s: s.pressure, ("node",), "Pa", "pressure of crowding"),
    "charge_density": _Variable(observables.charge_density, ("node",), "C m-3", "charge density"),
    "electric_field": _Variable(observables.electric_field, ("edge",), "V m-1", "electric field"),
    "ion_flux": _Variable(
        observables.ion_flux,
        ("species", "edge"),
        "mol m-2 s-1",
        "flux of every species, positive to the right",
    ),
    "current_density": _Variable(
        observables.current_density, ("edge",), "A m-2", "total current density, positive to the right"
    ),
    "surface_charge_left": _Variable(
        lambda s: observables.surface_charge(s).left, (), "C m-2", "charge per area on the left end"
    ),
    "surface_charge_right": _Variable(
        lambda s: observables.surface_charge(s).right, (), "C m-2", "charge per area on the right end"
    ),
    "surface_charge_ground": _Variable(
        lambda s: None if s.cell.ground is None else observables.surface_charge(s).ground,
        (),
        "C m-2",
        "charge per area on the ground",
    ),
    "electrode_potential_left": _Variable(
        lambda s: observables.electrode_potential(s).left, (), "V", "potential of the left metal or bath"
    ),
    "electrode_potential_right": _Variable(
        lambda s: observables.electrode_potential(s).right, (), "V", "potential of the right metal or bath"
    ),
}


@torch.no_grad()
def to_dataset(
    solution: Solution, *, axes: Mapping[str, Any] | None = None, title: str = "", description: str = ""
) -> "xarray.Dataset":
    """A solution and what one reads off it, as an :class:`xarray.Dataset` with names, units and coordinates.

    Dimensions are the batch axes, `time` of a transient, `species`, `node` and `edge`; coordinates `x` and
    `x_edge` [m] (with batch axes where grids differ), `time` [s] and the names of the species. Every variable
    has the attributes `units` (SI; "1" of a dimensionless cell) and `long_name`. Gradients are dropped.

        pnp.to_dataset(solution).to_netcdf("result.nc", engine="scipy")

    Arguments:
        solution: A steady state or a transient.
        axes: Names of the batch axes, in order, and their coordinates `(value,)`; default `batch0`, ...
        title, description: Global attributes, for people.

    Raises:
        ImportError: xarray is not installed.
        ValueError: `axes` are not as many as the batch has, or coordinates not as many as its elements.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> data = pnp.to_dataset(pnp.solve_transient(cell, times=[0.01, 0.1]))
        >>> dict(data.concentrations.sizes), data.potential.attrs["units"]
        ({'time': 2, 'species': 2, 'node': 201}, '1')
    """
    try:
        import xarray
    except ImportError as error:
        raise ImportError("to_dataset needs xarray: pip install 'pnp-fusion[simulate]'.") from error
    batch = _batch_coordinates(solution, axes)
    leading = (*batch, *(() if solution.times is None else ("time",)))
    data: dict[str, Any] = {}
    for name, variable in _VARIABLES.items():
        values = variable.values(solution)
        if values is not None:  # None is the pressure of point ions
            data[name] = ((*leading, *variable.axes), _array(values), _attributes(solution, variable))
    data["status"] = (tuple(batch), solution.status.cpu().numpy(), STATUS_ATTRIBUTES)
    about = {
        "title": title,
        "source": f"pnp-fusion {package_version()}",
        "Conventions": "CF-1.11",
        "description": description,
    }
    coordinates = _coordinates(solution, tuple(batch))
    coordinates |= {name: values for name, values in batch.items() if values is not None}
    return xarray.Dataset(data, coordinates, {key: text for key, text in about.items() if text})


STATUS_ATTRIBUTES: dict[str, Any] = {
    "long_name": "how the solve ended",
    "flag_values": [int(status) for status in Status],
    "flag_meanings": " ".join(status.name.lower() for status in Status),
}


def _batch_coordinates(solution: Solution, axes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Coordinates by the names of the batch axes, None for an axis that has none."""
    shape = tuple(solution.status.shape)
    if axes is None:
        return {f"batch{index}": None for index in range(len(shape))}
    values = {name: as_quantity(given, f"to_dataset: {name}") for name, given in axes.items()}
    counts = tuple(one.numel() for one in values.values())
    if counts != shape:
        raise ValueError(
            f"to_dataset: axes must match the batch shape {shape}, got {list(axes)} of {counts}."
        )
    return {name: (name, _array(one)) for name, one in values.items()}


def _coordinates(solution: Solution, batch: tuple[str, ...]) -> dict[str, Any]:
    dimensionless = solution.cell.electrolyte.is_dimensionless
    metre, second = ("1", "1") if dimensionless else ("m", "s")
    coordinates: dict[str, Any] = {"species": ("species", list(solution.cell.electrolyte.names))}
    for name, axis, positions in (
        ("x", "node", solution.grid.nodes),
        ("x_edge", "edge", solution.grid.middles),
    ):
        own = positions.dim() > 1
        values = positions.expand((*solution.status.shape, positions.shape[-1])) if own else positions
        attributes = {"units": metre, "long_name": "position" if axis == "node" else "position of edges"}
        coordinates[name] = ((*batch, axis) if own else (axis,), _array(values), attributes)
    if solution.times is not None:
        coordinates["time"] = ("time", _array(solution.times), {"units": second, "long_name": "time"})
    return coordinates


def _attributes(solution: Solution, variable: _Variable) -> dict[str, str]:
    units = "1" if solution.cell.electrolyte.is_dimensionless else variable.units
    return {"units": units, "long_name": variable.long_name}


def _array(values: Tensor) -> Any:
    return values.detach().cpu().numpy()


def package_version() -> str:
    """Version of the package, for results to carry."""
    try:
        return metadata.version("pnp-fusion")
    except metadata.PackageNotFoundError:
        return "(not installed)"
