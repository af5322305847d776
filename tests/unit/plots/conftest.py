"""Figures are closed after each test, and a campaign with everything in it."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest
import torch

from probnn.optimization import BayesianOptimization, Categorical, Fixed, Integer, Real, Space, Trial


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def campaign(seed: int) -> BayesianOptimization:
    """Two targets and a bound; a category, grids, a constant; failures, a pending and an abandoned trial."""
    space = Space(
        rate=Real(1e-4, 1.0, log=True),
        depth=Integer(1, 6),
        power=Real(8, 9, step=0.25),
        solvent=Categorical(["water", "oil", "glycerol"]),
        grade=Categorical(["low", "mid", "high"], ordered=True),
        site=Fixed("A"),
    )
    bo = BayesianOptimization(
        space, maximize="gain", minimize="cost", subject_to="dirt <= 0.5", surrogate="gp", seed=seed, warm=False
    )
    points = torch.quasirandom.SobolEngine(len(space), scramble=True, seed=seed).draw(16, dtype=torch.double)
    for i, u in enumerate(points):
        values = space.values(u * space.search_bounds[1])
        trial = Trial(i, values, "user")
        if i in (3, 7, 11):
            trial.status = "failed"
        elif i == 12:
            trial.status = "abandoned"
        elif i != 15:
            trial.status = "complete"
            gain = 50 + 10 * float(u[0]) + 3 * float(u[1]) + 5 * (values["solvent"] == "oil")
            trial.values = {"gain": gain, "cost": 20 + 30 * float(u[0] ** 2), "dirt": 0.9 if i in (1, 5) else 0.1}
            trial.sems = {"gain": 0.5} if i % 2 else {}
        bo.trials.append(trial)
    return bo
