"""Which setting an optimisation suggests next."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .. import random as rnd
from ..errors import ConvergenceError, DomainError
from .acquisition import OverSpace, build
from .feasible import design
from .search import Key, best_of_pool, best_setting, key_of, quiet
from .trials import Trial
from .units import Units

if TYPE_CHECKING:
    from .loop import BayesianOptimization


class ExhaustedError(DomainError):
    """Every setting there is was suggested already."""


MAX_SKIPS = 64  # settings of a design that were tried already


def suggest(bo: BayesianOptimization, num_trials: int, fixed: dict[str, Any]) -> list[Trial]:
    """See :meth:`BayesianOptimization.ask`.

    Args:
        bo: The optimisation.
        num_trials: How many.
        fixed: Values to keep, by name.
    """
    asked: list[Trial] = []
    while len(asked) < num_trials:
        if asked:  # what must be the same in a batch is what the first one has
            fixed |= {name: asked[0].parameters[name] for name in bo.space.same_in_batch}
        try:
            values, source = choose(bo, fixed)
        except ExhaustedError:
            if asked:  # fewer than wished for: there are no more
                return asked
            raise
        wrong = bo.space.violations(values, [t.parameters for t in asked])
        if wrong:
            raise ConvergenceError(
                f"BayesianOptimization.ask: found no setting that satisfies everything: {'; '.join(wrong)}"
            )
        trial = Trial(bo.next_number, values, source)
        bo.record(trial)
        bo.trials.append(trial)
        asked.append(trial)
    return asked


def choose(bo: BayesianOptimization, fixed: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The next setting and where it comes from.

    Args:
        bo: The optimisation, with everything asked and told so far.
        fixed: Values to keep, by name.
    """
    if bo.replicates > 1 and (again := _to_replicate(bo, fixed)) is not None:
        return dict(again), "replicate"
    if bo.surrogate == "random":
        return _random(bo, fixed), "random"
    used = {key_of(bo.space, t.parameters) for t in bo.trials if t.status != "abandoned"}
    if len(used) < bo.num_initial or any(len(bo.data(name).X) < 2 for name in bo.goals.outcomes):
        return _initial(bo, fixed), "initial"
    try:
        return _from_model(bo, fixed), "model" if bo.pool is None else "pool"
    except (ConvergenceError, torch.linalg.LinAlgError) as error:
        words = " ".join(str(error).split())
        warnings.warn(f"BayesianOptimization.ask: a random setting instead of a model's: {words}", stacklevel=4)
        return _random(bo, fixed), f"random({words})"


def _to_replicate(bo: BayesianOptimization, fixed: Mapping[str, Any]) -> dict[str, Any] | None:
    """The latest setting that was suggested fewer times than it should be."""
    count: dict[Key, int] = {}
    latest: dict[Key, Any] = {}
    for trial in bo.trials:
        if trial.status != "abandoned":
            key = key_of(bo.space, trial.parameters)
            count[key] = count.get(key, 0) + 1
            latest[key] = trial
    for key, trial in reversed(latest.items()):
        kept = all(trial.parameters[name] == value for name, value in fixed.items())
        if kept and trial.source != "user" and trial.status != "failed" and count[key] < bo.replicates:
            return dict(trial.parameters)
    return None


def _taken(bo: BayesianOptimization) -> set[Key]:
    return {key_of(bo.space, t.parameters) for t in bo.trials}


def _seed(bo: BayesianOptimization) -> int:
    """One for every trial, that does not depend on what a process did before."""
    return (bo.seed + 1_000_003 * bo.next_number) % 2**62


def _initial(bo: BayesianOptimization, fixed: dict[str, Any]) -> dict[str, Any]:
    """The next setting of a space-filling sequence that was not tried."""
    if bo.pool is not None:
        return _random(bo, fixed)
    taken, at = _taken(bo), sum(t.source == "initial" for t in bo.trials)
    for skip in range(at, at + MAX_SKIPS):
        [values] = design(bo.space, 1, bo.seed, fixed, skip=skip)
        if key_of(bo.space, values) not in taken:
            return values
    raise _exhausted(fixed)


def _random(bo: BayesianOptimization, fixed: dict[str, Any]) -> dict[str, Any]:
    """A random setting that was not tried."""
    taken = _taken(bo)
    if bo.pool is not None:
        free = [c for c in _candidates(bo, fixed) if key_of(bo.space, c) not in taken]
        if not free:
            raise _pool_is_empty()
        return dict(free[int(torch.randint(len(free), (), generator=rnd.generator_from(_seed(bo))))])
    for skip in range(MAX_SKIPS):
        [values] = design(bo.space, 1, _seed(bo), fixed, skip=skip)
        if key_of(bo.space, values) not in taken:
            return values
    raise _exhausted(fixed)


