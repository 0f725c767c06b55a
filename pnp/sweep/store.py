"""Results of a study on disk: a part for each finished chunk, in the end one NetCDF file."""

import json
import os
import shutil
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..atomic import replacing
from ..dataset import STATUS_ATTRIBUTES, package_version
from ..errors import Status
from .chunks import REFUSED, Chunk, Variable
from .tables import Table

if TYPE_CHECKING:
    import xarray


@dataclass
class Plan:
    """What is settled when a study begins, and holds when it is taken up again.

    Attributes:
        settings: The :func:`~pnp.sweep.fingerprint.fingerprint`.
        size: Rows of a chunk.
        variables, coordinates: As those of :class:`Chunk`.
    """

    settings: dict[str, str]
    size: int
    variables: dict[str, Variable]
    coordinates: dict[str, tuple[list[Any], str]]


_RESERVED = ("status", "reason", "failure")
_STATUS = STATUS_ATTRIBUTES | {
    "flag_values": [REFUSED, *STATUS_ATTRIBUTES["flag_values"]],
    "flag_meanings": f"refused {STATUS_ATTRIBUTES['flag_meanings']}",
}


class Store:
    """Files of one study: `out`, and until that is whole a folder `out.parts` beside it.

    Every file appears at once and whole, so that a process may be killed at any moment.
    """

    def __init__(self, out: Path, table: Table, settings: dict[str, str]) -> None:
        self.out = out
        self.table = table
        self.settings = settings
        self.parts = out.with_name(out.name + ".parts")

    def is_finished(self, overwrite: bool) -> bool:
        """Whether `out` holds this very study, in chunks of whatever size.

        Raises ValueError if it holds something else, unless that may be overwritten.
        """
        import xarray

        if not self.out.exists():
            return False
        try:
            with xarray.open_dataset(self.out, engine="scipy") as data:
                found = json.loads(data.attrs["study"])
        except (KeyError, TypeError, ValueError):
            found = {}
        differences = self._differences(found)
        if differences and not overwrite:
            raise ValueError(self._refusal(self.out, differences))
        return not differences

    def resume(self, size: int | None, overwrite: bool) -> Plan | None:
        """The plan of this study if parts of it are there; those of another one are removed if they may be.

        Raises ValueError if they may not.
        """
        found = self._begun()
        if not found:
            return None
        differences = self._differences(found["settings"])
        if size not in (None, found["size"]):
            differences.append(f"chunk was {found['size']}, now {size}")
        if differences and not overwrite:
            raise ValueError(self._refusal(self.parts, differences))
        if differences:
            shutil.rmtree(self.parts)
            return None
        variables = {
            name: Variable(tuple(axes), tuple(shape), units)
            for name, (axes, shape, units) in found["variables"].items()
        }
        return Plan(found["settings"], found["size"], variables, found["coordinates"])

    def _differences(self, found: dict[str, str]) -> list[str]:
        return [
            f"{name} was {found.get(name, 'not there')}, now {value}"
            for name, value in self.settings.items()
            if found.get(name) != value
        ]

    def _refusal(self, path: Path, differences: list[str]) -> str:
        return (
            f"run: {path} holds another study ({'; '.join(differences)}). Pass overwrite=True to give it up, or "
            "another out; the same study is taken up where it stopped."
        )

    def begin(self, plan: Plan) -> None:
        """Write down the plan; ValueError if its variables do not fit into one dataset."""
        self._check_names(plan)
        shutil.rmtree(self.parts, ignore_errors=True)  # what a removal that was killed left of other parts
        self.parts.mkdir(parents=True)
        with replacing(self.parts / "study.json") as temporary:
            temporary.write_text(json.dumps(asdict(plan)), encoding="utf-8")

    def finished(self) -> list[int]:
        """Indices of the chunks that are there."""
        return sorted(int(path.stem) for path in self.parts.glob("*.npz"))

    def write(self, index: int, plan: Plan, chunk: Chunk) -> None:
        """Write a chunk; variables of one in which every row was refused are NaN."""
        if chunk.values and chunk.variables != plan.variables:
            raise ValueError(
                f"run: observables must have the same axes in all cells, got {plan.variables} first, and "
                f"{chunk.variables} in chunk {index}."
            )
        rows = len(chunk.status)
        failures = sorted(chunk.reasons)
        arrays: dict[str, Any] = {
            # A variable may be called as an argument of savez is.
            f"values/{name}": chunk.values[name] if chunk.values else np.full((rows, *variable.shape), np.nan)
            for name, variable in plan.variables.items()
        }
        arrays["values/status"] = chunk.status
        arrays["failure"] = np.array(failures, dtype=np.int32) + np.int32(index * plan.size)
        arrays["reason"] = np.array([chunk.reasons[row] for row in failures], dtype=np.str_)
        with replacing(self._part(index)) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)

    def failures(self) -> int:
        """How many rows of the finished chunks were not solved."""
        return sum(len(self._read(index, "failure")) for index in self.finished())

    def join(self, plan: Plan) -> None:
        """Make one NetCDF file of the parts; never holds more than one part in memory.

        The first axis of the table is the record dimension, that which NetCDF has for data that come
        piece by piece: xarray writes the file with one record, and the others are filled in behind it.
        """
        from scipy.io import netcdf_file

        path = self.parts / "joined"
        first, count = next(iter(self.table.axes.items()))
        self._one_record(plan).to_netcdf(path, engine="scipy", unlimited_dims=[first])
        with netcdf_file(path, mmap=False) as file:
            fields = [
                (name, variable.data.dtype.newbyteorder(">"), variable.shape[1:])
                for name, variable in file.variables.items()
                if variable.isrec
            ]
        record = np.dtype(fields)
        start = path.stat().st_size - record.itemsize
        for index in self.finished():
            # Opened anew each time, because what was written through a mapping counts as memory while it is open.
            records = np.memmap(path, record, "r+", offset=start, shape=(count,))
            rows = np.arange(index * plan.size, min((index + 1) * plan.size, len(self.table)))
            places = np.unravel_index(rows, self.table.shape)
            with np.load(self._part(index)) as part:
                for name in ("status", *plan.variables):
                    records[name][places] = part[f"values/{name}"]
            for name, (dims, _) in self.table.coordinates().items():
                if dims[0] == first:
                    records[name][places[: len(dims)]] = self.table.columns[name][rows]
            del records
        with open(path, "r+b") as file:
            file.seek(4)  # where the header has the number of records
            file.write(struct.pack(">i", count))
        os.replace(path, self.out)

    def clean(self) -> None:
        """Remove parts of this study, if there are any left."""
        found = self._begun()
        if found and not self._differences(found["settings"]):
            shutil.rmtree(self.parts)

    def _begun(self) -> dict[str, Any]:
        """The plan of the study whose parts are there, as it was written; empty if there are none."""
        path = self.parts / "study.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def _part(self, index: int) -> Path:
        return self.parts / f"{index:06d}.npz"

    def _read(self, index: int, name: str) -> np.ndarray:
        with np.load(self._part(index)) as part:
            return part[name]

    def _unresolved(self, index: int) -> int:
        """How many cells of a chunk were solved on a grid that does not resolve their double layers."""
        spacing, status = (self._read(index, f"values/{name}") for name in ("wall_spacing", "status"))
        return int(((spacing > 1) & (status == Status.CONVERGED)).sum())

    def _check_names(self, plan: Plan) -> None:
        axes = [(axis, size) for one in plan.variables.values() for axis, size in zip(*one[:2], strict=True)]
        sizes = dict(self.table.axes)
        for axis, size in axes:
            if sizes.setdefault(axis, size) != size:
                raise ValueError(f"run: the axis {axis} must have one length, got {sizes[axis]} and {size}.")
        names = [*plan.variables, *self.table.columns, *_RESERVED]
        names += [name for name in sizes if name not in self.table.columns]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(
                f"run: parameters, observables and axes must have different names, got {sorted(twice)} twice."
            )

    def _one_record(self, plan: Plan) -> "xarray.Dataset":
        """Everything but the rows: one record of zeros, the coordinates, what failed, and labels."""
        import xarray

        table = self.table
        dims = tuple(table.axes)
        shape = (1, *table.shape[1:])
        data: dict[str, Any] = {
            name: ((*dims, *one.axes), np.zeros((*shape, *one.shape)), _units(one.units))
            for name, one in plan.variables.items()
        }
        data["status"] = (dims, np.zeros(shape, np.int32), _STATUS)
        failed, reasons = (
            np.concatenate([self._read(index, name) for index in self.finished()])
            for name in ("failure", "reason")
        )
        if len(failed):  # NetCDF takes a dimension of length zero for that of the records
            data["reason"] = ("failure", reasons, {"long_name": "why a cell was not solved"})
            data["failure"] = ("failure", failed, {"long_name": "its row in the table, from 0"})
        used = {axis for one in plan.variables.values() for axis in one.axes}
        coordinates: dict[str, Any] = {
            name: (name, values, _units(units))
            for name, (values, units) in plan.coordinates.items()
            if name in used
        }
        for name, (own, values) in table.coordinates().items():
            here = values[:1] if own[0] == dims[0] else values
            coordinates[name] = (own, here, _units(table.units.get(name, "")))
        about = {
            "source": f"pnp-fusion {package_version()}",
            "Conventions": "CF-1.11",
            "study": json.dumps(plan.settings),
            "unresolved": np.int32(sum(self._unresolved(index) for index in self.finished())),
        }
        return xarray.Dataset(data, coordinates, about)


def _units(units: str) -> dict[str, str]:
    return {"units": units} if units else {}
