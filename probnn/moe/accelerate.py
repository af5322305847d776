"""SQUAREM: extrapolated EM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .em import EM, Step
from .iteration import Callback, iterate
from .objective import Objective
from .state import State


@dataclass(frozen=True, eq=False)
class Squarem:
    r"""Two EM iterations, then a step along a parabola through them, and an EM iteration from there.

    With :math:`r = M(\theta) - \theta` and :math:`v = M(M(\theta)) - M(\theta) - r` the point is
    :math:`\theta - 2\alpha r + \alpha^2 v`, :math:`\alpha = -\max(1, \|r\|/\|v\|)` (the scheme S3 of Varadhan & Roland
    2008), in the free coordinates. An entry takes it where the value there is not below that of the second EM iterate
    and no variance is at its floor; the others go on from the second EM iterate.

    Args:
        em: The EM map.
    """

    em: EM

    @property
    def objective(self) -> Objective:
        """What is maximised."""
        return self.em.objective

    def take(self, which: Tensor) -> Squarem:
        """The map of some batch entries."""
        return Squarem(self.em.take(which))

    def step(self, theta: Tensor) -> Step:
        """One cycle."""
        objective = self.objective
        first = self.em.step(theta)
        second = self.em.step(first.theta)
        start, one, two = (objective.free(x) for x in (theta, first.theta, second.theta))
        r = one - start
        v = two - one - r
        bend = v.norm(dim=-1, keepdim=True)
        alpha = torch.where(bend > 0, r.norm(dim=-1, keepdim=True) / bend, 1.0).clamp_min(1.0)
        far = start + 2 * alpha * r + alpha.square() * v
        candidate = objective.full(torch.where(far.isfinite(), far, two), second.theta)
        third = self.em.step(candidate)
        better = (third.value >= objective.value(second.theta)) & ~third.degenerate & third.theta.isfinite().all(-1)
        degenerate = torch.where(better, third.degenerate, second.degenerate)
        return Step(torch.where(better.unsqueeze(-1), third.theta, second.theta), first.value, degenerate)


def run_squarem(
    objective: Objective,
    theta: Tensor,
    *,
    max_iter: int = 1000,
    tol: float = 1e-6,
    criterion: str = "decrement",
    gate: str = "newton",
    callback: Callback | None = None,
) -> State:
    """Maximise by :class:`Squarem`.

    Args:
        objective: What is maximised; batch entry b belongs to its data set b, or all to the one there is.
        theta: Starts, ``B x P``.
        max_iter: Most cycles, of three EM iterations each.
        tol: Bound of the stopping rule.
        criterion: As in :func:`probnn.moe.em.run_em`.
        gate: As there.
        callback: Called as ``callback(done, total, state)`` after every cycle; True stops.

    Returns:
        The state of every entry; the value is never below that of the start, nor of the EM iterates on the way.

    Raises:
        UnsupportedError: As :func:`probnn.moe.em.run_em`.
    """
    climb = Squarem(EM.of(objective, gate))
    return iterate(
        climb, theta, max_iter=max_iter, tol=tol, criterion=criterion, callback=callback, where="moe.run_squarem"
    )
