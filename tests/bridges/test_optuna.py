"""ProbnnSampler in real studies of Optuna."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

optuna = pytest.importorskip("optuna")

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402
from optuna.samplers import RandomSampler  # noqa: E402
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial  # noqa: E402

from probnn.errors import DomainError  # noqa: E402
from probnn.optimization import BayesianOptimization, Categorical, Integer, Real  # noqa: E402
from probnn.optimization.goals import Goals  # noqa: E402
from probnn.optimization.optuna import ProbnnSampler, _Task, parameter_of  # noqa: E402
from probnn.optimization.trials import Trial as OurTrial  # noqa: E402

SOURCE = "probnn:source"
SQUARE = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}


@pytest.fixture(autouse=True)
def said() -> Iterator[list[str]]:
    """What is said on Optuna's log, which is otherwise quiet."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger, level = logging.getLogger("optuna"), optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.disable_default_handler()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
    optuna.logging.enable_default_handler()
    optuna.logging.set_verbosity(level)


def sampler(seed: int, **settings: Any) -> ProbnnSampler:
    return ProbnnSampler(**{"surrogate": "gp", "n_startup_trials": 5, "seed": seed, **settings})


def sources(study: Any) -> list[str | None]:
    return [t.system_attrs.get(SOURCE) for t in study.trials]


def square(trial: Trial) -> float:
    x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
    return (x - 0.3) ** 2 + (y - 0.6) ** 2


def begun(study: Any, objective: Callable[[float, float], Any], n: int = 6) -> Any:
    """A study with n complete trials on a spiral in the unit square."""
    for i in range(n):
        r, a = 0.5 * math.sqrt((i + 0.5) / n), 2.4 * i
        x, y = 0.5 + r * math.cos(a), 0.5 + r * math.sin(a)
        value = objective(x, y)
        values = list(value) if isinstance(value, tuple) else [value]
        study.add_trial(create_trial(params={"x": x, "y": y}, distributions=SQUARE, values=values))
    return study


# Distributions


@pytest.mark.parametrize(
    ("distribution", "parameter"),
    [
        (FloatDistribution(-1, 2), Real(-1, 2)),
        (FloatDistribution(1e-4, 1, log=True), Real(1e-4, 1, log=True)),
        (FloatDistribution(0.1, 1.0, step=0.1), Real(0.1, 1.0, step=0.1)),
        (IntDistribution(1, 8), Integer(1, 8)),
        (IntDistribution(1, 1024, log=True), Integer(1, 1024, log=True)),
        (IntDistribution(16, 64, step=16), Integer(16, 64, step=16)),
        (CategoricalDistribution([None, True, "1", 1.5]), Categorical((0, 1, 2, 3))),
    ],
)
def test_distributions_are_parameters(distribution: Any, parameter: Any) -> None:
    assert parameter_of(distribution) == parameter


def test_every_level_of_a_grid_is_one_of_optunas() -> None:
    for distribution in (FloatDistribution(8, 9.8, step=0.1), FloatDistribution(-0.3, 0.35, step=0.05)):
        levels = list(parameter_of(distribution).levels())
        assert len(levels) == round((distribution.high - distribution.low) / distribution.step) + 1
        assert all(distribution._contains(level) for level in levels)


def test_names_may_be_anything(seed: int) -> None:
    study = optuna.create_study(sampler=sampler(seed, n_startup_trials=0))
    study.optimize(lambda t: t.suggest_float("a\nb", 0, 1) + t.suggest_float("constraints", 0, 1), n_trials=3)
    assert sources(study) == [None, "initial", "model"]  # no model of one value


# Studies


def all_kinds(trial: Trial) -> float:
    x, rate = trial.suggest_float("x", -1, 1), trial.suggest_float("rate", 1e-4, 1, log=True)
    depth = trial.suggest_int("depth", 2, 20, step=3)
    width = trial.suggest_int("width", 1, 512, log=True)
    power = trial.suggest_float("power", 0.1, 0.9, step=0.2)
    kind = trial.suggest_categorical("kind", ["a", None, True])
    assert trial.suggest_int("one", 3, 3) == 3 and trial.suggest_categorical("word", ["w"]) == "w"
    return x**2 + math.log10(rate) + depth / 9 + math.log(width) - power + (kind is not None)