def _candidates(bo: BayesianOptimization, fixed: Mapping[str, Any]) -> list[dict[str, Any]]:
    pool = bo.pool.candidates if bo.pool is not None else []
    able = [c for c in pool if all(c[name] == value for name, value in fixed.items())]
    if not able:
        raise DomainError(f"BayesianOptimization.ask: no candidate of the pool has {dict(fixed)}")
    return able


def _exhausted(fixed: Mapping[str, Any]) -> ExhaustedError:
    with_fixed = f" with {dict(fixed)}" if fixed else ""
    return ExhaustedError(
        f"BayesianOptimization.ask: every setting found{with_fixed} was suggested already; replicates= suggests "
        "settings more than once, and a wider space has others"
    )


def _pool_is_empty() -> ExhaustedError:
    return ExhaustedError("BayesianOptimization.ask: every candidate of the pool was suggested already")


def _from_model(bo: BayesianOptimization, fixed: dict[str, Any]) -> dict[str, Any]:
    space, goals = bo.model_space, bo.goals
    models, units = map(list, zip(*(bo.unit_model(name) for name in goals.outcomes), strict=True))
    done = bo.complete or [t for t in bo.trials if bo.target in t.values]
    success = bo.success()
    measured = {t.number for t in done}
    # A trial of which some outcomes are still to come is under evaluation too.
    waiting = [t for t in bo.trials if t.status in ("pending", "complete") and t.number not in measured]
    if success is None:  # nothing is gained near a failed setting that it would not give
        waiting += [t for t in bo.trials if t.status == "failed"]
    able = [_inside(units, goals.scores(t)) for t in bo.trials if goals.is_feasible(t)]
    reference = _reference(bo)
    with rnd.forked(rnd.generator_from(_seed(bo))), quiet():
        inner = build(
            bo.acquisition,
            models,
            goals,
            bo.points(done),
            torch.tensor(able, dtype=torch.double).reshape(-1, len(goals.targets)),
            bo.points(waiting),
            reference=None if reference is None else torch.tensor(_inside(units, reference), dtype=torch.double),
            units=units,
            seed=_seed(bo),
        )
    acquisition = OverSpace(inner, space, success)
    if bo.pool is not None:
        candidates = _candidates(bo, fixed)
        points = torch.stack([space.coordinates(c) for c in candidates])
        values = best_of_pool(acquisition, space, candidates, points, _taken(bo))
        if values is None:
            raise _pool_is_empty()
        return values
    good = [t for t in done if all(name in t.values for name in goals.targets)]
    good = sorted((t for t in good if not space.violations(t.parameters)), key=goals.scores, reverse=True)
    near = [{**t.parameters, **fixed} for t in good[:4]]
    values = best_setting(acquisition, space, near, _taken(bo), fixed=fixed, seed=_seed(bo), turn=bo.next_number)
    if values is None:
        raise _exhausted(fixed)
    return values


def _inside(units: Sequence[Units], scores: Sequence[float]) -> list[float]:
    """Scores of the targets, which come first among the outcomes, in the units of the models."""
    return [unit.inside(score) for unit, score in zip(units[: len(scores)], scores, strict=True)]


def _reference(bo: BayesianOptimization) -> list[float] | None:
    """The reference point of the hypervolume, in scores."""
    goals = bo.goals
    if len(goals.targets) == 1:
        return None
    if bo.reference is not None:
        return [goals.sign(n) * bo.reference[n] for n in goals.targets]
    able = [t for t in bo.trials if goals.is_feasible(t)] or bo.complete
    if not able:  # no row has all outcomes: the worst of each
        return [float(bo.data(name).Y.min()) for name in goals.targets]
    return goals.reference_point(torch.tensor([goals.scores(t) for t in able], dtype=torch.double)).tolist()


def best_predicted(bo: BayesianOptimization) -> Trial:
    """The complete trial with the best predicted mean; see :attr:`BayesianOptimization.best_predicted`."""
    done, models = bo.complete, bo.models()
    X = bo.points(done)
    means = torch.cat([m.posterior(X).mean for m in models], -1)
    held = [constraint(means) <= 0 for constraint in bo.goals.constraint_functions()]
    able = torch.stack(held).all(0) if held else torch.ones(len(done), dtype=torch.bool)
    if not able.any():
        able = torch.tensor([bo.goals.is_feasible(t) for t in done])
    if not able.any():
        raise DomainError("BayesianOptimization.best_predicted: no trial keeps within the bounds yet")
    return done[int(means[:, 0].masked_fill(~able, -torch.inf).argmax())]
