"""The arithmetic of rates: statistics of resampled rows and power laws, for all bootstrap draws at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .. import random

_BLOCK = 2_000_000  # counts at a time

# A draw is a vector of counts: how often it has each row. Nothing is copied or sorted again, draw by draw.


def resample(rows: int, draws: int, statistic: str, generator: random.Source) -> Iterator[np.ndarray]:
    """Counts, ``... x rows``, in blocks of bounded size: first each row once, then samples with replacement.

    Samples for means have a row less: with all of them, the variance of a mean over samples would be too small by
    the factor (rows - 1) / rows (Hesterberg, 2015, arXiv:1411.5279, on the narrowness of bootstrap intervals). That
    of a median is not too small, rather too large.
    """
    yield np.ones((1, rows), dtype=np.int64)
    size, block = rows - 1 if statistic == "mean" else rows, max(_BLOCK // rows, 1)
    for first in range(0, draws, block):
        count = min(block, draws - first)
        chosen = random.integers(rows, (count, size), generator=generator).numpy()
        chosen += rows * np.arange(count)[:, None]
        yield np.bincount(chosen.ravel(), minlength=count * rows).reshape(count, rows)


def centre(values: np.ndarray, counts: np.ndarray, statistic: str) -> np.ndarray:
    """Mean or median of each draw without its rows of NaN; NaN where a draw has no others.

    Args:
        values: One a row, NaN where there is none.
        counts: ``draws x rows``.
        statistic: ``"mean"`` or ``"median"``.
    """
    values, counts = _known(values, counts)
    total = counts.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        if statistic == "median":
            ranked = _ranked(values, counts)
            return (_order_statistic(*ranked, (total + 1) // 2) + _order_statistic(*ranked, total // 2 + 1)) / 2
        finite = np.isfinite(values)
        out = counts[:, finite] @ values[finite] / total
        for sign in (np.inf, -np.inf):  # apart, because zero times infinity is no zero
            out = out + np.where(counts[:, values == sign].sum(1) > 0, sign, 0.0)
        return out


def log_error(values: np.ndarray, counts: np.ndarray, statistic: str) -> np.ndarray:
    r"""Monte Carlo standard error of the logarithm of the mean or median of each draw; NaN where there is none.

    Of the mean, by the delta method: :math:`s / (\bar x \sqrt m)` with the standard deviation s of m rows. Of the
    median, from order statistics of the logarithms (Price and Bonett, 2001): with
    :math:`c = [(m + 1)/2 - \sqrt m]`, at least 1,

    .. math:: \frac{\log x_{(m-c+1)} - \log x_{(c)}}{2 z}, \quad \Phi(z) = 1 - P(\mathrm{Bin}(m, 1/2) < c),

    which needs no density, no moment, and does not see how far away the rows in the tails are.
    """
    from scipy.special import bdtr, ndtri

    values, counts = _known(values, counts)
    total = counts.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        if statistic == "mean":
            mean = centre(values, counts, "mean")
            squares = (counts * (values / mean[:, None] - 1) ** 2).sum(1)
            return np.sqrt(squares / (total - 1) / total) * np.where(mean > 0, 1.0, np.nan)
        c = np.maximum(np.rint((total + 1) / 2 - np.sqrt(total)), 1).astype(np.int64)
        z = -ndtri(bdtr(c - 1.0, total, 0.5))
        ranked = _ranked(values, counts)
        low, high = _order_statistic(*ranked, c), _order_statistic(*ranked, total - c + 1)
        return np.where((total > 1) & (low > 0), np.log(high / low) / (2 * z), np.nan)


def _known(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = ~np.isnan(values)
    return values[known], counts[:, known]


def _ranked(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted values, and how many rows of each draw are at most as large."""
    order = np.argsort(values, kind="stable")
    return values[order], np.cumsum(counts[:, order], axis=1)


