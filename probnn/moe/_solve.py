"""Small batched sums and solves that the M-steps share."""

from __future__ import annotations

import torch
from torch import Tensor

# Squared pivot of a matrix with unit diagonal under which a coordinate counts as a combination of the others.
_PIVOT = 1e-11


def contract(weights: Tensor, features: Tensor) -> Tensor:
    """Sums over rows, ``B x ... x f``, of weights ``B x ... x n`` times features ``B|1 x f x n``; shared: one gemm."""
    if len(features) == 1:
        return (weights.reshape(-1, weights.shape[-1]) @ features[0].T).reshape(*weights.shape[:-1], -1)
    return (weights.flatten(1, -2) @ features.mT).reshape(*weights.shape[:-1], -1)


def combine(coefficients: Tensor, features: Tensor) -> Tensor:
    """Coefficients ``B x ... x f`` times features ``B|1 x f x n``: ``B x ... x n``; shared features: one gemm."""
    if len(features) == 1:
        flat = coefficients.reshape(-1, coefficients.shape[-1]) @ features[0]
    else:
        flat = coefficients.flatten(1, -2) @ features
    return flat.reshape(*coefficients.shape[:-1], -1)


def products(features: Tensor) -> Tensor:
    """Products of pairs of features ``B|1 x f x n``: ``B|1 x f(f + 1)/2 x n``."""
    i, j = torch.triu_indices(features.shape[-2], features.shape[-2])
    return features[:, i] * features[:, j]


def unpack(pairs: Tensor, size: int) -> Tensor:
    """Symmetric matrices ``... x f x f`` of their pairs ``... x f(f + 1)/2``."""
    i, j = torch.triu_indices(size, size)
    out = pairs.new_empty(*pairs.shape[:-1], size, size)
    out[..., i, j] = pairs
    out[..., j, i] = pairs
    return out


def solve(matrix: Tensor, target: Tensor, *, ascent: bool = False) -> tuple[Tensor, Tensor]:
    r"""Solution x of A x = t for symmetric ``... x f x f`` and ``... x f``, in coordinates that give A a unit diagonal.

    Where A is not safely positive definite its spectrum decides: a least-squares solution leaves out the directions
    without information, so that an update leaves them where they are; an ascent direction takes the absolute
    eigenvalues, none under :math:`10^{-8}` of the largest (Nocedal & Wright 2006, section 3.4).

    Returns:
        The solution, zero where an entry is not finite, and where A was not positive definite, ``...``.
    """
    fine = matrix.isfinite().all(-1).all(-1) & target.isfinite().all(-1)
    identity = torch.eye(matrix.shape[-1]).to(matrix)
    matrix = torch.where(fine[..., None, None], matrix, identity)
    target = torch.where(fine[..., None], target, 0.0)
    diagonal = matrix.diagonal(dim1=-2, dim2=-1).abs()
    unit = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    matrix = matrix * unit.unsqueeze(-1) * unit.unsqueeze(-2)
    target = target * unit
    factor, info = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square().amin(-1)
    singular = (info > 0) | ~(pivots > _PIVOT)
    safe = torch.where(singular[..., None, None], identity, factor)
    out = torch.cholesky_solve(target.unsqueeze(-1), safe).squeeze(-1)
    if singular.any():
        value, vector = torch.linalg.eigh(matrix[singular])
        largest = value.abs().amax(-1, keepdim=True)
        if ascent:
            inverse = 1 / torch.maximum(value.abs(), 1e-8 * largest).clamp_min(torch.finfo(value.dtype).tiny)
        else:
            known = value > _PIVOT * largest
            inverse = torch.where(known, 1 / torch.where(known, value, 1.0), 0.0)
        along = (vector.mT @ target[singular].unsqueeze(-1)).squeeze(-1) * inverse
        out[singular] = (vector @ along.unsqueeze(-1)).squeeze(-1)
    return out * unit, singular | ~fine
