"""Means, shares and deviations of replicates that may be constant, huge, tiny or infinite."""

from __future__ import annotations

import math

import numpy as np

from ..errors import DomainError


def mean(x: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error."""
    n = len(x)
    if not n:
        return math.nan, math.nan
    if not np.isfinite(x).all():
        with np.errstate(invalid="ignore"):
            return float(np.mean(x)), math.nan
    d, scale = deviations(x)
    centre = float(d.mean())
    error = math.sqrt(float(((d - centre) ** 2).sum()) / (n * (n - 1))) if n > 1 else math.nan
    return float(x[0]) + times_power(centre, scale), times_power(error, scale)


def jackknife(without: np.ndarray) -> float:
    """Standard error of a statistic by its values without each replicate in turn."""
    n = len(without)
    d, scale = deviations(without)
    return times_power(math.sqrt((n - 1) / n * float(((d - d.mean()) ** 2).sum())), scale)


def exponent(x: np.ndarray) -> int:
    """An e such that x / 2**e is of order 1: its squares neither overflow nor vanish, and no digit is lost."""
    largest = float(np.abs(x).max(initial=0.0))
    return math.frexp(largest)[1] if math.isfinite(largest) else 0


def times_power(x: float, e: int) -> float:
    """x * 2**e, infinite where that is too large for a float."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.ldexp(x, e))


def deviations(x: np.ndarray) -> tuple[np.ndarray, int]:
    """(x - x[0]) / 2**e of order 1, and e: exactly 0 for a constant, and without digits that cancel later."""
    first = exponent(x) + 1  # the difference of two large numbers may be too large
    d = np.ldexp(x, -first) - math.ldexp(x[0], -first)
    second = exponent(d)
    return np.ldexp(d, -second), first + second


def share(where: str, output: str, x: np.ndarray) -> tuple[float, float]:
    """Share of ones and its standard error."""
    n = len(x)
    if not n:
        return math.nan, math.nan
    other = x[(x != 0) & (x != 1)]
    if len(other):
        raise DomainError(f"{where}: {output} must be 0 or 1 (or NaN), got {other[0]:g}; use Mean for other numbers")
    p = float(np.count_nonzero(x)) / n
    return p, math.sqrt(p * (1 - p) / n) if n > 1 else math.nan
