"""Trials: what was suggested, what came of it, and their table."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import io

STATUSES = ("pending", "complete", "failed", "abandoned")


@dataclass
class Trial:
    """One setting of the parameters and what became of it.

    Args:
        number: Its place in the order of asking.
        parameters: The setting.
        source: Where it comes from: ``"initial"``, ``"model"``, ``"random"`` or ``"user"``.
        status: ``"pending"``, ``"complete"``, ``"failed"`` or ``"abandoned"``.
        value: The measured target, once complete.
        sem: Its standard error, where known.
        seconds: How long the evaluation took, where the loop ran it.
        note: Words about it, such as the error of a failed evaluation.
    """

    number: int
    parameters: dict[str, Any]
    source: str
    status: str = "pending"
    value: float | None = None
    sem: float | None = None
    seconds: float | None = None
    note: str = ""

    def __getitem__(self, name: str) -> Any:
        return self.parameters[name]


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
            target: "" if t.value is None else t.value,
            f"{target}_sem": "" if t.sem is None else t.sem,
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
