"""Messages say where, what was expected, what came and what to do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probnn import validation
from probnn.errors import DomainError, NonFiniteError, ProbnnError, ShapeError


@given(st.lists(st.integers(0, 3), max_size=4), st.integers(1, 3))
def test_inputs_accept_exactly_the_documented_shapes(shape: list[int], d: int) -> None:
    X = torch.zeros(shape)
    if len(shape) >= 2 and shape[-1] == d:
        assert validation.inputs("here", X, d) is X
    else:
        with pytest.raises(ShapeError, match=r"here: X must have shape \(\.\.\., n, ") as caught:
            validation.inputs("here", X, d)
        assert str(tuple(shape)) in str(caught.value)


@given(
    st.lists(st.integers(1, 3), min_size=2, max_size=4),
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
    st.integers(1, 2),
)
def test_outcomes_accept_rows_of_X(of_x: list[int], of_y: list[int], m: int) -> None:
    X, Y = torch.zeros(of_x), torch.zeros(of_y)
    fits = len(of_y) >= 2 and of_y[-2:] == [of_x[-2], m]
    if fits and len(of_x) > 2 and len(of_y) > 2:
        pairs = zip(reversed(of_x[:-2]), reversed(of_y[:-2]), strict=False)
        fits = all(a == b or 1 in (a, b) for a, b in pairs)
    if fits:
        assert validation.outcomes("here", "Y", Y, X, m) is Y
    else:
        with pytest.raises(ShapeError, match="here"):
            validation.outcomes("here", "Y", Y, X, m)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_rows_are_named(bad: float) -> None:
    X = torch.zeros(4, 2)
    X[2, 1] = bad
    with pytest.raises(NonFiniteError, match=r"\[2, 1\]"):
        validation.inputs("here", X, 2)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", None])
def test_positive_int(value: object) -> None:
    with pytest.raises(DomainError, match="steps must be an integer >= 1"):
        validation.positive_int("here", "steps", value)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "3", True, torch.tensor([1.0, -1.0])])
def test_positive(value: object) -> None:
    with pytest.raises(DomainError, match="lr must be"):
        validation.positive("here", "lr", value)


def test_positive_accepts() -> None:
    assert validation.positive("here", "lr", 0.1) == 0.1
    assert validation.positive("here", "lr", 0, allow_zero=True) == 0
    with pytest.raises(DomainError, match="at most 1"):
        validation.positive("here", "prob", 1.5, maximum=1)


@pytest.mark.parametrize("shape", ["a", 3, (1.5,), (-1,)])
def test_sample_shape(shape: object) -> None:
    with pytest.raises(ShapeError, match="sample_shape"):
        validation.sample_shape("here", shape)


def test_every_error_is_of_the_library_and_of_its_python_kind() -> None:
    for error in (ShapeError, DomainError, NonFiniteError):
        assert issubclass(error, ProbnnError) and issubclass(error, ValueError)
    with pytest.raises(DomainError, match=r"generator_from\(seed\)"):
        validation.noise_generator("here", 3)
