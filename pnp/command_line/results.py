"""What a run of a described cell leaves behind: a dataset, figures and a summary."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..atomic import replacing
from ..dataset import to_dataset
from ..observables import current_density, electrode_potential, surface_charge
from ..solution import Solution
from . import figures
from .description import Description, Impedance, Transient
from .sweep import label
from .units import with_prefix

if TYPE_CHECKING:
    import xarray

MOST_ROWS = 40
"""Elements of a batch that the summary lists."""


@dataclass(frozen=True, eq=False)
class Result:
    """A described cell that was solved.

    Attributes:
        description: What was asked for.
        solution: Of the steady state or the transient.
        impedance: [Ω m²], complex, `(*batch, frequency)`; None where it was not asked for.
        warnings: What the solver had to say.
    """

    description: Description
    solution: Solution
    impedance: Tensor | None = None
    warnings: tuple[str, ...] = ()

    def dataset(self) -> "xarray.Dataset":
        """All numbers, as :func:`pnp.dataset.to_dataset` labels them, and the impedance."""
        description = self.description
        axes = {axis.name: next(iter(axis.values.values())) for axis in description.axes}
        data = to_dataset(self.solution, axes=axes, title=description.title, description=description.text)
        for axis in description.axes:
            for name, values in axis.values.items():
                attributes = {"units": axis.units[name] or "1", "long_name": name}
                data.coords[label(name)] = (
                    axis.name,
                    values,
                    attributes,
                )
        if isinstance(description.run, Impedance) and self.impedance is not None:
            self._add_impedance(data, [*axes, "frequency"], description.run.frequencies, self.impedance)
        return data

    def _add_impedance(
        self, data: "xarray.Dataset", dims: list[str], frequencies: Tensor, impedance: Tensor
    ) -> None:
        dimensionless = self.solution.cell.electrolyte.is_dimensionless
        ohm, hertz = ("1", "1") if dimensionless else ("ohm m2", "Hz")
        attributes = {"units": hertz, "long_name": "frequency"}
        data.coords["frequency"] = ("frequency", frequencies.numpy(), attributes)
        # NetCDF has no complex numbers.
        for name, part in (("real", impedance.real), ("imaginary", impedance.imag)):
            attributes = {"units": ohm, "long_name": f"{name} part of the impedance"}
            data[f"impedance_{name}"] = (dims, part.detach().cpu().numpy(), attributes)

    def summary(self) -> str:
        """What people want to know at a glance: whether it was solved, how well, and the numbers at the ends."""
        solved = self.solution.solved
        lines = [
            self.description.title,
            f"{self._kind()}; {len(self.solution.cell.electrolyte.names)} species on "
            f"{self.solution.potential.shape[-1]} nodes",
            f"solved: {int(solved.sum())} of {solved.numel()}",
            *(f"warning: {text}" for text in self.warnings),
            "",
            *self._table(),
            "",
            "checks, the worst of all cells and times",
            *(f"  {line}" for line in str(self.solution.check()).splitlines()),
        ]
        return "\n".join(lines) + "\n"

    def _kind(self) -> str:
        run = self.description.run
        if isinstance(run, Transient):
            unit = "" if self.solution.cell.electrolyte.is_dimensionless else "s"
            ends = [with_prefix(float(time), unit) for time in run.times[[0, -1]]]
            return f"transient, {len(run.times)} times from {ends[0]} to {ends[1]}"
        if isinstance(run, Impedance):
            return f"steady state and impedance at {len(run.frequencies)} frequencies"
        return "steady state"

    def _table(self) -> list[str]:
        """Numbers at the ends, at the last time; one row for every element of the batch."""
        columns = self._columns()
        names = figures.labels(self.description)
        width = max(len(name) for name in names)
        heads = [[part.rjust(13) for part in parts] for parts in zip(*(key for key in columns), strict=True)]
        lines = [" " * width + "".join(head) for head in heads]
        rows = torch.stack([values.reshape(-1) for values in columns.values()], dim=-1).tolist()
        for name, row in list(zip(names, rows, strict=True))[:MOST_ROWS]:
            lines.append(name.ljust(width) + "".join(f"{value + 0.0:13.4g}" for value in row))  # no -0
        if len(rows) > MOST_ROWS:
            lines.append(f"... and {len(rows) - MOST_ROWS} more in result.nc")
        return lines

    @torch.no_grad()
    def _columns(self) -> dict[tuple[str, str, str], Tensor]:
        """What the table shows, by three lines of its head: quantity, place, unit."""
        solution = self.solution
        volts, charges = electrode_potential(solution), surface_charge(solution)
        current = current_density(solution)
        columns = {
            ("potential", "left", "V"): volts.left,
            ("potential", "right", "V"): volts.right,
            ("charge", "left", "C/m²"): charges.left,
            ("charge", "right", "C/m²"): charges.right,
            ("current", "left", "A/m²"): current[..., 0],
        }
        if solution.cell.ground is not None:
            columns |= {
                ("charge", "ground", "C/m²"): charges.ground,
                ("current", "right", "A/m²"): current[..., -1],
            }
        if solution.times is not None:
            columns = {head: values[..., -1] for head, values in columns.items()}
        run = self.description.run
        if isinstance(run, Impedance) and self.impedance is not None:
            for index in (0, -1):
                at = with_prefix(float(run.frequencies[index]), "Hz")
                columns["|Z|", at, "Ω m²"] = self.impedance[..., index].abs()
        if solution.cell.electrolyte.is_dimensionless:
            columns = {(*head[:2], ""): values for head, values in columns.items()}
        return columns

    def save(self, folder: Path) -> list[Path]:
        """Write `result.nc`, `summary.txt` and the figures; all of them, or, when anything fails, none.

        Files of the same names are replaced. Raises OSError when the folder cannot be written.
        """
        drawn = figures.draw(self.description, self.solution, self.impedance)
        writers: dict[str, Callable[[Path], object]] = {
            "result.nc": lambda path: self.dataset().to_netcdf(path, engine="scipy"),
            "summary.txt": lambda path: path.write_text(self.summary(), encoding="utf-8"),
        }
        for name, figure in drawn.items():
            writers[f"{name}.png"] = partial(figure.savefig, format="png", dpi=150)
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for name, write in writers.items():
                write(stack.enter_context(replacing(folder / name)))
        return [folder / name for name in writers]
