"""Figures: axes in, axes out, and what is on them."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import probnn
from probnn.errors import ShapeError
from probnn.optimization import BayesianOptimization, Integer, Real, Space
from probnn.plots import plot_functions, plot_progress, plot_slices
from tests.cases import DOUBLE, data, network


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_functions_show_mean_interval_draws_and_data() -> None:
    process, x = network(input_dim=1), torch.linspace(-1, 1, 11, dtype=DOUBLE)
    _, ax = plt.subplots()
    assert plot_functions(process, x, num_functions=3, data=data(4, 1), ax=ax) is ax
    assert len(ax.lines) == 1 + 3 + 1 and len(ax.collections) == 1
    assert np.allclose(ax.lines[0].get_ydata(), process.predict(x[:, None]).mean[:, 0].numpy())
    with pytest.raises(ShapeError, match="one input"):
        plot_functions(network(), x)


def test_progress_is_the_distance_to_the_best_of_all_runs() -> None:
    space = Space(x=Real(-1.0, 1.0))
    runs = {}
    for name, seed in (("a", 0), ("b", 1)):
        runs[name] = BayesianOptimization(space, minimize="y", surrogate="random", seed=seed).run(lambda x: x * x, 6)
    ax = plot_progress(runs)
    curves = [line.get_ydata() for line in ax.lines]
    assert min(c[-1] for c in curves) == pytest.approx(0)
    best = min(bo.best_measured.value for bo in runs.values())
    assert curves[0][-1] == pytest.approx(runs["a"].best_measured.value - best)
    assert all((np.diff(c) <= 0).all() for c in curves)


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
def test_slices_pass_through_the_best_setting(goal: str) -> None:
    space = Space(x=Real(0.01, 1.0, log=True), n=Integer(1, 5))
    bo = BayesianOptimization(space, **{goal: "y"}, surrogate="gp")
    bo.run(lambda x, n: float(np.log(x)) + 0.1 * n, 6)
    axes = plot_slices(bo, num_points=9)
    assert [ax.get_xlabel() for ax in axes[:2]] == ["x", "n"] and axes[0].get_xscale() == "log"
    mean = axes[0].lines[0].get_ydata()
    best = bo.best_measured
    at = space.encode(best.parameters).repeat(9, 1)
    at[:, 0] = torch.linspace(0, 1, 9, dtype=DOUBLE)
    expected = bo.fit().posterior(at).mean[:, 0].detach().numpy() * (1 if goal == "maximize" else -1)
    assert np.allclose(mean, expected)
    assert mean[-1] > mean[0]


def test_import_is_lazy() -> None:
    assert probnn.plots.plot_functions is plot_functions
