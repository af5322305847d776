"""Merging atoms: heights, cuts, moments and the selection criterion."""

import math

import matplotlib.pyplot as plt
import pytest
import torch

from probnn import moe
from probnn.errors import DomainError, ShapeError, UnsupportedError
from probnn.random import generator_from

from .models import GENTLE


def measure(g, k, d=1, m=None, **extra):
    outcomes = () if m is None else (m,)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return moe.MixingMeasure(
        draw(k), draw(k, d), draw(k, *outcomes), draw(k, *outcomes, d), draw(k, *outcomes).exp(), **extra
    )


def split(gap, weight_gap=0.0):
    """GENTLE with its first atom in two equal parts, which differ by intercepts and gate weights."""
    two = math.log(2)
    return moe.MixingMeasure(
        [0.5 - two, 0.5 - two, 0.0], [[3.0 - weight_gap], [3.0 + weight_gap], [0.0]], [1.0 - gap, 1.0 + gap, -1.0],
        [[2.0], [2.0], [-1.5]], [0.16, 0.16, 0.25],
    )  # fmt: skip


def test_first_height_by_hand(seed):
    G = measure(generator_from(seed), 4, 2, 3)
    mass = G.gate_bias.softmax(-1)
    found = {}
    for i in range(4):
        for j in range(i + 1, 4):
            slow = (G.gate_weight[i] - G.gate_weight[j]).square().sum() + (
                G.intercept[i] - G.intercept[j]
            ).square().sum()
            fast = (G.coef[i] - G.coef[j]).square().sum() + (G.variance[i] - G.variance[j]).square().sum()
            found[(i,), (j,)] = (mass[i] * mass[j] / (mass[i] + mass[j]) * (slow + fast.sqrt())).item()
    tree = moe.Dendrogram(G)
    pair = min(found, key=found.get)
    assert tree.merges[0] == pair
    assert tree.heights[0].item() == pytest.approx(found[pair])
    assert tree.heights.shape == (3,) and len(tree.merges) == 3
    assert tree.cut(4) is G
    # The next height is that of the measure with the pair merged.
    torch.testing.assert_close(tree.heights[1:], moe.Dendrogram(tree.cut(3)).heights)
    assert sorted(tree.merges[-1][0] + tree.merges[-1][1]) == [0, 1, 2, 3]


@pytest.mark.parametrize("moments", [True, False])
def test_invariances(moments, seed):
    g = generator_from(seed)
    G, X = measure(g, 5, 2), torch.randn(30, 2, generator=g, dtype=torch.float64)
    shift = torch.tensor([0.7, -2.0], dtype=torch.float64)
    moved = moe.MixingMeasure(G.gate_bias + 3, G.gate_weight + shift, G.intercept, G.coef, G.variance)
    order = torch.randperm(5, generator=g)
    hot = moe.MixingMeasure(
        2 * G.gate_bias, 2 * G.gate_weight, G.intercept, G.coef, G.variance, gate=moe.SoftmaxGate(temperature=2.0)
    )
    for inputs in (None, X):
        tree = moe.Dendrogram(G, inputs, moments)
        for H in (moved, G.permuted(order), hot):
            other = moe.Dendrogram(H, inputs, moments)
            torch.testing.assert_close(other.heights, tree.heights)
            for k in (1, 2, 3, 4):
                assert moe.density_distance(other.cut(k), tree.cut(k), X).value < 1e-8


@pytest.mark.parametrize("m", [None, 2])
def test_merging_by_the_rules(m, seed):
    g = generator_from(seed)
    G, X = measure(g, 2, 2, m), torch.randn(9, 2, generator=g, dtype=torch.float64) + 1
    centre = X.mean(0)
    p = moe.GaussianMoE.from_mixing_measure(G).gate_log_probs(X).exp().mean(0)
    one = moe.Dendrogram(G, X).cut(1)
    plain = moe.Dendrogram(G, X, second_moments=False).cut(1)
    wide = [x.reshape(2, m or 1, -1) for x in (G.coef, G.intercept, G.variance)]
    coef, intercept, variance = wide[0], wide[1][..., 0], wide[2][..., 0]
    torch.testing.assert_close(plain.coef.reshape(-1, 2), torch.einsum("i,imd->md", p, coef))
    torch.testing.assert_close(plain.variance.flatten(), p @ variance)
    torch.testing.assert_close(plain.intercept.flatten(), p @ intercept)
    torch.testing.assert_close(plain.gate_weight, (p @ G.gate_weight).unsqueeze(0))
    level = plain.gate_bias + plain.gate_weight @ centre
    torch.testing.assert_close(level, (G.gate_bias + G.gate_weight @ centre).logsumexp(0, keepdim=True))
    # Variance of the means at the centre, and their covariance with the gate's weights, over the two atoms.
    means = intercept + coef @ centre
    off, away = means - p @ means, G.gate_weight - p @ G.gate_weight
    torch.testing.assert_close((one.variance - plain.variance).flatten(), p @ off.square())
    torch.testing.assert_close((one.coef - plain.coef).reshape(-1, 2), torch.einsum("i,im,id->md", p, off, away))
    at = (x.intercept + x.coef @ centre for x in (one, plain))
    torch.testing.assert_close(*at)


