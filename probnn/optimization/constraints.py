"""Constraints on settings: read from strings, checked in exact arithmetic."""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..errors import DomainError
from .choices import Categorical, Fixed
from .parameters import Number, Parameter, exact, is_number, same

TOLERANCE = Fraction(1, 10**9)  # of a sum of numbers that are not on grids, relative to its largest term
MAX_RATIO = 1e7  # between the largest and the smallest term of a sum
EXAMPLES = "'power + depth <= 14', 'a + b + c = 1', 'at most 2 of a, b, c' or 'same in batch: temperature'"


class Constraint(ABC):
    """One constraint: its text, the parameters it speaks of and the check of a setting."""

    text: str
    names: tuple[str, ...]

    @abstractmethod
    def complaint(self, values: Mapping[str, Any], batch: Iterable[Mapping[str, Any]] = ()) -> str | None:
        """Why a setting does not satisfy the constraint; None if it does.

        Args:
            values: The setting, of numbers where the constraint needs numbers.
            batch: Other settings that are suggested together with it.
        """


@dataclass(frozen=True)
class Linear(Constraint):
    """``sum_i coefficients[i] * names[i] <= rhs``, or ``=`` where `equality`.

    Args:
        text: As it was written.
        names: The parameters.
        coefficients, rhs: The numbers as written, exactly.
        equality: Whether both sides must be equal.
        tolerance: Largest error of an equality, relative to its largest term: above 0 where a parameter is
            continuous, since a decimal number need not have a third.
    """

    text: str
    names: tuple[str, ...]
    coefficients: tuple[Fraction, ...]
    rhs: Fraction
    equality: bool
    tolerance: Fraction = Fraction(0)

    def complaint(self, values: Mapping[str, Any], batch: Iterable[Mapping[str, Any]] = ()) -> str | None:
        """Why a setting does not satisfy the constraint, in rational arithmetic; None if it does."""
        terms = [a * exact(values[name]) for a, name in zip(self.coefficients, self.names, strict=True)]
        gap = sum(terms, Fraction(0)) - self.rhs
        if self.equality:
            held = abs(gap) <= self.tolerance * max(abs(self.rhs), *map(abs, terms))
        else:
            held = gap <= 0
        if held:
            return None
        given = ", ".join(f"{name} = {values[name]!r}" for name in self.names)
        return f"'{self.text}' does not hold for {given} (off by {float(abs(gap)):.3g})"


@dataclass(frozen=True)
class AtMost(Constraint):
    """At most `count` of the parameters differ from zero."""

    text: str
    names: tuple[str, ...]
    count: int

    def complaint(self, values: Mapping[str, Any], batch: Iterable[Mapping[str, Any]] = ()) -> str | None:
        """Why a setting does not satisfy the constraint; None if it does."""
        active = [name for name in self.names if values[name] != 0]
        if len(active) <= self.count:
            return None
        return f"'{self.text}' does not hold: {', '.join(active)} are not zero"


@dataclass(frozen=True)
class SameInBatch(Constraint):
    """All settings that are suggested together have the same values of some parameters."""

    text: str
    names: tuple[str, ...]

    def complaint(self, values: Mapping[str, Any], batch: Iterable[Mapping[str, Any]] = ()) -> str | None:
        """Why a setting does not fit the others of its batch; None if it does."""
        for other in batch:
            for name in self.names:
                if not same(values[name], other[name]):
                    return f"'{self.text}' does not hold: {name} is {values[name]!r} here and {other[name]!r} there"
        return None


def parse_constraint(text: Any, parameters: Mapping[str, Parameter]) -> Constraint:
    """A constraint of its text.

    Linear ones are sums of numeric parameters with numbers as factors, on both sides of ``<=``, ``>=`` or
    ``=`` (``==`` is the same). Names that are not single words stand in quotes or backticks:
    ``"flow rate" + b <= 3``.

    Args:
        text: Such as ``"2*a + 0.5 b - c <= 3"``, ``"at most 3 of a, b, c, d"``, ``"same in batch: temperature"``.
        parameters: The parameters by name.

    Raises:
        DomainError: The text is none of these, names what is not there, is not linear or says nothing.
    """
    if not isinstance(text, str):
        raise DomainError(f"constraint: expected a string such as {EXAMPLES}, got {text!r}")
    stripped = text.strip()
    if found := re.match(r"(?i)at\s+most\s+(\S+)\s+of\b(.*)$", stripped, re.DOTALL):
        return _at_most(stripped, found[1], found[2], parameters)
    if found := re.match(r"(?i)same\s+in\s+batch\s*:?(.*)$", stripped, re.DOTALL):
        return SameInBatch(stripped, _names(stripped, found[1], parameters))
    return _Reader(stripped, parameters).read()


