"""The loop: ask for settings, tell what came of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError, UnsupportedError
from ..surrogates import ProcessModel, Surrogate, get_surrogate
from .acquisition import check_acquisition
from .choosing import best_predicted, suggest
from .evaluation import Objective, as_number
from .feasibility import FeasibilityModel
from .feasible import check_fixed
from .goals import Goals
from .history import History
from .models import Data, ModelCache, data_of
from .pool import Pool
from .rows import RowCheck, check_rows
from .running import run
from .space import Space
from .trials import Trial, best_so_far, copy_trial, utc_now
from .units import Units, in_units

Names = str | Sequence[str] | None


class BayesianOptimization:
    """Bayesian optimisation over a space of parameters, by asking and telling.

    The first settings are a space-filling design, as far as there is no data yet; the others maximise an acquisition
    function of surrogates, one an outcome: the noisy expected improvement of one target (qLogNEI; Ament et al., 2023,
    arXiv:2310.20708) or of the hypervolume of several; pending trials count as such. From two failures and two
    successes on, a network learns where experiments succeed (:class:`FeasibilityModel`). Each suggestion says where it
    comes from (`Trial.source`): ``"initial"``, ``"model"``, ``"pool"`` (the model, from a list), ``"replicate"``,
    ``"random"`` (random search) or ``"random(why)"``.

    With ``history=`` every step is written to a CSV file before it counts, and that file is the only state: an
    optimisation begun anew goes on with the same suggestions. Rows that do not fit today's space teach as they are.

    Args:
        space: The parameters and their constraints.
        maximize, minimize: Names of the targets; several make it multi-objective.
        subject_to: Bounds on outcomes, such as ``"impurity <= 0.5"``.
        surrogate: Name of a registered surrogate, a :class:`probnn.Surrogate`, or ``"random"``.
        acquisition: ``"qLogNEI"``, ``"qLogEI"``, ``"qLogNEHVI"`` or ``"thompson"``; None: qLogNEI, and
            qLogNEHVI for several targets.
        seed: Same seed and answers: the same suggestions.
        num_initial: Settings of the design, less the rows there are; None: max(5, d + 1).
        history, decimal: A CSV file to keep the trials in, which may exist, and its decimal sign.
        pool: Candidates to choose from, where only a list of settings can be tried.
        replicates: How many times each setting is suggested.
        feasibility: ``"learn"``; or ``"ignore"``: failed trials stay pending to the model.
        reference: A value of each of several targets to beat; None: from the data.
        strict: Refuse rows of the history that do not fit the space.
        warm: Start fits from fits to fewer data (see :class:`ModelCache`); for single suggestions False.

    Raises:
        DomainError: No target, an unknown surrogate, or a bad setting.
        SerializationError: The history cannot be read, written or locked.

    Example:
        >>> from probnn.optimization import BayesianOptimization, Real, Space
        >>> bo = BayesianOptimization(Space(x=Real(-1.0, 1.0)), minimize="loss", surrogate="random")
        >>> for _ in range(3):
        ...     [trial] = bo.ask()
        ...     bo.tell(trial, trial["x"] ** 2)
        >>> bo.best_measured.value < 1
        True
    """

    def __init__(
        self,
        space: Space,
        *,
        maximize: Names = None,
        minimize: Names = None,
        subject_to: str | Sequence[str] = (),
        surrogate: str | Surrogate = "bnn-hmc",
        acquisition: str | None = None,
        seed: int = 0,
        num_initial: int | None = None,
        history: str | os.PathLike[str] | None = None,
        decimal: str = ".",
        pool: Pool | None = None,
        replicates: int = 1,
        feasibility: str = "learn",
        reference: Mapping[str, float] | None = None,
        strict: bool = False,
        warm: bool = True,
    ):
        where = "BayesianOptimization"
        if not isinstance(space, Space):
            raise DomainError(f"{where}: space must be a Space, got a {type(space).__name__}")
        self.goals = Goals.of(maximize, minimize, subject_to, where)
        for name in self.goals.outcomes:
            if name in space.parameters:
                raise DomainError(f"{where}: {name!r} is a parameter and cannot be an outcome too")
        self.name = surrogate if isinstance(surrogate, str) else "surrogate"
        if isinstance(surrogate, str) and surrogate != "random":
            surrogate = get_surrogate(surrogate)
        elif not isinstance(surrogate, (str, Surrogate)):
            raise DomainError(f"{where}: surrogate must be a name or a Surrogate, got a {type(surrogate).__name__}")
        self.acquisition = check_acquisition(where, acquisition, self.goals)
        if num_initial is not None:
            validation.positive_int(where, "num_initial", num_initial, 0)
        validation.positive_int(where, "replicates", replicates)
        validation.choice(where, "feasibility", feasibility, ("learn", "ignore"))
        if pool is not None and (not isinstance(pool, Pool) or pool.space != space):
            raise DomainError(f"{where}: pool must be a Pool over the same space")
        self.space, self.surrogate, self.seed = space, surrogate, rnd.check_seed(where, seed)
        self.num_initial = max(5, len(space) + 1) if num_initial is None else num_initial
        self.pool, self.replicates, self.feasibility = pool, replicates, feasibility
        self.reference = None if reference is None else dict(reference)
        for name in () if self.reference is None else self.goals.targets:
            if self.reference is not None and as_number(self.reference.get(name)) is None:
                raise DomainError(f"{where}: reference needs a finite value of {name!r}, got {self.reference!r}")
        self.trials: list[Trial] = []
        self._extended = space
        self.stopped = ""  #: Why :meth:`run` ended: budget, target, stagnation or exhausted (nothing left to try).
        self.history: History | None = None
        self.rows: RowCheck | None = None  #: How the rows of the history fit the space.
        self._cache = ModelCache(surrogate, self.seed, warm) if isinstance(surrogate, Surrogate) else None
        if history is not None:
            self.history = History(history, space, self.goals.outcomes, decimal=decimal)
            try:
                self.trials = self.history.trials
                self.rows = check_rows(self.trials, space, strict=strict, name=os.fspath(history))
            except BaseException:
                self.history.close()
                raise

    def close(self) -> None:
        """Let go of the history, so that another process can open it."""
        if self.history is not None:
            self.history.close()

    def __enter__(self) -> BayesianOptimization:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def target(self) -> str:
        """The first target."""
        return self.goals.targets[0]

    @property
    def maximize(self) -> bool:
        """Whether the first target is to be maximised."""
        return bool(self.goals.maximize)

    @property
    def complete(self) -> list[Trial]:
        """Trials with every outcome measured."""
        return [t for t in self.trials if self.goals.is_complete(t)]

    @property
    def best_measured(self) -> Trial:
        """The trial with the best measured value of the (first) target, among those that keep all bounds."""
        if not (able := [t for t in self.trials if self.goals.is_feasible(t)]):
            what = "is complete" if not self.complete else "keeps within the bounds"
            raise DomainError(f"BayesianOptimization.best_measured: no trial {what} yet")
        return max(able, key=self.goals.scores)

    @property
    def best_predicted(self) -> Trial:
        """The complete trial whose predicted mean is best: less of a fluke where measurements are noisy.

        Bounds must hold for the predicted means; where none does, as measured.
        """
        return best_predicted(self)

    @property
    def pareto(self) -> list[Trial]:
        """The trials that no other beats in all targets."""
        return self.goals.pareto(self.trials)

    def best_values(self) -> list[float]:
        """The best measured value of the first target up to each trial, NaN before the first."""
        able = (t.values[self.target] if self.goals.is_feasible(t) else None for t in self.trials)
        return best_so_far(list(able), self.maximize)

    def points(self, trials: Sequence[Trial]) -> Tensor:
        """Features of trials, ``n x D``."""
        space = self.model_space
        rows = [space.encode({n: t.parameters[n] for n in space.free}) for t in trials]
        return torch.stack(rows) if rows else torch.empty(0, space.num_features, dtype=torch.double)

    @property
    def model_space(self) -> Space:
        """The space, knowing also categories that only old rows have."""
        found = self.space.extended(t.parameters for t in self.trials)
        self._extended = self._extended if found == self._extended else found  # the old one keeps its designs
        return self._extended

    def data(self, outcome: str | None = None) -> Data:
        """What the model of an outcome (default: the first target) is fitted to."""
        outcome = self.target if outcome is None else outcome
        return data_of(self.trials, self.model_space, outcome, self.goals.sign(outcome))

    def fit(self) -> ProcessModel:
        """The surrogate of the first target, in units where more is better."""
        return self.model(self.target)

    def models(self) -> list[ProcessModel]:
        """Those of all outcomes, in the order of ``goals.outcomes``."""
        return [self.model(name) for name in self.goals.outcomes]

    def model(self, name: str) -> ProcessModel:
        """The surrogate of an outcome, in units where more is better where it is a target."""
        if self._cache is None:
            raise UnsupportedError("BayesianOptimization: random search has no model; name a surrogate")
        data = self.data(name)
        if not len(data.X):
            raise DomainError(
                f"BayesianOptimization: {name!r} is not measured in any trial, so there is nothing to fit"
            )
        return self._cache.model(name, data, self.model_space.bounds)

    def unit_model(self, name: str) -> tuple[ProcessModel, Units]:
        """That of an outcome in units of its own spread, and the units; for variances and improvements."""
        units = Units.of(self.data(name).Y)
        return in_units(self.model(name), units), units

    def success(self) -> FeasibilityModel | None:
        """The model of where experiments succeed, or None where there is too little to learn from."""
        if self.feasibility == "ignore" or not FeasibilityModel.applies(self.trials):
            return None
        return FeasibilityModel.fit(self.trials, self.model_space, seed=self.seed)

    def ask(self, num_trials: int = 1, *, fixed: Mapping[str, Any] | None = None) -> list[Trial]:
        """Suggest settings to evaluate; they are pending until told.

        Args:
            num_trials: How many, one after the other with the earlier ones pending; fewer where no more are left.
            fixed: Values that parameters have this time, by name.

        Returns:
            The new trials.

        Raises:
            DomainError: `fixed` cannot be set; or every setting of a finite space (or pool) was suggested.
        """
        where = "BayesianOptimization.ask"
        validation.positive_int(where, "num_trials", num_trials)
        check_fixed(self.space, given := dict(fixed or {}))
        return suggest(self, num_trials, given)

    @property
    def next_number(self) -> int:
        """The number of the next trial."""
        return max((t.number for t in self.trials), default=-1) + 1

    def record(self, trial: Trial) -> None:
        """Write a trial down in the history, where there is one."""
        if self.history is not None:
            self.history.record(trial)

    def tell(
        self,
        trial: Trial,
        value: float | Mapping[str, float] | None = None,
        *,
        sem: float | Mapping[str, float] | None = None,
        status: str = "complete",
        note: str = "",
    ) -> None:
        """Report what came of a trial; nothing changes where the report is refused.

        Args:
            trial: One of :attr:`trials`.
            value: The measured outcome, or a mapping from names where there are several. Some may come
                later, in another call.
            sem: Standard error of the value, likewise, where known.
            status: ``"complete"``, ``"failed"`` or ``"abandoned"``.
            note: Words to keep.

        Raises:
            DomainError: The trial is unknown or done, or the value does not fit the status.
            SerializationError: The history cannot be written.
        """
        where = "BayesianOptimization.tell"
        if not any(t is trial for t in self.trials):
            raise DomainError(f"{where}: the trial is not one that ask gave")
        validation.choice(where, "status", status, ("complete", "failed", "abandoned"))
        open_ = trial.status == "pending" or (trial.status == "complete" and not self.goals.is_complete(trial))
        if not open_ or (trial.status == "complete" and status != "complete"):
            raise DomainError(f"{where}: trial {trial.number} is {trial.status} already")
        values, sems = self.goals.named(where, value), self.goals.named(where, sem, "sem")
        if status == "complete":
            if not values:
                raise DomainError(
                    f"{where}: a complete trial needs a finite number, got {value!r}; "
                    "tell(trial, status='failed') records a failure"
                )
            for name, error in sems.items():
                if name not in {**trial.values, **values}:
                    raise DomainError(f"{where}: sem of {name!r} came without its value")
                validation.positive(where, f"sem of {name!r}", error)
        elif values or sems:
            raise DomainError(f"{where}: a {status} trial has no value, got {value!r}")
        told = copy_trial(trial)
        told.values |= values
        told.sems |= sems
        told.status, told.note, told.finished = status, note, utc_now()
        self.record(told)
        vars(trial).update(vars(told))

    def add(
        self,
        parameters: Mapping[str, Any],
        value: float | Mapping[str, float] | None = None,
        *,
        sem: float | Mapping[str, float] | None = None,
        status: str = "complete",
        note: str = "",
    ) -> Trial:
        """Add an experiment that was not asked for: an earlier one, or one done otherwise than suggested.

        Args:
            parameters: The setting; it may lie outside of the space.
            value, sem, status, note: As for :meth:`tell`.

        Returns:
            The new trial, with the source ``"user"``.
        """
        self.space.extended([setting := {**self.space.fixed, **parameters}]).coordinates(setting)
        trial = Trial(self.next_number, setting, "user")
        self.trials.append(trial)
        try:
            self.tell(trial, value, sem=sem, status=status, note=note)
        except BaseException:
            self.trials.remove(trial)
            raise
        return trial

    def run(
        self,
        objective: Objective,
        num_evaluations: int,
        *,
        batch_size: int = 1,
        n_jobs: int = 1,
        timeout: float | None = None,
        stop_at: float | None = None,
        patience: int | None = None,
        progress: bool = False,
    ) -> BayesianOptimization:
        """Ask, evaluate and tell, for `num_evaluations` evaluations or until a reason to stop.

        Trials that an earlier process was evaluating when it ended are evaluated first. An evaluation that raises
        an exception, does not return finite numbers or takes too long is recorded as failed, and the loop goes on.

        Args:
            objective: Called with the parameters by name; returns the target, ``(value, sem)``, or a mapping from
                the names of outcomes to either.
            num_evaluations: How many evaluations, those taken up again included.
            batch_size: How many settings are asked at once.
            n_jobs: How many are evaluated at once, each in a process of its own where more than one.
            timeout: Seconds for one evaluation; it is killed then, and has failed. With it go all the processes,
                since none can be told from the others: what else was under way begins again in new ones.
            stop_at: Stop when the first target is this good.
            patience: Stop when this many evaluations in a row did not improve on the best value (of several
                targets: on the Pareto front).
            progress: Show a progress bar.

        Returns:
            The optimisation itself; :attr:`stopped` says why it ended.

        Raises:
            ConvergenceError: Five evaluations failed in a row; everything told so far is kept.
        """
        where = "BayesianOptimization.run"
        for name, number in (("num_evaluations", num_evaluations), ("batch_size", batch_size), ("n_jobs", n_jobs)):
            validation.positive_int(where, name, number)
        if patience is not None:
            validation.positive_int(where, "patience", patience)
        if timeout is not None:
            validation.positive(where, "timeout", timeout)
        if stop_at is not None and as_number(stop_at) is None:
            raise DomainError(f"{where}: stop_at must be a finite number, got {stop_at!r}")
        run(
            self, objective, num_evaluations, batch_size=batch_size, n_jobs=n_jobs, timeout=timeout, stop_at=stop_at,
            patience=patience, progress=progress,
        )  # fmt: skip
        return self
