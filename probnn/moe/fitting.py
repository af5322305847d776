"""Maximum likelihood for mixtures of experts: restarts, statuses, results."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import ConvergenceWarning, DomainError, user_level
from ..progress import Progress
from . import _checks
from .accelerate import run_squarem
from .data import Data
from .em import run_em
from .gradient import run_lbfgs
from .measure import MixingMeasure
from .model import GaussianMoE
from .newton import is_concave, newton_decrement, run_newton
from .objective import Objective
from .penalty import Penalty
from .result import MoEFit
from .starts import KINDS, near_truth, starting_points
from .state import State
from .tempered import Tempered
from .topk import run_topk

METHODS = ("newton", "em", "squarem", "lbfgs")
CRITERIA = ("decrement", "aitken", "relative")
# Data of a batch of fits that is worked on at once.
BATCH_BYTES = 256 * 2**20
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
        num_restarts: Starts a replicate.
        seed: Same seed, same machine: the same result.
        sample_weight: Weights of the observations >= 0, ``n`` or ``R x n``; a whole number k counts as k equal rows.
        starts: ``"auto"`` (all kinds in turn), one or several of ``"kmeans"``, ``"tree"``, ``"subset"``, ``"random"``;
            a :class:`MixingMeasure` to start near, as studies of convergence rates do; or a fitted model to start at.
        penalty: Added to the log-likelihood.
        tol: Bound of the stopping rule.
        criterion: ``"decrement"``; ``"aitken"``, the gain that is left by extrapolation, for EM; or ``"relative"``, the
            change relative to the log-likelihood, which the literature used and which stops EM early.
        max_iter: Most iterations; None: 200 for Newton, 2,000 for EM.
        num_warmup: EM iterations before Newton, one or several numbers: Newton is then run from each of these points of
            EM's path (from the later ones as soon as the Hessian there is negative definite), and the best counts.
            None: 10 where there is one start; (10, 100) where there are several: the early run is bold and finds more
            maxima, the late one stays with the maximum that EM would find.
        progress: Show a progress bar.

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
    rule = criterion or ("decrement" if method == "newton" else "aitken")
    validation.choice(where, "criterion", rule, CRITERIA)
    validation.positive(where, "tol", tol)
    num_restarts = validation.positive_int(where, "num_restarts", num_restarts)
    limit = _LIMITS[method] if max_iter is None else validation.positive_int(where, "max_iter", max_iter)
    data, single = _checks.prepared(where, model, X, Y, sample_weight)
    penalty = Penalty() if penalty is None else penalty
    generator = rnd.generator_from(seed)
    points = _starts(where, model, data, starts, num_restarts, generator)
    R, S, _ = points.shape
    run = _Runner(model, penalty, method, rule, tol, limit, _warmups(where, num_warmup, S))
    groups = _groups(data, R, S)
    bar = Progress(len(groups), where, progress)
    states = []
    with bar:
        for group in groups:
            states.append(run(data if data.num_replicates == 1 else data.take(group), points[group]))
            bar.update(len(states))
    return _result(Objective(model, data, penalty), states, (R, S), single, method, rule, begun)


def _method(where: str, model: Any, method: str) -> str:
    if not isinstance(model, GaussianMoE):
        raise DomainError(f"{where}: model must be a moe.GaussianMoE, got a {type(model).__name__}")
    validation.choice(where, "method", method, METHODS)
    networks = not model.expert.linear or model.gate.tail(model.input_dim, model.num_experts) > 0
    if networks:
        if method not in ("newton", "lbfgs"):
            raise DomainError(f"{where}: networks are fitted with method='lbfgs', got {method!r}")
        return "lbfgs"
    if model.gate.joint or _is_sparse(model):
        if method not in ("newton", "em"):
            raise DomainError(f"{where}: a {type(model.gate).__name__} is fitted with method='em', got {method!r}")
        return "em"
    if isinstance(model.gate, Tempered) and model.gate.frozen(model.input_dim):
        kept = getattr(model.gate, "normalise", None)
        if kept is None:
            warnings.warn(
                f"{where}: data do not identify the temperature of {model.gate}: it stays at 1; give it a "
                "normalisation, or use an activation such as ActivationGate('gelu')",
                ConvergenceWarning,
                stacklevel=user_level(),
            )
    return method


def _is_sparse(model: GaussianMoE) -> bool:
    return not model.gate.smooth and getattr(model.gate, "active", 0) < model.num_experts


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
        return theta.expand(R, -1).unsqueeze(1).clone()
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


@dataclass(frozen=True)
class _Runner:
    """Runs the optimiser over the starts of a group of replicates."""

    model: GaussianMoE
    penalty: Penalty
    method: str
    criterion: str
    tol: float
    max_iter: int
    num_warmup: tuple[int, ...]

    def __call__(self, data: Data, points: Tensor) -> State:
        R, S, P = points.shape
        shared = data.num_replicates == 1
        data = data if shared else data.take(torch.arange(R).repeat_interleave(S))
        objective = Objective(self.model, data, self.penalty)
        return self._run(objective, points.reshape(R * S, P))

    def _run(self, objective: Objective, theta: Tensor) -> State:
        settings: dict[str, Any] = {"max_iter": self.max_iter, "tol": self.tol}
        if _is_sparse(self.model):
            return run_topk(objective, theta, **settings)
        if self.method == "em":
            return run_em(objective, theta, criterion=self.criterion, **settings)
        if self.method == "squarem":
            return run_squarem(objective, theta, criterion=self.criterion, **settings)
        if self.method == "lbfgs":
            return run_lbfgs(objective, theta, **settings)
        floor = _checks.log_variance_floor(objective.data)
        floor = floor if floor is None or len(floor) == len(theta) else floor.expand(len(theta))
        best = State.of(theta, torch.full_like(theta[:, 0], -math.inf))
        left, done = torch.arange(len(theta)), 0
        for count in self.num_warmup:
            here = objective.take(None if len(left) == len(theta) else left)
            warm, moved = _warmed(here, theta[left], done, count)
            theta[left] = warm
            left, done = left[moved], count
            here = objective.take(None if len(left) == len(theta) else left)
            state = run_newton(here, theta[left], floor=None if floor is None else floor[left], **settings)
            _keep_better(best, left, state)
        return best


def _warmups(where: str, given: Any, num_starts: int) -> tuple[int, ...]:
    counts = ((10,) if num_starts == 1 else (10, 100)) if given is None else given
    counts = (counts,) if isinstance(counts, int) else counts
    if not isinstance(counts, tuple) or not counts or list(counts) != sorted(set(counts)):
        raise DomainError(f"{where}: num_warmup must be a number of iterations or an increasing tuple, got {given!r}")
    return tuple(validation.positive_int(where, "num_warmup", count, 0) for count in counts)


def _warmed(objective: Objective, theta: Tensor, done: int, count: int) -> tuple[Tensor, Tensor]:
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
        theta[active] = run_em(here, theta[active], max_iter=steps, tol=1e-300, criterion="relative").theta
        done += steps
        if done < count:
            active = active[~is_concave(here.derivatives(theta[active])[2])]
    return theta, moved


def _keep_better(best: State, index: Tensor, state: State) -> None:
    """Put those entries of a state into `best[index]` that are better, or the first there."""
    old = best.value[index].masked_fill(best.degenerate[index], -math.inf)
    new = state.value.masked_fill(state.degenerate | state.value.isnan(), -math.inf)
    taken = (new > old) | best.value[index].isneginf()
    best.put(index[taken], state.take(taken.nonzero().squeeze(-1)))


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
    chosen = {name: joined(name)[torch.arange(R), best] for name in ("theta", "num_iter", "converged", "degenerate")}
    theta = _canonical(model, chosen["theta"])
    log_likelihood = objective.log_likelihood(theta)
    information, decrement = _curvature(objective, theta)
    if information is None:
        decrement = joined("decrement")[torch.arange(R), best]
    converged = chosen["converged"]
    separated = _checks.separated(model, data, theta)
    status = [
        "failed" if not math.isfinite(log_likelihood[r]) else
        "degenerate" if chosen["degenerate"][r] else
        "separated" if separated[r] else
        "converged" if converged[r] else "max_iter"
        for r in range(R)
    ]  # fmt: skip
    failed = torch.tensor([s == "failed" for s in status])
    same = (usable >= usable.amax(-1, keepdim=True) - 1e-3).sum(-1)
    bad = [s for s in status if s not in ("converged", "separated")]
    if bad:
        warnings.warn(
            f"moe.fit: {len(bad)} of {R} fits ended as {', '.join(sorted(set(bad)))}; see status, and raise max_iter, "
            "num_restarts or give a penalty",
            ConvergenceWarning,
            stacklevel=user_level(),
        )

    def one(x: Tensor) -> Tensor:
        return x[0] if single else x

    return MoEFit(
        model=replace(model, theta=one(theta)),
        log_likelihood=one(log_likelihood.masked_fill(failed, math.nan)),
        penalty_value=one(objective.penalty.value(model, theta)),
        status=status[0] if single else tuple(status),
        converged=one(converged & ~chosen["degenerate"] & ~failed),
        decrement=one(decrement),
        num_iter=one(chosen["num_iter"]),
        restarts=one(value),
        num_same_optimum=one(same),
        information=None if information is None else one(information),
        num_observations=one(data.total_weight.expand(R)),
        method=method,
        criterion=criterion,
        seconds=time.perf_counter() - begun,
    )


def _canonical(model: GaussianMoE, theta: Tensor) -> Tensor:
    gamma, beta, scales, tail = model.split(theta)
    return model.join(model.gate.canonical(gamma), beta, scales, tail)


def _curvature(objective: Objective, theta: Tensor) -> tuple[Tensor | None, Tensor]:
    """Minus the Hessian, and the decrement there; None where there is no closed form."""
    model = objective.model
    if not model.expert.linear or model.gate.width(model.input_dim) == 0 or model.gate.joint or _is_sparse(model):
        return None, theta.new_full((len(theta),), math.inf)
    _, gradient, hessian = objective.derivatives(theta)
    return -hessian, newton_decrement(gradient, hessian)
