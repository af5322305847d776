"""Dual activations and moments of wide networks: quadrature, simulation, gradients, bad input."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from scipy import integrate
from torch import Tensor

import probnn
from probnn import random as rnd
from probnn.errors import DomainError, NonFiniteError, ShapeError, UnsupportedError
from probnn.priors import (
    HierarchicalWeights,
    InverseGammaWeights,
    LaplaceWeights,
    NormalWeights,
    dual_activation,
    wide_covariance,
)
from probnn.priors.duals import dual_gram

DOUBLE = torch.double
PHI = {
    "tanh": torch.tanh, "relu": torch.relu, "erf": torch.erf, "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu, "sin": torch.sin, "identity": lambda x: x,
}  # fmt: skip
X = torch.linspace(-2, 2, 6, dtype=DOUBLE).unsqueeze(-1)


def numbers(*values: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=DOUBLE) for value in values]


def by_grid(phi, k11: float, k12: float, k22: float) -> float:
    """E phi(u) phi(v) by the trapezoidal rule in two independent standard normals."""
    z = torch.arange(-9, 9, 0.01, dtype=DOUBLE)
    weights = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi) * 0.01
    slope = k12 / math.sqrt(k11)
    v = phi(slope * z.unsqueeze(-1) + math.sqrt(k22 - slope**2) * z) @ weights
    return (phi(math.sqrt(k11) * z) * v * weights).sum().item()


@pytest.mark.parametrize("activation", PHI)
def test_dual_against_two_dimensional_quadrature(activation: str) -> None:
    # The rule itself is off by 1e-5 where relu has its kink; the series is truncated for tanh at the largest variance.
    for sigma in (0.5, 1.0, 3.0):
        for rho in (-0.9, 0.0, 0.5, 0.99):
            k11, k22 = sigma**2, 0.7 * sigma**2
            k12 = rho * math.sqrt(k11 * k22)
            found = dual_activation(activation, *numbers(k11, k12, k22)).item()
            tolerance = 5e-5 if activation == "relu" else 1e-6 if sigma == 3 else 1e-11
            assert abs(found - by_grid(PHI[activation], k11, k12, k22)) < tolerance


def test_relu_in_closed_form() -> None:
    """At correlation zero it is the product of the means, at minus one it is nothing."""
    assert dual_activation("relu", *numbers(2.0, 0.0, 3.0)).item() == pytest.approx(math.sqrt(6) / (2 * math.pi))
    assert dual_activation("relu", *numbers(4.0, -6.0, 9.0)).item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("activation", PHI)
@pytest.mark.parametrize("sigma", [0.5, 3.0, 9.0])
def test_dual_at_correlation_one_is_an_integral_over_one_variable(activation: str, sigma: float) -> None:
    def integrand(z: float) -> float:
        value = PHI[activation](torch.tensor(sigma * z, dtype=DOUBLE)).item()
        return value**2 * math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)

    expected = integrate.quad(integrand, -12, 0, epsabs=1e-13)[0] + integrate.quad(integrand, 0, 12, epsabs=1e-13)[0]
    found = dual_activation(activation, *numbers(sigma**2, sigma**2, sigma**2)).item()
    assert found == pytest.approx(expected, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("activation", PHI)
def test_gram_is_the_dual_at_all_pairs_and_positive(activation: str) -> None:
    Z = rnd.normal((2, 12, 3), generator=rnd.generator_from(0), dtype=DOUBLE)
    K = 20 * Z @ Z.mT + 0.2
    k = K.diagonal(dim1=-2, dim2=-1)
    gram = dual_gram(activation, K)
    assert torch.allclose(gram, dual_activation(activation, k.unsqueeze(-1), K, k.unsqueeze(-2)), atol=1e-11)
    lowest = torch.linalg.eigvalsh(gram)[..., 0]
    assert (lowest > -1e-10 * k.max()).all()


@pytest.mark.parametrize("activation", PHI)
def test_gradients(activation: str) -> None:
    leaves = [k.requires_grad_() for k in numbers(1.3, 0.6, 0.8)]
    assert torch.autograd.gradcheck(lambda *k: dual_activation(activation, *k), leaves, atol=1e-7)


@pytest.mark.parametrize("activation", PHI)
def test_gradients_are_right_at_coincident_points(activation: str) -> None:
    """Along a scale, with equal rows and the diagonal among the pairs: against central differences."""
    Z = torch.tensor([[1.0, 0.3], [1.0, 0.3], [-0.5, 2.0], [-1.0, -0.3]], dtype=DOUBLE)

    def total(scale: Tensor) -> Tensor:
        return dual_gram(activation, scale * (Z @ Z.mT)).sum()

    at = torch.tensor(1.7, dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(total(at), at)
    difference = (total(at.detach() + 1e-5) - total(at.detach() - 1e-5)) / 2e-5
    assert slope.item() == pytest.approx(difference.item(), rel=1e-7)


def network(hidden: tuple[int, ...], activation: str, prior, output_dim: int = 1) -> probnn.BayesianNetwork:
    net = probnn.MLP(input_dim=1, hidden=hidden, output_dim=output_dim, activation=activation)
    return probnn.BayesianNetwork(net, prior, dtype=DOUBLE)


def by_weight(hidden: int, seed: int) -> NormalWeights:
    g = rnd.generator_from(seed)
    sizes = (3 * hidden, hidden + 2)
    weight, bias = (0.2 + 2 * rnd.uniform((size,), generator=g, dtype=DOUBLE) for size in sizes)
    return NormalWeights(weight, bias)


EXACT = {
    "erf, three units": lambda: network((3,), "erf", NormalWeights((1.5, 2.0), (1.0, 0.5))),
    "tanh": lambda: network((4,), "tanh", NormalWeights((3.0, 1.0), (2.0, 0.1))),
    "gelu, a scale a weight": lambda: network((3,), "gelu", by_weight(3, 0), 2),
    "linear": lambda: network((), "tanh", NormalWeights(2.0, 0.5), 2),
    "random scales": lambda: network((3,), "sin", HierarchicalWeights((1.5, 1.0), spread=0.3)),
}


@pytest.mark.parametrize("case", EXACT)
def test_one_hidden_layer_is_exact_at_any_width(case: str, seed: int) -> None:
    process, draws = EXACT[case](), 40_000
    f = process.sample(X, (draws,), generator=rnd.generator_from(seed)).movedim(-1, 0)
    products = f.unsqueeze(-1) * f.unsqueeze(-2)
    K = wide_covariance(process, X, num_scales=20_000, seed=seed + 1)
    assert K.shape == (process.output_dim, 6, 6)
    error = (products.mean(1) - K).abs()
    slack = 0.03 if case == "random scales" else 0.0  # the closed form draws scales there
    assert (error <= 5 * products.std(1) / draws**0.5 + slack * K.abs().max()).all()
    assert ((products.mean(1) - K).norm() / K.norm()) < 0.05


def test_two_hidden_layers_are_close_at_width_50(seed: int) -> None:
    process, draws = network((50, 50), "tanh", NormalWeights((3.0, 1.5, 1.25), (2.0, 0.5, 0.1))), 20_000
    f = torch.cat([process.sample(X, (2000,), generator=rnd.generator_from(seed + i)) for i in range(10)]).squeeze(-1)
    K = wide_covariance(process, X)[0]
    products = f.unsqueeze(-1) * f.unsqueeze(-2)
    assert ((products.mean(0) - K).abs() <= 5 * products.std(0) / draws**0.5 + 0.02 * K.max()).all()


def test_scales_a_weight_that_are_equal_are_scales_a_layer() -> None:
    layers = network((4, 3), "relu", NormalWeights((2.0, 1.0, 0.5), (0.3, 0.2, 0.1)), 2)
    weight = torch.tensor([2.0] * 4 + [1.0] * 12 + [0.5] * 6, dtype=DOUBLE)
    bias = torch.tensor([0.3] * 4 + [0.2] * 3 + [0.1] * 2, dtype=DOUBLE)
    single = network((4, 3), "relu", NormalWeights(weight, bias), 2)
    assert torch.allclose(wide_covariance(single, X), wide_covariance(layers, X), atol=1e-13)
    generators = [rnd.generator_from(0) for _ in range(2)]
    one, two = (p.sample_parameters((3,), generator=g) for p, g in zip((layers, single), generators, strict=True))
    assert torch.allclose(one, two)
    assert torch.allclose(layers.log_prob(one), single.log_prob(one))
    mixed = network((4, 3), "relu", NormalWeights((2.0, 1.0, 0.5), bias), 2)
    assert torch.allclose(mixed.log_prob(one), single.log_prob(one))
    with pytest.raises(DomainError, match="one for each entry"):
        network((4, 3), "relu", NormalWeights(weight[:-1], bias), 2)


def graded(steep: float) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points and weights on cells that shrink towards zero, in both directions."""
    points, weights = (torch.from_numpy(x) for x in numpy.polynomial.legendre.leggauss(20))
    edges = torch.cat([torch.zeros(1, dtype=DOUBLE), torch.logspace(math.log10(0.3 / steep), 1, 50, dtype=DOUBLE)])
    half = (edges[1:] - edges[:-1]).unsqueeze(-1) / 2
    x, w = (half * points + half + edges[:-1].unsqueeze(-1)).flatten(), (half * weights).flatten()
    return torch.cat([-x.flip(0), x]), torch.cat([w.flip(0), w])


