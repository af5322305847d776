"""Replay a finished table: how soon would each surrogate have found the good experiments?

Every replay begins with the same five random rows a seed, then chooses one row at a time. Rows with equal settings are
averaged. Finished replays are kept in the output folder: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys

from ._common import add_decimal, aligned, whole

HELP = "replay a finished table with several surrogates"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `probnn backtest`."""
    parser.add_argument("table", metavar="TABLE.csv", help="finished experiments: one row each, a header on top")
    parser.add_argument("--space", required=True, metavar="SPACE.toml", help="the space, as `probnn init` writes it")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--maximize", metavar="NAME", help="the target, if more is better")
    goal.add_argument("--minimize", metavar="NAME", help="the target, if less is better")
    parser.add_argument(
        "--surrogates", default="gp,bnn-hmc", metavar="NAMES",
        help="names with commas between; random search is always added (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=whole, default=3, metavar="N", help="replays of each (default: %(default)s)")
    parser.add_argument("-o", "--output", default="backtest", metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("-q", "--quiet", action="store_true", help="no word on replays as they finish")
    add_decimal(parser)


def run(options: argparse.Namespace) -> int:
    """Read, replay, report."""
    from ..errors import DomainError
    from ..optimization.backtest import FLATTERY, FinishedTable, Replay, backtest, plot_backtest, sentence, summary
    from ..optimization.rows import parse_trials
    from ..optimization.spacefile import read_space
    from ..optimization.table import read_table
    from ..optimization.trials import write_rows
    from ..surrogates import get_surrogate

    names = [name.strip() for name in options.surrogates.split(",") if name.strip()]
    if not names:
        raise DomainError(f"--surrogates: expected names with commas between, got {options.surrogates!r}")
    for name in names:
        if name != "random":
            get_surrogate(name)
    read = read_table(options.table, decimal=options.decimal)
    space = read_space(options.space)
    target = options.maximize or options.minimize
    trials = parse_trials(read, space, [target])
    try:
        table = FinishedTable.of(trials, space, target, maximize=options.maximize is not None)
    except DomainError as error:
        raise DomainError(f"{read.name}: {str(error).removeprefix('backtest: ')}") from None
    os.makedirs(options.output, exist_ok=True)

    def report(one: Replay) -> None:
        if not options.quiet:
            budget = max(table.budgets)
            share = 100 * one.share(table, budget)
            sys.stderr.write(f"{one.surrogate}, seed {one.seed}: {share:.0f} % of the best after {budget}\n")
            sys.stderr.flush()

    found = backtest(table, names, options.seeds, path=os.path.join(options.output, "replays.csv"), report=report)
    rows = summary(table, found)
    write_rows(rows, os.path.join(options.output, "summary.csv"))
    plot_backtest(table, found, os.path.join(options.output, "backtest.png"))
    early, late = table.budgets
    left_out = f"; {table.num_left_out} rows left out, unfinished or outside the space" if table.num_left_out else ""
    sys.stdout.write(f"{len(table)} settings, {len(table.top)} of them the best 5 %{left_out}\n\n")
    header = ["surrogate", "seeds", f"best 5 % after {early}", f"after {late}", "experiments to the best"]
    cells = [
        [r["surrogate"], str(r["seeds"]), f"{100 * r['share_10']:.0f} %", f"{100 * r['share_25']:.0f} %",
         f"> {late}" if r["to_best"] is None else str(r["to_best"])]
        for r in rows
    ]  # fmt: skip
    sys.stdout.write(f"{aligned([header, *cells])}\n{sentence(table, found)}\n{FLATTERY}\n")
    sys.stdout.write(f"\nwritten to {options.output}: replays.csv, summary.csv, backtest.png\n")
    return 0
