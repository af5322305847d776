"""Several targets against each other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DomainError
from .style import COLOR, FAILED, GREY, PENDING, check_optimization, legend_below, panels


def plot_pareto(bo: Any, *, targets: Sequence[str] | None = None, pending: bool = True, ax: Any = None) -> Any:
    r"""Draw the measured trials and the Pareto front of two targets, or of every pair of several.

    The front is made of the trials that keep all bounds and that no other such trial beats in *all* targets of the
    optimisation. With two targets a line bounds what they dominate, shaded down to the reference point, from
    which hypervolumes are counted; with more, the front is no line in a panel, and its trials are marked. Trials
    that break a bound are hollow. Pending trials stand where the models expect them, with bars of one standard
    deviation of the functions.

    Args:
        bo: A :class:`probnn.optimization.BayesianOptimization` with several targets.
        targets: Names of the targets to draw; None: all.
        pending: Draw pending trials, for which models are fitted; not done where the surrogate is random search.
        ax: One axes for each pair; None: a new figure.

    Returns:
        The axes for two targets, an array of axes for more: pairs in the order of ``itertools.combinations``, the
        first target across.

    Raises:
        DomainError: There are fewer than two targets, an unknown one, or no trial with all of them measured.

    Example:
        >>> from probnn.optimization import BayesianOptimization, Real, Space
        >>> from probnn.plots import plot_pareto
        >>> bo = BayesianOptimization(Space(x=Real(0, 1)), maximize="gain", minimize="cost", surrogate="random")
        >>> for _ in range(4):
        ...     [trial] = bo.ask()
        ...     bo.tell(trial, {"gain": trial["x"], "cost": trial["x"] ** 2})
        >>> ax = plot_pareto(bo)
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('gain (larger is better)', 'cost (smaller is better)')
    """
    where = "plot_pareto"
    names = _targets(where, check_optimization(where, bo), targets)
    done = [t for t in bo.trials if t.status == "complete" and all(n in t.values for n in names)]
    if not done:
        raise DomainError(f"{where}: no trial has all of {', '.join(map(repr, names))} measured; tell results first")
    front = bo.pareto
    able = [t for t in done if bo.goals.is_feasible(t)]
    expected = _expected(bo, names) if pending else {}
    reference = _reference(bo, able)
    pairs = list(itertools.combinations(names, 2))
    axes = panels(where, ax, len(pairs), size=(3.6, 3.2) if len(pairs) > 1 else (4.8, 3.6))
    staircase = len(bo.goals.targets) == 2
    handles: dict[str, Any] = {}
    for one, pair in zip(axes, pairs, strict=True):
        if staircase and front:
            handles |= _staircase(one, bo, front, pair, reference)
        handles |= _marks(one, done, able, front, pair)
        if expected:
            handles["pending (expected)"] = _pending(one, expected, pair)
        if reference is not None:
            at = [reference[n] for n in pair]
            handles["reference point"] = one.plot(*at, "P", color="black", ms=7, mec="white", zorder=4)[0]
        for side, name in zip("xy", pair, strict=True):
            better = "larger" if bo.goals.sign(name) > 0 else "smaller"
            getattr(one, f"{side}axis").set_label_text(f"{name} ({better} is better)")
    legend_below(axes, handles)
    return axes[0] if len(pairs) == 1 else axes


def _targets(where: str, bo: Any, targets: Sequence[str] | None) -> tuple[str, ...]:
    known = bo.goals.targets
    names = known if targets is None else tuple(targets)
    unknown = [n for n in names if n not in known]
    if isinstance(targets, str) or unknown or len(set(names)) < len(names):
        raise DomainError(f"{where}: targets must be some of {', '.join(map(repr, known))}, got {targets!r}")
    if len(names) < 2:
        raise DomainError(f"{where}: needs at least two targets, there is {', '.join(names)}; see plot_progress")
    return names


def _expected(bo: Any, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Means and standard deviations of the pending trials, by target."""
    waiting = [t for t in bo.trials if t.status == "pending"]
    if not waiting or bo.surrogate == "random":
        return {}
    X, out = bo.points(waiting), {}
    for name in names:
        model, units = bo.unit_model(name)
        with torch.no_grad():
            posterior = model.posterior(X)
            mean, std = units.outside(posterior.mean[:, 0]), units.scale * posterior.variance[:, 0].sqrt()
        out[name] = bo.goals.sign(name) * mean, std
    return out


def _reference(bo: Any, able: Sequence[Any]) -> dict[str, float] | None:
    """The reference point in the units of the data."""
    names = bo.goals.targets
    if bo.reference is not None:
        return {n: float(bo.reference[n]) for n in names}
    if not able:
        return None
    scores = torch.tensor([bo.goals.scores(t) for t in able], dtype=torch.double)
    point = bo.goals.reference_point(scores).tolist()
    return {n: bo.goals.sign(n) * value for n, value in zip(names, point, strict=True)}


def _marks(ax: Any, done: list[Any], able: list[Any], front: list[Any], pair: tuple[str, str]) -> dict[str, Any]:
    groups = {
        "breaks a bound": ([t for t in done if t not in able], {"color": FAILED, "mfc": "none", "ms": 6}),
        "measured": ([t for t in able if t not in front], {"color": GREY, "mec": "white", "ms": 6}),
        "Pareto front": (front, {"color": COLOR, "mec": "white", "ms": 8, "zorder": 3}),
    }
    return {
        label: ax.plot([t.values[pair[0]] for t in trials], [t.values[pair[1]] for t in trials], "o", **style)[0]
        for label, (trials, style) in groups.items()
        if trials
    }


def _staircase(
    ax: Any, bo: Any, front: list[Any], pair: tuple[str, str], reference: dict[str, float] | None
) -> dict[str, Any]:
    """The border of what the front dominates, above the reference point."""
    signs = [bo.goals.sign(n) for n in pair]
    steps = sorted(((signs[0] * t.values[pair[0]], signs[1] * t.values[pair[1]]) for t in front), reverse=True)
    back = [(signs[0] * x, signs[1] * y) for x, y in _corners(steps)]
    ax.plot(*zip(*back, strict=True), color=COLOR, lw=1.4)
    if reference is not None:
        low = [signs[i] * reference[n] for i, n in enumerate(pair)]
        above = [s for s in steps if s[0] > low[0] and s[1] > low[1]]
        if above:
            area = [(above[0][0], low[1]), *_corners(above), (low[0], above[-1][1]), (low[0], low[1])]
            shape = [(signs[0] * x, signs[1] * y) for x, y in area]
            return {"dominated": ax.fill(*zip(*shape, strict=True), color=COLOR, alpha=0.12, lw=0)[0]}
    return {}


def _corners(steps: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The staircase through scores that fall in the first target and so rise in the second."""
    corners = [steps[0]]
    for before, step in itertools.pairwise(steps):
        corners += [(step[0], before[1]), step]
    return corners


def _pending(ax: Any, expected: dict[str, tuple[Tensor, Tensor]], pair: tuple[str, str]) -> Any:
    (x, dx), (y, dy) = expected[pair[0]], expected[pair[1]]
    ax.hlines(y, x - dx, x + dx, color=PENDING, lw=1)
    ax.vlines(x, y - dy, y + dy, color=PENDING, lw=1)
    return ax.plot(x, y, "D", color=PENDING, ms=6, mec="white", zorder=3.5)[0]
