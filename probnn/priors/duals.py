"""Dual activations: E[phi(u) phi(v)] of jointly normal u and v, of which kernels of wide networks are made."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import validation
from ..networks.mlp import ACTIVATIONS

NUM_TERMS = 96  # of a Hermite series: degrees 0 to 95
_SPAN, _NODES = 12.5, 1001  # standard normal nodes, in steps of 0.025
_PI = math.pi


def dual_activation(activation: str, k11: Tensor, k12: Tensor, k22: Tensor) -> Tensor:
    r"""The second moment of an activation at two jointly normal inputs.

    .. math::
        F(k_{11}, k_{12}, k_{22}) = E[\phi(u)\phi(v)], \qquad
        (u, v) \sim N\Big(0, \begin{pmatrix} k_{11} & k_{12} \\ k_{12} & k_{22} \end{pmatrix}\Big)

    In closed form for relu (Cho and Saul 2009), erf (Williams 1997), gelu (Tsuchida, Pearce, van der Heide, Roosta
    and Gallagher 2021, arXiv 2002.08517), sin and the identity. Others (tanh, silu) by their Hermite series,

    .. math::
        F = \sum_{m < 96} a_m(k_{11})\, a_m(k_{22})\, \rho^m + \text{tail}, \qquad
        a_m(k) = E[\phi(\sqrt k z) h_m(z)],\quad \rho = k_{12} / \sqrt{k_{11} k_{22}}

    with normalised Hermite polynomials h. What the truncated series lacks at :math:`\rho = 1`, where F is an integral
    over one variable, is given to the next odd and even powers of :math:`\rho`: the result is exact at equal points
    and for perfectly correlated ones, and stays positive semi-definite as a matrix. For tanh it is within 1e-12 at a
    variance of 1, 1e-6 at 9 and 1e-3 at 81 (in absolute terms, at any correlation).

    Args:
        activation: One of :class:`probnn.MLP`, or ``"identity"``.
        k11: Variances of u, positive, float64.
        k12: Covariances, at most :math:`\sqrt{k_{11} k_{22}}` in size.
        k22: Variances of v. All three broadcast.

    Returns:
        F, of the broadcast shape; differentiable (relu: once), also where u and v are equal.

    Raises:
        DomainError: The activation is unknown, the tensors differ in dtype, or a variance is not positive.
        NonFiniteError: There is NaN or infinity in one.

    Example:
        >>> import torch
        >>> one = torch.ones((), dtype=torch.double)
        >>> dual_activation("relu", one, one, one).item()  # half of the variance
        0.5
    """
    where = "dual_activation"
    validation.choice(where, "activation", activation, (*ACTIVATIONS, "identity"))
    validation.tensor(where, "k11", k11)
    for name, k in (("k12", k12), ("k22", k22)):
        validation.tensor(where, name, k, like=k11)
    for name, k in (("k11", k11), ("k22", k22)):
        validation.positive(where, name, k)
    if activation in _CLOSED:
        return _CLOSED[activation](k11, k12, k22)
    rho = k12 / (k11 * k22).sqrt()
    series = HermiteSeries(activation, k11), HermiteSeries(activation, k22)
    terms = [(one.coefficients[..., m] * two.coefficients[..., m]) for one, two in [series] for m in range(NUM_TERMS)]
    at_one = [(series[0].parity(odd) * series[1].parity(odd) * _weights(k11)).sum(-1) for odd in (False, True)]
    return _sum_of_powers(terms, at_one, rho)


def dual_gram(activation: str, K: Tensor) -> Tensor:
    """:func:`dual_activation` at all pairs of n jointly normal inputs, of covariance ``... x n x n``."""
    k = K.diagonal(dim1=-2, dim2=-1)
    if activation in _CLOSED:
        return _CLOSED[activation](k.unsqueeze(-1), K, k.unsqueeze(-2))
    root = k.sqrt()
    rho = K / (root.unsqueeze(-1) * root.unsqueeze(-2))
    series = HermiteSeries(activation, k)
    a = series.coefficients
    kept = range(1, NUM_TERMS, 2) if activation in _ODD else range(NUM_TERMS)
    terms: list[Tensor | None] = [None] * NUM_TERMS
    for m in kept:
        terms[m] = a[..., m].unsqueeze(-1) * a[..., m].unsqueeze(-2)
    at_one: list[Tensor | None] = [None, None]
    for odd in (False, True) if activation not in _ODD else (True,):
        values = series.parity(odd)
        at_one[odd] = (values * _weights(K)) @ values.mT
    return _sum_of_powers(terms, at_one, rho)


class HermiteSeries:
    """The Hermite coefficients of phi(sqrt(k) z) for variances k ``...``, and its values at normal nodes.

    The integrals over z are sums over equidistant nodes: for analytic functions as exact as a Gauss-Hermite rule,
    and better for steep ones, whose poles come close to the axis (tanh at a variance of 81), since the nodes of
    Gauss rules of any practical size stay further apart than that.
    """

    def __init__(self, activation: str, k: Tensor):
        self.odd = activation in _ODD
        nodes, _, hermite = _rule(k.dtype, k.device)
        phi: Callable[[Tensor], Tensor] = ACTIVATIONS[activation][0]
        if self.odd:  # half of the nodes: the rest is the mirror image
            half = phi(k.sqrt().unsqueeze(-1) * nodes[_NODES // 2 :])
            self._values = torch.cat([-half[..., 1:].flip(-1), half], -1)
        else:
            self._values = phi(k.sqrt().unsqueeze(-1) * nodes)
        self.coefficients = (self._values * _weights(k)) @ hermite

    def parity(self, odd: bool) -> Tensor:
        """The odd or the even part of the values, ``... x nodes``."""
        mirrored = self._values.flip(-1)
        return (self._values - mirrored if odd else self._values + mirrored) / 2


def _sum_of_powers(terms: list[Any], at_one: list[Any], rho: Tensor) -> Tensor:
    """sum_m terms_m rho^m, and in the next even and odd powers what `at_one` (even, odd) holds beyond them."""
    square, total = rho * rho, torch.zeros_like(rho)
    for odd in (False, True):
        own = terms[odd::2]
        if own[0] is None:
            continue
        part = at_one[odd] - torch.stack(torch.broadcast_tensors(*own)).sum(0)
        for term in reversed(own):
            part = torch.addcmul(term, part, square)
        total = total + (part * rho if odd else part)
    return total


@lru_cache(maxsize=8)
def _rule(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and weights of a standard normal integral, and normalised Hermite polynomials ``nodes x terms``."""
    nodes = torch.linspace(-_SPAN, _SPAN, _NODES, dtype=torch.double)
    weights = torch.exp(-0.5 * nodes.square()) / math.sqrt(2 * _PI) * (nodes[1] - nodes[0])
    polynomials = [torch.ones_like(nodes), nodes]
    for m in range(1, NUM_TERMS - 1):
        polynomials.append((nodes * polynomials[m] - math.sqrt(m) * polynomials[m - 1]) / math.sqrt(m + 1))
    return tuple(x.to(dtype=dtype, device=device) for x in (nodes, weights, torch.stack(polynomials, -1)))  # type: ignore


