"""Bayesian optimisation: every surrogate against BoTorch's SingleTaskGP, a random forest and random search.

Functions (Branin, Hartmann6, Ackley5) are searched from 5 random points, one evaluation at a time; the figure is
the simple regret at the end. With ``--data FOLDER``, a folder of CSV files and an index.json that names ranges,
objective and goal of each, real experiments are replayed: 5 random experiments, then one at a time from those that
were done; the figures are the share of the best 5 % found after 10 % and after 25 % of the pool (at most 100), and
the number of experiments to the best. Rows at one setting are averaged. The first 5 points of a seed are the same
for all, so methods are compared seed by seed: a mean difference beyond two of its standard errors is marked.

Peers, in the same runs: SingleTaskGP and LogEI with BoTorch's defaults; a random forest of scikit-learn with 100
trees and expected improvement over the spread of its trees; random search. Finished runs are kept in
``bo_runs.csv`` in the output folder, and are not done again there.
"""

from __future__ import annotations

import csv
import functools
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from torch import Tensor

import probnn
from probnn.optimization import BayesianOptimization, Real, Space
from probnn.optimization.backtest import NUM_INITIAL, FinishedTable, Replay, replay
from probnn.optimization.problems import TARGET, named_problem
from probnn.optimization.rows import parse_trials
from probnn.optimization.table import read_table
from probnn.optimization.trials import Trial

from ._common import Report

PEERS = ("SingleTaskGP + LogEI", "random forest + EI", "random")
EVALUATIONS = {"branin": 30, "hartmann6": 50, "ackley5": 50}
SLOW = ("bnn-hmc", "bnn-functional", "bnn-sghmc", "vi", "laplace", "ensemble")


# A peer proposes one of some candidates (features in the unit cube) from what was measured, more being better.
Peer = Callable[[Tensor, Tensor, Tensor, int], int]


def gp_peer(X: Tensor, Y: Tensor, candidates: Tensor, seed: int) -> int:
    """SingleTaskGP as it comes, and analytic LogEI."""
    log_ei = _gp_log_ei(X, Y, seed)
    with torch.no_grad():
        return int(torch.cat([log_ei(part.unsqueeze(-2)) for part in candidates.split(512)]).argmax())


def _gp_log_ei(X: Tensor, Y: Tensor, seed: int) -> Any:
    from botorch.acquisition import LogExpectedImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from gpytorch.mlls import ExactMarginalLogLikelihood

    torch.manual_seed(seed)
    model = SingleTaskGP(X, Y)  # standardises Y by itself
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return LogExpectedImprovement(model, best_f=Y.max())


def forest_peer(X: Tensor, Y: Tensor, candidates: Tensor, seed: int) -> int:
    """A random forest as it comes, and the expected improvement of a normal with the trees' mean and spread."""
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(random_state=seed).fit(X.numpy(), Y.squeeze(-1).numpy())
    trees = torch.stack([torch.from_numpy(t.predict(candidates.numpy())) for t in forest.estimators_])
    mean, std = trees.mean(0), trees.std(0).clamp_min(1e-12)
    u = (mean - Y.max()) / std
    normal = torch.distributions.Normal(0.0, 1.0)
    improvement = std * (normal.log_prob(u).exp() + u * normal.cdf(u))
    return int(improvement.argmax())


def on_pool(table: FinishedTable, method: str, seed: int) -> list[int]:
    """Indices of the settings that a method chose, in order."""
    if method not in PEERS or method == "random":
        return list(replay(table, method, seed).picks)
    points = torch.stack([table.space.encode(s) for s in table.settings])
    sign = 1.0 if table.maximize else -1.0
    values = torch.tensor([[sign * v] for v in table.outcomes if v is not None], dtype=torch.double)
    picks = list(replay(table, "random", seed).picks[:NUM_INITIAL])
    peer: Peer = gp_peer if method == PEERS[0] else forest_peer
    while len(picks) < max(table.budgets):
        free = [i for i in range(len(table)) if i not in set(picks)]
        picks.append(free[peer(points[picks], values[picks], points[free], seed)])
    return picks


