"""Which parameters matter, and how surely."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DomainError
from .style import COLOR, FAILED, axes_or_new, check_probs

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_importance(importance: Any, *, prob: float = 0.9, ax: Axes | None = None) -> Axes:
    r"""Draw the Sobol indices of each parameter: medians and intervals over posterior draws.

    The total index is the share of the function's variance over the space that goes when all but this
    parameter are known, :math:`S_{T,i} = E[V(f \mid x_{-i})] / V(f)`; the first-order index,
    :math:`S_i = V(E[f \mid x_i]) / V(f)`, counts its effect alone, without interactions (Sobol, 2001). Intervals are
    over functions drawn from the posterior: a wide one says that the data do not tell yet.

    Args:
        importance: From :func:`probnn.optimization.importance.factor_importance`.
        prob: Probability of the central intervals.
        ax: Where to draw; None: a new figure.

    Returns:
        The axes, the parameter with the largest median total index on top.

    Raises:
        DomainError: `importance` is something else, or `prob` is not between 0 and 1.

    Example:
        >>> import torch
        >>> from probnn.optimization import Real, Space
        >>> from probnn.optimization.importance import sobol_indices
        >>> from probnn.plots import plot_importance
        >>> space = Space(a=Real(0, 1), b=Real(0, 1))
        >>> ax = plot_importance(sobol_indices(lambda X: (X[:, 0] + 3 * X[:, 1])[None], space))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['b', 'a']
    """
    where = "plot_importance"
    (p,) = check_probs(where, (prob,))
    if not all(hasattr(importance, name) for name in ("names", "first", "total")):
        raise DomainError(
            f"{where}: expected what probnn.optimization.importance.factor_importance gives, got a "
            f"{type(importance).__name__}"
        )
    names, total = list(importance.names), importance.total
    order = total.median(0).values.argsort(descending=True).tolist()
    ax = axes_or_new(ax, figsize=(5.6, 0.45 * len(names) + 1.5))
    several = len(total) > 1
    what = f", {p:.0%} interval" if several else ""
    _draw(ax, total[:, order], p, -0.1, COLOR, "o", f"total index{what}")
    _draw(ax, importance.first[:, order], p, 0.14, FAILED, "s", f"first-order index{what}")
    ax.set_yticks(range(len(names)), [names[i] for i in order])
    ax.set_ylim(len(names) - 0.5, -0.5)
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, -0.02), max(high, 1.02))
    ax.axvline(0, color="0.8", lw=0.8, zorder=0)
    outcome = getattr(importance, "outcome", "")
    ax.set_xlabel(f"share of the variance of {outcome}" if outcome else "share of the variance")
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.1)
    return ax


def _draw(ax: Any, draws: Tensor, prob: float, shift: float, color: str, marker: str, label: str) -> None:
    levels = torch.tensor([(1 - prob) / 2, 0.5, (1 + prob) / 2], dtype=draws.dtype)
    low, middle, high = draws.quantile(levels, dim=0)
    y = [i + shift for i in range(draws.shape[1])]
    ax.hlines(y, low, high, color=color, lw=2)
    ax.plot(middle, y, marker, color=color, ms=6, mec="white", label=label)
