"""A model along each parameter."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from probnn.errors import DomainError, ShapeError
from probnn.optimization import BayesianOptimization, Integer, Real, Space
from probnn.plots import plot_slices
from probnn.plots.style import COLOR
from tests.cases import DOUBLE


def mean_of(ax) -> np.ndarray:
    return next(line for line in ax.lines if line.get_color() == COLOR).get_ydata()


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
def test_slices_pass_through_the_best_setting_in_the_units_of_the_data(goal: str, seed: int) -> None:
    space = Space(x=Real(0.01, 1.0, log=True), n=Integer(1, 5))
    bo = BayesianOptimization(space, **{goal: "y"}, surrogate="gp", seed=seed)
    bo.run(lambda x, n: float(np.log(x)) + 0.1 * n, 6)
    axes = plot_slices(bo, num_points=9, probs=(0.9,))
    assert [ax.get_xlabel() for ax in axes] == ["x", "n"] and axes[0].get_xscale() == "log"
    at = space.encode(bo.best_predicted.parameters).repeat(9, 1)
    at[:, 0] = torch.linspace(0, 1, 9, dtype=DOUBLE)
    posterior = bo.fit().posterior(at)
    expected = posterior.mean[:, 0].detach().numpy() * (1 if goal == "maximize" else -1)
    assert np.allclose(mean_of(axes[0]), expected)
    assert expected[-1] > expected[0]
    half = 1.6448536 * posterior.variance[:, 0].detach().sqrt().numpy()
    edge = axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert edge.max() == pytest.approx((expected + half).max()) and edge.min() == pytest.approx((expected - half).min())
    assert np.allclose(axes[1].lines[0].get_xdata(), [1, 2, 3, 4, 5])  # only what can be set


def test_every_kind_of_parameter_has_a_panel(campaign: BayesianOptimization) -> None:
    axes = plot_slices(campaign, num_points=11)
    assert [ax.get_xlabel() for ax in axes] == ["rate", "depth", "power", "solvent", "grade"]  # the constant has none
    assert [len(mean_of(ax)) for ax in axes] == [11, 6, 5, 3, 3]
    assert [t.get_text() for t in axes[3].get_xticklabels()] == ["water", "oil", "glycerol"]
    for ax in axes[:3]:
        assert len(ax.collections) == 3  # bands of 90 and 50 %, bars of known standard errors
        wide, narrow = (c.get_paths()[0].vertices[:, 1] for c in ax.collections[:2])
        assert np.ptp(wide) > np.ptp(narrow)
    wide, narrow = (c.get_segments() for c in axes[3].collections[:2])
    middle = mean_of(axes[3])
    for i in range(3):
        assert np.mean(wide[i][:, 1]) == pytest.approx(middle[i]) and np.ptp(wide[i][:, 1]) > np.ptp(narrow[i][:, 1])
    measured = next(line for line in axes[1].lines if to_hex(line.get_color()) == "#000000")
    assert list(measured.get_xdata()) == [t["depth"] for t in campaign.complete]
    assert list(measured.get_ydata()) == [t.values["gain"] for t in campaign.complete]
    failed = next(line for line in axes[1].lines if line.get_marker() == "x")
    assert list(failed.get_xdata()) == [campaign.trials[i]["depth"] for i in (3, 7, 11)]
    assert len({ax.get_ylim() for ax in axes}) == 1


def test_probability_of_success_is_on_the_right_axis(campaign: BayesianOptimization) -> None:
    at = campaign.trials[0]
    axes = plot_slices(campaign, at=at, num_points=7)
    right = [ax for ax in axes[0].figure.axes if ax not in list(axes)]
    assert len(right) == 5 and [ax.get_ylabel() for ax in right] == ["", "", "p_ok", "", "p_ok"]
    X = campaign.space.encode(at.parameters).repeat(7, 1)
    X[:, 0] = torch.linspace(0, 1, 7, dtype=DOUBLE)
    success = campaign.success()
    assert success is not None
    assert np.allclose(right[0].lines[0].get_ydata(), success.probability(X))
    labels = [t.get_text() for t in axes[0].figure.legends[0].get_texts()]
    assert {"mean", "90% interval", "50% interval", "measured", "failed", "p_ok (right axis)", "the setting"} == set(
        labels
    )


def test_another_outcome_has_its_own_sign_and_label(campaign: BayesianOptimization) -> None:
    at = campaign.trials[0]
    axes = plot_slices(campaign, at=at.parameters, outcome="cost", num_points=5)
    assert axes[0].get_ylabel() == "cost"
    X = campaign.space.encode(at.parameters).repeat(5, 1)
    X[:, 0] = torch.linspace(0, 1, 5, dtype=DOUBLE)
    assert np.allclose(mean_of(axes[0]), -campaign.models()[1].posterior(X).mean[:, 0].detach())


def test_axes_can_be_given(campaign: BayesianOptimization) -> None:
    _, given = plt.subplots(2, 3)
    axes = plot_slices(campaign, ax=given, num_points=3)
    assert list(axes) == list(given.ravel()[:5]) and axes[0].get_legend() is not None
    figure, alone = plt.subplots(1, 5, layout="constrained")
    assert plot_slices(campaign, ax=alone, num_points=3)[0].get_legend() is None and len(figure.legends) == 1
    with pytest.raises(ShapeError, match="needs 5 axes, got 2"):
        plot_slices(campaign, ax=given[0, :2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outcome": "colour"}, "outcome must be one of 'gain', 'cost', 'dirt'"),
        ({"at": {"rate": 0.1}}, "at has no value of 'depth'"),
        ({"at": 3}, "at must be a trial or a mapping"),
        ({"probs": (0.5, 1.0)}, "below 1"),
        ({"probs": 0.9}, "a list of probabilities"),
        ({"num_points": 1}, "num_points must be an integer >= 2"),
    ],
)
def test_bad_input_says_what_to_do(campaign: BayesianOptimization, options: dict, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        plot_slices(campaign, **options)