def test_suggestions_are_of_their_distributions(seed: int) -> None:
    study = optuna.create_study(sampler=sampler(seed, n_startup_trials=14))
    study.optimize(all_kinds, n_trials=16)
    assert sources(study) == [None] + 13 * ["initial"] + 2 * ["model"]
    for t in study.trials[1:]:
        assert t.params["depth"] in range(2, 21, 3) and isinstance(t.params["depth"], int)
        assert t.params["power"] in (0.1, 0.3, 0.5, 0.7, 0.9)  # to the last digit
        assert t.params["width"] in range(1, 513) and t.params["kind"] in ("a", None, True)
        assert -1 <= t.params["x"] <= 1 and 1e-4 <= t.params["rate"] <= 1
    assert sum(t.params["rate"] < 1e-2 for t in study.trials[1:14]) in range(4, 10)  # half of them on the log scale
    assert {t.params["kind"] for t in study.trials} == {"a", None, True}


def mixed(trial: Trial) -> float:
    x, depth = trial.suggest_float("x", -1, 1), trial.suggest_int("depth", 2, 20, step=3)
    kind = trial.suggest_categorical("kind", ["a", None])
    return (x - 0.3) ** 2 + ((depth - 11) / 9) ** 2 + 0.3 * (kind is not None)


def test_better_than_random_with_mixed_parameters(seed: int, said: list[str]) -> None:
    ours, random = 0.0, 0.0
    for s in range(3 * seed, 3 * seed + 3):
        study = optuna.create_study(sampler=sampler(s))
        study.optimize(mixed, n_trials=12)
        ours += study.best_value
        study = optuna.create_study(sampler=RandomSampler(seed=s))
        study.optimize(mixed, n_trials=12)
        random += study.best_value
    assert ours < 0.5 * random
    assert said == []


def test_running_trials_are_pending(seed: int) -> None:
    study = begun(optuna.create_study(sampler=sampler(seed)), lambda x, y: (x - 0.3) ** 2 + (y - 0.6) ** 2)
    asked = [study.ask(), study.ask(SQUARE)]
    asked[0].suggest_float("x", 0, 1)  # y is not set yet, but decided
    asked.append(study.ask(SQUARE))
    settings = [torch.tensor([t.suggest_float("x", 0, 1), t.suggest_float("y", 0, 1)]) for t in asked]
    assert sources(study)[6:] == 3 * ["model"]
    for i in range(3):
        for j in range(i):
            assert (settings[i] - settings[j]).norm() > 1e-3
    task = _Task(study, study._storage.get_trial(asked[2]._trial_id), SQUARE, {"x": "x", "y": "y"}, "value")
    assert [t.status for t in task.trials[6:]] == ["pending", "pending"]


@pytest.mark.parametrize("by", ["constraints_func", "set_constraint"])
def test_constraints_are_respected_more_often(by: str, seed: int) -> None:
    def run(constrained: bool) -> float:
        def objective(trial: Trial) -> float:
            x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
            if constrained and by == "set_constraint":
                trial.set_constraint("sum", x + y - 1)
            return x + y

        def constraint(trial: FrozenTrial) -> list[float]:
            return [trial.params["x"] + trial.params["y"] - 1]

        func = constraint if constrained and by == "constraints_func" else None
        study = optuna.create_study(direction="maximize", sampler=sampler(seed, constraints_func=func))
        study.optimize(objective, n_trials=10)
        if constrained:
            assert all(list(t.constraints.values()) == [t.value - 1] for t in study.trials)
            assert study.best_value > 0.9  # the best that keeps the bound
        return sum(t.value <= 1 for t in study.trials[5:]) / 5

    assert run(True) >= run(False) + 0.4


def test_two_objectives(seed: int) -> None:
    def objective(trial: Trial) -> tuple[float, float]:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        away = 4 * (y - 0.7) ** 2  # the front is the line y = 0.7
        return x**2 + away, -((x - 1) ** 2) - away

    def volume(samplers: Any) -> float:
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=samplers)
        study.optimize(objective, n_trials=10)
        goals = Goals.of("b", "a")
        done = [OurTrial(t.number, {}, "", "complete", dict(zip("ab", t.values, strict=True))) for t in study.trials]
        return goals.hypervolume(done, {"a": 1.0, "b": -1.0})

    seeds = (2 * seed, 2 * seed + 1)
    assert sum(volume(sampler(s)) for s in seeds) > 1.1 * sum(volume(RandomSampler(seed=s)) for s in seeds)


