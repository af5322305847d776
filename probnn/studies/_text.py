"""Tables as text: plain, Markdown, LaTeX and HTML, from cells that are text already."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from decimal import Context, Decimal
from typing import Any

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{mark: "\\" + mark for mark in "&%$#_"},
}
_NUMBER = re.compile(r"(-?)(\d+(?:\.\d+)?|inf)(?:e([+-]?\d+))?")
# A number as summaries write it: alone or with its standard error in parentheses.
_CELL = re.compile(rf"{_NUMBER.pattern}(?: \((?:{_NUMBER.pattern}|–)\))?")
_EXACT = Context(prec=800)  # no float has more digits
Rows = Sequence[Sequence[str]]


def number(x: Any, digits: int) -> str:
    """A number of `digits` significant digits, without an exponent from 1e-4 to 1e6; integers and words whole."""
    if not isinstance(x, float):
        return str(x)
    if not math.isfinite(x):
        return str(x)
    if x.is_integer() and abs(x) < 1e9:
        return str(int(x))
    rounded = f"{x:.{digits - 1}e}"
    exponent = int(rounded.partition("e")[2])
    if not -4 <= exponent < 6:
        mantissa, _, power = rounded.partition("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{power}"
    text = f"{float(rounded):.{max(0, digits - 1 - exponent)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def are_numbers(cells: Sequence[str]) -> bool:
    """Whether every cell that is not empty is a number, alone or with a standard error; one at least is."""
    filled = [c for c in cells if c]
    return bool(filled) and all(c == "nan" or _CELL.fullmatch(c) for c in filled)


def with_error(value: float, error: float) -> str:
    """A value and its standard error in parentheses, both to the second significant digit of the error.

    Very small and very large ones share an exponent. Without a positive, finite error the value has three digits.
    """
    if not math.isfinite(value) or not math.isfinite(error) or error <= 0:
        return f"{number(value, 3)} ({'0' if error == 0 else number(error, 2) if error == math.inf else '–'})"
    last = int(f"{error:.1e}".partition("e")[2]) - 1  # power of ten of the last digit shown
    largest = max(abs(value), error)
    first = math.floor(math.log10(largest))
    last = max(last, first - 16)  # no float has more digits
    shift = first if not -4 <= first < 6 else 0
    suffix = f"e{shift}" if shift else ""

    def shown(x: float) -> str:
        rounded = Decimal(x).quantize(Decimal(1).scaleb(last), context=_EXACT).scaleb(-shift, context=_EXACT)
        return f"{rounded + 0:.{max(0, shift - last)}f}{suffix}"

    return f"{shown(value)} ({shown(error)})"


def one_line(text: str, width: int) -> str:
    """Text without line breaks, cut to `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def plain(names: Sequence[str], rows: Rows, right: Sequence[bool]) -> str:
    """Columns aligned by blanks."""
    grid = [list(names), *map(list, rows)]
    widths = [max(len(line[j]) for line in grid) for j in range(len(names))]
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)) for line in grid
    ]
    return "\n".join(line.rstrip() for line in lines)


def markdown(names: Sequence[str], rows: Rows, right: Sequence[bool], caption: str) -> str:
    """A table of Markdown, its caption in front."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def escape(cell: str) -> str:
        return " ".join(cell.split()).replace("|", r"\|").replace("<", "&lt;")

    rules = ["---:" if r else "---" for r in right]
    body = [line([escape(n) for n in names]), line(rules), *(line([escape(c) for c in row]) for row in rows)]
    return "\n".join(([caption, ""] if caption else []) + body) + "\n"


def latex_text(text: str) -> str:
    """Text as it stands in LaTeX, on one line."""
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))


def latex(names: Sequence[str], rows: Rows, right: Sequence[bool], caption: str) -> str:
    """A table of LaTeX with the rules of the package booktabs; with a caption, a float."""

    def mathematics(match: re.Match[str]) -> str:
        sign, digits, power = match.groups()
        digits = r"\infty" if digits == "inf" else digits
        if power is not None:
            digits += rf" \times 10^{{{int(power)}}}"
        # Mathematics has a minus sign where text has a hyphen.
        return f"${sign}{digits}$" if sign or "\\" in digits else digits

    def cell(text: str) -> str:
        return _NUMBER.sub(mathematics, text) if _CELL.fullmatch(text) else latex_text(text)

    lines = [
        rf"\begin{{tabular}}{{{''.join('r' if r else 'l' for r in right)}}}",
        r"\toprule",
        " & ".join(map(latex_text, names)) + r" \\",
        r"\midrule",
        *(" & ".join(map(cell, row)) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if caption:
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex_text(caption)}}}", *lines, r"\end{table}"]
    return "\n".join(lines) + "\n"


def as_html(names: Sequence[str], rows: Rows, right: Sequence[bool], caption: str) -> str:
    """A table of HTML."""

    def line(cells: Sequence[str], tag: str) -> str:
        aligned = zip(cells, right, strict=True)
        return (
            "<tr>"
            + "".join(
                f'<{tag} style="text-align: {"right" if r else "left"}">{html.escape(c)}</{tag}>' for c, r in aligned
            )
            + "</tr>"
        )

    head = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    body = "".join(line(row, "td") for row in rows)
    return f"<table>{head}<thead>{line(names, 'th')}</thead><tbody>{body}</tbody></table>"
