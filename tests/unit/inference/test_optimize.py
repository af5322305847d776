"""Gradient ascent of many starts, and the climb from one."""

from __future__ import annotations

import torch
from torch import Tensor

from probnn import random as rnd
from probnn.inference.optimize import maximize, refine

DOUBLE = torch.double


def bowl(z: Tensor) -> tuple[Tensor, Tensor]:
    """A quadratic of very different curvatures with its top at (1, 2, 3)."""
    at, curvature = z - torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE), torch.tensor([1.0, 100.0, 0.1], dtype=DOUBLE)
    return -0.5 * (curvature * at.square()).sum(-1), -curvature * at


def banana(z: Tensor) -> tuple[Tensor, Tensor]:
    """Minus Rosenbrock's function: a curved valley with its top at (1, 1)."""
    x, y = z.unbind(-1)
    value = -((1 - x) ** 2) - 100 * (y - x * x) ** 2
    return value, torch.stack([2 * (1 - x) + 400 * x * (y - x * x), -200 * (y - x * x)], -1)


def test_rows_climb_to_the_top_without_seeing_each_other(seed: int) -> None:
    z = 2 * rnd.normal((2, 3, 3), generator=rnd.generator_from(seed), dtype=DOUBLE)
    before = z.clone()
    best, trace = maximize(bowl, z, steps=600, lr=0.1)
    assert torch.equal(z, before) and trace.shape == (601, 2, 3)
    torch.testing.assert_close(best, torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE).expand(2, 3, 3), rtol=0, atol=1e-3)
    alone, _ = maximize(bowl, z[1, 2], steps=600, lr=0.1)
    torch.testing.assert_close(alone, best[1, 2], rtol=0, atol=1e-12)
    assert torch.equal(bowl(best)[0], trace.max(0).values)  # the best point seen, not the last


def test_held_coordinates_and_stopping() -> None:
    z, free = torch.zeros(4, 3, dtype=DOUBLE), torch.tensor([True, False, True])
    best, _ = maximize(bowl, z, steps=50, lr=0.1, free=free)
    assert (best[:, 1] == 0).all() and (best[:, [0, 2]] != 0).all()
    seen: list[int] = []
    _, trace = maximize(bowl, z, steps=50, lr=0.1, callback=lambda step, *_: seen.append(step) or step == 7)
    assert seen == list(range(8)) and len(trace) == 8


def test_rows_that_leave_the_domain_stay_at_their_best() -> None:
    def barrier(z: Tensor) -> tuple[Tensor, Tensor]:  # rises up to a wall at 1, NaN behind it
        wall = z[..., 0] > 1
        return torch.where(wall, torch.nan, z[..., 0]), torch.ones_like(z)

    best, trace = maximize(barrier, torch.tensor([[0.0], [-100.0], [2.0]], dtype=DOUBLE), steps=40, lr=0.3)
    assert 0.5 < best[0].item() <= 1 and trace[-1, 0].isnan()
    assert best[1].item() > -100 and best[2].item() == 2  # never finite: left where it was


def test_refine_reaches_the_top_of_a_curved_valley() -> None:
    start = torch.tensor([-1.2, 1.0], dtype=DOUBLE)
    z, used, converged = refine(banana, start, lambda at: lambda g: g / 100, steps=300, tolerance=1e-14)
    assert converged and used < 200
    torch.testing.assert_close(z, torch.ones(2, dtype=DOUBLE), rtol=0, atol=1e-6)
    _, _, converged = refine(banana, start, lambda at: lambda g: g / 100, steps=3, tolerance=1e-14)
    assert not converged


def test_refine_takes_the_whole_newton_step_of_a_quadratic_and_holds_coordinates() -> None:
    inverse = torch.tensor([1.0, 0.01, 0.0], dtype=DOUBLE)
    z, used, converged = refine(
        bowl, torch.zeros(3, dtype=DOUBLE), lambda at: lambda g: inverse * g, steps=5, tolerance=1e-12
    )
    assert converged and used == 2
    torch.testing.assert_close(z, torch.tensor([1.0, 2.0, 0.0], dtype=DOUBLE), rtol=0, atol=1e-12)
