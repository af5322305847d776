"""The loop around a map that climbs: stopping rules, and entries that leave the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .. import validation
from ..errors import UnsupportedError
from .gates import is_sparse
from .newton import newton_decrement
from .objective import Objective
from .state import State

Callback = Callable[[int, int, State], bool]

CRITERIA = ("decrement", "aitken", "relative")
# Iterations between two evaluations of the Hessian for the decrement.
_EVERY = 10


class Climb(Protocol):
    """A map of a batch that does not lower the value."""

    @property
    def objective(self) -> Objective:
        """What is maximised."""

    def take(self, which: Tensor) -> Climb:
        """The map of some entries."""

    def step(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where it leads ``B x P``, the value where it began ``B``, whether a floor was met ``B``."""


def iterate(
    climb: Climb,
    theta: Tensor,
    *,
    max_iter: int,
    tol: float,
    criterion: str,
    callback: Callback | None = None,
    where: str = "moe.run_em",
) -> State:
    """Apply a map until a stopping rule is met; see :func:`probnn.moe.em.run_em`."""
    validation.choice(where, "criterion", criterion, CRITERIA)
    _check(where, climb.objective, criterion)
    state = State.of(theta, torch.full_like(theta[:, 0], -torch.inf))
    active = torch.arange(len(theta))
    now, here = theta.clone(), climb
    gains = theta.new_full((3, len(theta)), torch.inf)  # the last one first
    last = torch.full_like(gains[0], torch.nan)
    met = torch.zeros(len(theta), dtype=torch.bool)
    finished = False
    for t in range(max_iter):
        new, value, floor = here.step(now)
        gains = torch.stack([value - last, gains[0], gains[1]])
        # An entry stays at a floor that it meets twice in a row: there the likelihood has no bound.
        failed = value.isneginf() | value.isnan() | (met & floor)
        done = failed.clone()
        if t:
            done = done | _over(here.objective, now, value, gains, tol, criterion, t, state, active)
        # The step from here is not taken where an entry is done: its value is known here.
        some = active[done]
        state.theta[some], state.value[some] = now[done], value[done]
        state.converged[some], state.degenerate[some] = ~failed[done], met[done]
        moving = ~done
        now, last, met = new, value, floor
        # Until the end the value is that before the last step: the one there is not known yet.
        state.theta[active[moving]], state.value[active[moving]] = now[moving], value[moving]
        state.num_iter[active[moving]] = t + 1
        state.degenerate[active[moving]] = met[moving]
        if done.any():
            kept = moving.nonzero().squeeze(-1)
            active, now, last, met, gains = active[kept], now[kept], last[kept], met[kept], gains[:, kept]
            if len(active) == 0:
                finished = True
                break
            here = here.take(kept)
        if callback is not None and callback(t + 1, max_iter, state):
            break
    if not finished and len(active):
        state.value[active] = here.objective.value(now)
    return state


def _over(
    objective: Objective,
    theta: Tensor,
    value: Tensor,
    gains: Tensor,
    tol: float,
    criterion: str,
    t: int,
    state: State,
    active: Tensor,
) -> Tensor:
    """Whether entries have met the stopping rule at theta, which t iterations have led to."""
    if criterion == "relative":
        return gains[0].abs() <= tol * value.abs()
    if criterion == "aitken":
        if t < 3:
            return torch.zeros_like(value, dtype=torch.bool)
        # Gains of a slow climb shrink by a constant factor; those that grow promise no end. One small gain may be
        # chance where steps are extrapolated: two forecasts in a row must agree.
        ratio = (gains[:2] / gains[1:]).nan_to_num(0.0).clamp_min(0.0)
        left = torch.where(ratio < 1, gains[:2].clamp_min(0.0) * ratio / (1 - ratio), torch.inf)
        return (left < tol).all(0) & (gains[0] < tol)
    if t % _EVERY:
        return torch.zeros_like(value, dtype=torch.bool)
    _, gradient, hessian = objective.derivatives(theta)
    decrement = newton_decrement(gradient, hessian)
    state.decrement[active] = decrement
    return decrement < tol


def _check(where: str, objective: Objective, criterion: str) -> None:
    gate = objective.model.gate
    if criterion == "decrement" and (gate.joint or is_sparse(gate, objective.model.num_experts)):
        raise UnsupportedError(
            f"{where}: there is no closed-form Hessian of a {type(gate).__name__} for criterion='decrement'; use "
            "criterion='aitken'"
        )
