"""Tables: what studies and summaries come as, with the ways out of this library."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import validation
from ..errors import DomainError, ShapeError
from . import _columns, _export, _text

if TYPE_CHECKING:
    import pandas
    import xarray

_SHOWN = 60  # rows of a printed table
_WIDTH = 48  # characters of a printed cell
Value = int | float | str | bool


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """Named columns of one length: numbers (float64 or int64), truth values and text.

    Immutable: the columns are copied in and are read-only. Two tables are equal where names, their order, types,
    entries (NaN equals NaN) and captions are.

    Args:
        columns: Their values by name, each a sequence, array or tensor of one dimension. A column holds numbers, or
            truth values, or text; of numbers, one float makes all of them floats.
        caption: What the table is about.

    Raises:
        DomainError: A name is no text, or a column mixes kinds or holds something else.
        ShapeError: A column has not one dimension, or the lengths differ.

    Example:
        >>> t = Table({"n": [100, 100, 1000], "loss": [0.31, 0.29, 0.1]})
        >>> t.where(n=100)["loss"].mean()
        np.float64(0.3)
        >>> t
           n  loss
         100  0.31
         100  0.29
        1000   0.1
    """

    columns: Mapping[str, Any]
    caption: str = ""

    __hash__ = None  # type: ignore[assignment]
    __iter__ = None  # of rows or of names? `rows()` and `names` say which

    def __post_init__(self) -> None:
        if not isinstance(self.columns, Mapping):
            raise DomainError(
                f"Table: columns must be a mapping from name to values, got a {_columns.kind(self.columns)}"
            )
        columns = {}
        for name, values in self.columns.items():
            if not isinstance(name, str) or not name:
                raise DomainError(f"Table: names of columns must be text, got {name!r}")
            columns[name] = _columns.column(name, values)
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ShapeError(f"Table: all columns must have one length, got {lengths}")
        if not isinstance(self.caption, str):
            raise DomainError(f"Table: caption must be text, got a {_columns.kind(self.caption)}")
        object.__setattr__(self, "columns", MappingProxyType(columns))

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Value]], caption: str = "") -> Table:
        """A table of rows, which must all have the names of the first, in any order.

        Args:
            rows: At least one.
            caption: What the table is about.

        Returns:
            The table, its columns in the order of the first row.

        Raises:
            DomainError: There is no row, or the names of one differ.

        Example:
            >>> Table.from_rows([{"n": 10, "loss": 0.5}, {"n": 20, "loss": 0.25}]).names
            ('n', 'loss')
        """
        rows = list(rows)
        if not rows:
            raise DomainError("Table.from_rows: needs one row at least; Table({name: []}) makes an empty table")
        names = list(rows[0])
        for i, row in enumerate(rows):
            if set(row) != set(names):
                raise DomainError(f"Table.from_rows: row {i} must have the names {names}, got {list(row)}")
        return cls({name: [row[name] for row in rows] for name in names}, caption)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> np.ndarray:
        if not isinstance(name, str) or name not in self.columns:
            raise DomainError(f"Table: there is no column {name!r}; there are {', '.join(map(repr, self.names))}")
        column: np.ndarray = self.columns[name]
        return column

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Table):
            return NotImplemented
        return (
            (self.names, self.caption, len(self)) == (other.names, other.caption, len(other))
            and all(mine.dtype.kind == other[name].dtype.kind for name, mine in self.columns.items())
            and all(
                np.array_equal(mine, other[name], equal_nan=mine.dtype.kind == "f")
                for name, mine in self.columns.items()
            )
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, (dict(self.columns), self.caption)  # views of dictionaries have no copies

    def take(self, which: Any) -> Table:
        """Some rows.

        Args:
            which: A truth value a row, or the numbers of the rows wanted.

        Returns:
            A table of them, in the order asked for.

        Raises:
            DomainError: `which` is neither.
            ShapeError: There is not one truth value a row, or no row of such a number.

        Example:
            >>> t = Table({"n": [10, 20, 30]})
            >>> t.take(t["n"] > 10).take([1, 0])["n"].tolist()
            [30, 20]
        """
        chosen = np.asarray(which)
        if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "bi"):
            raise DomainError("Table.take: needs a truth value a row, or numbers of rows")
        if chosen.dtype.kind == "b":
            if len(chosen) != len(self):
                raise ShapeError(f"Table.take: needs {len(self)} truth values, one a row, got {len(chosen)}")
        elif chosen.size and not -len(self) <= int(chosen.min()) <= int(chosen.max()) < len(self):
            raise ShapeError(f"Table.take: rows are numbered from 0 to {len(self) - 1}, got {int(chosen.max())}")
        chosen = chosen if chosen.size else chosen.astype(bool if chosen.dtype.kind == "b" else np.int64)
        return Table({name: column[chosen] for name, column in self.columns.items()}, self.caption)

    def where(self, conditions: Mapping[str, Value] | None = None, /, **more: Value) -> Table:
        """The rows in which columns have the values given, exactly (NaN is found by NaN).

        Args:
            conditions: Values by name, for names that are no words of Python.
            **more: Values by name.

        Returns:
            A table of those rows; empty if there are none.

        Raises:
            DomainError: There is no such column, or its entries are of another kind than the value.

        Example:
            >>> t = Table({"n": [10, 10, 20], "k": [1, 2, 2]})
            >>> len(t.where(n=10, k=2))
            1
        """
        found = np.ones(len(self), dtype=bool)
        for name, value in {**(conditions or {}), **more}.items():
            column, value = self[name], value.item() if isinstance(value, np.generic) else value
            fits = {"f": (float, int), "i": (float, int), "b": (bool,), "U": (str,)}[column.dtype.kind]
            if not isinstance(value, fits) or (isinstance(value, bool) and column.dtype.kind != "b"):
                raise DomainError(f"Table.where: {name} holds {_columns.words(column)}, so it cannot be {value!r}")
            isnan = isinstance(value, float) and math.isnan(value)
            found &= np.isnan(column) if isnan else column == value
        return self.take(found)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows one by one, as dictionaries of Python's numbers, truth values and text."""
        columns = [column.tolist() for column in self.columns.values()]
        for entries in zip(*columns, strict=True):
            yield dict(zip(self.names, entries, strict=True))

    def groups(self, names: Sequence[str]) -> Iterator[tuple[dict[str, Any], Table]]:
        """The table in parts of equal values of some columns, in the order in which they first appear.

        Args:
            names: The columns; none: one part, the whole table.

        Yields:
            The values by name, and the table of their rows.

        Raises:
            DomainError: There is no such column.

        Example:
            >>> t = Table({"n": [10, 20, 10], "loss": [1.0, 2.0, 3.0]})
            >>> [(cell, part["loss"].tolist()) for cell, part in t.groups(["n"])]
            [({'n': 10}, [1.0, 3.0]), ({'n': 20}, [2.0])]
        """
        if not names:
            yield {}, self
            return
        # NaN is no key of dictionaries: it differs from itself.
        keys = [[None if v != v else v for v in self[name].tolist()] for name in names]
        members: dict[tuple[Any, ...], list[int]] = {}
        for i, key in enumerate(zip(*keys, strict=True)):
            members.setdefault(key, []).append(i)
        for key, found in members.items():
            cell = {name: math.nan if v is None else v for name, v in zip(names, key, strict=True)}
            yield cell, self.take(found)

    def digest(self, exclude: Sequence[str] = ("seconds",)) -> str:
        """SHA-256 of names, types and entries in their order; two tables have the same if they are bit-identical.

        All NaN count as one. The byte order of the machine and the caption do not matter.

        Args:
            exclude: Columns left out, where there are such; by default the time that rows took.

        Returns:
            64 hexadecimal digits.

        Example:
            >>> a = Table({"loss": [0.1, 0.2], "seconds": [1.0, 2.0]})
            >>> a.digest() == Table({"loss": [0.1, 0.2], "seconds": [3.0, 4.0]}).digest()
            True
        """
        left_out = (exclude,) if isinstance(exclude, str) else tuple(exclude)
        total = hashlib.sha256(b"probnn table 1\n")
        for name, column in self.columns.items():
            if name in left_out:
                continue
            kind = column.dtype.kind
            for part in (name.encode(), kind.encode(), str(len(column)).encode()):
                total.update(len(part).to_bytes(8, "little") + part)
            if kind == "U":
                for text in column.tolist():
                    part = text.encode("utf-8", "surrogatepass")
                    total.update(len(part).to_bytes(8, "little") + part)
            elif kind == "f":
                # Machines differ in the sign and payload of the NaN they make.
                total.update(np.where(np.isnan(column), np.nan, column).astype("<f8").tobytes())
            else:
                total.update(column.astype({"i": "<i8", "b": "u1"}[kind]).tobytes())
        return total.hexdigest()

    def __repr__(self) -> str:
        names, right = self.names, self._right()
        body = _text.plain(names, self._cells(3, _SHOWN, _WIDTH), right) if names else "(no columns)"
        more = [f"... {len(self) - _SHOWN} more rows ({len(self)} in all)"] if len(self) > _SHOWN else []
        empty = ["(no rows)"] if names and not len(self) else []
        return "\n".join([*([self.caption] if self.caption else []), body, *empty, *more])

    def _repr_html_(self) -> str:
        more = f"<p>... {len(self) - _SHOWN} more rows</p>" if len(self) > _SHOWN else ""
        return _text.as_html(self.names, self._cells(3, _SHOWN, _WIDTH), self._right(), self.caption) + more

    def to_markdown(self, digits: int = 3) -> str:
        """All rows as a table of Markdown, the caption in front.

        Args:
            digits: Significant digits of floats.

        Returns:
            The text.

        Raises:
            DomainError: `digits` is no positive integer.

        Example:
            >>> print(Table({"n": [10], "loss": [0.12345]}).to_markdown(), end="")
            | n | loss |
            | ---: | ---: |
            | 10 | 0.123 |
        """
        digits = validation.positive_int("Table.to_markdown", "digits", digits)
        return _text.markdown(self.names, self._cells(digits), self._right(), self.caption)

    def to_latex(self, digits: int = 3) -> str:
        r"""All rows as a ``tabular`` of LaTeX with the rules of the package booktabs; with a caption, as a ``table``.

        Args:
            digits: Significant digits of floats.

        Returns:
            The text, special characters escaped.

        Raises:
            DomainError: `digits` is no positive integer.

        Example:
            >>> print(Table({"n": [10], "rate": [-0.5]}).to_latex(), end="")
            \begin{tabular}{rr}
            \toprule
            n & rate \\
            \midrule
            10 & $-0.5$ \\
            \bottomrule
            \end{tabular}
        """
        digits = validation.positive_int("Table.to_latex", "digits", digits)
        return _text.latex(self.names, self._cells(digits), self._right(), self.caption)

    def to_csv(self, path: str | os.PathLike[str], *, decimal: str = ".") -> None:
        """Write all rows as CSV (UTF-8), in full precision, all of them or nothing.

        Args:
            path: The file.
            decimal: The decimal mark: ``"."`` with commas between columns, or ``","`` with semicolons.

        Raises:
            DomainError: The decimal mark is neither.
        """
        validation.choice("Table.to_csv", "decimal", decimal, (".", ","))
        _export.to_csv(self, path, decimal)

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write all rows as a Parquet file, all of them or nothing.

        Args:
            path: The file.

        Raises:
            UnsupportedError: pyarrow is not installed.
        """
        _export.to_parquet(self, path)

    def to_pandas(self) -> pandas.DataFrame:
        """The table as a pandas.DataFrame.

        Raises:
            UnsupportedError: pandas is not installed.
        """
        return _export.to_pandas(self)

    def to_xarray(self, dims: Sequence[str]) -> xarray.Dataset:
        """The table as an xarray.Dataset over the values of some columns.

        Where a combination of them has no row, numbers are NaN and text is empty. Integers and truth values become
        floats then, or Python objects where floats would round them (seeds).

        Args:
            dims: The columns that become dimensions, such as the axes and ``"replicate"``. Numbers are sorted,
                words stay in the order in which they first appear.

        Returns:
            The data set; every other column is a variable.

        Raises:
            DomainError: There is no such column, or two rows share their values of `dims`.
            UnsupportedError: xarray is not installed.
        """
        return _export.to_xarray(self, dims)

    def _right(self) -> list[bool]:
        return [
            column.dtype.kind in "fi" or (column.dtype.kind == "U" and _text.are_numbers(column.tolist()))
            for column in self.columns.values()
        ]

    def _cells(self, digits: int, rows: int | None = None, width: int | None = None) -> list[list[str]]:
        columns = [[_text.number(v, digits) for v in c[:rows].tolist()] for c in self.columns.values()]
        if width is not None:
            columns = [[_text.one_line(v, width) for v in column] for column in columns]
        return [list(row) for row in zip(*columns, strict=True)]
