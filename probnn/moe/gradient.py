"""L-BFGS for whole batches: gates and experts of every kind, networks too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._checks import log_variance_floor
from .iteration import Callback
from .objective import Objective
from .state import State

_MEMORY = 20
_ARMIJO = 1e-4
# A step shorter than this share of the direction says that the direction is useless.
_SHORTEST = 2.0**-30
# Steps over which the gain, too, must be small: what few remembered steps promise may be too little.
_TRUSTED = 20


@dataclass(eq=False)
class _Memory:
    """The last steps and changes of the gradient of every entry, ``B x _MEMORY x F``, newest last."""

    steps: Tensor
    bends: Tensor

    @staticmethod
    def empty(free: Tensor) -> _Memory:
        zeros = free.new_zeros(len(free), _MEMORY, free.shape[-1])
        return _Memory(zeros, zeros.clone())

    def take(self, index: Tensor) -> _Memory:
        return _Memory(self.steps[index], self.bends[index])

    def clear(self, index: Tensor) -> None:
        self.steps[index] = 0.0
        self.bends[index] = 0.0

    def add(self, index: Tensor, step: Tensor, bend: Tensor) -> Tensor:
        """Remember steps along which the gradient falls; which those are."""
        curved = (step * bend).sum(-1) > 1e-10 * step.norm(dim=-1) * bend.norm(dim=-1)
        some = index[curved]
        self.steps[some] = torch.cat([self.steps[some, 1:], step[curved].unsqueeze(1)], 1)
        self.bends[some] = torch.cat([self.bends[some, 1:], bend[curved].unsqueeze(1)], 1)
        return curved

    @property
    def count(self) -> Tensor:
        """Number of steps remembered, ``B``."""
        return (self.steps != 0).any(-1).sum(-1)

    def direction(self, gradient: Tensor) -> Tensor:
        """The inverse Hessian of the remembered steps times the gradient, by two loops; without steps: of length 1."""
        product = (self.steps * self.bends).sum(-1)  # B x memory
        inverse = torch.where(product > 0, 1 / torch.where(product > 0, product, 1.0), 0.0)
        q, weights = gradient, []
        for j in reversed(range(_MEMORY)):
            weight = inverse[:, j] * (self.steps[:, j] * q).sum(-1)
            weights.append(weight)
            q = q - weight.unsqueeze(-1) * self.bends[:, j]
        square = self.bends[:, -1].square().sum(-1)
        newest = product[:, -1] / torch.where(square > 0, square, 1.0)
        length = torch.where(square > 0, newest, 1 / gradient.norm(dim=-1).clamp_min(1.0))
        q = length.unsqueeze(-1) * q
        for j, weight in zip(range(_MEMORY), reversed(weights), strict=True):
            again = inverse[:, j] * (self.bends[:, j] * q).sum(-1)
            q = q + (weight - again).unsqueeze(-1) * self.steps[:, j]
        return q


def run_lbfgs(
    objective: Objective,
    theta: Tensor,
    *,
    max_iter: int = 2000,
    tol: float = 1e-6,
    callback: Callback | None = None,
) -> State:
    r"""Maximise by L-BFGS in the free coordinates (Nocedal & Wright 2006, section 7.2).

    Every entry has steps of its own, and halves them until they gain what the gradient promises; in one iteration
    every entry evaluates one point. It has converged when :math:`g^\top B g`, which is the decrement with the inverse
    Hessian B of the remembered steps, is below `tol`, and so is the gain of the last 20 steps; it ends unconverged
    where even the gradient's direction gains nothing, and as degenerate where a variance would go below its floor.

    Args:
        objective: What is maximised; batch entry b belongs to its data set b, or all to the one there is.
        theta: Starts, ``B x P``.
        max_iter: Most iterations.
        tol: Bound of the decrement.
        callback: Called as ``callback(done, total, state)`` after every iteration; True stops.

    Returns:
        The state of every entry; values are never below those of the starts.
    """
    value, gradient = objective.gradient(theta)
    state = State.of(theta, value)
    active = (value.isfinite() & gradient.isfinite().all(-1)).nonzero().squeeze(-1)
    floor = log_variance_floor(objective.data)[:, : objective.model.sizes[3]]
    if not isinstance(objective.model.variance, str):  # known, however small
        floor = torch.full_like(floor, -torch.inf)
    here, now, value, gradient = objective.take(active), theta[active], value[active], gradient[active]
    floor = floor if len(floor) == 1 else floor[active]
    memory = _Memory.empty(gradient)
    direction, length = memory.direction(gradient), torch.ones_like(value)
    past = torch.full_like(value, -torch.inf).repeat(_TRUSTED, 1)  # values before the last steps, the oldest first
    for t in range(max_iter):
        if len(active) == 0:
            break
        promise = (gradient * direction).sum(-1)
        state.decrement[active] = promise
        converged = (promise < tol) & (value - past[0] < tol) | (gradient == 0).all(-1)
        state.converged[active] = converged
        candidate = here.full(here.free(now) + (length * ~converged).unsqueeze(-1) * direction, now)
        reached, slope = here.gradient(candidate)
        # The slack is rounding: at the top no step is seen to gain.
        slack = 4 * torch.finfo(value.dtype).eps * value.abs()
        fine = reached.isfinite() & slope.isfinite().all(-1) & ~converged
        good = fine & (reached >= value + _ARMIJO * length * promise - slack)
        low = (here.model.split(candidate)[2] < floor.unsqueeze(-2)).flatten(1).any(-1)
        collapsed = good & low
        taken = (good & ~low).nonzero().squeeze(-1)
        step = here.free(candidate)[taken] - here.free(now)[taken]
        curved = memory.add(taken, step, gradient[taken] - slope[taken])
        past[:, taken] = torch.cat([past[1:, taken], value[taken].unsqueeze(0)])
        now[taken], value[taken], gradient[taken] = candidate[taken], reached[taken], slope[taken]
        state.theta[active], state.value[active] = now, value
        state.num_iter[active] += (~converged).long()
        state.degenerate[active] = collapsed
        direction[taken] = memory.take(taken).direction(gradient[taken])
        # Along a direction without curvature the step was too short.
        length[taken] = torch.where(curved, 1.0, 2 * length[taken])
        failed = ~good & ~converged
        length[failed] *= 0.5
        lost = failed & (length < _SHORTEST)
        stuck = lost & (memory.count == 0)
        again = (lost & ~stuck).nonzero().squeeze(-1)
        memory.clear(again)
        direction[again] = memory.take(again).direction(gradient[again])
        length[again] = 1.0
        if callback is not None and callback(t + 1, max_iter, state):
            break
        left = ~(converged | stuck | collapsed)
        if not left.all():
            kept = left.nonzero().squeeze(-1)
            active, here, memory = active[kept], here.take(kept), memory.take(kept)
            now, value, gradient, direction, length = (x[kept] for x in (now, value, gradient, direction, length))
            past = past[:, kept]
            floor = floor if len(floor) == 1 else floor[kept]
    return state
