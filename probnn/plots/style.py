"""What the figures share: colours, panels, axes of parameters, intervals of posteriors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import validation
from ..errors import DomainError, ShapeError

# Colours that people with any of the common colour blindnesses can tell apart (Okabe and Ito, 2008).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
COLOR = PALETTE[0]
FAILED = PALETTE[1]
CHOSEN = PALETTE[2]
PENDING = PALETTE[4]
GREY = "#777777"
MARGIN = 0.04  # of a range, on both sides, so that points at its ends are seen whole


def axes_or_new(ax: Any, **size: Any) -> Any:
    """`ax`, or the axes of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(**{"layout": "constrained", **size})[1]


def panels(where: str, ax: Any, count: int, *, columns: int = 3, size: tuple[float, float] = (3.2, 2.6)) -> Any:
    """An array of `count` axes: those given, or those of a new figure.

    Raises:
        ShapeError: There are fewer axes than panels.
    """
    import numpy as np

    if ax is None:
        import matplotlib.pyplot as plt

        width = min(columns, count)
        height = -(-count // width)
        _, grid = plt.subplots(
            height, width, figsize=(size[0] * width + 0.6, size[1] * height + 0.7), squeeze=False, layout="constrained"
        )
        for spare in grid.ravel()[count:]:
            spare.remove()
        return grid.ravel()[:count]
    given = np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
    if len(given) < count:
        raise ShapeError(f"{where}: needs {count} axes, got {len(given)}; make them with plt.subplots, or leave ax out")
    return given[:count]


def check_optimization(where: str, bo: Any) -> Any:
    """`bo` if it has what an optimisation has."""
    if not all(hasattr(bo, name) for name in ("space", "goals", "trials")):
        raise DomainError(f"{where}: expected a BayesianOptimization, got a {type(bo).__name__}")
    return bo


def check_outcome(where: str, bo: Any, outcome: str | None) -> str:
    """The name of an outcome; None: the first target."""
    names: tuple[str, ...] = bo.goals.outcomes
    if outcome is not None and outcome not in names:
        raise DomainError(f"{where}: outcome must be one of {', '.join(map(repr, names))}, got {outcome!r}")
    return names[0] if outcome is None else outcome


def check_probs(where: str, probs: Sequence[float]) -> tuple[float, ...]:
    """Probabilities of central intervals, the widest first."""
    if isinstance(probs, (str, int, float)) or not len(probs):
        raise DomainError(f"{where}: probs must be a list of probabilities such as (0.5, 0.9), got {probs!r}")
    for p in probs:
        validation.positive(where, "probs", p)
        if p >= 1:
            raise DomainError(f"{where}: probs must be below 1, got {p!r}")
    return tuple(sorted((float(p) for p in probs), reverse=True))


def numbers(values: Any) -> Tensor:
    """Anything of numbers in double precision on the CPU."""
    return torch.as_tensor(values, dtype=torch.double).detach().cpu()


def vector(where: str, name: str, values: Any, size: int | None = None) -> Tensor:
    """Finite numbers as a tensor of one dimension (a column counts as one)."""
    try:
        x = numbers(values)
    except (TypeError, ValueError, RuntimeError):
        raise DomainError(f"{where}: {name} must be numbers, got a {type(values).__name__}") from None
    x = x.squeeze(-1) if x.ndim == 2 and x.shape[-1] == 1 else x
    if x.ndim != 1 or not len(x) or (size is not None and len(x) != size):
        expected = "(n,), n > 0" if size is None else f"({size},)"
        raise ShapeError(f"{where}: {name} must have shape {expected}, got {tuple(x.shape)}")
    return validation.tensor(where, name, x)


def summary(
    posterior: Any, probs: Sequence[float], sign: float, units: Any = None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Mean and central intervals of the first outcome of a posterior, times `sign` (1 or -1), on the CPU.

    Args:
        posterior: The posterior.
        probs: Probabilities of the intervals.
        sign: What they are multiplied by.
        units: :class:`probnn.optimization.units.Units` of the posterior, undone; None: none.
    """
    mean = posterior.mean[..., 0].detach()
    tails = [(1 - p) / 2 for p in probs]
    levels = torch.tensor([q for t in tails for q in (t, 1 - t)], dtype=mean.dtype, device=mean.device)
    quantiles, mean = posterior.quantile(levels)[..., 0].detach().cpu(), mean.cpu()
    if units is not None:
        quantiles, mean = units.outside(quantiles), units.outside(mean)
    pairs = [(quantiles[2 * i], quantiles[2 * i + 1]) for i in range(len(probs))]
    return sign * mean, [(low, high) if sign > 0 else (-high, -low) for low, high in pairs]


def place(parameter: Any, value: Any) -> float:
    """Where a value stands on the axis of its parameter: numbers as they are, categories by their index."""
    if not is_category(parameter):
        return float(value)
    coordinate: float = parameter.coordinate(value)
    return coordinate * (len(parameter.choices) - 1) if parameter.ordered else coordinate


def is_category(parameter: Any) -> bool:
    """Whether the values of a parameter are choices."""
    return hasattr(parameter, "choices")


def parameter_axis(ax: Any, side: str, name: str, parameter: Any, values: Sequence[float] = ()) -> None:
    """Scale, ticks and label of the axis of a parameter.

    Args:
        ax: The axes.
        side: ``"x"`` or ``"y"``.
        name: The label.
        parameter: The parameter.
        values: What is drawn, which may lie outside the range.
    """
    from matplotlib.ticker import MaxNLocator, NullLocator

    axis = getattr(ax, f"{side}axis")
    axis.set_label_text(name)
    if is_category(parameter):
        choices = [str(c) for c in parameter.all_choices]
        axis.set_ticks(range(len(choices)), choices)
        getattr(ax, f"set_{side}lim")(-0.6, len(choices) - 0.4)
        if side == "x" and sum(map(len, choices)) + 2 * len(choices) > 26:
            ax.tick_params("x", rotation=35)
            for label in ax.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
    elif parameter.log:
        getattr(ax, f"set_{side}scale")("log")
        low, high = min([parameter.low, *values]), max([parameter.high, *values])
        margin = (high / low) ** MARGIN
        getattr(ax, f"set_{side}lim")(low / margin, high * margin)
        ticks = log_ticks(low, high)
        axis.set_ticks(ticks, [log_label(t) for t in ticks])
        axis.set_minor_locator(NullLocator())
    else:
        low, high = min([parameter.low, *values]), max([parameter.high, *values])
        margin = MARGIN * (high - low)
        getattr(ax, f"set_{side}lim")(low - margin, high + margin)
        axis.set_major_locator(MaxNLocator(5, integer=isinstance(parameter.low, int)))


def log_ticks(low: float, high: float) -> list[float]:
    """At most five round numbers on a logarithmic axis."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first >= 1:
        return [10.0**k for k in range(first, last + 1, -(-(last - first + 1) // 5))]
    round_ = [m * 10.0**k for k in (first - 1, first, first + 1) for m in (1, 2, 5)]
    inside = [t for t in round_ if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]
    return inside if len(inside) > 1 else [low, high]


def log_label(tick: float) -> str:
    """A tick in few characters."""
    if 1e-3 <= tick < 1e4:
        return f"{tick:.3g}"
    mantissa, exponent = f"{tick:.0e}".split("e")
    return (rf"${mantissa}\cdot" if mantissa != "1" else "$") + rf"10^{{{int(exponent)}}}$"


def legend_below(axes: Any, handles: Mapping[str, Any]) -> None:
    """One legend for all panels: under the figure where there is nothing else in it, otherwise in the first panel.

    Args:
        axes: The panels.
        handles: What to explain, by label.
    """
    if not handles:
        return
    figure, ours = axes[0].figure, [one.get_subplotspec() for one in axes]
    # Twins share the place of a panel, and bars of colours have none.
    alone = all(other.get_subplotspec() in (None, *ours) for other in figure.axes)
    if alone and figure.get_constrained_layout():
        columns = max(2, int(figure.get_figwidth() / 1.7))
        style = {"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": "small"}
        figure.legend(list(handles.values()), list(handles), **style)
    else:
        axes[0].legend(list(handles.values()), list(handles), framealpha=0.85, edgecolor="none", fontsize="x-small")
