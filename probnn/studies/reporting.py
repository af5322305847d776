"""Reports of studies as text: what was run, what came out, with which error, and what failed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import io, validation
from .._version import __version__
from ..errors import DomainError
from ._text import latex_text, number
from .study import Study
from .summaries import pivot, replicates_needed
from .table import Table

FORMATS = ("markdown", "latex")


def report(
    study: Study,
    path: str | os.PathLike[str] | None = None,
    *,
    measures: Sequence[Any] | None = None,
    mcse: float | Mapping[str, float] | None = None,
    format: str = "markdown",
) -> str:
    """What a study found: its measures with their Monte Carlo standard errors, and its failures beside them.

    Args:
        study: The study.
        path: A file to write; None: none. A :class:`ConvergenceStudy` needs one, and puts its figure beside it.
        measures: As of :meth:`Study.summary`.
        mcse: Standard errors that are wanted, for all measures or by label: the report says how many replicates they
            need. None: those of the study's file, or half of what they are.
        format: ``"markdown"``, or ``"latex"`` for tables with the rules of booktabs.

    Returns:
        The text.

    Raises:
        DomainError: There are no rows yet, or an argument does not go with the study.

    Example:
        >>> def heads(cell, seed):
        ...     return {"share": np.random.default_rng(seed).integers(2, size=cell["n"]).mean()}
        >>> text = report(Study(heads, {"n": [10, 40]}, replicates=20).run())
        >>> print(text.splitlines()[0])
        # Simulation study
    """
    where = "report"
    validation.choice(where, "format", format, FORMATS)
    own = getattr(study, "report", None)
    if own is not None:
        if path is None or format != "markdown" or measures is not None or mcse is not None:
            raise DomainError(
                f"{where}: studies of convergence are reported as Markdown, with a figure: path= is needed"
            )
        text: str = own(path)
        return text
    table = study.table()
    if not len(table):
        raise DomainError(f"{where}: there are no rows yet; run the study first")
    wanted = getattr(study, "mcse", None) if mcse is None else mcse
    summary = study.summary(measures)
    wide, failed = pivot(summary), _failures(study)
    parts: list[tuple[str, Table | list[str]]] = [("Setting", _setting(study, table)), ("Summary", wide)]
    parts += [("Replicates needed", _needed(summary, wanted)), ("Failures", failed)]
    write = _markdown if format == "markdown" else _latex
    text = write(getattr(study, "title", "Simulation study"), parts)
    if path is not None:
        with io.replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
    return text


def progress(study: Study, shard: tuple[int, int] | None = None) -> tuple[int, int]:
    """How many rows of a study, or of a part of it, are complete, and how many there are to be.

    Args:
        study: The study.
        shard: ``(i, N)``; None: the whole study.

    Returns:
        Both numbers.
    """
    status = study.status()
    if shard is None:
        return int(status["complete"].sum()), int(status["replicates"].sum())
    size = study.batch_size if study.simulate_batch is not None else 1
    blocks = [min(size, study.replicates - begin) for begin in range(0, study.replicates, size)] * len(study.cells)
    total = sum(blocks[shard[0] - 1 :: shard[1]])
    return total - sum(len(unit.wanted) for unit in study._units(shard, True)), total


def _setting(study: Study, table: Table) -> list[str]:
    status = study.status()
    total, complete = int(status["replicates"].sum()), int(status["complete"].sum())
    axes = []
    for name in study.axes:
        values = dict.fromkeys(cell[name] for cell in study.cells)
        axes.append(f"{name} in {', '.join(number(v, 6) for v in values)}")
    lines = [
        f"{len(study.cells)} cells ({'; '.join(axes)}), {study.replicates} replicates each, seed {study.seed}.",
        f"{complete:,} of {total:,} replicates are complete.",
    ]
    if warned := int((table["warnings"] != "").sum()):
        lines.append(f"{warned:,} gave warnings; the column `warnings` of the table has them.")
    seconds = np.nansum(table["seconds"])
    lines.append(f"They took {number(float(seconds), 3)} s in all, on one core each. probnn {__version__}.")
    lines.append(f"SHA-256 of the results: {study.digest()}.")
    return lines


def _needed(summary: Table, wanted: float | Mapping[str, float] | None) -> list[str]:
    sentences = []
    if wanted is None:
        known = summary.take(np.isfinite(summary["mcse"]) & (summary["mcse"] > 0))
        wanted = {}
        for label in dict.fromkeys(known["measure"].tolist()):
            wanted[label] = float(known.where(measure=label)["mcse"].max()) / 2
    elif not isinstance(wanted, Mapping):
        wanted = dict.fromkeys(summary["measure"].tolist(), wanted)
    for label, value in wanted.items():
        sentences.append(replicates_needed(summary, {label: value}).caption)
    return sentences or ["No Monte Carlo standard error is known, so no number of replicates can be told."]


def _failures(study: Study) -> Table | list[str]:
    found = study.failures()
    bad = found["num_complete"] < found["num_replicates"]
    bad |= found["num_nonfinite"] > 0
    if not bad.any():
        return ["Of the replicates that were run, every one is complete, and every output finite."]
    return found.take(bad)


def _markdown(title: str, parts: Sequence[tuple[str, Table | list[str]]]) -> str:
    blocks = [f"# {title}"]
    for name, part in parts:
        body = part.to_markdown().rstrip("\n") if isinstance(part, Table) else "\n".join(part)
        blocks += [f"## {name}", body]
    return "\n\n".join(blocks) + "\n"


def _latex(title: str, parts: Sequence[tuple[str, Table | list[str]]]) -> str:
    blocks = [f"% {title}; needs \\usepackage{{booktabs}}"]
    for name, part in parts:
        if isinstance(part, Table):
            blocks.append(f"% {name}\n{part.to_latex().rstrip()}")
        else:
            blocks.append(f"% {name}\n" + "\n".join(latex_text(line) for line in part))
    return "\n\n".join(blocks) + "\n"
