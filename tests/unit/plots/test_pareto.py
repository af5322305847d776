"""Targets against each other."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from probnn.errors import DomainError, ShapeError
from probnn.optimization import BayesianOptimization, Real, Space, Trial
from probnn.plots import plot_pareto
from probnn.plots.style import COLOR, FAILED, PENDING


def told(rows: list[tuple[float, ...]], surrogate: str = "random", **options) -> BayesianOptimization:
    names = ["gain", "cost", "time"][: len(rows[0])]
    space = Space(x=Real(0, 1))
    bo = BayesianOptimization(space, maximize=names[:1], minimize=names[1:], surrogate=surrogate, **options)
    for i, row in enumerate(rows):
        values = dict(zip(names, row, strict=True))
        bo.trials.append(Trial(i, {"x": i / len(rows)}, "user", "complete", values))
    return bo


def points(ax, color: str, marker: str = "o") -> list[tuple[float, float]]:
    lines = [line for line in ax.lines if line.get_color() == color and line.get_marker() == marker]
    return [tuple(map(float, xy)) for line in lines for xy in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def test_front_staircase_and_area_of_two_targets() -> None:
    bo = told([(1, 1), (3, 4), (2, 2), (1, 5), (2, 3)], reference={"gain": 0, "cost": 6})
    _, given = plt.subplots()
    ax = plot_pareto(bo, ax=given)
    assert ax is given
    assert sorted(points(ax, COLOR)) == [(1, 1), (2, 2), (3, 4)]
    assert sorted(points(ax, "#777777")) == [(1, 5), (2, 3)]
    assert points(ax, "black", "P") == [(0, 6)]
    stairs = next(line for line in ax.lines if line.get_marker() == "None")
    assert list(zip(stairs.get_xdata(), stairs.get_ydata(), strict=True)) == [(3, 4), (2, 4), (2, 2), (1, 2), (1, 1)]
    x, y = ax.patches[0].get_xy()[:-1].T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert area == pytest.approx(bo.goals.hypervolume(bo.trials, bo.reference))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("gain (larger is better)", "cost (smaller is better)")


def test_only_what_beats_the_reference_is_shaded() -> None:
    ax = plot_pareto(told([(1, 1), (3, 4)], reference={"gain": 2, "cost": 6}))
    assert sorted(set(map(tuple, ax.patches[0].get_xy().tolist()))) == [(2, 4), (2, 6), (3, 4), (3, 6)]
    none = plot_pareto(told([(1, 1), (3, 4)], reference={"gain": 5, "cost": 6}))
    assert not none.patches and sorted(points(none, COLOR)) == [(1, 1), (3, 4)]


def test_bounds_and_pending_trials(campaign: BayesianOptimization) -> None:
    ax = plot_pareto(campaign)
    broken = [(t.values["gain"], t.values["cost"]) for t in (campaign.trials[1], campaign.trials[5])]
    assert points(ax, FAILED) == broken
    assert len(points(ax, COLOR)) == len(campaign.pareto)
    X = campaign.points([campaign.trials[15]])
    gain, cost = (float(m.posterior(X).mean) for m in campaign.models()[:2])
    assert np.allclose(points(ax, PENDING, "D"), [(gain, -cost)])
    bars = [c.get_segments()[0] for c in ax.collections]
    std = float(campaign.models()[0].posterior(X).variance.sqrt())
    assert np.ptp(bars[0][:, 0]) == pytest.approx(2 * std)
    [at] = points(ax, "black", "P")
    able = [t for t in campaign.trials if campaign.goals.is_feasible(t)]
    scores = torch.tensor([campaign.goals.scores(t) for t in able], dtype=torch.double)
    low = campaign.goals.reference_point(scores)
    assert at == pytest.approx((float(low[0]), -float(low[1])))
    labels = {t.get_text() for t in ax.figure.legends[0].get_texts()}
    assert {"breaks a bound", "measured", "Pareto front", "pending (expected)", "reference point"} <= labels
    assert not points(plot_pareto(campaign, pending=False), PENDING, "D")


def test_three_targets_have_a_panel_for_each_pair() -> None:
    bo = told([(1, 1, 3), (2, 2, 2), (1, 2, 4), (3, 3, 1)], reference={"gain": 0, "cost": 5, "time": 5})
    axes = plot_pareto(bo)
    assert [ax.get_xlabel().split()[0] + "-" + ax.get_ylabel().split()[0] for ax in axes] == [
        "gain-cost", "gain-time", "cost-time",
    ]  # fmt: skip
    assert points(axes[2], "#777777") == [(2, 4)] and len(points(axes[2], COLOR)) == 3
    assert not any(ax.patches for ax in axes)  # the front of three is no line in a panel of two
    assert plot_pareto(bo, targets=["time", "gain"]).get_ylabel() == "gain (larger is better)"
    with pytest.raises(ShapeError, match="needs 3 axes, got 1"):
        plot_pareto(bo, ax=axes[0])


def test_everything_may_break_a_bound() -> None:
    bo = told([(1, 1), (2, 2)], subject_to="gain >= 10")
    ax = plot_pareto(bo)
    assert points(ax, FAILED) == [(1, 1), (2, 2)] and not points(ax, COLOR) and not ax.patches


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plot_pareto(told([(1,), (2,)])), "needs at least two targets, there is gain"),
        (lambda: plot_pareto(told([(1, 2)]), targets=["gain", "colour"]), "targets must be some of 'gain', 'cost'"),
        (lambda: plot_pareto(told([(1, 2)]), targets="gain"), "targets must be some of"),
    ],
)
def test_bad_input_says_what_to_do(make, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        make()


def test_without_measurements_there_is_nothing_to_draw() -> None:
    bo = told([(1, 2)])
    bo.trials[0].values.pop("cost")
    with pytest.raises(DomainError, match="no trial has all of 'gain', 'cost' measured"):
        plot_pareto(bo)
