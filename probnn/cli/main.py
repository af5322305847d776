"""The command `probnn`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .._version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after ``probnn``; None: those of the process.

    Returns:
        The exit code: 0, or 2 for bad input.
    """
    parser = argparse.ArgumentParser(
        prog="probnn", description="Probabilistic models of functions, and Bayesian optimisation with them."
    )
    parser.add_argument("--version", action="version", version=f"probnn {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("info", help="versions of probnn and what it stands on, threads, surrogates")
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    # Imported here: `probnn --help` answers at once, without torch.
    from .info import info

    return info(sys.stdout)
