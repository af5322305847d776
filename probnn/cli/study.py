"""Run a simulation study that a TOML file describes, and look at it.

The file names a function of a cell and a seed, the grid of cells and the number of replicates. Every finished replicate
is kept in the store of the study: what was killed goes on when it is started again, and replicates and cells may be
added at any time.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import shlex
import sys
from typing import TYPE_CHECKING, Any

from ._common import add_decimal, aligned, positive, short, whole
from ._workers import Terminated, own_screen, terminable, workers

if TYPE_CHECKING:
    from ..studies import Study, Table

HELP = "run simulation studies that survive, and look at them"
FAILED, TERMINATED = 1, 143  # the second as shells count: 128 and the number of the signal
_SHOWN, _CELLS = 5, 40  # failed rows, and unfinished cells, that status shows

ACTIONS = {
    "run": "run what is missing or has failed",
    "resume": "go on with a study; as run, but there must be a store",
    "status": "what is complete, missing, failed",
    "replay": "run one replicate again, and compare it with the store",
    "report": "measures with Monte Carlo errors, and failures",
    "export": "write all rows to a file",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `probnn study`, by action."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, words in ACTIONS.items():
        action = actions.add_parser(
            name, help=words, description=words[0].upper() + words[1:] + ".", allow_abbrev=False
        )
        action.add_argument("study", metavar="STUDY.toml", help="the study")
        if name == "export":
            action.add_argument("table", metavar="TABLE", help="the file to write, .csv or .parquet")
        action.add_argument("--store", metavar="FOLDER", help="where the rows are, instead of where the file says")
        action.add_argument("--quick", action="store_true", help="the size that the file calls quick")
        action.add_argument(
            "--replicates", type=whole, metavar="R", help="replicates of each cell, instead of the file's"
        )
        _OPTIONS.get(name, lambda action: None)(action)


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--n-jobs",
        type=_jobs,
        metavar="N",
        help="workers; 1: this process, which a crash takes with it; -1: one a core (default: 1, or all of a cluster)",
    )
    parser.add_argument(
        "--backend", choices=("loky", "dask", "ray"), default="loky",
        help="what runs them: loky for this machine, dask or ray for many (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="of dask; without it, dask starts workers on this machine"
    )
    parser.add_argument(
        "--timeout", type=positive, metavar="SECONDS", help="what takes longer has failed, instead of the file's"
    )
    parser.add_argument(
        "--shard", metavar="I/N",
        help="only the I-th of N parts, for jobs that share the store; auto: of the array task that this is",
    )  # fmt: skip
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar and no word at the end")


def _status_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=("table", "csv", "json"), default="table",
        help="how to print; csv and json have every cell (default: %(default)s)",
    )  # fmt: skip


def _replay_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cell", required=True, metavar="CELL", help="the cell, such as n=1000,k=3")
    parser.add_argument(
        "--replicate", type=_count, required=True, metavar="R", help="the number of the replicate, from 0"
    )
    parser.add_argument("--pdb", action="store_true", help="open Python's debugger where the simulation raised")


def _report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", help="write the report there instead of printing it")
    parser.add_argument(
        "--format", choices=("markdown", "latex"), default="markdown", help="of the report (default: %(default)s)"
    )
    parser.add_argument(
        "--mcse",
        type=positive,
        metavar="ERROR",
        help="a standard error that is wanted: how many replicates does it need?",
    )


_OPTIONS = {
    "run": _run_options,
    "resume": _run_options,
    "status": _status_options,
    "replay": _replay_options,
    "report": _report_options,
    "export": add_decimal,
}


def _jobs(text: str) -> int:
    return -1 if text == "-1" else whole(text)


def _count(text: str) -> int:
    return whole(text) if text != "0" else 0


def run(options: argparse.Namespace) -> int:
    """Load the study, and do what is asked."""
    from ..studies import load

    # What a module prints when it is imported is no part of a table.
    with contextlib.redirect_stdout(sys.stderr):
        size = "quick" if options.quick else "full"
        study = load(options.study, size=size, store=options.store, replicates=options.replicates)
    action = {
        "run": _run, "resume": _run, "status": _status, "replay": _replay, "report": _report, "export": _export,
    }[options.action]  # fmt: skip
    return action(options, study)


def _run(options: argparse.Namespace, study: Study) -> int:
    import warnings

    from ..errors import DomainError, IncompleteStudyWarning
    from ..studies.reporting import progress
    from ..studies.sharding import shard_of

    if options.action == "resume" and not study.store.is_dir():
        raise DomainError(f"{study.store}: there is no store to go on with; {_command(options, 'run')} begins one")
    shard = None if options.shard is None else shard_of("--shard", options.shard)
    try:
        with warnings.catch_warnings(), terminable(), own_screen(), workers(options):
            warnings.simplefilter("ignore", IncompleteStudyWarning)  # said below, in the words of the command line
            study.run(
                options.n_jobs, backend=options.backend, shard=shard, timeout=options.timeout,
                progress=not options.quiet and sys.stderr.isatty(),
            )  # fmt: skip
    except KeyboardInterrupt as end:
        if not options.quiet:
            command = _command(options, options.action, running=True)
            sys.stderr.write(f"probnn: stopped; what was finished is kept, and goes on with: {command}\n")
        if isinstance(end, Terminated):
            return TERMINATED
        raise
    complete, total = progress(study, shard)
    if not options.quiet:
        part = "" if shard is None else f" of shard {shard[0]}/{shard[1]}"
        sys.stdout.write(f"{complete:,} of {total:,} rows{part} are complete, in {study.store}\n")
        if complete < total:
            sys.stdout.write(f"failures: {_command(options, 'status')}\n")
    return 0 if complete == total else FAILED


def _command(options: argparse.Namespace, action: str, *more: str, running: bool = False) -> str:
    """The command that does something else to the same study."""
    words = ["probnn", "study", action, options.study]
    words += ["--store", options.store] if options.store else []
    words += ["--quick"] if options.quick else []
    words += ["--replicates", str(options.replicates)] if options.replicates else []
    if running:
        words += ["--n-jobs", str(options.n_jobs)] if options.n_jobs is not None else []
        words += ["--backend", options.backend] if options.backend != "loky" else []
        words += ["--scheduler", options.scheduler] if options.scheduler else []
        words += ["--timeout", f"{options.timeout:g}"] if options.timeout else []
        words += ["--shard", options.shard] if options.shard else []
    return shlex.join([*words, *more])


def _status(options: argparse.Namespace, study: Study) -> int:
    status = study.status()
    if options.format != "table":
        _print(status, options.format)
        return 0
    total = int(status["replicates"].sum())
    counts = {name: int(status[name].sum()) for name in ("complete", "failed", "timeout", "killed", "missing")}
    rest = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count and name != "complete")
    sys.stdout.write(f"{counts['complete']:,} of {total:,} rows are complete{f'; {rest}' if rest else ''}\n")
    if not rest:
        return 0
    open_cells = status.take(status["complete"] < status["replicates"])
    names = [n for n in status.names if n in (*study.axes, "seconds") or open_cells[n].any()]
    rows = [[short(row[n]) for n in names] for row in open_cells.take(range(min(_CELLS, len(open_cells)))).rows()]
    sys.stdout.write(f"\n{aligned([names, *rows])}")
    if len(open_cells) > _CELLS:
        sys.stdout.write(f"... and {len(open_cells) - _CELLS:,} more cells; --format csv has all\n")
    _tell_failures(options, study)
    sys.stdout.write(f"\ngo on: {_command(options, 'run')}\n")
    return 0


def _tell_failures(options: argparse.Namespace, study: Study) -> None:
    """The first of the rows that failed, and how to look into the first of all."""
    from ..studies.cells import label

    table = study.table()
    bad = table.take(table["status"] != "complete")
    if not len(bad):
        return
    sys.stdout.write("\n")
    first = None
    for row in bad.take(range(min(_SHOWN, len(bad)))).rows():
        cell = label({axis: row[axis] for axis in study.axes})
        if row["status"] == "failed":  # a replay of the others would end, or never end
            first = first or ["--cell", cell, "--replicate", str(row["replicate"])]
        sys.stdout.write(f"{cell}, replicate {row['replicate']}: {row['status']}, {' '.join(row['error'].split())}\n")
    if len(bad) > _SHOWN:
        sys.stdout.write(
            f"... and {len(bad) - _SHOWN:,} more; `probnn study export` writes all rows, with their errors\n"
        )
    if first is not None:
        sys.stdout.write(f"\nlook into it: {_command(options, 'replay', *first, '--pdb')}\n")


def _print(table: Table, kind: str) -> None:
    if kind == "json":
        rows = [
            {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
            for row in table.rows()
        ]
        sys.stdout.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(table.names)
    writer.writerows(row.values() for row in table.rows())


def _replay(options: argparse.Namespace, study: Study) -> int:
    errors: list[Exception] = []
    if options.pdb:
        study.simulate, study.simulate_batch = (
            None if fn is None else _watched(fn, errors) for fn in (study.simulate, study.simulate_batch)
        )
    found = study.replay(options.cell, options.replicate)
    sys.stdout.write(f"{found}\n")
    if options.pdb:
        sys.stdout.flush()
        _debug(found.status, errors)
    if found.equal is None:
        return 0 if found.status == "complete" else FAILED
    return 0 if found.equal else FAILED


def _watched(fn: Any, errors: list[Exception]) -> Any:
    def watched(*arguments: Any) -> Any:
        try:
            return fn(*arguments)
        except Exception as error:
            errors.append(error)
            raise

    return watched


def _debug(status: str, errors: list[Exception]) -> None:
    import pdb

    if status == "complete":
        sys.stdout.write("it raised nothing; breakpoint() in the simulation stops a replay there\n")
    elif not errors:
        sys.stdout.write("the simulation returned: the error is about what it returned\n")
    else:
        pdb.post_mortem(errors[-1].__traceback__)


def _report(options: argparse.Namespace, study: Study) -> int:
    from ..errors import DomainError
    from ..studies import report
    from ..studies.convergence import ConvergenceStudy

    settings: dict[str, Any] = {"format": options.format, "mcse": options.mcse}
    if isinstance(study, ConvergenceStudy) and (
        options.output is None or settings != {"format": "markdown", "mcse": None}
    ):
        raise DomainError(
            f"{options.study}: a study of convergence is reported as Markdown with a figure beside it; give --output "
            "FILE.md, and neither --format nor --mcse"
        )
    text = report(study, options.output, **settings)
    sys.stdout.write(text if options.output is None else f"written to {options.output}\n")
    return 0


def _export(options: argparse.Namespace, study: Study) -> int:
    from ..errors import DomainError

    table = study.table()
    if options.table.endswith(".csv"):
        table.to_csv(options.table, decimal=options.decimal)
    elif options.table.endswith(".parquet"):
        table.to_parquet(options.table)
    else:
        raise DomainError(f"{options.table}: expected a name that ends in .csv or .parquet")
    status = study.status()
    total, complete = int(status["replicates"].sum()), int(status["complete"].sum())
    note = "" if complete == total else f"; {total - complete:,} of {total:,} rows have no result"
    sys.stdout.write(f"{len(table):,} rows written to {options.table}{note}\n")
    return 0
