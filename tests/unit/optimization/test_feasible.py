"""Settings that satisfy everything: the nearest, space-filling ones, and sets of constraints without any."""

from __future__ import annotations

import itertools
import math
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probnn.errors import DomainError, ShapeError
from probnn.optimization import Categorical, Fixed, Integer, Real, Space
from probnn.optimization.feasible import check_satisfiable, design, nearest
from probnn.optimization.sampling import hit_and_run
from probnn.optimization.search import every_setting

from .spaces import spaces


def point(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.double)


@settings(deadline=None, max_examples=80)
@given(spaces(), st.integers(0, 1000))
def test_nearest_satisfies_everything(made: tuple[Space, dict[str, Any]], seed: int) -> None:
    space, inside = made
    assert space.violations(inside) == []
    low, high = space.search_bounds
    u = torch.rand(len(space), generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    found = nearest(space, low + u * (high - low))
    assert found is not None and list(found) == list(space.parameters)
    assert space.violations(found) == []
    kept = next(iter(space.free))
    found = nearest(space, low + u * (high - low), fixed={kept: inside[kept]})
    assert found is not None and found[kept] == inside[kept] and space.violations(found) == []


@settings(deadline=None, max_examples=25)
@given(spaces(), st.integers(0, 1000))
def test_designs_satisfy_everything(made: tuple[Space, dict[str, Any]], seed: int) -> None:
    space, inside = made
    found = design(space, 6, seed)
    assert [space.violations(values) for values in found] == [[]] * 6
    kept = next(iter(space.free))
    for values in design(space, 3, seed, {kept: inside[kept]}):
        assert values[kept] == inside[kept] and space.violations(values) == []


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.sampled_from(["<=", "="]), st.integers(1, 2))
def test_nearest_is_the_nearest(target: list[float], relation: str, count: int) -> None:
    space = Space(
        a=Integer(0, 6), b=Real(0, 1, step=0.25), c=Integer(-4, 4, step=2),
        constraints=[f"a + 4 b + c {relation} 4", f"at most {count} of a, b, c"],
    )  # fmt: skip
    found = nearest(space, point(*target))
    every = [dict(zip("abc", v, strict=True)) for v in itertools.product(*(p.levels() for p in space.free.values()))]
    allowed = [v for v in every if not space.violations(v)]

    def distance(values: dict[str, Any]) -> float:
        return float((space.coordinates(values) - point(*target)).abs().sum())

    assert found is not None and distance(found) <= min(map(distance, allowed)) + 1e-6


def test_nearest_of_continuous_points() -> None:
    # By hand: with two equal factors and a + b + c = 1, each unit of the gap costs one unit of distance.
    space = Space(a=Real(0, 1), b=Real(0, 1), c=Real(0, 1), constraints=["a + b + c = 1"])
    found = nearest(space, point(0.2, 0.3, 0.1))
    assert found is not None
    assert sum(abs(found[n] - t) for n, t in zip("abc", (0.2, 0.3, 0.1), strict=True)) == pytest.approx(0.4)
    # What already sums to one stays as it is, in decimals.
    assert nearest(space, point(0.1, 0.2, 0.7)) == {"a": 0.1, "b": 0.2, "c": 0.7}
    # On the edge and not short of it.
    space = Space(a=Real(0, 1), b=Real(0, 1), constraints=["a + b <= 1"])
    found = nearest(space, point(0.9, 0.9))
    assert found is not None and found["a"] + found["b"] == pytest.approx(1, abs=1e-12)
    # Several equalities that share parameters; the third follows from the others.
    space = Space(
        a=Real(0, 1), b=Real(0, 1), c=Real(0, 1), d=Real(0, 3),
        constraints=["a + b + c = 1", "a - b = 0.1", "2 a + c = 1.1", "d = 3 a"],
    )  # fmt: skip
    found = nearest(space, point(0.3, 0.3, 0.3, 0.3))
    assert found is not None and found["a"] - found["b"] == pytest.approx(0.1) and space.violations(found) == []