def test_conditional_parameters_are_said_to_be_independent(seed: int, said: list[str]) -> None:
    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", -1, 1)
        return x**2 + (trial.suggest_float("y", 0, 1) if trial.number % 2 else 0)

    def values(warn: bool) -> list[Any]:
        study = optuna.create_study(sampler=sampler(seed, warn_independent_sampling=warn))
        study.optimize(objective, n_trials=8)
        assert sources(study)[1:] == 4 * ["initial"] + 3 * ["model"]
        return [t.params for t in study.trials]

    first = values(True)
    assert len(said) == 1 and "`y` is sampled independently" in said[0]
    assert len({p["y"] for p in first if "y" in p}) == 4
    assert values(False) == first
    assert len(said) == 1


@pytest.mark.parametrize("storage", ["journal", "memory"])
def test_resumed_studies_go_on_with_the_same_suggestions(storage: str, seed: int, tmp_path: Path) -> None:
    def file() -> Any:
        from optuna.storages.journal import JournalFileBackend

        return optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "journal")))

    study = optuna.create_study(study_name="s", storage=file() if storage == "journal" else None, sampler=sampler(seed))
    study.optimize(square, n_trials=6)
    if storage == "journal":
        other = optuna.create_study(study_name="other", storage=file(), sampler=sampler(seed))
    else:
        other = optuna.create_study(sampler=sampler(seed))
    other.add_trials(study.trials)
    study.optimize(square, n_trials=2)
    if storage == "journal":
        loaded = optuna.load_study(study_name="other", storage=file(), sampler=sampler(seed))
        assert len(loaded.trials) == 6
        other = loaded
    other.optimize(square, n_trials=2)
    assert [t.params for t in study.trials] == [t.params for t in other.trials]
    assert sources(study)[6:] == sources(other)[6:] == ["model", "model"]


def test_two_threads(seed: int) -> None:
    study = optuna.create_study(sampler=sampler(seed))
    study.optimize(square, n_trials=8, n_jobs=2)
    assert [t.state for t in study.trials] == 8 * [TrialState.COMPLETE]
    assert len({(t.params["x"], t.params["y"]) for t in study.trials}) == 8
    assert sources(study).count("model") >= 2


def test_workers_that_ask_at_once_get_different_places_of_the_design(seed: int) -> None:
    study = begun(optuna.create_study(sampler=sampler(seed, n_startup_trials=50)), lambda x, y: x)
    trials = [study.ask() for _ in range(4)]  # none sees a setting of another
    storage, space = study._storage, SQUARE
    frozen = [storage.get_trial(t._trial_id) for t in trials]
    found = [
        sampler(seed, n_startup_trials=50)._choose(_Task(study, t, space, {"x": "x", "y": "y"}, "value"))
        for t in frozen
    ]
    assert len({s["x"] for s, _ in found}) == 4 and {source for _, source in found} == {"initial"}


# What trials mean


def state_of(study: Any, pruned: str = "value") -> dict[int, tuple[str, dict[str, float]]]:
    trial = study._storage.get_trial(study.ask()._trial_id)
    task = _Task(study, trial, SQUARE, {"x": "x", "y": "y"}, pruned)
    return {t.number: (t.status, t.values) for t in task.trials}


def test_states_of_trials() -> None:
    study = optuna.create_study()
    at = {"params": {"x": 0.5, "y": 0.5}, "distributions": SQUARE}
    wide = {"params": {"x": 3.0, "y": 0.5}, "distributions": {**SQUARE, "x": FloatDistribution(0, 4)}}
    study.add_trial(create_trial(**at, value=1.0))
    study.add_trial(create_trial(**at, state=TrialState.FAIL))
    study.add_trial(create_trial(**at, state=TrialState.PRUNED, value=2.0))
    study.add_trial(create_trial(**at, state=TrialState.PRUNED))
    study.add_trial(create_trial(**at, value=math.inf))
    study.add_trial(create_trial(**wide, value=4.0))
    study.add_trial(create_trial(params={"x": 0.5}, distributions={"x": SQUARE["x"]}, state=TrialState.FAIL))
    study.enqueue_trial({"x": 0.25, "y": 0.75})
    study.enqueue_trial({"x": 0.25})
    study.add_trial(create_trial(state=TrialState.RUNNING))
    expected = {
        0: ("complete", {"y0": 1.0}), 1: ("failed", {}), 2: ("complete", {"y0": 2.0}), 3: ("abandoned", {}),
        4: ("failed", {}), 5: ("complete", {"y0": 4.0}),
    }  # fmt: skip
    study.ask()  # takes the first of the queue, which so is running
    assert state_of(study) == {**expected, 7: ("pending", {})}
    assert state_of(study, "ignore") == {**expected, 2: ("abandoned", {}), 7: ("pending", {})}


