"""Columns of tables: float64, int64, truth values or text, copied and read-only."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from ..errors import DomainError, ShapeError


def kind(x: object) -> str:
    """The type of something, for messages."""
    return type(x).__name__


def words(of: np.ndarray) -> str:
    """What a column holds, for messages."""
    return {"f": "numbers", "i": "numbers", "b": "truth values", "U": "text"}[of.dtype.kind]


def column(name: str, values: Any) -> np.ndarray:
    """A read-only copy of a column in one of the four types."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    if not isinstance(values, np.ndarray) or values.dtype.kind == "O":
        values = _from_entries(name, values)
    if values.ndim != 1:
        raise ShapeError(f"Table: column {name!r} must have one dimension, got shape {values.shape}")
    kinds = {"f": np.float64, "i": np.int64, "u": np.int64, "b": np.bool_, "U": np.str_, "T": np.str_}
    if values.dtype.kind not in kinds:
        raise DomainError(f"Table: column {name!r} must hold numbers, truth values or text, got {values.dtype}")
    if values.dtype.kind == "u" and values.size and int(values.max()) >= 2**63:
        raise DomainError(f"Table: column {name!r} must hold integers below 2**63, got {int(values.max())}")
    if values.dtype.itemsize > 8 and values.dtype.kind == "f":
        raise DomainError(f"Table: column {name!r} is {values.dtype}, which float64 would round; convert it first")
    copy: np.ndarray = np.array(values, dtype=kinds[values.dtype.kind])
    copy.flags.writeable = False
    return copy


def _from_entries(name: str, values: Any) -> np.ndarray:
    """An array of a sequence; numpy alone would turn mixtures of numbers and text into text."""
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__iter__"):
        raise DomainError(f"Table: column {name!r} must be a sequence, got a {kind(values)}")
    entries = [v.item() if isinstance(v, np.generic) else v for v in values]
    truths = [isinstance(v, bool) for v in entries]
    if all(isinstance(v, str) for v in entries) and entries:
        return np.array(entries, dtype=np.str_)
    if all(truths) and entries:
        return np.array(entries, dtype=bool)
    if any(truths) or not all(isinstance(v, Real) for v in entries):
        kinds = ", ".join(sorted({kind(v) for v in entries}))
        raise DomainError(f"Table: column {name!r} must hold numbers, or truth values, or text, got {kinds}")
    if all(isinstance(v, Integral) for v in entries) and entries:
        if not all(-(2**63) <= v < 2**63 for v in entries):
            raise DomainError(f"Table: column {name!r} must hold integers from -2**63 to 2**63 - 1")
        return np.array(entries, dtype=np.int64)
    return np.array([float(v) for v in entries], dtype=np.float64)
