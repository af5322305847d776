"""The demonstration behind ``make demo``: tune a real model on real data, three ways.

Support-vector regression on principal components (scikit-learn) predicts the progression of
diabetes; four hyper-parameters are tuned by cross-validation with Bayesian neural networks (HMC), a
Gaussian process and random search.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from ..errors import DomainError
from ..process import EmpiricalProcess
from .loop import BayesianOptimization
from .parameters import Integer, Real
from .space import Space
from .trials import trial_rows, write_rows

SURROGATES = ("bnn-hmc", "gp", "random")
NUM_EVALUATIONS = 30
SPACE = Space(
    components=Integer(1, 10),
    C=Real(1e-2, 1e4, log=True),
    gamma=Real(1e-5, 10.0, log=True),
    epsilon=Real(1e-1, 1e2, log=True),
)


def make_objective() -> Callable[..., float]:
    """Cross-validated R^2 of the regression, as a function of its hyper-parameters."""
    from sklearn.datasets import load_diabetes
    from sklearn.decomposition import PCA
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVR

    X, y = load_diabetes(return_X_y=True)
    folds = KFold(5, shuffle=True, random_state=0)

    def objective(components: int, **hyperparameters: float) -> float:
        model = make_pipeline(StandardScaler(), PCA(components), SVR(**hyperparameters))
        return float(cross_val_score(model, X, y, cv=folds, scoring="r2").mean())

    return objective


def run(out: Path, *, num_evaluations: int = NUM_EVALUATIONS, seed: int = 0, progress: bool = True) -> dict:
    """Run all surrogates and write trials.csv, regret.png, slices.png and summary.csv to `out`.

    Returns:
        The optimisations by name, and the seconds each took, under ``"runs"`` and ``"seconds"``.
    """
    objective = make_objective()
    objective(**SPACE.values(torch.full((len(SPACE),), 0.5).double()))  # scikit-learn's first call loads what it needs
    runs, seconds = {}, {}
    for name in SURROGATES:
        started = time.perf_counter()
        runs[name] = BayesianOptimization(SPACE, maximize="r2", surrogate=name, seed=seed)
        runs[name].run(objective, num_evaluations, progress=progress)
        seconds[name] = time.perf_counter() - started
    out.mkdir(parents=True, exist_ok=True)
    rows = [row for name, bo in runs.items() for row in trial_rows(bo.trials, "r2", surrogate=name)]
    write_rows(rows, out / "trials.csv")
    _draw(runs, out)
    return {"runs": runs, "seconds": seconds}


def _draw(runs: dict[str, BayesianOptimization], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from ..plots import plot_progress, plot_slices

    figure, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
    plot_progress(runs, optimum="best", ax=ax)
    figure.savefig(out / "regret.png", dpi=150)
    axes = plot_slices(runs["bnn-hmc"])
    axes[0].figure.savefig(out / "slices.png", dpi=150)
    plt.close("all")


def report(result: dict, out: Path, stream: TextIO) -> None:
    """Print the table and the ArviZ summary of the last posterior, and say where the files are."""
    runs: dict[str, BayesianOptimization] = result["runs"]
    stream.write(f"\n{'surrogate':<10} {'best r2':>8} {'after':>6} {'of':>4} {'failed':>7} {'seconds':>8}\n")
    for name, bo in runs.items():
        best = bo.best_measured
        failed = sum(t.status == "failed" for t in bo.trials)
        stream.write(
            f"{name:<10} {best.value:>8.4f} {best.number + 1:>6} {len(bo.trials):>4} {failed:>7} "
            f"{result['seconds'][name]:>8.1f}\n"
        )
    best = max((bo.best_measured for bo in runs.values()), key=lambda t: t.value or 0.0)
    stream.write("\nbest setting: " + ", ".join(f"{k}={v:.4g}" for k, v in best.parameters.items()) + "\n")
    bo = runs["bnn-hmc"]
    summary = summarise(bo)
    title = "the last posterior of bnn-hmc (standardised r2 at the five best settings), by ArviZ"
    stream.write(f"\n{title}:\n{summary.to_string()}\n")
    stream.write(
        "(16 chains of 16 draws each: enough to average an acquisition function over. "
        "For R-hat below 1.01 run HMC longer, as tutorial 02 does.)\n"
    )
    with open(out / "summary.csv", "w", encoding="utf-8") as file:
        file.write(summary.to_csv())
    stream.write(f"\nwritten to {out}: trials.csv, regret.png, slices.png, summary.csv\n")


def summarise(bo: BayesianOptimization) -> Any:
    """ArviZ's table of the function values at the five best settings, and of the noise."""
    from ..bridges.arviz import arviz_summary, to_arviz

    model = bo.fit()
    if not isinstance(model.source, EmpiricalProcess):
        raise DomainError("summarise: needs a surrogate with draws, such as bnn-hmc")
    best = sorted(bo.complete, key=lambda t: -t.value)[:5]  # type: ignore[operator]
    X = torch.stack([bo.space.encode(t.parameters) for t in best])
    return arviz_summary(to_arviz(model.source, X_test=model.transform_inputs(X)), prob=0.9).round(3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the demonstration."""
    parser = argparse.ArgumentParser(prog="python -m probnn.optimization.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for the results")
    parser.add_argument("--evaluations", type=int, default=NUM_EVALUATIONS, help="evaluations a surrogate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # products this small lose by sharing, and lose much on a busy machine
    result = run(options.out, num_evaluations=options.evaluations, seed=options.seed)
    report(result, options.out, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