def test_second_moments_are_what_the_density_sees():
    # Intercepts at a distance e and gate weights at e^2: without the moments the density of the merged measure is off
    # by e^2, with them by e^4 (the cell is symmetric, so there is no third order); covariances alone are of order e^3.
    X = torch.linspace(-1, 1, 41).double().unsqueeze(-1)

    def error(e, moments):
        merged = moe.Dendrogram(split(e, 3 * e**2), second_moments=moments).cut(2)
        return moe.density_distance(merged, split(e, 3 * e**2), X).value.item()

    orders = [math.log2(error(0.04, moments) / error(0.02, moments)) for moments in (True, False)]
    assert orders[0] == pytest.approx(4, abs=0.15)
    assert orders[1] == pytest.approx(2, abs=0.15)


def test_criterion_and_choice(seed):
    g = generator_from(seed)
    X = torch.rand(2000, 1, generator=g, dtype=torch.float64)
    Y = moe.GaussianMoE.from_mixing_measure(GENTLE).sample_outcomes(X, generator=g)
    tree = moe.Dendrogram(split(0.05))
    found = tree.criterion(X, Y)
    fit = [moe.GaussianMoE.from_mixing_measure(tree.cut(k)).log_prob(X, Y).mean() for k in (2, 3)]
    expected = [-(tree.heights[3 - k] + math.log(2000) * fit[k - 2]) for k in (2, 3)]
    torch.testing.assert_close(found, torch.stack(expected))
    assert tree.select(X, Y) == 2
    # A tree of three experts apart keeps them.
    apart = moe.MixingMeasure([0.0] * 3, [[0.0]] * 3, [-4.0, 0.0, 4.0], [[1.0], [0.0], [-1.0]], [0.001] * 3)
    Y = moe.GaussianMoE.from_mixing_measure(apart).sample_outcomes(X, generator=g)
    assert moe.Dendrogram(apart, X).select(X, Y) == 3


def test_plot(seed):
    tree = moe.Dendrogram(measure(generator_from(seed), 5))
    _, ax = plt.subplots()
    assert tree.plot(ax=ax) is ax
    tops = sorted(line.get_ydata()[1] for line in ax.lines)
    assert tops == pytest.approx(sorted(tree.heights.tolist()))
    assert sorted(t.get_text() for t in ax.get_xticklabels()) == list("01234")
    # Branches do not cross: the leaves of every merger are next to each other.
    place = {int(t.get_text()): i for i, t in enumerate(ax.get_xticklabels())}
    for left, right in tree.merges:
        spots = sorted(place[i] for i in left + right)
        assert spots == list(range(spots[0], spots[0] + len(spots)))
    plt.close("all")


def test_bad_input(seed):
    G = measure(generator_from(seed), 3)
    with pytest.raises(DomainError, match="num_atoms must be at most the 3"):
        moe.Dendrogram(G).cut(4)
    with pytest.raises(DomainError, match="num_atoms must be an integer"):
        moe.Dendrogram(G).cut(0)
    batch = moe.MixingMeasure(*(getattr(G, f).unsqueeze(0) for f in (
        "gate_bias", "gate_weight", "intercept", "coef", "variance")))  # fmt: skip
    with pytest.raises(ShapeError, match=r"of one replicate, got \(1,\); take one, as measure\[0\]"):
        moe.Dendrogram(batch)
    with pytest.raises(UnsupportedError, match="needs a softmax gate"):
        moe.Dendrogram(measure(generator_from(seed), 3, gate=moe.LaplaceGate()))
    with pytest.raises(DomainError, match="must be a MixingMeasure"):
        moe.Dendrogram(1)
    one = moe.Dendrogram(moe.Dendrogram(G).cut(1))
    assert one.heights.shape == (0,)
    with pytest.raises(DomainError, match="2 atoms at least, got 1"):
        one.criterion(torch.zeros(3, 1).double(), torch.zeros(3, 1).double())