def test_only_a_corner_is_left() -> None:
    space = Space(a=Real(0, 1), b=Real(0, 1), constraints=["a + b >= 2"])
    assert nearest(space, point(0.2, 0.4)) == {"a": 1.0, "b": 1.0}
    assert design(space, 2, 0) == [{"a": 1.0, "b": 1.0}] * 2


def test_log_scale_moves_where_it_is_cheap() -> None:
    # Halving `a` costs 0.1 of its range in decades; moving `b` by 40 of 100 costs 0.4.
    space = Space(a=Real(0.1, 100, log=True), b=Real(0, 100), constraints=["a + b <= 100"])
    found = nearest(space, point(space.parameters["a"].coordinate(80.0), 0.6))
    assert found is not None and found["b"] == pytest.approx(60) and found["a"] == pytest.approx(40)


def test_nearest_names_what_is_wrong() -> None:
    space = Space(a=Integer(0, 3), b=Integer(0, 3), constraints=["a + b = 3"])
    assert nearest(space, point(0.5, 0.5), fixed={"a": 3}) == {"a": 3, "b": 0}
    with pytest.raises(DomainError, match=r"no parameter 'c'; known are 'a', 'b'"):
        nearest(space, point(0.5, 0.5), fixed={"c": 3})
    with pytest.raises(DomainError, match=r"fixed: a must be from 0 to 3, got 4"):
        nearest(space, point(0.5, 0.5), fixed={"a": 4})
    with pytest.raises(ShapeError, match=r"\(2,\)"):
        nearest(space, point(0.5))
    narrow = Space(a=Integer(0, 3), b=Integer(0, 9), constraints=["b - 3 a = 0"])
    assert nearest(narrow, point(0.5, 0.5), fixed={"b": 4}) is None


@pytest.mark.parametrize(
    ("parameters", "constraints", "colliding", "innocent"),
    [
        ({"a": Real(0, 1), "b": Real(0, 1)}, ["a + b >= 3"], ["a + b >= 3", "a from 0.0 to 1.0"], []),
        ({"a": Real(0, 1), "b": Real(0, 1)}, ["a + b <= 1", "a >= 0.6", "a - b <= 2", "b >= 0.5"],
         ["'a + b <= 1' and 'a >= 0.6' and 'b >= 0.5'"], ["a - b"]),
        ({"a": Real(0, 1, step=0.3), "b": Real(0, 1, step=0.3)}, ["a + b = 1"], ["in steps of 0.3"], []),
        ({"a": Integer(0, 5), "b": Integer(0, 5), "c": Integer(0, 5)}, ["at most 1 of a, b, c", "a + b >= 6", "c <= 4"],
         ["'at most 1 of a, b, c' and 'a + b >= 6'"], ["c <= 4"]),
        ({"a": Real(0, 1), "k": Fixed(7)}, ["a + k <= 5"], ["k = 7 fixed"], []),
        ({"a": Integer(0, 10**6), "b": Integer(0, 10**6)}, ["2 a + 4 b = 7"], ["2 a + 4 b = 7"], []),
    ],
)  # fmt: skip
def test_constraints_that_collide_are_named(
    parameters: dict[str, Any], constraints: list[str], colliding: list[str], innocent: list[str]
) -> None:
    with pytest.raises(DomainError, match="no setting satisfies") as caught:
        Space(**parameters, constraints=constraints)
    assert all(words in str(caught.value) for words in colliding), caught.value
    assert not any(words in str(caught.value) for words in innocent), caught.value


def test_fixed_values_can_collide() -> None:
    space = Space(a=Real(0, 1), b=Real(0, 1), constraints=["a + b = 1"])
    check_satisfiable(space, {"a": 0.25})
    space = Space(a=Real(0, 1), b=Real(0, 0.5), constraints=["a + b = 1"])
    with pytest.raises(DomainError, match=r"'a \+ b = 1' with a = 0.25 fixed, b from 0.0 to 0.5"):
        check_satisfiable(space, {"a": 0.25})
    with pytest.raises(DomainError, match="a = 0.25 fixed"):
        design(space, 2, 0, {"a": 0.25})


