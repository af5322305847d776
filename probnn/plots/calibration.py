"""Whether predictions say truly how sure they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import validation
from ..errors import DomainError, ShapeError
from .style import COLOR, FAILED, GREY, axes_or_new, check_probs, numbers, vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_calibration(
    pit: Any = None,
    *,
    measured: Any = None,
    mean: Any = None,
    std: Any = None,
    quantiles: Any = None,
    levels: Any = None,
    prob: float = 0.9,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw the share of measurements below each predicted quantile against the quantile's level.

    With predictive distribution functions :math:`F_i` and values :math:`u_i = F_i(y_i)` of the probability integral
    transform (Dawid, 1984), the curve is :math:`\hat F(p) = \frac1n \#\{i: u_i \le p\}`. Good predictions lie on
    the diagonal, up to the grey band: :math:`n \hat F(p)` is binomial with n trials of probability p, so the curve
    of perfect predictions is inside at each level with probability `prob` at least. An S that is flat at both
    ends says that predictions are too unsure, one that is steep there that they are too sure. Predictions
    should be of points that the model has not seen: held out, or left out one by one. Those are not quite
    independent, which the band takes them to be.

    Args:
        pit: Values :math:`u_i`, of length n; or
        measured: the measurements, of length n, together with
        mean, std: normal predictions of new measurements (noise included), each of length n; or
        quantiles, levels: predicted quantiles ``n x k`` and their k levels.
        prob: Probability of the band.
        ax: Where to draw; None: a new figure.

    Returns:
        The axes.

    Raises:
        DomainError: The predictions are given in no way or in several, or a value is outside its range.
        ShapeError: The numbers of values do not match.

    Example:
        >>> import torch
        >>> from probnn.plots import plot_calibration
        >>> ax = plot_calibration(measured=torch.tensor([0.1, 1.2]), mean=torch.tensor([0.0, 1.0]), std=torch.ones(2))
        >>> ax.get_xlabel()
        'level of the predicted quantile'
    """
    where = "plot_calibration"
    (p,) = check_probs(where, (prob,))
    kinds = [pit is not None, mean is not None or std is not None, quantiles is not None or levels is not None]
    if sum(kinds) != 1:
        raise DomainError(
            f"{where}: give pit=, or measured= with mean= and std=, or measured= with quantiles= and levels="
        )
    if kinds[0]:
        u = _unit(where, "pit", vector(where, "pit", pit))
        n, curve = len(u), None
    else:
        for needed, value in (("measured", measured), *((("mean", mean), ("std", std)) if kinds[1] else ())):
            if value is None:
                raise DomainError(f"{where}: {needed}= is missing")
        y = vector(where, "measured", measured)
        n = len(y)
        if kinds[1]:
            s = validation.positive(where, "std", vector(where, "std", std, n))
            u, curve = torch.special.ndtr((y - vector(where, "mean", mean, n)) / s), None
        else:
            curve = _shares(where, y, quantiles, levels)
    ax = axes_or_new(ax, figsize=(4.2, 4.0))
    _band(ax, n, p)
    ax.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="perfect")
    if curve is None:
        steps = torch.cat([u.new_zeros(1), u.sort().values, u.new_ones(1)])
        share = torch.cat([torch.arange(n + 1, dtype=u.dtype) / n, u.new_ones(1)])
        ax.step(steps, share, where="post", color=COLOR, lw=1.8, label=f"predictions of {n} points")
    else:
        ax.plot(*curve, "o-", color=COLOR, lw=1.8, ms=5, label=f"predictions of {n} points")
    ax.set(xlim=(0, 1), ylim=(-0.01, 1.01), aspect="equal")
    ax.set_xlabel("level of the predicted quantile")
    ax.set_ylabel("share measured below it")
    ax.legend(frameon=False, loc="upper left", fontsize="small")
    return ax


