"""Distances of densities against closed forms, brute force and each other."""

import math

import pytest
import torch

from probnn import moe
from probnn.errors import DomainError, ShapeError, UnsupportedError
from probnn.random import generator_from


def normal(mean, sd):
    return moe.MixingMeasure([0.0], [[0.0]], [mean], [[20.0]], [sd**2])


def mixture(g, k, R=None, slope=20.0):
    lead = () if R is None else (R,)

    def draw(*shape):
        return torch.randn(*lead, *shape, generator=g, dtype=torch.float64)

    return moe.MixingMeasure(draw(k), draw(k, 1), draw(k), slope * draw(k, 1), (draw(k) - 1).exp())


def inputs(g, n=40):
    return torch.rand(n, 1, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("d", [0.0, 1e-9, 1e-3, 1.0, 7.0, 1e4])
def test_two_normals_of_one_scale(d):
    X = torch.linspace(-1, 1, 3).double().unsqueeze(-1)
    G, true = normal(0.3 * d, 0.3), normal(0.0, 0.3)
    tv = moe.density_distance(G, true, X)
    assert tv.value.item() == pytest.approx(math.erf(d / math.sqrt(8)), rel=1e-6, abs=1e-14)
    assert tv.standard_error.item() == 0
    hellinger = moe.density_distance(G, true, X, "hellinger").value.item()
    assert hellinger == pytest.approx(math.sqrt(-math.expm1(-d * d / 8)), rel=1e-9, abs=1e-14)


def test_two_normals_of_other_scales():
    a, b, gap = 0.3, 1.2, 0.5
    overlap = math.sqrt(2 * a * b / (a * a + b * b)) * math.exp(-0.25 * gap**2 / (a * a + b * b))
    found = moe.density_distance(normal(0.0, a), normal(gap, b), torch.zeros(1, 1).double(), "hellinger").value.item()
    assert found == pytest.approx(math.sqrt(1 - overlap), rel=1e-9)


@pytest.mark.parametrize("kind", ["total_variation", "hellinger"])
def test_quadrature_agrees_with_a_brute_force_grid(kind, seed):
    g = generator_from(seed)
    G, true, X = mixture(g, 3), mixture(g, 2), inputs(g, 4)
    models = [moe.GaussianMoE.from_mixing_measure(H) for H in (G, true)]
    y = torch.linspace(-150, 150, 400_001).double().unsqueeze(-1)
    expected = 0.0
    for x in X:
        p, q = (model.log_prob(x.expand(len(y), 1), y).exp() for model in models)
        integrand = (p - q).abs() if kind == "total_variation" else (p.sqrt() - q.sqrt()).square()
        area = 0.5 * torch.trapezoid(integrand, y[:, 0])
        expected += (area if kind == "total_variation" else area.sqrt()).item() / len(X)
    assert moe.density_distance(G, true, X, kind).value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["total_variation", "hellinger"])
def test_monte_carlo_agrees_with_quadrature(kind, seed):
    g = generator_from(seed)
    G, true, X = mixture(g, 3, R=4, slope=2.0), mixture(g, 2, slope=2.0), inputs(g)
    exact = moe.density_distance(G, true, X, kind)
    drawn = moe.density_distance(G, true, X, kind, method="monte_carlo", num_samples=1000, generator=g)
    assert exact.value.shape == drawn.value.shape == drawn.standard_error.shape == (4,)
    assert ((drawn.value - exact.value).abs() < 5 * drawn.standard_error).all()
    assert (drawn.standard_error < 0.005).all()


def test_standard_error_is_that_of_repetitions(seed):
    g = generator_from(seed)
    G, true, X = mixture(g, 2, slope=1.0), mixture(g, 2, slope=1.0), inputs(g, 5)
    found = [moe.density_distance(G, true, X, method="monte_carlo", num_samples=20, generator=g) for _ in range(100)]
    spread = torch.stack([f.value for f in found]).std()
    mean = torch.stack([f.standard_error.square() for f in found]).mean().sqrt()
    # The relative standard error of a standard deviation of n values is one over the root of 2 (n - 1).
    assert abs(spread / mean - 1) < 5 / math.sqrt(2 * 99)


