"""Cells of a study: what they are, how they are named, and the seeds of their replicates."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DomainError

Cell = dict[str, Any]
Key = tuple[int, int]  # the index of a cell, and the replicate

# Columns of a study's table that no axis and no output may be called.
RESERVED = (
    "replicate", "seed", "status", "seconds", "warnings", "error",
    "replicates", "complete", "failed", "timeout", "killed", "missing", "measure", "value", "mcse", "first_error",
    "num_rows", "num_replicates", "num_complete", "num_failed", "num_timeout", "num_killed", "num_nonfinite",
)  # fmt: skip


def scalar(where: str, axis: str, value: Any) -> int | float | str | bool:
    """A value of an axis as Python's own, so that it is written the same everywhere."""
    if not isinstance(value, (bool, int, float, str)) and getattr(value, "shape", None) == ():
        value = value.item()  # of numpy or torch
    if isinstance(value, (bool, str)) or isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise DomainError(
        f"{where}: values of the axis {axis!r} must be integers, finite numbers, texts or truth values, got {value!r}; "
        "name more complicated things by a text, and look them up in the simulation"
    )


def cells_of(where: str, grid: Any) -> list[Cell]:
    """All combinations of a grid ``{axis: values}``, the last axis fastest; or the cells of a list, checked.

    Raises:
        DomainError: An axis is empty, has a value twice, or is called like a column; cells have different axes.
    """
    if isinstance(grid, Mapping):
        axes = {_axis(where, name): _values(where, name, values) for name, values in grid.items()}
        if not axes:
            raise DomainError(f"{where}: grid must have at least one axis, such as {{'n': [100, 1000]}}, got {grid!r}")
        return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    if not isinstance(grid, Sequence) or isinstance(grid, str) or not all(isinstance(c, Mapping) for c in grid):
        raise DomainError(f"{where}: grid must be a mapping from axes to values, or a list of cells, got {grid!r}")
    cells = [{_axis(where, name): scalar(where, name, v) for name, v in cell.items()} for cell in grid]
    if not cells or not cells[0]:
        raise DomainError(f"{where}: grid must have at least one cell with at least one axis, got {grid!r}")
    for cell in cells:
        if set(cell) != set(cells[0]):
            raise DomainError(f"{where}: all cells must have the axes {', '.join(cells[0])}, got {cell!r}")
    if len({digest(cell) for cell in cells}) < len(cells):
        raise DomainError(f"{where}: a cell of grid is there twice")
    for name in cells[0]:
        _one_kind(where, name, [cell[name] for cell in cells])
    return [{name: cell[name] for name in cells[0]} for cell in cells]


def _one_kind(where: str, name: str, values: Sequence[Any]) -> None:
    """Tables and the command line could not tell 1 from 1.0, True and "1"."""
    kinds = {"truth value" if isinstance(v, bool) else "text" if isinstance(v, str) else "number" for v in values}
    if len(kinds) > 1:
        raise DomainError(
            f"{where}: the axis {name!r} must have values of one kind, got a {' and a '.join(sorted(kinds))}"
        )
    if len(set(values)) < len({(type(v), v) for v in values}):
        raise DomainError(f"{where}: the axis {name!r} has the same number as an integer and as a float")


def _axis(where: str, name: Any) -> str:
    if not isinstance(name, str) or not name or any(c in name for c in "=,\n"):
        raise DomainError(f"{where}: an axis must be called by a text without = and commas, got {name!r}")
    if name in RESERVED:
        raise DomainError(f"{where}: an axis must not be called {name!r}, which is a column of every table")
    return name


