"""Trials in the space, and where they fail."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import QuadMesh
from matplotlib.contour import ContourSet

from probnn.errors import DomainError
from probnn.optimization import BayesianOptimization, Categorical, Real, Space, Trial
from probnn.plots import plot_space


def shown(ax) -> dict[str, int]:
    return {line.get_label(): len(line.get_xdata()) for line in ax.lines}


def test_every_status_has_its_mark(campaign: BayesianOptimization) -> None:
    _, given = plt.subplots()
    ax = plot_space(campaign, parameters=["rate", "depth"], num_points=5, ax=given)
    assert ax is given and ax.get_xscale() == "log" and (ax.get_xlabel(), ax.get_ylabel()) == ("rate", "depth")
    assert shown(ax) == {"complete": 11, "failed": 3, "pending": 1, "abandoned": 1}
    failed = next(line for line in ax.lines if line.get_label() == "failed")
    assert list(failed.get_xdata()) == [campaign.trials[i]["rate"] for i in (3, 7, 11)]
    assert len({line.get_marker() for line in ax.lines}) == 4
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["complete", "failed", "pending", "abandoned"]


def test_shading_is_the_probability_of_success(campaign: BayesianOptimization) -> None:
    at = campaign.trials[0]
    ax = plot_space(campaign, parameters=["depth", "solvent"], at=at, num_points=4)
    mesh = next(c for c in ax.collections if isinstance(c, QuadMesh))
    success = campaign.success()
    assert success is not None
    expected = [
        [
            success.probability(campaign.space.encode({**at.parameters, "depth": float(depth), "solvent": solvent}))
            for depth in np.linspace(1, 6, 4)
        ]
        for solvent in ("water", "oil", "glycerol")
    ]
    assert np.allclose(np.asarray(mesh.get_array()).reshape(3, 4), expected)
    assert any(a.get_ylabel() == "p_ok (probability of success)" for a in ax.figure.axes)


def test_lines_at_even_odds_separate_failures_from_successes(seed: int) -> None:
    bo = BayesianOptimization(Space(x=Real(0, 1), y=Real(0, 1)), maximize="z", surrogate="random", seed=seed)
    points = torch.quasirandom.SobolEngine(2, scramble=True, seed=seed).draw(40, dtype=torch.double).tolist()
    for i, (x, y) in enumerate(points):
        status = "failed" if x > 0.5 else "complete"
        bo.trials.append(Trial(i, {"x": x, "y": y}, "user", status, {"z": 1.0} if status == "complete" else {}))
    ax = plot_space(bo, num_points=21)
    lines = next(c for c in ax.collections if isinstance(c, ContourSet))
    even = lines.get_paths()[list(lines.levels).index(0.5)].vertices
    assert len(even) and np.abs(np.median(even[:, 0]) - 0.5) < 0.15


def test_up_to_four_parameters_make_a_matrix(campaign: BayesianOptimization) -> None:
    axes = plot_space(campaign, num_points=3)
    pairs = [(ax.get_xlabel(), ax.get_ylabel()) for ax in axes]
    names = ["rate", "depth", "power", "solvent"]
    assert pairs == [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    assert all(shown(ax)["complete"] == 11 for ax in axes)
    assert [t.get_text() for t in axes[2].get_yticklabels()] == ["water", "oil", "glycerol"]


def test_without_failures_there_is_no_shading_and_old_rows_are_on_the_picture() -> None:
    space = Space(x=Real(0, 1), kind=Categorical(["a", "b"]))
    bo = BayesianOptimization(space, maximize="z", surrogate="random")
    bo.trials = [Trial(0, {"x": 1.5, "kind": "c"}, "user", "complete", {"z": 1.0}), *bo.ask(1)]
    ax = plot_space(bo)
    assert not ax.collections and len(ax.figure.axes) == 1
    assert ax.get_xlim()[1] > 1.5 and [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameters": ["rate", "site"]}, "parameters must be some of 'rate'"),
        ({"parameters": ["rate"]}, "needs two to 4 parameters, got 1"),
        ({"parameters": ["rate", "depth", "power", "solvent", "grade"]}, "got 5"),
        ({"parameters": "rate"}, "parameters must be some of"),
        ({"at": {"rate": 0.1}}, "a value of every parameter"),
        ({"num_points": 1}, "num_points"),
    ],
)
def test_bad_input_says_what_to_do(campaign: BayesianOptimization, options: dict, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        plot_space(campaign, **options)
