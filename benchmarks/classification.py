"""Classification with fixed, matched and tempered posteriors, in two dimensions and on images.

Two dimensions: networks of 2 x 50 tanh units on the banana (400 rows in five folds; needs ``--data``) and on two
rings (200 rows drawn for each fold, 2,000 to test on, and the true probabilities known: the row `truth`).

- fixed: normal weights of scale one, divided by the root of the fan-in; biases of scale one.
- matched: the same after `match_prior` (objective ``auto``) to an RBF process of the function before the sigmoid or
  the softmax, one a class, with the hyper-prior of Tran, Rossi, Milios and Filippone (2022, arXiv 2011.12829): length
  scales of median 2, variances of median 8.
- matched hierarchical: inverse-gamma variances for each layer and function, matched by the energy distance.
- matched (v, l): as matched, to the process with variance v and length scale l for all functions.

Images: a LeNet of tanh units and mean pooling on ``mnist`` (``--data``), the test file of MNIST: its first rows to
train on, its last fifth to test on; matched to RBF processes of the pixels, with the median distance of images for a
length scale and variance 8. ``T=0.1`` is the tempered posterior, of which the likelihood has the power 10.

``nll`` is of the mean probability over the draws; ``brier`` is summed over classes; ``ece`` is the expected
calibration error in 15 bins of equal width, ``ece (mass)`` of equal mass; both are biased upwards, the more so the
fewer test rows (80 of the banana). Behind +- stand standard errors: over folds in two dimensions, where training rows
of folds overlap for the banana, so that it is too small as an error of the method; over test images for the images, of
one run. R-hat is of the probabilities of test outcomes: its median, and its maximum over test rows, of the worst fold.
Cold posteriors of the images mix slowly, so that at ``T=0.01`` little more than an ensemble of optima is left. CPU
seconds are of fit and scores; matching is apart.

Finished fits are kept in ``classification_runs.csv`` in the output folder, and are not done again there;
``classification_banana.png`` and ``classification_rings.png`` show the plane.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probnn.errors import ProbnnError

from ._classification import FIXED, FOLDS, HIERARCHICAL, MATCHED, TARGETS, Settings, run
from ._common import Report

SCORES = {"accuracy": "accuracy", "nll": "nll", "brier": "brier", "ece": "ece", "ece_mass": "ece (mass)"}
FIELDS = (*SCORES, "nll_error", "cpu_s", "match_s", "rhat", "rhat_median", "converged")
PRIORS = (FIXED, MATCHED, HIERARCHICAL)
IMAGES = (
    (FIXED, "sghmc"),
    (MATCHED, "sghmc"),
    (FIXED, "sghmc T=0.1"),
    (MATCHED, "sghmc T=0.1"),
    (FIXED, "sghmc T=0.01"),
)


@dataclass(frozen=True, order=True)
class Key:
    """Which fit: the likelihood, the prior and the sampler, on a fold of a data set."""

    task: str
    model: str
    prior: str
    method: str
    fold: int

    @property
    def setting(self) -> tuple[str, str, str, str]:
        """All but the fold."""
        return self.task, self.model, self.prior, self.method


Runs = dict[Key, dict[str, float]]


def tasks(with_data: bool, quick: bool) -> list[Key]:
    """All fits in the order in which they are done: a run that is stopped has all methods on its first folds."""
    found = []
    for fold in range(1 if quick else FOLDS):
        found.append(Key("rings", "bernoulli", "truth", "-", fold))
        found += [Key("rings", "bernoulli", prior, "hmc", fold) for prior in PRIORS]
        if with_data:
            for prior in PRIORS:
                found += [Key("banana", "bernoulli", prior, method, fold) for method in ("hmc", "sghmc")]
            found += [Key("banana", "categorical", prior, "hmc", fold) for prior in PRIORS]
        if fold == 0 and with_data:
            chosen = IMAGES[:2] if quick else IMAGES
            found += [Key("mnist", "categorical", prior, method, 0) for prior, method in chosen]
    if with_data and not quick:
        found += [Key("banana", "bernoulli", prior, "hmc", fold) for fold in range(2) for prior in TARGETS]
    return found


def plane_of(key: Key, out: Path) -> Path | None:
    """Where a fit saves what it says of the plane: the first folds do, by HMC."""
    if (key.model, key.method, key.fold) != ("bernoulli", "hmc", 0) or key.prior not in PRIORS:
        return None
    return out / "classification_planes" / f"{key.task}_{key.prior.replace(' ', '_')}.npz"


def job(key: Key, data: Path | None, out: Path, settings: Settings) -> dict[str, float] | str:
    """The scores of one fit, or how it failed: the other fits do not end with it."""
    try:
        return run(data, *key.setting, key.fold, settings, plane_of(key, out))
    except ProbnnError as error:
        return f"{type(error).__name__}: {error}"


def finished(path: Path) -> Runs:
    """Fits that a file keeps."""
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {
            Key(row["task"], row["model"], row["prior"], row["method"], int(row["fold"])): {
                name: float(row[name]) for name in FIELDS if row[name]
            }
            for row in csv.DictReader(file)
        }


def keep(path: Path, key: Key, scores: dict[str, float]) -> None:
    """Add a fit to the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["task", "model", "prior", "method", "fold", *FIELDS])
        writer.writerow([*key.setting, key.fold, *(f"{scores[n]:.6g}" if n in scores else "" for n in FIELDS)])


