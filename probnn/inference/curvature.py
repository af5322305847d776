"""First and second derivatives that Gaussian approximations of a posterior are made of."""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..likelihoods import Bernoulli, Categorical, Gaussian, Heteroscedastic, Likelihood, Poisson, StudentT
from ..process import ParametricProcess

# Jacobians are worked off in pieces of about this size.
CHUNK_BYTES = 32 << 20


def jacobian(process: ParametricProcess, theta: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
    """Values and Jacobian of a process in its coordinates, row by row.

    Every row of X gets a copy of theta, so one sweep gives a whole row of the Jacobian; the result
    is differentiable in X where X requires a gradient.

    Args:
        process: The process f(x; theta).
        theta: One vector of coordinates, of length P.
        X: Inputs ``N x d``.

    Returns:
        f ``N x c`` and df/dtheta ``N x c x P``.
    """
    copies, rows, c = theta.detach().expand(X.shape[0], -1), X.unsqueeze(-2), process.output_dim
    if X.requires_grad and torch.is_grad_enabled():
        leaf = copies.clone().requires_grad_(True)
        f = process._apply(leaf, rows)
        columns = [torch.autograd.grad(f[..., j].sum(), leaf, create_graph=True)[0] for j in range(c)]
        return f.squeeze(-2), torch.stack(columns, -2)
    f, pullback = process._pullback(copies, rows)
    unit = torch.eye(c, dtype=f.dtype, device=f.device)
    return f.squeeze(-2), torch.stack([pullback(unit[j].expand_as(f)) for j in range(c)], -2)


def jacobian_pieces(process: ParametricProcess, theta: Tensor, X: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """:func:`jacobian` in pieces of rows that fit into memory: the rows, f and df/dtheta of each."""
    step = max(1, CHUNK_BYTES // (process.output_dim * theta.shape[-1] * theta.element_size()))
    for start in range(0, X.shape[0], step):
        rows = slice(start, min(start + step, X.shape[0]))
        f, J = jacobian(process, theta, X[rows])
        yield rows, f, J


def jacobian_slope(process: ParametricProcess, theta: Tensor, X: Tensor, weights: Tensor) -> Tensor:
    """Gradient in theta of the sum of `weights` ``N x c x P`` times the Jacobian: of length P."""
    step, total = max(1, CHUNK_BYTES // (4 * weights[0].numel() * theta.element_size())), torch.zeros_like(theta)
    for start in range(0, X.shape[0], step):
        rows = slice(start, min(start + step, X.shape[0]))
        with torch.enable_grad():
            leaf = theta.detach().expand(X[rows].shape[0], -1).clone().requires_grad_(True)
            f = process._apply(leaf, X[rows].unsqueeze(-2))
            along = [torch.autograd.grad(f[..., j].sum(), leaf, create_graph=True)[0] for j in range(f.shape[-1])]
            value = (torch.stack(along, -2) * weights[rows]).sum()
            if value.requires_grad:  # not where the process is linear in theta
                slope = torch.autograd.grad(value, leaf, allow_unused=True)[0]
                total = total if slope is None else total + slope.sum(0)
    return total


@singledispatch
def information(
    likelihood: Likelihood, Y: Tensor, f: Tensor, psi: Tensor, noise_variance: Tensor | None = None
) -> Tensor:
    r"""Curvature of the log likelihood in the channels: the generalised Gauss-Newton middle matrix.

    The Fisher information :math:`E_y[-\partial^2 \log p(y \mid f)/\partial f^2]`, which for Gaussian,
    Bernoulli, categorical and Poisson outcomes equals the negative Hessian at every y; Student-t and
    heteroscedastic outcomes, whose Hessian can be indefinite, are where it matters (Martens 2020,
    arXiv 1412.1193). A likelihood that is not listed gives its negative Hessian.

    Args:
        likelihood: The law of Y; more are added by ``information.register``.
        Y: Outcomes ``N x m``.
        f: Channels ``N x c``.
        psi: Parameters of the likelihood, of length R; the result is differentiable in them and in f.
        noise_variance: Known noise variances ``N x m``.

    Returns:
        Symmetric matrices ``N x c x c``; where all rows share one, which is then diagonal, its
        diagonal of length c.
    """
    with torch.enable_grad():
        leaf = f if f.requires_grad else f.detach().requires_grad_(True)
        value = likelihood.log_prob(Y, leaf, psi.unsqueeze(-2), noise_variance).sum()
        slope = torch.autograd.grad(value, leaf, create_graph=True)[0]
        rows = []
        for j in range(f.shape[-1]):
            row = None
            if slope.requires_grad:
                row = torch.autograd.grad(slope[..., j].sum(), leaf, create_graph=True, allow_unused=True)[0]
            rows.append(torch.zeros_like(leaf) if row is None else -row)
        hessian = torch.stack(rows, -2)
    return hessian if psi.requires_grad or f.requires_grad else hessian.detach()


@information.register
def _(likelihood: Gaussian, Y: Tensor, f: Tensor, psi: Tensor, noise_variance: Tensor | None = None) -> Tensor:
    if noise_variance is not None:
        return torch.diag_embed(1 / noise_variance)
    return (-2 * likelihood.log_scale(psi)).exp().expand(f.shape[-1])


@information.register
def _(likelihood: StudentT, Y: Tensor, f: Tensor, psi: Tensor, noise_variance: Tensor | None = None) -> Tensor:
    df = torch.as_tensor(likelihood.df, dtype=f.dtype, device=f.device)
    return ((-2 * likelihood.log_scale(psi)).exp() * (df + 1) / (df + 3)).expand(f.shape[-1])


@information.register
def _(likelihood: Heteroscedastic, Y: Tensor, f: Tensor, psi: Tensor, noise_variance: Tensor | None = None) -> Tensor:
    variance = likelihood.moments(f, psi.unsqueeze(-2))[1]
    return torch.diag_embed(torch.cat([1 / variance, torch.full_like(variance, 2.0)], -1))


@information.register(Bernoulli)
@information.register(Poisson)
def _(likelihood: Likelihood, Y: Tensor, f: Tensor, psi: Tensor, noise_variance: Tensor | None = None) -> Tensor:
    return torch.diag_embed(likelihood.moments(f, psi.unsqueeze(-2))[1])


@information.register
def _(likelihood: Categorical, Y: Tensor, f: Tensor, psi: Tensor, noise_variance: Tensor | None = None) -> Tensor:
    p = f.softmax(-1)
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def weigh(middle: Tensor, x: Tensor) -> Tensor:
    """Lambda x for what :func:`information` returns and x ``N x c x k``."""
    return middle.unsqueeze(-1) * x if middle.ndim == 1 else middle @ x


def weigh_root(where: str, middle: Tensor, x: Tensor) -> Tensor:
    """R x with R'R = Lambda, for x ``N x c x k``; an indefinite Lambda raises `UnsupportedError`."""
    if middle.ndim == 1:
        return weigh(middle.sqrt(), x)
    values, vectors = torch.linalg.eigh(middle)
    tolerance = 16 * torch.finfo(values.dtype).eps * values.shape[-1] * values.abs().amax(-1, keepdim=True)
    if (values < -tolerance).any():
        row = int((values < -tolerance).any(-1).nonzero()[0])
        raise UnsupportedError(
            f"{where}: the log likelihood is not concave in the function at row {row} (curvature "
            f"{values[row].min().item():.3g}), so its Hessian gives no covariance; register a Fisher information "
            "with probnn.inference.curvature.information.register, or use probnn.HMC"
        )
    # What is still below zero is rounding of a singular matrix.
    return (values.clamp_min(0.0).sqrt().unsqueeze(-1) * vectors.mT) @ x
