"""Dual activations: E[phi(u) phi(v)] of jointly normal u and v, of which kernels of wide networks are made."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import validation
from ..errors import DomainError
from ..networks.mlp import ACTIVATIONS

NUM_TERMS = 96  # of a Hermite series: degrees 0 to 95
_SPAN, _STEP, _GRADE = 24.0, 0.08, 0.1  # of normal nodes: the last one, and their largest step, absolute and relative
_OCTAVES = 16  # of degrees beyond the series
_FINEST = 40  # steps at zero go down to 2^-40 / 10; a tanh so steep is a sign, within 1e-12
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
    over one variable, stands at 16 higher powers of :math:`\rho`, an octave apart, in shares that fall like the
    squared coefficients of a smoothed step (tanh) or kink (silu). So the result is exact at equal points (to ten
    digits for standard deviations up to 1000, and its derivative along the scale too) and opposite ones, and stays
    positive semi-definite as a matrix. Elsewhere tanh is within 1e-12 at a variance of 1, 2e-6 at 9, 2e-4 at 81 and
    1e-3 at any larger one (in absolute terms, at any correlation, also between unequal variances), and silu within
    1e-5 of the variance.

    Args:
        activation: One of :class:`probnn.MLP`, or ``"identity"``.
        k11: Variances of u, positive; float64 is advised.
        k12: Covariances, at most :math:`\sqrt{k_{11} k_{22}}` in size.
        k22: Variances of v. All three broadcast.

    Returns:
        F, of the broadcast shape; differentiable (relu: once), also where u and v are equal.

    Raises:
        DomainError: The activation is unknown, the tensors differ in dtype, a variance is not positive, or a
            covariance is larger than the variances allow.
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
    bound = (k11.sqrt() * k22.sqrt()) * (1 + math.sqrt(torch.finfo(k11.dtype).eps))
    if (k12.abs() > bound).any():
        raise DomainError(
            f"{where}: k12 must be at most sqrt(k11 k22) in size, got {k12.abs().max().item():.6g} with variances up "
            f"to {k11.max().item():.6g} and {k22.max().item():.6g}"
        )
    if activation in _CLOSED:
        return _CLOSED[activation](k11, k12, k22)
    dtype = k11.dtype
    k11, k12, k22 = k11.double(), k12.double(), k22.double()  # polynomials of degree 95 overflow single precision
    grade = max(_grade(k11), _grade(k22))
    one, two = HermiteSeries(activation, k11, grade), HermiteSeries(activation, k22, grade)
    a, b = one.coefficients, two.coefficients
    terms = [a[..., m] * b[..., m] for m in _degrees(activation)]
    beyond = [one.beyond[..., j] * two.beyond[..., j] for j in range(_OCTAVES)]
    return _sum_of_powers(activation, terms, beyond, k12 / (k11.sqrt() * k22.sqrt())).to(dtype)


def dual_gram(activation: str, K: Tensor) -> Tensor:
    """:func:`dual_activation` at all pairs of n jointly normal inputs, of covariance ``... x n x n``.

    Of double precision. A variance may be zero, and the covariances are taken to be a matrix of them.
    """
    k = K.diagonal(dim1=-2, dim2=-1)
    if activation in _CLOSED:
        return _CLOSED[activation](k.unsqueeze(-1), K, k.unsqueeze(-2))
    # At zero: phi is as good as linear there, so a tiny variance instead has the gradients of the limit.
    k = k + (k <= 0).to(k.dtype) * 1e-12
    root = k.sqrt()
    rho = K / (root.unsqueeze(-1) * root.unsqueeze(-2))
    series = HermiteSeries(activation, k, _grade(k))
    terms = [_outer(series.coefficients[..., m]) for m in _degrees(activation)]
    return _sum_of_powers(activation, terms, [_outer(series.beyond[..., j]) for j in range(_OCTAVES)], rho)


class HermiteSeries:
    """The Hermite coefficients of phi(sqrt(k) z) for variances k ``...``, and what stands for those beyond them.

    The integrals over z are sums over nodes that get closer towards zero, in proportion to their distance from it,
    down to 2^-grade: there the poles of a steep phi come close to the axis.

    Args:
        activation: Name of phi.
        k: The variances.
        grade: Of the nodes; see :func:`_grade`.

    Attributes:
        coefficients: Of the degrees below NUM_TERMS.
        beyond: For every octave of higher degrees the root of the sum of its squared coefficients: they add up to
            what the series lacks of E[phi^2].
    """

    def __init__(self, activation: str, k: Tensor, grade: int):
        nodes, quadrature, hermite = _rule(grade, k.dtype, k.device)
        phi: Callable[[Tensor], Tensor] = ACTIVATIONS[activation][0]
        values = phi(k.sqrt().unsqueeze(-1) * nodes)
        self.coefficients = (values * quadrature) @ hermite
        rest = ((values - self.coefficients @ hermite.mT).square() * quadrature).sum(-1, keepdim=True)
        # Coefficients squared fall like m^-3/2 (a step) or m^-5/2 (a kink), smoothed from m = k on; octaves, as m times
        # that. The smallest number keeps the root differentiable where nothing is left.
        decay, width = _SPECTRA[activation]
        octaves = torch.arange(_OCTAVES, dtype=k.dtype, device=k.device)
        smooth = _FIRST * (2.0**octaves - 1) * width / k.unsqueeze(-1)
        shares = torch.log_softmax(-decay * math.log(2) * octaves - smooth, -1)
        self.beyond = (rest + torch.finfo(k.dtype).tiny).sqrt() * (0.5 * shares).exp()


def _degrees(activation: str) -> range:
    """Those below NUM_TERMS whose coefficients need not vanish."""
    return range(1, NUM_TERMS, 2) if activation in _ODD else range(NUM_TERMS)


def _outer(a: Tensor) -> Tensor:
    return a.unsqueeze(-1) * a.unsqueeze(-2)


def _sum_of_powers(activation: str, terms: list[Tensor], beyond: list[Tensor], rho: Tensor) -> Tensor:
    """The series in rho, and the octaves beyond: even ones but for odd activations (the odd part of silu is x/2)."""
    square = rho * rho
    power, high = square ** (_FIRST // 2), torch.zeros_like(rho)
    for octave in beyond:
        high = torch.addcmul(high, octave, power)
        power = power * power
    if activation in _ODD:
        return rho * (high + _polynomial(terms, square))
    return high + _polynomial(terms, rho)


def _polynomial(terms: list[Tensor], x: Tensor) -> Tensor:
    """Horner's scheme."""
    total = terms[-1] + torch.zeros_like(x)
    for term in reversed(terms[:-1]):
        total = torch.addcmul(term, total, x)
    return total


