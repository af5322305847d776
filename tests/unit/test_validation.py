"""Messages say where, what was expected, what came and what to do."""

from __future__ import annotations

import numpy
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


@pytest.mark.parametrize("kind", [numpy.int64, numpy.int32, numpy.uint8])
def test_integers_of_numpy_become_pythons(kind: type) -> None:
    value = validation.positive_int("here", "steps", kind(3))
    assert type(value) is int and value == 3
    with pytest.raises(DomainError, match="steps must be an integer >= 4"):
        validation.positive_int("here", "steps", kind(3), 4)


@pytest.mark.parametrize("kind", [numpy.float32, numpy.float64, numpy.int64])
def test_numbers_of_numpy_become_pythons(kind: type) -> None:
    value = validation.positive("here", "lr", kind(2))
    assert isinstance(value, (int, float)) and value == 2
    with pytest.raises(DomainError, match="lr must be positive"):
        validation.positive("here", "lr", kind(0))


@pytest.mark.parametrize("value", [0, 1, -0.5, float("nan"), True, "0.5", None])
def test_probability(value: object) -> None:
    with pytest.raises(DomainError, match="prob must be a probability between 0 and 1"):
        validation.probability("here", "prob", value)
    assert validation.probability("here", "prob", numpy.float32(0.5)) == 0.5


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool, "float32", float])
def test_dtypes_of_a_process_are_floating_point(dtype: object) -> None:
    with pytest.raises(DomainError, match="dtype must be a floating-point dtype such as torch.float64"):
        validation.float_dtype("here", dtype)
    assert validation.float_dtype("here", torch.float32) is torch.float32
    assert validation.float_dtype("here", None) is None


@pytest.mark.parametrize("where_to", ["cudaa", "cuda:99", 3.5])
def test_devices_are_of_this_machine(where_to: object) -> None:
    with pytest.raises(DomainError, match=f"device must be one of this machine.*got {where_to!r}"):
        validation.device("here", where_to)
    assert validation.device("here", "cpu") == torch.device("cpu")
    assert validation.device("here", None) is None


def test_messages_use_the_names_of_the_caller() -> None:
    X = torch.zeros(2, 3)
    with pytest.raises(ShapeError, match="train_X must have shape"):
        validation.inputs("here", X, 2, name="train_X")
    with pytest.raises(DomainError, match="noise must be positive"):
        validation.variances("here", torch.zeros(2, 1), X, 1, name="noise")
    with pytest.raises(DomainError, match=r"\.to\(dtype=\.\.\.\)"):
        validation.inputs("here", X, 3, like=X.double())


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", None, numpy.float64(3), numpy.bool_(True)])
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
