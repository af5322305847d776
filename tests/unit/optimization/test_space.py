"""Parameters and their unit cube."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probnn.errors import DomainError, ShapeError
from probnn.optimization import Integer, Real, Space


@given(st.floats(0, 1), st.booleans())
def test_reals_come_back(u: float, log: bool) -> None:
    parameter = Real(1e-4, 1e-1, log=log)
    value = parameter.decode(u)
    assert 1e-4 <= value <= 1e-1 and abs(parameter.encode(value) - u) < 1e-9


@given(st.integers(1, 300), st.booleans())
def test_integers_come_back(value: int, log: bool) -> None:
    parameter = Integer(1, 300, log=log)
    assert parameter.decode(parameter.encode(value)) == value


@given(st.floats(-0.5, 1.5))
def test_every_suggestion_is_inside(u: float) -> None:
    value = Integer(2, 9).decode(u)
    assert isinstance(value, int) and 2 <= value <= 9
    assert -3.0 <= Real(-3.0, 5.0).decode(u) <= 5.0


def test_integers_have_neighbours_below_and_above() -> None:
    parameter = Integer(1, 5)
    assert [parameter.decode(c) for c in parameter.neighbours(0.6)] == [3, 4]
    assert [parameter.decode(c) for c in parameter.neighbours(0.5)] == [3]
    space = Space(a=Integer(0, 10), b=Real(0.0, 1.0), c=Integer(0, 10))
    near = space.neighbours(torch.tensor([0.55, 0.3, 0.71], dtype=torch.double))
    found = {(s["a"], round(s["b"], 6), s["c"]) for s in map(space.decode, near)}
    assert found == {(5, 0.3, 7), (5, 0.3, 8), (6, 0.3, 7), (6, 0.3, 8)}
    many = Space(**{f"p{i}": Integer(0, 10) for i in range(20)})
    assert len(many.neighbours(torch.full((20,), 0.55, dtype=torch.double))) <= 64


@pytest.mark.parametrize(
    "make",
    [
        lambda: Real(1, 1),
        lambda: Real(2, 1),
        lambda: Real(0, 1, log=True),
        lambda: Real(0, math.inf),
        lambda: Real("a", 1),  # type: ignore[arg-type]
        lambda: Integer(0.5, 3),  # type: ignore[arg-type]
        lambda: Space(),
        lambda: Space(x=3),  # type: ignore[arg-type]
        lambda: Space(x=Real(0, 1)).encode({"y": 0.5}),
        lambda: Space(x=Real(0, 1)).encode({"x": "much"}),
        lambda: Space(x=Real(0.1, 1, log=True)).encode({"x": -1}),
    ],
)
def test_bad_spaces(make) -> None:
    with pytest.raises(DomainError):
        make()


def test_wrong_point() -> None:
    with pytest.raises(ShapeError, match=r"\(1,\)"):
        Space(x=Real(0, 1)).decode(torch.zeros(2))
