"""Rates as straight lines: losses over sizes on logarithmic axes, the fit, and what the theory says."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DomainError
from ..plots.style import GREY, PALETTE, axes_or_new
from .rates import Rates
from .table import Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SHIFT = 0.02  # of the width between the bars of neighbouring rates, so that they do not hide each other
_ROOM = 0.08  # of the height, for an entry of the legend


def plot_rates(rates: Rates, *, which: Mapping[str, Value] | None = None, ax: Axes | None = None) -> Axes:
    r"""Draw the statistic at all sizes with its bootstrap intervals, the fitted power laws and the theory's.

    Both axes are logarithmic, so that power laws are straight. A dashed line has the slope of the theory and goes
    through the centre of the points (the means of the logarithms): how far it turns away from them at both ends
    shows the difference of the slopes and nothing else. Bars of different rates stand a little apart. Points whose
    statistic is not positive and finite cannot be drawn; their rate has no line, and the legend says so.

    Args:
        rates: The rates.
        which: Values of ``"loss"`` and of groups, to draw those only; None: all.
        ax: Where to draw; None: a new figure.

    Returns:
        The axes.

    Raises:
        DomainError: `rates` are no Rates, or `which` fits none.

    Example:
        >>> from probnn.studies.rates import fit_rates
        >>> from probnn.studies.table import Table
        >>> n = [100, 100, 1000, 1000, 10000, 10000]
        >>> t = Table({"n": n, "replicate": [0, 1] * 3, "loss": [0.09, 0.11, 0.028, 0.032, 0.012, 0.008]})
        >>> ax = plot_rates(fit_rates(t, losses="loss", theory={"loss": -0.5}))
        >>> ax.get_xscale(), ax.get_ylabel()
        ('log', 'mean loss')
    """
    where = "plot_rates"
    if not isinstance(rates, Rates):
        raise DomainError(f"{where}: rates must come from fit_rates, got a {type(rates).__name__}")
    names = (*rates.by, "loss")
    unknown = [name for name in which or {} if name not in names]
    if unknown:
        raise DomainError(f"{where}: rates are told apart by {', '.join(names)}, not by {unknown[0]!r}")
    chosen = rates.table.where(which)
    if not len(chosen):
        raise DomainError(f"{where}: {dict(which or {})} fits no rate")
    ax = axes_or_new(ax, figsize=(5.6, 4.0))
    ax.set(xscale="log", yscale="log", xlabel=rates.size)
    several = [name for name in names if len(set(chosen[name].tolist())) > 1]
    looks = itertools.cycle(zip(_MARKERS * len(PALETTE), PALETTE * len(_MARKERS), strict=True))
    theories: set[float] = set()
    for i, (row, (marker, color)) in enumerate(zip(chosen.rows(), looks, strict=False)):
        key = {name: row[name] for name in names}
        apart = 10 ** (_SHIFT * (i - (len(chosen) - 1) / 2))
        label = ", ".join(row[n] if isinstance(row[n], str) else f"{n} = {row[n]}" for n in several)
        label = (label + ": " if label else "") + _slope(row)
        x, y = _draw_points(ax, rates, key, apart, marker=marker, color=color, label=label)
        if np.isnan(row["slope"]):
            continue
        ends = np.array([x.min(), x.max()])
        ax.plot(ends, rates.curve(ends, key), color=color, lw=1.4)
        aim = row.get("theory", np.nan)
        if not np.isnan(aim):
            centre = np.exp(np.log(x).mean()), np.exp(np.log(y).mean())
            ax.plot(ends, centre[1] * (ends / centre[0]) ** aim, "--", color=color if several else GREY, lw=1.2)
            theories.add(aim)
    for aim in sorted(theories, reverse=True):
        ax.plot([], [], "--", color=GREY, lw=1.2, label=f"theory: slope {aim:.3g}")
    losses = set(chosen["loss"].tolist())
    ax.set_ylabel(f"{rates.statistic} {losses.pop() if len(losses) == 1 else 'loss'}")
    # Losses fall, so the legend goes to the upper right, with room made for it above what is drawn.
    low, high = ax.get_ylim()
    entries = len(ax.get_legend_handles_labels()[1])
    ax.set_ylim(low, high * (high / low) ** (_ROOM * entries))
    ax.legend(loc="upper right", framealpha=0.85, edgecolor="none", fontsize="small")
    return ax


def _slope(row: Mapping[str, Any]) -> str:
    if np.isnan(row["slope"]):
        return row["note"].replace("no rate: ", "no rate (", 1).partition("; ")[0] + ")"
    error = "" if np.isnan(row["se"]) else f" ± {row['se']:.2g}"
    return f"slope {row['slope']:.3g}{error}"


def _draw_points(
    ax: Axes, rates: Rates, key: Mapping[str, Value], apart: float, *, marker: str, color: str, label: str
) -> tuple[np.ndarray, np.ndarray]:
    """Points with bars, those of infinite length ending in an arrow; returns sizes and statistics drawn."""
    points = rates.points.where(key)
    y = points["value"]
    drawn = np.isfinite(y) & (y > 0)
    x, y = points[rates.size][drawn].astype(np.float64), y[drawn]
    low, high = points["low"][drawn], points["high"][drawn]
    above, below = np.isinf(high), ~(low > 0)
    ax.plot(x * apart, y, marker, color=color, ms=5, mec="white", mew=0.6, zorder=3, label=label)
    bars = ~np.isnan(high)
    top, bottom = np.where(above, 2 * y, high), np.where(below, y / 2, low)
    ax.vlines(x[bars] * apart, bottom[bars], top[bars], color=color, lw=1, alpha=0.7)
    for place, end, arrow in ((above & bars, top, "^"), (below & bars, bottom, "v")):
        if place.any():
            ax.plot(x[place] * apart, end[place], arrow, color=color, ms=4)
    return x, y
