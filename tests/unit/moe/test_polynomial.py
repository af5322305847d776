"""Where the exponents of Voronoi losses come from: polynomial systems and dependent derivatives."""

import math
from itertools import combinations_with_replacement

import pytest
import torch

from probnn import moe
from probnn.errors import DomainError, ShapeError
from probnn.random import generator_from


def test_table():
    assert [moe.bar_r(m) for m in (1, 2, 3)] == [1, 4, 6]
    assert moe.bar_r(4, {4: 8}) == 8
    assert moe.bar_r(2, {2: 5}) == 5
    with pytest.raises(DomainError, match=r"at most 3 atoms, got 4; pass one, such as bar_r=\{4: 8\}"):
        moe.bar_r(4)
    with pytest.raises(DomainError, match="at least 1, got 0.5"):
        moe.bar_r(2, {2: 0.5})
    with pytest.raises(DomainError, match="m must be an integer"):
        moe.bar_r(0)


def test_residuals_of_two_atoms():
    one = torch.ones(2).double()
    residuals = moe.polynomial_residuals(torch.tensor([1.0, -1.0], dtype=torch.float64), -one / 2, one, 4)
    torch.testing.assert_close(residuals, torch.tensor([0, 0, 0, -1 / 6], dtype=torch.float64), rtol=0, atol=1e-15)


def test_residuals_are_coefficients_of_a_series(seed):
    # For one input the equation of (l1, l2) is the coefficient of s^l1 z^l2 in sum of q5^2 exp(q1 s + q2 s z + q3 z +
    # q4 z^2): with s for the gate's derivative and z for the intercept's, slopes are s z, variances z^2.
    g = generator_from(seed)
    m, r = 3, 4
    q1, q2, q3, q4, q5 = torch.randn(5, m, generator=g, dtype=torch.float64)
    got = moe.polynomial_residuals(q3, q4, q5, r, gate=q1[:, None], slope=q2[:, None])
    # The coefficients by the discrete Fourier transform over two circles.
    N = 96
    root = torch.exp(2j * math.pi * torch.arange(N, dtype=torch.float64) / N)
    s, z = 0.5 * root[:, None, None], 0.5 * root[None, :, None]
    values = (q5**2 * torch.exp(q1 * s + q2 * s * z + q3 * z + q4 * z**2)).sum(-1)
    order = torch.arange(N)
    coefficients = (torch.fft.fft2(values) / N**2).real / 0.5 ** (order[:, None] + order)
    expected = [coefficients[a, b] for a in range(r + 1) for b in range(r - a + 1) if a + b]
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-8, atol=1e-8)
    # Without gate and slopes the equations of l1 = 0 are left, and a coordinate of zeros changes nothing.
    alone = moe.polynomial_residuals(q3, q4, q5, r)
    torch.testing.assert_close(alone, got[:r])
    wide = [torch.stack([q, torch.zeros(m).double()], -1) for q in (q1, q2)]
    two = moe.polynomial_residuals(q3, q4, q5, r, gate=wide[0], slope=wide[1])
    torch.testing.assert_close(two.abs().sum(), got.abs().sum())


@pytest.mark.parametrize(("m", "order", "solvable"), [(2, 3, True), (3, 5, True), (2, 4, False)])
def test_solvability(m, order, solvable, seed):
    found = moe.solve_polynomial_system(m, order, generator=generator_from(seed))
    assert found.value < 1e-20 if solvable else found.value > 1e-6
    residuals = moe.polynomial_residuals(found.location, found.scale, found.root_mass, order)
    assert residuals.square().sum().item() == pytest.approx(found.value, abs=1e-20)
    assert found.location.norm().item() == pytest.approx(1)
    assert found.root_mass.log().abs().max() <= 1


def test_bad_input():
    with pytest.raises(ShapeError, match=r"must have one shape"):
        moe.polynomial_residuals(torch.ones(2), torch.ones(3), torch.ones(2), 2)
    with pytest.raises(DomainError, match="come together"):
        moe.polynomial_residuals(torch.ones(2), torch.ones(2), torch.ones(2), 2, gate=torch.ones(2, 1))
    with pytest.raises(DomainError, match="order"):
        moe.polynomial_residuals(torch.ones(2), torch.ones(2), torch.ones(2), 0)


def derivatives(F, theta, x, y):
    """Values, first and second derivatives of F in theta at all points: a dictionary of columns."""
    p = len(theta)
    at = theta.expand(len(y), p)
    first = torch.func.vmap(torch.func.grad(F))(at, x, y)
    second = torch.func.vmap(torch.func.hessian(F))(at, x, y)
    columns = {(): torch.func.vmap(F)(at, x, y)}
    columns |= {(i,): first[:, i] for i in range(p)}
    columns |= {(i, j): second[:, i, j] for i, j in combinations_with_replacement(range(p), 2)}
    return columns


def relations(columns):
    """Linear relations between functions given at more points than there are functions: a dictionary of each."""
    matrix = torch.stack(list(columns.values()), -1)
    scale = matrix.norm(dim=0)
    _, values, V = torch.linalg.svd(matrix / scale, full_matrices=False)
    null = V[values < 1e-9 * values[0]]
    return [dict(zip(columns, row.tolist(), strict=True)) for row in null]


def squares(columns, of):
    """The largest coefficient of a square, or product, of some parameters in the relations."""
    return max(abs(row[key]) for row in relations(columns) for key in combinations_with_replacement(of, 2))


def normal(y, mean, variance):
    return torch.exp(-0.5 * (y - mean) ** 2 / variance) / torch.sqrt(2 * math.pi * variance)