def on_function(name: str, method: str, seed: int) -> list[float]:
    """Best value so far after every evaluation."""
    problem, budget = named_problem(name), EVALUATIONS[name]
    space, d = problem.space, len(problem.space)
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(NUM_INITIAL, d, generator=generator, dtype=torch.double)
    trials = []
    for i, point in enumerate(start):
        setting = space.values(point)
        trials.append(Trial(i, setting, "initial", "complete", {TARGET: problem.objective(**setting)}))
    if method == "random":
        more = torch.rand(budget - NUM_INITIAL, d, generator=generator, dtype=torch.double)
        values = [t.values[TARGET] for t in trials] + [problem.objective(**space.values(p)) for p in more]
        return _best(values)
    if method in PEERS:
        X, Y = start, torch.tensor([[-t.values[TARGET]] for t in trials], dtype=torch.double)
        while len(X) < budget:
            x = _peer_point(method, X, Y, seed)
            X = torch.cat([X, x.unsqueeze(0)])
            Y = torch.cat([Y, torch.tensor([[-problem.objective(**space.values(x))]], dtype=torch.double)])
        return _best((-Y).squeeze(-1).tolist())
    bo = BayesianOptimization(space, minimize=TARGET, surrogate=method, seed=seed, num_initial=0)
    bo.trials = trials
    bo.run(problem.objective, budget - NUM_INITIAL)
    return bo.best_values()


def _peer_point(method: str, X: Tensor, Y: Tensor, seed: int) -> Tensor:
    if method == PEERS[1]:
        candidates = torch.quasirandom.SobolEngine(X.shape[1], scramble=True, seed=seed + len(X)).draw(2000).double()
        near = X[Y.squeeze(-1).argmax()] + 0.05 * torch.randn(500, X.shape[1], dtype=torch.double)
        candidates = torch.cat([candidates, near.clamp(0, 1)])
        return candidates[forest_peer(X, Y, candidates, seed)]
    from botorch.optim import optimize_acqf

    bounds = torch.stack([torch.zeros(X.shape[1]), torch.ones(X.shape[1])]).double()
    point, _ = optimize_acqf(_gp_log_ei(X, Y, seed), bounds=bounds, q=1, num_restarts=8, raw_samples=256)
    return point.squeeze(0)


def _best(values: Iterable[float]) -> list[float]:
    found, best = [], math.inf
    for value in values:
        best = min(best, value)
        found.append(best)
    return found


@functools.cache
def pools(folder: Path) -> dict[str, FinishedTable]:
    """The finished tables of a folder."""
    found = {}
    for name, facts in json.loads((folder / "index.json").read_text(encoding="utf-8")).items():
        table = read_table(folder / f"{name}.csv")
        ranges: dict[str, Any] = {}
        for parameter, (low, high) in facts["parameters"].items():  # ranges of a file may be rounded
            cells = [float(row[parameter]) for row in table.rows]
            ranges[parameter] = Real(min(low, *cells), max(high, *cells))
        space = Space(**ranges)
        trials = parse_trials(table, space, [facts["objective"]])
        found[name] = FinishedTable.of(trials, space, facts["objective"], maximize=facts["goal"] == "maximize")
    return found


def job(problem: str, method: str, seed: int, data: Path | None) -> tuple[str, str, int, float, list[Any]]:
    """One run, with its CPU seconds."""
    torch.set_num_threads(1)
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a benchmark's table says what came out
        run = _run(problem, method, seed, data)
    return problem, method, seed, time.process_time() - started, run


def _run(problem: str, method: str, seed: int, data: Path | None) -> list[Any]:
    if problem in EVALUATIONS:
        return on_function(problem, method, seed)
    if data is None:
        raise ValueError(f"{problem} needs --data")
    return on_pool(pools(data)[problem], method, seed)


def finished(path: Path) -> dict[tuple[str, str, int], tuple[float, list[float]]]:
    """Runs that a file keeps."""
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {
            (r["problem"], r["method"], int(r["seed"])): (float(r["cpu_s"]), [float(v) for v in r["run"].split()])
            for r in csv.DictReader(file)
            if r["run"]
        }


