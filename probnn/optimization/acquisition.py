"""From a model to the next setting."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .. import random as rnd
from ..surrogates import ProcessModel
from .space import Space

NUM_RESTARTS, RAW_SAMPLES, NUM_LOCAL = 4, 256, 32


def suggest(
    model: ProcessModel,
    space: Space,
    measured: Tensor,
    pending: Tensor,
    taken: set[tuple[float, ...]],
    *,
    seed: int,
) -> Tensor:
    """The settable point of the unit cube with the highest noisy expected improvement.

    The acquisition function is maximised over the cube from the best of Sobol points and of points
    near the best measured ones, then over the settable points around each maximum that were not
    suggested before.

    Args:
        model: The model, in units where more is better.
        space: The space, for what can be set.
        measured: Points with a value, ``n x d``.
        pending: Points under evaluation, ``k x d``.
        taken: Points suggested before.
        seed: Seed of everything random here; torch's global stream is left alone.
    """
    from botorch.acquisition.logei import qLogNoisyExpectedImprovement
    from botorch.optim import optimize_acqf
    from botorch.sampling.get_sampler import get_sampler
    from linear_operator.utils.warnings import NumericalWarning

    with rnd.forked(rnd.generator_from(seed)), warnings.catch_warnings():
        # A candidate on top of a measured point makes their covariance singular; jitter is right there.
        warnings.simplefilter("ignore", NumericalWarning)
        sampler = get_sampler(model.posterior(measured[:1]), torch.Size([128]), seed=seed % 2**31)
        acquisition = qLogNoisyExpectedImprovement(
            model, measured, sampler=sampler, X_pending=pending if len(pending) else None, prune_baseline=True
        )
        starts = _starts(acquisition, model, space, measured)
        points, _ = optimize_acqf(
            acquisition,
            bounds=space.bounds,
            q=1,
            num_restarts=len(starts),
            batch_initial_conditions=starts,
            options={"maxiter": 100},
            return_best_only=False,
        )
        with torch.no_grad():
            around = torch.cat([space.neighbours(p) for p in points.squeeze(-2)])
            values = acquisition(around.unsqueeze(-2))
        for i in values.argsort(descending=True).tolist():
            if tuple(around[i].tolist()) not in taken:
                return around[i]
        # Everything near the maxima was suggested before (a small discrete space): take the best other point.
        return _best_other(acquisition, space, taken)


def _starts(acquisition: Callable[[Tensor], Tensor], model: ProcessModel, space: Space, measured: Tensor) -> Tensor:
    d = len(space)
    engine = torch.quasirandom.SobolEngine(d, scramble=True, seed=int(torch.randint(2**31, ())))
    raw = engine.draw(RAW_SAMPLES, dtype=torch.double)
    with torch.no_grad():
        best = measured[model.posterior(measured).mean.squeeze(-1).topk(min(4, len(measured))).indices]
        near = best[torch.arange(NUM_LOCAL) % len(best)] + 0.05 * torch.randn(NUM_LOCAL, d, dtype=torch.double)
        candidates = torch.cat([raw, near.clamp(0, 1)])
        values = acquisition(candidates.unsqueeze(-2))
    order = values.argsort(descending=True)
    # The best overall, and the best of the spread-out ones: one maximum must not take all restarts.
    spread = order[order < RAW_SAMPLES][: NUM_RESTARTS - 1]
    chosen = torch.unique(torch.cat([order[:1], spread]))
    return candidates[chosen].unsqueeze(-2)


def _best_other(acquisition: Callable[[Tensor], Tensor], space: Space, taken: set[tuple[float, ...]]) -> Tensor:
    engine = torch.quasirandom.SobolEngine(len(space), scramble=True, seed=int(torch.randint(2**31, ())))
    settable = [space.encode(space.decode(p)) for p in engine.draw(1024, dtype=torch.double)]
    free = [p for p in settable if tuple(p.tolist()) not in taken] or settable
    with torch.no_grad():
        values = acquisition(torch.stack(free).unsqueeze(-2))
    return free[int(values.argmax())]
