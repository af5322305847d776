"""The polynomial systems whose solvability sets the rates of over-fitted mixtures of experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError, ShapeError

# One atom needs no system: its parameters converge at the parametric rate.
_PROVEN = {1: 1.0, 2: 4.0, 3: 6.0}


def bar_r(m: int, table: Mapping[int, float] | None = None) -> float:
    r"""The exponent :math:`\bar r(m)` of a Voronoi cell of m fitted atoms.

    For m > 1 the least order r at which the system of :func:`polynomial_residuals` has no solution but the trivial
    ones: 4 for two atoms and 6 for three (Ho & Nguyen 2015, arXiv 1501.02497; Nguyen, Nguyen & Ho 2023,
    arXiv 2305.03288). One atom has 1. For more than three atoms no value is proven (seven at least); 2m continues the
    pattern, as a heuristic.

    Args:
        m: Number of atoms in the cell.
        table: Exponents to use in place of these or beyond them, such as ``{4: 8}``.

    Returns:
        The exponent.

    Raises:
        DomainError: There is no such exponent, or one of the table is less than 1.

    Example:
        >>> [bar_r(m, {4: 8}) for m in (1, 2, 3, 4)]
        [1.0, 4.0, 6.0, 8.0]
    """
    validation.positive_int("moe.bar_r", "m", m)
    known = _PROVEN | check_table("moe.bar_r", table)
    if m not in known:
        raise DomainError(
            f"moe.bar_r: exponents are proven for cells of at most 3 atoms, got {m}; pass one, such as "
            f"bar_r={{{m}: {2 * m}}} for the heuristic 2m, or fit fewer experts"
        )
    return known[m]


def check_table(where: str, table: Mapping[int, float] | None) -> dict[int, float]:
    """The user's exponents as a dictionary."""
    if table is None:
        return {}
    if not isinstance(table, Mapping):
        raise DomainError(f"{where}: bar_r must map sizes of cells to exponents, such as {{4: 8}}, got {table!r}")
    out = {}
    for size, exponent in table.items():
        size = validation.positive_int(where, "a size of bar_r", size)
        if validation.positive(where, f"bar_r[{size}]", exponent) < 1:
            raise DomainError(f"{where}: bar_r[{size}] must be at least 1, got {exponent!r}")
        out[size] = float(exponent)
    return out


def polynomial_residuals(
    location: Tensor,
    scale: Tensor,
    root_mass: Tensor,
    order: int,
    *,
    gate: Tensor | None = None,
    slope: Tensor | None = None,
) -> Tensor:
    r"""Left-hand sides of the polynomial system of a cell of m atoms.

    For :math:`0 \le |\ell_1| \le r`, :math:`0 \le \ell_2 \le r - |\ell_1|`, not both zero,

    .. math:: \sum_{l \le m} q_{5l}^2 \sum_{\alpha}
        \frac{q_{1l}^{\alpha_1} q_{2l}^{\alpha_2} q_{3l}^{\alpha_3} q_{4l}^{\alpha_4}}
             {\alpha_1!\,\alpha_2!\,\alpha_3!\,\alpha_4!},
        \qquad \alpha_1 + \alpha_2 = \ell_1,\ |\alpha_2| + \alpha_3 + 2\alpha_4 = \ell_2,

    with the differences of the gate's weights q1, the slopes q2, the intercepts q3 and, halved, the variances q4. They
    are the coefficients of the Taylor expansion of the density once :math:`\partial_w \partial_c = \partial_a` and
    :math:`\partial_c^2 = 2\partial_\nu` have removed what is linearly dependent (arXiv 2305.03288). Without `gate` and
    `slope` it is the system of location-scale mixtures of normals (Ho & Nguyen 2015, arXiv 1501.02497).

    Args:
        location: q3, ``... x m``.
        scale: q4, ``... x m``.
        root_mass: q5, ``... x m``: square roots of the masses.
        order: The order r.
        gate: q1, ``... x m x d``.
        slope: q2, ``... x m x d``.

    Returns:
        ``... x equations``.

    Raises:
        ShapeError: The shapes do not belong together.
        DomainError: `order` is no positive integer, or only one of `gate` and `slope` is given.

    Example:
        >>> import torch
        >>> one = torch.ones(2)
        >>> polynomial_residuals(torch.tensor([1., -1.]), -one / 2, one, 4)
        tensor([ 0.0000,  0.0000,  0.0000, -0.1667])
    """
    where = "moe.polynomial_residuals"
    validation.positive_int(where, "order", order)
    if not location.shape == scale.shape == root_mass.shape or not location.ndim:
        raise ShapeError(
            f"{where}: location, scale and root_mass must have one shape (..., m), got {tuple(location.shape)}, "
            f"{tuple(scale.shape)} and {tuple(root_mass.shape)}"
        )
    if (gate is None) != (slope is None):
        raise DomainError(f"{where}: gate and slope come together, got one of them")
    if gate is None or slope is None:
        gate = slope = location.new_zeros(*location.shape, 0)
    if gate.shape != slope.shape or gate.shape[:-1] != location.shape:
        raise ShapeError(
            f"{where}: gate and slope must be {(*location.shape, 'd')}, got {tuple(gate.shape)} and "
            f"{tuple(slope.shape)}"
        )
    equations = []
    for l1 in product(range(order + 1), repeat=gate.shape[-1]):
        for l2 in range(order - sum(l1) + 1):
            if sum(l1) + l2:
                terms = _terms(location, scale, gate, slope, l1, l2)
                equations.append((root_mass.square() * terms).sum(-1))
    return torch.stack(equations, -1)


