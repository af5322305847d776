"""Branin where a half-disc over 35 % of the box fails: what a model of failures saves.

30 trials from a design of 5; the loop with `feasibility="learn"` against the same loop with "ignore" (a failed setting
stays pending to the model, so that the next one is elsewhere), seed by seed.
"""

from __future__ import annotations

import math
import statistics
import warnings
from typing import Any

import torch

from probnn.optimization import BayesianOptimization
from probnn.optimization.problems import TARGET, named_problem

from ._common import Report

TRIALS, SHARE = 30, 0.35


def fails(u: float, v: float) -> bool:
    """Whether a point of the unit square is in the half-disc around the middle of its lower side."""
    return (u - 0.5) ** 2 + v**2 < 2 * SHARE / math.pi


def run(surrogate: str, mode: str, seed: int) -> tuple[int, float]:
    """Failed trials, and the best value."""
    problem = named_problem("branin")
    bo = BayesianOptimization(problem.space, minimize=TARGET, surrogate=surrogate, seed=seed, feasibility=mode)
    for _ in range(TRIALS):
        [trial] = bo.ask()
        if fails(*problem.space.coordinates(trial.parameters).tolist()):
            bo.tell(trial, status="failed")
        else:
            bo.tell(trial, problem.objective(**trial.parameters))
    return sum(t.status == "failed" for t in bo.trials), float(bo.best_measured.values[TARGET])


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    report = Report("failures", __doc__, arguments)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    seeds = range(2 if report.quick else 10)
    for surrogate in ("gp",):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = {mode: [run(surrogate, mode, seed) for seed in seeds] for mode in ("learn", "ignore")}
        for mode, runs in found.items():
            best = [value for _, value in runs]
            rows.append(
                {
                    "surrogate": surrogate,
                    "feasibility": mode,
                    "seeds": len(runs),
                    f"failed of {TRIALS}": statistics.fmean(count for count, _ in runs),
                    "mean best": statistics.fmean(best),
                    "standard error": statistics.stdev(best) / math.sqrt(len(best)),
                }
            )
    report.table("Branin with a failing half-disc", rows)
    print(f"\nwritten to {report.write()}")


if __name__ == "__main__":
    main()