def _values(where: str, name: str, values: Any) -> list[Any]:
    if isinstance(values, (str, Mapping)) or not hasattr(values, "__iter__"):
        raise DomainError(f"{where}: the axis {name!r} must be a list of values, got {values!r}")
    found = [scalar(where, name, v) for v in values]
    if not found:
        raise DomainError(f"{where}: the axis {name!r} has no values; give it at least one, or leave it out")
    for i, value in enumerate(found):
        if any(type(value) is type(other) and value == other for other in found[:i]):
            raise DomainError(f"{where}: the axis {name!r} has the value {value!r} twice")
    _one_kind(where, name, found)
    return found


def canonical(cell: Mapping[str, Any]) -> str:
    """A cell as one text: the same whatever the order of its axes; 1, 1.0 and true are three values."""
    return json.dumps(dict(sorted(cell.items())), separators=(",", ":"), ensure_ascii=True)


def digest(cell: Mapping[str, Any]) -> bytes:
    """Sixteen bytes that stand for a cell."""
    return hashlib.sha256(canonical(cell).encode()).digest()[:16]


def label(cell: Mapping[str, Any]) -> str:
    """A cell as people write it, and as the command line reads it: ``n=1000,k=3``."""
    return ",".join(f"{name}={_written(value)}" for name, value in cell.items())


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def named_cell(where: str, words: str, cells: Sequence[Cell]) -> Cell:
    """The cell that a text such as ``n=1000,k=3`` names.

    Raises:
        DomainError: No cell, or more than one, is called so.
    """
    for cell in cells:
        if label(cell) == words:  # a text may have commas
            return cell
    wanted = dict(part.split("=", 1) for part in words.split(",") if "=" in part)
    if len(wanted) != words.count(",") + 1:
        raise DomainError(f"{where}: a cell is named like {label(cells[0])}, got {words!r}")
    wanted = {name.strip(): value.strip() for name, value in wanted.items()}
    return find_cell(where, wanted, cells, written=True)


def find_cell(where: str, wanted: Mapping[str, Any], cells: Sequence[Cell], *, written: bool = False) -> Cell:
    """The one cell with these values of all its axes, which may be texts."""
    axes = list(cells[0])
    if set(wanted) != set(axes):
        raise DomainError(
            f"{where}: a cell has the axes {', '.join(axes)}, got {', '.join(map(str, wanted)) or 'none'}"
        )
    for cell in cells:
        if all(_same(cell[a], wanted[a], written) for a in axes):
            return cell
    there = "; ".join(f"{a}: {', '.join(dict.fromkeys(_written(c[a]) for c in cells))}" for a in axes)
    raise DomainError(f"{where}: there is no cell {label(dict(wanted))}; there are {there}")


def _same(value: Any, wanted: Any, written: bool) -> bool:
    if not written:
        return bool(value == wanted)
    if isinstance(value, (bool, str)):
        return _written(value) == (wanted.lower() if isinstance(value, bool) else wanted)
    try:
        return float(wanted) == value
    except ValueError:
        return False


def seed_of(seed: int, cell: Mapping[str, Any], replicate: int, paired: Sequence[str] = ()) -> int:
    r"""The seed of a replicate of a cell, from 0 to :math:`2^{63} - 1`.

    It depends on the study's seed, the cell's values (of the axes that are not `paired`) and the replicate alone:
    the spawn key of numpy's SeedSequence is a digest of the cell, in four words, and the replicate.
    """
    return _seeds(seed, digest({a: v for a, v in cell.items() if a not in paired}), (replicate,))[0]


def seeds_of(seed: int, cell: Mapping[str, Any], replicates: Sequence[int], paired: Sequence[str] = ()) -> list[int]:
    """The seeds of several replicates of one cell."""
    return _seeds(seed, digest({a: v for a, v in cell.items() if a not in paired}), replicates)


def _seeds(seed: int, name: bytes, replicates: Sequence[int]) -> list[int]:
    words = tuple(int(w) for w in np.frombuffer(name, dtype="<u4"))
    return [
        int(np.random.SeedSequence(seed, spawn_key=(*words, r)).generate_state(1, np.uint64)[0] >> np.uint64(1))
        for r in replicates
    ]