def with_error(values: list[float]) -> str:
    """Mean and, of two values or more, its standard error."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    return f"{mean:.3f} +- {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def scores_of(runs: Runs, keys: Iterable[Key]) -> list[dict[str, Any]]:
    """A table of the fits among `keys`: a row for each setting, over its folds."""
    groups: dict[tuple[str, str, str, str], list[dict[str, float]]] = {}
    for key in keys:
        if key in runs:
            groups.setdefault(key.setting, []).append(runs[key])
    table = []
    for (task, model, prior, method), own in groups.items():
        columns = {title: with_error([found[name] for found in own]) for name, title in SCORES.items()}
        if task == "mnist":
            columns["nll"] += f" +- {own[0]['nll_error']:.3f}"
        sampled = "rhat" in own[0]
        told = f"{max(f['rhat_median'] for f in own):.2f}, {max(f['rhat'] for f in own):.2f}" if sampled else ""
        table.append(
            {
                "likelihood": model,
                "prior": prior,
                "sampler": method,
                "folds": len(own),
                **columns,
                "cpu s": statistics.fmean(found["cpu_s"] for found in own) if sampled else None,
                "matching s": statistics.fmean(found["match_s"] for found in own) if sampled else None,
                "R-hat": told,
            }
        )
    return table


def differences(runs: Runs) -> list[dict[str, Any]]:
    """Matched less fixed, over the folds that both have: negative where matching is better, but for accuracy."""
    table = []
    for task, model, prior, method in dict.fromkeys(key.setting for key in runs):
        if prior not in (MATCHED, HIERARCHICAL) or task == "mnist":
            continue
        pairs = [
            (found, runs[base])
            for key, found in runs.items()
            if key.setting == (task, model, prior, method)
            and (base := Key(task, model, FIXED, method, key.fold)) in runs
        ]
        if pairs:
            table.append(
                {
                    "set": task,
                    "likelihood": model,
                    "sampler": method,
                    "prior": prior,
                    "folds": len(pairs),
                    **{t: with_error([own[n] - base[n] for own, base in pairs]) for n, t in SCORES.items()},
                }
            )
    return table


def plot(task: str, out: Path) -> Path | None:
    """Draw probabilities and their standard deviations over the plane; None where no fit has saved any."""
    from matplotlib.figure import Figure

    keys = [Key(task, "bernoulli", prior, "hmc", 0) for prior in PRIORS]
    paths = {key.prior: path for key in keys if (path := plane_of(key, out)) is not None and path.exists()}
    if not paths:
        return None
    figure = Figure(figsize=(3.2 * len(paths), 6.0), layout="constrained")
    axes = figure.subplots(2, len(paths), squeeze=False, sharex=True, sharey=True)
    shown: list[Any] = [None, None]
    for column, (prior, path) in enumerate(paths.items()):
        with np.load(path) as plane:
            axis, X, Y = plane["axis"], plane["X"], plane["Y"]
            for row, (name, top, colours) in enumerate((("mean", 1.0, "RdBu_r"), ("std", 0.5, "viridis"))):
                ax = axes[row, column]
                shown[row] = ax.pcolormesh(axis, axis, plane[name], vmin=0, vmax=top, cmap=colours, rasterized=True)
            axes[0, column].contour(axis, axis, plane["mean"], [0.5], colors="k", linewidths=1)
        for ax in axes[:, column]:
            for k, (marker, colour) in enumerate((("o", "#2166ac"), ("^", "#b2182b"))):
                ax.scatter(*X[k == Y].T, s=8, marker=marker, c=colour, edgecolors="w", linewidths=0.4)
            ax.set(xlim=(axis[0], axis[-1]), ylim=(axis[0], axis[-1]), aspect="equal")
        axes[0, column].set_title(prior)
    figure.colorbar(shown[0], ax=axes[0], label="probability of class 1")
    figure.colorbar(shown[1], ax=axes[1], label="its standard deviation")
    path = out / f"classification_{task}.png"
    figure.savefig(path, dpi=150)
    return path


def main(arguments: list[str] | None = None, settings: Settings | None = None) -> None:
    """Run the benchmark."""
    report = Report("classification", __doc__, arguments)
    settings = settings or Settings()
    data = report.data
    wanted = ("banana/banana_X_train", "mnist/t10k-images-idx3-ubyte.gz")
    if data is not None and (missing := [name for name in wanted if not (data / name).exists()]):
        raise SystemExit(f"classification: {data} has no {', '.join(missing)}")
    torch.set_num_threads(1)
    todo = tasks(data is not None, report.quick)
    path = report.out / "classification_runs.csv"
    runs = finished(path)
    for key in todo:
        if key in runs:
            continue
        scores = job(key, data, report.out, settings)
        if isinstance(scores, str):
            told = f"failed, {scores}"  # not kept, so that the next run tries it again
        else:
            keep(path, key, scores)
            runs[key] = scores
            told = f"nll {scores['nll']:.3f}, accuracy {scores['accuracy']:.3f}, {scores.get('cpu_s', 0.0):.1f} s"
        print(f"{key.task} fold {key.fold} {key.model} {key.prior} {key.method}: {told}", flush=True)
    runs = {key: runs[key] for key in todo if key in runs}
    tables = {
        f"banana, {400 * (FOLDS - 1) // FOLDS} training rows": [k for k in todo if k.task == "banana"],
        f"rings, {settings.ring_rows[0]} training rows": [k for k in todo if k.task == "rings"],
        f"mnist, {settings.images} training images": [k for k in todo if k.task == "mnist"],
    }
    for title, keys in tables.items():
        if rows := scores_of(runs, [key for key in keys if key.prior not in TARGETS]):
            report.table(title, rows)
        if rows := scores_of(runs, [key for key in keys if key.prior in TARGETS]):
            report.table(f"{title}: priors matched to processes of known (variance, length scale)", rows)
    if rows := differences(runs):
        report.table("matched less fixed, on the same folds", rows)
    for task in ("banana", "rings"):
        if (figure := plot(task, report.out)) is not None:
            print(f"drawn: {figure}")
    print(f"\nwritten to {report.write()}")


if __name__ == "__main__":
    main()