@pytest.mark.parametrize("sigma", [1.0, 40.0, 80.0, 1000.0])
def test_steep_units_are_exact_at_equal_points(sigma: float) -> None:
    """Values and the derivative along the scale; and opposite points."""
    z, w = graded(sigma)
    w = w * torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    s = torch.tensor(sigma, dtype=DOUBLE, requires_grad=True)
    for activation in ("tanh", "silu"):
        found = dual_activation(activation, s**2, s**2, s**2)
        expected = (PHI[activation](s * z).square() * w).sum()
        slopes = [torch.autograd.grad(value, s)[0].item() for value in (found, expected)]
        assert found.item() == pytest.approx(expected.item(), rel=1e-10)
        assert slopes[0] == pytest.approx(slopes[1], rel=1e-8)
        opposite = (PHI[activation](s * z) * PHI[activation](-s * z) * w).sum().item()
        assert dual_activation(activation, s**2, -(s**2), s**2).item() == pytest.approx(
            opposite, abs=1e-10 * expected.item()
        )


@pytest.mark.parametrize(("sigma", "rho"), [(9.0, 0.997), (80.0, 0.99), (80.0, -0.997), (1000.0, 0.999)])
@pytest.mark.parametrize("ratio", [1.0, 0.3])
def test_steep_units_off_the_diagonal(sigma: float, rho: float, ratio: float) -> None:
    """tanh within the docstring's bounds, by a rule that resolves both steps; silu relative to the variances."""
    z, w = graded(sigma)
    c = math.sqrt(1 - rho**2)
    joint = torch.exp(-0.5 * z.square().unsqueeze(-1) - (z - rho * z.unsqueeze(-1)).square() / (2 * c * c))
    joint = joint * w.unsqueeze(-1) * w / (2 * math.pi * c)
    k11, k12, k22 = numbers(sigma**2, rho * ratio * sigma**2, (ratio * sigma) ** 2)
    for activation, bound in (("tanh", 2e-4 if sigma == 9 else 1e-3), ("silu", 1e-5 * sigma**2)):
        phi = PHI[activation]
        expected = phi(sigma * z) @ joint @ phi(ratio * sigma * z)
        assert abs(dual_activation(activation, k11, k12, k22) - expected) < bound


