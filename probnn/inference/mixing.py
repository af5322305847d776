"""Whether chains agree: the check behind `info.converged` of a sampler."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diagnostics.chains import rank_rhat
from ..errors import ConvergenceWarning
from ..process import ParametricProcess
from .base import Session
from .target import Target

_CONVERGED, _UNMIXED = 1.05, 1.2  # the largest R-hat below which draws are good, above which they are bad
TELLING = 20  # draws a chain from which R-hat is a reason to warn
_UNSOUND = 0.01  # share of diverged trajectories above which draws are not converged

_POINTS = 50  # training inputs, and points around them, at which functions are compared
_MARGIN = 0.25  # of the width of the data, by which the box of those points is larger on every side


def worst_rhat(prior: ParametricProcess, X: Tensor, theta: Tensor, psi: Tensor, log_prob: Tensor) -> tuple[str, float]:
    """Rank-normalised split R-hat of what chains should agree on: the worst one, with its name.

    Judged are the function at (up to 50) rows of X and at 50 quasi-random points of the box around X, widened by a
    quarter of its width on every side; psi; the log scales of a hierarchical prior; the log density. Single
    weights are not: they are not identified, so chains may disagree about them where functions agree.

    Args:
        prior: The process theta belongs to.
        X: Training inputs ``n x d``.
        theta: Draws ``C x S x P`` with S >= 4.
        psi: Draws ``C x S x R``.
        log_prob: The log density the chains explore, ``C x S``.

    Returns:
        What has the largest R-hat, and that value: NaN where a chain does not move.
    """
    n = X.shape[0]
    rows = X[torch.linspace(0, n - 1, min(n, _POINTS), device=X.device).long()]
    low, high = X.amin(0), X.amax(0)
    unit = torch.quasirandom.SobolEngine(X.shape[1], scramble=True, seed=0).draw(_POINTS, dtype=torch.double)
    around = low + (high - low) * ((1 + 2 * _MARGIN) * unit.to(X) - _MARGIN)
    scales = [theta[..., s] for block, s in prior.layout.slices() if block.role == "scale"]
    judged = {
        "the function at the training inputs": prior._apply(theta, rows).flatten(2),
        "the function around the training inputs": prior._apply(theta, around).flatten(2),
        "the parameters of the likelihood": psi,
        "the scales of the prior": torch.cat(scales, -1) if scales else psi[..., :0],
        "the log density": log_prob.unsqueeze(-1),
    }
    found = {}
    for name, draws in judged.items():
        if draws.shape[-1]:
            found[name] = rank_rhat(draws.double().permute(2, 0, 1).contiguous()).max().item()
    # A NaN is a chain that is stuck, which is worse than any number.
    worst = max(found, key=lambda name: float("inf") if found[name] != found[name] else found[name])
    return worst, found[worst]


def converged(
    session: Session, target: Target, theta: Tensor, psi: Tensor, log_prob: Tensor, diverged: float
) -> bool | None:
    """Whether chains agree and few trajectories diverged; warns where chains clearly disagree."""
    if theta.shape[1] < 4:
        return None
    what, worst = worst_rhat(target.prior, target.X, theta, psi, log_prob)
    if not worst <= _UNMIXED and theta.shape[1] >= TELLING:
        session.warn(
            f"{session.method}.fit: chains disagree, most about {what} (R-hat {worst:.2f}); run longer, with "
            "num_warmup and num_samples doubled, before trusting the posterior",
            ConvergenceWarning,
        )
    return worst < _CONVERGED and diverged <= _UNSOUND
