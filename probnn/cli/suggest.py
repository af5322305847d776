"""Suggest the next experiments of a table.

A row whose target cell is empty is under way; the words failed, abandoned and n.a. are read as such. The columns
<target>_mean, _std, _q05 and _q95 tell what a measurement would give: mean, standard deviation and the ends of the
interval that holds it with 90 %. p_ok is the probability that the experiment works and keeps its bounds (empty where
nothing failed and nothing is bounded). The table is only changed by --append.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from ._common import add_decimal, add_goals, add_surrogate, aligned, fixed_values, short, whole

if TYPE_CHECKING:
    from ..optimization import BayesianOptimization
    from ..optimization.table import Table

HELP = "suggest the next experiments of a table"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `probnn suggest`."""
    parser.add_argument("table", metavar="TABLE.csv", help="the experiments: one row each, a header on top")
    parser.add_argument("--space", required=True, metavar="SPACE.toml", help="the space, as `probnn init` writes it")
    add_goals(parser)
    parser.add_argument("--batch", type=whole, default=1, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument(
        "--fix", action="append", default=[], metavar="NAME=VALUE", help="keep a parameter at a value; may be repeated"
    )
    parser.add_argument("--pool", metavar="POOL.csv", help="choose among the rows of this table")
    add_surrogate(parser)
    parser.add_argument(
        "--format", choices=("table", "csv", "json"), default="table",
        help="how to print; with csv and json, all else goes to stderr (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="FILE", help="write the suggestions to a new file instead")
    parser.add_argument(
        "--append", action="store_true", help="also add them to the table, as rows with empty target cells"
    )
    parser.add_argument("--strict", action="store_true", help="refuse rows outside the space instead of using them")
    parser.add_argument("-q", "--quiet", action="store_true", help="no check of the model and no notes")
    add_decimal(parser)


def run(options: argparse.Namespace) -> int:
    """Read, check, suggest, write."""
    from ..errors import DomainError
    from ..optimization import BayesianOptimization
    from ..optimization.candidates import read_pool
    from ..optimization.predicting import predict
    from ..optimization.rows import check_rows, parse_trials
    from ..optimization.spacefile import read_space
    from ..optimization.table import append_rows, read_table

    if options.output is not None and os.path.exists(options.output):
        raise DomainError(f"{options.output}: is there already; -o writes new files only")
    table = read_table(options.table, decimal=options.decimal)
    space = read_space(options.space)
    fixed = fixed_values(space, options.fix, options.decimal)
    pool = None if options.pool is None else read_pool(read_table(options.pool, decimal=options.decimal), space)
    bo = BayesianOptimization(
        space, maximize=options.maximize, minimize=options.minimize, subject_to=options.subject_to,
        surrogate=options.surrogate, seed=options.seed, pool=pool, warm=False,
    )  # fmt: skip
    bo.trials = parse_trials(table, space, bo.goals.outcomes)
    rows = check_rows(bo.trials, space, strict=options.strict, name=table.name)
    to_file = options.output is not None
    notes = sys.stdout if options.format == "table" and not to_file else sys.stderr
    if not options.quiet:
        for line in rows.lines + check(bo):
            notes.write(f"{line}\n")
        notes.flush()
    asked = bo.ask(options.batch, fixed=fixed)
    predicted = predict(bo, [t.parameters for t in asked])
    found = [{**t.parameters, **p, "source": t.source} for t, p in zip(asked, predicted, strict=True)]
    text = as_text(found, options.format, table)
    if to_file:
        with open(options.output, "x", encoding="utf-8", newline="") as file:
            file.write(text)
    else:
        sys.stdout.write(("\n" if options.format == "table" and not options.quiet else "") + text)
        sys.stdout.flush()
    if options.append:
        new = [{**t.parameters, "trial": t.number, "source": t.source} for t in asked]
        append_rows(options.table, table, [{k: v for k, v in row.items() if k in table.header} for row in new])
        if not options.quiet:
            sys.stderr.write(f"{len(new)} {'row' if len(new) == 1 else 'rows'} added to {options.table}\n")
    return 0


def check(bo: BayesianOptimization) -> list[str]:
    """How well the models predict the data, in sentences."""
    from ..optimization.checking import MIN_ROWS, check_model

    lines = []
    for name in bo.goals.outcomes:
        data = bo.data(name)
        if bo.surrogate == "random":
            continue
        if len(data.X) < MIN_ROWS:
            lines.append(
                f"{name}: measured in {len(data.X)} {'row' if len(data.X) == 1 else 'rows'}, too few to tell whether "
                "a model predicts it"
            )
            continue
        model = bo.model(name)
        checked = check_model(bo.surrogate, model, data, bo.model_space.bounds, seed=bo.seed)  # type: ignore[arg-type]
        lines += checked.sentences(name)
    return lines


def as_text(rows: list[dict[str, Any]], kind: str, table: Table) -> str:
    """Suggestions as a table for the screen, as CSV in the dialect of the person's table, or as JSON."""
    if kind == "json":
        return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    names = list(rows[0])
    if kind == "csv":
        lines = [table.line(names)]
        lines += [table.line([table.cell("suggest", n, row[n]) for n in names]) for row in rows]
        return "".join(lines)
    return aligned([names, *[[short(row[n]) for n in names] for row in rows]])
