"""Figures of optimisations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import validation
from .functions import COLOR, axes_or_new, band

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#1f6f8b", "#d1495b", "#8d8d8d", "#edae49", "#66a182", "#5e4b8b")


def plot_progress(runs: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """Draw the regret of each run: how far its best value is from the best of all runs, after each trial.

    Args:
        runs: Optimisations (:class:`probnn.optimization.BayesianOptimization`) of one target, by name.
        ax: Where to draw; None: a new figure.

    Returns:
        The axes.
    """
    ax = axes_or_new(ax, figsize=(6, 3.8))
    curves = {name: torch.tensor(bo.best_values()) for name, bo in runs.items()}
    signs = {name: 1.0 if bo.maximize else -1.0 for name, bo in runs.items()}
    best = max((signs[name] * c[~c.isnan()]).max().item() for name, c in curves.items() if (~c.isnan()).any())
    for i, (name, curve) in enumerate(curves.items()):
        regret = best - signs[name] * curve
        ax.step(range(1, len(regret) + 1), regret, where="post", label=name, color=COLORS[i % len(COLORS)], lw=1.8)
    positive = [r for r in torch.cat([best - signs[n] * c for n, c in curves.items()]).tolist() if r > 0]
    if positive:  # the last steps matter as much as the first: a log scale, on which zero is the bottom
        ax.set_yscale("log", nonpositive="clip")
        ax.set_ylim(bottom=min(positive) / 2)
    first = next(iter(runs.values()))
    ax.set_xlabel("evaluations")
    ax.set_ylabel(f"regret in {first.target}\n(distance to the best of all runs)")
    ax.legend(frameon=False)
    return ax


def plot_slices(bo: Any, *, prob: float = 0.9, num_points: int = 101, axes: Any = None) -> Any:
    """Draw the model along each parameter, the others at the best measured setting.

    Args:
        bo: A :class:`probnn.optimization.BayesianOptimization` with complete trials.
        prob: Probability of the central interval of the function.
        num_points: Points along each parameter.
        axes: One axes a parameter; None: a new figure.

    Returns:
        The axes, one a parameter.
    """
    validation.positive("plot_slices", "prob", prob, maximum=1)
    validation.positive_int("plot_slices", "num_points", num_points, 2)
    names = list(bo.space)
    if axes is None:
        import matplotlib.pyplot as plt

        columns = min(3, len(names))
        rows = -(-len(names) // columns)
        _, grid = plt.subplots(
            rows, columns, figsize=(3.3 * columns, 2.6 * rows), sharey=True, squeeze=False, layout="constrained"
        )
        axes = grid.ravel()
        for spare in axes[len(names) :]:
            spare.set_visible(False)
    model, sign = bo.fit(), 1.0 if bo.maximize else -1.0
    centre = bo.space.encode(bo.best_measured.parameters)
    for j, name in enumerate(names):
        ax, parameter = axes[j], bo.space.parameters[name]
        u = torch.linspace(0, 1, num_points, dtype=torch.double)
        X = centre.repeat(num_points, 1)
        X[:, j] = u
        with torch.no_grad():
            posterior = _signed(model.posterior(X), sign)
        values = torch.tensor([float(parameter.decode(c)) for c in u.tolist()], dtype=torch.double)
        band(ax, values, posterior, prob, COLOR)
        done = bo.complete
        at = [float(t[name]) for t in done]
        ax.plot(at, [t.value for t in done], "o", color="black", ms=3, alpha=0.35)
        best = bo.best_measured
        ax.plot([float(best[name])], [best.value], "*", color="#d1495b", ms=11, zorder=4)
        if getattr(parameter, "log", False):
            ax.set_xscale("log")
            ticks = sorted({float(parameter.decode(u)) for u in (0.0, 1 / 3, 2 / 3, 1.0)})
            ax.set_xticks(ticks, [f"{t:.2g}" if t < 1 else f"{t:.0f}" for t in ticks])
            ax.minorticks_off()
        ax.set_xlabel(name)
        if j % 3 == 0:
            ax.set_ylabel(bo.target)
    return axes


def _signed(posterior: Any, sign: float) -> Any:
    if sign > 0:
        return posterior
    if hasattr(posterior, "affine"):
        return posterior.affine(0.0, -1.0)
    return _Negated(posterior)


class _Negated:
    """Mean and variance of minus a Gaussian outcome."""

    def __init__(self, posterior: Any):
        self.mean: Tensor = -posterior.mean
        self.variance: Tensor = posterior.variance
