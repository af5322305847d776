"""Matching of inverse-gamma scales: known laws are found, moments asked for where they exist; the reference case."""

from __future__ import annotations

import gpytorch
import numpy
import pytest
import scipy.stats as st
import torch

import probnn
from probnn import random as rnd
from probnn.diagnostics import marginal_wasserstein
from probnn.errors import DomainError
from probnn.priors import Grid, HierarchicalWeights, InverseGammaWeights, NormalWeights, WeightPrior
from probnn.priors.wide import function_order

DOUBLE = torch.double
LINE = probnn.MLP(input_dim=1, hidden=())  # f(x) = w x + b


def own(a: float, b: float, bias_a: float, bias_b: float) -> InverseGammaWeights:
    return InverseGammaWeights(a, b, bias_a, bias_b)


def general(a: float, b: float, bias_a: float, bias_b: float) -> HierarchicalWeights:
    """The same law by scales: b = s^2 rate."""
    shapes = torch.tensor([a, bias_a], dtype=DOUBLE)
    s, bias_s = (b / 2) ** 0.5, (bias_b / 2) ** 0.5
    return HierarchicalWeights(s, bias_s, scale_prior="inverse_gamma", shape=shapes, rate=2.0)


def found(prior: WeightPrior) -> list[tuple[float, float]]:
    """a and b of the weight and of the bias."""
    if isinstance(prior, InverseGammaWeights):
        return [(prior.shape[0], prior.scale[0]), (prior.bias_shape[0], prior.bias_scale[0])]
    scales = prior.weight_scale[0], prior.bias_scale[0]
    return [(a, s**2 * 2.0) for a, s in zip(prior.shape.tolist(), scales, strict=True)]


def distance(law: tuple[float, float], other: tuple[float, float]) -> float:
    """Kolmogorov's, of the Student laws of a weight."""
    x = numpy.linspace(-20, 20, 4001)
    one, two = (st.t.cdf(x, 2 * a, scale=(b / a) ** 0.5) for a, b in (law, other))
    return abs(one - two).max()


