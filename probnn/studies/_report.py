"""Figures and Markdown reports of studies of convergence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._version import __version__
from ..errors import DomainError
from ..io import replacing
from ..plots.style import axes_or_new
from ._estimators import STATUSES
from ._theory import ROUNDING
from ._truths import record_of_measure
from .measures import Mean, Median
from .rates import Rates
from .summaries import summarise
from .table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .convergence import ConvergenceStudy

_FEW_SIZES = 3  # with fewer there is no rate
_COLUMNS = 3  # panels beside each other
_HIGHEST = 1e50  # end of an axis


def draw(study: ConvergenceStudy, target: str | os.PathLike[str] | Axes | None, statistic: str) -> Any:
    """The figure of :meth:`ConvergenceStudy.plot`."""
    from matplotlib import pyplot as plt

    panels = ("choices",) if study.criteria else study.curves
    if hasattr(target, "get_figure"):
        if len(panels) != 1:
            raise DomainError(
                f"ConvergenceStudy.plot: one Axes shows one loss, and the study has {', '.join(panels)}; give a file, "
                "or use plot_rates(study.rates(losses='...'), ax=...)"
            )
        return _panel(study, panels[0], statistic, target)
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(5.2 * columns, 4.0 * rows), squeeze=False, layout="constrained")
    axes = grid.ravel()
    for empty in axes[len(panels) :]:
        empty.remove()
    axes = axes[: len(panels)]
    for name, ax in zip(panels, axes, strict=True):
        _panel(study, name, statistic, ax)
    if target is None:
        return axes
    path = Path(target)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format=path.suffix.lstrip(".") or "png")
    plt.close(figure)
    return axes


def _panel(study: ConvergenceStudy, name: str, statistic: str, ax: Any) -> Any:
    from .rate_figure import plot_rates

    if name != "choices":
        plot_rates(study.rates(statistic, losses=name), ax=ax)
        if ax.get_ylim()[1] > _HIGHEST:  # powers of far atoms: ticks of such axes overflow
            ax.set_ylim(top=_HIGHEST)
            ax.set_title(f"values above {_HIGHEST:g} are not shown", fontsize="small")
        return ax
    ax = axes_or_new(ax)
    shares = _shares(study)
    for (estimator, criterion), group in _grouped(shares, "estimator", "criterion"):
        label = criterion if len(study.estimators) == 1 else f"{estimator}, {criterion}"
        ax.errorbar(group["n"], group["share right"], yerr=group["mcse"], marker="o", ms=4, lw=1.2, label=label)
    ax.set(xscale="log", ylim=(-0.02, 1.02), xlabel="n", ylabel=f"share that chose {study.truth.num_atoms} experts")
    ax.legend(frameon=False, fontsize="small")
    return ax


def write(study: ConvergenceStudy, path: str | os.PathLike[str]) -> str:
    """The report of :meth:`ConvergenceStudy.report`."""
    table = study.table()
    if not len(table):
        raise DomainError("ConvergenceStudy.report: no rows yet; run the study first")
    path = Path(path)
    figure = path.with_suffix(".png")
    parts = [f"# {study.account.title}", *_setting(study, table)]
    works = bool((table["status"] == "complete").any())
    # Without three sizes there are no rates, and nothing else is missing.
    enough = works and len(study.n_grid) >= _FEW_SIZES and bool(study.curves)
    rates = [study.rates(s) for s in ("mean", "median")] if enough else []
    if works and study.criteria:
        parts += ["## Choices", _shares(study).to_markdown()]
    if works and study.curves:
        parts += ["## Losses" if study.simulation.losses else "## Heights of the dendrogram", *_losses(study, table)]
    if works:
        parts += ["## How the fits ended", *_endings(study, table)]
    else:
        parts += ["## Failures", "No replicate has a result.", study.failures().to_markdown()]
    for fitted in rates:
        parts += [f"## Rates of the {fitted.statistic}", _rates(fitted), *_against_theory(fitted)]
    for title, text in (("What the literature says", study.account.paper), ("Notes", study.account.notes)):
        parts += [f"## {title}", text] if text else []
    if rates or (works and study.criteria):
        study.plot(figure)
        parts += ["## Figure", f"![{study.account.title}]({figure.name})"]
    text = "\n\n".join(parts) + "\n"
    with replacing(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")
    return text


def _setting(study: ConvergenceStudy, table: Table) -> Iterator[str]:
    """What was run."""
    import torch

    complete = table.take(table["status"] == "complete")
    truth = record_of_measure(study.truth)
    yield "## What was run"
    lines = [f"- true {name}: {_shown(value)}" for name, value in truth.items() if value is not None]
    inputs = study.simulation.inputs
    inputs = inputs if isinstance(inputs, str) else getattr(inputs, "__name__", type(inputs).__name__)
    lines.append(f"- inputs: {inputs}")
    lines.append(f"- n: {', '.join(map(str, study.n_grid))}; {study.replicates} replicates each; seed {study.seed}")
    for name, estimator in study.estimators.items():
        settings = {k: v for k, v in estimator.record().items() if k != "class" and v is not None}
        lines.append(f"- estimator `{name}`: " + ", ".join(f"{k} {_shown(v)}" for k, v in settings.items()))
    wanted = len(study.cells) * study.replicates
    lines.append(f"- {len(complete)} of {wanted} rows complete; {complete['seconds'].sum():.3g} s of computation")
    lines.append(f"- probnn {__version__}, torch {torch.__version__}")
    yield "\n".join(lines)


def _shown(value: Any) -> str:
    """A recorded value for people."""
    if isinstance(value, dict):
        others = ", ".join(f"{k}={_shown(v)}" for k, v in value.items() if k != "class")
        return f"{value.get('class', '')}({others})"
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _losses(study: ConvergenceStudy, table: Table) -> Iterator[str]:
    """Means and medians with their Monte Carlo standard errors."""
    yield "Mean and median over the replicates ± Monte Carlo standard error."
    measures = [measure(name) for name in study.curves for measure in (Mean, Median)]
    gain = "gain" in table
    summary = summarise(table, [*measures, *([Mean("gain")] if gain else [])], axes=study.axes)
    rows = []
    for cell, group in _grouped(summary, *study.axes):
        row: dict[str, Any] = dict(zip(study.axes, cell, strict=True))
        for line in group.rows():
            label = "gain over the truth, nats" if line["measure"] == "mean gain" else line["measure"]
            row[label] = f"{line['value']:.3g} ± {line['mcse']:.1g}"
        rows.append(row)
    yield Table.from_rows(rows).to_markdown()


def _endings(study: ConvergenceStudy, table: Table) -> Iterator[str]:
    """How rows and fits ended, by cell."""
    if "fit_status" in table:
        yield (
            "Rows that have no result (failed, timeout or killed), and the statuses of the fits of the others. All "
            "fits count in the tables above but failed ones, which have no loss."
        )
    rows = []
    for cell, group in _grouped(table, *study.axes):
        row: dict[str, Any] = dict(zip(study.axes, cell, strict=True))
        complete = group.take(group["status"] == "complete")
        row["rows"], row["no result"] = len(group), len(group) - len(complete)
        if "fit_status" in table:
            counts = np.bincount(complete["fit_status"].astype(int), minlength=len(STATUSES))
            row |= {name: int(counts[i]) for i, name in enumerate(STATUSES)}
            row["iterations (median)"] = float(np.median(complete["num_iter"])) if len(complete) else np.nan
        else:
            row["unusable fits"] = int(complete["num_unusable"].sum())
        rows.append(row)
    yield Table.from_rows(rows).to_markdown()


def _rates(rates: Rates) -> str:
    names = ["estimator", "loss", "slope", "se", "low", "high", *(["theory", "z"] if rates.theory else []),
             "curvature", "curvature_se", "nan", "inf", "note"]  # fmt: skip
    return rates.table.caption + ".\n\n" + Table({name: rates.table[name] for name in names}).to_markdown()


def _against_theory(rates: Rates) -> Iterator[str]:
    """A sentence a rate on whether the theory's exponent lies in its interval."""
    lines = []
    for row in rates.table.rows():
        aim = row.get("theory", np.nan)
        if np.isnan(aim):
            continue
        words = f"- {row['loss']} of `{row['estimator']}`: slope {row['slope']:.3f} ± {row['se']:.3f}, theory {aim:g}: "
        if np.isnan(row["slope"]) or np.isnan(row["low"]):
            lines.append(words + "no rate")
        elif row["se"] < ROUNDING:
            lines.append(words + "**the loss is the same at all sizes**")
        elif row["low"] <= aim <= row["high"]:
            lines.append(words + "the interval has it")
        else:
            slower = "slower" if row["slope"] > aim else "faster"
            lines.append(words + f"**{slower} by {abs(row['z']):.1f} standard errors**")
    if lines:
        yield "\n".join(lines)


def _shares(study: ConvergenceStudy) -> Table:
    """How often every criterion chose which number of experts."""
    table = study.table()
    complete = table.take(table["status"] == "complete")
    numbers = sorted({k for e in study.estimators.values() for k in getattr(e, "candidates", ())})
    rows = []
    for (estimator, n), group in _grouped(complete, *study.axes):
        for criterion in study.criteria:
            chosen = group[criterion]
            right = float((chosen == study.truth.num_atoms).mean())
            row = {"estimator": estimator, "n": n, "criterion": criterion, "share right": right}
            row["mcse"] = float(np.sqrt(right * (1 - right) / len(chosen)))
            rows.append(row | {f"chose {k}": int((chosen == k).sum()) for k in numbers})
    return Table.from_rows(rows)


def _grouped(table: Table, *names: str) -> Iterator[tuple[tuple[Any, ...], Table]]:
    for group, part in table.groups(names):
        yield tuple(group[name] for name in names), part
