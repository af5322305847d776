"""Write a space file, space.toml, from a table of experiments.

The file has a table for every column that can be set, with the range or the choices seen, and comments on what to
look at. Then `probnn suggest` takes it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from ._common import add_decimal

HELP = "write a space file from a table of experiments"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of `probnn init`."""
    parser.add_argument("table", metavar="TABLE.csv", help="the experiments: one row each, a header on top")
    parser.add_argument(
        "--target", action="append", default=[], metavar="NAME",
        help="a column with results; may be repeated (default: with empty or failed cells, else the last of numbers)",
    )  # fmt: skip
    parser.add_argument("-o", "--output", default="space.toml", help="the file to write (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")
    add_decimal(parser)


def run(options: argparse.Namespace) -> int:
    """Read the table, write the file, print what to do next."""
    from ..errors import DomainError
    from ..io import replacing
    from ..optimization.infer import infer_space
    from ..optimization.table import read_table

    if os.path.exists(options.output) and not options.force:
        raise DomainError(f"{options.output}: is there already; --force replaces it, -o names another file")
    found = infer_space(read_table(options.table, decimal=options.decimal), options.target)
    text = found.toml(os.path.basename(options.table))
    with replacing(options.output) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
    for name, parameter in found.space.parameters.items():
        sys.stdout.write(f"{name}: {parameter.describe()}{', log' if getattr(parameter, 'log', False) else ''}\n")
    for name, why in found.left_out.items():
        sys.stdout.write(f"left out: {name} ({why})\n")
    guess = " (guessed; --target names another column)" if found.guessed else ""
    sys.stdout.write(f"results: {', '.join(found.targets)}{guess}\n")
    command = ["probnn", "suggest", options.table, "--space", options.output, "--maximize", found.targets[0]]
    command += ["--decimal", ","] if options.decimal == "," else []
    sys.stdout.write(f"\nLook {options.output} over, then (--minimize if less is better):\n")
    sys.stdout.write(f"\n    {shlex.join(command)}\n")
    return 0
