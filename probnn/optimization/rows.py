"""Trials out of the rows of a person's table, and how they lie to today's space."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import DomainError
from .choices import Categorical, Fixed
from .parameters import Number, Parameter
from .table import Table, plain_number
from .trials import STATUSES, Trial

if TYPE_CHECKING:
    from .space import Space

COLUMNS = ("trial", "status", "source", "started", "finished", "note")
NOT_MEASURABLE = ("n.a.", "n.a", "na", "n/a")
# Lower case; Optuna's words are among them.
WORDS = {
    "pending": "pending", "running": "pending", "waiting": "pending", "complete": "complete", "completed": "complete",
    "failed": "failed", "fail": "failed", "abandoned": "abandoned", "pruned": "abandoned",
}  # fmt: skip


def check_names(where: str, space: Space, targets: Sequence[str]) -> None:
    """Check that targets, parameters and the columns of a history have different names."""
    if isinstance(targets, str) or not targets or not all(isinstance(t, str) and t for t in targets):
        raise DomainError(f"{where}: targets must be a list of at least one name, got {targets!r}")
    taken: dict[str, str] = dict.fromkeys(COLUMNS, "a column of every history")
    names = [("a parameter", name) for name in space.parameters] + [("a target", name) for name in targets]
    names += [(f"the standard error of {name!r}", f"{name}_sem") for name in targets]
    for what, name in names:
        if name != name.strip() or any(c in name for c in "\r\n\0"):
            raise DomainError(f"{where}: {name!r} cannot name a column; leave out spaces around it and line breaks")
        if name in taken:
            raise DomainError(f"{where}: {name!r} is {taken[name]} and {what}; rename one of them")
        taken[name] = what


def parse_trials(table: Table, space: Space, targets: Sequence[str]) -> list[Trial]:
    """The trials of a table: one column a parameter and a target, and columns of a history where there are any.

    A target cell holds a number, or nothing (not measured yet), or a word: ``failed`` (the experiment was tried and
    did not work), ``abandoned`` (it will not be done), ``pending``, or ``n.a.`` (this target was not to be had, the
    others count). Without a column `status`, a row is complete as soon as a target is measured, abandoned if all are
    n.a., else pending; a status ``pending`` gives way to what the target cells say, so that filling in the number is
    enough. Words are read in any case, Optuna's too (RUNNING and WAITING are pending, FAIL failed, PRUNED abandoned).

    Rows with the same number in the column `trial` are one trial that changed: the last counts. Rows without number
    get the next free ones.

    Args:
        table: The table.
        space: The parameters; values outside the range or the grid and unknown categories are read as they are.
            The column of a constant may be missing.
        targets: Names of the targets.

    Returns:
        The trials, in the order of their first rows. Columns that mean nothing here are in `Trial.extra`.

    Raises:
        DomainError: A column is missing, a cell cannot be read, or cells contradict each other.
    """
    check_names(table.name, space, targets)
    for name in (*space.parameters, *targets):
        if name not in table.header and not isinstance(space.parameters.get(name), Fixed):
            raise DomainError(_missing(table, name, "target" if name in targets else "parameter"))
    known = {*space.parameters, *targets, *COLUMNS, *(f"{t}_sem" for t in targets)}
    numbers = row_numbers(table)
    trials: dict[int, Trial] = {}
    for row, number, cells in zip(table.numbers, numbers, table.rows, strict=True):
        values, sems, status = _outcome(table, row, cells, targets)
        trial = Trial(
            number,
            {name: read_setting(table, row, name, p, cells.get(name)) for name, p in space.parameters.items()},
            cells.get("source", "").strip() or "user",
            status,
            values,
            sems,
            cells.get("started", "").strip() or None,
            cells.get("finished", "").strip() or None,
            cells.get("note", ""),
            {name: text for name, text in cells.items() if name not in known},
            row,
        )
        earlier = trials.get(number)
        if earlier is not None and earlier.parameters != trial.parameters:
            raise DomainError(
                f"{table.at(row, 'trial')}: row {earlier.row} is trial {number} too, with other parameters; "
                "give one of them a number of its own, or leave its cell empty"
            )
        trials[number] = trial
    return list(trials.values())


def _missing(table: Table, name: str, what: str) -> str:
    close = difflib.get_close_matches(name, table.header, 1)
    advice = f"; is it {close[0]!r}?" if close else f"; the columns are {', '.join(table.header)}"
    return f"{table.name}, row 1: there is no column for the {what} {name!r}{advice}"


def row_numbers(table: Table) -> list[int]:
    """The number of each row; rows without one get those after the largest, in their order."""
    given: list[int | None] = []
    for row, cells in zip(table.numbers, table.rows, strict=True):
        text = cells.get("trial", "").strip()
        if text and not (text.isascii() and text.isdigit()):
            raise DomainError(
                f"{table.at(row, 'trial')}: expected the number of a trial or an empty cell, got {text!r}; "
                "rename the column if it means something else"
            )
        given.append(int(text) if text else None)
    following = max((n for n in given if n is not None), default=-1) + 1
    out = []
    for number in given:
        out.append(following if number is None else number)
        following += number is None
    return out


def read_setting(table: Table, row: int, name: str, parameter: Parameter, text: str | None) -> Any:
    """The value of a parameter in a row."""
    if text is None and isinstance(parameter, Fixed):
        return parameter.value
    if text is None or not text.strip():
        raise DomainError(f"{table.at(row, name)}: the cell is empty, and every row needs all its parameters")
    stripped = text.strip()
    constants = (parameter.value,) if isinstance(parameter, Fixed) else getattr(parameter, "all_choices", ())
    choices = [str(choice).strip() for choice in constants]
    plain = None if stripped in choices else plain_number(stripped, table.decimal)
    try:
        if plain is None and not choices and table.decimal == "," and plain_number(stripped, ".") is not None:
            raise DomainError(f"expected a number with a decimal comma, got {text!r}")
        return parameter.parse(stripped if plain is None else plain, unknown=True)
    except DomainError as error:
        raise DomainError(f"{table.at(row, name)}: {error}{table.hint(text)}") from None


def _outcome(
    table: Table, row: int, cells: dict[str, str], targets: Sequence[str]
) -> tuple[dict[str, float], dict[str, float], str]:
    """What was measured in a row, its standard errors, and the status."""
    values, sems, words, unmeasurable = {}, {}, {}, 0
    expected = "a number, nothing (not measured yet), failed, abandoned or n.a."
    for target in targets:
        text = cells[target].strip()
        word = text.lower()
        if word in NOT_MEASURABLE:
            unmeasurable += 1
        elif WORDS.get(word, "complete") != "complete":
            words[target] = WORDS[word]
        elif text:
            values[target] = table.number(row, target, text, expected)
        column = f"{target}_sem"
        error = cells.get(column, "").strip()
        if error and error.lower() not in NOT_MEASURABLE:
            sems[target] = table.number(row, column, error)
            if sems[target] <= 0:
                raise DomainError(
                    f"{table.at(row, column)}: a standard error must be positive, got {error}; "
                    "leave the cell empty where it is not known"
                )
    text = cells.get("status", "").strip()
    stated = WORDS.get(text.lower()) if text else None
    if text and stated is None:
        raise DomainError(f"{table.at(row, 'status')}: expected one of {', '.join(STATUSES)}, got {text!r}")
    for word in ("failed", "abandoned"):
        found = next((target for target, w in words.items() if w == word), None)
        if found is None:
            continue
        if stated not in (None, "pending", word):
            raise DomainError(f"{table.at(row, found)}: the cell says {word} and the status says {stated}")
        return values, sems, word
    if stated in ("failed", "abandoned"):
        return values, sems, stated
    if len(values) + unmeasurable == len(targets):
        return values, sems, "complete" if values else "abandoned"
    if stated == "complete" and not values:
        raise DomainError(f"{table.at(row, targets[0])}: the status says complete, and no target is measured")
    return values, sems, "pending" if stated == "pending" or words or not values else "complete"


@dataclass(frozen=True)
class RowCheck:
    """How many rows of old data lie outside today's space, and why; a row may count several times.

    Args:
        num_rows: Rows in all.
        outside: Rows that could not be set today.
        out_of_range: Rows by parameter with a number outside the range.
        off_grid: Rows by parameter with a number between the steps.
        not_a_choice: Rows by parameter with a category that is no choice, or not the constant.
        violated: Rows by constraint.
        others: Columns with something in them that are neither in the space nor measured.
    """

    num_rows: int
    outside: int
    out_of_range: dict[str, int]
    off_grid: dict[str, int]
    not_a_choice: dict[str, int]
    violated: dict[str, int]
    others: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The counts in one sentence; empty where all rows could be set today."""
        if not self.outside:
            return ""
        parts = []
        kinds = (
            ("out of range", self.out_of_range),
            ("off the grid", self.off_grid),
            ("not among the choices", self.not_a_choice),
        )
        for words, counts in kinds:
            parts += [f"{count} {words}: {name}" for name, count in counts.items()]
        parts += [f"{count} {'violates' if count == 1 else 'violate'} '{c}'" for c, count in self.violated.items()]
        lie = "row lies" if self.num_rows == 1 else "rows lie"
        return (
            f"{self.outside} of {self.num_rows} {lie} outside today's space ({'; '.join(parts)}); "
            "the model learns from them as they are"
        )

    @property
    def columns(self) -> str:
        """One line about columns that models do not see; empty where there are none."""
        if not self.others:
            return ""
        what = "columns", "they are", "them"
        if len(self.others) == 1:
            what = "column", "it is", "it"
        return f"{what[0]} not in the space: {', '.join(self.others)} (kept as {what[1]}; no model sees {what[2]})"

    @property
    def lines(self) -> list[str]:
        """What there is to say: :attr:`sentence` and :attr:`columns`, where not empty."""
        return [line for line in (self.sentence, self.columns) if line]


