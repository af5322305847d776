"""Spaces with constraints, several targets, failures, histories, and evaluations side by side."""

from __future__ import annotations

import functools
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from botorch.acquisition import AcquisitionFunction

from probnn.errors import DomainError, SerializationError, UnsupportedError
from probnn.optimization import BayesianOptimization, Categorical, Integer, Pool, Real, Space, Trial
from probnn.optimization.predicting import predict
from probnn.optimization.search import _Search, best_setting, every_setting

MIXED = Space(
    learning_rate=Real(1e-4, 1e-1, log=True),
    depth=Integer(1, 8),
    power=Real(8, 9.8, step=0.1),
    loss=Categorical(["a", "b", "c"]),
    constraints=["power + depth <= 14"],
)


def score(learning_rate: float, depth: int, power: float, loss: str) -> float:
    value = -((math.log10(learning_rate) + 2.5) ** 2) - (depth - 4) ** 2 / 8 - (power - 9.2) ** 2
    return value + {"a": 0.0, "b": 0.5, "c": -0.3}[loss]


@functools.cache
def finished() -> BayesianOptimization:
    """A run over the mixed space, shared by tests that only look."""
    return BayesianOptimization(MIXED, maximize="score", surrogate="gp", seed=0).run(score, 14)


def test_a_mixed_space_with_a_constraint() -> None:
    bo = finished()
    assert [t.source for t in bo.trials] == ["initial"] * 5 + ["model"] * 9
    for trial in bo.trials:
        assert MIXED.violations(trial.parameters) == []
        assert trial["power"] == round(trial["power"], 1)
    assert len({tuple(t.parameters.values()) for t in bo.trials}) == 14
    design = max(t.value for t in bo.trials[:5])  # type: ignore[type-var]
    assert bo.best_measured.value > max(design, -0.2)  # type: ignore[operator]


def test_what_is_fixed_today_stays_fixed() -> None:
    bo = BayesianOptimization(MIXED, maximize="score", surrogate="gp", seed=0)
    bo.trials = [Trial(t.number, t.parameters, "user", t.status, dict(t.values)) for t in finished().trials]
    for trial in bo.ask(3, fixed={"loss": "a", "depth": 6}):
        assert trial["loss"] == "a" and trial["depth"] == 6 and trial["power"] <= 8.0 + 1e-12
        assert MIXED.violations(trial.parameters) == []
    with pytest.raises(DomainError, match="loss"):
        bo.ask(fixed={"loss": "z"})
    with pytest.raises(DomainError, match="no setting"):
        bo.ask(fixed={"depth": 8, "power": 9.8})


@pytest.mark.parametrize("surrogate", ["gp", "random"])
def test_mixtures_with_few_ingredients_and_one_temperature(surrogate: str) -> None:
    space = Space(
        a=Real(0, 1, step=0.05),
        b=Real(0, 1, step=0.05),
        c=Real(0, 1),
        d=Real(0, 1),
        temperature=Integer(20, 90),
        constraints=["a + b + c + d = 1", "at most 2 of a, b, c, d", "same in batch: temperature"],
    )

    def taste(a: float, b: float, c: float, d: float, temperature: int) -> float:
        return a * b + 0.5 * c - 0.001 * (temperature - 60) ** 2

    bo = BayesianOptimization(space, maximize="taste", surrogate=surrogate, seed=0, num_initial=6)
    bo.run(taste, 6)
    batch = bo.ask(4)
    assert len({t["temperature"] for t in batch}) == 1
    for trial in [*bo.trials, *batch]:
        x = trial.parameters
        assert abs(math.fsum(x[n] for n in "abcd") - 1) < 1e-9 and sum(x[n] != 0 for n in "abcd") <= 2
        assert space.violations(x) == []


def test_two_targets_and_a_bound() -> None:
    space = Space(x=Real(0, 1), y=Real(0, 1))

    def measure(x: float, y: float) -> dict[str, float]:
        return {"gain": x + 0.5 * y, "cost": x**2 + y, "dirt": x * y}

    bo = BayesianOptimization(space, maximize="gain", minimize="cost", subject_to="dirt <= 0.3", surrogate="gp", seed=0)
    assert bo.acquisition == "qLogNEHVI" and bo.goals.outcomes == ("gain", "cost", "dirt")
    bo.run(measure, 5)
    before = bo.goals.hypervolume(bo.trials, {"gain": 0.0, "cost": 2.0})
    bo.run(measure, 5)
    front = bo.pareto
    assert {t.source for t in bo.trials[5:]} == {"model"}
    assert bo.goals.hypervolume(bo.trials, {"gain": 0.0, "cost": 2.0}) > before
    for t in front:  # nothing beats a trial of the front, by brute force
        assert t.values["dirt"] <= 0.3
        for other in bo.complete:
            if other.values["dirt"] <= 0.3 and other is not t:
                assert other.values["gain"] < t.values["gain"] or other.values["cost"] > t.values["cost"] or (
                    other.values["gain"] == t.values["gain"] and other.values["cost"] == t.values["cost"]
                )  # fmt: skip
    assert bo.best_measured.values["gain"] == max(t.values["gain"] for t in front)


