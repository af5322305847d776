"""Summaries of simulation studies: measures by cell, failures by cell, replicates that are needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .. import validation
from ..errors import DomainError
from . import _text
from .measures import Mean, Measure, Median
from .table import Table

STATUSES = ("complete", "failed", "timeout", "killed")
_BOOKKEEPING = ("replicate", "seed", "status", "seconds", "warnings", "error")
_COUNTS = ("num_rows", "num_failed", "num_nonfinite", "num_replicates")
_SUMMARY = ("measure", "value", "mcse", *_COUNTS)


def summarise(
    table: Table,
    measures: Iterable[Measure] | None = None,
    axes: Sequence[str] | None = None,
    cells: Sequence[Mapping[str, Any]] | None = None,
) -> Table:
    """Performance measures of every cell, with Monte Carlo standard errors.

    Rows that are not complete have no outputs: they are counted in `num_failed`. Among the others, rows in which a
    column that the measure needs is NaN are left out of it, since nothing is known of them, and infinite values are
    used as they are: a mean over infinity is infinite, a median may be finite. Both kinds are counted in
    `num_nonfinite`. Every replicate is accounted for: rows used, failed and NaN add up to `num_replicates`.
    A measure with rows left out is one of the replicates that succeeded, which are no random part of all. The rows
    of a cell are taken to be independent: those of paired cells, which share seeds, do not belong into one.

    Args:
        table: A row a replicate: axes, outputs, and `status` where rows can fail (without it, all are complete).
        measures: What to compute; None: mean and median of every output. Outputs are then the columns of numbers
            other than the axes, `replicate`, `seed`, `status`, `seconds`, `warnings` and `error`.
        axes: The columns whose values make a cell, possibly none; None: the columns in front of ``"replicate"``.
        cells: The cells there should be, in this order: those without rows are lines of no replicates. None: those
            that have rows.

    Returns:
        A table of one row a cell and measure, cells in the order in which they first appear: the axes; `measure`,
        its label; `value`; `mcse`, NaN where undefined; `num_rows`, rows used; `num_failed`; `num_nonfinite`;
        `num_replicates`, all rows of the cell.

    Raises:
        DomainError: There is no such column, a needed column holds text, an axis has the name of a column of
            summaries, or two measures have one label.

    Example:
        >>> t = Table({"n": [10, 10, 20, 20], "loss": [0.5, 0.7, 0.2, 0.4]})
        >>> summarise(t, [Mean("loss")], axes=["n"])
         n    measure  value  mcse  num_rows  num_failed  num_nonfinite  num_replicates
        10  mean loss    0.6   0.1         2           0              0               2
        20  mean loss    0.3   0.1         2           0              0               2
    """
    where = "summarise"
    names = _axes(where, table, axes, _SUMMARY)
    chosen = _measures(where, table, measures, names)
    for measure in chosen:
        for given in measure.inputs:
            if isinstance(given, str) and table[given].dtype.kind == "U":
                raise DomainError(f"{where}: {measure.label} needs numbers, but column {given!r} holds text")
    rows = []
    for cell, part in _parts(table, names, cells):
        complete = part.take(_is_complete(where, part))
        for measure in chosen:
            columns = [
                complete[x].astype(np.float64) if isinstance(x, str) else np.full(len(complete), float(x))
                for x in measure.inputs
            ]
            known, finite = np.ones(len(complete), dtype=bool), np.ones(len(complete), dtype=bool)
            for column in columns:
                known &= ~np.isnan(column)
                finite &= np.isfinite(column)
            value, error = measure.compute(*(column[known] for column in columns))
            counts = (int(known.sum()), len(part) - len(complete), int((~finite).sum()), len(part))
            rows.append((*cell.values(), measure.label, value, error, *counts))
    return _table(table, names, _SUMMARY, rows, "U", "f", "f", "i", "i", "i", "i")


def failures(
    table: Table, axes: Sequence[str] | None = None, cells: Sequence[Mapping[str, Any]] | None = None
) -> Table:
    """What became of the replicates of every cell.

    Args:
        table: A row a replicate, with `status` (without it, all are complete) and `error` where there are errors.
        axes: The columns whose values make a cell; None: the columns in front of ``"replicate"``.
        cells: As of :func:`summarise`.

    Returns:
        A table of one row a cell: the axes; `num_replicates`; their number by status, `num_complete`, `num_failed`,
        `num_timeout` and `num_killed`; `num_nonfinite`, complete rows with an output that is NaN or infinite; and
        `first_error`, the error text of the first row that is not complete and has one.

    Raises:
        DomainError: There is no such column, an axis has the name of one of this table, or a status is unknown.

    Example:
        >>> t = Table({"n": [10, 10], "status": ["complete", "failed"], "loss": [0.5, float("nan")],
        ...            "error": ["", "ValueError: n"]})
        >>> failures(t, axes=["n"]).take([0])["first_error"].item()
        'ValueError: n'
    """
    where = "failures"
    of_status = tuple(f"num_{status}" for status in STATUSES)
    columns = ("num_replicates", *of_status, "num_nonfinite", "first_error")
    names = _axes(where, table, axes, columns)
    outputs = [name for name in _outputs(table, names) if table[name].dtype.kind == "f"]
    rows = []
    for cell, part in _parts(table, names, cells):
        complete = _is_complete(where, part)
        status = part["status"] if "status" in part else np.full(len(part), "complete")
        nonfinite = np.zeros(len(part), dtype=bool)
        for name in outputs:
            nonfinite |= complete & ~np.isfinite(part[name])
        errors = part["error"][~complete].tolist() if "error" in part else []
        counts = [int((status == one).sum()) for one in STATUSES]
        rows.append((*cell.values(), len(part), *counts, int(nonfinite.sum()), next(filter(None, errors), "")))
    return _table(table, names, columns, rows, *"iiiiiiU")


def _parts(
    table: Table, names: tuple[str, ...], cells: Sequence[Mapping[str, Any]] | None
) -> Iterator[tuple[Mapping[str, Any], Table]]:
    """Cells and their rows."""
    if cells is None:
        yield from table.groups(names)
        return
    there = {tuple(cell.values()): part for cell, part in table.groups(names)}
    for cell in cells:
        wanted = {name: cell[name] for name in names}
        yield wanted, there.get(tuple(wanted.values()), table.take([]))


def replicates_needed(summary: Table, mcse: float | Mapping[str, float]) -> Table:
    r"""How many replicates bring Monte Carlo standard errors down to wanted ones.

    Standard errors fall with the square root of the number n of replicates:
    :math:`\lceil n\, (\mathrm{mcse} / \mathrm{wanted})^2 \rceil` are needed, 2 at least, taking it that as large a
    share of the new ones fails. Few replicates say little on their own standard error: ask again when the new ones
    are there. Where all replicates gave the same, such as a rate of 0 or 1, the standard error of 0 is no estimate,
    and no number is told.

    Args:
        summary: What :func:`summarise` gave.
        mcse: The standard error wanted, for all measures or by label; measures without one are left out.

    Returns:
        A table of one row a cell and measure: axes, `measure`, `mcse`, `wanted`, `num_replicates` there are, and
        `num_needed` (a float: NaN where the standard error is unknown). Its caption says in a sentence how
        many replicates the worst cell needs.

    Raises:
        DomainError: `summary` is no summary, a standard error wanted is not positive, or there is no such measure.

    Example:
        >>> t = Table({"n": [10, 10, 20, 20], "loss": [0.5, 0.7, 0.2, 0.4]})
        >>> print(replicates_needed(summarise(t, [Mean("loss")], axes=["n"]), 0.01).caption)
        To bring the standard error of the mean loss at n = 10 from 0.1 to 0.01, 200 replicates a cell are needed;
        there are 2.
    """
    where = "replicates_needed"
    names = summary_axes(where, summary)
    labels = list(dict.fromkeys(summary["measure"].tolist()))
    wanted = dict(mcse) if isinstance(mcse, Mapping) else dict.fromkeys(labels, mcse)
    for label, value in wanted.items():
        validation.choice(where, "measure", label, tuple(labels))
        validation.positive(where, "mcse", value)
    kept = summary.take(np.array([label in wanted for label in summary["measure"].tolist()], dtype=bool))
    goals = [float(wanted[label]) for label in kept["measure"].tolist()]
    needed = [_needed(n, have, want) for n, have, want in zip(kept["num_replicates"], kept["mcse"], goals, strict=True)]
    columns: dict[str, Any] = {name: kept[name] for name in (*names, "measure", "mcse")}
    columns |= {"wanted": goals, "num_replicates": kept["num_replicates"], "num_needed": needed}
    result = Table(columns)
    return Table(result.columns, _sentence(result, names))


def pivot(summary: Table, columns: str = "measure") -> Table:
    """A summary in the wide layout of publications: cells down, measures across, ``value (mcse)`` in each.

    Values have the digits that their errors allow: both are rounded to the second significant digit of the MCSE.

    Args:
        summary: What :func:`summarise` gave.
        columns: What goes across: ``"measure"``, or an axis such as the estimator; the rest goes down.

    Returns:
        A table of text for :meth:`Table.to_markdown` and :meth:`Table.to_latex`. A dash stands for an MCSE that is
        not defined, an empty entry for a cell that is not there. The caption counts what is not complete or finite.

    Raises:
        DomainError: `summary` is no summary, there is no such axis, or two columns would have one name.

    Example:
        >>> t = Table({"n": [10, 10, 20, 20], "loss": [0.5, 0.7, 0.24, 0.4]})
        >>> pivot(summarise(t, axes=["n"]))
        Value (Monte Carlo standard error).
         n      mean loss    median loss
        10    0.60 (0.10)    0.60 (0.10)
        20  0.320 (0.080)  0.320 (0.080)
    """
    where = "pivot"
    names = [*summary_axes(where, summary), "measure"]
    validation.choice(where, "columns", columns, tuple(names))
    down = [name for name in names if name != columns]
    if columns != "measure" and len(set(summary["measure"].tolist())) == 1:
        down.remove("measure")  # said in the caption
    across = list(dict.fromkeys(summary[columns].tolist()))
    heads = [v if columns == "measure" else f"{columns} = {_text.number(v, 6)}" for v in across]
    if len({*heads, *down}) < len(heads) + len(down):
        raise DomainError(f"{where}: columns would have the same names: {', '.join([*down, *heads])}")
    cells, rows = [], []
    for cell, part in summary.groups(down):
        entries = dict.fromkeys(heads, "")
        for head, row in zip((heads[across.index(v)] for v in part[columns].tolist()), part.rows(), strict=True):
            entries[head] = _text.with_error(row["value"], row["mcse"])
        cells.append(cell)
        rows.append(entries)
    wide: dict[str, Any] = {name: [cell[name] for cell in cells] for name in down}
    wide |= {head: [row[head] for row in rows] for head in heads}
    of = "" if "measure" in (*down, columns) else f" of the {summary['measure'][0]}"
    return Table(wide, f"Value (Monte Carlo standard error){of}.{_note(summary, names[:-1])}")


def summary_axes(where: str, summary: Table) -> tuple[str, ...]:
    """The axes of a summary.

    Args:
        where: What the error message begins with.
        summary: The table.

    Returns:
        Names of the columns in front of ``"measure"``.

    Raises:
        DomainError: The table lacks a column of summaries.

    Example:
        >>> summary_axes("plot", summarise(Table({"n": [1, 1], "x": [0.0, 1.0]}), axes=["n"]))
        ('n',)
    """
    missing = [name for name in _SUMMARY if not isinstance(summary, Table) or name not in summary]
    if missing:
        raise DomainError(f"{where}: needs a summary as summarise() gives it; there is no column {missing[0]!r}")
    return summary.names[: summary.names.index("measure")]


def cell_words(cell: Mapping[str, Any]) -> str:
    """A cell in words such as ``n = 1000, k = 3``; empty without axes."""
    return ", ".join(f"{name} = {_text.number(value, 6)}" for name, value in cell.items())


def _axes(where: str, table: Table, axes: Sequence[str] | None, taken: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(table, Table):
        raise DomainError(f"{where}: needs a Table, got a {type(table).__name__}")
    if axes is None:
        if "replicate" not in table:
            raise DomainError(f"{where}: the table has no column 'replicate' behind its axes; name them with axes=")
        return _axes(where, table, table.names[: table.names.index("replicate")], taken)
    names = tuple(axes)
    if isinstance(axes, str) or len(set(names)) < len(names):
        raise DomainError(f"{where}: axes must be different names of columns such as ('n', 'k'), got {axes!r}")
    for name in names:
        if name in taken:
            raise DomainError(f"{where}: an axis cannot be called {name!r}, which is a column of the result; rename it")
        table[name]  # raises where there is no such column
    return names


def _outputs(table: Table, axes: Sequence[str]) -> list[str]:
    return [n for n in table.names if n not in (*axes, *_BOOKKEEPING) and table[n].dtype.kind != "U"]


def _measures(where: str, table: Table, measures: Any, axes: Sequence[str]) -> tuple[Measure, ...]:
    if measures is None:
        # In front of "replicate" stand axes, whether they make cells here or not.
        first = table.names.index("replicate") if "replicate" in table else 0
        outputs = _outputs(table, (*axes, *table.names[:first]))
        measures = [measure(name) for name in outputs for measure in (Mean, Median)]
    chosen = (measures,) if isinstance(measures, Measure) else tuple(measures)
    if not chosen:
        raise DomainError(f"{where}: there is no measure, or no output to take the mean of")
    for measure in chosen:
        if not isinstance(measure, Measure):
            raise DomainError(f"{where}: measures must be such as Mean('loss'), got {measure!r}")
    labels = [measure.label for measure in chosen]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise DomainError(f"{where}: two measures are called {twice[0]!r}; give one of them another name=")
    return chosen


def _is_complete(where: str, part: Table) -> np.ndarray:
    if "status" not in part:
        return np.ones(len(part), dtype=bool)
    unknown = sorted(set(part["status"].tolist()) - set(STATUSES))
    if unknown:
        raise DomainError(f"{where}: status must be one of {', '.join(STATUSES)}, got {unknown[0]!r}")
    return np.asarray(part["status"] == "complete")


def _table(source: Table, axes: Sequence[str], names: Sequence[str], rows: list[tuple[Any, ...]], *kinds: str) -> Table:
    """A table of rows whose columns keep their types even where there are no rows."""
    types: list[Any] = [
        *(source[name].dtype for name in axes),
        *({"U": np.str_, "f": np.float64, "i": np.int64}[k] for k in kinds),
    ]
    columns: Iterable[Any] = zip(*rows, strict=True) if rows else [()] * len(types)
    pairs = zip((*axes, *names), columns, types, strict=True)
    return Table({name: np.array(column, dtype=dtype) for name, column, dtype in pairs})


def _needed(n: int, have: float, want: float) -> float:
    if not math.isfinite(have) or have == 0:
        return math.nan
    # A ratio that is a whole number up to rounding needs no replicate more.
    return float(max(2, math.ceil(round(int(n) * (have / want) ** 2, 6))))


def _sentence(needed: Table, axes: Sequence[str]) -> str:
    counts = needed["num_needed"]
    unknown = int(np.isnan(counts).sum())
    note = f" The standard error is unknown in {unknown} of {len(needed)} lines." if unknown else ""
    if unknown == len(needed):
        return f"No standard error is known, so no number of replicates can be told.{note if len(needed) else ''}"
    worst = next(needed.take([int(np.nanargmax(counts - needed["num_replicates"]))]).rows())
    here = cell_words({name: worst[name] for name in axes})
    of = f"the standard error of the {worst['measure']}{' at ' if here else ''}{here}"
    have, want = _text.number(worst["mcse"], 2), _text.number(worst["wanted"], 2)
    count, there = int(worst["num_needed"]), worst["num_replicates"]
    if count <= there:
        return f"There are enough replicates: {of}, where most are needed, is {have}, and {want} is wanted.{note}"
    return f"To bring {of} from {have} to {want}, {count:,} replicates a cell are needed; there are {there:,}.{note}"


def _note(summary: Table, axes: Sequence[str]) -> str:
    """How many replicates are not complete or not finite, in words; each counts once, whatever the measures."""
    total = failed = nonfinite = 0
    for _, part in summary.groups(axes):
        total += int(part["num_replicates"].max())
        failed += int(part["num_failed"].max())
        nonfinite += int(part["num_nonfinite"].max())
    said = [f"{failed:,} of {total:,} replicates are not complete"] if failed else []
    said += [f"in {nonfinite:,} of {total:,} a measure met NaN or infinity"] if nonfinite else []
    return f" Of note: {' and '.join(said)}." if said else ""
