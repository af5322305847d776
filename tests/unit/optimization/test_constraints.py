"""Constraints: what their strings say, what is refused, and the exact check."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from probnn.errors import DomainError
from probnn.optimization import Categorical, Fixed, Integer, Real, Space
from probnn.optimization.constraints import AtMost, Linear, SameInBatch, check_pairs, parse_constraint

PARAMETERS: dict[str, Any] = {
    "a": Real(0, 1), "b": Real(0, 1), "c": Real(0, 1), "depth": Integer(1, 8), "rate": Real(1e-4, 1, log=True),
    "power": Real(8, 9.8, step=0.1), "kind": Categorical(["x", "y"]), "water": Fixed(0.5), "brand": Fixed("z"),
    "flow rate": Real(0, 4), "off": Real(0.1, 0.7, step=0.2),
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "coefficients", "rhs", "equality"),
    [
        ("2*a + 0.5 b - c <= 3", {"a": 2, "b": "0.5", "c": -1}, 3, False),
        ("power + depth <= 14", {"power": 1, "depth": 1}, 14, False),
        ("a + b + c = 1", {"a": 1, "b": 1, "c": 1}, 1, True),
        ("a == b", {"a": 1, "b": -1}, 0, True),
        ("a + 1 >= 2 b - .5", {"a": -1, "b": 2}, "1.5", False),
        ("3 >= a*2 + a", {"a": 3}, 3, False),
        ("2(a - (b + 1)) <= -a/4", {"a": "2.25", "b": -2}, 2, False),
        ("-a <= -1e-1", {"a": -1}, "-0.1", False),
        ("1e-3a≤.1", {"a": "0.001"}, "0.1", False),
        ("'flow rate' + `a` <= 3", {"flow rate": 1, "a": 1}, 3, False),
        ("a + water <= 1", {"a": 1, "water": 1}, 1, False),
        ("rate + a <= 1", {"rate": 1, "a": 1}, 1, False),
        ("0 a + b <= 1", {"b": 1}, 1, False),
    ],
)
def test_linear(text: str, coefficients: dict[str, Any], rhs: Any, equality: bool) -> None:
    found = parse_constraint(text, PARAMETERS)
    assert isinstance(found, Linear) and found.text == text
    pairs = dict(zip(found.names, found.coefficients, strict=True))
    assert pairs == {n: Fraction(a) for n, a in coefficients.items()}
    assert found.rhs == Fraction(rhs) and found.equality is equality


def test_counts_and_batches() -> None:
    found = parse_constraint("At most 2 of a, b,c", PARAMETERS)
    assert isinstance(found, AtMost) and found.names == ("a", "b", "c") and found.count == 2
    found = parse_constraint("at most 1 of a, 'flow rate'", PARAMETERS)
    assert found.names == ("a", "flow rate")
    found = parse_constraint("same in batch: kind, flow rate", PARAMETERS)
    assert isinstance(found, SameInBatch) and found.names == ("kind", "flow rate")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a + B <= 1", r"constraint 'a \+ B <= 1': there is no parameter 'B'.*known are 'a', 'b', 'c', 'depth'"),
        ("powr <= 9", "did you mean 'power'"),
        ("a * b <= 1", "the product of a and b is not linear"),
        ("a b <= 1", "the product of a and b is not linear"),
        ("a ** 2 <= 1", r"'\*\*' is not linear"),
        ("a^2 <= 1", r"'\^' is not linear"),
        ("1 / a <= 1", "dividing by a parameter is not linear"),
        ("a / 0 <= 1", "dividing by zero"),
        ("kind + a <= 1", "kind is categorical"),
        ("brand + a <= 1", "brand is not a number"),
        ("a + b", "expected one '<=', '>=' or '=', got none"),
        ("0 <= a <= 1", "got 2; write one constraint for each"),
        ("a < 1", "'<' leaves its end out.*write '<='"),
        ("a + <= 1", "expected a number or the name of a parameter, got '<='"),
        ("(a + b <= 1", "a parenthesis is not closed"),
        ("a + b) <= 1", r"did not expect '\)'"),
        ("a + b <= 1 ?", r"did not expect '\?'"),
        ("a <=", "got 'the end'"),
        ("a 2 <= 1", "did not expect the number 2"),
        ("a - a <= 1", "no parameter is left"),
        ("water <= 1", "all its parameters are fixed"),
        ("a + rate = 1", "without a logarithmic scale; use log=False"),
        ("", "expected one '<='"),
        ("at most 2 of a, power, b", "power can never be zero .from 8.0 to 9.8"),
        ("at most 2 of a, off, b", "off can never be zero"),
        ("at most 1 of a, rate", "rate can never be zero"),
        ("at most 1 of a, kind", "kind can never be zero"),
        ("at most 1 of a, water", "water can never be zero"),
        ("at most 3 of a, b, c", "from 1 to 2 for 3 parameters, got '3'"),
        ("at most two of a, b, c", "got 'two'"),
        ("at most 0 of a, b, c", "got '0'"),
        ("at most 1 of a, a", "a stands there twice"),
        ("at most 1 of a,, b", "separated by commas"),
        ("at most 1 of a, x", "there is no parameter 'x'"),
        ("same in batch:", "expected names"),
        ("same in batch: temperature", "there is no parameter 'temperature'"),
        (3, "expected a string such as"),
    ],
)
def test_what_is_refused(text: Any, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        parse_constraint(text, PARAMETERS)


def test_two_inequalities_that_are_an_equality() -> None:
    def check(*texts: str) -> None:
        check_pairs([parse_constraint(text, PARAMETERS) for text in texts])

    with pytest.raises(DomainError, match=r"'a \+ b <= 1' and '2 a \+ 2 b >= 2' together leave only equality"):
        check("a + b <= 1", "2 a + 2 b >= 2")
    check("a + b <= 1", "2 a + 2 b >= 1.9")
    check("a + b <= 1", "a + b <= 1", "a - b >= 1")
    check("power + depth <= 14", "power + depth >= 14")


def test_terms_of_very_different_size() -> None:
    with pytest.raises(DomainError, match=r"the term of n spans 1e\+09 and that of a 1, .* another unit"):
        Space(n=Integer(0, 10**9), a=Real(0, 1), constraints=["n + a <= 7"])
    Space(n=Integer(0, 10**9), a=Real(0, 1), constraints=["n + 1000 a <= 7"])


def test_the_check_is_exact() -> None:
    space = Space(
        a=Real(0, 1, step=0.1), b=Real(0, 1, step=0.1), c=Real(0, 1, step=0.1),
        constraints=["a + b <= 0.3", "a + b + c = 1"],
    )  # fmt: skip
    # In doubles 0.1 + 0.2 is above 0.3.
    assert space.violations({"a": 0.1, "b": 0.2, "c": 0.7}) == []
    assert space.violations({"a": 0.1, "b": 0.3, "c": 0.6}) == [
        "'a + b <= 0.3' does not hold for a = 0.1, b = 0.3 (off by 0.1)"
    ]
    mixture = Space(a=Real(0, 1), b=Real(0, 1), c=Real(0, 1), constraints=["a + b + c = 1"])
    third = 0.333333333333
    assert mixture.violations({"a": third, "b": third, "c": third}) == []
    assert len(mixture.violations({"a": third, "b": third, "c": 0.3333333})) == 1
    strict = Space(a=Real(0, 1), b=Real(0, 1), constraints=["a + b <= 1"])
    assert strict.violations({"a": 0.5, "b": 0.5}) == []
    assert len(strict.violations({"a": 0.5, "b": 0.500000000001})) == 1


def test_every_violation_is_said() -> None:
    space = Space(
        a=Real(0, 1), b=Integer(0, 4), kind=Categorical(["x", "y"]), k=Fixed(2),
        constraints=["a + b + k <= 4", "at most 1 of a, b", "same in batch: kind, b"],
    )  # fmt: skip
    good = {"a": 0.0, "b": 2, "kind": "x"}
    assert space.violations(good) == [] and space.violations({**good, "k": 2}) == []
    assert space.violations({"a": 1.5, "b": 3, "kind": "z", "k": 1}) == [
        "a must be from 0.0 to 1.0, got 1.5",
        "kind must be one of 'x', 'y', got 'z'",
        "k must be 2, got 1",
        "'a + b + k <= 4' does not hold for a = 1.5, b = 3, k = 1 (off by 1.5)",
        "'at most 1 of a, b' does not hold: a, b are not zero",
    ]
    assert space.violations({"a": "much", "kind": "x", "q": 1}) == [
        "b is missing",
        "q is not a parameter of this space",
        "a must be a finite number, got 'much'",
    ]
    assert space.violations(good, [good, {**good, "a": 1.0, "b": 0}]) == [
        "'same in batch: kind, b' does not hold: b is 2 here and 0 there"
    ]
