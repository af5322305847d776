"""The ways of a table out of this library: files and the tables of others."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import io
from ..errors import DomainError, UnsupportedError

if TYPE_CHECKING:
    import pandas
    import xarray

    from .table import Table

_EXACT = 2**53  # beyond it, float64 has not every integer


def to_csv(table: Table, path: str | os.PathLike[str], decimal: str) -> None:
    """Write a table as CSV; `Table.to_csv` says how."""
    with (
        io.replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file, delimiter="," if decimal == "." else ";", lineterminator="\n")
        writer.writerow(table.names)
        for row in table.rows():
            writer.writerow([repr(v).replace(".", decimal) if isinstance(v, float) else v for v in row.values()])


def to_parquet(table: Table, path: str | os.PathLike[str]) -> None:
    """Write a table as a Parquet file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UnsupportedError("Table.to_parquet: needs pyarrow; install it, or use to_csv") from None
    columns = pyarrow.table({name: pyarrow.array(column) for name, column in table.columns.items()})
    with io.replacing(path) as temporary:
        pyarrow.parquet.write_table(columns, temporary)


def to_pandas(table: Table) -> pandas.DataFrame:
    """A table as a pandas.DataFrame."""
    try:
        import pandas
    except ImportError:
        raise UnsupportedError("Table.to_pandas: needs pandas; install it, or use to_csv") from None
    return pandas.DataFrame({name: column.copy() for name, column in table.columns.items()})


def to_xarray(table: Table, dims: Sequence[str]) -> xarray.Dataset:
    """A table as an xarray.Dataset; `Table.to_xarray` says how."""
    try:
        import xarray
    except ImportError:
        raise UnsupportedError("Table.to_xarray: needs xarray; install it, or use to_csv") from None
    if isinstance(dims, str) or not len(dims) or len(set(dims)) < len(dims):
        raise DomainError(f"Table.to_xarray: dims must be different names of columns, got {dims!r}")
    coordinates, places = {}, []
    for name in dims:
        values, first, place = np.unique(table[name], return_index=True, return_inverse=True)
        if table[name].dtype.kind == "U":
            order = np.argsort(first)
            values, place = values[order], np.argsort(order)[place]
        coordinates[name] = values
        places.append(place)
    shape = tuple(map(len, coordinates.values()))
    flat = np.ravel_multi_index(places, shape) if len(table) else np.zeros(0, dtype=np.int64)
    if len(np.unique(flat)) < len(table):
        raise DomainError(
            f"Table.to_xarray: several rows have the same {', '.join(dims)}; add a column that tells them apart, "
            "such as 'replicate'"
        )
    variables = {
        name: (tuple(dims), _spread(column, flat, shape)) for name, column in table.columns.items() if name not in dims
    }
    return xarray.Dataset(variables, coords=coordinates, attrs={"caption": table.caption} if table.caption else {})


def _spread(column: np.ndarray, flat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A column on a grid; what has no row is missing."""
    missing: Any = "" if column.dtype.kind == "U" else math.nan
    dtype: Any = column.dtype
    if len(column) < math.prod(shape) and column.dtype.kind in "bi":
        exact = column.dtype.kind == "b" or not len(column) or int(np.abs(column).max()) <= _EXACT
        dtype = np.float64 if exact else object
    grid = np.empty(shape, dtype=dtype)
    if len(column) < math.prod(shape):
        grid.fill(missing)
    grid.reshape(-1)[flat] = column
    return grid
