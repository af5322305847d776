"""Spaces: values, coordinates and features; constraints as a search needs them; pools."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probnn.errors import DomainError, ShapeError
from probnn.optimization import Categorical, Fixed, Integer, Pool, Real, Space
from probnn.optimization.feasible import design

from .spaces import spaces


def point(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.double)


MIXED = Space(
    rate=Real(1e-4, 1e-1, log=True),
    kind=Categorical(["x", "y", "z"]),
    solvent=Fixed("water"),
    flag=Categorical([True, False]),
    size=Categorical([1, 10, 100], ordered=True),
    depth=Integer(1, 8),
)


def test_three_forms_of_a_setting() -> None:
    values = {"rate": 0.01, "kind": "z", "solvent": "water", "flag": False, "size": 10, "depth": 8}
    coordinates = MIXED.coordinates(values)
    assert torch.allclose(coordinates, point(2 / 3, 2, 1, 0.5, 1))
    assert MIXED.values(coordinates) == values and list(MIXED.values(coordinates)) == list(values)
    assert torch.allclose(MIXED.features(coordinates), point(2 / 3, 0, 0, 1, 1, 0.5, 1))
    assert torch.equal(MIXED.encode(values), MIXED.features(coordinates))
    assert (len(MIXED), MIXED.num_features, list(MIXED)) == (5, 7, ["rate", "kind", "flag", "size", "depth"])
    assert MIXED.bounds.tolist() == [[0.0] * 7, [1.0] * 7]
    assert MIXED.search_bounds.tolist() == [[0.0] * 5, [1.0, 2.0, 1.0, 1.0, 1.0]]
    assert MIXED.categorical == {1: 3, 2: 2} and MIXED.discrete.keys() == {3, 4}
    assert MIXED.discrete[3] == [0, 0.5, 1] and len(MIXED.discrete[4]) == 8
    assert MIXED.num_settings is None
    del values["solvent"]
    assert torch.equal(MIXED.coordinates(values), coordinates)


def test_features_are_batched_and_differentiable() -> None:
    values = [MIXED.values(point(0.1 * i, i % 3, i % 2, 0.5, 0.3)) for i in range(4)]
    X = torch.stack([MIXED.coordinates(v) for v in values]).reshape(2, 2, 5)
    assert torch.equal(MIXED.features(X).reshape(4, 7), torch.stack([MIXED.encode(v) for v in values]))
    X = X.requires_grad_()
    [gradient] = torch.autograd.grad(MIXED.features(X).sum(), X)
    # A number moves its column; the index of a category moves nothing.
    assert (gradient[..., [0, 2, 3, 4]] == 1).all() and (gradient[..., 1] == 0).all()
    with pytest.raises(ShapeError, match=r"\(\.\.\., 5\)"):
        MIXED.features(torch.zeros(3, 4))
    with pytest.raises(DomainError, match="an index of kind is not from 0 to 2"):
        MIXED.features(point(0, 3, 0, 0, 0))


@settings(deadline=None, max_examples=30)
@given(spaces())
def test_settings_come_back(made: tuple[Space, dict[str, Any]]) -> None:
    space, inside = made
    assert space.values(space.coordinates(inside)) == inside
    features = space.encode(inside)
    assert features.shape == (space.num_features,) and ((features >= 0) & (features <= 1)).all()


@settings(deadline=None, max_examples=30)
@given(spaces())
def test_what_is_shown_can_be_typed(made: tuple[Space, dict[str, Any]]) -> None:
    space, _ = made
    again = eval(repr(space))
    assert again == space and hash(again) == hash(space)


def test_equality() -> None:
    assert Space(x=Real(0, 1)) == Space(x=Real(0.0, 1.0)) != Space(x=Real(0, 2))
    assert Space(x=Categorical([0, 1])) != Space(x=Categorical([False, True]))
    assert Space(x=Real(0, 1), y=Real(0, 1)) != Space(y=Real(0, 1), x=Real(0, 1))
    assert Space(x=Real(0, 1), y=Real(0, 1)) != Space(x=Real(0, 1), y=Real(0, 1), constraints=["x + y <= 1"])
    spaced = Space(**{"flow rate": Real(0, 1)}, constraints=["'flow rate' <= 0.5"])
    assert eval(repr(spaced)) == spaced and Space(x=Real(0, 1)) != 3


def test_old_rows_with_other_categories() -> None:
    rows: list[dict[str, Any]] = [{"kind": "w", "depth": 3}, {"kind": "x"}, {"kind": "w"}, {"flag": True}]
    space = MIXED.extended(rows)
    assert space.parameters["kind"] == Categorical(["x", "y", "z"], known=["w"])
    assert space.num_features == 8 and MIXED.num_features == 7 and space.categorical == {1: 3, 2: 2}
    old = {"rate": 0.01, "kind": "w", "flag": True, "size": 1, "depth": 1}
    assert space.encode(old)[1:5].tolist() == [0, 0, 0, 1]
    assert all(values["kind"] != "w" for values in design(space, 20, 0))
    assert space.extended(rows) is space and MIXED.extended([]) is MIXED
    with pytest.raises(DomainError, match="extended: size: Categorical: 1000 has no place among ordered"):
        MIXED.extended([{"size": 1000}])


@settings(deadline=None, max_examples=30)
@given(spaces(), st.integers(0, 1000))
def test_constraints_of_coordinates_agree_with_those_of_values(made: tuple[Space, dict[str, Any]], seed: int) -> None:
    space, _ = made
    low, high = space.search_bounds
    inequalities, equalities = space.linear_constraints()
    for values in design(space, 3, seed):
        c = space.coordinates(values)
        for indices, coefficients, rhs in inequalities:
            assert float(coefficients @ c[indices]) >= rhs - 1e-9 * (abs(rhs) + float(coefficients.abs().sum()))
        for indices, coefficients, rhs in equalities:
            assert float(coefficients @ c[indices]) == pytest.approx(rhs, abs=1e-8 * float(coefficients.abs().sum()))
        assert all(float(f(c)) >= -1e-9 for f in space.curved_constraints())
    plain = Space(**space.parameters)
    u = torch.rand(20, len(space), generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    for c in low + u * (high - low):
        values = plain.values(c)
        c = plain.coordinates(values)
        held = [float(a @ c[i]) >= b - 1e-9 * (abs(b) + float(a.abs().sum())) for i, a, b in inequalities]
        held += [abs(float(a @ c[i]) - b) <= 1e-9 * float(a.abs().sum()) for i, a, b in equalities]
        held += [float(f(c)) >= -1e-12 for f in space.curved_constraints()]
        words = [v for v in space.violations(values) if not v.startswith("'at most")]
        # Exact and floating-point arithmetic may only differ on the edge.
        assert all(held) == (not words) or any("off by 0" in w or "e-" in w for w in words)


def test_constraints_in_coordinates_by_hand() -> None:
    space = Space(
        power=Real(8, 10), k=Fixed(2), depth=Integer(1, 5), rate=Real(1, 100, log=True), a=Real(0, 1),
        constraints=["power + 2 depth + k <= 14", "a + power = 9", "rate + power <= 50", "same in batch: depth"],
    )  # fmt: skip
    [(indices, coefficients, rhs)], [(also, ones, total)] = space.linear_constraints()
    # (8 + 2 u) + 2 (1 + 4 v) + 2 <= 14
    assert indices.tolist() == [0, 1] and coefficients.tolist() == [-2, -8] and rhs == -2
    assert sorted(zip(also.tolist(), ones.tolist(), strict=True)) == [(0, 2), (3, 1)] and total == 1
    [curved] = space.curved_constraints()
    # 50 - 10 - (8 + 2 * 0.5) in units of 100 + 10
    assert torch.allclose(curved(point(0.5, 0, 0.5, 0).expand(3, 2, 4)), torch.tensor(31 / 110).double().expand(3, 2))
    x = point(0.5, 0, 0.5, 0).requires_grad_()
    assert torch.autograd.grad(curved(x), x)[0][2] < 0
    assert space.same_in_batch == ("depth",) and len(space.bound) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Space(), "at least one parameter"),
        (lambda: Space(x=Fixed(1)), "at least one parameter that is not fixed"),
        (lambda: Space(x=3), "x must be a Real, an Integer, a Categorical or Fixed, got a int"),
        (lambda: Space(**{" ": Real(0, 1)}), "needs a name"),
        (lambda: Space(x=Real(0, 1), constraints="x <= 1"), "constraints must be a list of strings"),
        (lambda: Space(x=Real(0, 1), constraints=Real(0, 1)), "a parameter cannot have that name"),
        (lambda: Space(x=Real(0, 1), constraints=["y <= 1"]), "there is no parameter 'y'; known are 'x'"),
        (lambda: Space(x=Real(0, 1)).encode({"y": 0.5}), "missing are 'x'; unknown are 'y'"),
        (lambda: Space(x=Real(0, 1)).encode({"x": "much"}), "x: Real: expected a finite number, got 'much'"),
        (lambda: Space(x=Real(0.1, 1, log=True)).encode({"x": -1}), "must be positive, got -1"),
        (lambda: Space(x=Categorical(["a", "b"])).encode({"x": "c"}), "x: Categorical: expected one of 'a', 'b'"),
    ],
)
def test_bad_spaces(make: Any, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        make()


def test_wrong_point() -> None:
    with pytest.raises(ShapeError, match=r"\(1,\)"):
        Space(x=Real(0, 1)).values(torch.zeros(2))


def test_pools() -> None:
    space = Space(a=Real(0, 1), k=Fixed(3), kind=Categorical(["x", "y"]), constraints=["a <= 0.8"])
    pool = Pool(space, [{"a": "0.5", "kind": "y"}, {"a": 0.25, "kind": "x", "k": "3"}, {"a": 0.5, "kind": "y"}])
    assert pool.candidates == [{"a": 0.5, "k": 3, "kind": "y"}, {"a": 0.25, "k": 3, "kind": "x"}]
    assert pool.coordinates.tolist() == [[0.5, 1.0], [0.25, 0.0]] and len(pool) == 2
    with pytest.raises(DomainError, match=r"row 2: 'a <= 0.8' does not hold for a = 0.9"):
        Pool(space, [{"a": 0.5, "kind": "y"}, {"a": 0.9, "kind": "y"}])
    with pytest.raises(DomainError, match=r"row 1: kind: expected one of 'x', 'y', got 'z'"):
        Pool(space, [{"a": 0.5, "kind": "z"}])
    with pytest.raises(DomainError, match=r"row 1: kind is missing; b is not a parameter"):
        Pool(space, [{"a": 0.5, "b": 1}])
    with pytest.raises(DomainError, match="at least one candidate"):
        Pool(space, [])
