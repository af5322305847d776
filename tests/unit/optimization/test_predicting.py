"""Predictions in a person's units."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import norm

from probnn.optimization import BayesianOptimization, Real, Space, Trial
from probnn.optimization.predicting import predict
from probnn.optimization.problems import PROBLEMS, named_problem

SPACE = Space(x=Real(0, 1))


def fitted(surrogate: str = "gp", sem: float | None = None, **goals: object) -> BayesianOptimization:
    bo = BayesianOptimization(SPACE, surrogate=surrogate, warm=False, **goals)
    for i in range(10):
        x = i / 9
        values = {name: (x - 0.4) ** 2 + 0.3 * (name == "b") * x for name in bo.goals.outcomes}
        sems = {} if sem is None else dict.fromkeys(values, sem)
        bo.trials.append(Trial(i, {"x": x}, "user", "complete", values, sems))
    return bo


def test_the_model_and_its_noise(seed: int) -> None:
    bo = fitted(minimize="a")
    [row] = predict(bo, [{"x": 0.7}])
    law = bo.fit().posterior(SPACE.encode({"x": 0.7}).reshape(1, 1, 1), observation_noise=True)
    assert row["a_mean"] == pytest.approx(-law.mean.item())
    assert row["a_std"] == pytest.approx(law.variance.sqrt().item())
    for name, p in (("a_q05", 0.05), ("a_q95", 0.95)):
        assert row[name] == pytest.approx(norm.ppf(p, row["a_mean"], row["a_std"]), rel=1e-5)
    assert row["p_ok"] is None


def test_known_noise_is_that_of_a_new_measurement() -> None:
    """Standard errors of 2 where the outcome hardly varies: a new measurement spreads by 2 as well."""
    [row] = predict(fitted(minimize="a", sem=2.0), [{"x": 0.7}])
    assert row["a_std"] == pytest.approx(2.0, rel=0.2)


@pytest.mark.parametrize("minimize", [None, "b"])
@pytest.mark.parametrize("sign", ["<=", ">="])
def test_the_chance_to_keep_a_bound(minimize: str | None, sign: str) -> None:
    """Bounds on an outcome of its own or on a target to be minimised, from either side."""
    targets = ["a"] if minimize is None else None
    bo = fitted(maximize=targets, minimize=minimize, subject_to=f"b {sign} 0.25")
    for row in predict(bo, [{"x": 0.5}, {"x": 0.75}, {"x": 1.0}]):
        below = norm.cdf((0.25 - row["b_mean"]) / row["b_std"])
        assert row["p_ok"] == pytest.approx(below if sign == "<=" else 1 - below, abs=1e-6)


def test_failures_and_bounds_multiply() -> None:
    bo = fitted(maximize="a")
    bo.trials += [Trial(10 + i, {"x": 0.9 + i / 50}, "user", "failed") for i in range(4)]
    both = BayesianOptimization(SPACE, maximize="a", subject_to="a <= 0.1", surrogate="gp", warm=False)
    both.trials = bo.trials
    at = [{"x": 0.2}, {"x": 0.95}]
    failing, product = predict(bo, at), predict(both, at)
    chance = bo.success().probability(torch.stack([SPACE.encode(s) for s in at]))
    for i in range(2):
        assert failing[i]["p_ok"] == pytest.approx(float(chance[i]))
        below = norm.cdf((0.1 - product[i]["a_mean"]) / product[i]["a_std"])
        assert product[i]["p_ok"] == pytest.approx(float(chance[i]) * below, abs=1e-6)


def test_nothing_to_predict_from() -> None:
    empty = {"a_mean": None, "a_std": None, "a_q05": None, "a_q95": None, "p_ok": None}
    assert predict(fitted("random", maximize="a"), [{"x": 0.5}]) == [empty]
    assert predict(BayesianOptimization(SPACE, maximize="a"), [{"x": 0.5}]) == [empty]
    assert predict(fitted(maximize="a"), []) == []


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_reach_their_optimum(name: str) -> None:
    """At the minimisers that the literature gives (Surjanovic and Bingham, 2013)."""
    at = {
        "branin": [9.42478, 2.475],
        "hartmann6": [0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573],
        "ackley5": [0.0] * 5,
    }[name]
    problem = named_problem(name)
    values = problem.objective(**{f"x{i}": v for i, v in enumerate(at, 1)})
    assert values == pytest.approx(problem.optimum, abs=1e-4)
    assert values == pytest.approx({"branin": 0.397887, "hartmann6": -3.32237, "ackley5": 0.0}[name], abs=1e-4)