@functools.cache
def _bounded_run(y: float, z: float) -> BayesianOptimization:
    bo = BayesianOptimization(
        Space(x=Real(0, 1)), maximize="y", subject_to=f"z <= {z / 2}", surrogate="gp", num_initial=4, seed=0
    )
    return bo.run(lambda x: {"y": y * (x + 0.2 * math.sin(9 * x)), "z": z * x}, 10)


@pytest.mark.parametrize(("y", "z"), [(1e-2, 1e-2), (1e-3, 1e-3), (1e-6, 1e-6), (1e6, 1e6), (1e-9, 1e6)])
def test_bounds_hold_in_any_unit(y: float, z: float) -> None:
    """The same suggestions whatever the units, and within the bound."""
    usual, other = _bounded_run(1.0, 1.0), _bounded_run(y, z)
    suggested = [t for t in other.trials if t.source == "model"]
    assert sum(t["x"] > 0.52 for t in suggested) <= 1 and len(suggested) == 6  # else nearly all of them
    for a, b in zip(usual.trials, other.trials, strict=True):
        assert a.source == b.source and a["x"] == pytest.approx(b["x"], abs=1e-4)
    # What is reported is in the units of the data again.
    [one], [two] = (predict(bo, [{"x": 0.3}]) for bo in (usual, other))
    assert one.keys() == two.keys() and one["p_ok"] == pytest.approx(two["p_ok"], abs=1e-3)
    for key in one.keys() - {"p_ok"}:
        assert two[key] == pytest.approx((y if key.startswith("y") else z) * one[key], rel=1e-2), key
    assert usual.best_predicted.number == other.best_predicted.number


@pytest.mark.parametrize("acquisition", ["thompson", "qLogEI", "qLogNEHVI"])
def test_suggestions_do_not_depend_on_units(acquisition: str) -> None:
    def y(x: float) -> float:
        return x + 0.2 * math.sin(9 * x)

    found, several = [], acquisition == "qLogNEHVI"
    for unit in (1.0, 1e-7):
        bo = BayesianOptimization(
            Space(x=Real(0, 1)), maximize="y", minimize="z" if several else None, surrogate="gp",
            acquisition=acquisition, num_initial=4, seed=0, reference={"y": 0.0, "z": unit * 1.1} if several else None,
        )  # fmt: skip
        bo.run(lambda x, u=unit: {"y": u * y(x), "z": u * x**2} if several else u * y(x), 8)
        found.append([t["x"] for t in bo.trials])
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_a_simplex_is_searched_to_its_best() -> None:
    """Where single steps leave an equality, pairs of steps do not: the best of all settings is suggested."""
    space = Space(
        a=Real(0, 1, step=0.05), b=Real(0, 1, step=0.05), c=Real(0, 1, step=0.05), kind=Categorical(["x", "y", "z"]),
        constraints=["a + b + c = 1"],
    )  # fmt: skip
    every = list(every_setting(space, {}))
    assert len(every) == 231 * 3
    centre = torch.tensor([0.42, 0.23, 0.35, 1.0], dtype=torch.double)

    class Peak(AcquisitionFunction):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def forward(self, X: torch.Tensor) -> torch.Tensor:
            return -(X.squeeze(-2) - centre).square().sum(-1)

    best = max(every, key=lambda s: float(Peak()(space.coordinates(s).reshape(1, 1, -1))))
    assert best["kind"] == "y"
    search = _Search(Peak(), space, {}, 0)
    search.look_at([{"a": 0.0, "b": 1.0, "c": 0.0, "kind": "x"}])
    for _ in range(40):
        search.look_at(search._neighbours([search.settings[int(search.scores.argmax())]]))
    assert search.best(set()) == best
    assert best_setting(Peak(), space, [], set(), seed=0) == best


