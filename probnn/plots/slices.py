"""A model along each parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import validation
from ..errors import DomainError
from .style import (
    CHOSEN,
    COLOR,
    FAILED,
    GREY,
    check_optimization,
    check_outcome,
    check_probs,
    is_category,
    legend_below,
    panels,
    parameter_axis,
    place,
    summary,
)  # fmt: skip

COLUMNS = 3
ASIDE = 0.22  # measured points stand beside the bars of a category, and p_ok on the other side


def plot_slices(
    bo: Any,
    *,
    at: Any = None,
    outcome: str | None = None,
    probs: Sequence[float] = (0.5, 0.9),
    num_points: int = 101,
    ax: Any = None,
) -> Any:
    r"""Draw the model along each parameter, the others held at one setting.

    For parameter j the mean and central intervals of the function :math:`t \mapsto f(x_1, .., t, .., x_d)` (not of
    new measurements), in the units of the data. Numbers are lines with bands; categories, and grids of at most
    `num_points` values, are evaluated where they can be set, and categories are points with bars. Measured trials are
    shown at their values of parameter j, whatever their other parameters, so they need not lie within the bands.
    Where a model of failures exists, its probability of success ``p_ok`` is the dashed line, on the right axis.
    Constraints are not looked at: in a mixture only the dotted line, which is the setting, may be settable.

    Args:
        bo: A :class:`probnn.optimization.BayesianOptimization` with measured trials and a surrogate.
        at: The setting, as a trial or a mapping of parameters; None: the best predicted trial.
        outcome: Name of a target or bounded outcome; None: the first target.
        probs: Probabilities of the intervals.
        num_points: Points along each number.
        ax: One axes for each parameter that is not fixed; None: a new figure.

    Returns:
        An array of axes, one a parameter.

    Raises:
        DomainError: Nothing is measured, there is no such outcome, or `at` is no setting of the space.
        ShapeError: There are fewer axes than parameters.

    Example:
        >>> from probnn.optimization import BayesianOptimization, Categorical, Real, Space
        >>> from probnn.plots import plot_slices
        >>> space = Space(x=Real(-1, 1), kind=Categorical(["a", "b"]))
        >>> bo = BayesianOptimization(space, minimize="loss", surrogate="gp").run(lambda x, kind: x * x, 4)
        >>> axes = plot_slices(bo)
        >>> [ax.get_xlabel() for ax in axes]
        ['x', 'kind']
    """
    where = "plot_slices"
    check_optimization(where, bo)
    name = check_outcome(where, bo, outcome)
    widths = check_probs(where, probs)
    validation.positive_int(where, "num_points", num_points, 2)
    measured = [t for t in bo.trials if t.status == "complete" and name in t.values]
    if not measured:
        raise DomainError(f"{where}: {name!r} is not measured in any trial yet; tell a result first")
    space = bo.model_space
    values = _setting(where, bo, at)
    centre = space.coordinates(values)
    (model, units), sign = bo.unit_model(name), bo.goals.sign(name)
    success = bo.success()
    axes = panels(where, ax, len(space), columns=COLUMNS)
    handles: dict[str, Any] = {}
    for j, (parameter_name, parameter) in enumerate(space.free.items()):
        one = axes[j]
        grid = _grid(parameter, num_points)
        X = _along(space, centre, j, [parameter.coordinate(v) for v in grid])
        x = [place(parameter, v) for v in grid]
        with torch.no_grad():
            mean, intervals = summary(model.posterior(X), widths, sign, units)
            p_ok = None if success is None else success.probability(X)
        draw = _bars if is_category(parameter) else _bands
        _keep(handles, draw(one, x, mean, intervals, widths))
        shown = _trials(one, bo, measured, name, parameter_name, parameter, handles)
        line = one.axvline(place(parameter, values[parameter_name]), color=CHOSEN, ls=":", lw=1.2, zorder=1)
        _keep(handles, {"the setting": line})
        parameter_axis(one, "x", parameter_name, parameter, shown)
        if p_ok is not None:
            last = j % COLUMNS == COLUMNS - 1 or j == len(space) - 1
            _keep(handles, {"p_ok (right axis)": _success(one, x, p_ok, is_category(parameter), last)})
        if j % COLUMNS == 0 or ax is not None:
            one.set_ylabel(name)
    _share_y(axes)
    legend_below(axes, handles)
    return axes


def _keep(handles: dict[str, Any], new: dict[str, Any]) -> None:
    """Add what the legend does not show yet."""
    for label, handle in new.items():
        handles.setdefault(label, handle)


def _setting(where: str, bo: Any, at: Any) -> dict[str, Any]:
    if at is None:
        if not bo.complete:
            raise DomainError(f"{where}: no trial is complete, so none is the best; give a setting by at=")
        at = bo.best_predicted
    given = getattr(at, "parameters", at)
    if not isinstance(given, Mapping):
        raise DomainError(f"{where}: at must be a trial or a mapping of parameters, got a {type(at).__name__}")
    missing = [n for n in bo.space.free if n not in given]
    if missing:
        raise DomainError(f"{where}: at has no value of {missing[0]!r}; give one for every parameter")
    return {n: given[n] for n in bo.space.free}


def _grid(parameter: Any, num_points: int) -> list[Any]:
    if is_category(parameter) or (parameter.num_values is not None and parameter.num_values <= num_points):
        return list(parameter.levels())
    return [parameter.raw(u) for u in torch.linspace(0, 1, num_points, dtype=torch.double).tolist()]


def _along(space: Any, centre: Tensor, j: int, coordinates: list[float]) -> Tensor:
    """Features of the setting with coordinate j varied."""
    points = centre.repeat(len(coordinates), 1)
    points[:, j] = torch.tensor(coordinates, dtype=points.dtype)
    features: Tensor = space.features(points)
    return features


def _bands(ax: Any, x: Any, mean: Tensor, intervals: Any, probs: Any) -> dict[str, Any]:
    handles = {"mean": ax.plot(x, mean, color=COLOR, lw=1.8, zorder=2.5)[0]}
    for i, ((low, high), p) in enumerate(zip(intervals, probs, strict=True)):
        alpha = 0.18 + 0.14 * i
        handles[f"{p:.0%} interval"] = ax.fill_between(x, low, high, color=COLOR, alpha=alpha, lw=0)
    return handles


def _bars(ax: Any, x: Any, mean: Tensor, intervals: Any, probs: Any) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    for i, ((low, high), p) in enumerate(zip(intervals, probs, strict=True)):
        bars = ax.vlines(x, low, high, color=COLOR, lw=2.0 + 5.0 * i, alpha=0.5)
        handles[f"{p:.0%} interval"] = bars
    handles["mean"] = ax.plot(x, mean, "o", color=COLOR, ms=4.5, zorder=2.6)[0]
    return handles


def _trials(
    ax: Any, bo: Any, measured: list[Any], outcome: str, name: str, parameter: Any, handles: dict[str, Any]
) -> list[float]:
    """Draw the measured and the failed trials; gives the places of all of them."""
    aside = ASIDE if is_category(parameter) else 0.0
    x = [place(parameter, t[name]) for t in measured]
    failed = [place(parameter, t[name]) for t in bo.trials if t.status == "failed"]
    y = [t.values[outcome] for t in measured]
    bars = [(a + aside, b, t.sems[outcome]) for a, b, t in zip(x, y, measured, strict=True) if t.sems.get(outcome)]
    if bars:
        at, middle, half = (torch.tensor(column) for column in zip(*bars, strict=True))
        ax.vlines(at, middle - half, middle + half, color="0.6", lw=0.8)
    dots = ax.plot([v + aside for v in x], y, "o", color="black", ms=3.5, alpha=0.4, mew=0, zorder=3)
    _keep(handles, {"measured": dots[0]})
    if failed:
        bottom, where = [0.03] * len(failed), ax.get_xaxis_transform()
        marks = ax.plot([v + aside for v in failed], bottom, "x", color=FAILED, ms=5, transform=where)
        _keep(handles, {"failed": marks[0]})
    return x + failed


def _success(ax: Any, x: list[float], p_ok: Tensor, category: bool, last: bool) -> Any:
    right = ax.twinx()
    ax.set_zorder(right.get_zorder() + 1)  # or the line would run over a legend
    ax.patch.set_visible(False)
    if category:
        x = [v - ASIDE for v in x]
    right.set_ylim(0, 1.03)
    right.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    line = right.plot(x, p_ok.detach(), "D" if category else "--", color=GREY, lw=1.2, ms=4, mfc="none")[0]
    if last:
        right.set_ylabel("p_ok", color=GREY)
    right.tick_params("y", colors=GREY, labelright=last)
    return line


def _share_y(axes: Any) -> None:
    limits = [one.get_ylim() for one in axes]
    for one in axes:
        one.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
