"""Maximum likelihood for mixtures of experts: restarts, statuses, results."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import ConvergenceWarning, DomainError, user_level
from ..progress import Progress
from . import _checks
from ._information import spectrum
from .data import Data
from .em import GATES as GATE_STEPS
from .gates import LaplaceGate, SoftmaxGate, is_sparse
from .iteration import CRITERIA
from .measure import MixingMeasure
from .model import GaussianMoE
from .newton import newton_decrement
from .objective import Objective
from .penalty import Penalty, check_penalty
from .result import MoEFit
from .running import Runner
from .starts import KINDS, near_truth, respecting, starting_points
from .state import State
from .tempered import Tempered

METHODS = ("newton", "em", "squarem", "lbfgs")
# Data of a batch of fits that is worked on at once.
BATCH_BYTES = 256 * 2**20
# An expert of a smaller share of the observations has parameters about which they say nothing.
_LEAST_SHARE = 1e-6
_CURVED = 1e-6  # share of the information of complete data; a more negative one is a saddle
_STATIONARY = 1e-3  # nats that a Newton step would promise
_ADVICE = {
    "max_iter": "raise max_iter.",
    "saddle": "start elsewhere, or use method='newton', which leaves saddles.",
    "degenerate": "use fewer experts, more restarts or a penalty.",
    "failed": "look at the data.",
}
_LIMITS = {"newton": 200, "em": 2000, "squarem": 1000, "lbfgs": 2000}


def fit(
    model: GaussianMoE,
    X: Any,
    Y: Any,
    *,
    method: str = "newton",
    num_restarts: int = 10,
    seed: int = 0,
    sample_weight: Any = None,
    starts: str | tuple[str, ...] | MixingMeasure | GaussianMoE = "auto",
    penalty: Penalty | None = None,
    tol: float = 1e-6,
    criterion: str | None = None,
    max_iter: int | None = None,
    num_warmup: int | tuple[int, ...] | None = None,
    gate_step: str = "newton",
    progress: bool = False,
) -> MoEFit:
    r"""Estimate a mixture of experts by maximum likelihood, all replicates and restarts in one batch.

    ``"newton"`` runs a few EM iterations, then safeguarded Newton steps on the observed likelihood, until the Newton
    decrement :math:`g^\top(-H)^{-1}g` is below `tol`: the remaining gain is then about half of it, in nats, whatever
    n is. EM alone needs hundreds of iterations where experts overlap, and a rule of small relative changes ends it
    well below the maximum. Of the restarts the best one counts; those whose variance collapsed do not.

    Args:
        model: The family. For gates and experts without closed-form derivatives Newton is not offered:
            networks need ``"lbfgs"``, a :class:`GaussianGate` and a :class:`TopKGate` ``"em"`` (both are chosen for
            them where `method` is the default).
        X: Inputs ``n x d``, or ``R x n x d`` for R replicates. An array of numpy (a memory map, say) is read a piece
            at a time, with one and the same result.
        Y: Outcomes ``n x m`` or ``R x n x m``, or without the last dimension where m = 1.
        method: ``"newton"``, ``"em"``, ``"squarem"`` (accelerated EM; Varadhan & Roland 2008) or ``"lbfgs"``.
        num_restarts: Starts a replicate; a model to start at is one.
        seed: Same seed, same machine: the same result.
        sample_weight: Weights of the observations >= 0, ``n`` or ``R x n``; a whole number k counts as k equal rows.
        starts: ``"auto"`` (all kinds in turn), one or several of ``"kmeans"``, ``"tree"``, ``"subset"``, ``"random"``;
            a :class:`MixingMeasure` to start near, as studies of convergence rates do; or a fitted model to start at.
        penalty: Added to the log-likelihood.
        tol: Bound of the stopping rule.
        criterion: ``"decrement"``, the only one of Newton and L-BFGS (which takes the curvature from its steps);
            ``"aitken"``, the gain that is left by extrapolation, for EM; or ``"relative"``, for EM too, the change
            relative to the log-likelihood, which the literature used and which stops EM early.
        max_iter: Most iterations; None: 200 for Newton, 2,000 for EM.
        num_warmup: EM iterations before Newton, one or several numbers: Newton is then run from each of these points of
            EM's path (from the later ones as soon as the Hessian there is negative definite), and the best counts.
            None: 10 where there is one start; (10, 400) where there are several: the early run is bold and finds more
            maxima, the late one stays with the maximum that EM would find.
        gate_step: How EM moves the gate: ``"newton"``, or ``"mm"``, steps on a bound of the curvature that is factored
            once (Boehning 1992), for a :class:`SoftmaxGate` of many inputs and ``method="em"`` or ``"squarem"``.
        progress: Show a progress bar of the climbs that have ended.

    Returns:
        The fit: model, log-likelihood, statuses, standard errors.

    Raises:
        ShapeError, DomainError, NonFiniteError: Data or settings are unusable; the message says how.

    Example:
        >>> import torch
        >>> from probnn import moe
        >>> g = torch.Generator().manual_seed(0)
        >>> X = torch.rand(300, 1, generator=g, dtype=torch.double)
        >>> Y = torch.where(X < 0.5, 3 * X, 2 - X) + 0.1 * torch.randn(300, 1, generator=g, dtype=torch.double)
        >>> result = moe.fit(moe.GaussianMoE(num_experts=2, input_dim=1), X, Y, num_restarts=4)
        >>> result.status, bool(result.decrement < 1e-6)
        ('converged', True)
    """
    where = "moe.fit"
    begun = time.perf_counter()
    seed = rnd.check_seed(where, seed)
    method = _method(where, model, method)
    rule = _rule(where, model, method, criterion)
    _check_gate_step(where, model, method, gate_step)
    validation.positive(where, "tol", tol)
    num_restarts = validation.positive_int(where, "num_restarts", num_restarts)
    limit = _LIMITS[method] if max_iter is None else validation.positive_int(where, "max_iter", max_iter)
    data, single = _checks.prepared(where, model, X, Y, sample_weight)
    penalty = check_penalty(where, penalty)
    generator = rnd.generator_from(seed)
    points = _starts(where, model, data, starts, num_restarts, generator)
    R, S, _ = points.shape
    warmups = _warmups(where, method, num_warmup, S)
    with Progress(R * S, where, progress) as bar:
        run = Runner(model, penalty, method, rule, tol, limit, warmups, gate_step, bar)
        groups = _groups(data, R, S)
        states = [run(data if data.num_replicates == 1 else data.take(group), points[group]) for group in groups]
    return _result(Objective(model, data, penalty), states, (R, S), single, method, rule, begun)


def _method(where: str, model: Any, method: str) -> str:
    if not isinstance(model, GaussianMoE):
        raise DomainError(f"{where}: model must be a moe.GaussianMoE, got a {type(model).__name__}")
    validation.choice(where, "method", method, METHODS)
    networks = not model.expert.linear or model.gate.tail(model.input_dim, model.num_experts) > 0
    if type(model.gate) is LaplaceGate and model.input_dim == 1 and method == "newton":
        return "em"  # maxima lie on kinks, at the inputs
    if networks:
        if method not in ("newton", "lbfgs"):
            raise DomainError(f"{where}: networks are fitted with method='lbfgs', got {method!r}")
        return "lbfgs"
    if model.gate.joint or is_sparse(model.gate, model.num_experts):
        if method not in ("newton", "em"):
            raise DomainError(f"{where}: a {type(model.gate).__name__} is fitted with method='em', got {method!r}")
        return "em"
    if isinstance(model.gate, Tempered) and model.gate.frozen(model.input_dim) and model.num_experts > 1:
        kept = getattr(model.gate, "normalise", None)
        if kept is None:
            warnings.warn(
                f"{where}: data do not identify the temperature of {model.gate}: it stays at 1; give it a "
                "normalisation, or use an activation such as ActivationGate('gelu')",
                ConvergenceWarning,
                stacklevel=user_level(),
            )
    return method


def _rule(where: str, model: GaussianMoE, method: str, criterion: str | None) -> str:
    """The stopping rule, of those that the method has."""
    if method in ("newton", "lbfgs"):
        rules: tuple[str, ...] = ("decrement",)
    elif is_sparse(model.gate, model.num_experts):
        rules = ("aitken",)
    else:
        rules = ("aitken", "relative") if model.gate.joint else ("aitken", "decrement", "relative")
    if criterion is None:
        return rules[0]
    validation.choice(where, "criterion", criterion, CRITERIA)
    validation.choice(where, f"criterion of method {method!r} with a {type(model.gate).__name__}", criterion, rules)
    return criterion


def _check_gate_step(where: str, model: GaussianMoE, method: str, gate_step: str) -> None:
    validation.choice(where, "gate_step", gate_step, GATE_STEPS)
    if gate_step == "mm" and (method not in ("em", "squarem") or type(model.gate) is not SoftmaxGate):
        raise DomainError(
            f"{where}: gate_step='mm' is for method='em' or 'squarem' and a SoftmaxGate, got method={method!r} and a "
            f"{type(model.gate).__name__}"
        )


def _starts(where: str, model: GaussianMoE, data: Data, starts: Any, count: int, generator: torch.Generator) -> Tensor:
    """Starts ``R x S x P``."""
    R = data.num_replicates
    if isinstance(starts, MixingMeasure):
        return near_truth(model, starts, data.num_rows, (R, count), generator)
    if isinstance(starts, GaussianMoE):
        if starts.theta is None or starts.num_parameters != model.num_parameters:
            raise DomainError(f"{where}: a model to start at must have parameters, and the sizes of the model to fit")
        theta = starts.theta.double()
        theta = theta.unsqueeze(0) if theta.ndim == 1 else theta
        if len(theta) not in (1, R):
            raise DomainError(f"{where}: a model to start at must have one or {R} replicates, got {len(theta)}")
        return respecting(model, theta.expand(R, -1).unsqueeze(1))
    kinds = KINDS if starts == "auto" else (starts,) if isinstance(starts, str) else starts
    if not isinstance(kinds, tuple) or not kinds or any(kind not in KINDS for kind in kinds):
        raise DomainError(
            f"{where}: starts must be 'auto', one or several of {', '.join(map(repr, KINDS))}, a MixingMeasure or a "
            f"GaussianMoE, got {starts!r}"
        )
    return starting_points(model, data, kinds, count, generator)


def _groups(data: Data, R: int, S: int) -> list[Tensor]:
    """Replicates that are fitted together, so that copies of their data for every start fit into memory."""
    if data.num_replicates == 1:
        return [torch.arange(R)]
    rows = sum(x.shape[-2] if x.ndim == 3 else 1 for x in (data.X, data.Y) if len(x) > 1)
    size = max(1, BATCH_BYTES // (8 * data.num_rows * max(rows, 1) * S))
    return list(torch.arange(R).split(size))


def _warmups(where: str, method: str, given: Any, num_starts: int) -> tuple[int, ...]:
    if given is not None and method != "newton":
        raise DomainError(f"{where}: num_warmup is for method='newton', got method={method!r}")
    counts = ((10,) if num_starts == 1 else (10, 400)) if given is None else given
    counts = (counts,) if isinstance(counts, int) else counts
    if not isinstance(counts, tuple) or not counts or list(counts) != sorted(set(counts)):
        raise DomainError(f"{where}: num_warmup must be a number of iterations or an increasing tuple, got {given!r}")
    return tuple(validation.positive_int(where, "num_warmup", count, 0) for count in counts)


def _result(
    objective: Objective,
    states: list[State],
    shape: tuple[int, int],
    single: bool,
    method: str,
    criterion: str,
    begun: float,
) -> MoEFit:
    """The best restart of every replicate, with its status."""
    R, S = shape
    model, data = objective.model, objective.data

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(state, name) for state in states]).reshape(R, S, *getattr(states[0], name).shape[1:])

    value, degenerate = joined("value"), joined("degenerate")
    usable = value.masked_fill(degenerate | value.isnan(), -math.inf)
    usable = torch.where((usable > -math.inf).any(-1, keepdim=True), usable, value)
    best = usable.argmax(-1)
    theta, num_iter, converged, collapsed, decrement = (
        joined(name)[torch.arange(R), best] for name in ("theta", "num_iter", "converged", "degenerate", "decrement")
    )
    # Derivatives and the penalty are those of the coordinates that were fitted; reported is the canonical form.
    theta = _mapped(model, model.gate.untempered, _mapped(model, model.gate.canonical, theta))
    log_likelihood = objective.log_likelihood(theta)
    failed = ~(log_likelihood.isfinite() & theta.isfinite().all(-1))
    theta = theta.masked_fill(failed.unsqueeze(-1), 0.0)
    collapsed = collapsed | (objective.shares(theta) < _LEAST_SHARE).any(-1)
    separated = _checks.separated(objective, theta)
    information = complete = None
    saddle = torch.zeros_like(failed)
    if _has_hessian(model):
        _, gradient, hessian = objective.derivatives(theta)
        information, complete = -hessian, objective.complete_information(theta)
        decrement = newton_decrement(gradient, hessian)
        information, complete = (x.masked_fill(failed[:, None, None], math.nan) for x in (information, complete))
        # A climb that ended early, as rules of small relative changes end it, is on a slope and not at a saddle.
        saddle = (spectrum(information, complete)[0][..., 0] < -_CURVED) & (decrement < _STATIONARY)
    status = [
        "failed" if failed[r] else
        "degenerate" if collapsed[r] else
        "separated" if separated[r] else
        "saddle" if saddle[r] and converged[r] else
        "converged" if converged[r] else "max_iter"
        for r in range(R)
    ]  # fmt: skip
    bad = [s for s in status if s not in ("converged", "separated")]
    if bad:
        advice = " ".join(_ADVICE[s] for s in _ADVICE if s in bad)
        warnings.warn(
            f"moe.fit: {len(bad)} of {R} fits ended as {', '.join(sorted(set(bad)))}; {advice}",
            ConvergenceWarning,
            stacklevel=user_level(),
        )
    same = ((usable >= usable.amax(-1, keepdim=True) - 1e-3) & usable.isfinite()).sum(-1)

    def one(x: Tensor) -> Tensor:
        return x[0] if single else x

    return MoEFit(
        model=replace(model, theta=one(_mapped(model, model.gate.canonical, theta))),
        log_likelihood=one(log_likelihood.masked_fill(failed, math.nan)),
        penalty_value=one(objective.penalty.value(model, theta).masked_fill(failed, math.nan)),
        status=status[0] if single else tuple(status),
        converged=one(converged & ~collapsed & ~failed & ~(saddle & ~separated)),
        decrement=one(decrement.masked_fill(failed, math.nan)),
        num_iter=one(num_iter),
        restarts=one(value),
        num_same_optimum=one(same),
        information=None if information is None else one(information),
        complete_information=None if complete is None else one(complete),
        num_observations=one(data.total_weight.expand(R)),
        method=method,
        criterion=criterion,
        seconds=time.perf_counter() - begun,
    )


def _mapped(model: GaussianMoE, change: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """theta with another form of its gate."""
    gamma, beta, scales, tail = model.split(theta)
    return model.join(change(gamma), beta, scales, tail)


def _has_hessian(model: GaussianMoE) -> bool:
    """Whether there is a closed form."""
    gate = model.gate
    none = gate.joint or gate.width(model.input_dim) == 0 or is_sparse(gate, model.num_experts)
    return model.expert.linear and not none
