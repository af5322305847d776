"""The arithmetic of normal mixtures whose components may be point masses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import UnsupportedError


def root(variance: Tensor) -> Tensor:
    """The square root, with a gradient of zero (not NaN) where a variance is exactly zero."""
    zero = variance == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, variance).sqrt())


def mixture_quantile(p: Tensor, w: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Quantiles of normal mixtures over dimension -3, which is kept, by safeguarded Newton steps.

    A component of scale zero is a point mass; where the quantile is one of those, it is exactly it.

    Args:
        p: Levels, broadcasting with the rest.
        w: Normalised weights ``... x S x 1 x 1``.
        loc: Means ``... x S x q x m``.
        scale: Standard deviations like `loc`, not all of those of positive weight zero at any place.
    """
    atom = scale == 0
    spread = torch.where(atom, 1.0, scale)

    def cdf_and_density(y: Tensor) -> tuple[Tensor, Tensor]:
        z = (y - loc) / spread
        density = w * (-0.5 * z.square()).exp() / (spread * math.sqrt(2 * math.pi))
        below = torch.where(atom, (y >= loc).to(z), torch.special.ndtr(z))
        return (w * below).sum(-3, keepdim=True), torch.where(atom, 0.0, density).sum(-3, keepdim=True)

    with torch.no_grad():
        own = loc + scale * torch.special.ndtri(p)  # the mixture's quantile lies between its components'
        low = torch.where(w > 0, own, math.inf).amin(-3, keepdim=True)
        high = torch.where(w > 0, own, -math.inf).amax(-3, keepdim=True)
        if not (low.isfinite() & high.isfinite()).all():
            raise UnsupportedError("DrawsPosterior.quantile: needs finite draws and noise, got infinite ones")
        y, step, tolerance = (low + high) / 2, high - low, 1000 * torch.finfo(p.dtype).eps
        smallest = torch.where(atom, math.inf, scale).amin(-3, keepdim=True)
        for _ in range(200):  # each step bisects, or is at most half as long as the one before
            cdf, density = cdf_and_density(y)
            low, high = torch.where(cdf < p, y, low), torch.where(cdf < p, high, y)
            newton, enough = (p - cdf) / density, tolerance * (y.abs() + smallest)
            settled = (newton.abs() <= enough) | (high - low <= enough)
            if settled.all():
                break
            good = (y + newton >= low) & (y + newton <= high) & (newton.abs() < 0.5 * step.abs())
            step = torch.where(settled, 0.0, torch.where(good, newton, (low + high) / 2 - y))
            y = y + step
        y = torch.where(newton.abs() <= enough, y + newton, y)
    # The value is settled: this adds nothing to it but the gradient of the implicit function.
    cdf, density = cdf_and_density(y)
    smooth = y + (cdf.detach() - cdf) / density.detach().clamp_min(torch.finfo(p.dtype).tiny)
    if not atom.any():
        return smooth
    distance = torch.where(atom & (w > 0), (loc - y).abs(), math.inf)
    nearest = distance.argmin(-3, keepdim=True)
    at = torch.take_along_dim(loc, nearest, -3)
    upto = cdf_and_density(at)[0]
    mass = (w * (atom & (loc == at)).to(w)).sum(-3, keepdim=True)
    close = distance.gather(-3, nearest) <= 2 * enough
    return torch.where(close & (upto - mass < p) & (p <= upto), at, smooth)
