"""Newton's method on the observed log-likelihood, safeguarded, for a whole batch of fits at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._information import spectrum
from .objective import Objective
from .state import State

# Relative to the largest eigenvalue: below this an eigenvalue is rounding, and says nothing about the direction.
_ROUNDING = 1e-12
_CURVED = 1e-8  # relative too: a direction of less positive curvature is flat
_TRIES, _SHRINK, _GROW = 6, 0.2, 8.0
_DAMPING, _SMALLEST, _LARGEST = 1e-3, 1e-9, 1e9


def run_newton(
    objective: Objective,
    theta: Tensor,
    *,
    max_iter: int = 200,
    tol: float = 1e-6,
    floor: Tensor | None = None,
    damping: float = 1e-3,
    callback: Callable[[int, int, State], bool] | None = None,
) -> State:
    r"""Maximise by Newton steps on the observed log-likelihood.

    With g the gradient and :math:`-H = V \Lambda V^\top` in scaled coordinates (of unit curvature), the step is
    :math:`V (|\Lambda| + \lambda)^{-1} V^\top g`: an ascent direction at saddles too (Levenberg 1944; Nocedal & Wright
    2006, section 3.4). It is taken where the value does not fall, otherwise the damping grows. An entry has converged
    when its Newton decrement :math:`\delta = g^\top |H|^{-1} g`, twice the gain that a full step promises in nats, is
    below `tol` and no step along a direction of positive curvature gains that much. Entries leave the batch as they
    end.

    Args:
        objective: What is maximised; batch entry b belongs to its data set b (or all to the one there is).
        theta: Starts, ``B x P``.
        max_iter: Most iterations.
        tol: Bound of the decrement.
        floor: Log variances below this, ``B|1 x m``, are those of an expert that fits few rows exactly, where the
            likelihood has no bound: the entry ends as degenerate. None: none are.
        damping: First damping, relative to a thousandth of the largest curvature: small for bold steps; large to follow
            the slope to the nearest maximum.
        callback: Called as ``callback(done, total, state)`` after every iteration; True stops.

    Returns:
        The state of every entry; an entry that no step improves any more ends where it is.
    """
    state = State.of(theta, objective.value(theta))
    if floor is not None:
        state.degenerate = _collapsed(objective, theta, floor)
    active = ((state.value > -torch.inf) & ~state.degenerate).nonzero().squeeze(-1)
    here, damped = objective.take(_some(active, len(theta))), theta.new_full((len(active),), damping)
    now = state.take(active)
    for step in range(max_iter):
        if len(active) == 0:
            break
        value, gradient, hessian = here.derivatives(now.theta)
        values, vectors, scale, fine = _spectrum(hessian)
        fine = fine & gradient.isfinite().all(-1)
        gradient = torch.where(fine.unsqueeze(-1), gradient, 0.0)
        slope = (vectors.mT @ (gradient * scale).unsqueeze(-1)).squeeze(-1)
        top = values.abs().amax(-1, keepdim=True)
        decrement = (slope.square() / (values.abs() + _ROUNDING * top)).sum(-1)
        now.value, now.decrement = value, decrement.masked_fill(~fine, torch.inf)
        now.converged = now.decrement < tol
        saddle = now.converged & (values[..., 0] < -_CURVED * top.squeeze(-1))  # eigenvalues of -H are sorted
        if saddle.any():
            _escape(here, now, saddle.nonzero().squeeze(-1), hessian, tol)
        # Where an entry has escaped, its derivatives are those of another place.
        still = ~now.converged & ~saddle & fine
        damped, stuck = _step(here, now, still, slope, values, vectors, scale, top, damped)
        now.num_iter = now.num_iter + (~now.converged).long()
        if floor is not None:
            local = floor if len(floor) == 1 else floor[active]
            now.degenerate = now.degenerate | _collapsed(objective, now.theta, local)
        state.put(active, now)
        if callback is not None and callback(step + 1, max_iter, state):
            break
        left = ~(now.converged | stuck | now.degenerate | ~fine)
        if not left.all():
            kept = left.nonzero().squeeze(-1)
            active, damped, now = active[kept], damped[kept], now.take(kept)
            here = objective.take(_some(active, len(theta)))
    return state


def _collapsed(objective: Objective, theta: Tensor, floor: Tensor) -> Tensor:
    if not isinstance(objective.model.variance, str):  # known, however small
        return torch.zeros(len(theta), dtype=torch.bool, device=theta.device)
    scales = objective.model.split(theta)[2]  # B K b, none for classes
    # EM holds variances at the floor, where they are as good as below it.
    return (scales < floor[:, : scales.shape[-1]].unsqueeze(-2) + 0.01).flatten(1).any(-1)


def newton_decrement(gradient: Tensor, hessian: Tensor) -> Tensor:
    r""":math:`g^\top |H|^{-1} g`, ``B``: twice the gain of a full Newton step, in nats; infinite without finite H."""
    values, vectors, scale, fine = _spectrum(hessian)
    slope = (vectors.mT @ (gradient * scale).unsqueeze(-1)).squeeze(-1)
    decrement = (slope.square() / (values.abs() + _ROUNDING * values.abs().amax(-1, keepdim=True))).sum(-1)
    return torch.where(fine & decrement.isfinite(), decrement, torch.inf)


def is_concave(hessian: Tensor) -> Tensor:
    """Whether Hessians are negative definite beyond rounding, ``B``."""
    values, _, _, fine = _spectrum(hessian)
    return fine & (values[..., 0] > 1e-10 * values[..., -1])


def _some(index: Tensor, size: int) -> Tensor | None:
    """The index, or None where it is everything."""
    return None if len(index) == size else index


def _escape(here: Objective, now: State, index: Tensor, hessian: Tensor, tol: float) -> None:
    """Move entries at a saddle along their direction of positive curvature; where that gains nothing, it is flat.

    Curvatures of gates that separate the data are rounding errors of sums that cancel: steps tell, not their signs.
    """
    some, theta = here.take(_some(index, len(now.theta))), now.theta[index]
    best, found = now.value[index] + 0.5 * tol, theta.clone()
    # In units of complete data: at a saddle the curvature along a coordinate may be zero, which is no unit.
    shares, directions = spectrum(-hessian[index], some.complete_information(theta))
    steepness = shares[..., :1].abs().clamp_min(_CURVED).sqrt()
    reach = directions[..., 0] / steepness  # promises half a nat
    for length in (3.0, -3.0, 1.0, -1.0, 0.3, -0.3, 0.1, -0.1, 0.03, -0.03):
        candidate = here.full(here.free(theta) + length * reach, theta)
        value = some.value(candidate)
        better = value > best
        best = torch.where(better, value, best)
        found[better] = candidate[better]
    moved = (found != theta).any(-1)
    now.theta[index], now.converged[index] = found, ~moved
    now.value[index[moved]] = best[moved]


def _spectrum(hessian: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eigenvalues and eigenvectors of -H scaled to a unit diagonal, the scale ``B x F``, and where H is finite.

    The units of the inputs and outcomes then matter neither for what counts as singular nor for the damping. An H that
    is not finite, of outcomes whose squares overflow, has the spectrum of the identity.
    """
    fine = hessian.isfinite().flatten(1).all(-1)
    curvature = torch.where(fine[:, None, None], -hessian, torch.eye(hessian.shape[-1]).to(hessian))
    size = curvature.diagonal(dim1=-2, dim2=-1).abs()
    floor = torch.finfo(size.dtype).tiny ** 0.5
    scale = torch.where(size > floor, size.clamp_min(floor).rsqrt(), 1.0)
    values, vectors = torch.linalg.eigh(scale.unsqueeze(-1) * curvature * scale.unsqueeze(-2))
    return values, vectors, scale, fine


def _step(
    here: Objective,
    now: State,
    moving: Tensor,
    slope: Tensor,
    values: Tensor,
    vectors: Tensor,
    scale: Tensor,
    top: Tensor,
    damping: Tensor,
) -> tuple[Tensor, Tensor]:
    """Move entries by the first damped step that does not lose; their damping, and which of them cannot move."""
    free, before = here.free(now.theta), now.value.clone()
    damping, left = damping.clone(), moving.clone()
    for _ in range(_TRIES):
        index = left.nonzero().squeeze(-1)
        if len(index) == 0:
            break
        size = values[index].abs() + (damping[index].unsqueeze(-1) * _DAMPING + _ROUNDING) * top[index]
        direction = (vectors[index] @ (slope[index] / size).unsqueeze(-1)).squeeze(-1) * scale[index]
        candidate = here.full(free[index] + direction, now.theta[index])
        reached = here.take(_some(index, len(left))).value(candidate)
        good = reached >= before[index]
        taken = index[good]
        now.theta[taken], now.value[taken] = candidate[good], reached[good]
        damping[taken] = (damping[taken] * _SHRINK).clamp_min(_SMALLEST)
        damping[index[~good]] *= _GROW
        left[taken] = False
    return damping, left & (damping > _LARGEST)
