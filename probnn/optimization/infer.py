"""A space to begin with, read off a table of experiments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Any

from ..errors import DomainError
from .choices import Categorical, Fixed
from .parameters import MAX_WHOLE, Integer, Parameter, Real, exact
from .rows import COLUMNS, NOT_MEASURABLE, WORDS
from .space import Space
from .spacefile import write_space
from .table import Table, plain_number

MAX_LEVELS = 50  # a grid with more steps is as good as none
MAX_GAPS = 5  # so many levels for each value seen, at most
MAX_CHOICES = 20  # words; more are names or notes
LOG_RATIO = 100  # largest over smallest value of a parameter that may be on a log scale
MIN_COUNTED = 5  # rows from which 1, 2, 3, ... is taken for a count of the rows


@dataclass(frozen=True)
class Inferred:
    """What a table says about the space of its experiments.

    Args:
        space: The parameters, from the values there are.
        targets: Columns taken as results.
        guessed: Whether the targets were guessed, for want of a name or an unfinished cell.
        comments: What a person should look at, by parameter.
        left_out: Why a column is neither parameter nor target, by column.
    """

    space: Space
    targets: tuple[str, ...]
    guessed: bool
    comments: dict[str, str]
    left_out: dict[str, str]

    def toml(self, name: str) -> str:
        """The text of a space file with comments, which :func:`probnn.optimization.spacefile.read_space` reads.

        Args:
            name: What the comments call the table.
        """
        lines = [f"The space of {name}: one table a parameter, made from the values in it.", ""]
        lines += [
            "Change low, high and choices to what can be set: suggestions keep within them, and old rows",
            "outside still teach the model. Types: real and integer (with log and step), categorical (with",
            "ordered), fixed. Delete the table of a column that is not a setting.",
            "",
            f"Results, not settings: {', '.join(self.targets)}"
            + (" (guessed; if that is wrong, name them: probnn init --target NAME)" if self.guessed else ""),
        ]
        lines += [f"Left out: {column} ({why})" for column, why in self.left_out.items()]
        rules = (
            'Rules that every suggestion keeps, such as "a + b <= 10", "a + b + c = 1", "at most 2 of a, b, c" or\n'
            '"same in batch: a".'
        )
        return write_space(self.space, comments={"": "\n".join(lines), "constraints": rules, **self.comments})


def infer_space(table: Table, targets: Sequence[str] = ()) -> Inferred:
    """Guess the parameters of experiments from their table.

    Numbers become reals or integers from the smallest to the largest value, with a step where all of at least three
    values lie on a coarse grid (at most 50 levels, five a value) and on the logarithm where they are positive, span
    two decades or more and spread more evenly there. Words become categories, up to 20 of them; what never changes
    is fixed. A count of the rows, columns of a history and columns of notes are left out.

    Args:
        table: The table, with at least one row.
        targets: Columns with results. None: columns with an unfinished cell (empty, ``failed``, ``n.a.``) beside
            numbers; where there are none, those where all failed; else the last column of numbers.

    Raises:
        DomainError: A target is no column, there is no row, no column that can be a target or none that varies, or
            a cell among numbers is none; the message names row and column.

    Example:
        >>> import pathlib, tempfile
        >>> from probnn.optimization.table import read_table
        >>> file = pathlib.Path(tempfile.mkdtemp(), "runs.csv")
        >>> _ = file.write_text("temp,acid,yield\\n20,HCl,0.31\\n40,HCl,0.52\\n60,AcOH,\\n")
        >>> found = infer_space(read_table(file))
        >>> found.targets, found.space.parameters["temp"]
        (('yield',), Integer(20, 60, step=20))
    """
    if not table.rows:
        raise DomainError(f"{table.name}: there is a header and no row; add an experiment, or write the space by hand")
    for target in targets:
        if target not in table.header:
            raise DomainError(
                f"{table.name}, row 1: there is no column {target!r}; there are {', '.join(table.header)}"
            )
    if len(set(targets)) < len(targets):
        raise DomainError(f"{table.name}: a target is named twice: {', '.join(targets)}")
    own = {*COLUMNS, *(f"{c}_sem" for c in table.header)}
    columns = [c for c in table.header if c not in own and c not in targets]
    names, guessed = tuple(targets), False
    if not names:
        names = tuple(c for c in columns if _is_unfinished(table, c))
    if not names:
        names = tuple(c for c in columns if _has_all_failed(table, c))
    if not names:
        able = [c for c in columns if all(_number(table, c, cell) is not None for cell in _cells(table, c))]
        able = [c for c in able if len(set(_cells(table, c))) > 1 and not _counts(table, c)]
        if not able:
            for c in columns:
                _check_decimal(table, c)
            raise DomainError(f"{table.name}: no column of numbers could be a result; name one by --target")
        names, guessed = (able[-1],), True
    parameters: dict[str, Any] = {}
    comments: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for column in (c for c in columns if c not in names):
        found, words = _parameter(table, column)
        if found is None:
            left_out[column] = words
            continue
        parameters[column] = found
        if words:
            comments[column] = words
    if not any(not isinstance(p, Fixed) for p in parameters.values()):
        raise DomainError(f"{table.name}: no column but the results varies, so there is nothing to search")
    return Inferred(Space(**parameters), names, guessed, comments, left_out)


def _cells(table: Table, column: str) -> list[str]:
    return [row[column].strip() for row in table.rows]


def _number(table: Table, column: str, cell: str) -> str | None:
    plain = plain_number(cell, table.decimal)
    return None if plain is None or math.isinf(float(plain)) else plain


def _is_unfinished(table: Table, column: str) -> bool:
    """Whether a column holds numbers and cells that say why there is none yet."""
    cells = _cells(table, column)
    numbers = [cell for cell in cells if _number(table, column, cell) is not None]
    rest = [cell.lower() for cell in cells if _number(table, column, cell) is None]
    return bool(numbers and rest) and all(c == "" or c in WORDS or c in NOT_MEASURABLE for c in rest)


def _has_all_failed(table: Table, column: str) -> bool:
    """Whether a column holds nothing but words for experiments that did not work or will not be done."""
    return all(WORDS.get(cell.lower()) in ("failed", "abandoned") for cell in _cells(table, column))


def _check_decimal(table: Table, column: str) -> None:
    """Refuse numbers with the other decimal sign in a column of words."""
    for row, cell in zip(table.numbers, _cells(table, column), strict=True):
        if hint := table.hint(cell):
            raise DomainError(f"{table.at(row, column)}: expected a number, got {cell!r}{hint}")


def _counts(table: Table, column: str) -> bool:
    """Whether a column counts the rows."""
    cells = _cells(table, column)
    if len(cells) < MIN_COUNTED or not all(cell.isascii() and cell.isdigit() for cell in cells):
        return False
    return all(int(b) == int(a) + 1 for a, b in zip(cells, cells[1:], strict=False))


def _parameter(table: Table, column: str) -> tuple[Parameter | None, str]:
    """The parameter of a column with what to look at, or None with the reason."""
    cells = _cells(table, column)
    plain = [_number(table, column, cell) for cell in cells]
    numbers = [p for p in plain if p is not None]
    wrong = [i for i, cell in enumerate(cells) if cell and plain[i] is None]
    if wrong and 2 * len(numbers) >= len(cells):
        row, cell = table.numbers[wrong[0]], cells[wrong[0]]
        raise DomainError(
            f"{table.at(row, column)}: expected a number, as in other rows, got {cell!r}{table.hint(cell)}"
        )
    if "" in cells:
        return None, f"row {table.numbers[cells.index('')]} has no value; fill the cells in to make it a setting"
    if _counts(table, column):
        return None, "counts the rows"
    if wrong:
        _check_decimal(table, column)
        return _of_words(cells)
    try:
        return _of_numbers(numbers)
    except DomainError as error:
        words = str(error).partition(": ")[2]
        raise DomainError(f"{table.name}, column {column!r}: {words}; leave the column out, or scale it") from None


def _of_words(cells: list[str]) -> tuple[Parameter | None, str]:
    words = list(dict.fromkeys(cells))
    if len(words) == 1:
        return Fixed(words[0]), "The same in every row. To vary it, make it categorical with choices."
    if {w.casefold() for w in words} == {"true", "false"}:
        return Categorical([False, True]), ""
    if len(words) > MAX_CHOICES or (len(words) > 3 and len(words) == len(cells)):
        return None, f"{len(words)} different texts in {len(cells)} rows: names or notes"
    return Categorical(sorted(words)), "In order, from little to much? Sort the choices and add: ordered = true"


def _of_numbers(texts: list[str]) -> tuple[Parameter | None, str]:
    values = sorted({exact(float(text)) for text in texts})
    whole = all(v.denominator == 1 and abs(v) <= MAX_WHOLE for v in values)
    low, high = values[0], values[-1]
    if len(values) == 1:
        return Fixed(int(low) if whole else float(low)), "The same in every row. To vary it, give it low and high."
    log = _is_log(values)
    step = None if log else _step(values)
    told = []
    if log:
        told.append("Spans two decades or more, so on the logarithm: log = false if that is wrong.")
    if step is not None and (not whole or step > 1):
        told.append(f"All values seen lie on steps of {float(step):g}; delete step to allow any between.")
    if len(values) == 2:
        told.append("Only two values seen; add a step if nothing else can be set between.")
    if whole:
        told.append('Whole numbers only: type = "real" allows fractions.')
        return Integer(int(low), int(high), log, int(step) if step is not None and step > 1 else None), "\n".join(told)
    return Real(float(low), float(high), log, None if step is None else float(step)), "\n".join(told)


def _is_log(values: list[Fraction]) -> bool:
    """Whether values span two decades and their median lies nearer to the middle on the logarithm."""
    low, high = values[0], values[-1]
    if low <= 0 or high < LOG_RATIO * low:
        return False
    middle = float(values[len(values) // 2] + values[(len(values) - 1) // 2]) / 2
    linear = (middle - float(low)) / float(high - low)
    logarithmic = math.log(middle / float(low)) / math.log(high / low)
    return abs(logarithmic - 0.5) <= abs(linear - 0.5)


def _step(values: list[Fraction]) -> Fraction | None:
    """The coarsest step that reaches all values from the lowest; None where that is no coarse grid."""
    if len(values) < 3:
        return None
    gaps = [b - a for a, b in zip(values, values[1:], strict=False)]
    step = reduce(_common, gaps)
    levels = (values[-1] - values[0]) / step + 1
    return step if levels <= min(MAX_LEVELS, MAX_GAPS * len(values)) else None


def _common(a: Fraction, b: Fraction) -> Fraction:
    """The greatest common divisor of two fractions."""
    common = a.denominator * b.denominator
    return Fraction(math.gcd(int(a * common), int(b * common)), common)
