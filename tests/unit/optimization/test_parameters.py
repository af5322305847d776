"""Parameters: grids without drift, coordinates, texts, and what is refused."""

from __future__ import annotations

import math
import time
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probnn.errors import DomainError, UnsupportedError
from probnn.optimization import Categorical, Fixed, Integer, Real


@given(st.floats(0, 1), st.booleans())
def test_reals_come_back(u: float, log: bool) -> None:
    parameter = Real(1e-4, 1e-1, log=log)
    value = parameter.nearest(u)
    assert 1e-4 <= value <= 1e-1 and abs(parameter.coordinate(value) - u) < 1e-9


@given(st.integers(1, 300), st.booleans())
def test_integers_come_back(value: int, log: bool) -> None:
    parameter = Integer(1, 300, log=log)
    assert parameter.nearest(parameter.coordinate(value)) == value


@given(st.floats(-0.5, 1.5))
def test_every_suggestion_is_inside(u: float) -> None:
    value = Integer(2, 9).nearest(u)
    assert isinstance(value, int) and 2 <= value <= 9
    assert -3.0 <= Real(-3.0, 5.0).nearest(u) <= 5.0
    for parameter in (Real(8, 9.8, step=0.1), Real(0.1, 64, log=True, step=0.7), Integer(-3, 50, step=7)):
        assert parameter.complaint(parameter.nearest(u)) is None


