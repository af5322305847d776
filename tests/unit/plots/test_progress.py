"""The best value so far and the regret."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from probnn.errors import DomainError
from probnn.optimization import BayesianOptimization, Real, Space
from probnn.plots import plot_progress


def told(values: list[float | str], goal: str = "minimize", **options) -> BayesianOptimization:
    """A run with these outcomes; a word is a status."""
    bo = BayesianOptimization(Space(x=Real(-1.0, 1.0)), **{goal: "loss"}, surrogate="random", **options)
    for value in values:
        [trial] = bo.ask()
        if value == "pending":
            continue
        bo.tell(trial, **({"status": value} if isinstance(value, str) else {"value": value}))
    return bo


def y(line) -> list[float]:
    return list(line.get_ydata())


def test_best_value_so_far_in_the_units_of_the_data() -> None:
    _, ax = plt.subplots()
    assert plot_progress(told([3.0, 5.0, 1.0, 2.0]), ax=ax) is ax
    assert y(ax.lines[0]) == [3, 3, 1, 1] and list(ax.lines[0].get_xdata()) == [1, 2, 3, 4]
    assert ax.get_ylabel() == "smallest loss so far" and ax.get_xlabel() == "evaluations"
    assert ax.get_yscale() == "linear" and ax.get_legend() is None
    ax = plot_progress(told([3.0, 5.0, 1.0], "maximize"))
    assert y(ax.lines[0]) == [3, 5, 5] and ax.get_ylabel() == "largest loss so far"


def test_failed_trials_are_marked_and_others_do_not_count() -> None:
    bo = told(["failed", 3.0, "abandoned", "failed", "pending", 1.0])
    curve, crosses = plot_progress(bo).lines
    assert np.allclose(y(curve), [np.nan, 3, 3, 1], equal_nan=True)
    assert crosses.get_marker() == "x" and list(crosses.get_xdata()) == [3] and y(crosses) == [3]


def test_regret_to_a_known_optimum() -> None:
    ax = plot_progress({"a": told([3.0, 1.0]), "b": told([2.0, 2.0, 0.5])}, optimum=0.5)
    assert [y(line) for line in ax.lines] == [[2.5, 0.5], [1.5, 1.5, 0]]
    assert ax.get_yscale() == "log" and ax.get_ylabel() == "regret in loss"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    assert ax.get_ylim()[0] == pytest.approx(0.25)
    up = plot_progress(told([3.0, 7.0], "maximize"), optimum=10.0)
    assert y(up.lines[0]) == [7, 3]


def test_regret_to_the_best_of_all_runs() -> None:
    ax = plot_progress({"a": told([3.0, 1.0]), "b": told([2.0, 2.0])}, optimum="best")
    assert [y(line) for line in ax.lines] == [[2, 0], [1, 1]] and "best of all runs" in ax.get_ylabel()


def test_replicates_have_a_mean_and_a_band_of_one_standard_error() -> None:
    ax = plot_progress({"two": [told([3.0, 1.0]), told([5.0, 5.0, 2.0])]})
    assert y(ax.lines[0]) == [4, 3]  # as far as the shorter one goes
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["two (2 runs)"]
    corners = ax.collections[0].get_paths()[0].vertices
    error = [np.std([3, 5], ddof=1) / np.sqrt(2), np.std([1, 5], ddof=1) / np.sqrt(2)]
    assert corners[:, 1].min() == pytest.approx(3 - error[1]) and corners[:, 1].max() == pytest.approx(4 + error[0])


def test_values_that_break_a_bound_are_no_best(campaign: BayesianOptimization) -> None:
    assert {1, 5}.isdisjoint(t.number for t in campaign.trials if campaign.goals.is_feasible(t))
    curve = plot_progress(campaign, target="cost").lines[0]
    assert y(curve)[-1] == min(t.values["cost"] for t in campaign.trials if campaign.goals.is_feasible(t))
    assert len(y(curve)) == 14  # of 16, one is pending and one abandoned
    assert plot_progress(campaign).get_ylabel() == "largest gain so far"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plot_progress(told([3.0, 1.0]), optimum=2.0), "reached 1, which beats optimum = 2"),
        (lambda: plot_progress(told([3.0]), optimum="lowest"), "a number, 'best' or None"),
        (lambda: plot_progress({"a": told([3.0]), "b": told([3.0], "maximize")}), "maximised in one run"),
        (lambda: plot_progress(told([3.0]), target="speed"), "'speed' is no target"),
        (lambda: plot_progress(told(["failed"])), "tell results first"),
        (lambda: plot_progress({}), "at least one BayesianOptimization"),
        (lambda: plot_progress({"a": []}), "at least one BayesianOptimization"),
    ],
)
def test_bad_input_says_what_to_do(make, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        make()