def _order_statistic(values: np.ndarray, below: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """The value of rank 1, 2, ... of each draw; NaN where it has not so many."""
    place = (below < rank[:, None]).sum(1)
    return np.append(values, np.nan)[place]


def fit_power_law(
    x: np.ndarray, statistic: np.ndarray, method: str, error: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Slope and logarithm of the constant of each draw; NaN where a statistic is not positive and finite.

    Args:
        x: Logarithms of the sizes, increasing.
        statistic: ``draws x sizes``.
        method: ``"ols"``, ``"wls"`` or ``"nls"``.
        error: Standard errors of the logarithms, ``draws x sizes``, for ``"wls"``.
    """
    weight = weights(statistic, method, error)
    usable = np.isfinite(weight).all(1)
    slope, level = np.full((2, len(statistic)), np.nan)
    if usable.any():
        if method == "nls":
            slope[usable], level[usable] = _least_squares(x, statistic[usable])
        else:
            slope[usable], level[usable] = _line(x, np.log(statistic[usable]), weight[usable])
    return slope, level


def weights(statistic: np.ndarray, method: str, error: np.ndarray | None = None) -> np.ndarray:
    """Weights of the logarithms, ``draws x sizes``; NaN where a size cannot be used."""
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = np.ones_like(statistic) if method != "wls" or error is None else error**-2.0
    return np.where((statistic > 0) & np.isfinite(statistic) & np.isfinite(weight) & (weight > 0), weight, np.nan)


def _line(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and level at x = 0 of a weighted line through each row of y."""
    w = w / w.sum(1, keepdims=True)
    x_mean, y_mean = w @ x, (w * y).sum(1)
    d = x - x_mean[:, None]
    slope = (w * d * (y - y_mean[:, None])).sum(1) / (w * d**2).sum(1)
    return slope, y_mean - slope * x_mean


def curvature(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The coefficient of x² in a weighted parabola through each row of y; NaN where an entry is."""
    w = w / w.sum(1, keepdims=True)
    d = x - (w @ x)[:, None]
    square = d**2 - (w * d**2).sum(1, keepdims=True)
    # Orthogonal to the constant and to d, so that one division is left of the normal equations.
    square = square - d * ((w * d * square).sum(1) / (w * d**2).sum(1))[:, None]
    return (w * square * y).sum(1) / (w * square**2).sum(1)


def _least_squares(x: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""The power law :math:`c e^{s x}` nearest to each row of t, which must be positive.

    For given s the best c is :math:`\sum t f / \sum f^2` with :math:`f = e^{s x}`, and what is left to maximise is
    :math:`g(s) = (\sum t f)^2 / \sum f^2` (variable projection: Golub and Pereyra, 1973). Residuals orthogonal to f
    and to x f change sign twice at least, so that a stationary s lies between the smallest and the largest slope of
    log t between neighbours. That range is scanned, and the best point refined by bisection on the derivative,
    :math:`\sum t f x / \sum t f - \sum f^2 x / \sum f^2`.
    """
    top = t.max(1, keepdims=True)
    t, reach = t / top, x[-1] - x[0]
    slopes = np.diff(np.log(t), axis=1) / np.diff(x)
    # Steps grow with s: the steeper, the fewer sizes matter, and the slower g changes.
    step, ends = 0.1, np.arcsinh(reach * np.array([slopes.min(), slopes.max()]))
    count = int(np.ceil((ends[1] - ends[0]) / step)) + 3
    grid = np.sinh(ends[0] - step + step * np.arange(count)) / reach
    f = _power(x, grid)
    best = ((t @ f.T) ** 2 / (f**2).sum(1)).argmax(1)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, count - 1)]
    for _ in range(200):
        middle = (low + high) / 2
        if ((middle <= low) | (middle >= high)).all():
            break
        f = _power(x, middle)
        rising = (t * f) @ x / (t * f).sum(1) > (f**2) @ x / (f**2).sum(1)
        low, high = np.where(rising, middle, low), np.where(rising, high, middle)
    slope = (low + high) / 2
    f = _power(x, slope)
    level = np.log(top[:, 0] * (t * f).sum(1) / (f**2).sum(1))
    return slope, level - slope * np.where(slope > 0, x[-1], x[0])


def _power(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """exp(slope x) over its largest value, ``slopes x sizes``."""
    return np.exp(slope[:, None] * (x - np.where(slope > 0, x[-1], x[0])[:, None]))
