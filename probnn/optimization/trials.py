"""Trials: what was suggested, what came of it, and their table."""

from __future__ import annotations

import csv
import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import io

STATUSES = ("pending", "complete", "failed", "abandoned")


@dataclass
class Trial:
    """One setting of the parameters and what became of it.

    ``trial["depth"]`` is the value of a parameter.

    Args:
        number: Its place in the order of asking.
        parameters: The setting.
        source: Where it comes from: ``"initial"``, ``"model"``, ``"replicate"``, ``"random"`` or
            ``"random(reason)"``, ``"user"`` or ``"pool"``.
        status: ``"pending"`` (no outcome yet), ``"complete"``, ``"failed"`` (it was tried and did not work, which
            teaches) or ``"abandoned"`` (it will not be done, which teaches nothing).
        values: The targets measured so far; a target that is missing here is not measured.
        sems: Standard errors of targets, where known.
        started, finished: When, as ISO 8601 in UTC, or None. Started and not finished: under way, or interrupted.
        note: Words about it, such as the error of a failed evaluation.
        extra: Cells of columns that mean nothing here, kept by name.
        row: The row of the table it was read from, as a spreadsheet counts, or None.

    Example:
        >>> trial = Trial(0, {"depth": 3}, "user", "complete", {"accuracy": 0.83})
        >>> trial["depth"], trial.value
        (3, 0.83)
    """

    number: int
    parameters: dict[str, Any]
    source: str
    status: str = "pending"
    values: dict[str, float] = field(default_factory=dict)
    sems: dict[str, float] = field(default_factory=dict)
    started: str | None = None
    finished: str | None = None
    note: str = ""
    extra: dict[str, str] = field(default_factory=dict)
    row: int | None = field(default=None, compare=False, repr=False)

    def __getitem__(self, name: str) -> Any:
        return self.parameters[name]

    @property
    def value(self) -> float | None:
        """The measured value where there is one target (the first measured of several), or None."""
        return next(iter(self.values.values()), None)

    @property
    def sem(self) -> float | None:
        """The standard error of :attr:`value`, or None."""
        return self.sems.get(next(iter(self.values), ""))

    @property
    def under_way(self) -> bool:
        """Whether it was started and neither finished nor told: it is being evaluated, or was when a process ended."""
        return self.status == "pending" and self.started is not None and self.finished is None

    @property
    def seconds(self) -> float | None:
        """How long the evaluation took by the clock, or None where that was not written down."""
        try:
            if self.started is None or self.finished is None:
                return None
            started, finished = map(datetime.datetime.fromisoformat, (self.started, self.finished))
            return (finished - started).total_seconds()
        except (TypeError, ValueError):  # a person's own way of writing dates
            return None


def utc_now() -> str:
    """The time, as ISO 8601 in UTC to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def copy_trial(trial: Trial) -> Trial:
    """A copy that shares no dictionary with `trial`."""
    return Trial(
        trial.number, dict(trial.parameters), trial.source, trial.status, dict(trial.values), dict(trial.sems),
        trial.started, trial.finished, trial.note, dict(trial.extra), trial.row,
    )  # fmt: skip


def write_csv(trials: Sequence[Trial], target: str, path: str | os.PathLike[str], **constant: Any) -> None:
    """Write trials as a table: trial, status, parameters, target, its standard error, source, seconds, note.

    The file appears all at once, replacing an older one.

    Args:
        trials: The trials.
        target: Name of the column of values.
        path: The file.
        constant: Further columns with one value, in front, such as ``surrogate="gp"``.
    """
    write_rows(trial_rows(trials, target, **constant), path)


def trial_rows(trials: Sequence[Trial], target: str, **constant: Any) -> list[dict[str, Any]]:
    """One dictionary a trial, with the columns of :func:`write_csv`."""
    return [
        {
            **constant,
            "trial": t.number,
            "status": t.status,
            **t.parameters,
            target: t.values.get(target, ""),
            f"{target}_sem": t.sems.get(target, ""),
            "source": t.source,
            "seconds": "" if t.seconds is None else f"{t.seconds:.3f}",
            "note": t.note,
        }
        for t in trials
    ]


def write_rows(rows: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write rows of one set of columns to a CSV file, all of it or nothing."""
    with io.replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        if rows:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def best_so_far(values: Sequence[float | None], maximize: bool) -> list[float]:
    """The best value up to each trial; NaN before the first success."""
    best, out = float("nan"), []
    for value in values:
        if value is not None and not (value <= best if maximize else value >= best):
            best = value
        out.append(best)
    return out
