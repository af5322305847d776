"""Distances between two laws, from draws of both or from their second moments."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError, ShapeError

_CHUNK = 2**22  # entries of one block of distances
_DIRECT = 16  # up to so many dimensions differences are formed one by one
_SHAPES = (0.2, 0.5, 1.0, 2.0, 5.0)


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    r"""The energy distance of two laws, from draws of both.

    .. math:: D(P, Q) = 2 E|X - Y| - E|X - X'| - E|Y - Y'|

    with the Euclidean norm; it is zero only for P = Q where both have finite means (Szekely and Rizzo 2013, Energy
    statistics). The estimate leaves out the pairs of a draw with itself (a U-statistic), so it is unbiased, and
    below zero about half of the time where the laws are equal. In one dimension D is twice the integral of the
    squared difference of the distribution functions. Differentiable in both.

    Args:
        x: Draws of P, ``... x n x p``, n at least 2.
        y: Draws of Q, ``... x m x p``, m at least 2; batch dimensions broadcast.

    Returns:
        The estimate, ``...``, in the units of the draws.

    Raises:
        ShapeError: The draws have different dimensions, or there are fewer than two of either.
        DomainError: They differ in dtype or device, or are no floating-point tensors.
        NonFiniteError: There is NaN or infinity among them.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> energy_distance(x, x + 3).item()  # 2 * 3 - 1 - 1
        4.0
    """
    _check("energy_distance", x, y)
    unit = _unit(x, y)
    x, y = _centred(x / unit, y / unit)
    total = 2 * _mean_distance(x, y) - _mean_distance(x, x, same=True) - _mean_distance(y, y, same=True)
    return total * unit


def squared_mmd(x: Tensor, y: Tensor, *, lengthscale: float | Tensor | None = None) -> Tensor:
    r"""The squared maximum mean discrepancy of two laws under a mixture of rational quadratic kernels.

    .. math::
        \text{MMD}^2(P, Q) = E k(X, X') + E k(Y, Y') - 2 E k(X, Y), \qquad
        k(x, y) = \tfrac15 \sum_{a} \Big(1 + \frac{|x - y|^2}{2 a \ell^2}\Big)^{-a}, \quad a = .2, .5, 1, 2, 5

    (Gretton et al. 2012, JMLR 13; the mixture is that of Binkowski et al. 2018, arXiv 1801.01401). The kernel is
    bounded, so no moment need be finite. The estimate is the unbiased U-statistic. Differentiable in x and y.

    Args:
        x: Draws of P, ``... x n x p``, n at least 2.
        y: Draws of Q, ``... x m x p``, m at least 2; batch dimensions broadcast.
        lengthscale: l; None: the median distance between draws of y, of each batch element, as a constant.

    Returns:
        The estimate, ``...``, without units; 2 at most.

    Raises:
        ShapeError: The draws have different dimensions, or there are fewer than two of either.
        DomainError: They differ in dtype or device, the length scale is not positive, or it is left out
            and more than half of the draws of y coincide.
        NonFiniteError: There is NaN or infinity among the draws.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> squared_mmd(x, x + 1e6, lengthscale=1.0) > 1.3  # nearly 2 k(0, 1)
        tensor(True)
    """
    _check("squared_mmd", x, y)
    unit = _unit(x, y)
    x, y = _centred(x / unit, y / unit)
    if lengthscale is not None:
        validation.positive("squared_mmd", "lengthscale", lengthscale)
        scale = torch.as_tensor(lengthscale, dtype=x.dtype, device=x.device) / unit
    else:
        scale = _median_distance(y)
    if not (scale > 0).all():
        raise DomainError("squared_mmd: more than half of the draws of y coincide; give lengthscale")

    def kernel(distance: Tensor, scale: Tensor) -> Tensor:
        ratio = (distance / scale[..., None, None]).square() / 2
        return torch.stack([(1 + ratio / a).pow(-a) for a in _SHAPES]).mean(0)

    return (
        _mean_kernel(x, x, kernel, scale, same=True)
        + _mean_kernel(y, y, kernel, scale, same=True)
        - 2 * _mean_kernel(x, y, kernel, scale)
    )


def wasserstein_1d(x: Tensor, y: Tensor) -> Tensor:
    r"""The Wasserstein-1 distance of two empirical laws on the line, :math:`\int |F^{-1}(u) - G^{-1}(u)|\,du`.

    Exact for the draws as they are; as an estimate of the distance of their laws it is too large by about the
    distance of two samples of one law. Differentiable in both.

    Args:
        x: Draws, ``... x n``.
        y: Draws, ``... x m``; batch dimensions broadcast.

    Returns:
        The distance, ``...``, in the units of the draws.

    Raises:
        ShapeError: There is no draw.
        DomainError: The draws differ in dtype or device, or are no floating-point tensors.
        NonFiniteError: There is NaN or infinity among them.

    Example:
        >>> import torch
        >>> wasserstein_1d(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0, 2.0])).item()
        1.5
    """
    where = "wasserstein_1d"
    validation.tensor(where, "x", x)
    validation.tensor(where, "y", y, like=x)
    if not x.ndim or not y.ndim or not x.shape[-1] or not y.shape[-1]:
        raise ShapeError(f"{where}: needs draws (..., n) and (..., m), got {tuple(x.shape)} and {tuple(y.shape)}")
    return _along_line(x, y)


def sliced_wasserstein(
    x: Tensor, y: Tensor, *, num_projections: int = 128, generator: torch.Generator | None = None
) -> Tensor:
    r"""The sliced Wasserstein-1 distance: :func:`wasserstein_1d` along random directions, averaged.

    .. math:: SW_1(P, Q) = E_{u \sim \text{sphere}}\, W_1(u^\top X, u^\top Y)

    (Bonneel et al. 2015, Sliced and Radon Wasserstein barycenters of measures). Directions are of length one,
    so values in p dimensions are about :math:`\sqrt p` times smaller than the distance along all axes at once.

    Args:
        x: Draws of P, ``... x n x p``.
        y: Draws of Q, ``... x m x p``; batch dimensions broadcast.
        num_projections: How many directions.
        generator: Source of the directions; None: torch's global stream. Seeded alike, they are the same.

    Returns:
        The distance, ``...``, in the units of the draws. Differentiable in both.

    Raises:
        ShapeError: The draws have different dimensions, or there are fewer than two of either.
        DomainError: They differ in dtype or device, or the number of directions is not positive.
        NonFiniteError: There is NaN or infinity among them.

    Example:
        >>> import torch
        >>> x = torch.zeros(4, 3)
        >>> round(sliced_wasserstein(x, x + 1, generator=torch.Generator().manual_seed(0)).item(), 1)
        0.9
    """
    _check("sliced_wasserstein", x, y)
    validation.positive_int("sliced_wasserstein", "num_projections", num_projections)
    validation.noise_generator("sliced_wasserstein", generator)
    directions = rnd.normal((x.shape[-1], num_projections), generator=generator, like=x)
    directions = directions / directions.norm(dim=0)
    return _along_line((x @ directions).mT, (y @ directions).mT).mean(-1)


def marginal_wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """The mean over the p coordinates of :func:`wasserstein_1d`; blind to how coordinates hang together.

    Args:
        x: Draws of P, ``... x n x p``.
        y: Draws of Q, ``... x m x p``; batch dimensions broadcast.

    Returns:
        The distance, ``...``, in the units of the draws. Differentiable in both.

    Raises:
        ShapeError: The draws have different dimensions, or there are fewer than two of either.
        DomainError: They differ in dtype or device, or are no floating-point tensors.
        NonFiniteError: There is NaN or infinity among them.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> marginal_wasserstein(x, x + torch.tensor([1.0, 2.0])).item()
        1.5
    """
    _check("marginal_wasserstein", x, y)
    return _along_line(x.mT, y.mT).mean(-1)


def squared_bures(A: Tensor, B: Tensor) -> Tensor:
    r"""The squared Bures distance of two covariances or second moments.

    .. math:: d^2(A, B) = \text{tr} A + \text{tr} B - 2\, \text{tr}\,(A^{1/2} B A^{1/2})^{1/2}

    is the squared Wasserstein-2 distance of the normal laws N(0, A) and N(0, B), and a lower bound on that of
    any two laws with these second moments (Gelbrich 1990; Bhatia, Jain and Lim 2019, arXiv 1712.01504). With roots
    :math:`A = R R^\top, B = S S^\top` the last trace is the sum of the singular values of :math:`S^\top R`; so
    the value keeps all its digits where the matrices are singular, as covariances of many close points are. The
    gradient is written out, :math:`\partial d^2 / \partial A = I - S (S^\top A S)^{-1/2} S^\top`
    (pseudo-inverse), since differentiating a matrix root fails at repeated eigenvalues.

    Args:
        A: Symmetric positive semi-definite, ``... x p x p``; double precision is advised.
        B: Likewise; batch dimensions broadcast.

    Returns:
        The squared distance, ``...``, in squared units of the values; once differentiable in both.

    Raises:
        ShapeError: The matrices are not square or of different sizes.
        DomainError: One is not symmetric, has an eigenvalue below zero by more than rounding, or they differ in
            dtype or device.
        NonFiniteError: There is NaN or infinity in one.

    Example:
        >>> import torch
        >>> round(squared_bures(torch.eye(3), 4 * torch.eye(3)).item(), 4)  # 3 (2 - 1)^2
        3.0
    """
    where = "squared_bures"
    validation.tensor(where, "A", A)
    validation.tensor(where, "B", B, like=A)
    if A.ndim < 2 or B.ndim < 2 or not A.shape[-2] == A.shape[-1] == B.shape[-2] == B.shape[-1]:
        raise ShapeError(
            f"{where}: needs square matrices of one size (..., p, p), got {tuple(A.shape)} and {tuple(B.shape)}"
        )
    for name, matrix in (("A", A), ("B", B)):
        if not torch.allclose(matrix, matrix.mT, rtol=1e-4, atol=1e-5 * float(matrix.detach().abs().max())):
            raise DomainError(f"{where}: {name} must be symmetric; take (M + M.mT) / 2 if it should be")
    lead = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    A, B = A.expand(*lead, *A.shape[-2:]), B.expand(*lead, *B.shape[-2:])
    trace = (A + B).diagonal(dim1=-2, dim2=-1).sum(-1)
    return trace - 2 * _Fidelity.apply(A, B)


class _Fidelity(torch.autograd.Function):
    """tr (A^1/2 B A^1/2)^1/2, with its gradient."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, B: Tensor) -> Tensor:
        R, S = _root("A", A), _root("B", B)
        U, sigma, Vh = torch.linalg.svd(S.mT @ R)
        ctx.save_for_backward(R, S, U, sigma, Vh)
        return sigma.sum(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        R, S, U, sigma, Vh = ctx.saved_tensors
        floor = sigma.shape[-1] * torch.finfo(sigma.dtype).eps * sigma.amax(-1, keepdim=True)
        inverse = torch.where(sigma > floor, 1 / sigma, torch.zeros_like(sigma)).unsqueeze(-2)
        # (S'AS)^-1/2 = U diag(1/sigma) U', and (R'BR)^-1/2 with the right singular vectors.
        left, right, half = S @ U, R @ Vh.mT, 0.5 * grad[..., None, None]
        return half * (left * inverse) @ left.mT, half * (right * inverse) @ right.mT


def _root(name: str, A: Tensor) -> Tensor:
    """R with R R' = A."""
    values, vectors = torch.linalg.eigh((A + A.mT) / 2)
    lowest, largest = values.amin(-1), values.amax(-1)
    if (lowest < -math.sqrt(torch.finfo(A.dtype).eps) * largest).any() or (largest < 0).any():
        raise DomainError(
            f"squared_bures: {name} must be positive semi-definite, got an eigenvalue of {lowest.min().item():.3g} "
            f"beside {largest.max().item():.3g}"
        )
    # Below this an eigenvalue is rounding, whose root would be far from negligible.
    rounding = A.shape[-1] * torch.finfo(A.dtype).eps * largest.unsqueeze(-1)
    return vectors * torch.where(values > rounding, values, 0.0).sqrt().unsqueeze(-2)


def _check(where: str, x: Tensor, y: Tensor) -> None:
    validation.tensor(where, "x", x)
    validation.tensor(where, "y", y, like=x)
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-1] or not x.shape[-1]:
        raise ShapeError(
            f"{where}: needs draws (..., n, p) and (..., m, p) of one dimension p, got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    if min(x.shape[-2], y.shape[-2]) < 2:
        raise ShapeError(f"{where}: needs at least two draws of each law, got {x.shape[-2]} and {y.shape[-2]}")


def _unit(x: Tensor, y: Tensor) -> float:
    """A power of two that draws are divided by, so that squares of far ones do not overflow; mostly 1."""
    largest = max(float(x.detach().abs().max()), float(y.detach().abs().max()))
    far = torch.finfo(x.dtype).max ** 0.25
    return 1.0 if largest < far else 2.0 ** math.floor(math.log2(largest))


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both less a common constant, which changes no difference and keeps digits."""
    with torch.no_grad():
        centre = y.mean(-2, keepdim=True)
        centre = centre.flatten(0, -2).mean(0) if centre.ndim > 2 else centre[0]
    return x - centre, y - centre


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean, ``... x n x m``; the gradient at a distance of zero is zero."""
    # By matrix products, which lose digits of small distances, only where differences take long, in double precision.
    products = x.shape[-1] > _DIRECT and x.dtype == torch.double
    mode = "use_mm_for_euclid_dist" if products else "donot_use_mm_for_euclid_dist"
    return torch.cdist(x, y, compute_mode=mode)


def _mean_kernel(x: Tensor, y: Tensor, kernel: Any, scale: Tensor, same: bool = False) -> Tensor:
    """Mean of kernel(|x_i - y_j|) over all pairs, without those of a draw and itself where both are the same."""
    n, m = x.shape[-2], y.shape[-2]
    batch = math.prod(torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]))
    rows = max(1, _CHUNK // max(1, m * batch))
    total: Any = 0.0
    for first in range(0, n, rows):
        part = x[..., first : first + rows, :]
        values = kernel(_distances(part, y), scale)
        if same:
            own = torch.zeros(part.shape[-2], m, dtype=torch.bool, device=x.device)
            own[range(part.shape[-2]), range(first, first + part.shape[-2])] = True
            values = values.masked_fill(own, 0.0)
        total = total + values.sum((-1, -2))
    return total / (n * (n - 1) if same else n * m)


def _mean_distance(x: Tensor, y: Tensor, same: bool = False) -> Tensor:
    return _mean_kernel(x, y, lambda distance, _: distance, x, same)


def _median_distance(y: Tensor) -> Tensor:
    """The median distance between the first 500 draws, ``...``."""
    with torch.no_grad():
        some = y[..., :500, :]
        i, j = torch.triu_indices(some.shape[-2], some.shape[-2], 1, device=y.device)
        return _distances(some, some)[..., i, j].median(-1).values


def _along_line(x: Tensor, y: Tensor) -> Tensor:
    """W1 of ``... x n`` and ``... x m``."""
    n, m = x.shape[-1], y.shape[-1]
    x, y = x.sort(-1).values, y.sort(-1).values
    if n == m:
        return (x - y).abs().mean(-1)
    # The quantile functions are steps: both are constant between the multiples of 1/n and 1/m, here in units of 1/nm.
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(x.device)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    lengths = (ends - starts).to(x.dtype) / (n * m)
    return ((x[..., starts // m] - y[..., starts // n]).abs() * lengths).sum(-1)
