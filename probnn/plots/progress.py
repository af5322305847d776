"""How fast optimisations get better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DomainError
from .style import PALETTE, axes_or_new, check_optimization

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_progress(
    runs: Any, *, optimum: float | str | None = None, target: str | None = None, ax: Axes | None = None
) -> Axes:
    r"""Draw the best value so far, or the regret, against the number of evaluations.

    After n evaluations the best value is :math:`b_n = \max_{i \le n} y_i` (min for what is minimised) over the
    trials that keep all bounds, and with `optimum` :math:`y^*` the simple regret :math:`|y^* - b_n|` on a
    logarithmic axis (Bubeck, Munos and Stoltz, 2009, arXiv:0802.2655). Complete and failed trials are evaluations;
    pending and abandoned ones are not. Several runs under one name, such as one for each seed, are shown by their
    mean and a band of one standard error of it, as far as the shortest of them goes.

    Args:
        runs: An optimisation (:class:`probnn.optimization.BayesianOptimization`), or a mapping from names to
            optimisations or lists of them.
        optimum: The best possible value; ``"best"``: the best of all runs; None: no regret, the values themselves.
        target: Name of the target; None: the first one of the first run.
        ax: Where to draw; None: a new figure.

    Returns:
        The axes. Failed trials are crosses on the curve of a single run.

    Raises:
        DomainError: There are no runs or no values, they differ in the target, or a value beats `optimum`.

    Example:
        >>> from probnn.optimization import BayesianOptimization, Real, Space
        >>> from probnn.plots import plot_progress
        >>> runs = [BayesianOptimization(Space(x=Real(-1, 1)), minimize="loss", surrogate="random", seed=s)
        ...         .run(lambda x: x * x, 5) for s in range(3)]
        >>> ax = plot_progress({"random": runs}, optimum=0.0)
        >>> ax.get_ylabel(), ax.get_yscale()
        ('regret in loss', 'log')
    """
    where = "plot_progress"
    groups = _groups(where, runs)
    first = next(iter(groups.values()))[0]
    name = first.goals.targets[0] if target is None else target
    signs = {label: _sign(where, label, group, name) for label, group in groups.items()}
    if len(set(signs.values())) > 1:
        raise DomainError(f"{where}: {name!r} is maximised in one run and minimised in another; draw them apart")
    sign = next(iter(signs.values()))
    curves = {label: [_best(bo, name, sign) for bo in group] for label, group in groups.items()}
    values = torch.cat([c for group in curves.values() for c in group])
    if not len(values) or bool(values.isnan().all()):
        raise DomainError(f"{where}: no trial has a value of {name!r} that keeps the bounds; tell results first")
    best = float(values[~values.isnan()].max())
    if optimum is not None:
        zero = best if optimum == "best" else _optimum(where, optimum, sign, best)
        curves = {label: [zero - c for c in group] for label, group in curves.items()}
    else:
        curves = {label: [sign * c for c in group] for label, group in curves.items()}
    ax = axes_or_new(ax, figsize=(6, 3.8))
    for i, (label, group) in enumerate(curves.items()):
        _draw(ax, label, group, groups[label], PALETTE[i % len(PALETTE)])
    if optimum is not None:
        _log_axis(ax, [c for group in curves.values() for c in group])
    ax.set_xlabel("evaluations")
    of_all = "\n(distance to the best of all runs)" if optimum == "best" else ""
    word = "largest" if sign > 0 else "smallest"
    ax.set_ylabel(f"{word} {name} so far" if optimum is None else f"regret in {name}{of_all}")
    ax.locator_params(axis="x", integer=True)
    if len(groups) > 1 or next(iter(groups)) or ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False)
    return ax


def _groups(where: str, runs: Any) -> dict[str, list[Any]]:
    given = runs if isinstance(runs, Mapping) else {"": runs}
    groups = {str(k): list(v) if isinstance(v, Sequence) else [v] for k, v in given.items()}
    if not groups or not all(groups.values()):
        raise DomainError(f"{where}: runs must hold at least one BayesianOptimization a name")
    for group in groups.values():
        for bo in group:
            check_optimization(where, bo)
    return groups


def _sign(where: str, label: str, group: Sequence[Any], name: str) -> float:
    for bo in group:
        if name not in bo.goals.targets:
            raise DomainError(
                f"{where}: {name!r} is no target of the run {label!r}, which has "
                f"{', '.join(map(repr, bo.goals.targets))}; name a target that all runs have by target="
            )
    signs = {bo.goals.sign(name) for bo in group}
    if len(signs) > 1:
        raise DomainError(f"{where}: {name!r} is maximised in one run of {label!r} and minimised in another")
    return float(signs.pop())


def _optimum(where: str, optimum: Any, sign: float, best: float) -> float:
    if isinstance(optimum, bool) or not isinstance(optimum, (int, float)) or optimum != optimum:
        raise DomainError(f"{where}: optimum must be a number, 'best' or None, got {optimum!r}")
    if best > sign * optimum:
        raise DomainError(
            f"{where}: a run reached {sign * best:.6g}, which beats optimum = {optimum:.6g}; give the best possible "
            "value, or optimum='best' where measurements are noisy"
        )
    return sign * float(optimum)


def _evaluated(bo: Any) -> list[Any]:
    return [t for t in bo.trials if t.status in ("complete", "failed")]


def _best(bo: Any, name: str, sign: float) -> Tensor:
    """The best score after each evaluation, NaN before the first."""
    scores = [sign * t.values[name] if bo.goals.is_feasible(t) else -torch.inf for t in _evaluated(bo)]
    if not scores:
        return torch.empty(0, dtype=torch.double)
    best = torch.tensor(scores, dtype=torch.double).cummax(0).values
    return best.masked_fill(best == -torch.inf, torch.nan)


def _draw(ax: Any, label: str, curves: list[Tensor], group: list[Any], color: str) -> None:
    shown = f"{label} ({len(curves)} runs)" if len(curves) > 1 else label
    length = min(map(len, curves))
    x = range(1, length + 1)
    all_ = torch.stack([c[:length] for c in curves])
    mean = all_.mean(0)
    ax.step(x, mean, where="post", color=color, lw=1.8, label=shown or None)
    if len(curves) > 1:
        error = all_.std(0) / len(curves) ** 0.5
        ax.fill_between(x, mean - error, mean + error, step="post", color=color, alpha=0.2, lw=0)
        return
    at = [i for i, t in enumerate(_evaluated(group[0])) if t.status == "failed"]
    shown_at = [i for i in at if mean[i] == mean[i]]  # before the first success there is no curve to stand on
    if shown_at:
        known = ax.get_legend_handles_labels()[1]
        text = None if "failed" in known else "failed"
        ax.plot([i + 1 for i in shown_at], mean[shown_at], "x", color=color, ms=7, mew=1.6, label=text)


def _log_axis(ax: Any, curves: list[Tensor]) -> None:
    positive = [r for r in torch.cat(curves).tolist() if r > 0]
    if positive:  # the last steps matter as much as the first: a log scale, on which zero is the bottom
        ax.set_yscale("log", nonpositive="clip")
        ax.set_ylim(min(positive) / 2, max(positive) * 2)
