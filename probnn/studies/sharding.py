"""Shards: which part of a study a job of a queue does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..errors import DomainError

# Variables of schedulers' array tasks: number, first, last or count, step.
_SCHEDULERS = {
    "Slurm": ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP"),
    "Grid Engine": ("SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE"),
    "LSF": ("LSB_JOBINDEX", "", "LSB_JOBINDEX_END", "LSB_JOBINDEX_STEP"),
}


def shard_of(where: str, shard: Any, environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """A shard as ``(i, N)`` with i from 1 to N.

    Args:
        where: What an error begins with.
        shard: ``(3, 40)``, ``"3/40"``, or ``"auto"``: from the variables of a scheduler's array task.
        environment: Where those are; None: the process's.

    Raises:
        DomainError: It is none, or there is no such variable.
    """
    if isinstance(shard, str) and shard == "auto":
        return _automatic(where, os.environ if environment is None else environment)
    words = shard.split("/") if isinstance(shard, str) else shard
    try:
        index, count = (int(w) for w in words)
        if isinstance(shard, str) or all(isinstance(w, int) and not isinstance(w, bool) for w in words):
            if 1 <= index <= count:
                return index, count
    except (TypeError, ValueError):
        pass
    raise DomainError(f"{where}: shard must be i/N with i from 1 to N, such as 3/40, or auto; got {shard!r}")


def _automatic(where: str, environment: Mapping[str, str]) -> tuple[int, int]:
    for scheduler, (number, first, last, step) in _SCHEDULERS.items():
        if not environment.get(number, "").isdigit():
            continue
        value, low = int(environment[number]), int(environment.get(first) or 1)
        if scheduler == "LSF" and value == 0:
            continue  # an ordinary job
        high, stride = int(environment.get(last) or 0), int(environment.get(step) or 1)
        index, rest = divmod(value - low, max(stride, 1))
        count = (high - low) // max(stride, 1) + 1
        stated = environment.get("SLURM_ARRAY_TASK_COUNT", "") if scheduler == "Slurm" else ""
        if rest or not 0 <= index < count or (stated.isdigit() and int(stated) != count):
            raise DomainError(
                f"{where}: {number}={value} of the tasks {low} to {high} is no regular array, so that auto cannot "
                "number its shards; submit all tasks again (finished rows are not run twice), or give --shard i/N"
            )
        return index + 1, count
    known = ", ".join(variables[0] for variables in _SCHEDULERS.values())
    raise DomainError(
        f"{where}: shard auto needs the variables of an array task ({known}), and none is set; give --shard i/N"
    )
