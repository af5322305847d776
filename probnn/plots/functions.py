"""Figures of processes with one input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import random as rnd
from ..errors import ShapeError
from ..process import StochasticProcess
from .style import COLOR, axes_or_new, check_probs, numbers, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def band(ax: Any, x: Tensor, posterior: Any, prob: float, color: str, label: str | None = None) -> None:
    """Draw the central `prob` interval of a posterior's first outcome along x, and its mean."""
    mean, [(low, high)] = summary(posterior, (prob,), 1.0)
    x = x.detach().cpu()
    ax.fill_between(x, low, high, color=color, alpha=0.2, lw=0, label=label)
    ax.plot(x, mean, color=color, lw=1.8)


def plot_functions(
    process: StochasticProcess,
    x: Tensor,
    *,
    num_functions: int = 8,
    prob: float = 0.9,
    data: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    color: str = COLOR,
    ax: Axes | None = None,
) -> Axes:
    """Draw a process with one input: its mean, an interval and functions drawn from it.

    Args:
        process: The process, with ``input_dim=1``; its first channel is drawn.
        x: Where, of length n.
        num_functions: How many functions to draw; 0 for none.
        prob: Probability of the central interval.
        data: X ``n x 1`` and Y ``n x m`` to show as points.
        seed: Seed of the functions.
        color: Colour of everything but the data.
        ax: Where to draw; None: a new figure.

    Returns:
        The axes.

    Raises:
        ShapeError: The process has several inputs, or x is not a vector.
        DomainError: `prob` is not between 0 and 1.

    Example:
        >>> import torch, probnn
        >>> from probnn.plots import plot_functions
        >>> net = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=(8,)), probnn.priors.NormalWeights())
        >>> ax = plot_functions(net, torch.linspace(-1, 1, 50), num_functions=3)
        >>> ax.get_xlabel(), len(ax.lines)
        ('x', 4)
    """
    if process.input_dim != 1 or x.ndim != 1:
        raise ShapeError(
            f"plot_functions: needs a process of one input and x of shape (n,), got {process.input_dim} inputs and "
            f"x of shape {tuple(x.shape)}"
        )
    (prob,) = check_probs("plot_functions", (prob,))
    ax = axes_or_new(ax, figsize=(6, 3.5))
    X = x.unsqueeze(-1)
    with torch.no_grad():
        band(ax, x, process.predict(X), prob, color, f"{prob:.0%} interval")
        if num_functions:
            f = process.sample_functions((num_functions,), generator=rnd.generator_from(seed))(X)
            ax.plot(x.cpu(), f[..., 0].T.cpu(), color=color, lw=0.7, alpha=0.6)
    if data is not None:
        inputs, outcomes = map(numbers, data)
        ax.plot(inputs[:, 0], outcomes[:, 0], "o", color="black", ms=4, zorder=3, label="data")
    ax.set_xlabel("x")
    ax.set_ylabel("f(x)")
    return ax
