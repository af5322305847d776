"""What the commands share: options, numbers, and reading a person's words."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..optimization import Space


def whole(text: str) -> int:
    """A whole number of at least 1."""
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return number


def seed(text: str) -> int:
    """A whole number of at least 0."""
    number = _whole(text)
    if not 0 <= number < 2**62:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2**62, got {text!r}")
    return number


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return value


def positive(text: str) -> float:
    """A finite number above 0."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def add_decimal(parser: argparse.ArgumentParser) -> None:
    """The option --decimal."""
    parser.add_argument(
        "--decimal",
        choices=(".", ","),
        default=".",
        metavar="SIGN",
        help='"." or ",", in the table (default: %(default)s)',
    )


def add_goals(parser: argparse.ArgumentParser) -> None:
    """Targets and bounds."""
    parser.add_argument(
        "--maximize", action="append", default=[], metavar="NAME", help="a target to make large; may be repeated"
    )
    parser.add_argument(
        "--minimize", action="append", default=[], metavar="NAME", help="a target to make small; may be repeated"
    )
    parser.add_argument(
        "--subject-to", action="append", default=[], metavar="BOUND",
        help='a bound on an outcome, such as "impurity <= 0.5"; may be repeated',
    )  # fmt: skip


def add_surrogate(parser: argparse.ArgumentParser) -> None:
    """Which model, and its seed."""
    parser.add_argument(
        "--surrogate", default="bnn-hmc", metavar="NAME",
        help="the model: gp (fast), bnn-hmc, bnn-functional, bnn-sghmc, ensemble, laplace, vi, moe, "
        'or "random" for none (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument("--seed", type=seed, default=0, help="same seed and data, same answer (default: %(default)s)")


def fixed_values(space: Space, words: list[str], decimal: str) -> dict[str, Any]:
    """The values of ``name=value`` words."""
    from ..errors import DomainError
    from ..optimization.table import plain_number

    found: dict[str, Any] = {}
    for word in words:
        # A name may hold an equals sign: the longest that is a parameter counts.
        names = sorted((n for n in space.parameters if word.startswith(f"{n}=")), key=len)
        if not names:
            raise DomainError(f"--fix: expected NAME=VALUE with one of {', '.join(space.parameters)}, got {word!r}")
        name, text = names[-1], word[len(names[-1]) + 1 :].strip()
        if name in found:
            raise DomainError(f"--fix: {name} is given twice")
        choices = [str(c) for c in getattr(space.parameters[name], "choices", ())]
        plain = None if text in choices else plain_number(text, decimal)
        try:
            found[name] = space.parameters[name].parse(text if plain is None else plain)
        except DomainError as error:
            raise DomainError(f"--fix: {name}: {error}") from None
        if (complaint := space.parameters[name].complaint(found[name])) is not None:
            raise DomainError(f"--fix: {name}: {complaint}")
    return found


def short(value: Any) -> str:
    """A cell of a table on the screen."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def aligned(rows: list[list[str]]) -> str:
    """Rows of text, the first being the header, as columns under each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "".join("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows)
