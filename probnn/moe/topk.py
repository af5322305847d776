"""Sparse gates: estimation where the likelihood jumps as experts change ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UnsupportedError
from .changepoint import Segments, gate_of
from .data import Rows
from .em import EM
from .em_gate import gate_spread, standard_map
from .gates import TopKGate
from .iteration import Callback, iterate
from .objective import Objective
from .outcomes import GaussianOutcome
from .state import State

# A search over ranks ends when its steps are this share of the gate's largest coordinate.
_FINEST, _SHRINK = 2.0**-12, 0.7
# Most EM iterations after a search over ranks; with normal outcomes one is exact.
_POLISH = 50


def run_topk(
    objective: Objective,
    theta: Tensor,
    *,
    max_iter: int = 2000,
    tol: float = 1e-6,
    callback: Callback | None = None,
) -> State:
    r"""Maximise with a :class:`TopKGate`.

    With several active experts: EM whose gate steps hold the ranks and are taken as far as the observed likelihood,
    with new ranks, does not fall. With one active expert probabilities are 0 or 1 and the gate has no gradient; then

    - of one input, with normal outcomes and ranks by logit: experts own intervals, and boundaries are moved one at a
      time to the best of all splits of the sorted rows, every split with its two regressions. With two experts this
      is the exact maximum.
    - otherwise: a pattern search over the gate's coordinates (Hooke & Jeeves 1961) along random axes, the same in
      every call, each trial with its experts estimated anew.

    Args:
        objective: What is maximised; batch entry b belongs to its data set b, or all to the one there is.
        theta: Starts, ``B x P``.
        max_iter: Most iterations.
        tol: Bound of the gain that is left by extrapolation, in nats.
        callback: Called as ``callback(done, total, state)`` after every iteration; True stops.

    Returns:
        The state of every entry; values are never below those of the starts.

    Raises:
        UnsupportedError: The gate is not sparse, or experts are networks.
    """
    model = objective.model
    gate = model.gate
    if not isinstance(gate, TopKGate):
        raise UnsupportedError(f"moe.run_topk: needs a TopKGate, got {type(gate).__name__}; use run_em")
    em = EM.of(objective)
    if gate.active > 1 or model.num_experts == 1:
        return iterate(
            em, theta, max_iter=max_iter, tol=tol, criterion="aitken", callback=callback, where="moe.run_topk"
        )
    line = model.input_dim == 1 and gate.rank_by == "logit" and isinstance(model.outcome, GaussianOutcome)
    if line and not objective.data.streamed:
        return _polished(em, theta, _on_a_line(em, theta), tol)
    return _pattern(em, theta, max_iter, tol, callback)


def _polished(em: EM, theta: Tensor, candidate: Tensor, tol: float) -> State:
    """EM from the candidate, whose gate it hardly moves; entries that end below their start stay there."""
    state = iterate(em, candidate, max_iter=_POLISH, tol=tol, criterion="aitken", where="moe.run_topk")
    start = em.objective.value(theta)
    worse = ~(state.value >= start)
    state.theta[worse], state.value[worse], state.converged[worse] = theta[worse], start[worse], False
    return state


def _on_a_line(em: EM, theta: Tensor) -> Tensor:
    """theta with the best intervals that a search from its own finds."""
    objective = em.objective
    model, data = objective.model, objective.data
    gamma, beta, scales, tail = model.split(theta.clone())
    for b in range(len(theta)):
        X, Y = (x if len(x) == 1 else x[b : b + 1] for x in (data.X, data.Y))
        weights = data.weights
        weights = weights if weights is None or len(weights) == 1 else weights[b : b + 1]
        segments = Segments(objective, Rows(X, Y, weights), em.scaling.take(torch.tensor([b])))
        inner = _start(segments, gamma[b])
        if inner is not None:
            order = gamma[b, :, 0].argsort(stable=True)
            found = gate_of(segments.thresholds(segments.best(inner)[0]), order)
            if objective.penalty.gate_scale is not None:
                # Ranks do not depend on the scale of the scores: the penalty's maximum lies at weights of zero.
                found = found * (1e-6 * objective.penalty.gate_scale / found[:, 0].abs().max())
            gamma[b] = found
    return model.join(gamma, beta, scales, tail)


def _start(segments: Segments, gamma: Tensor) -> list[int] | None:
    """Boundaries of a gate's intervals (``K x 2``), or of equal ones where those leave an expert too few rows."""
    cuts, K = segments.cuts.tolist(), len(gamma)
    owner = (gamma[:, :1] * segments.x + gamma[:, 1:]).argmax(0)
    inner = [cut for cut in cuts if owner[cut] != owner[cut - 1]]
    if len(inner) == K - 1 and segments.partition(inner)[0].isfinite().all():
        return inner
    if len(cuts) < K - 1:
        return None
    places = (len(cuts) * torch.arange(1, K)) // K
    return [cuts[place] for place in places.tolist()]


def _pattern(em: EM, theta: Tensor, max_iter: int, tol: float, callback: Callback | None) -> State:
    """Pattern search over the gate, in coordinates of standardised inputs."""
    objective = em.objective
    model = objective.model
    state = State.of(theta, objective.value(theta))
    first = em.step(theta)
    state = _better(state, first.theta, objective.value(first.theta), first.degenerate)
    spread = gate_spread(objective).to(theta)
    change = standard_map(model.gate, em.scaling, model.sizes[0])
    standard = torch.linalg.solve(change.unsqueeze(1), model.split(theta)[0].unsqueeze(-1)).squeeze(-1)
    size = standard.abs().flatten(1).amax(-1)
    step = torch.where(size > 0, size, 1.0)
    finest = _FINEST * step
    active, stream = torch.arange(len(theta)), torch.Generator().manual_seed(0)
    for t in range(max_iter):
        if len(active) == 0:
            break
        # New axes in every sweep: on a ridge along none of them a search would come to a halt.
        axes = torch.randn(spread.shape[1], spread.shape[1], generator=stream, dtype=spread.dtype)
        axes = spread @ torch.linalg.qr(axes).Q
        here, now = em.take(active), state.take(active)
        local = change if len(change) == 1 else change[active]
        before = now.value.clone()
        for f in range(axes.shape[1]):
            for sign in (1.0, -1.0):
                gamma, beta, scales, tail = model.split(now.theta)
                move = (sign * step[active]).unsqueeze(-1) * axes[:, f]
                moved = gamma + move.view_as(gamma) @ local.mT
                trial = here.step(model.join(moved, beta, scales, tail))
                now = _better(now, trial.theta, here.objective.value(trial.theta), trial.degenerate)
        still = now.value - before <= tol
        step[active] = torch.where(still, _SHRINK * step[active], step[active])
        now.num_iter = now.num_iter + 1
        now.converged = step[active] < finest[active]
        state.put(active, now)
        active = active[~now.converged]
        if callback is not None and callback(t + 1, max_iter, state):
            break
    return state


def _better(state: State, theta: Tensor, value: Tensor, degenerate: Tensor) -> State:
    """The state, at theta where the value is larger."""
    better = value > state.value
    return State(
        torch.where(better.unsqueeze(-1), theta, state.theta),
        torch.where(better, value, state.value),
        state.num_iter,
        state.converged,
        state.decrement,
        torch.where(better, degenerate, state.degenerate),
    )
