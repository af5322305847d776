"""Where trials lie in the space, and where they fail."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import validation
from ..errors import DomainError
from .style import (
    COLOR,
    FAILED,
    GREY,
    PENDING,
    check_optimization,
    is_category,
    legend_below,
    panels,
    parameter_axis,
    place,
)  # fmt: skip

MAX_PARAMETERS = 4
LEVELS = (0.1, 0.5, 0.9)
MARKS: dict[str, dict[str, Any]] = {
    "complete": {"marker": "o", "color": COLOR, "mec": "white", "ms": 6},
    "failed": {"marker": "X", "color": FAILED, "mec": "white", "ms": 8},
    "pending": {"marker": "D", "color": PENDING, "mec": "white", "ms": 6},
    "abandoned": {"marker": "s", "color": GREY, "mfc": "none", "ms": 5},
}


def plot_space(
    bo: Any,
    *,
    parameters: Sequence[str] | None = None,
    at: Any = None,
    num_points: int = 41,
    ax: Any = None,
) -> Any:
    """Draw the trials over two parameters, or over every pair of up to four, marked by what became of them.

    Where a model of failures exists (:meth:`probnn.optimization.BayesianOptimization.success`), the shading is its
    probability of success ``p_ok``, the parameters that a panel does not show being held at one setting, with
    lines at 10, 50 and 90 % between two numbers. Trials are drawn wherever their other parameters are.

    Args:
        bo: A :class:`probnn.optimization.BayesianOptimization` with trials.
        parameters: Names of two to four parameters; None: the first four that are not fixed.
        at: The setting of the others, as a trial or a mapping; None: the best measured trial, or the middle of the
            space where there is none.
        num_points: Points along each number for the shading.
        ax: One axes for each pair; None: a new figure.

    Returns:
        The axes for two parameters, an array of axes for more: pairs in the order of ``itertools.combinations``,
        the first parameter across.

    Raises:
        DomainError: There are no trials, or not two to four parameters of the space.

    Example:
        >>> from probnn.optimization import BayesianOptimization, Real, Space
        >>> from probnn.plots import plot_space
        >>> bo = BayesianOptimization(Space(x=Real(0, 1), y=Real(0, 1)), maximize="z", surrogate="random")
        >>> trials = bo.ask(3)
        >>> bo.tell(trials[0], 1.0)
        >>> bo.tell(trials[1], status="failed")
        >>> [line.get_label() for line in plot_space(bo).lines]
        ['complete', 'failed', 'pending']
    """
    where = "plot_space"
    check_optimization(where, bo)
    validation.positive_int(where, "num_points", num_points, 2)
    names = _names(where, bo, parameters)
    if not bo.trials:
        raise DomainError(f"{where}: there are no trials yet; ask for some first")
    space = bo.model_space
    success = bo.success()
    centre = space.coordinates(_setting(where, bo, at, space)) if success is not None else None
    pairs = list(itertools.combinations(names, 2))
    single = (5.2, 4.0)
    axes = panels(where, ax, len(pairs), size=(3.4, 3.0) if len(pairs) > 1 else single)
    handles: dict[str, Any] = {}
    shading = None
    for one, pair in zip(axes, pairs, strict=True):
        if success is not None and centre is not None:
            shading = _shade(one, space, success, centre, pair, num_points)
        shown = {n: [place(space.parameters[n], t[n]) for t in bo.trials] for n in pair}
        for status, style in MARKS.items():
            rows = [i for i, t in enumerate(bo.trials) if t.status == status]
            if rows:
                x, y = ([shown[n][i] for i in rows] for n in pair)
                handles[status] = one.plot(x, y, ls="none", label=status, zorder=3, **style)[0]
        for side, n in zip("xy", pair, strict=True):
            parameter_axis(one, side, n, space.parameters[n], shown[n])
    if shading is not None:
        axes[0].figure.colorbar(shading, ax=list(axes), label="p_ok (probability of success)", fraction=0.05, pad=0.02)
    legend_below(axes, handles)
    return axes[0] if len(pairs) == 1 else axes


def _names(where: str, bo: Any, parameters: Sequence[str] | None) -> tuple[str, ...]:
    free = tuple(bo.space.free)
    names = free[:MAX_PARAMETERS] if parameters is None else parameters
    if isinstance(names, str) or any(n not in free for n in names) or len(set(names)) < len(names):
        raise DomainError(f"{where}: parameters must be some of {', '.join(map(repr, free))}, got {parameters!r}")
    if not 2 <= len(names) <= MAX_PARAMETERS:
        raise DomainError(
            f"{where}: needs two to {MAX_PARAMETERS} parameters, got {len(names)}; name some by parameters=, "
            "and see plot_slices for one"
        )
    return tuple(names)


def _setting(where: str, bo: Any, at: Any, space: Any) -> dict[str, Any]:
    if at is None:
        able = any(bo.goals.is_feasible(t) for t in bo.trials)
        given = bo.best_measured.parameters if able else space.values(space.search_bounds.mean(0))
    else:
        given = getattr(at, "parameters", at)
    if not isinstance(given, Mapping) or any(n not in given for n in space.free):
        raise DomainError(f"{where}: at must be a trial or a mapping with a value of every parameter, got {at!r}")
    return {n: given[n] for n in space.free}


def _shade(ax: Any, space: Any, success: Any, centre: Tensor, pair: tuple[str, str], num_points: int) -> Any:
    order = list(space.free)
    chosen = [space.parameters[n] for n in pair]
    grids = [_grid(p, num_points) for p in chosen]
    points = centre.repeat(len(grids[1]), len(grids[0]), 1)
    for n, p, grid, shape in zip(pair, chosen, grids, ((1, -1), (-1, 1)), strict=True):
        coordinates = torch.tensor([p.coordinate(v) for v in grid], dtype=points.dtype)
        points[..., order.index(n)] = coordinates.reshape(shape)
    with torch.no_grad():
        p_ok = success.probability(space.features(points))
    x, y = ([place(p, v) for v in grid] for p, grid in zip(chosen, grids, strict=True))
    shading = ax.pcolormesh(x, y, p_ok, cmap="gray", vmin=0, vmax=1, alpha=0.45, shading="nearest", rasterized=True)
    if not any(is_category(p) for p in chosen):
        levels = [v for v in LEVELS if p_ok.min() < v < p_ok.max()]
        if levels:
            lines = ax.contour(x, y, p_ok, levels=levels, colors="black", linewidths=0.9)
            ax.clabel(lines, fmt=lambda v: f"{v:.0%}", fontsize="x-small")
    return shading


def _grid(parameter: Any, num_points: int) -> list[Any]:
    if is_category(parameter):
        return list(parameter.levels())
    return [parameter.raw(u) for u in torch.linspace(0, 1, num_points, dtype=torch.double).tolist()]
