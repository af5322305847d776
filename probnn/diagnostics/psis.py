"""Pareto-smoothed importance weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import validation
from ..errors import ShapeError

GOOD_K = 0.7  # up to here smoothed weights can be trusted


def psis(log_ratios: Tensor, *, relative_efficiency: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Smooth importance weights by a generalised Pareto distribution fitted to the largest of them.

    The M largest of S weights, :math:`M = \lceil \min(S/5, 3\sqrt{S / r}) \rceil`, give way to the quantiles
    :math:`F^{-1}((i - 1/2) / M)` of the distribution fitted to them (Zhang and Stephens, 2009; its shape k is drawn
    towards 1/2 by ten observations' worth), cut off at the largest raw weight. Where k is above 0.7 averages
    under the weights cannot be trusted (Vehtari, Simpson, Gelman, Yao and Gabry, 2024, arXiv:1507.02646).

    Args:
        log_ratios: Logarithms of the raw weights, ``... x S``.
        relative_efficiency: r, the effective number of draws over their number, for draws of a Markov chain.

    Returns:
        Logarithms of normalised weights ``... x S``, and k, ``...``; k is infinite where the tail has fewer
        than five weights, which stay as they are.

    Raises:
        ShapeError, NonFiniteError, DomainError: There are no draws, or a number is not finite or not positive.

    Example:
        >>> import torch
        >>> x = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.double)
        >>> weights, k = psis(-0.1 * x)  # to the mean of N(-0.1, 1) with draws of N(0, 1)
        >>> bool(k < 0.3), round(float((weights.exp() * x).sum()), 1)
        (True, -0.1)
    """
    where = "psis"
    validation.tensor(where, "log_ratios", log_ratios)
    validation.positive(where, "relative_efficiency", relative_efficiency)
    if log_ratios.ndim == 0 or log_ratios.shape[-1] == 0:
        raise ShapeError(f"{where}: log_ratios must have shape (..., S) with S > 0, got {tuple(log_ratios.shape)}")
    S = log_ratios.shape[-1]
    rows = log_ratios.reshape(-1, S).double()
    rows = rows - rows.amax(-1, keepdim=True)
    tail = math.ceil(min(S / 5, 3 * math.sqrt(S / relative_efficiency)))
    smoothed = [_smooth(row, tail) for row in rows]
    weights = torch.stack([w for w, _ in smoothed]).log_softmax(-1) if smoothed else rows
    k = rows.new_tensor([k for _, k in smoothed])
    return weights.reshape(log_ratios.shape).to(log_ratios.dtype), k.reshape(log_ratios.shape[:-1])


def _smooth(row: Tensor, tail: int) -> tuple[Tensor, float]:
    """One row with the maximum at 0."""
    order = row.argsort()
    lowest = math.log(torch.finfo(torch.double).tiny)
    cutoff = max(float(row[order[-tail - 1]]), lowest) if tail < len(row) else lowest
    top = order[row[order] > cutoff]
    if len(top) < 5:
        return row, math.inf
    above = row[top].exp() - math.exp(cutoff)
    k, scale = _fit(above)
    if not math.isfinite(k):
        return row, k
    p = (torch.arange(len(top), dtype=row.dtype, device=row.device) + 0.5) / len(top)
    quantile = -scale * (-p).log1p() if k == 0 else scale * torch.expm1(-k * (-p).log1p()) / k
    out = row.clone()
    out[top] = (quantile + math.exp(cutoff)).log().clamp_max(0.0)
    return out, k


def _fit(x: Tensor) -> tuple[float, float]:
    """Shape and scale of a generalised Pareto distribution by Zhang and Stephens' method, `x` rising."""
    n = len(x)
    if float(x[-1]) <= 0 or float(x[0]) == float(x[-1]):
        return math.inf, math.nan
    points = 30 + int(math.sqrt(n))
    grid = 1 - (points / (torch.arange(points, dtype=x.dtype, device=x.device) + 0.5)).sqrt()
    theta = grid / (3 * x[int(n / 4 + 0.5) - 1]) + 1 / x[-1]
    shape = (-theta[:, None] * x).log1p().mean(-1)
    weight = (n * ((-theta / shape).log() - shape - 1)).softmax(0)
    weight = torch.where(weight >= 10 * torch.finfo(x.dtype).eps, weight, 0.0)
    at = float((theta * weight / weight.sum()).sum())
    k = float((-at * x).log1p().mean())
    scale = -k / at
    return (n * k + 5.0) / (n + 10.0), scale
