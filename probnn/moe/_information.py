"""What an information matrix says: its spectrum beside the information of complete data."""

from __future__ import annotations

import torch
from torch import Tensor

# Directions that keep less than this share of the information of complete data are flat.
FLAT = 1e-8
# Relative to the largest: smaller eigenvalues of the information of complete data are rounding.
_ROUNDING = 1e-14


def spectrum(information: Tensor, complete: Tensor) -> tuple[Tensor, Tensor]:
    r"""Eigenvalues of an information relative to that of complete data, and their directions.

    With I the observed information and C that of the same rows if the expert of each were known, the columns d of
    the directions solve :math:`I d = \lambda C d`, :math:`d^\top C d = 1`; the eigenvalue is the share of information
    that is left where experts are not known (Orchard & Woodbury 1972). Neither units nor origins of inputs and outcomes
    change it, and a share of rounding size means no information, whatever the curvature of the coordinates.

    Args:
        information: I, ``... x F x F``.
        complete: C, ``... x F x F``; where it has none itself, shares are of one unit.

    Returns:
        Eigenvalues in increasing order, ``... x F``, and directions as columns, ``... x F x F``; NaN where a matrix is
        not finite.
    """
    fine = information.isfinite().all(-1).all(-1) & complete.isfinite().all(-1).all(-1)
    identity = torch.eye(complete.shape[-1]).to(complete)
    information, complete = (torch.where(fine[..., None, None], x, identity) for x in (information, complete))
    size = complete.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(size > 0, size, 1.0).rsqrt()
    values, vectors = torch.linalg.eigh(scale.unsqueeze(-1) * complete * scale.unsqueeze(-2))
    known = values > _ROUNDING * values[..., -1:]
    white = scale.unsqueeze(-1) * vectors * torch.where(known, values, 1.0).rsqrt().unsqueeze(-2)
    shares, turned = torch.linalg.eigh(white.mT @ information @ white)
    directions = white @ turned
    return shares.masked_fill(~fine[..., None], torch.nan), directions.masked_fill(~fine[..., None, None], torch.nan)