def check_rows(trials: Sequence[Trial], space: Space, *, strict: bool = False, name: str = "table") -> RowCheck:
    """Compare old rows with the space of today.

    Args:
        trials: What :func:`parse_trials` gave.
        space: The space.
        strict: Refuse the first row that could not be set today.
        name: What messages call the table.

    Raises:
        DomainError: A model has no place for a row at all (zero on a log scale, a category that is not among
            ordered ones), or `strict` and a row lies outside.

    Example:
        >>> from probnn.optimization import Real, Space
        >>> space = Space(power=Real(0, 10), constraints=["power <= 9"])
        >>> check_rows([Trial(0, {"power": 9.5}, "user"), Trial(1, {"power": 1.0}, "user")], space).sentence
        "1 of 2 rows lie outside today's space (1 violates 'power <= 9'); the model learns from them as they are"
    """
    counts: tuple[dict[str, int], ...] = ({}, {}, {}, {})
    outside = 0
    for trial in trials:
        at = f"{name}, trial {trial.number}" if trial.row is None else f"{name}, row {trial.row}"
        found = [(kind, n, f"column {n!r}: {what}") for n, kind, what in _complaints(trial, space, at)]
        values = {**space.fixed, **trial.parameters}
        for constraint in space.bound:
            what = constraint.complaint(values)
            if what is not None:
                found.append((3, constraint.text, what))
        if found and strict:
            raise DomainError(f"{at}, {found[0][2]}")
        outside += bool(found)
        for kind, key, _ in found:
            counts[kind][key] = counts[kind].get(key, 0) + 1
    others = dict.fromkeys(n for t in trials for n, text in t.extra.items() if text.strip())
    ranges, grid, choices, violated = counts
    return RowCheck(len(trials), outside, ranges, grid, choices, violated, tuple(others))


def _complaints(trial: Trial, space: Space, at: str) -> list[tuple[str, int, str]]:
    """Parameter, kind (0 range, 1 grid, 2 choice) and complaint of each value that cannot be set."""
    found = []
    for name, parameter in space.parameters.items():
        if name not in trial.parameters:
            continue
        value = trial.parameters[name]
        what = parameter.complaint(value)
        if what is None:
            continue
        if isinstance(parameter, Number):
            if parameter.log and value <= 0:
                raise DomainError(f"{at}, column {name!r}: a parameter on a log scale must be positive, got {value!r}")
            kind = 1 if parameter.low <= value <= parameter.high else 0
        else:
            if isinstance(parameter, Categorical) and parameter.ordered:
                raise DomainError(
                    f"{at}, column {name!r}: {value!r} has no place among the ordered choices; add it to them"
                )
            kind = 2
        found.append((name, kind, what))
    return found
