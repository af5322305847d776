"""What rates are made of: the statistics of each size in all bootstrap draws, the fit to them, and notes on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import random
from ..errors import DomainError
from . import _fits
from .table import Table, Value

_FEW = 10  # rows of a size, below which its bootstrap distribution is coarse


class Part(NamedTuple):
    """One loss of one group at one size: the statistic of the rows and of all draws."""

    value: np.ndarray
    error: np.ndarray  # of its logarithm: of the rows, and of the draws where they are weighted
    counts: dict[str, int]

    def point(self, probability: float) -> dict[str, Any]:
        _, low, high = interval(self.value[1:], probability)
        return {"value": self.value[0], "low": low, "high": high, "log_se": self.error[0], **self.counts}


def parts_at(
    where: str,
    table: Table,
    size: str,
    n: Any,
    groups: Sequence[Mapping[str, Value]],
    losses: Sequence[str],
    *,
    statistic: str,
    weighted: bool,
    failures: str,
    draws: int,
    generator: random.Source,
) -> dict[tuple[str, int], Part]:
    """The parts of one size by loss and number of the group, all of the same draws of replicates.

    Replicates of the same number are the same data for groups that are paired, and unrelated for those that are not.
    """
    rows = table.where({size: n})
    replicates = np.unique(rows["replicate"])
    values, counted = {}, {}
    for g, group in enumerate(groups):
        found = np.flatnonzero(_matches(rows, group))
        place = np.searchsorted(replicates, rows["replicate"][found])
        if len(np.unique(place)) < len(place):
            raise DomainError(
                f"{where}: several rows have {size} = {n}, {dict(group)} and the same replicate; "
                "name the columns that tell them apart in by="
            )
        failed = rows["status"][found] != "complete" if "status" in rows else np.zeros(len(found), dtype=bool)
        for loss in losses:
            x = rows[loss][found].astype(np.float64)
            lost = failed | np.isnan(x)
            values[loss, g] = np.full(len(replicates), np.nan)
            values[loss, g][place] = np.where(lost, np.inf if failures == "infinite" else np.nan, x)
            counted[loss, g] = {
                "rows": len(x) if failures == "infinite" else int((~lost).sum()),
                "failed": int(failed.sum()),
                "nan": int((lost & ~failed).sum()),
                "inf": int((np.isinf(x) & ~failed).sum()),
            }
    if not len(replicates):  # nobody has run this size
        nothing = np.full(draws + 1, np.nan)
        return {key: Part(nothing, nothing, counted[key]) for key in values}
    centres: dict[tuple[str, int], list[np.ndarray]] = {key: [] for key in values}
    errors: dict[tuple[str, int], list[np.ndarray]] = {key: [] for key in values}
    for counts in _fits.resample(len(replicates), draws, statistic, generator):
        for key, x in values.items():
            centres[key].append(_fits.centre(x, counts, statistic))
            if weighted or not errors[key]:
                errors[key].append(_fits.log_error(x, counts, statistic))
    return {key: Part(np.concatenate(centres[key]), np.concatenate(errors[key]), counted[key]) for key in values}


def fit(x: np.ndarray, parts: Sequence[Part], method: str, probability: float) -> tuple[dict[str, float], np.ndarray]:
    """The fit to the rows, and the slopes of the draws."""
    values = np.stack([part.value for part in parts], axis=1)
    errors = np.stack([part.error for part in parts], axis=1) if method == "wls" else None
    weights = _fits.weights(values, method, errors)
    slope, level = _fits.fit_power_law(x, values, method, errors)
    few = any(part.counts["rows"] < 2 for part in parts)
    draws = np.full(len(slope) - 1, np.nan) if few or np.isnan(slope[0]) else slope[1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        bend = _fits.curvature(x, np.log(np.where(values > 0, values, np.nan)), weights)
        bend[1:] = np.where(np.isnan(draws), np.nan, bend[1:])
        log_residual = np.log(np.where(values[0] > 0, values[0], np.nan)) - level[0] - slope[0] * x
        constant = np.exp(level[0])
    se, low, high = interval(draws, probability)
    return {
        "slope": float(slope[0]),
        "se": se,
        "low": low,
        "high": high,
        "constant": float(constant),
        "residual_sd": float(np.sqrt((log_residual**2).sum() / (len(x) - 2))),
        "r_squared": _r_squared(x, values[0], weights[0], slope[0], level[0], method),
        "curvature": float(bend[0]),
        "curvature_se": interval(bend[1:], probability)[0],
    }, draws


def _r_squared(x: np.ndarray, value: np.ndarray, w: np.ndarray, slope: float, level: float, method: str) -> float:
    """Share of the weighted squares of what is fitted about their mean; NaN where there is no rate or no variation."""
    if np.isnan(slope):
        return np.nan
    y = value if method == "nls" else np.log(value)
    fit = level + slope * x
    residual = y - (np.exp(fit) if method == "nls" else fit)
    total = (w * (y - (w * y).sum() / w.sum()) ** 2).sum()
    return float(1 - (w * residual**2).sum() / total) if total > 0 else np.nan


def interval(draws: np.ndarray, probability: float) -> tuple[float, float, float]:
    """Standard deviation and percentiles of the draws that exist; NaN where those are not two at least."""
    draws = draws[~np.isnan(draws)]
    if len(draws) < 2:
        return np.nan, np.nan, np.nan
    tail = (1 - probability) / 2
    # Draws themselves, outwards, and no average of two: one of them may be infinite.
    low, high = np.quantile(draws, tail, method="lower"), np.quantile(draws, 1 - tail, method="higher")
    return float(draws.std(ddof=1)) if np.isfinite(draws).all() else np.nan, float(low), float(high)


def notes(size: str, sizes: np.ndarray, parts: Sequence[Part], statistic: str, method: str, lost: int) -> Iterator[str]:
    """Why there is no rate, or how far it may be trusted."""
    rows = np.array([part.counts["rows"] for part in parts])
    values = np.array([part.value[0] for part in parts])
    errors = np.array([part.error[0] for part in parts])

    def at(where: np.ndarray) -> str:
        names = [str(n) for n in sizes[where].tolist()]
        return f"at {size} = {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    known = (rows > 0) & np.isfinite(values) & (values > 0)
    # No spread, or of a single row, is no weight.
    weighted = np.isfinite(errors) & (errors > 0) if method == "wls" else np.ones_like(known)
    reasons = {
        "no rows {}": rows == 0,
        f"{statistic} not finite {{}}": (rows > 0) & ~np.isfinite(values),
        f"{statistic} zero or negative {{}}": (rows > 0) & np.isfinite(values) & (values <= 0),
        "no weight, because no finite positive standard error, {}": known & ~weighted,
    }
    bad = [text.format(at(where)) for text, where in reasons.items() if where.any()]
    yield from (f"no rate: {text}" for text in bad)
    if bad:
        return
    if rows.min() < 2:
        yield f"no standard error: a single row {at(rows < 2)}"
    elif rows.min() < _FEW:
        yield f"only {rows.min()} rows {at(rows == rows.min())}: the standard error is rough"
    elif rows.min() < rows.max():
        yield f"from {rows.min()} to {rows.max()} rows at a size"
    if lost and rows.min() >= 2:
        yield f"no rate in {lost} bootstrap draws, which are left out"


def _matches(table: Table, group: Mapping[str, Value]) -> np.ndarray:
    found = np.ones(len(table), dtype=bool)
    for name, value in group.items():
        found &= np.isnan(table[name]) if value != value else table[name] == value
    return found
