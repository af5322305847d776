"""Covariance matrices of gpytorch kernels, and what is done with them."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..errors import DomainError, NonFiniteError

_JITTER = {torch.float64: 1e-8, torch.float32: 1e-6}


def covariance(kernel: Any, X1: Tensor, X2: Tensor | None = None) -> Tensor:
    """The dense matrix of k(X1, X2), ``... x n1 x n2``; batch dimensions broadcast."""
    X2 = X1 if X2 is None else X2
    lead = torch.broadcast_shapes(X1.shape[:-2], X2.shape[:-2], kernel.batch_shape)
    if X1.shape[-2] == 0 or X2.shape[-2] == 0:
        return X1.new_zeros(*lead, X1.shape[-2], X2.shape[-2])
    same = X1 is X2
    X1 = X1.expand(*lead, *X1.shape[-2:])
    return kernel(X1, X1 if same else X2.expand(*lead, *X2.shape[-2:])).to_dense()


def cholesky(A: Tensor, *, scale: Tensor | None = None, quiet: bool = False) -> Tensor:
    """The lower Cholesky factor of A, with jitter where A is not positive definite in floating point.

    linear_operator's jitter is absolute; A is divided by its scale first, so that the jitter is relative:
    1e-8 to 1e-6 in double precision, 1e-6 to 1e-4 in single.

    Args:
        A: Symmetric matrices ``... x n x n``.
        scale: A typical variance ``...``; None: the mean of the diagonal.
        quiet: Leave out the warning about jitter: for function draws, whose covariance at close points
            is always singular in floating point. The draws are then off by at most a thousandth of the
            prior's standard deviation.
    """
    from linear_operator.utils.cholesky import psd_safe_cholesky
    from linear_operator.utils.errors import NanError, NotPSDError
    from linear_operator.utils.warnings import NumericalWarning

    with torch.no_grad():
        scale = A.diagonal(dim1=-2, dim2=-1).mean(-1) if scale is None else scale
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))[..., None, None]
    with warnings.catch_warnings() if quiet else nullcontext():
        if quiet:
            warnings.simplefilter("ignore", NumericalWarning)
        try:
            # The numbers of tries and of the first jitter are global settings, which importing BoTorch changes.
            return psd_safe_cholesky(A / scale, jitter=_JITTER[A.dtype], max_tries=3) * scale.sqrt()
        except NanError as error:
            raise NonFiniteError(f"GaussianProcess: the covariance of the points holds NaN ({error})") from error
        except NotPSDError as error:
            raise DomainError(
                "GaussianProcess: the covariance of the points is not positive definite, not even with jitter; "
                "check that the kernel is one, and give noise_variance where rows repeat"
            ) from error


def solve(L: Tensor, B: Tensor) -> Tensor:
    """L^-1 B for lower triangular L ``... x n x n`` and B ``... x n x q``; batch dimensions broadcast."""
    extra = B.ndim - L.ndim
    if extra <= 0:
        return torch.linalg.solve_triangular(L, B, upper=False)
    # Batch dimensions that L lacks become columns: one solve instead of one for each copy of L.
    lead = B.shape[:extra]
    columns = B.reshape(lead.numel(), *B.shape[extra:]).movedim(0, -1)
    solved = torch.linalg.solve_triangular(L, columns.flatten(-2), upper=False)
    return solved.unflatten(-1, columns.shape[-2:]).movedim(-1, 0).reshape(*lead, *solved.shape[:-1], B.shape[-1])


def distinct(X: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows of all batch elements, ``N x d``, and for each row of X ``... x n x d`` its number."""
    rows = X.reshape(-1, X.shape[-1])
    with torch.no_grad():
        unique, inverse = torch.unique(rows, dim=0, return_inverse=True)
        first = torch.full((len(unique),), len(rows), device=X.device)
        first.scatter_reduce_(0, inverse, torch.arange(len(rows), device=X.device), "amin")
    return rows[first], inverse


def concatenated(first: Tensor, second: Tensor, dim: int, event: int = 2) -> Tensor:
    """Concatenate along `dim`, after broadcasting what stands before the last `event` dimensions."""
    lead = torch.broadcast_shapes(first.shape[:-event], second.shape[:-event])
    return torch.cat([x.expand(*lead, *x.shape[-event:]) for x in (first, second)], dim)


def batched(module: Any, count: int) -> Any:
    """A copy of a gpytorch kernel or mean with its own parameters for each of `count` batch elements.

    Kernel.expand_batch does not do: it expands the indices of active dimensions as well, and cannot
    name the children of sums and products.
    """
    from gpytorch.kernels import Kernel
    from gpytorch.means import Mean

    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(part, (Kernel, Mean)):
            part.batch_shape = torch.Size([count])
        for parameter in part.parameters(recurse=False):
            parameter.data = parameter.data.expand(count, *parameter.shape).clone()
    return module
