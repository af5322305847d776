"""Figures of functions, and what all figures share."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import probnn
from probnn.errors import DomainError, ShapeError
from probnn.optimization import BayesianOptimization, Categorical, Integer, Real, Space
from probnn.plots import plot_functions, plot_pareto, plot_progress, plot_slices, plot_space, style
from tests.cases import DOUBLE, data, network


def test_functions_show_mean_interval_draws_and_data() -> None:
    process, x = network(input_dim=1), torch.linspace(-1, 1, 11, dtype=DOUBLE)
    _, ax = plt.subplots()
    assert plot_functions(process, x, num_functions=3, data=data(4, 1), ax=ax) is ax
    assert len(ax.lines) == 1 + 3 + 1 and len(ax.collections) == 1
    assert np.allclose(ax.lines[0].get_ydata(), process.predict(x[:, None]).mean[:, 0].numpy())
    with pytest.raises(ShapeError, match="one input"):
        plot_functions(network(), x)


@pytest.mark.parametrize("prob", [0.0, 1.0, 1.5])
def test_an_interval_has_a_probability_between_zero_and_one(prob: float) -> None:
    with pytest.raises(DomainError, match="plot_functions: prob"):
        plot_functions(network(input_dim=1), torch.linspace(-1, 1, 3, dtype=DOUBLE), prob=prob)


@pytest.mark.gpu
def test_functions_on_a_device_are_drawn() -> None:
    process, x = network(input_dim=1), torch.linspace(-1, 1, 11, dtype=DOUBLE)
    X, Y = data(4, 1)
    ax = plot_functions(process.to("cuda"), x.cuda(), data=(X.cuda(), Y.cuda()))
    assert np.allclose(ax.lines[0].get_ydata(), process.predict(x[:, None]).mean[:, 0].numpy(), atol=0.3)


def test_import_is_lazy() -> None:
    assert probnn.plots.plot_functions is plot_functions
    assert probnn.plots.__all__ == sorted(probnn.plots.__all__)


@pytest.mark.parametrize("plot", [plot_progress, plot_slices, plot_pareto, plot_space])
def test_what_is_no_optimisation_is_refused(plot) -> None:
    with pytest.raises(DomainError, match="expected a BayesianOptimization, got a int"):
        plot(3)


@pytest.mark.parametrize("plot", [plot_progress, plot_slices, plot_space])
def test_an_optimisation_without_trials_says_what_to_do(plot) -> None:
    empty = BayesianOptimization(Space(x=Real(0, 1), y=Real(0, 1)), maximize="z", surrogate="gp")
    with pytest.raises(DomainError, match="first"):
        plot(empty)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1e-4, 1.0, [1e-4, 1e-3, 1e-2, 0.1, 1]), (1, 512, [1, 10, 100]), (2, 30, [2, 5, 10, 20]), (3.1, 3.9, [3.1, 3.9])],
)
def test_ticks_of_logarithmic_axes_are_round_and_few(low: float, high: float, expected: list[float]) -> None:
    assert style.log_ticks(low, high) == pytest.approx(expected)
    assert len(style.log_ticks(low, high * 1e12)) <= 5


def test_labels_of_ticks_are_short() -> None:
    assert [style.log_label(t) for t in (0.001, 0.1, 500.0, 1e-5, 2e6)] == [
        "0.001", "0.1", "500", "$10^{-5}$", r"$2\cdot10^{6}$",
    ]  # fmt: skip


def test_axes_of_parameters_have_their_scale_choices_and_room_for_old_rows() -> None:
    _, ax = plt.subplots()
    style.parameter_axis(ax, "x", "size", Categorical([1, 10, 100], ordered=True))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "10", "100"] and ax.get_xlabel() == "size"
    assert style.place(Categorical([1, 10, 100], ordered=True), 100) == 2
    style.parameter_axis(ax, "y", "rate", Real(0.01, 1.0, log=True), [5.0])
    assert ax.get_yscale() == "log" and ax.get_ylim()[1] > 5 and ax.get_ylim()[0] < 0.01
    _, other = plt.subplots()
    style.parameter_axis(other, "x", "depth", Integer(1, 3))
    assert all(t == round(t) for t in other.get_xticks())