@pytest.mark.parametrize("law", [own, general])
def test_known_inverse_gamma_scales_are_recovered(law, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By draws alone, and the shapes too, though all they do is in the tails."""
    monkeypatch.setattr("probnn.priors.matching.NUM_EVALUATIONS", 1000)
    true, guess = (1.5, 2.0, 4.0, 0.5), (2.5, 6.0, 2.5, 1.5)
    target, start = (probnn.BayesianNetwork(LINE, law(*values), dtype=DOUBLE) for values in (true, guess))
    match = probnn.match_prior(start, target, Grid(-1, 1, 5), "energy", num_steps=600, num_draws=256, seed=seed)
    weight, bias = found(match.prior.weight_prior)
    assert distance((2.5, 6.0), (1.5, 2.0)) > 0.045 and distance((2.5, 1.5), (4.0, 0.5)) > 0.1
    assert distance(weight, (1.5, 2.0)) < 0.01 and distance(bias, (4.0, 0.5)) < 0.01
    # The more degrees of freedom, the less a law tells of them: the bias has 8.
    assert weight == pytest.approx((1.5, 2.0), rel=0.5) and bias == pytest.approx((4.0, 0.5), rel=0.5)
    assert match.distances["energy"] < 0.1 * match.untuned["energy"]


def toward_a_gaussian_process(prior: WeightPrior, objective: str, steps: int, seed: int) -> probnn.priors.Match:
    kernel = gpytorch.kernels.RBFKernel()
    kernel.lengthscale = 0.8
    target = probnn.GaussianProcess(kernel.double(), input_dim=1)
    start = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=(12,)), prior, dtype=DOUBLE)
    return probnn.match_prior(start, target, Grid(-2, 2, 8), objective, num_steps=steps, num_draws=64, seed=seed)


def test_inverse_gamma_variances_come_nearer_to_a_gaussian_process(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By moments in closed form first, and then by draws."""
    monkeypatch.setattr("probnn.priors.matching.NUM_EVALUATIONS", 800)
    match = toward_a_gaussian_process(own(2.5, 0.3, 2.5, 6.0), "auto", 30, seed)
    assert list(match.history) == ["nngp", "energy"]
    for name in ("energy", "sliced_w1", "marginal_w1"):
        assert match.distances[name] < 0.5 * match.untuned[name], name


@pytest.mark.parametrize(
    "prior",
    [own(2.5, 0.3, 2.5, 6.0), HierarchicalWeights(0.3, 2.0, scale_prior="inverse_gamma", shape=2.5)],
    ids=["own", "general"],
)
def test_moments_in_closed_form_keep_the_moments(
    prior: WeightPrior, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probnn.priors.matching.NUM_EVALUATIONS", 200)
    match = toward_a_gaussian_process(prior, "nngp", 50, seed)
    assert match.history["nngp"][-1] < 0.5 * match.history["nngp"][0]
    assert match.distances["moments"] < 0.5 * match.untuned["moments"]
    assert function_order(match.prior) > 2  # by the last layer alone: units of tanh are bounded


def test_moments_are_asked_for_where_they_exist(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probnn.priors.matching.NUM_EVALUATIONS", 200)
    grid = Grid(-1, 1, 4)
    target = probnn.BayesianNetwork(LINE, NormalWeights(), dtype=DOUBLE)

    def start(shape: float) -> probnn.BayesianNetwork:
        return probnn.BayesianNetwork(LINE, InverseGammaWeights(shape), dtype=DOUBLE)

    for shape in (1.0, 0.8):
        with pytest.raises(DomainError, match="InverseGammaWeights has scales of infinite variance.*must be above 1"):
            probnn.match_prior(start(shape), target, grid, "nngp")
        match = probnn.match_prior(start(shape), target, grid, num_steps=3, num_draws=16, seed=seed)
        assert list(match.history) == ["energy"]  # auto goes without the closed form
    with pytest.raises(DomainError, match=r"order 1.*exist below order 1 only; take objective='mmd'"):
        probnn.match_prior(start(0.5), target, grid, "energy")
    match = probnn.match_prior(start(0.5), target, grid, "mmd", num_steps=3, num_draws=16, seed=seed)
    assert list(match.history) == ["mmd"] and set(match.untuned.values()) == {float("inf")}


def test_the_reference_case(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 x 50 tanh to an RBF process of length scale 0.6; it begins at an energy distance of 0.7."""
    monkeypatch.setattr("probnn.priors.matching.NUM_EVALUATIONS", 1500)
    kernel = gpytorch.kernels.RBFKernel()
    kernel.lengthscale = 0.6
    target = probnn.GaussianProcess(kernel.double(), input_dim=1)
    start = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=(50, 50)), NormalWeights(), dtype=DOUBLE)
    match = probnn.match_prior(start, target, Grid(-3, 3, 64), seed=seed)
    assert match.untuned["energy"] > 0.6 and match.distances["energy"] <= 0.095
    # The draws of the report alone are 0.03 apart; so many leave 0.015 of that.
    draws = [p.sample(match.points, (8000,), generator=rnd.generator_from(seed)) for p in (match.prior, target)]
    assert marginal_wasserstein(*(f.squeeze(-1) for f in draws)) <= 0.035


def test_the_closed_form_tunes_the_variance_and_no_luck_of_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heavy scales: whatever the seed, moments of the match at many points of its scales are near the target's."""
    monkeypatch.setattr("probnn.priors.matching.NUM_EVALUATIONS", 10)
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()).double()
    target = probnn.GaussianProcess(kernel, input_dim=1)
    wanted = kernel.outputscale.item()
    for seed in range(3):
        start = probnn.BayesianNetwork(
            probnn.MLP(input_dim=1, hidden=(20,)), InverseGammaWeights(1.3, 0.3, 1.3, 0.3), dtype=DOUBLE
        )
        match = probnn.match_prior(start, target, Grid(-1, 1, 5), "nngp", num_steps=60, seed=seed)
        moments = probnn.priors.wide_covariance(match.prior, match.points, num_scales=4096, seed=99)[0]
        assert 0.75 * wanted < moments.diagonal().mean().item() < 1.1 * wanted