def test_pruning_gives_the_last_intermediate_value() -> None:
    def objective(trial: Trial) -> float:
        square(trial)
        trial.report(3.0, 0)
        trial.report(2.5, 1)
        raise optuna.TrialPruned

    study = optuna.create_study()
    study.optimize(objective, n_trials=1)
    assert state_of(study) == {0: ("complete", {"y0": 2.5})}


def test_failures_teach(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the square fails: the loop that suggests has a model that knows which."""
    found: list[Any] = []
    learn = BayesianOptimization.success
    monkeypatch.setattr(BayesianOptimization, "success", lambda bo: found.append(learn(bo)) or found[-1])
    for feasibility in ("learn", "ignore"):
        study = optuna.create_study(sampler=sampler(seed, feasibility=feasibility))
        for i in range(12):
            at = {"x": i / 11, "y": (5 * i % 12) / 11}
            came: dict[str, Any] = {"state": TrialState.FAIL} if at["x"] > 0.5 else {"value": at["x"]}
            study.add_trial(create_trial(params=at, distributions=SQUARE, **came))
        study.ask(SQUARE)
        assert sources(study)[-1] == "model"
    model, nothing = found
    p = model.probability(torch.tensor([[0.2, 0.5], [0.8, 0.5]], dtype=torch.double))
    assert p[0] > 0.8 and p[1] < 0.2 and nothing is None


def test_enqueued_values_are_kept(seed: int) -> None:
    study = begun(optuna.create_study(sampler=sampler(seed)), lambda x, y: (x - y) ** 2)
    study.enqueue_trial({"x": 0.9})
    study.enqueue_trial({"x": 0.1, "y": 0.2})
    study.optimize(lambda t: (t.suggest_float("y", 0, 1) - t.suggest_float("x", 0, 1)) ** 2, n_trials=2)
    first, second = study.trials[-2:]
    assert first.params["x"] == 0.9 and abs(first.params["y"] - 0.9) < 0.25  # the model knows where y belongs
    assert second.params == {"x": 0.1, "y": 0.2}


def test_a_finite_space_is_tried_without_repeats_and_then_repeated_aloud(seed: int, said: list[str]) -> None:
    study = optuna.create_study(sampler=sampler(seed, n_startup_trials=3))
    study.optimize(lambda t: t.suggest_int("a", 0, 1) + t.suggest_categorical("b", [0, 2]), n_trials=6)
    assert len({tuple(t.params.items()) for t in study.trials[:4]}) == 4
    assert sources(study) == [None, "initial", "initial", "model"] + 2 * ["random(every setting was tried)"]
    assert len(said) == 1 and "repeated at random" in said[0]


def test_other_surrogates_and_acquisitions(seed: int) -> None:
    for settings, source in (({"surrogate": "random"}, "random"), ({"acquisition": "thompson"}, "model")):
        study = begun(optuna.create_study(sampler=sampler(seed, **settings)), lambda x, y: x + y)
        study.optimize(square, n_trials=1)
        assert sources(study)[-1] == source


def test_seeds() -> None:
    assert ProbnnSampler().seed != ProbnnSampler().seed
    drawn = []
    for s in (0, 0, 1):
        study = optuna.create_study(sampler=sampler(s))
        study.optimize(square, n_trials=3)
        drawn.append([t.params for t in study.trials])
    assert drawn[0] == drawn[1] != drawn[2]


# Bad input


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"surrogate": "forest"}, "forest"),
        ({"surrogate": 3}, "surrogate"),
        ({"acquisition": "EI"}, "acquisition"),
        ({"n_startup_trials": -1}, "n_startup_trials"),
        ({"seed": -1}, "seed"),
        ({"constraints_func": 3}, "constraints_func"),
        ({"independent_sampler": 3}, "independent_sampler"),
        ({"feasibility": "maybe"}, "feasibility"),
        ({"pruned": "maybe"}, "pruned"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(DomainError, match=words):
        ProbnnSampler(**settings)


@pytest.mark.parametrize("result", [[math.nan], None, ["a"]])
def test_constraints_must_be_numbers(result: Any) -> None:
    study = optuna.create_study(sampler=sampler(0, constraints_func=lambda trial: result))
    with pytest.raises(DomainError, match="constraints_func"):
        study.optimize(square, n_trials=1)
