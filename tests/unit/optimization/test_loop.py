"""Asking and telling."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from probnn.errors import ConvergenceError, DomainError
from probnn.optimization import BayesianOptimization, Integer, Real, Space
from probnn.optimization.trials import best_so_far, write_csv

SPACE = Space(x=Real(-1.0, 1.0), n=Integer(1, 6), rate=Real(1e-3, 1.0, log=True))


def bowl(x: float, n: int, rate: float) -> float:
    return -((x - 0.3) ** 2) - 0.05 * (n - 4) ** 2 - 0.1 * (math.log10(rate) + 1) ** 2


def test_a_model_beats_random_search_on_a_bowl() -> None:
    before = torch.random.get_rng_state()
    bo = BayesianOptimization(SPACE, maximize="score", surrogate="gp", seed=0).run(bowl, 16)
    assert torch.equal(before, torch.random.get_rng_state())
    random = BayesianOptimization(SPACE, maximize="score", surrogate="random", seed=0).run(bowl, 16)
    assert bo.best_measured.value > max(-0.05, random.best_measured.value)
    assert [t.source for t in bo.trials] == ["initial"] * 5 + ["model"] * 11
    assert {t.source for t in random.trials} == {"random"}
    settings = [tuple(t.parameters.values()) for t in bo.trials]
    assert len(set(settings)) == len(settings)
    assert all(-1 <= t["x"] <= 1 and isinstance(t["n"], int) and 1 <= t["n"] <= 6 for t in bo.trials)
    assert bo.best_predicted.status == "complete"


def test_minimising_is_maximising_the_negative() -> None:
    up = BayesianOptimization(SPACE, maximize="score", surrogate="gp", seed=1).run(bowl, 8)
    down = BayesianOptimization(SPACE, minimize="loss", surrogate="gp", seed=1).run(lambda **p: -bowl(**p), 8)
    assert [t.parameters for t in up.trials] == [t.parameters for t in down.trials]
    assert down.best_measured.value == -up.best_measured.value
    assert down.best_values() == [-v for v in up.best_values()]


def test_pending_trials_are_not_suggested_again() -> None:
    bo = BayesianOptimization(SPACE, maximize="score", surrogate="gp", seed=0).run(bowl, 6)
    trials = bo.ask(3)
    assert len({tuple(t.parameters.values()) for t in trials}) == 3
    assert all(t.status == "pending" and t.source == "model" for t in trials)
    X = torch.stack([SPACE.encode(t.parameters) for t in trials])
    assert torch.pdist(X).min() > 0.01


def test_a_failing_objective_is_recorded_and_the_loop_goes_on() -> None:
    def fragile(x: float, n: int, rate: float) -> float:
        if n == 3:
            raise RuntimeError("the oven is off")
        return float("nan") if x > 0.7 else bowl(x, n, rate)

    bo = BayesianOptimization(SPACE, maximize="score", surrogate="gp", seed=0).run(fragile, 12)
    assert len(bo.trials) == 12
    failed = [t for t in bo.trials if t.status == "failed"]
    assert failed and all(t.value is None for t in failed)
    assert any("the oven is off" in t.note or "nan" in t.note for t in failed)


@pytest.mark.parametrize(
    "number",
    [
        3,
        np.float32(3),
        np.int64(3),
        np.array(3.0),
        np.array([3.0]),
        np.array([[3]]),
        torch.tensor([3.0]),
        torch.tensor(3),
    ],
)
def test_one_number_is_a_number(number: object) -> None:
    bo = BayesianOptimization(Space(x=Real(0, 1)), maximize="y", surrogate="random")
    bo.run(lambda x: number, 1).run(lambda x: {"y": (number, number)}, 1)
    assert [(t.value, t.sem) for t in bo.trials] == [(3.0, None), (3.0, 3.0)]
    assert all(type(t.value) is float for t in bo.trials)
    bo.tell(bo.ask()[0], number)  # type: ignore[arg-type]
    assert bo.trials[-1].value == 3.0


@pytest.mark.parametrize(
    "value",
    [
        True,
        np.bool_(False),
        np.array([True]),
        torch.tensor(True),
        "3",
        b"3",
        [3.0],
        np.ones(2),
        torch.ones(2),
        1j,
        10**400,
    ],
)
def test_what_is_no_measurement_has_failed(value: object) -> None:
    bo = BayesianOptimization(Space(x=Real(0, 1)), maximize="y", surrogate="random").run(lambda x: value, 1)
    [trial] = bo.trials
    assert trial.status == "failed" and trial.note.startswith("the objective returned ")
    truth = value is True or "bool" in str(getattr(value, "dtype", ""))
    assert trial.note.endswith(", a truth value, which is no measurement") == truth
    [trial] = bo.ask()
    with pytest.raises(DomainError, match="must be a finite number, got"):
        bo.tell(trial, value)  # type: ignore[arg-type]
    assert trial.status == "pending"


def test_five_failures_in_a_row_stop_the_loop() -> None:
    def broken(**parameters: float) -> float:
        raise ValueError("no data")

    bo = BayesianOptimization(SPACE, maximize="score", surrogate="gp")
    with pytest.raises(ConvergenceError, match="5 evaluations failed in a row.*ValueError: no data") as caught:
        bo.run(broken, 20)
    assert caught.value.partial is bo and len(bo.trials) == 5
    bo.run(bowl, 3)
    assert len(bo.complete) == 3


def test_a_space_with_fewer_settings_than_evaluations() -> None:
    bo = BayesianOptimization(Space(n=Integer(1, 3)), maximize="y", surrogate="gp", num_initial=2)
    bo.run(lambda n: float(n), 6)
    assert bo.best_measured["n"] == 3 and [t["n"] for t in bo.trials].count(3) == 1 and len(bo.trials) == 3
    assert bo.stopped == "exhausted"
    with pytest.raises(DomainError, match="was suggested already; replicates="):
        bo.ask()


@pytest.mark.parametrize("seed_", [0, 1])
def test_the_same_seed_gives_the_same_suggestions(seed_: int) -> None:
    runs = [BayesianOptimization(SPACE, maximize="score", surrogate="gp", seed=seed_).run(bowl, 7) for _ in range(2)]
    assert [t.parameters for t in runs[0].trials] == [t.parameters for t in runs[1].trials]


def test_bad_input() -> None:
    with pytest.raises(DomainError, match="name a target"):
        BayesianOptimization(SPACE)
    with pytest.raises(DomainError, match="'a' is named as a target twice"):
        BayesianOptimization(SPACE, maximize="a", minimize="a")
    with pytest.raises(DomainError, match="'x' is a parameter"):
        BayesianOptimization(SPACE, maximize="x")
    with pytest.raises(DomainError, match="no_such"):
        BayesianOptimization(SPACE, maximize="y", surrogate="no_such")
    with pytest.raises(DomainError, match="Space"):
        BayesianOptimization({"x": (0, 1)}, maximize="y")  # type: ignore[arg-type]
    bo = BayesianOptimization(SPACE, maximize="y", surrogate="random")
    with pytest.raises(DomainError, match="no trial is complete"):
        bo.best_measured  # noqa: B018
    [trial] = bo.ask()
    for value in (math.nan, math.inf, "3", None, True):
        with pytest.raises(DomainError, match="finite number"):
            bo.tell(trial, value)  # type: ignore[arg-type]
    assert trial.status == "pending"
    with pytest.raises(DomainError, match="status"):
        bo.tell(trial, 1.0, status="done")
    with pytest.raises(DomainError, match="has no value"):
        bo.tell(trial, 1.0, status="failed")
    bo.tell(trial, 1)
    with pytest.raises(DomainError, match="complete already"):
        bo.tell(trial, 2.0)
    with pytest.raises(DomainError, match="one that ask gave"):
        bo.tell(BayesianOptimization(SPACE, maximize="y", surrogate="random").ask()[0], 1.0)
    with pytest.raises(DomainError, match="num_trials"):
        bo.ask(0)


def test_tables(tmp_path: Path) -> None:
    bo = BayesianOptimization(SPACE, maximize="score", surrogate="random").run(bowl, 3)
    write_csv(bo.trials, "score", tmp_path / "trials.csv", surrogate="random")
    with open(tmp_path / "trials.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:6] == ["surrogate", "trial", "status", "x", "n", "rate"]
    assert [float(r["score"]) for r in rows] == [t.value for t in bo.trials]
    nan = float("nan")
    assert str(best_so_far([None, 2.0, 1.0, None, 3.0], True)) == str([nan, 2.0, 2.0, 2.0, 3.0])
    assert best_so_far([2.0, 1.0, 3.0], False) == [2.0, 1.0, 1.0]