def test_designs_are_one_sequence(seed: int) -> None:
    def make() -> Space:
        return Space(
            a=Real(0, 1), b=Real(0, 1), c=Real(0, 1), kind=Categorical(["x", "y", "z"]),
            constraints=["a + b + c = 1", "at most 2 of a, b, c"],
        )  # fmt: skip

    state = torch.get_rng_state()
    whole = design(make(), 8, seed)
    assert torch.equal(state, torch.get_rng_state())
    assert design(make(), 3, seed, skip=5) == whole[5:]
    space = make()
    assert [design(space, 1, seed, skip=i)[0] for i in range(8)] == whole
    assert design(make(), 8, seed + 1) != whole
    plain = Space(a=Real(0, 1), n=Integer(0, 5))
    assert design(plain, 2, seed, skip=3) == design(Space(a=Real(0, 1), n=Integer(0, 5)), 5, seed)[3:]


@pytest.mark.parametrize(
    "space",
    [
        Space(a=Integer(0, 3), b=Categorical(["x", "y", "z"])),
        Space(a=Integer(0, 5), b=Integer(0, 5), c=Integer(0, 5), constraints=["a + b + c = 4"]),
        Space(a=Integer(0, 3), b=Integer(0, 3), c=Integer(0, 3), constraints=["at most 1 of a, b, c", "a <= 2"]),
    ],
)
def test_small_spaces_are_used_up_before_anything_repeats(space: Space, seed: int) -> None:
    every = [dict(zip(space, v, strict=True)) for v in itertools.product(*(p.levels() for p in space.free.values()))]
    allowed = [v for v in every if not space.violations(v)]
    found = design(space, 2 * len(allowed), seed)
    key = sorted(tuple(v.values()) for v in allowed)
    assert sorted(tuple(v.values()) for v in found[: len(allowed)]) == key
    assert sorted(tuple(v.values()) for v in found[len(allowed) :]) == key


def test_hit_and_run_is_uniform(seed: int) -> None:
    # Dirichlet(1, 1, 1, 1): mean 1/4, variance 3/80, and P(x > 1/2) = 1/8 of each share of a uniform mixture.
    generator = torch.Generator().manual_seed(seed)
    E, e, upper = np.ones((1, 4)), np.ones(1), np.ones(4)
    ends = [hit_and_run(np.empty((0, 4)), np.empty(0), E, e, upper, generator=generator) for _ in range(60)]
    x = np.concatenate([end for end in ends if end is not None])
    n = len(x)
    assert n == 480 and np.allclose(x.sum(axis=1), 1) and (x > -1e-12).all()
    assert (abs(x.mean(axis=0) - 0.25) < 5 * np.sqrt(3 / 80 / n)).all()
    assert (abs((x > 0.5).mean(axis=0) - 0.125) < 5 * np.sqrt(0.125 * 0.875 / n)).all()
    # A triangle cut from a square, whose parts have known areas: x + y <= 1; below x = 1/2 lie three quarters.
    ends = [
        hit_and_run(np.ones((1, 2)), np.ones(1), np.empty((0, 2)), np.empty(0), np.ones(2), generator=generator)
        for _ in range(60)
    ]
    x = np.concatenate([end for end in ends if end is not None])
    assert abs((x[:, 0] < 0.5).mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / len(x))


def test_designs_of_mixtures_fill_them(seed: int) -> None:
    space = Space(a=Real(0, 1), b=Real(0, 1), c=Real(0, 1), constraints=["a + b + c = 1"])
    x = np.array([[s[n] for n in "abc"] for s in design(space, 30, seed)])
    assert (x.max(axis=0) > 0.6).all() and (x.min(axis=0) < 0.1).all()
    gaps = np.linalg.norm(x[:, None] - x[None], axis=-1) + 9 * np.eye(30)
    # Random points of this number come about 0.01 close somewhere; the farthest of eight keep apart.
    assert gaps.min() > 0.03