def plot_predictions(
    measured: Any,
    mean: Any,
    *,
    std: Any = None,
    interval: Any = None,
    prob: float = 0.9,
    name: str = "value",
    ax: Axes | None = None,
) -> Axes:
    r"""Draw predictions with intervals against what was measured.

    Args:
        measured: The measurements, of length n.
        mean: Their predicted means (or medians), of length n.
        std: Predicted standard deviations of new measurements, of length n: intervals are then
            :math:`\mu_i \pm z \sigma_i` with the normal quantile z; or
        interval: central intervals ``n x 2``, such as the .05 and .95 quantiles for `prob` .9.
        prob: Probability of the intervals.
        name: What is measured, with its unit.
        ax: Where to draw; None: a new figure.

    Returns:
        The axes. Measurements outside of their interval are marked, and the title counts those inside.

    Raises:
        DomainError: Neither or both of `std` and `interval` are given, or a value is outside its range.
        ShapeError: The numbers of values do not match.

    Example:
        >>> import torch
        >>> from probnn.plots import plot_predictions
        >>> y = torch.tensor([0.0, 1.0, 5.0])
        >>> ax = plot_predictions(y, torch.tensor([0.1, 0.8, 2.0]), std=torch.ones(3), name="yield")
        >>> ax.get_title()
        '2 of 3 within the 90% interval'
    """
    where = "plot_predictions"
    (p,) = check_probs(where, (prob,))
    y = vector(where, "measured", measured)
    m = vector(where, "mean", mean, len(y))
    if (std is None) == (interval is None):
        raise DomainError(f"{where}: give either std= or interval=")
    if std is not None:
        half = validation.positive(where, "std", vector(where, "std", std, len(y)))
        half = half * torch.special.ndtri(torch.tensor((1 + p) / 2, dtype=torch.double))
        low, high = m - half, m + half
    else:
        ends = numbers(interval)
        if ends.shape != (len(y), 2):
            raise ShapeError(f"{where}: interval must have shape ({len(y)}, 2), got {tuple(ends.shape)}")
        low, high = validation.tensor(where, "interval", ends).unbind(-1)
        if bool((low > high).any()):
            raise DomainError(f"{where}: interval must hold lower and upper ends, in this order")
    ax = axes_or_new(ax, figsize=(4.4, 4.2))
    inside = (low <= y) & (y <= high)
    for chosen, color, marker, label in ((inside, COLOR, "o", "inside"), (~inside, FAILED, "D", "outside")):
        if chosen.any():
            ax.vlines(y[chosen], low[chosen], high[chosen], color=color, lw=1.2, alpha=0.5)
            ax.plot(y[chosen], m[chosen], marker, color=color, ms=5, mec="white", mew=0.6, label=label)
    ends = torch.cat([y, low, high])
    span = [float(ends.min()), float(ends.max())]
    ax.plot(span, span, color=GREY, lw=1, ls="--", zorder=0)
    ax.set_xlabel(f"measured {name}")
    ax.set_ylabel(f"predicted {name}")
    ax.set_title(f"{int(inside.sum())} of {len(y)} within the {p:.0%} interval", fontsize="medium")
    ax.legend(frameon=False, fontsize="small")
    return ax


def _unit(where: str, name: str, u: Tensor) -> Tensor:
    if bool(((u < 0) | (u > 1)).any()):
        raise DomainError(f"{where}: {name} must lie between 0 and 1, got {u.min():.3g} to {u.max():.3g}")
    return u


def _shares(where: str, y: Tensor, quantiles: Any, levels: Any) -> tuple[Tensor, Tensor]:
    if quantiles is None or levels is None:
        raise DomainError(f"{where}: quantiles= and levels= go together")
    p = _unit(where, "levels", vector(where, "levels", levels))
    q = numbers(quantiles)
    if q.shape != (len(y), len(p)):
        raise ShapeError(f"{where}: quantiles must have shape ({len(y)}, {len(p)}), got {tuple(q.shape)}")
    validation.tensor(where, "quantiles", q)
    order = p.argsort()
    return p[order], (y[:, None] <= q).double().mean(0)[order]


def _band(ax: Any, n: int, prob: float) -> None:
    from scipy.stats import binom

    p = torch.linspace(0, 1, 201, dtype=torch.double)
    low, high = binom.ppf((1 - prob) / 2, n, p) / n, binom.ppf((1 + prob) / 2, n, p) / n
    ax.fill_between(p, low.clip(0), high, color=GREY, alpha=0.18, lw=0, label=f"{prob:.0%} band if perfect")