def test_grids_are_what_a_person_writes() -> None:
    power = Real(8, 9.8, step=0.1)
    written = "8.0 8.1 8.2 8.3 8.4 8.5 8.6 8.7 8.8 8.9 9.0 9.1 9.2 9.3 9.4 9.5 9.6 9.7 9.8"
    assert power.num_values == 19 and [repr(v) for v in power.levels()] == written.split()
    assert list(Real(0, 1, step=0.3).levels()) == [0.0, 0.3, 0.6, 0.9]
    assert list(Real(-0.3, 0.3, step=0.1).levels()) == [-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3]
    assert list(Integer(1, 10, step=4).levels()) == [1, 5, 9]


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**4), st.integers(0, 6), st.integers(1, 500), st.booleans())
def test_grids_are_decimal_arithmetic(low: int, step: int, digits: int, count: int, more: bool) -> None:
    unit = Decimal(1).scaleb(-digits)
    high = low + step * count + (step // 2 if more else 0)
    parameter = Real(float(low * unit), float(high * unit), step=float(step * unit))
    assert parameter.num_values == count + 1
    assert list(parameter.levels()) == [float((low + k * step) * unit) for k in range(count + 1)]
    for k in (0, 1, count // 2, count):
        value = parameter.level(k)
        assert parameter.nearest(parameter.coordinate(value)) == value and parameter.complaint(value) is None


@given(st.floats(0, 1), st.sampled_from([Real(0.5, 64, log=True, step=0.5), Real(-1, 1, step=0.3), Integer(1, 40)]))
def test_the_nearest_is_nearest_in_coordinates(u: float, parameter: Any) -> None:
    best = min(abs(parameter.coordinate(v) - u) for v in parameter.levels())
    assert abs(parameter.coordinate(parameter.nearest(u)) - u) <= best + 1e-12


def test_values_outside_extrapolate() -> None:
    assert Real(0, 10).coordinate(15) == 1.5 and Integer(0, 10).coordinate(-5) == -0.5
    assert Real(1, 100, log=True).coordinate(1000) == pytest.approx(1.5)
    assert Real(0, 10, step=1).coordinate(2.5) == 0.25


def test_large_grids_are_not_built() -> None:
    started = time.perf_counter()
    parameter = Integer(1, 10**9)
    assert parameter.num_values == 10**9 and next(parameter.levels()) == 1
    assert parameter.neighbours(5 * 10**8) == [499_999_999, 500_000_001]
    assert parameter.nearest(parameter.coordinate(123_456_789)) == 123_456_789
    assert Real(0, 1, step=1e-9).nearest(0.123456789) == 0.123456789
    assert time.perf_counter() - started < 0.5


def test_neighbours() -> None:
    power = Real(8, 9.8, step=0.1)
    assert power.neighbours(8.3) == [8.2, 8.4] and power.neighbours(8.0) == [8.1] and power.neighbours(9.8) == [9.7]
    assert power.neighbours(8.34) == [8.3, 8.4] and power.neighbours(7.0) == [8.0] and power.neighbours(12) == [9.8]
    assert Real(0, 1).neighbours(0.5) == []
    assert Categorical(["a", "b", "c"]).neighbours("b") == ["a", "c"]
    assert Categorical([1, 5, 9], ordered=True).neighbours(1) == [5]
    assert Fixed(1).neighbours(1) == []


def test_categories() -> None:
    loss = Categorical(["hinge", "log", "square"])
    assert [loss.coordinate(c) for c in loss.choices] == [0, 1, 2] and loss.nearest(1.2) == "log"
    assert (loss.num_features, Categorical([True, False]).num_features, loss.upper) == (3, 1, 2.0)
    size = Categorical(["low", "medium", "high"], ordered=True)
    assert [size.coordinate(c) for c in size.choices] == [0, 0.5, 1] and size.nearest(0.8) == "high"
    assert (size.num_features, size.upper) == (1, 1.0)
    more = Categorical(["a", "b"], known=["c"])
    assert more.coordinate("c") == 2 and more.num_features == 3 and more.upper == 1.0
    assert more.complaint("c") == "must be one of 'a', 'b', got 'c'"
    with pytest.raises(DomainError, match="index 2.0 is not that of a choice"):
        more.nearest(2.0)
    with pytest.raises(DomainError, match="expected one of 'a', 'b', got 'd'"):
        more.coordinate("d")
    with pytest.raises(DomainError, match="got 1"):
        Categorical([True, False]).coordinate(1)


@pytest.mark.parametrize(
    ("parameter", "text", "value"),
    [
        (Real(0, 1), " 3e-1 ", 0.3),
        (Real(0, 1), "7", 7.0),
        (Real(0, 1, step=0.5), "0.3", 0.3),
        (Integer(1, 8), "3.0", 3),
        (Integer(1, 8), "2.5", 2.5),
        (Integer(1, 8), "99", 99),
        (Categorical(["a", "b c"]), " b c", "b c"),
        (Categorical([1, 2.5]), "1.0", 1),
        (Categorical([1, 2.5]), "2.50", 2.5),
        (Categorical([True, False]), "TRUE", True),
        (Categorical(["1", "2"]), "2", "2"),
        (Fixed(3), "3.0", 3),
        (Fixed("water"), "water ", "water"),
        (Fixed(False), "false", False),
    ],
)
def test_texts(parameter: Any, text: str, value: Any) -> None:
    found = parameter.parse(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("parameter", "text", "message"),
    [
        (Real(0, 1), "much", "^expected a number from 0.0 to 1.0, got 'much'$"),
        (Real(0, 1), "nan", "^expected a number from"),
        (Real(0, 1), "", "^expected a number from 0.0 to 1.0, got ''$"),
        (Integer(1, 8), "1e999", "^expected a whole number from 1 to 8, got '1e999'$"),
        (Categorical(["a", "b"]), "c", "expected one of 'a', 'b', got 'c'"),
        (Categorical([1, 2]), "3", "expected one of 1, 2, got '3'"),
        (Fixed("water"), "oil", "expected 'water', got 'oil'"),
        (Fixed(True), "1", "expected True, got '1'"),
    ],
)
def test_wrong_texts(parameter: Any, text: str, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        parameter.parse(text)


def test_unknown_categories_of_old_tables() -> None:
    assert Categorical(["a", "b"]).parse("c", unknown=True) == "c"
    assert Categorical([1, 2]).parse("3", unknown=True) == 3
    assert Fixed("water").parse("oil", unknown=True) == "oil"
    with pytest.raises(DomainError, match="got ''"):
        Categorical(["a", "b"]).parse(" ", unknown=True)


@pytest.mark.parametrize(
    ("parameter", "value", "complaint"),
    [
        (Real(8, 9.8, step=0.1), 8.3, None),
        (Real(8, 9.8, step=0.1), 8.299999999999999, "must be from 8.0 to 9.8 in steps of 0.1, got 8.299999999999999"),
        (Real(8, 9.8), 9.81, "must be from 8.0 to 9.8, got 9.81"),
        (Real(0, 1), 1, None),
        (Real(0, 1), np.float64(0.5), None),
        (Real(0, 1), True, "must be a finite number, got True"),
        (Real(0, 1), math.nan, "must be a finite number, got nan"),
        (Integer(0, 4), np.int64(3), None),
        (Integer(0, 4), 3.0, "must be a whole number, got 3.0"),
        (Integer(0, 8, step=3), 7, "must be from 0 to 8 in steps of 3, got 7"),
        (Categorical([1, 2]), True, "must be one of 1, 2, got True"),
        (Fixed(2), 3, "must be 2, got 3"),
    ],
)
def test_complaints(parameter: Any, value: Any, complaint: str | None) -> None:
    assert parameter.complaint(value) == complaint


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Real(1, 1), "low must be below high, got 1 and 1; a fixed parameter"),
        (lambda: Real(2, 1), "low must be below high"),
        (lambda: Real(0, 1, log=True), "a log scale needs low above 0"),
        (lambda: Real(0, math.inf), "finite"),
        (lambda: Real(-1e308, 1e308), "too wide"),
        (lambda: Real("a", 1), "finite numbers"),
        (lambda: Real(False, True), "finite numbers"),
        (lambda: Real(0, 1, step=2), "step 2 is larger than the range"),
        (lambda: Real(0, 1, step=0), "step must be a positive number"),
        (lambda: Real(0, 1, step=True), "step must be a positive number"),
        (lambda: Real(0, 1, log=1), "log must be True or False"),
        (lambda: Integer(0.5, 3), "low must be a whole number, got 0.5; a real"),
        (lambda: Integer(0, True), "high must be a whole number"),
        (lambda: Integer(0, 4, step=0.5), "step must be a whole number"),
        (lambda: Integer(0, 4, step=5), "larger than the range"),
        (lambda: Integer(0, 10**17), r"at most 2\*\*53"),
        (lambda: Integer(0, 10, log=True), "zero has no logarithm"),
        (lambda: Categorical(["a"]), "at least two choices, got .'a'.; a fixed"),
        (lambda: Categorical("ab"), "must be a list"),
        (lambda: Categorical(["a", "a"]), "must differ"),
        (lambda: Categorical([1, 1.0]), "must differ"),
        (lambda: Categorical([1, "1"]), "must differ, also as text"),
        (lambda: Categorical(["a", None]), "a choice must be a word"),
        (lambda: Categorical(["a", ""]), "not empty"),
        (lambda: Categorical(["a", math.nan]), "finite"),
        (lambda: Categorical(["a", "b"], ordered=True, known=["c"]), "'c' has no place among ordered"),
        (lambda: Categorical(["a", "b"], known=["a"]), "must differ"),
        (lambda: Fixed([1]), "Fixed: the value must be a word"),
        (lambda: Real(0, 1).coordinate("much"), "expected a finite number, got 'much'"),
        (lambda: Real(0.1, 1, log=True).coordinate(0), "must be positive, got 0"),
        (lambda: Real(0, 1).nearest(math.nan), "must be finite"),
    ],
)
def test_what_is_refused(make: Any, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        make()


def test_what_continuous_and_fixed_parameters_cannot_do() -> None:
    with pytest.raises(UnsupportedError, match="give it a step"):
        Real(0, 1).levels()
    with pytest.raises(UnsupportedError, match="no coordinate"):
        Fixed(1).coordinate(1)


@pytest.mark.parametrize(
    "parameter",
    [
        Real(8, 9.8, step=0.1), Real(1e-4, 1, log=True), Integer(1, 8), Integer(2, 64, log=True, step=2),
        Categorical(["a", 'b"', "c"]), Categorical([1, 2.5], ordered=True), Categorical(["a", "b"], known=("c",)),
        Fixed("x"), Fixed(2.5),
    ],
)  # fmt: skip
def test_what_is_shown_can_be_typed(parameter: Any) -> None:
    names = {"Real": Real, "Integer": Integer, "Categorical": Categorical, "Fixed": Fixed}
    assert eval(repr(parameter), names) == parameter
    assert repr(Real(0, 1)) == "Real(0.0, 1.0)"