def _terms(q3: Tensor, q4: Tensor, q1: Tensor, q2: Tensor, l1: tuple[int, ...], l2: int) -> Tensor:
    """The inner sums of one equation, ``... x m``."""
    total = torch.zeros_like(q3)
    for a2 in product(*(range(l + 1) for l in l1)):
        left = l2 - sum(a2)
        if left < 0:
            continue
        mixed = torch.ones_like(q3)
        for u, (l, a) in enumerate(zip(l1, a2, strict=True)):
            mixed = mixed * q1[..., u] ** (l - a) * q2[..., u] ** a / (math.factorial(l - a) * math.factorial(a))
        for a4 in range(left // 2 + 1):
            a3 = left - 2 * a4
            total = total + mixed * q3**a3 * q4**a4 / (math.factorial(a3) * math.factorial(a4))
    return total


@dataclass(frozen=True, eq=False)
class PolynomialSolution:
    """The least sum of squares of a polynomial system that a search found, and where.

    Attributes:
        location: Locations of unit norm, ``m``.
        scale: Scales, ``m``.
        root_mass: Square roots of masses from 1/e to e, ``m``.
        value: The sum of squares.

    Example:
        >>> import torch
        >>> found = solve_polynomial_system(2, 3, num_starts=20, generator=torch.Generator().manual_seed(0))
        >>> bool(found.value < 1e-20)  # solvable: the exponent of a cell of two is more than 3
        True
    """

    location: Tensor
    scale: Tensor
    root_mass: Tensor
    value: float


def solve_polynomial_system(
    m: int, order: int, *, num_starts: int = 200, max_iter: int = 100, generator: torch.Generator | None = None
) -> PolynomialSolution:
    r"""Search for a non-trivial solution of the location-scale system by least squares.

    Locations have unit norm, which leaves out the trivial solution, and the logarithms of the root masses lie in
    [-1, 1]: a vanishing mass makes any sum of squares small. Levenberg-Marquardt from all starts at once. A value of
    rounding size is a solution, so :math:`\bar r(m)` is more than `order`; a larger one is a hint, no proof.

    Args:
        m: Number of atoms.
        order: The order r of the system.
        num_starts: Number of random starts.
        max_iter: Iterations at most, of each; fewer once a sum of squares is below 1e-28.
        generator: Source of randomness; None: torch's global stream.

    Returns:
        The best point found.

    Raises:
        DomainError: A number is no positive integer.

    Example:
        >>> from probnn.random import generator_from
        >>> solve_polynomial_system(2, 3, num_starts=20, generator=generator_from(0)).value < 1e-20
        True
    """
    where = "moe.solve_polynomial_system"
    for name, value in (("m", m), ("order", order), ("num_starts", num_starts), ("max_iter", max_iter)):
        validation.positive_int(where, name, value)
    validation.noise_generator(where, generator)

    def unpack(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q3, q4, free = z.split(m, -1)
        return q3 / q3.norm(dim=-1, keepdim=True), q4, free.tanh().exp()

    def residuals(z: Tensor) -> Tensor:
        q3, q4, q5 = unpack(z)
        return polynomial_residuals(q3, q4, q5, order)

    jacobian = torch.func.vmap(torch.func.jacfwd(residuals))
    z = rnd.normal((num_starts, 3 * m), generator=generator, dtype=torch.float64)
    f = residuals(z)
    best, damping = f.square().sum(-1), torch.ones(num_starts, dtype=z.dtype)
    eye = torch.eye(3 * m, dtype=z.dtype)
    for _ in range(max_iter):
        J = jacobian(z)
        normal = J.mT @ J + damping[:, None, None] * eye
        step = torch.linalg.solve(normal, (J.mT @ f.unsqueeze(-1)))
        proposal = z - step.squeeze(-1)
        f_new = residuals(proposal)
        new = f_new.square().sum(-1)
        better = new < best
        z, f = torch.where(better[:, None], proposal, z), torch.where(better[:, None], f_new, f)
        best = torch.where(better, new, best)
        damping = torch.where(better, damping * 0.3, damping * 4).clamp(1e-14, 1e8)
        if best.min() < 1e-28:
            break
    at = int(best.argmin())
    location, scale, root_mass = unpack(z[at])
    return PolynomialSolution(location, scale, root_mass, float(best[at]))