def softmax(q, x, y):
    w, a, c, v = q
    return torch.exp(w * x[0]) * normal(y, a * x[0] + c, v)


def activated(activation):
    def F(q, x, y):
        w, tau, a, c, v = q
        return torch.exp(activation(w * x[0]) / tau) * normal(y, a * x[0] + c, v)

    return F


def laplace(q, x, y):
    return torch.exp(-(x - q[:2]).square().sum().sqrt()) * normal(y, q[2:4] @ x + q[4], q[5])


def joint(q, x, y):
    centre, gamma, a, c, v = q
    return normal(x[0], centre, gamma) * normal(y, a * x[0] + c, v)


def points(seed, d=1, n=300):
    g = generator_from(seed)
    return (torch.randn(n, s, generator=g, dtype=torch.float64) for s in (d, 1))


def test_interaction_of_gate_and_experts(seed):
    x, y = points(seed, n=100)
    D = derivatives(softmax, torch.tensor([0.7, -0.4, 0.3, 0.6], dtype=torch.float64), x, y[:, 0])
    assert (D[0, 2] - D[1,]).abs().max() < 1e-12
    assert (D[2, 2] - 2 * D[3,]).abs().max() < 1e-12
    assert len(relations(D)) == 3  # these, and that of (a, c) and (w, nu), their derivative


@pytest.mark.parametrize("name", ["gelu", "silu", "tanh", "sigmoid"])
def test_an_activation_leaves_intercepts_and_variances_dependent_only(name, seed):
    x, y = points(seed)
    F = activated(getattr(torch.nn.functional, name))
    D = derivatives(F, torch.tensor([1.5, 0.8, -0.4, 0.3, 0.6], dtype=torch.float64), 1.5 * x, y[:, 0])
    assert (D[3, 3] - 2 * D[4,]).abs().max() < 1e-12
    assert len(relations(D)) == 1


def test_a_linear_activation_has_more_dependent_derivatives(seed):
    x, y = points(seed)
    theta = torch.tensor([1.5, 0.8, -0.4, 0.3, 0.6], dtype=torch.float64)
    D = derivatives(activated(lambda v: v), theta, 1.5 * x, y[:, 0])
    assert len(relations(D)) > 2
    assert squares(D, of=(0, 1)) > 0.1


def test_no_relation_has_squares_of_weights_and_slopes_with_two_inputs(seed):
    x, y = points(seed, d=2, n=600)

    def gelu(q, x, y):
        return torch.exp(torch.nn.functional.gelu(q[:2] @ x) / q[6]) * normal(y, q[2:4] @ x + q[4], q[5])

    # There are others, as d2/dw1 da2 = d2/dw2 da1, but none that could cancel a square.
    theta = torch.tensor([0.9, -1.3, 1.0, -0.5, 0.3, 0.6, 0.8], dtype=torch.float64)
    D = derivatives(gelu, theta, x, y[:, 0])
    assert squares(D, of=(0, 1, 6)) < 1e-6 and squares(D, of=(2, 3)) < 1e-6
    assert squares(D, of=(4,)) > 0.1  # that of intercepts with variances
    D = derivatives(laplace, theta[:6], x, y[:, 0])
    assert squares(D, of=(0, 1)) < 1e-6 and squares(D, of=(2, 3)) < 1e-6
    assert squares(D, of=(4,)) > 0.1


@pytest.mark.parametrize("centre", [0.0, 0.7])
def test_slopes_of_a_gaussian_gate_depend_on_centres_and_intercepts(centre, seed):
    x, y = points(seed)
    theta = torch.tensor([centre, 0.8, -0.4, 0.3, 0.6], dtype=torch.float64)
    D = derivatives(joint, theta, x, y[:, 0])
    assert (D[2,] - theta[1] * D[0, 3] - centre * D[3,]).abs().max() < 1e-12
    # Three, and those that follow in the second order: of (g, a), (a, c) and (a, a).
    assert len(relations(D)) == 6


def test_slopes_of_a_gaussian_gate_have_half_the_exponent_of_centres(seed):
    # Where three atoms of a Gaussian gate fit one true expert, let them differ along the diagonal v of (x, y) only:
    # means e q3 v and variances 1 + 2 e^2 q4 in that direction, with a solution of order 5. The true covariance is the
    # identity, so the total variation is that of two mixtures on a line. It falls by e^6 (or faster), while slopes,
    # cov(x, y)/var(x), differ by the order of e^2: no bound by their squares, of order e^4, can hold.
    q = moe.solve_polynomial_system(3, 5, generator=generator_from(seed))
    mass = q.root_mass.square()
    largest = q.scale.abs().max().item()
    X = torch.zeros(1, 1).double()
    one = moe.MixingMeasure([0.0], [[0.0]], [0.0], [[0.0]], [1.0])
    distance, slope = [], []
    for e in (0.4 / math.sqrt(max(1.0, largest)), 0.2 / math.sqrt(max(1.0, largest))):
        variance = 1 + 2 * e**2 * q.scale
        zero = torch.zeros(3, 1).double()
        G = moe.MixingMeasure(mass.log(), zero, e * q.location, zero, variance)
        distance.append(moe.density_distance(G, one, X).value.item())
        extra = variance - 1  # the covariance is I + extra v v', with v v' = 1/2 everywhere
        slope.append((0.5 * extra / (1 + 0.5 * extra)).abs().max().item())
    by_slope = math.log(distance[0] / distance[1]) / math.log(slope[0] / slope[1])
    assert by_slope > 2.6