def test_a_variance_of_zero_has_moments_and_gradients() -> None:
    K = torch.diag(torch.tensor([0.0, 2.0], dtype=DOUBLE)).requires_grad_()
    for activation, slope in (("tanh", 1.0), ("silu", 0.25)):  # of phi at zero, squared
        gram = dual_gram(activation, K)
        assert gram[0].abs().max() <= 1e-12 and gram.isfinite().all()
        assert torch.autograd.grad(gram[0, 0], K)[0][0, 0].item() == pytest.approx(slope)


@pytest.mark.parametrize("scales", [(1.5, 1.0), (2.0, 0.5)])
def test_moments_of_many_draws(scales: tuple[float, float], seed: int) -> None:
    process, points = network((20,), "tanh", NormalWeights(*scales)), torch.linspace(-2, 2, 16, dtype=DOUBLE)
    total, g = torch.zeros(16, 16, dtype=DOUBLE), rnd.generator_from(seed)
    for _ in range(20):
        f = process.sample(points.unsqueeze(-1), (10_000,), generator=g).squeeze(-1)
        total += f.mT @ f / 200_000
    K = wide_covariance(process, points.unsqueeze(-1))[0]
    assert (total - K).norm() / K.norm() < 0.01


RANDOM = {
    "own": lambda a: InverseGammaWeights((a, a + 1), (1.5, 0.7), (a + 2, a), (0.5, 0.3)),
    "inverse gamma": lambda a: HierarchicalWeights(1.5, 0.5, scale_prior="inverse_gamma", shape=a, rate=2.0),
    "log-normal": lambda a: HierarchicalWeights(1.5, 0.5, spread=a / 4),
}