def test_numbers_in_use_are_chosen_at_random(seed: int) -> None:
    names = "abcde"
    space = Space(**{n: Real(0, 1) for n in names}, constraints=["at most 3 of a, b, c, d, e", "a + b + c + d + e = 1"])
    found = design(space, 40, seed)
    active = [tuple(n for n in names if s[n]) for s in found]
    assert {len(a) for a in active} == {1, 2, 3}
    assert all(any(n in a for a in active) for n in names) and len(set(active)) > 8


def test_large_spaces_cost_no_more(seed: int) -> None:
    categories = {f"c{i}": Categorical([f"v{j}" for j in range(20)]) for i in range(10)}
    tracemalloc.start()
    started = time.perf_counter()
    space = Space(**categories, n=Integer(1, 10**9), m=Integer(0, 10**9), constraints=["n + m <= 100000000"])
    found = design(space, 5, seed)
    point = nearest(space, space.coordinates(found[0]), fixed={"c0": "v7"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert point is not None and point["c0"] == "v7" and all(space.violations(s) == [] for s in (*found, point))
    assert len({s["n"] for s in found}) == 5
    assert space.num_settings is not None and space.num_settings > 20**10
    assert set(space.discrete) == set() and len(space.categorical) == 10
    assert peak < 30e6 and time.perf_counter() - started < 20


@pytest.mark.parametrize(("low", "high", "step"), [(0.1, 0.25, None), (0.15, 0.18, 0.001), (0.16, 0.17, None)])
def test_designs_of_narrow_mixtures_spread(low: float, high: float, step: float | None, seed: int) -> None:
    """Six ingredients that sum to one and may vary little: a design covers what is left, and on average its middle."""
    space = Space(**{n: Real(low, high, step=step) for n in "abcdef"}, constraints=["a + b + c + d + e + f = 1"])
    least, most = max(low, 1 - 5 * high), min(high, 1 - 5 * low)  # what the sum leaves of each range
    rows = torch.tensor([list(s.values()) for s in design(space, 49, seed)], dtype=torch.double)
    shares = (rows - least) / (most - least)
    assert len(torch.unique(rows, dim=0)) == 49 and (rows.sum(-1) - 1).abs().max() < 1e-9
    assert bool((shares.amax(0) - shares.amin(0) > 0.75).all())
    assert bool((shares[:7].amax(0) - shares[:7].amin(0) > 0.25).all())
    # By symmetry each ingredient has the mean 1/6 in the uniform distribution over the polytope.
    error = shares.std(0) / math.sqrt(49)
    assert bool(((shares.mean(0) - (1 / 6 - least) / (most - least)).abs() < 5 * error).all())


@pytest.mark.parametrize(
    ("tops", "step", "most", "extra", "coordinates"),
    [
        ([0.5, 1, 1], 0.05, 2, "2 c + 3 a <= 1.5", [0.2500858002951093, 0.9, 0.13012604024812835]),
        (
            [0.8, 0.6, 1, 1, 0.6, 0.8, 0.8, 1], 0.025, 4, "2 c + 3 a <= 1",
            [0.7224364059299216, 0.8, 0.8197909593038577, 0.5, 0.8725290752235617, 0.07360687616538142, 0.2,
             0.6383518602802147],
        ),
    ],
)  # fmt: skip
def test_costs_without_a_common_unit(
    tops: list[float], step: float, most: int, extra: str, coordinates: list[float]
) -> None:
    """Programs that HiGHS gives up ("Solve error") where costs are multiples of each other, as grids make them."""
    names = "abcdefgh"[: len(tops)]
    space = Space(
        **{n: Real(0, top, step=step) for n, top in zip(names, tops, strict=True)},
        constraints=[f"{' + '.join(names)} = 1", f"at most {most} of {', '.join(names)}", extra],
    )
    at = point(*coordinates)
    found = nearest(space, at)
    assert found is not None and space.violations(found) == []
    if len(tops) == 3:
        best = min(float((space.coordinates(s) - at).abs().sum()) for s in every_setting(space, {}))
        assert float((space.coordinates(found) - at).abs().sum()) == pytest.approx(best, abs=1e-9)