def check_sizes(constraints: Iterable[Constraint], parameters: Mapping[str, Parameter]) -> None:
    """Refuse sums whose terms differ so much in size that a program in doubles would lose the smaller ones."""
    for constraint in constraints:
        if not isinstance(constraint, Linear):
            continue
        spans = {
            name: abs(float(a)) * (p.high - p.low)
            for name, a in zip(constraint.names, constraint.coefficients, strict=True)
            if isinstance(p := parameters[name], Number)
        }
        largest, smallest = max(spans, key=lambda n: spans[n]), min(spans, key=lambda n: spans[n])
        if spans[largest] > MAX_RATIO * spans[smallest]:
            raise DomainError(
                f"constraint '{constraint.text}': the term of {largest} spans {spans[largest]:.3g} and that of "
                f"{smallest} {spans[smallest]:.3g}, more than {MAX_RATIO:.0e} times less; leave {smallest} out, or "
                "measure one of them in another unit"
            )


def check_pairs(constraints: Sequence[Constraint]) -> None:
    """Refuse two inequalities that together are an equality: rounding could not keep both exactly."""
    linear = [c for c in constraints if isinstance(c, Linear) and not c.equality and c.tolerance]
    for i, a in enumerate(linear):
        for b in linear[:i]:
            mine, other = (
                dict(zip(a.names, a.coefficients, strict=True)),
                dict(zip(b.names, b.coefficients, strict=True)),
            )
            if set(mine) != set(other):
                continue
            ratio = mine[a.names[0]] / other[a.names[0]]
            if ratio < 0 and a.rhs == ratio * b.rhs and all(mine[n] == ratio * other[n] for n in mine):
                raise DomainError(
                    f"constraint: '{b.text}' and '{a.text}' together leave only equality; write it as one '='"
                )


