"""The convex problem behind translation-free losses: the common translation that brings atoms nearest."""

from __future__ import annotations

import torch
from torch import Tensor


def objective(t: Tensor, w: Tensor, x: Tensor, e2: Tensor, p: Tensor) -> Tensor:
    r"""Sums :math:`\sum_i w_i (\|x_i - t\|^2 + e_i^2)^{p_i/2}` for t ``... x d``, x ``... x k x d`` and ``... x k``."""
    return (w * ((x - t.unsqueeze(-2)).square().sum(-1) + e2) ** (0.5 * p)).sum(-1)


def minimise(w: Tensor, x: Tensor, e2: Tensor, p: Tensor) -> Tensor:
    """The t of the least :func:`objective`, for exponents of at least 1: ``... x d``.

    Convex, with kinks at the x_i of exponent 1. One input: bisection of the slope, then the best of that and the
    kinks. Several: Newton with damping from the best x_i, leaving a kink along the least subgradient (Vardi & Zhang
    2000). Weights of zero leave an atom out.
    """
    w, x, e2, p = torch.broadcast_tensors(w.unsqueeze(-1), x, e2.unsqueeze(-1), p.unsqueeze(-1))
    w, e2, p = w[..., 0], e2[..., 0], p[..., 0]
    d = x.shape[-1]
    lead, k = x.shape[:-2], x.shape[-2]
    if d == 0:
        return x.new_zeros(*lead, 0)
    total = w.sum(-1, keepdim=True)
    w = w / torch.where(total > 0, total, 1.0)
    flat = (w.reshape(-1, k), x.reshape(-1, k, d), e2.reshape(-1, k), p.reshape(-1, k))
    return (_bisect(*flat) if d == 1 else _newton(*flat)).reshape(*lead, d)


def _best(points: Tensor, w: Tensor, x: Tensor, e2: Tensor, p: Tensor) -> Tensor:
    """The best of the points ``N x c x d``: ``N x d``."""
    values = objective(points, w.unsqueeze(-2), x.unsqueeze(-3), e2.unsqueeze(-2), p.unsqueeze(-2))
    return points[torch.arange(len(points), device=points.device), values.argmin(-1)]


def _bisect(w: Tensor, x: Tensor, e2: Tensor, p: Tensor) -> Tensor:
    low, high = x.amin(-2), x.amax(-2)
    for _ in range(70):  # halves the interval to the spacing of doubles
        middle = 0.5 * (low + high)
        offset = middle - x[..., 0]
        q = offset.square() + e2
        slope = (w * p * torch.where(q > 0, q, 1.0) ** (0.5 * p - 1) * offset).sum(-1, keepdim=True)
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    return _best(torch.cat([x, low.unsqueeze(-2), high.unsqueeze(-2)], -2), w, x, e2, p)


def _newton(w: Tensor, x: Tensor, e2: Tensor, p: Tensor) -> Tensor:
    t = _best(x, w, x, e2, p)
    value = objective(t, w, x, e2, p)
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    damping = torch.full_like(value, 1e-3)
    for _ in range(200):
        offset = t.unsqueeze(-2) - x
        q = offset.square().sum(-1) + e2
        off = q > 0
        q = torch.where(off, q, 1.0)
        a = torch.where(off, w * p * q ** (0.5 * p - 1), 0.0)
        gradient = (a.unsqueeze(-1) * offset).sum(-2)
        # A kink holds t in place as long as the others pull with less than its weight.
        hold = torch.where(off | (p > 1), 0.0, w).sum(-1)
        size = gradient.norm(dim=-1)
        gradient = gradient * ((size - hold).clamp_min(0.0) / torch.where(size > 0, size, 1.0)).unsqueeze(-1)
        b = a * (p - 2) / q
        hessian = a.sum(-1)[:, None, None] * eye + (b.unsqueeze(-1) * offset).mT @ offset
        scale = hessian.diagonal(dim1=-2, dim2=-1).sum(-1)
        scale = torch.where(scale > 0, scale, 1.0)
        step = torch.linalg.solve(hessian + ((damping + 1e-14) * scale)[:, None, None] * eye, gradient.unsqueeze(-1))
        proposal = t - step.squeeze(-1)
        new = objective(proposal, w, x, e2, p)
        better = new < value
        if not (better | ((damping < 1e12) & (size > hold))).any():
            break
        t, value = torch.where(better.unsqueeze(-1), proposal, t), torch.where(better, new, value)
        damping = torch.where(better, damping * 0.1, damping * 10).clamp(1e-14, 1e13)
    return t
