"""Running an optimisation of something that can be called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConvergenceError, DomainError
from ..progress import Progress
from .choosing import ExhaustedError
from .evaluation import Objective, evaluate
from .trials import Trial, copy_trial, utc_now

if TYPE_CHECKING:
    from .loop import BayesianOptimization

MAX_FAILURES = 5


def run(
    bo: BayesianOptimization,
    objective: Objective,
    num_evaluations: int,
    *,
    batch_size: int,
    n_jobs: int,
    timeout: float | None,
    stop_at: float | None,
    patience: int | None,
    progress: bool,
) -> None:
    """See :meth:`BayesianOptimization.run`."""
    if not callable(objective):
        raise DomainError(
            f"BayesianOptimization.run: objective must be a function of the parameters, got {objective!r}"
        )
    left, failures, idle = num_evaluations, 0, 0
    again = [t for t in bo.trials if t.under_way]  # by a process that was killed

    def begin(trial: Trial) -> None:
        started = copy_trial(trial)
        started.started = utc_now()
        bo.record(started)
        trial.started = started.started

    with Progress(num_evaluations, f"{bo.name} {bo.target}", progress) as bar:
        while left > 0:
            batch, again = again[:left], again[left:]
            try:
                batch = batch or bo.ask(min(batch_size, left))
            except ExhaustedError:
                bo.stopped = "exhausted"
                return
            for trial, outcome in evaluate(
                objective, batch, bo.goals.outcomes, n_jobs=n_jobs, timeout=timeout, begin=begin
            ):
                before = {t.number for t in bo.pareto}
                if outcome.error:
                    bo.tell(trial, status="failed", note=outcome.error)
                else:
                    bo.tell(trial, outcome.values, sem=outcome.sems)
                failures = failures + 1 if outcome.error else 0
                idle = 0 if {t.number for t in bo.pareto} != before else idle + 1
                left -= 1
                bar.update(best=f"{bo.best_measured.values[bo.target]:.4g}" if before or idle == 0 else "none")
                if failures == MAX_FAILURES:
                    raise ConvergenceError(
                        f"BayesianOptimization.run: {MAX_FAILURES} evaluations failed in a row, the last one with: "
                        f"{outcome.error}; the trials are in .trials, and run(...) goes on from there",
                        partial=bo,
                    )
            if patience is not None and idle >= patience:
                bo.stopped = "stagnation"
                return
            if stop_at is not None and bo.pareto:
                best = bo.best_measured.values[bo.target]
                if best >= stop_at if bo.maximize else best <= stop_at:
                    bo.stopped = "target"
                    return
    bo.stopped = "budget"