def test_replicates(seed):
    g = generator_from(seed)
    G, true, X = mixture(g, 3, R=3), mixture(g, 2), inputs(g)
    for kind in ("total_variation", "hellinger"):
        batch = moe.density_distance(G, true, X, kind).value
        single = torch.stack([moe.density_distance(G[r], true, X, kind).value for r in range(3)])
        torch.testing.assert_close(batch, single)
        torch.testing.assert_close(moe.density_distance(true, G, X, kind).value, batch)
        wide = moe.density_distance(G, true, X.expand(3, *X.shape), kind).value
        torch.testing.assert_close(wide, batch)
        moved = moe.density_distance(G.permuted(torch.tensor([2, 0, 1])), true, X, kind).value
        torch.testing.assert_close(moved, batch)


def test_chunks_of_rows(seed, monkeypatch):
    from probnn.moe import distances

    g = generator_from(seed)
    G, true, X = mixture(g, 3), mixture(g, 2), inputs(g)
    whole = [moe.density_distance(G, true, X, kind).value for kind in ("total_variation", "hellinger")]
    monkeypatch.setattr(distances, "_CHUNK", 1000)
    parts = [moe.density_distance(G, true, X, kind).value for kind in ("total_variation", "hellinger")]
    torch.testing.assert_close(whole, parts)


def test_other_outcomes(seed):
    g = generator_from(seed)
    X = torch.randn(30, 2, generator=g, dtype=torch.float64)
    for kind in ("total_variation", "hellinger"):
        a, b = (moe.GaussianMoE(2, 2, outcome=moe.MultinomialLogit(3)) for _ in range(2))
        a, b = (
            moe.GaussianMoE(
                2, 2, outcome=moe.MultinomialLogit(3),
                theta=torch.randn(a.num_parameters, generator=g, dtype=torch.float64),
            )
            for _ in range(2)
        )  # fmt: skip
        exact = moe.density_distance(a, b, X, kind).value
        drawn = moe.density_distance(a, b, X, kind, method="monte_carlo", num_samples=1000, generator=g)
        assert abs(drawn.value - exact) < 5 * drawn.standard_error

    # Two outcomes: the squared Hellinger affinity is a product.
    def pair(mean):
        return moe.MixingMeasure([0.0], [[0.0, 0.0]], [mean], [[[0.0, 0.0], [0.0, 0.0]]], [[1.0, 1.0]])

    drawn = moe.density_distance(
        pair([0.0, 0.0]), pair([1.0, -1.0]), X, "hellinger", method="monte_carlo", num_samples=1000, generator=g
    )
    assert abs(drawn.value - math.sqrt(-math.expm1(-2 / 8))) < 5 * drawn.standard_error
    with pytest.raises(UnsupportedError, match="use method='monte_carlo'"):
        moe.density_distance(pair([0.0, 0.0]), pair([1.0, -1.0]), X)


def test_bad_input():
    G, X = normal(0.0, 1.0), torch.zeros(2, 1).double()
    with pytest.raises(DomainError, match="kind must be one of 'total_variation', 'hellinger', got 'tv'"):
        moe.density_distance(G, G, X, "tv")
    with pytest.raises(DomainError, match="method must be one of"):
        moe.density_distance(G, G, X, method="grid")
    with pytest.raises(DomainError, match="must be a MixingMeasure or a GaussianMoE, got int"):
        moe.density_distance(1, G, X)
    with pytest.raises(UnsupportedError, match="no parameters yet"):
        moe.density_distance(moe.GaussianMoE(2, 1), G, X)
    with pytest.raises(ShapeError, match=r"X must have shape .* d = 1"):
        moe.density_distance(G, G, torch.zeros(2, 3).double())
    g = generator_from(0)
    with pytest.raises(ShapeError, match=r"must agree where they have such, got \[\(2,\), \(3,\)\]"):
        moe.density_distance(mixture(g, 2, R=2), mixture(g, 2, R=3), X)


def test_monte_carlo_distances_of_gaussian_gates_are_conditional(seed):
    def law(centre):
        return moe.MixingMeasure(
            gate_bias=[0.0, 0.0], gate_weight=[[-0.5], [centre]], intercept=[1.0, -1.0], coef=[[2.0], [-1.5]],
            variance=[0.16, 0.25], gate_covariance=[[[0.2]], [[0.3]]], gate=moe.GaussianGate(),
        )  # fmt: skip

    X = torch.linspace(-1, 1, 21).double().unsqueeze(-1)
    for kind in ("total_variation", "hellinger"):
        exact = moe.density_distance(law(0.5), law(1.0), X, kind=kind).value
        generator = torch.Generator().manual_seed(seed)
        drawn = moe.density_distance(law(0.5), law(1.0), X, kind=kind, method="monte_carlo", generator=generator)
        assert (drawn.value - exact).abs() < 5 * drawn.standard_error
