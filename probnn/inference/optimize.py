"""Vectorised gradient ascent: many starts in one batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

ValueAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]


class Adam:
    r"""Adam (Kingma and Ba, 2015, arXiv:1412.6980) with a step size that decays to zero along a half cosine.

    Every coordinate has moments of its own, so rows of a batch do not see each other.

    Args:
        z: The point to start from; it is copied.
        steps: Length of the schedule.
        lr: First step size: about the distance a coordinate moves in one step.
    """

    def __init__(self, z: Tensor, steps: int, lr: float, *, betas: tuple[float, float] = (0.9, 0.999)):
        self.z, self.steps, self.lr, self.betas = z.detach().clone(), steps, lr, betas
        self._mean, self._square = torch.zeros_like(self.z), torch.zeros_like(self.z)
        self._taken = 0

    def ascend(self, gradient: Tensor) -> Tensor:
        """One step up the gradient; returns the new point (the tensor is changed in place)."""
        (first, second), eps = self.betas, 1e-8
        rate = 0.5 * self.lr * (1 + math.cos(math.pi * self._taken / self.steps))
        self._taken += 1
        self._mean.lerp_(gradient, 1 - first)
        self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        spread = (self._square / (1 - second**self._taken)).sqrt_().add_(eps)
        self.z.addcdiv_(self._mean, spread, value=rate / (1 - first**self._taken))
        return self.z


@torch.no_grad()
def maximize(
    value_and_grad: ValueAndGrad,
    z: Tensor,
    *,
    steps: int,
    lr: float,
    free: Tensor | None = None,
    callback: Callable[[int, Tensor, Tensor], object] | None = None,
) -> tuple[Tensor, Tensor]:
    """Climb a smooth function from many starts at once, with :class:`Adam`.

    Args:
        value_and_grad: Maps points ``... x size`` to values ``...`` and gradients ``... x size``
            (such as `Target.value_and_grad`); rows must not depend on each other.
        z: Starts, ``... x size``.
        steps: Number of steps.
        lr: First step size; it decays to zero.
        free: Boolean mask that broadcasts to z: coordinates that may move. None: all.
        callback: Called as ``callback(step, z, value)`` before step 0, 1, ...; return True to stop.

    Returns:
        The best point of each row, ``... x size``, and the trace of values, ``taken + 1 x ...``. A row
        whose value or gradient stops being finite stays where it is from then on.
    """
    adam = Adam(z, steps, lr)
    best, best_value = adam.z.clone(), adam.z.new_full(z.shape[:-1], -torch.inf)
    trace = []
    for step in range(steps + 1):
        value, gradient = value_and_grad(adam.z)
        fine = value.isfinite() & gradient.isfinite().all(-1)
        trace.append(value.clone())
        better = fine & (value > best_value)
        best_value = torch.where(better, value, best_value)
        best = torch.where(better.unsqueeze(-1), adam.z, best)
        if step == steps or (callback is not None and callback(step, adam.z, value) is True):
            break
        movable = fine.unsqueeze(-1) if free is None else fine.unsqueeze(-1) & free
        # Zeros leave a coordinate where it is only while its moments are zero too, hence the restore.
        before = adam.z.clone()
        adam.ascend(torch.where(movable, gradient, 0.0))
        torch.where(movable, adam.z, before, out=adam.z)
    return best, torch.stack(trace)


@torch.no_grad()
def refine(
    value_and_grad: ValueAndGrad,
    z: Tensor,
    metric: Callable[[Tensor], Callable[[Tensor], Tensor]],
    *,
    steps: int,
    tolerance: float,
    memory: int = 25,
) -> tuple[Tensor, int, bool]:
    r"""Climb from one point to the top by L-BFGS in a changing metric (Nocedal and Wright 2006, chapter 7).

    The recursion for the inverse Hessian starts from the metric at a recent point and learns from
    the last steps what that leaves out.

    Args:
        value_and_grad: As in :func:`maximize`.
        z: The start, of length `size`.
        metric: Maps a point to the map from a gradient g to H g; zeros of H hold coordinates.
        steps: Largest number of steps.
        tolerance: Converged once :math:`g^\top B g / 2`, what a quasi-Newton step with the inverse
            Hessian B promises, is below this; ten steps are needed before B is believed.
        memory: Steps remembered, and steps after which the metric is taken anew.

    Returns:
        The point, the gradients used, and whether the climb converged.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    (value, gradient), used, apply = value_and_grad(z), 1, metric(z)
    for step in range(steps + 1):
        direction = _newton_direction(gradient, pairs, apply)
        promise = 0.5 * gradient @ direction
        if promise < tolerance * (1.0 if len(pairs) >= min(10, memory) else 1e-6):
            return z, used, True
        if step == steps:
            break
        if step % memory == memory - 1:
            apply = metric(z)
        found = None
        while found is None:
            length = 1.0
            for _ in range(40):
                moved = z + length * direction
                new = value_and_grad(moved)
                used += 1
                # The slack is rounding: at the top no step is seen to gain.
                slack = 16 * torch.finfo(z.dtype).eps * value.abs()
                if new[0] >= value + 2e-4 * length * promise - slack and new[1].isfinite().all():
                    found = new
                    break
                length /= 2
            if found is None and not pairs:
                return z, used, False
            if found is None:
                pairs, apply = [], metric(z)
                direction = apply(gradient)
                promise = 0.5 * gradient @ direction
        change, bend = moved - z, gradient - found[1]
        if change @ bend > 1e-8 * change.norm() * bend.norm():
            pairs = [*pairs, (change, bend)][-memory:]
        z, value, gradient = moved, *found
    return z, used, False


def _newton_direction(
    gradient: Tensor, pairs: list[tuple[Tensor, Tensor]], apply: Callable[[Tensor], Tensor]
) -> Tensor:
    """The two-loop recursion: the inverse Hessian of the remembered steps times the gradient."""
    q, weights = gradient, []
    for change, bend in reversed(pairs):
        weight = (change @ q) / (change @ bend)
        weights.append(weight)
        q = q - weight * bend
    direction = apply(q)
    for (change, bend), weight in zip(pairs, reversed(weights), strict=True):
        direction = direction + (weight - (bend @ direction) / (change @ bend)) * change
    return direction
