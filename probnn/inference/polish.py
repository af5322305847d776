"""Newton steps for many members at once, where the function is linear in theta."""

from __future__ import annotations

import torch
from torch import Tensor

from .curvature import jacobian
from .local import prior_spread
from .optimize import ValueAndGrad
from .target import Target

# Of the Jacobian and of its shorter side: beyond that a step costs more than the climb before it.
_MAX_JACOBIAN, _MAX_SIDE = 4_000_000, 500
_STEPS = 4  # one is exact, the others take back its rounding where the noise is tiny


def is_linear(target: Target, z: Tensor) -> bool:
    """Whether the function at X is linear in theta (or affine) between three members, and Newton steps are cheap."""
    rows, size = target.X.shape[0] * target.prior.output_dim, target.prior.num_parameters
    if rows * size > _MAX_JACOBIAN or min(rows, size) > _MAX_SIDE:
        return False
    theta = target.split(z)[0]
    a, b = theta[0], theta[-1] if len(theta) > 1 else 2 * theta[0] + 1
    f = target.prior._apply(torch.stack([a, b, 1.5 * a - 0.5 * b]), target.X)
    rounding = 64 * size * torch.finfo(f.dtype).eps * f.abs().max()
    return bool((1.5 * f[0] - 0.5 * f[1] - f[2]).abs().max() <= rounding)


@torch.no_grad()
def polish(
    where: str, target: Target, value_and_grad: ValueAndGrad, z: Tensor, variance: Tensor, tolerance: float
) -> tuple[Tensor, Tensor, int]:
    r"""The top of the density in theta for members with a Gaussian prior and likelihood and a linear function.

    With the prior's covariance :math:`SS^\top` and features :math:`F = D^{-1/2} J S` a Newton step is
    :math:`S\,(I + F^\top F)^{-1} S^\top g`, solved on the smaller side of F.

    Args:
        where: For error messages.
        target: Prior and inputs.
        value_and_grad: What the members climb: the target up to terms linear in theta and other outcomes.
        z: Members ``S x size``; psi are held.
        variance: Noise variances D, which broadcast to ``S x n x m``.
        tolerance: A member is done where another step promises less, in nats.

    Returns:
        The members, whether each is done, and the steps taken.
    """
    P, theta = target.prior.num_parameters, target.split(z)[0]
    spread = prior_spread(where, target.prior, theta[0])
    F = spread.lower(jacobian(target.prior, theta[0], target.X)[1].flatten(0, 1))
    noise = variance.expand(*variance.shape[:-2], target.X.shape[0], target.prior.output_dim).flatten(-2)
    # Few members have a noise of their own: all share it where it is given.
    groups, member = noise.reshape(-1, noise.shape[-1]).unique(dim=0, return_inverse=True)
    member = member.expand(z.shape[0])
    z = z.clone()
    for taken in range(_STEPS + 1):
        slope = spread.lower(value_and_grad(z)[1][:, :P])
        u = torch.empty_like(slope)
        for g, own in enumerate(groups):
            u[member == g] = _solve(F / own.sqrt().unsqueeze(-1), slope[member == g])
        done = 0.5 * (slope * u).sum(-1) < tolerance
        if done.all() or taken == _STEPS:
            break
        z[:, :P] += spread.lift(u)
    return z, done, taken


def _solve(F: Tensor, right: Tensor) -> Tensor:
    """(I + F'F)^-1 of every row of `right`."""
    wide = F.shape[0] <= F.shape[1]
    gram = F @ F.mT if wide else F.mT @ F
    root = torch.linalg.cholesky(gram + torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device))
    if wide:
        return right - torch.cholesky_solve(F @ right.mT, root).mT @ F
    return torch.cholesky_solve(right.mT, root).mT
