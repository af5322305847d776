"""The loop: ask for settings, tell what came of them."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import ConvergenceError, ConvergenceWarning, DivergenceWarning, DomainError, UnsupportedError
from ..progress import Progress
from ..surrogates import ProcessModel, Surrogate, get_surrogate
from .acquisition import suggest
from .space import Space
from .trials import Trial, best_so_far

MAX_FAILURES = 5
REFRESH = 1.5  # a fit starts from the last one until there are this many times the data of the last fresh fit


class BayesianOptimization:
    """Bayesian optimisation of one target over a space of parameters, by asking and telling.

    The first settings are a Sobol design, the others maximise the noisy expected improvement
    (qLogNEI: Ament et al., 2023, arXiv:2310.20708) of a surrogate fitted to all complete trials;
    pending trials count as such, and so do failed ones, so that the next suggestion
    looks elsewhere. Each suggestion says where it comes from (`Trial.source`). What a sampler warned of
    while fitting is kept in ``model.source.info.warnings`` and not repeated at every trial.

    Args:
        space: The parameters.
        maximize, minimize: Name of the target; give one of the two.
        surrogate: Name of a registered surrogate, a :class:`probnn.Surrogate`, or ``"random"`` for
            random search.
        seed: Same seed and answers: the same suggestions.
        num_initial: Size of the Sobol design; None: max(5, d + 1).

    Raises:
        DomainError: Not exactly one target, an unknown surrogate, or a bad setting.

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
        maximize: str | None = None,
        minimize: str | None = None,
        surrogate: str | Surrogate = "bnn-hmc",
        seed: int = 0,
        num_initial: int | None = None,
    ):
        where = "BayesianOptimization"
        if not isinstance(space, Space):
            raise DomainError(f"{where}: space must be a Space, got a {type(space).__name__}")
        if (maximize is None) == (minimize is None):
            raise DomainError(f"{where}: name one target, by maximize= or minimize=, got {maximize!r} and {minimize!r}")
        self.target = maximize if maximize is not None else minimize
        if not isinstance(self.target, str) or not self.target or self.target in space.parameters:
            raise DomainError(f"{where}: the target needs a name that is not a parameter's, got {self.target!r}")
        self.name = surrogate if isinstance(surrogate, str) else "surrogate"
        if isinstance(surrogate, str) and surrogate != "random":
            surrogate = get_surrogate(surrogate)
        elif not isinstance(surrogate, (str, Surrogate)):
            raise DomainError(f"{where}: surrogate must be a name or a Surrogate, got a {type(surrogate).__name__}")
        if num_initial is not None:
            validation.positive_int(where, "num_initial", num_initial)
        self.space, self.surrogate, self.seed = space, surrogate, rnd.check_seed(where, seed)
        self.maximize = maximize is not None
        self.num_initial = max(5, len(space) + 1) if num_initial is None else num_initial
        self.trials: list[Trial] = []
        self.model: ProcessModel | None = None  # the last one fitted, in units where more is better
        self._fitted_on: int = 0
        self._cold_at: int = 0  # trials at the last fit from scratch

    @property
    def complete(self) -> list[Trial]:
        """Trials with a measured value."""
        return [t for t in self.trials if t.status == "complete"]

    @property
    def best_measured(self) -> Trial:
        """The trial with the best measured value."""
        if not self.complete:
            raise DomainError("BayesianOptimization.best_measured: no trial is complete yet")
        sign = 1 if self.maximize else -1
        return max(self.complete, key=lambda t: sign * t.value)  # type: ignore[operator]

    @property
    def best_predicted(self) -> Trial:
        """The complete trial whose predicted mean is best: less of a fluke where measurements are noisy."""
        done = self.complete
        model = self.fit()
        mean = model.posterior(self._points(done)).mean.squeeze(-1)
        return done[int(mean.argmax())]

    def best_values(self) -> list[float]:
        """The best measured value up to each trial, NaN before the first."""
        return best_so_far([t.value for t in self.trials], self.maximize)

    def ask(self, num_trials: int = 1) -> list[Trial]:
        """Suggest settings to evaluate; they are pending until told.

        Args:
            num_trials: How many, chosen one after the other with the earlier ones pending.
        """
        validation.positive_int("BayesianOptimization.ask", "num_trials", num_trials)
        return [self._ask_one() for _ in range(num_trials)]

    def tell(
        self,
        trial: Trial,
        value: float | None = None,
        *,
        sem: float | None = None,
        status: str = "complete",
        note: str = "",
    ) -> None:
        """Report what came of a trial.

        Args:
            trial: One that :meth:`ask` gave.
            value: The measured target; needed where the trial is complete, and finite.
            sem: Standard error of the value, where known.
            status: ``"complete"``, ``"failed"`` or ``"abandoned"``.
            note: Words to keep.

        Raises:
            DomainError: The trial is unknown or done, or the value does not fit the status.
        """
        where = "BayesianOptimization.tell"
        if not any(t is trial for t in self.trials):
            raise DomainError(f"{where}: the trial is not one that ask gave")
        if trial.status != "pending":
            raise DomainError(f"{where}: trial {trial.number} is {trial.status} already")
        validation.choice(where, "status", status, ("complete", "failed", "abandoned"))
        if status == "complete":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise DomainError(
                    f"{where}: a complete trial needs a finite number, got {value!r}; "
                    "tell(trial, status='failed') records a failure"
                )
            if sem is not None:
                validation.positive(where, "sem", sem)
            trial.value, trial.sem = float(value), sem
        elif value is not None:
            raise DomainError(f"{where}: a {status} trial has no value, got {value!r}")
        trial.status, trial.note = status, note

    def run(
        self, objective: Callable[..., float], num_evaluations: int, *, progress: bool = False
    ) -> BayesianOptimization:
        """Ask, evaluate and tell until there are `num_evaluations` more trials.

        An evaluation that raises an exception or does not return a finite number is recorded as failed,
        and the loop goes on.

        Args:
            objective: Called with the parameters by name; returns the target.
            num_evaluations: How many trials.
            progress: Show a progress bar.

        Returns:
            The optimisation itself.

        Raises:
            ConvergenceError: Five evaluations failed in a row; everything told so far is kept.
        """
        validation.positive_int("BayesianOptimization.run", "num_evaluations", num_evaluations)
        in_a_row = 0
        with Progress(num_evaluations, f"{self.name} {self.target}", progress) as bar:
            for _ in range(num_evaluations):
                [trial] = self.ask()
                self._evaluate(objective, trial)
                in_a_row = in_a_row + 1 if trial.status == "failed" else 0
                bar.update(best=f"{self.best_measured.value:.4g}" if self.complete else "none")
                if in_a_row == MAX_FAILURES:
                    raise ConvergenceError(
                        f"BayesianOptimization.run: {MAX_FAILURES} evaluations failed in a row, the last one with: "
                        f"{trial.note}; the trials are in .trials, and run(...) goes on from there",
                        partial=self,
                    )
        return self

    def _evaluate(self, objective: Callable[..., float], trial: Trial) -> None:
        started = time.perf_counter()
        try:
            value = objective(**trial.parameters)
        except Exception as error:  # whatever the user's code raises is a failed trial
            self.tell(trial, status="failed", note=f"{type(error).__name__}: {error}")
        else:
            number = _as_number(value)
            if number is None:
                self.tell(trial, status="failed", note=f"the objective returned {value!r}")
            else:
                self.tell(trial, number)
        trial.seconds = time.perf_counter() - started

    def _points(self, trials: list[Trial]) -> Tensor:
        if not trials:
            return torch.empty(0, len(self.space), dtype=torch.double)
        return torch.stack([self.space.encode(t.parameters) for t in trials])

    def _ask_one(self) -> Trial:
        number, random_search = len(self.trials), self.surrogate == "random"
        taken = {tuple(row) for row in self._points(self.trials).tolist()}
        if random_search or number < self.num_initial or len(self.complete) < 2:
            source = "random" if random_search else "initial"
            point = self._design_point(number, random_search)
        else:
            model = self.fit()
            # A failed setting is as one whose value never comes: nothing is gained near it that it would not give.
            pending = self._points([t for t in self.trials if t.status in ("pending", "failed")])
            point = suggest(
                model, self.space, self._points(self.complete), pending, taken, seed=self.seed + 1_000_003 * number
            )
            source = "model"
        trial = Trial(number, self.space.decode(point), source)
        self.trials.append(trial)
        return trial

    def _design_point(self, number: int, random_search: bool) -> Tensor:
        d = len(self.space)
        if random_search:
            generator = rnd.generator_from(self.seed)
            return rnd.uniform((number + 1, d), generator=generator, dtype=torch.double)[number]
        engine = torch.quasirandom.SobolEngine(d, scramble=True, seed=self.seed)
        return engine.fast_forward(number).draw(1, dtype=torch.double).squeeze(0)

    def fit(self) -> ProcessModel:
        """The surrogate on all complete trials, fitted again only when there are new ones."""
        if not isinstance(self.surrogate, Surrogate):
            raise UnsupportedError("BayesianOptimization: random search has no model; name a surrogate")
        done = self.complete
        if not done:
            raise DomainError("BayesianOptimization: no trial is complete yet, so there is nothing to fit")
        if self.model is None or self._fitted_on != len(done):
            sign = 1.0 if self.maximize else -1.0
            Y = torch.tensor([[sign * t.value] for t in done], dtype=torch.double)  # type: ignore[operator]
            known = [t.sem for t in done]
            Yvar = None
            if all(s is not None for s in known):
                Yvar = torch.tensor([[s**2] for s in known], dtype=torch.double)  # type: ignore[operator]
            # Chains that explained few data as noise stay where they are when more come: begin anew at times.
            init = self.model if len(done) < REFRESH * self._cold_at else None
            self._cold_at = self._cold_at if init is not None else len(done)
            with warnings.catch_warnings():
                # Chains of a loop are short on purpose; what they say of themselves is in model.source.info.
                warnings.simplefilter("ignore", DivergenceWarning)
                warnings.simplefilter("ignore", ConvergenceWarning)
                self.model = self.surrogate.fit(
                    self._points(done), Y, Yvar, bounds=self.space.bounds, seed=self.seed, init=init
                )
            self._fitted_on = len(done)
        return self.model


def _as_number(value: Any) -> float | None:
    """A finite float of what an objective returned, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