def test_targets_measured_cell_by_cell(tmp_path: Path) -> None:
    space = Space(x=Real(0, 1))
    with BayesianOptimization(
        space, maximize=["a", "b"], surrogate="gp", num_initial=3, history=tmp_path / "t.csv"
    ) as bo:
        for i in range(4):
            [trial] = bo.ask()
            bo.tell(trial, {"a": trial["x"]})
            assert not bo.goals.is_complete(trial)
            if i % 2 == 0:
                bo.tell(trial, {"b": 1 - trial["x"]}, sem={"b": 0.1})
                with pytest.raises(DomainError, match="complete already"):
                    bo.tell(trial, {"b": 0.0})
        assert len(bo.data("a").X) >= 4 and len(bo.data("b").X) == 2
        assert bo.ask()[0].source == "model"
        again = [(t.parameters, t.values, t.sems, t.status) for t in bo.trials]
    with BayesianOptimization(space, maximize=["a", "b"], surrogate="gp", history=tmp_path / "t.csv") as bo:
        assert [(t.parameters, t.values, t.sems, t.status) for t in bo.trials] == again


def test_known_and_pooled_noise() -> None:
    bo = BayesianOptimization(Space(x=Real(0, 1)), maximize="y", surrogate="gp", replicates=2, num_initial=3)
    values = iter([1.0, 1.2, 2.0, 2.2, 3.0, 3.2, 1.5, 1.5])
    seen = []
    for _ in range(6):
        [trial] = bo.ask()
        seen.append((trial["x"], trial.source))
        bo.tell(trial, next(values))
    assert [s for _, s in seen] == ["initial", "replicate"] * 2 + ["initial", "replicate"]
    assert [x for x, _ in seen[::2]] == [x for x, _ in seen[1::2]]
    assert bo.data().Yvar is None  # no standard error at all: the model infers the noise
    [trial] = bo.ask()
    bo.tell(trial, 1.5, sem=0.5)
    pooled = 3 * 2 * 0.1**2 / 3  # three settings, two values .1 from their mean each
    expected = torch.tensor([pooled] * 6 + [0.25], dtype=torch.double)
    assert torch.allclose(bo.data().Yvar.squeeze(-1), expected)  # type: ignore[union-attr]


def test_resuming_gives_the_same_suggestions(tmp_path: Path) -> None:
    def options(name: str) -> dict[str, Any]:
        return {"maximize": "score", "surrogate": "laplace", "seed": 3, "history": tmp_path / name}

    with BayesianOptimization(MIXED, **options("whole.csv")) as whole:
        whole.run(score, 9)
    with BayesianOptimization(MIXED, **options("parts.csv")) as first:
        first.run(score, 6)
        with pytest.raises(SerializationError, match="in use"):
            BayesianOptimization(MIXED, **options("parts.csv"))
    for count in (1, 2):
        with BayesianOptimization(MIXED, **options("parts.csv")) as part:
            part.run(score, count)
    read = BayesianOptimization(MIXED, **options("parts.csv"))
    assert [t.parameters for t in read.trials] == [t.parameters for t in whole.trials]
    assert [t.values for t in read.trials] == [t.values for t in whole.trials]
    read.close()