@pytest.mark.parametrize("law", RANDOM)
def test_the_last_layer_counts_by_its_mean_squares(law: str) -> None:
    """Exactly: without hidden layers nothing depends on the seed, with one the share of the bias does not."""
    a = torch.tensor(1.6, dtype=DOUBLE)
    prior = RANDOM["own"](1.6) if law == "own" else RANDOM[law](a)
    layout = network((3,), "tanh", prior).network.layout
    theta = prior.sample(layout, (100_000,), generator=rnd.generator_from(0), dtype=DOUBLE)
    # Heavy tails: compare quantiles, not means.
    p = torch.tensor([0.1, 0.5, 0.9], dtype=DOUBLE)
    u = theta[:, layout.size :]
    expected = prior.scale_quantiles(layout, p.unsqueeze(-1).expand(3, 4))
    for i in range(3):  # the share of draws below a quantile
        below = (u <= expected[i]).double().mean(0)
        assert ((below - p[i]).abs() < 5 * (p[i] * (1 - p[i]) / 100_000).sqrt()).all()
    if law != "own":
        line = network((), "tanh", prior)
        ratio = 2.0 / 0.6 if law == "inverse gamma" else math.exp(2 * 0.4**2)
        expected = (2.25 * X * X.mT + 0.25) * ratio
        for at in (0, 1):
            assert torch.allclose(wide_covariance(line, X, num_scales=2, seed=at)[0], expected, rtol=1e-12)


@pytest.mark.parametrize("law", ["inverse gamma", "log-normal"])
def test_moments_are_differentiable_in_the_law_of_the_scales(law: str) -> None:
    def total(a: Tensor) -> Tensor:
        return wide_covariance(network((3,), "tanh", RANDOM[law](a)), X, num_scales=8).sum()

    assert torch.autograd.gradcheck(total, [torch.tensor(1.6, dtype=DOUBLE, requires_grad=True)], rtol=1e-4)


def test_points_of_random_scales_agree_with_one_another() -> None:
    """Sixty-four of them, of several seeds, against many; draws of all scales were 40 % apart."""
    process = network((3,), "tanh", InverseGammaWeights(1.3, 0.3, 1.3, 0.3))
    best = wide_covariance(process, X, num_scales=8192)
    found = torch.stack([wide_covariance(process, X, num_scales=64, seed=s) for s in range(8)])
    assert ((found - best).flatten(1).norm(dim=1) / best.norm()).max() < 0.03


def test_bounded_units_ask_the_last_layer_alone_for_moments() -> None:
    heavy = InverseGammaWeights((0.8, 3.0), 1.0, 3.0, 1.0)
    K = wide_covariance(network((3,), "tanh", heavy), X)
    f = network((3,), "tanh", heavy).sample(X, (40_000,), generator=rnd.generator_from(0)).squeeze(-1)
    products = f.unsqueeze(-1) * f.unsqueeze(-2)
    assert ((products.mean(0) - K[0]).abs() < 5 * products.std(0) / 200 + 0.02 * K.max()).all()
    with pytest.raises(DomainError, match="infinite variance"):
        wide_covariance(network((3,), "relu", heavy), X)
    with pytest.raises(DomainError, match="the last layer's shape"):
        wide_covariance(network((3,), "tanh", InverseGammaWeights((3.0, 0.8), 1.0, 3.0, 1.0)), X)


def test_moments_are_differentiable_in_the_scales() -> None:
    def total(weight: Tensor, bias: Tensor) -> Tensor:
        return wide_covariance(network((5, 5), "tanh", NormalWeights(weight, bias)), X).sum()

    leaves = [torch.tensor([1.0, 2.0, 0.7]).double().requires_grad_(), torch.tensor(0.5).double().requires_grad_()]
    assert torch.autograd.gradcheck(total, leaves)


def test_bad_input() -> None:
    one = torch.ones((), dtype=DOUBLE)
    with pytest.raises(DomainError, match="activation"):
        dual_activation("softmax", one, one, one)
    with pytest.raises(DomainError, match="k22"):
        dual_activation("relu", one, one, 0 * one)
    with pytest.raises(NonFiniteError):
        dual_activation("relu", one, math.nan * one, one)
    for activation in PHI:
        with pytest.raises(DomainError, match="k12 must be at most"):
            dual_activation(activation, one, -1.01 * one, one)
        assert dual_activation(activation, one, (1 + 1e-12) * one, one).isfinite()  # rounding
    process = network((3,), "relu", NormalWeights())
    with pytest.raises(ShapeError):
        wide_covariance(process, X.expand(-1, 2))
    with pytest.raises(UnsupportedError, match="LaplaceWeights"):
        wide_covariance(network((3,), "relu", LaplaceWeights()), X)
    with pytest.raises(DomainError, match="infinite variance"):
        wide_covariance(network((3,), "relu", HierarchicalWeights(scale_prior="half_cauchy")), X)
    with pytest.raises(UnsupportedError, match="Linear|ModuleNetwork"):
        module = probnn.ModuleNetwork(torch.nn.Linear(1, 1), input_dim=1)
        wide_covariance(probnn.BayesianNetwork(module, NormalWeights(), dtype=DOUBLE), X)
