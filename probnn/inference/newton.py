"""Damped Gauss-Newton steps to a mode (Levenberg 1944, Marquardt 1963)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .local import LocalModel
from .optimize import ValueAndGrad


@dataclass(frozen=True, eq=False)
class Climb:
    """Where Gauss-Newton steps ended.

    Args:
        z: The point.
        model: The local model there.
        reached: Whether a further step would add less than the tolerance.
        steps: Steps taken.
        gradients: Densities evaluated.
    """

    z: Tensor
    model: LocalModel
    reached: bool
    steps: int
    gradients: int


class Step:
    """The Gauss-Newton step of a local model, in the coordinates u in which its prior is standard normal.

    Args:
        model: The local model.
        slope: Gradient of the log density in all coordinates, at the model's point.
    """

    def __init__(self, model: LocalModel, slope: Tensor):
        slope = slope[: model.theta.shape[0]][model.chosen]
        self.gradient, (self._basis, self._gains) = model.prior.lower(slope), model.informed()
        self._along = self._basis.mT @ self.gradient
        self._across = self.gradient - self._basis @ self._along

    def promise(self) -> Tensor:
        """What the undamped step adds to a quadratic log density."""
        return 0.5 * (self._across.square().sum() + (self._along.square() / (1 + self._gains)).sum())

    def direction(self, damping: float) -> Tensor:
        """The step."""
        return self._across / (1 + damping) + self._basis @ (self._along / (1 + damping + self._gains))

    def promised(self, u: Tensor) -> Tensor:
        """What the step u adds to a quadratic log density."""
        return self.gradient @ u - 0.5 * (u.square().sum() + ((u @ self._basis).square() * self._gains).sum())


@torch.no_grad()
def ascend(
    value_and_grad: ValueAndGrad, model_at: Callable[[Tensor], LocalModel], z: Tensor, *, steps: int, tolerance: float
) -> Climb:
    """Climb to a mode over the coordinates of a local model; the others stay.

    Args:
        value_and_grad: The log density and its gradient at a point of length `size`.
        model_at: The local model at a point.
        z: The start.
        steps: Largest number of steps; at least one is taken, which is exact where the function is linear.
        tolerance: The mode is reached where a step promises to add less, in nats.
    """
    damping, taken, used, (value, slope) = 0.0, 0, 0, value_and_grad(z)
    while True:
        model = model_at(z)
        newton = Step(model, slope)
        reached = bool(newton.promise() < tolerance)
        if (taken and reached) or taken == steps:
            return Climb(z, model, reached, taken, used)
        # The slack is rounding: at the mode no step is seen to gain.
        slack = 16 * torch.finfo(z.dtype).eps * value.abs()
        while True:
            u = newton.direction(damping)
            moved = z.clone()
            moved[: model.theta.shape[0]][model.chosen] += model.prior.lift(u)
            new, new_slope = value_and_grad(moved)
            used += 1
            promised = newton.promised(u)
            if new - value > 1e-3 * promised - slack and new_slope.isfinite().all():
                break
            damping = max(4 * damping, 1e-3)
            if damping > 1e12:
                return Climb(z, model, False, taken, used)
        share = (new - value + slack) / (promised + slack)
        if share > 0.75:
            damping = damping / 3 if damping > 1e-6 else 0.0
        elif share < 0.25:
            damping = max(2 * damping, 1e-3)
        z, value, slope = moved, new, new_slope
        taken += 1
