"""Figures of summaries: a measure against an axis, with Monte Carlo errors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import validation
from ..errors import DomainError
from ..plots.style import GREY, PALETTE, axes_or_new, log_label, log_ticks
from .summaries import cell_words, summary_axes
from .table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vP"
_SHIFT = 0.008  # of the width, between the colours


def plot_summary(
    summary: Table,
    x: str,
    *,
    measure: str | None = None,
    errors: float = 1.96,
    log: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw a measure against an axis, in one colour for each combination of the others, with Monte Carlo error bars.

    The colours stand a little apart, so that their bars do not hide each other. Points without a standard error are
    hollow. Values that are not finite cannot be drawn: a grey line of text at the top counts them, and the
    replicates that are not complete.

    Args:
        summary: What :func:`summarise` gave.
        x: The axis; numbers are drawn to scale and joined by lines, text and truth values in the order in which they
            first appear.
        measure: Label of the measure; None: the only one there is.
        errors: Length of the bars to each side, in standard errors; 1.96 makes 95% intervals for many replicates.
        log: Which scales are logarithmic: ``""``, ``"x"``, ``"y"`` or ``"xy"``.
        ax: Where to draw; None: a new figure.

    Returns:
        The axes.

    Raises:
        DomainError: `summary` is no summary, there is no such axis or measure or several to choose from, or a value
            is not positive on a logarithmic scale.

    Example:
        >>> from probnn.studies import Mean, Table, plot_summary, summarise
        >>> table = Table({"n": [10, 10, 100, 100], "loss": [0.5, 0.7, 0.2, 0.4]})
        >>> ax = plot_summary(summarise(table, [Mean("loss")], axes=["n"]), "n", log="x")
        >>> ax.get_ylabel()
        'mean loss'
    """
    where = "plot_summary"
    axes = summary_axes(where, summary)
    validation.choice(where, "x", x, axes)
    validation.choice(where, "log", log, ("", "x", "y", "xy"))
    width = float(validation.positive(where, "errors", errors))
    chosen = _of_measure(where, summary, measure)
    positions = _positions(where, chosen, x, "x" in log)
    if "y" in log and (chosen["value"] <= 0).any():
        raise DomainError(f"{where}: log={log!r} needs positive values, got {float(np.nanmin(chosen['value'])):.3g}")
    ax = axes_or_new(ax, figsize=(5.0, 3.6))
    told_apart = [name for name in axes if name != x and len(set(chosen[name].tolist())) > 1]
    lines = list(chosen.groups(told_apart))
    words = chosen[x].dtype.kind in "Ub"
    for i, (cell, part) in enumerate(lines):
        at = np.array([positions[v] for v in part[x].tolist()])
        at = _apart(at, list(positions.values()), i - (len(lines) - 1) / 2, len(lines), words, "x" in log)
        style = {"color": PALETTE[i % len(PALETTE)], "marker": _MARKERS[i // len(PALETTE) % len(_MARKERS)]}
        _draw(ax, at, part, width, cell_words(cell), "none" if words else "-", style)
    if words:
        ax.set_xticks(list(positions.values()), [str(v) for v in positions])
        ax.set_xlim(-0.5, len(positions) - 0.5)
    if np.isfinite(chosen["value"]).any():  # matplotlib has no logarithmic scale of nothing
        _log_scales(ax, log, list(positions.values()))
    ax.set_xlabel(x)
    ax.set_ylabel(str(chosen["measure"][0]))
    note = _note(chosen, [name for name in axes if name not in (x, *told_apart)])
    if note:
        ax.set_title(note, fontsize="x-small", color=GREY, loc="left")
    if told_apart:
        ax.legend(frameon=False, fontsize="small")
    return ax


def _of_measure(where: str, summary: Table, measure: str | None) -> Table:
    labels = tuple(dict.fromkeys(summary["measure"].tolist()))
    if not labels:
        raise DomainError(f"{where}: the summary has no rows")
    if measure is None and len(labels) > 1:
        raise DomainError(f"{where}: choose measure= among {', '.join(map(repr, labels))}")
    return summary.where(measure=validation.choice(where, "measure", measure or labels[0], labels))


def _positions(where: str, chosen: Table, x: str, log: bool) -> dict[Any, float]:
    """Where the values of the axis stand, by value."""
    values = list(dict.fromkeys(chosen[x].tolist()))
    if chosen[x].dtype.kind in "Ub":
        if log:
            raise DomainError(f"{where}: {x} has no logarithmic scale, its values are {values}")
        return {v: float(i) for i, v in enumerate(values)}
    if log and min(values) <= 0:
        raise DomainError(f"{where}: a logarithmic scale needs positive values of {x}, got {min(values):g}")
    return {v: float(v) for v in values}


def _apart(at: np.ndarray, all_at: list[float], step: float, count: int, words: bool, log: bool) -> np.ndarray:
    """The places of a line, moved `step` (a number around 0) times a little to the right."""
    if words:
        return at + step * min(0.12, 0.7 / count)
    if log:
        return np.asarray(at * (max(all_at) / min(all_at)) ** (_SHIFT * step))
    return at + _SHIFT * step * (max(all_at) - min(all_at))


def _draw(ax: Any, at: np.ndarray, part: Table, width: float, label: str, line: str, style: dict[str, str]) -> None:
    order = np.argsort(at, kind="stable")
    at, values, errors = at[order], part["value"][order], part["mcse"][order]
    drawn, barred = np.isfinite(values), np.isfinite(values) & np.isfinite(errors)
    # A gap in the line, not a straight path across, where a value is not finite.
    ax.plot(at, np.where(drawn, values, math.nan), ls=line, lw=1.4, ms=4.5, mec="white", mew=0.5, label=label, **style)
    if barred.any():
        ax.errorbar(
            at[barred],
            values[barred],
            width * errors[barred],
            fmt="none",
            ecolor=style["color"],
            elinewidth=1.1,
            capsize=2.5,
        )
    hollow = drawn & ~barred
    if hollow.any():
        ax.plot(at[hollow], values[hollow], ls="none", ms=5, mfc="white", mec=style["color"], marker=style["marker"])


def _log_scales(ax: Any, log: str, values: list[float]) -> None:
    """Logarithmic scales with few ticks: at the values of the axis, since a study has no others, where they are few."""
    from matplotlib.ticker import NullLocator

    for side in log:
        getattr(ax, f"set_{side}scale")("log")
        axis = getattr(ax, f"{side}axis")
        if side == "x" and len(values) <= 6:
            axis.set_ticks(values, [f"{v:,.6g}" for v in values])
        else:
            ticks = log_ticks(*getattr(ax, f"get_{side}lim")())
            axis.set_ticks(ticks, [log_label(t) for t in ticks])
        axis.set_minor_locator(NullLocator())


def _note(chosen: Table, constant: list[str]) -> str:
    bad = int((~np.isfinite(chosen["value"])).sum())
    total, failed = int(chosen["num_replicates"].sum()), int(chosen["num_failed"].sum())
    nonfinite = int(chosen["num_nonfinite"].sum())
    said = [cell_words({name: chosen[name][0].item() for name in constant})] if constant else []
    said += [f"not drawn: {bad} of {len(chosen)} values, not finite"] if bad else []
    said += [f"{failed:,} of {total:,} replicates not complete"] if failed else []
    said += [f"{nonfinite:,} with NaN or infinity"] if nonfinite else []
    return "; ".join(said)
