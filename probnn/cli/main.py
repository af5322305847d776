"""The command `probnn`."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from .._version import __version__
from ..errors import ProbnnError
from . import backtest, bo, info, init, study, suggest

COMMANDS = {"init": init, "suggest": suggest, "backtest": backtest, "bo": bo, "study": study, "info": info}
BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 2, 130, 141  # as shells count: 128 and the number of the signal


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}; {self.prog} --help explains\n")


def make_parser() -> Parser:
    """The parser of all commands; it imports nothing heavy."""
    parser = Parser(
        prog="probnn", description="Probabilistic models of functions, and Bayesian optimisation with them."
    )
    parser.add_argument("--version", action="version", version=f"probnn {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, module in COMMANDS.items():
        formatter = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(
            name, help=module.HELP, description=module.__doc__, formatter_class=formatter, allow_abbrev=False
        )
        module.add_options(command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after ``probnn``; None: those of the process.

    Returns:
        The exit code: 0; 1 where rows of a study have no result; 2 for bad input, said in one line; 130 after Ctrl-C;
        141 when nobody reads on.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        with only_own_warnings(getattr(options, "quiet", False)), only_own_output(options.command):
            _threads(options.command)
            status: int = COMMANDS[options.command].run(options)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # what is left in the buffer goes nowhere, without complaint
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except ProbnnError as error:
        return _say(parser.prog, str(error))
    except OSError as error:
        if error.filename is None:
            raise
        return _say(parser.prog, f"{error.filename}: {error.strerror}")


def _say(prog: str, message: str) -> int:
    """One line about bad input, in the words of the command line."""
    message = re.sub(r"^(BayesianOptimization(\.\w+)?|get_surrogate|(Convergence)?Study(\.\w+)?|report): ", "", message)
    message = re.sub(r"decimal='([.,])'", r"--decimal \1", message)
    message = re.sub(r"\b(maximize|minimize)=", r"--\1", message).replace("subject_to needs", "--subject-to needs")
    sys.stderr.write(f"{prog}: {' '.join(message.split())}\n")
    return BAD_INPUT


def _threads(command: str) -> None:
    """One thread, unless OMP_NUM_THREADS asks for more: products this small lose by sharing."""
    if command in ("suggest", "backtest", "bo") and not os.environ.get("OMP_NUM_THREADS"):
        import torch

        torch.set_num_threads(1)


@contextlib.contextmanager
def only_own_output(command: str) -> Iterator[None]:
    """Keep what compiled libraries print past Python (a solver does, at times) out of tables and JSON.

    Not for ``bo`` and ``study``, whose functions are the user's and may print.
    """
    if command in ("bo", "study") or sys.stdout is not sys.__stdout__ or sys.stdout is None:
        yield
        return
    original, screen = sys.stdout, os.dup(sys.stdout.fileno())
    original.flush()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), original.fileno())
    try:
        with open(screen, "w", encoding=original.encoding, errors=original.errors, closefd=False) as ours:
            sys.stdout = ours
            try:
                yield
            finally:
                sys.stdout = original
    finally:
        os.dup2(screen, original.fileno())
        os.close(screen)


@contextlib.contextmanager
def only_own_warnings(quiet: bool) -> Iterator[None]:
    """Show this library's warnings as one line each, and no others."""
    from .. import errors

    own = tuple(c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Warning))

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        # Libraries switch filters of their own on, so what arrives here is looked at again.
        words = " ".join(str(message).split())
        if not quiet and (issubclass(category, own) or words.startswith("BayesianOptimization")):
            sys.stderr.write(f"probnn: note: {words}\n")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.showwarning = show
        warnings.filterwarnings("always", message="BayesianOptimization")
        for category in own:
            warnings.simplefilter("once", category)
        yield
