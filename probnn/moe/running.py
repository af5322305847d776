"""Running an optimiser over all starts of some replicates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..progress import Progress
from . import _checks
from .accelerate import run_squarem
from .data import Data
from .em import run_em
from .gates import SoftmaxGate, is_sparse
from .gradient import run_lbfgs
from .iteration import Callback
from .model import GaussianMoE
from .newton import is_concave, run_newton
from .objective import Objective
from .penalty import Penalty
from .state import State
from .topk import run_topk

# First damping of Newton's steps.
_BOLD, _CAREFUL = 1e-3, 1e2


@dataclass(frozen=True)
class Runner:
    """Runs the optimiser over the starts of a group of replicates.

    Args:
        model: The family.
        penalty: Added to the log-likelihood.
        method: Of :data:`probnn.moe.fitting.METHODS`.
        criterion: The stopping rule.
        tol: Its bound.
        max_iter: Most iterations.
        num_warmup: EM iterations before Newton, increasing.
        gate_step: How EM moves the gate.
        bar: Advances as climbs end; its total counts them all.
    """

    model: GaussianMoE
    penalty: Penalty
    method: str
    criterion: str
    tol: float
    max_iter: int
    num_warmup: tuple[int, ...]
    gate_step: str
    bar: Progress

    def __call__(self, data: Data, points: Tensor) -> State:
        """Where the climbs from ``R x S x P`` end, as a batch of R S."""
        R, S, P = points.shape
        shared = data.num_replicates == 1
        data = data if shared else data.take(torch.arange(R).repeat_interleave(S))
        objective, watch = Objective(self.model, data, self.penalty), _Watch(self.bar)
        state = self._run(objective, points.reshape(R * S, P), watch)
        watch.ended(R * S)
        return state

    def _run(self, objective: Objective, theta: Tensor, watch: Callback) -> State:
        settings: dict[str, Any] = {"max_iter": self.max_iter, "tol": self.tol, "callback": watch}
        if is_sparse(self.model.gate, self.model.num_experts):
            return self._sparse(objective, theta, settings)
        if self.method == "em":
            return run_em(objective, theta, criterion=self.criterion, gate=self.gate_step, **settings)
        if self.method == "squarem":
            return run_squarem(objective, theta, criterion=self.criterion, gate=self.gate_step, **settings)
        if self.method == "lbfgs":
            return run_lbfgs(objective, theta, **settings)
        floor = _checks.log_variance_floor(objective.data)
        best = State.of(theta, torch.full_like(theta[:, 0], -math.inf))
        left, done = torch.arange(len(theta)), 0
        for count in self.num_warmup:
            here = objective.take(None if len(left) == len(theta) else left)
            warm, moved = self._warmed(here, theta[left], done, count)
            theta[left] = warm
            left, done = left[moved], count
            here = objective.take(None if len(left) == len(theta) else left)
            local = floor if len(floor) == 1 else floor[left]
            # The first run may be bold; later ones are to find the maximum that EM is on its way to.
            damping = _CAREFUL if count > self.num_warmup[0] else _BOLD
            state = run_newton(here, theta[left], floor=local, damping=damping, **settings)
            _keep_better(best, left, state)
        return best

    def _sparse(self, objective: Objective, theta: Tensor, settings: dict[str, Any]) -> State:
        """From the starts, and where ranks leave several experts active from the dense gate's maxima as well."""
        state, gate = run_topk(objective, theta, **settings), self.model.gate
        if gate.active > 1:  # type: ignore[attr-defined]  # a sparse gate has it
            dense = replace(self.model, gate=SoftmaxGate(gate.temperature))  # type: ignore[attr-defined]
            runner = replace(self, model=dense, method="newton", criterion="decrement", max_iter=200)
            there = runner._run(Objective(dense, objective.data, self.penalty), theta, lambda *_: False)
            other = run_topk(objective, there.theta, **settings)
            _keep_better(state, torch.arange(len(theta)), other)
        return state

    def _warmed(self, objective: Objective, theta: Tensor, done: int, count: int) -> tuple[Tensor, Tensor]:
        """theta after more EM iterations, from `done` to `count`, and the index of the entries that moved.

        Later iterations are for entries whose Hessian is not negative definite, and end as soon as it is.
        """
        theta, active = theta.clone(), torch.arange(len(theta))
        moved = active
        if done:
            moved = active = active[~is_concave(objective.derivatives(theta)[2])]
        while done < count and len(active):
            here = objective.take(None if len(active) == len(theta) else active)
            steps = count if done == 0 else min(10, count - done)
            climbed = run_em(here, theta[active], max_iter=steps, tol=1e-300, criterion="relative", gate=self.gate_step)
            theta[active] = climbed.theta
            done += steps
            if done < count:
                active = active[~is_concave(here.derivatives(theta[active])[2])]
        return theta, moved


class _Watch:
    """A callback that advances a bar by the climbs that have ended."""

    def __init__(self, bar: Progress):
        self._bar, self._count = bar, 0

    def __call__(self, done: int, total: int, state: State) -> bool:
        self.ended(int((state.converged | state.degenerate).sum()), iteration=done)
        return False

    def ended(self, count: int, **shown: Any) -> None:
        """So many have ended; a second round over some of them, which has fewer, adds none."""
        self._bar.update(max(count - self._count, 0), **shown)
        self._count = max(count, self._count)


def _keep_better(best: State, index: Tensor, state: State) -> None:
    """Put those entries of a state into `best[index]` that are better, or the first there."""
    old = best.value[index].masked_fill(best.degenerate[index], -math.inf)
    new = state.value.masked_fill(state.degenerate | state.value.isnan(), -math.inf)
    taken = (new > old) | best.value[index].isneginf()
    best.put(index[taken], state.take(taken.nonzero().squeeze(-1)))
