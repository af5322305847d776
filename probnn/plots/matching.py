"""Figures of a matched prior."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError
from .style import COLOR, FAILED, GREY, panels

_STEPS, _DRAWS = 200, 500


def plot_match(match: Any, path: Any = None, *, ax: Any = None, num_functions: int = 8, seed: int = 0) -> Any:
    """Draw functions of a prior before and after matching, and of its target, on common axes.

    Of the first channel. With several inputs, along the first one, through the middle of the measurement points. The
    bands hold 90 % of 500 functions at every point; the target's is outlined in the other panels too.

    Args:
        match: What :func:`probnn.match_prior` returned.
        path: Where to save the figure; None: nowhere.
        ax: Three axes; None: a new figure.
        num_functions: Functions in each panel.
        seed: Seed of the functions.

    Returns:
        The three axes.

    Raises:
        ShapeError: There are fewer than three axes.
        DomainError: `match` is no match, or a number is out of range.

    Example:
        >>> import torch, gpytorch, probnn
        >>> target = probnn.GaussianProcess(gpytorch.kernels.RBFKernel(), input_dim=1)
        >>> net = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=(8,)), probnn.priors.NormalWeights())
        >>> match = probnn.match_prior(net, target, probnn.priors.Grid(-1, 1, 8), objective="nngp", num_steps=5)
        >>> [one.get_title() for one in match.plot()]
        ['before', 'after', 'target']
    """
    where = "plot_match"
    if not all(hasattr(match, name) for name in ("prior", "start", "target", "points")):
        raise DomainError(f"{where}: expected what match_prior returned, got a {type(match).__name__}")
    validation.positive_int(where, "num_functions", num_functions)
    axes = panels(where, ax, 3)
    X = _line(match.points)
    processes = {"before": match.start, "after": match.prior, "target": match.target}
    x, bands = X[:, 0].cpu(), {}
    for one, (title, process) in zip(axes, processes.items(), strict=True):
        with torch.no_grad():
            f = process.sample(X, (max(_DRAWS, num_functions),), generator=rnd.generator_from(seed))
        f = f[..., 0].detach().cpu()
        low, high = f.quantile(torch.tensor([0.05, 0.95], dtype=f.dtype), dim=0)
        bands[title] = (low, high)
        color = FAILED if title == "target" else COLOR
        one.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
        one.plot(x, f[:num_functions].T, color=color, lw=0.8, alpha=0.8)
        one.set_title(title)
        one.set_xlabel("x" if X.shape[-1] == 1 else "first input")
    for one in axes[:2]:
        for edge in bands["target"]:
            one.plot(x, edge, color=GREY, lw=1, ls="--", label="target, 90 %" if edge is bands["target"][0] else None)
    axes[0].legend(fontsize="x-small", framealpha=0.85, edgecolor="none")
    low, high = (min(float(b[0].min()) for b in bands.values()), max(float(b[1].max()) for b in bands.values()))
    for one in axes:
        one.set_ylim(low - 0.25 * (high - low), high + 0.25 * (high - low))
    if path is not None:
        axes[0].figure.savefig(path, dpi=150)
    return axes


def _line(points: Tensor) -> Tensor:
    """Points along the first input, the others in the middle of theirs: ``steps x d``."""
    low, high = points.amin(0), points.amax(0)
    X = ((low + high) / 2).expand(_STEPS, -1).clone()
    X[:, 0] = torch.linspace(float(low[0]), float(high[0]), _STEPS, dtype=points.dtype, device=points.device)
    return X
