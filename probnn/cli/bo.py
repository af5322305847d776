"""Optimise a built-in problem (branin, hartmann6, ackley5) or a Python function, module:function.

The function is called with the parameters by name and returns the target, or a mapping from names where there are
several outcomes. With --history every step is in that file before it counts: a run that was killed goes on when it
is started again, with the evaluation that was under way first, until there are --num-evaluations in all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._common import add_decimal, add_goals, add_surrogate, number, positive, short, whole

if TYPE_CHECKING:
    from ..optimization import BayesianOptimization, Space

HELP = "optimise a built-in problem or a Python function"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `probnn bo`."""
    parser.add_argument("problem", metavar="PROBLEM", help="branin, hartmann6, ackley5 or module:function")
    parser.add_argument("--space", metavar="SPACE.toml", help="the parameters of a function")
    add_goals(parser)
    parser.add_argument(
        "--num-evaluations", "--n-trials", type=whole, required=True, metavar="N", dest="num_evaluations",
        help="how many evaluations, those in the history included",
    )  # fmt: skip
    parser.add_argument("--history", metavar="FILE.csv", help="keep the trials here, and go on from those there are")
    parser.add_argument(
        "--batch-size", type=whole, default=1, metavar="N", help="settings asked for at once (default: %(default)s)"
    )
    parser.add_argument(
        "--n-jobs", type=whole, default=1, metavar="N", help="evaluations side by side (default: %(default)s)"
    )
    parser.add_argument("--timeout", type=positive, metavar="SECONDS", help="what takes longer has failed")
    add_surrogate(parser)
    parser.add_argument("--stop-at", type=number, metavar="VALUE", help="stop when the first target is this good")
    parser.add_argument(
        "--patience", type=whole, metavar="N", help="stop after this many evaluations without improvement"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar and no notes")
    add_decimal(parser)


def run(options: argparse.Namespace) -> int:
    """Open the history, run, report."""
    from ..errors import ConvergenceError
    from ..optimization import BayesianOptimization
    from ..optimization.trials import utc_now

    space, objective, goals = _problem(options)
    with BayesianOptimization(
        space, **goals, surrogate=options.surrogate, seed=options.seed, history=options.history,
        decimal=options.decimal,
    ) as bo:  # fmt: skip
        for line in [] if bo.rows is None or options.quiet else bo.rows.lines:
            sys.stderr.write(f"{line}\n")
        if bo.history is not None and bo.history.added and not options.quiet:
            sys.stderr.write(f"{options.history}: columns added at the right: {', '.join(bo.history.added)}\n")
        for trial in bo.trials:
            # Asked and killed before it began: nobody but this command evaluates what it asked for.
            if trial.status == "pending" and trial.started is None and trial.source != "user":
                trial.started = utc_now()
                bo.record(trial)
        done = sum(t.status in ("complete", "failed") for t in bo.trials)
        if options.num_evaluations > done:
            try:
                bo.run(
                    objective, options.num_evaluations - done, batch_size=options.batch_size, n_jobs=options.n_jobs,
                    timeout=options.timeout, stop_at=options.stop_at, patience=options.patience,
                    progress=not options.quiet and sys.stderr.isatty(),
                )  # fmt: skip
            except ConvergenceError as error:
                words, kept = str(error).partition("; the trials are in")[0], options.history
                more = f"; the trials are in {kept}, and the same command goes on from there" if kept else ""
                raise ConvergenceError(words + more) from error
        sys.stdout.write(_report(bo))
    return 0


def _problem(options: argparse.Namespace) -> tuple[Space, Callable[..., Any], dict[str, Any]]:
    from ..errors import DomainError
    from ..optimization.problems import PROBLEMS, TARGET, named_problem
    from ..optimization.spacefile import read_space
    from ..studies.functions import load_function

    if options.problem in PROBLEMS:
        if options.space or options.maximize or options.minimize or options.subject_to:
            raise DomainError(
                f"{options.problem}: has its own space and target ({TARGET}, minimised); leave out --space, "
                "--maximize, --minimize and --subject-to"
            )
        problem = named_problem(options.problem)
        return problem.space, problem.objective, {"minimize": TARGET}
    if ":" not in options.problem:
        raise DomainError(f"{options.problem}: expected {', '.join(PROBLEMS)} or module:function")
    if options.space is None:
        raise DomainError(f"{options.problem}: needs its parameters, --space SPACE.toml")
    if not (options.maximize or options.minimize):
        raise DomainError(f"{options.problem}: needs a target, --maximize NAME or --minimize NAME")
    goals = {"maximize": options.maximize, "minimize": options.minimize, "subject_to": options.subject_to}
    return read_space(options.space), load_function(options.problem), goals


def _report(bo: BayesianOptimization) -> str:
    """The best trial, or the Pareto front."""
    done = [t for t in bo.trials if t.status in ("complete", "failed")]
    failed = sum(t.status == "failed" for t in done)
    lines = [f"{len(done)} evaluation{'s' * (len(done) != 1)}" + (f", {failed} failed" if failed else "")]
    for trial in bo.pareto:
        values = ", ".join(f"{name} = {trial.values[name]:.6g}" for name in bo.goals.outcomes)
        setting = ", ".join(f"{name} = {short(value)}" for name, value in trial.parameters.items())
        lines.append(f"best: {values} at {setting} (trial {trial.number})")
    if not bo.pareto:
        bounds = f" and keeps {', '.join(b.text for b in bo.goals.bounds)}" if bo.goals.bounds else ""
        lines.append(f"no evaluation is complete{bounds}")
    if failed and (note := next((t.note for t in reversed(done) if t.status == "failed" and t.note), "")):
        lines.append(f"the last failure: {note}")
    return "\n".join(lines) + "\n"