def _unknown(text: str, name: str, parameters: Mapping[str, Parameter]) -> DomainError:
    close = difflib.get_close_matches(name, parameters, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return DomainError(
        f"constraint '{text}': there is no parameter {name!r}{hint}; known are {', '.join(map(repr, parameters))}"
    )


def _names(text: str, words: str, parameters: Mapping[str, Parameter]) -> tuple[str, ...]:
    names = []
    for part in re.findall(r"""\s*("[^"]*"|'[^']*'|`[^`]*`|[^,]*)(?:,|$)""", words.strip())[: words.count(",") + 1]:
        name = part.strip()
        if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'`":
            name = name[1:-1]
        if not name:
            raise DomainError(f"constraint '{text}': expected names of parameters, separated by commas")
        if name not in parameters:
            raise _unknown(text, name, parameters)
        if name in names:
            raise DomainError(f"constraint '{text}': {name} stands there twice")
        names.append(name)
    return tuple(names)


def _at_most(text: str, number: str, words: str, parameters: Mapping[str, Parameter]) -> AtMost:
    names = _names(text, words, parameters)
    if not number.isdecimal() or not 1 <= int(number) < len(names):
        raise DomainError(
            f"constraint '{text}': the number must be whole and from 1 to {len(names) - 1} for {len(names)} "
            f"parameters, got {number!r}"
        )
    for name in names:
        parameter = parameters[name]
        numeric = isinstance(parameter, Number) or (isinstance(parameter, Fixed) and is_number(parameter.value))
        if not numeric or parameter.complaint(0) is not None:
            raise DomainError(
                f"constraint '{text}': {name} can never be zero ({parameter.describe()}); "
                "only numbers with zero among their values can be left out"
            )
    return AtMost(text, names, int(number))


_TOKEN = re.compile(
    r"""\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)"""
    r"""|(?P<quoted>"[^"]*"|'[^']*'|`[^`]*`)|(?P<word>[^\W\d][\w.]*)"""
    r"""|(?P<relation><=|>=|==|≤|≥|=|<|>)|(?P<sign>\*\*|[-+*/()^])|(?P<other>\S))"""
)
_Sum = dict[str, Fraction]  # coefficients by name; the constant under ""


class _Reader:
    """A recursive descent over ``sum relation sum``; a sum is kept as its coefficients."""

    def __init__(self, text: str, parameters: Mapping[str, Parameter]):
        self.text, self.parameters = text, parameters
        self.tokens = [(m.lastgroup or "", m.group(m.lastgroup or 0)) for m in _TOKEN.finditer(text)]
        self.at = 0

    def error(self, what: str) -> DomainError:
        return DomainError(f"constraint '{self.text}': {what}; constraints look like {EXAMPLES}")

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "the end")

    def take(self) -> tuple[str, str]:
        token = self.peek()
        self.at += 1
        return token

    def read(self) -> Linear:
        relations = [value for kind, value in self.tokens if kind == "relation"]
        if len(relations) != 1:
            raise self.error(
                "expected one '<=', '>=' or '=', got none"
                if not relations
                else f"expected one '<=', '>=' or '=', got {len(relations)}; write one constraint for each"
            )
        if relations[0] in "<>":
            raise self.error(
                f"'{relations[0]}' leaves its end out, which no rounding can keep; write '{relations[0]}='"
            )
        left = self.sum()
        if self.peek()[0] != "relation":
            raise self.error(f"did not expect {self.peek()[1]!r}")
        self.take()
        right = self.sum()
        if self.peek()[0] != "end":
            raise self.error(f"did not expect {self.peek()[1]!r}")
        total = _add(left, right, Fraction(-1))
        rhs = -total.pop("", Fraction(0))
        total = {name: a for name, a in total.items() if a}
        if not total:
            raise self.error("no parameter is left in it")
        sign = -1 if relations[0] in (">=", "≥") else 1
        free = [self.parameters[name] for name in total if not isinstance(self.parameters[name], Fixed)]
        if not free:
            raise self.error("all its parameters are fixed")
        equality = relations[0] in ("=", "==")
        if equality and any(isinstance(p, Number) and p.log for p in free):
            raise self.error("an equality needs parameters without a logarithmic scale; use log=False")
        return Linear(
            self.text,
            tuple(total),
            tuple(sign * a for a in total.values()),
            sign * rhs,
            equality,
            TOLERANCE if any(p.num_values is None for p in free) else Fraction(0),
        )

    def sum(self) -> _Sum:
        total = self.product()
        while self.peek() in (("sign", "+"), ("sign", "-")):
            sign = Fraction(1 if self.take()[1] == "+" else -1)
            total = _add(total, self.product(), sign)
        return total

    def product(self) -> _Sum:
        result = self.factor()
        while True:
            kind, value = self.peek()
            divide = value == "/" and kind == "sign"
            if kind == "sign" and value in "*/":
                self.take()
            elif kind not in ("number", "word", "quoted") and (kind, value) != ("sign", "("):
                if (kind, value) in (("sign", "**"), ("sign", "^")):
                    raise self.error(f"'{value}' is not linear")
                return result
            elif kind == "number":
                raise self.error(f"did not expect the number {value}; a factor stands in front or after '*'")
            factor = self.factor()
            if divide:
                if set(factor) - {""}:
                    raise self.error("dividing by a parameter is not linear")
                if not factor.get("", 0):
                    raise self.error("dividing by zero")
                factor = {"": 1 / factor[""]}
            if set(result) - {""} and set(factor) - {""}:
                one, other = (next(iter(set(s) - {""})) for s in (result, factor))
                raise self.error(f"the product of {one} and {other} is not linear")
            if set(result) - {""}:
                result, factor = factor, result
            scale = result.get("", Fraction(0))
            result = {name: scale * a for name, a in factor.items()}

    def factor(self) -> _Sum:
        kind, value = self.take()
        if kind == "number":
            return {"": Fraction(value)}
        if kind == "sign" and value in "+-":
            return _add({}, self.factor(), Fraction(1 if value == "+" else -1))
        if (kind, value) == ("sign", "("):
            inner = self.sum()
            if self.take() != ("sign", ")"):
                raise self.error("a parenthesis is not closed")
            return inner
        if kind == "quoted":
            return self.parameter(value[1:-1])
        if kind == "word":
            return self.parameter(value)
        raise self.error(f"expected a number or the name of a parameter, got {value!r}")

    def parameter(self, name: str) -> _Sum:
        if name not in self.parameters:
            raise _unknown(self.text, name, self.parameters)
        parameter = self.parameters[name]
        numeric = isinstance(parameter, Number) or (isinstance(parameter, Fixed) and is_number(parameter.value))
        if not numeric:
            kind = "categorical" if isinstance(parameter, Categorical) else "not a number"
            raise self.error(f"{name} is {kind}, and sums are of numbers")
        return {name: Fraction(1)}


def _add(a: _Sum, b: _Sum, scale: Fraction) -> _Sum:
    return {name: a.get(name, Fraction(0)) + scale * b.get(name, Fraction(0)) for name in {**a, **b}}