def _grade(k: Tensor) -> int:
    """How fine nodes must be at zero, as a power of a half, for variances up to the largest."""
    largest = float(k.detach().max()) if k.numel() else 1.0
    return min(max(0, math.ceil(0.5 * math.log2(largest))), _FINEST) if largest > 0 else 0


@lru_cache(maxsize=64)
def _rule(grade: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and weights of a standard normal integral, and normalised Hermite polynomials ``nodes x terms``.

    The trapezoidal rule in t with dt/dz = 1 / (g sqrt(c^2 + z^2)) + 1 / h, where c = 2^-grade, g and h the steps.
    """
    c = 2.0**-grade

    def t_of(z: Tensor) -> Tensor:
        return torch.asinh(z / c) / _GRADE + z / _STEP

    count = math.ceil(t_of(torch.tensor(_SPAN, dtype=torch.double)).item())
    t = torch.arange(count + 1, dtype=torch.double)
    low, high = torch.zeros_like(t), torch.full_like(t, 1.1 * _SPAN)
    for _ in range(60):  # halving, and then Newton's last digits
        middle = (low + high) / 2
        below = t_of(middle) < t
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    half = (low + high) / 2
    half[0] = 0.0

    def density(z: Tensor) -> Tensor:
        return 1 / (_GRADE * torch.sqrt(c**2 + z.square())) + 1 / _STEP

    for _ in range(3):
        half = half - (t_of(half) - t) / density(half)
    nodes = torch.cat([-half[1:].flip(0), half])
    weights = torch.exp(-0.5 * nodes.square()) / math.sqrt(2 * _PI) / density(nodes)
    polynomials = [torch.ones_like(nodes), nodes]
    for m in range(1, NUM_TERMS - 1):
        polynomials.append((nodes * polynomials[m] - math.sqrt(m) * polynomials[m - 1]) / math.sqrt(m + 1))
    return tuple(x.to(dtype=dtype, device=device) for x in (nodes, weights, torch.stack(polynomials, -1)))  # type: ignore


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
_FIRST = 128  # degree of the first octave beyond the series
# How fast squared coefficients times the degree fall, as a power of it, and the width of the smooth part in sqrt(k).
_SPECTRA = {"tanh": (0.5, _PI**2 / 12), "silu": (1.5, _PI**2 / 3)}
_CLOSED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "relu": _relu, "erf": _erf, "gelu": _gelu, "sin": _sin, "identity": _identity,
}  # fmt: skip