def test_what_was_interrupted_is_evaluated_first(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with BayesianOptimization(MIXED, maximize="score", surrogate="random", history=path) as bo:
        bo.run(score, 2)
        [left] = bo.ask()

        def killed(**parameters: Any) -> float:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            bo.run(killed, 1)
    with BayesianOptimization(MIXED, maximize="score", surrogate="random", history=path) as bo:
        assert [t.status for t in bo.trials] == ["complete", "complete", "pending", "pending"]
        bo.run(score, 1)
        assert [t.status for t in bo.trials] == ["complete", "complete", "pending", "complete"]
        assert bo.trials[3].value == score(**bo.trials[3].parameters) and bo.trials[2].number == left.number


def test_rows_outside_of_the_space_teach(tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    path.write_text("x,kind,y\n-0.5,a,1\n0.5,b,2\n1.7,old,4\n0.25,a,1.5\n0.9,b,3\n", encoding="utf-8")
    space = Space(x=Real(0, 1), kind=Categorical(["a", "b", "c"]))
    with BayesianOptimization(space, maximize="y", surrogate="gp", history=path) as bo:
        assert bo.rows is not None and "2 of 5 rows" in bo.rows.sentence
        assert bo.data().X.shape == (5, 1 + 4)
        [trial] = bo.ask()
        assert trial.source == "model" and space.violations(trial.parameters) == []
        assert trial["x"] > 0.9
    with pytest.raises(DomainError, match=r"row 2.*x"):
        BayesianOptimization(space, maximize="y", history=path, strict=True)


def test_experiments_that_were_not_asked_for(tmp_path: Path) -> None:
    space = Space(x=Real(0, 1), kind=Categorical(["a", "b", "c"]))
    with BayesianOptimization(space, maximize="y", surrogate="gp", history=tmp_path / "t.csv") as bo:
        for i in range(6):
            trial = bo.add({"x": i / 4, "kind": "old" if i % 2 else "a"}, float(i), sem=0.1)
            assert trial.source == "user" and trial.status == "complete"
        bo.add({"x": 0.5, "kind": "b"}, status="failed", note="it burned")
        with pytest.raises(DomainError, match="missing are 'kind'"):
            bo.add({"x": 0.5}, 1.0)
        with pytest.raises(DomainError, match="finite number"):
            bo.add({"x": 0.5, "kind": "a"}, math.nan)
        assert len(bo.trials) == 7 and bo.ask()[0].source == "model"
    assert len(BayesianOptimization(space, maximize="y", history=tmp_path / "t.csv").trials) == 8


def test_failures_teach() -> None:
    space = Space(x=Real(0, 1), y=Real(0, 1))

    def fragile(x: float, y: float) -> float:
        return math.nan if x > 0.6 else 1 - (x - 0.5) ** 2 - (y - 0.5) ** 2 + 0.2 * x

    counts = {}
    for mode in ("learn", "ignore"):
        bo = BayesianOptimization(space, maximize="z", surrogate="gp", seed=0, feasibility=mode)
        for _ in range(16):
            [trial] = bo.ask()
            value = fragile(**trial.parameters)
            bo.tell(trial, status="failed") if math.isnan(value) else bo.tell(trial, value)
        counts[mode] = sum(t.status == "failed" for t in bo.trials[5:])
        assert (bo.success() is None) == (mode == "ignore")
        if mode == "learn":
            model = bo.success()
            assert model is not None
            p = model.probability(torch.tensor([[0.2, 0.5], [0.95, 0.5]], dtype=torch.double))
            assert p[0] > 0.8 and p[1] < 0.2
    assert counts["learn"] < counts["ignore"]


def test_a_pool_is_used_up() -> None:
    space = Space(x=Real(0, 10))
    pool = Pool(space, [{"x": float(i)} for i in range(8)])
    bo = BayesianOptimization(space, maximize="y", surrogate="gp", pool=pool, num_initial=3)
    bo.run(lambda x: -((x - 6) ** 2), 20)
    assert sorted(t["x"] for t in bo.trials) == [float(i) for i in range(8)] and bo.stopped == "exhausted"
    assert {t.source for t in bo.trials} == {"initial", "pool"}
    assert [t["x"] for t in bo.trials].index(6.0) < 6


def test_thompson_sampling_and_what_it_cannot() -> None:
    bo = BayesianOptimization(Space(x=Real(0, 1)), maximize="y", surrogate="gp", acquisition="thompson", seed=1)
    bo.run(lambda x: -((x - 0.3) ** 2), 9)
    assert abs(bo.best_measured["x"] - 0.3) < 0.1 and bo.trials[-1].source == "model"
    for wrong, goals in (("thompson", {"subject_to": "y <= 1"}), ("qLogEI", {"minimize": "z"}), ("qLogNEHVI", {})):
        with pytest.raises(UnsupportedError, match=wrong if wrong != "thompson" else "Thompson"):
            BayesianOptimization(Space(x=Real(0, 1)), maximize="y", acquisition=wrong, **goals)  # type: ignore[arg-type]
    with pytest.raises(DomainError, match="qLogNEI, qLogEI"):
        BayesianOptimization(Space(x=Real(0, 1)), maximize="y", acquisition="EI")


def slow(x: float) -> float:
    time.sleep(60.0 if x > 0.5 else 0.05)
    return x


def test_evaluations_side_by_side_with_a_time_limit() -> None:
    bo = BayesianOptimization(Space(x=Real(0, 1)), maximize="y", surrogate="random", seed=0)
    started = time.perf_counter()
    bo.run(slow, 6, batch_size=3, n_jobs=2, timeout=3.0)
    assert time.perf_counter() - started < 50
    late = [t for t in bo.trials if t["x"] > 0.5]
    assert late and len(bo.trials) == 6
    assert all(t.status == "failed" and "no result within 3 s" in t.note for t in late)
    assert all(t.value == t["x"] for t in bo.trials if t["x"] <= 0.5)


def test_reasons_to_stop() -> None:
    bo = BayesianOptimization(Space(x=Real(0, 1)), minimize="y", surrogate="random", seed=0)
    assert bo.run(lambda x: x, 50, stop_at=0.2).stopped == "target" and bo.best_measured.value <= 0.2  # type: ignore[operator]
    count = len(bo.trials)
    assert bo.run(lambda x: 1.0, 50, patience=4).stopped == "stagnation" and len(bo.trials) == count + 4
    assert bo.run(lambda x: 1.0, 3).stopped == "budget"
