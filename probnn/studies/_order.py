"""How many workers there are, and what they do first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from ..errors import DomainError
from .cells import Cell
from .parts import COMPLETE
from .store import Store
from .worker import Unit


def workers(where: str, n_jobs: Any, backend: str) -> int:
    """How many workers are asked for; -1: all of a cluster."""
    if n_jobs is None:
        n_jobs = 1 if backend == "loky" else -1
    if not isinstance(n_jobs, Integral) or isinstance(n_jobs, bool) or (n_jobs < 1 and n_jobs != -1):
        raise DomainError(f"{where}: n_jobs must be a positive integer, or -1 for one a core, got {n_jobs!r}")
    if backend == "loky":
        from joblib import cpu_count

        return int(cpu_count()) if n_jobs == -1 else int(n_jobs)
    return -1 if n_jobs == -1 else max(2, int(n_jobs))  # joblib would run the tasks of one worker in this process


def by_cost(units: Sequence[Unit], rows: Store, cost: Callable[[Cell], float] | None) -> list[Unit]:
    """Units, the dearest first; where nothing has ever worked, one of each cell before the others.

    What is dear is what `cost` says, what was measured where every cell has rows, or else the product of a cell's
    numbers, with which costs usually grow.
    """
    done = rows.status == COMPLETE
    if cost is not None:
        of_cell = [float(cost(dict(cell))) for cell in rows.cells]
    elif done.any(1).all():
        of_cell = [float(np.mean(s[d])) for s, d in zip(rows.seconds, done, strict=True)]
    else:
        of_cell = [_product(cell) for cell in rows.cells]
    ordered = sorted(units, key=lambda unit: of_cell[unit.cell], reverse=True)
    if not done.any():
        first = {unit.cell: unit for unit in reversed(ordered)}
        ordered.sort(key=lambda unit: unit is not first[unit.cell])
    return ordered


def _product(cell: Mapping[str, Any]) -> float:
    numbers = [v for v in cell.values() if isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0]
    return math.prod(numbers)
