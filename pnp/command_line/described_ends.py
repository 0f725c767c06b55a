"""The tables `[left]` and `[right]` of a description: electrodes, baths, walls, and what they do in time."""

from collections.abc import Callable, Sequence
from typing import Any

from ..boundaries import Boundary, ChargedWall, Electrode, Periodic, Reservoir
from ..cell import electrons
from ..electrolyte import Electrolyte
from ..reactions import ElectrodeReaction
from ..waveforms import Waveform, piecewise_linear, ramp, sine, step, triangle
from . import units
from .toml_tables import Table, pointing
from .units import Kind

TYPES = ("electrode", "reservoir", "charged wall", "periodic")
WAVEFORMS = ("step", "ramp", "triangle", "sine", "piecewise_linear")


def read_ends(left: Table, right: Table, electrolyte: Electrolyte, filling: dict[str, Any]) -> list[Boundary]:
    """Both ends of a cell, a reservoir by default with the concentrations of the `filling`.

    Raises DescriptionError for an end that cannot be meant.
    """
    kinds = [end.choice("type", TYPES) for end in (left, right)]
    if kinds == ["periodic", "periodic"]:
        both = _periodic(left)
        right.finish()
        return [both, both]
    ends: list[Boundary] = []
    for table, kind in zip((left, right), kinds, strict=True):
        if kind == "electrode":
            ends.append(_electrode(table, electrolyte))
        elif kind == "reservoir":
            ends.append(_reservoir(table, filling))
        elif kind == "charged wall":
            ends.append(_wall(table))
        else:
            raise table.error("type", "a periodic cell is periodic at both ends.")
    return ends


def read_stoichiometry(table: Table, key: str, species: Sequence[str]) -> dict[str, float]:
    """Stoichiometric numbers by species; none when the key is absent."""
    side = table.table(key, {})
    numbers = {name: side.constant(name, default=0.0) for name in species}
    side.finish("species")
    return {name: number for name, number in numbers.items() if name in side.content}


def _electrode(table: Table, electrolyte: Electrolyte) -> Electrode:
    arguments = {
        "potential": _signal(table, "potential", units.POTENTIAL, units.SCAN_RATE),
        "current": _signal(table, "current", units.CURRENT, units.CURRENT_RATE),
        "stern_capacitance": table.quantity("stern_capacitance", units.CAPACITANCE, None),
        "reactions": [_transfer(one, electrolyte) for one in table.tables("reaction")],
    }
    table.finish()
    with pointing(table):
        return Electrode(**arguments)


def _reservoir(table: Table, filling: dict[str, Any]) -> Reservoir:
    potential = _signal(table, "potential", units.POTENTIAL, units.SCAN_RATE, required=True)
    concentrations = filling
    if "concentrations" in table.content:
        bath = table.table("concentrations")
        concentrations = {name: bath.quantity(name, units.CONCENTRATION) for name in filling}
        bath.finish("species")
    table.get("concentrations", None)
    table.finish()
    with pointing(table):
        return Reservoir(concentrations=concentrations, potential=potential)


def _wall(table: Table) -> ChargedWall:
    charge = table.quantity("charge", units.CHARGE, 0.0)
    table.finish()
    with pointing(table):
        return ChargedWall(charge=charge)


def _periodic(table: Table) -> Periodic:
    drop = table.quantity("potential_drop", units.POTENTIAL, 0.0)
    table.finish()
    with pointing(table):
        return Periodic(potential_drop=drop)


def _transfer(table: Table, electrolyte: Electrolyte) -> ElectrodeReaction:
    sides = [read_stoichiometry(table, key, electrolyte.names) for key in ("oxidised", "reduced")]
    arguments = {
        "rate_constant": table.quantity("rate_constant", units.VELOCITY),
        "standard_potential": table.quantity("standard_potential", units.POTENTIAL, 0.0),
        "transfer_coefficient": table.quantity("transfer_coefficient", default=0.5),
        "standard_concentration": table.quantity("standard_concentration", units.CONCENTRATION, None),
    }
    table.finish()
    with pointing(table):
        reaction = ElectrodeReaction(sides[0], sides[1], **arguments)
        electrons(reaction, electrolyte)  # which the cell would refuse too late for the line to be known
        return reaction


def _signal(table: Table, key: str, kind: Kind, rate: Kind, required: bool = False) -> Any:
    """A number, a waveform, or None."""
    if isinstance(table.content.get(key), dict):
        return _waveform(table.table(key), kind, rate)
    return table.quantity(key, kind) if required else table.quantity(key, kind, None)


def _waveform(table: Table, kind: Kind, rate: Kind) -> Waveform:
    shape = table.choice("kind", WAVEFORMS)
    make: Callable[..., Waveform]
    if shape == "step":
        make, wanted = step, {"before": kind, "after": kind, "at": units.TIME}
    elif shape == "ramp":
        make, wanted = ramp, {"start": kind, "end": kind, "duration": units.TIME}
    elif shape == "triangle":
        make, wanted = triangle, {"start": kind, "vertex": kind, "rate": rate}
    elif shape == "sine":
        make, wanted = sine, {"amplitude": kind, "frequency": units.FREQUENCY}
    else:
        make, wanted = piecewise_linear, {}
    arguments: dict[str, Any] = {key: table.quantity(key, what) for key, what in wanted.items()}
    if shape == "triangle":
        arguments["cycles"] = table.integer("cycles", 1)
    elif shape == "sine":
        arguments["offset"] = table.quantity("offset", kind, 0.0)
        arguments["phase"] = table.quantity("phase", units.ANGLE, 0.0)
    elif shape == "piecewise_linear":
        arguments |= {
            "times": table.quantities("times", units.TIME),
            "values": table.quantities("values", kind),
        }
    table.finish()
    with pointing(table):
        return make(**arguments)
