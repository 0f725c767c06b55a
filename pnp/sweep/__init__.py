"""Studies of a hundred thousand to a million cells over tables of parameters.

    table -> run -> dataset

Make a :class:`Table` with :func:`grid`, :func:`latin_hypercube` or :func:`read_csv`, and :func:`run` a function that
builds cells from its columns: in chunks that fit the memory, on all cores, devices or the workers of a Dask cluster,
taken up again after a kill, into one file that xarray opens. Needs `pip install 'pnp-fusion[sweep]'`.
"""

from .chunks import REFUSED, Observable
from .running import run
from .tables import Table, grid, latin_hypercube, log, read_csv

__all__ = ["REFUSED", "Observable", "Table", "grid", "latin_hypercube", "log", "read_csv", "run"]