def _weights(like: Tensor) -> Tensor:
    return _rule(like.dtype, like.device)[1]


class _Relu(torch.autograd.Function):
    """With its gradient written out: automatic differentiation divides zero by zero where u and v are equal."""

    @staticmethod
    def forward(ctx: Any, k11: Tensor, k12: Tensor, k22: Tensor) -> Tensor:
        root = (k11 * k22 - k12 * k12).clamp_min(0).sqrt()  # below zero only by rounding
        cosine = (_PI - torch.atan2(root, k12)) / (2 * _PI)
        ctx.save_for_backward(k11, k22, root, cosine)
        return root / (2 * _PI) + cosine * k12

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k11, k22, root, cosine = ctx.saved_tensors
        scaled = grad * root / (4 * _PI)
        return scaled / k11, grad * cosine, scaled / k22


def _relu(k11: Tensor, k12: Tensor, k22: Tensor) -> Tensor:
    k11, k12, k22 = torch.broadcast_tensors(k11, k12, k22)
    return _Relu.apply(k11, k12, k22)


def _erf(k11: Tensor, k12: Tensor, k22: Tensor) -> Tensor:
    # The product less 4 k12^2 is at least 1.
    rest = (1 + 2 * k11) * (1 + 2 * k22) - 4 * k12 * k12
    return 2 / _PI * torch.atan2(2 * k12, rest.sqrt())


def _gelu(k11: Tensor, k12: Tensor, k22: Tensor) -> Tensor:
    outer, inner = (1 + k11) * (1 + k22), k11 * k22
    square = outer - k12 * k12  # at least 1
    root = square.sqrt()
    ratio = (k12 * k12 + inner * square) / (outer * root)
    return (ratio + k12 * torch.atan2(k12, root)) / (2 * _PI) + k12 / 4


def _sin(k11: Tensor, k12: Tensor, k22: Tensor) -> Tensor:
    mean = (k11 + k22) / 2
    return (torch.exp(k12 - mean) - torch.exp(-k12 - mean)) / 2


def _identity(k11: Tensor, k12: Tensor, k22: Tensor) -> Tensor:
    return k12 + torch.zeros_like(k11 * k22)


_ODD = ("tanh",)
_CLOSED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "relu": _relu, "erf": _erf, "gelu": _gelu, "sin": _sin, "identity": _identity,
}  # fmt: skip