def keep(path: Path, problem: str, method: str, seed: int, seconds: float, run: list[Any]) -> None:
    """Add a run to the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["problem", "method", "seed", "cpu_s", "run"])
        writer.writerow([problem, method, seed, f"{seconds:.1f}", " ".join(map(str, run))])


def compare(own: dict[int, float], other: dict[int, float]) -> str:
    """Mean difference over common seeds with its standard error, marked where it is beyond two of them."""
    common = sorted(own.keys() & other.keys())
    lead = [own[s] - other[s] for s in common]
    if len(lead) < 2:
        return ""
    error = statistics.stdev(lead) / math.sqrt(len(lead))
    mean = statistics.fmean(lead)
    mark = "" if abs(mean) <= 2 * error else " better" if mean > 0 else " worse"
    return f"{mean:+.3g} ({error:.2g}){mark}"


def tables(report: Report, runs: dict[tuple[str, str, int], tuple[float, list[float]]]) -> None:
    """One table a problem; differences are such that more is better."""
    for problem in dict.fromkeys(p for p, _, _ in runs):
        methods = list(dict.fromkeys(m for p, m, _ in runs if p == problem))
        scores: dict[str, dict[int, float]] = {}
        rows = []
        pool = None if problem in EVALUATIONS else pools(report.data)[problem]
        for method in methods:
            own = {seed: run for (p, m, seed), run in runs.items() if (p, m) == (problem, method)}
            row: dict[str, Any] = {"method": method, "seeds": len(own)}
            if pool is None:
                optimum = named_problem(problem).optimum
                scores[method] = {seed: -(values[-1] - optimum) for seed, (_, values) in own.items()}
                regrets = sorted(-v for v in scores[method].values())
                row |= {"mean regret": statistics.fmean(regrets), "median regret": statistics.median(regrets)}
            else:
                early, late = pool.budgets
                found = {seed: Replay(method, seed, tuple(map(int, v))) for seed, (_, v) in own.items()}
                scores[method] = {seed: one.share(pool, late) for seed, one in found.items()}
                to_best = [one.to_best(pool) or math.inf for one in found.values()]
                row |= {
                    f"share at {early}": statistics.fmean(one.share(pool, early) for one in found.values()),
                    f"share at {late}": statistics.fmean(scores[method].values()),
                    "to the best": statistics.median(to_best),
                }
            rows.append(row | {"cpu s": statistics.fmean(seconds for seconds, _ in own.values())})
        for row in rows:
            for peer in (PEERS[2], PEERS[0]):
                known = peer in scores and peer != row["method"]
                row[f"over {peer}"] = compare(scores[row["method"]], scores[peer]) if known else ""
        report.table(f"{problem}, regret after {EVALUATIONS[problem]}" if pool is None else f"{problem} (pool)", rows)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    report = Report("bo", __doc__, arguments)
    torch.set_num_threads(1)
    problems = ["branin"] if report.quick else list(EVALUATIONS)
    if report.data is not None:
        names = list(pools(report.data))
        problems += names[:1] if report.quick else names
    methods = [*PEERS, *probnn.surrogates.available_surrogates()]
    path = report.out / ("bo_quick_runs.csv" if report.quick else "bo_runs.csv")
    done = finished(path)
    most = 2 if report.quick else 10
    # Seed by seed, so that a run that is stopped has compared all methods on the seeds it had.
    todo = [
        (problem, method, seed)
        for seed in range(most)
        for problem in problems
        for method in methods
        if seed < (min(3, most) if method in SLOW else most) and (problem, method, seed) not in done
    ]
    jobs = int(os.environ.get("PROBNN_BENCH_JOBS", "2"))
    results = Parallel(n_jobs=jobs, return_as="generator_unordered")(delayed(job)(*t, report.data) for t in todo)
    for problem, method, seed, seconds, run in results:
        keep(path, problem, method, seed, seconds, run)
        done[problem, method, seed] = (seconds, [float(v) for v in run])
        print(f"{problem} {method} seed {seed}: {seconds:.0f} s", flush=True)
    tables(report, {key: run for key, run in done.items() if key[0] in problems})
    print(f"\nwritten to {report.write()}")


if __name__ == "__main__":
    main()
