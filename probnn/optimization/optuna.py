"""Optuna's studies with the models of this library: a sampler."""

from __future__ import annotations

import json
import math
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.logging import get_logger
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import intersection_search_space
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from .. import random as rnd
from .. import validation
from ..errors import DomainError, UnsupportedError
from ..surrogates import Surrogate, get_surrogate
from .acquisition import ACQUISITIONS
from .choices import Categorical
from .choosing import ExhaustedError
from .feasible import design
from .loop import BayesianOptimization
from .models import ModelCache
from .parameters import Integer, Parameter, Real
from .search import Key, key_of
from .space import Space
from .trials import Trial

if TYPE_CHECKING:
    from optuna.study import Study

_logger = get_logger("optuna.probnn")  # below Optuna's own logger: its handler and verbosity apply
_ONE_AT_A_TIME = threading.Lock()  # torch's global generator and the warnings filters belong to the process
_SETTING, _SOURCE = "probnn:setting", "probnn:source"
_CONSTRAINTS = "constraints"  # where Optuna's samplers keep what constraints_func returns
_PIECE = 2000  # characters of an attribute: databases hold 2045
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def parameter_of(distribution: BaseDistribution) -> Parameter:
    """The parameter of a space that stands for one of Optuna's distributions of more than one value.

    Choices may be any objects there: the parameter has their numbers, 0 to K - 1.

    Raises:
        UnsupportedError: The distribution is of a kind this library does not know.
        DomainError: It has one value only, or a range that no parameter can have.

    Example:
        >>> from optuna.distributions import CategoricalDistribution, FloatDistribution
        >>> parameter_of(FloatDistribution(8, 9.8, step=0.1))
        Real(8.0, 9.8, step=0.1)
        >>> parameter_of(CategoricalDistribution(["adam", None]))
        Categorical([0, 1])
    """
    if isinstance(distribution, FloatDistribution):
        return Real(distribution.low, distribution.high, log=distribution.log, step=distribution.step)
    if isinstance(distribution, IntDistribution):
        step = None if distribution.step == 1 else distribution.step
        return Integer(distribution.low, distribution.high, log=distribution.log, step=step)
    if isinstance(distribution, CategoricalDistribution):
        return Categorical(range(len(distribution.choices)))
    raise UnsupportedError(f"parameter_of: expected a float, int or categorical distribution, got {distribution!r}")


