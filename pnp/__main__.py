"""The command line: python -m pnp CELL.toml."""

import argparse
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from .command_line.description import Description, Impedance, Transient, read_description
from .command_line.results import Result
from .command_line.toml_tables import pointing
from .errors import SolveError, UnderResolvedWarning
from .impedance import impedance
from .solution import Solution
from .solvers.steady import solve_steady
from .solvers.transient import solve_transient


def main(arguments: Sequence[str] | None = None) -> int:
    """Solve a described cell; 0 if it went well, 1 if it was not solved, 2 if the user has to change something."""
    options = _parser().parse_args(arguments)
    try:
        _check_extras()
        _simulate(options.cell, options.out or Path(options.cell.stem), options.quiet)
    except SolveError as error:
        print(f"{options.cell}: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pnp",
        description="Solve an electrolytic cell that a TOML file describes; docs/examples holds some to start from.",
        epilog="Writes result.nc (NetCDF), summary.txt and figures. Exit status: 0 solved, 1 not solved, 2 "
        "something in the file or the command has to change.",
    )
    parser.add_argument("cell", type=Path, metavar="CELL.toml", help="description of the cell")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for results; default: ./CELL")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return parser


def _check_extras() -> None:
    """Complain of a missing library before an hour of computing rather than after it."""
    for name in ("matplotlib", "pint", "tqdm", "xarray"):
        if find_spec(name) is None:
            raise ImportError(f"python -m pnp needs {name}: pip install 'pnp-fusion[simulate]'")


def _simulate(path: Path, folder: Path, quiet: bool) -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        # The matrices are small; threads would wait for each other most of the time.
        torch.set_num_threads(1)
    description = read_description(path)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: results go into a folder, but this is a file.")
    result = _solve(description, quiet)
    written = result.save(folder)
    if not quiet:
        print(result.summary())
        print("\n".join(str(one) for one in written))


def _solve(description: Description, quiet: bool) -> Result:
    with warnings.catch_warnings(record=True) as caught, pointing(*description.parts):
        warnings.filterwarnings("always", category=UnderResolvedWarning)
        if isinstance(description.run, Transient):
            solution = _solve_transient(description, description.run, quiet)
        else:
            solution = solve_steady(description.cell, description.grid)
        response = None
        if isinstance(description.run, Impedance):
            response = impedance(solution, description.run.frequencies)
    return Result(description, solution, response, tuple({str(one.message): None for one in caught}))


def _solve_transient(description: Description, run: Transient, quiet: bool) -> Solution:
    with _progress_bar(run, quiet) as progress:
        return solve_transient(
            description.cell,
            description.grid,
            times=run.times,
            step_control=run.step_control,
            progress=progress,
        )


@contextmanager
def _progress_bar(run: Transient, quiet: bool) -> Iterator[Callable[[float], None]]:
    """A bar on the terminal, of the logarithm of time where times are spread over decades."""
    from tqdm import tqdm

    positive = run.times[run.times > 0]
    span = math.log(float(positive[-1] / positive[0])) if run.logarithmic else 0.0
    layout = "{percentage:3.0f}% |{bar}| {elapsed}"
    with tqdm(total=1.0, bar_format=layout, leave=False, disable=True if quiet else None) as bar:

        def show(fraction: float) -> None:
            if span:
                fraction = max(0.0, 1 + math.log(max(fraction, 1e-300)) / span)
            bar.update(fraction - bar.n)

        yield show


if __name__ == "__main__":
    sys.exit(main())