class ProbnnSampler(BaseSampler):
    """A sampler for Optuna that suggests what :class:`BayesianOptimization` would.

    ``optuna.create_study(sampler=ProbnnSampler(...))``. Everything is computed anew from the study's trials: a study
    that is stopped and taken up again, with another sampler of the same seed, goes on with the same suggestions.

    - The search space is that of all complete trials (the intersection, as in Optuna's ``GPSampler``). The other
      parameters, conditional ones and those whose range changed, are sampled independently, which is said
      once for each on Optuna's log.
    - The first `n_startup_trials` trials are a Sobol design, but the very first, whose space is not known yet and
      which is random. Then surrogates are fitted, one an objective, and an acquisition function is maximised.
    - Running trials, and enqueued ones with a full setting, count as pending.
    - Failed trials teach where evaluations fail (`feasibility`), and so do values that are not finite. Optuna does not
      keep why a trial failed: one that was interrupted from the keyboard has failed too.
    - A pruned trial has the value Optuna gives it, its last intermediate one: pruners stop what falls behind, and a
      region left out would be tried again. Without a value, or with ``pruned="ignore"``, it says nothing.
    - Constraints, set by ``trial.set_constraint`` or by `constraints_func`, have models of their own, from the
      second value on, and hold where they are at most 0.
    - Where every setting of a finite space was tried, or a fit fails, the setting is random, and a warning says so.
      ``trial.system_attrs["probnn:source"]`` tells where each setting comes from, as `Trial.source` does.

    Args:
        surrogate: Name of a registered surrogate, a :class:`probnn.Surrogate`, or ``"random"``.
        acquisition: ``"qLogNEI"``, ``"qLogEI"``, ``"qLogNEHVI"`` or ``"thompson"``; None: qLogNEI, and qLogNEHVI for
            several objectives.
        n_startup_trials: Trials before the first model; None: max(5, d + 1).
        seed: Same seed and study: same suggestions; None: another one every time.
        constraints_func: Of a finished trial: a sequence of numbers, at most 0 where all is well. Called after
            complete and pruned trials, and kept with the trial as Optuna's samplers do.
        independent_sampler: For parameters outside the search space; None: random, by the seed, the number of the
            trial and the parameter's name.
        feasibility: ``"learn"``, or ``"ignore"``: failed trials are treated as pending for good.
        pruned: ``"value"`` or ``"ignore"``, see above.
        warm: Start fits from fits to fewer trials (see :class:`BayesianOptimization`).
        warn_independent_sampling: Say when a parameter is sampled independently.

    Raises:
        DomainError: A name is unknown or a number out of range.

    Example:
        >>> import optuna
        >>> from probnn.optimization.optuna import ProbnnSampler
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study(sampler=ProbnnSampler(surrogate="gp", n_startup_trials=4, seed=0))
        >>> study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=6)
        >>> study.best_value < 0.1
        True
    """

    def __init__(
        self,
        *,
        surrogate: str | Surrogate = "bnn-hmc",
        acquisition: str | None = None,
        n_startup_trials: int | None = None,
        seed: int | None = None,
        constraints_func: Callable[[FrozenTrial], Sequence[float]] | None = None,
        independent_sampler: BaseSampler | None = None,
        feasibility: str = "learn",
        pruned: str = "value",
        warm: bool = True,
        warn_independent_sampling: bool = True,
    ):
        where = "ProbnnSampler"
        if isinstance(surrogate, str) and surrogate != "random":
            surrogate = get_surrogate(surrogate)
        elif not isinstance(surrogate, (str, Surrogate)):
            raise DomainError(f"{where}: surrogate must be a name or a Surrogate, got a {type(surrogate).__name__}")
        if acquisition is not None:
            validation.choice(where, "acquisition", acquisition, ACQUISITIONS)
        if n_startup_trials is not None:
            validation.positive_int(where, "n_startup_trials", n_startup_trials, 0)
        if constraints_func is not None and not callable(constraints_func):
            raise DomainError(f"{where}: constraints_func must be a function of a trial, got {constraints_func!r}")
        if independent_sampler is not None and not isinstance(independent_sampler, BaseSampler):
            raise DomainError(f"{where}: independent_sampler must be a sampler of Optuna, got {independent_sampler!r}")
        validation.choice(where, "feasibility", feasibility, ("learn", "ignore"))
        validation.choice(where, "pruned", pruned, ("value", "ignore"))
        self.surrogate, self.acquisition, self.n_startup_trials = surrogate, acquisition, n_startup_trials
        self.seed = secrets.randbits(31) if seed is None else rnd.check_seed(where, seed)
        self.constraints_func, self.independent_sampler = constraints_func, independent_sampler
        self.feasibility, self.pruned, self.warm = feasibility, pruned, warm
        self.warn_independent_sampling = warn_independent_sampling
        self._cache = ModelCache(surrogate, self.seed, warm) if isinstance(surrogate, Surrogate) else None
        self._said: set[str] = set()

    def reseed_rng(self) -> None:
        """Reseed the independent sampler.

        The rest needs no other seed in every worker: a suggestion depends on the study and on the number of the
        trial, which no two workers share.
        """
        if self.independent_sampler is not None:
            self.independent_sampler.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that every complete trial has, with one distribution, but for those of a single value."""
        found = intersection_search_space(study.get_trials(deepcopy=False))
        return {name: distribution for name, distribution in found.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next setting, which other workers see as pending."""
        if not search_space:
            if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
                self._record(study, trial, {}, "independent")
            return {}
        with _ONE_AT_A_TIME:
            names = {f"p{i}": name for i, name in enumerate(search_space)}  # Optuna lets names be anything
            task = _Task(study, trial, {key: search_space[name] for key, name in names.items()}, names, self.pruned)
            setting, source = self._choose(task)
            numbers = {names[key]: value for key, value in setting.items()}  # with categories as their index
            self._record(study, trial, numbers, source)
        return {name: search_space[name].to_external_repr(value) for name, value in numbers.items()}

    def _choose(self, task: _Task) -> tuple[dict[str, Any], str]:
        """The setting of a trial and where it comes from."""
        if len(task.fixed) == len(task.space):
            return task.fixed, "user"
        bo = BayesianOptimization(
            task.space,
            maximize=[n for n, d in task.targets.items() if d == StudyDirection.MAXIMIZE],
            minimize=[n for n, d in task.targets.items() if d != StudyDirection.MAXIMIZE],
            subject_to=[f"{name} <= 0" for name in task.constraints.values()],
            surrogate=self.surrogate,
            acquisition=self.acquisition,
            seed=_mixed(self.seed, task.number),
            num_initial=0,
            feasibility=self.feasibility,
            warm=self.warm,
        )
        bo.trials, bo._cache = task.trials, self._cache
        startup = max(5, len(task.space) + 1) if self.n_startup_trials is None else self.n_startup_trials
        tried = sum(t.status != "abandoned" for t in task.trials)
        try:
            if task.is_exhausted:  # said by no model: it need not be fitted
                raise ExhaustedError
            if self.surrogate != "random" and (tried < startup or not task.measured(2)):
                # Each trial has its own place in the design, so that workers that ask at once get different ones.
                [setting] = design(task.space, 1, self.seed, task.fixed, skip=task.number)
                if key_of(task.space, setting) not in task.settings:
                    return setting, "initial"
                bo.surrogate = "random"  # the place is taken: any other setting that is free
                return bo.ask(1, fixed=task.fixed)[0].parameters, "initial"
            [asked] = bo.ask(1, fixed=task.fixed)
        except ExhaustedError:
            self._say("exhausted", "every setting of the search space was tried: settings are repeated at random")
            [setting] = design(task.space, 1, _mixed(self.seed, task.number), task.fixed)
            return setting, "random(every setting was tried)"
        return asked.parameters, asked.source

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A value of a parameter outside the search space."""
        sampler = self.independent_sampler
        if sampler is None:
            sampler = RandomSampler(seed=_mixed(self.seed, trial.number, param_name) % 2**32)
        if self.warn_independent_sampling and _SOURCE in trial.system_attrs:  # not where no space was known yet
            self._say(
                param_name,
                f"the parameter `{param_name}` is sampled independently, by `{type(sampler).__name__}` instead of "
                "`ProbnnSampler`, because not every complete trial has it with the same distribution; "
                "warn_independent_sampling=False keeps this message away",
            )
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Passed on to the independent sampler."""
        if self.independent_sampler is not None:
            self.independent_sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Keep the constraints of a complete or pruned trial.

        Raises:
            DomainError: `constraints_func` does not return a sequence of numbers.
        """
        if self.constraints_func is not None and state in _DONE:
            given = self.constraints_func(trial)
            try:
                found = [float(c) for c in given]
            except (TypeError, ValueError):
                found = [math.nan]
            if any(map(math.isnan, found)):
                raise DomainError(f"ProbnnSampler: constraints_func must return numbers, none NaN, got {given!r}")
            study._storage.set_trial_system_attr(trial._trial_id, _CONSTRAINTS, found)
        if self.independent_sampler is not None:
            self.independent_sampler.after_trial(study, trial, state, values)

    def _say(self, what: str, message: str) -> None:
        if what not in self._said:
            self._said.add(what)
            _logger.warning(f"ProbnnSampler: {message}.")

    @staticmethod
    def _record(study: Study, trial: FrozenTrial, setting: Mapping[str, float], source: str) -> None:
        text = json.dumps(setting)
        attributes = {f"{_SETTING}:{i}": text[at : at + _PIECE] for i, at in enumerate(range(0, len(text), _PIECE))}
        for key, value in {**attributes, _SOURCE: source[:_PIECE]}.items():
            study._storage.set_trial_system_attr(trial._trial_id, key, value)


class _Task:
    """What there is to choose for one trial, in the terms of a :class:`BayesianOptimization`.

    Args:
        study: The study.
        trial: The trial that needs a setting.
        distributions: By the name of the parameter in the space.
        names: Optuna's names of them.
        pruned: What a pruned trial says.
    """

    def __init__(
        self, study: Study, trial: FrozenTrial, distributions: Mapping[str, BaseDistribution],
        names: Mapping[str, str], pruned: str,
    ):  # fmt: skip
        self.number, self.distributions, self.names, self.pruned = trial.number, distributions, names, pruned
        self.space = Space(constraints=(), **{key: parameter_of(d) for key, d in distributions.items()})
        self.targets = {f"y{i}": direction for i, direction in enumerate(study.directions)}
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        counts: dict[str, int] = {}
        for other in others:
            for key in other.constraints if other.state in _DONE else ():
                counts[key] = counts.get(key, 0) + 1
        self.constraints = {key: f"c{i}" for i, key in enumerate(sorted(k for k, n in counts.items() if n > 1))}
        self.trials = [t for t in map(self._trial, others) if t is not None]
        fixed = self._setting(trial.system_attrs.get("fixed_params", {}))
        self.fixed = {k: v for k, v in fixed.items() if self.space.parameters[k].complaint(v) is None}

    def measured(self, times: int) -> bool:
        """Whether every outcome has that many values."""
        outcomes = (*self.targets, *self.constraints.values())
        return all(sum(name in t.values for t in self.trials) >= times for name in outcomes)

    @property
    def settings(self) -> set[Key]:
        """What trials have."""
        return {key_of(self.space, t.parameters) for t in self.trials}

    @property
    def is_exhausted(self) -> bool:
        """Whether every setting there is was tried."""
        if self.space.num_settings is None:
            return False
        able = {key_of(self.space, t.parameters) for t in self.trials if not self.space.violations(t.parameters)}
        return len(able) == self.space.num_settings

    def _setting(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Values of Optuna's parameters in our space, but for those that have no place there."""
        found = {}
        for key, distribution in self.distributions.items():
            parameter = self.space.parameters[key]
            try:
                value = distribution.to_internal_repr(parameters[self.names[key]])
                coordinate = parameter.coordinate(value)  # a number on a log scale may not be positive
            except (KeyError, ValueError):
                continue
            if not isinstance(distribution, FloatDistribution):
                value = int(value)
            elif distribution.step is not None:  # Optuna's own samplers set 0.7000000000000001 where the grid has 0.7
                near = parameter.nearest(coordinate)
                value = near if math.isclose(near, value, rel_tol=1e-12, abs_tol=1e-9 * distribution.step) else value
            found[key] = value
        return found

    def _trial(self, other: FrozenTrial) -> Trial | None:
        """A trial of the study, or None where its setting is not known in full."""
        known: dict[str, Any] = dict(other.system_attrs.get("fixed_params", {}))
        if other.state == TrialState.RUNNING:  # it sets its parameters one by one
            pieces: list[str] = []
            while piece := other.system_attrs.get(f"{_SETTING}:{len(pieces)}"):
                pieces.append(piece)
            suggested = json.loads("".join(pieces) or "{}")
            for key, name in self.names.items():
                if name in suggested:
                    known.setdefault(name, self.distributions[key].to_external_repr(suggested[name]))
        setting = self._setting({**known, **other.params})
        if len(setting) < len(self.space):
            return None
        status, values = self._outcome(other)
        return Trial(other.number, setting, other.system_attrs.get(_SOURCE, "user"), status, values)

    def _outcome(self, other: FrozenTrial) -> tuple[str, dict[str, float]]:
        if other.state == TrialState.FAIL:
            return "failed", {}
        if other.state not in _DONE:
            return "pending", {}
        if other.values is None or (other.state == TrialState.PRUNED and self.pruned == "ignore"):
            return "abandoned", {}
        values = dict(zip(self.targets, other.values, strict=True))
        values |= {name: other.constraints[key] for key, name in self.constraints.items() if key in other.constraints}
        if not all(map(math.isfinite, values.values())):
            return "failed", {}
        return "complete", values


def _mixed(*entropy: int | str) -> int:
    """A seed of 62 bits of numbers and names."""
    words = [e if isinstance(e, int) else int.from_bytes(e.encode() or b"\0", "big") for e in entropy]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) % 2**62
