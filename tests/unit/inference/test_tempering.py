"""Tempered posteriors: densities, gradients and draws against closed forms and quadrature."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn import random as rnd
from probnn.diagnostics import ess
from probnn.errors import DomainError, UnsupportedError
from probnn.inference import Target
from probnn.inference.collapsed import CollapsedTarget
from probnn.inference.heldout import held_out_moments
from tests.cases import DOUBLE, LIKELIHOODS, data, network

TEMPERATURES = (0.3, 1.0, 4.0)
NOISES = {
    "fixed": likelihoods.Gaussian(noise=0.3),
    "inferred": likelihoods.Gaussian(),
    "one an outcome": likelihoods.Gaussian(levels=2),
}


def line(seed: int, n: int = 12) -> tuple[probnn.BayesianNetwork, Tensor, Tensor]:
    """A linear model with slope and intercept, and data of noise 0.3."""
    g = rnd.generator_from(seed)
    prior = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=()), priors.NormalWeights(1.3, 0.7), dtype=DOUBLE)
    X = rnd.normal((n, 1), generator=g, dtype=DOUBLE)
    return prior, X, 0.8 * X - 0.2 + 0.3 * rnd.normal((n, 1), generator=g, dtype=DOUBLE)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_fit_is_divided_by_the_temperature(name: str, seed: int) -> None:
    likelihood = LIKELIHOODS[name]
    m = 1 if name == "categorical" else 2
    prior = network(output_dim=likelihood.channels(m))
    X, _ = data(6, seed=seed)
    g = rnd.generator_from(seed)
    f = prior.sample(X, generator=g)
    psi = likelihood.sample_prior((1,), generator=g, dtype=DOUBLE)
    Y = likelihood.sample(f, psi, generator=g)
    target = Target(prior, likelihood, X, Y, temperature=2.5)
    z = target.start((3,), g).requires_grad_(True)
    theta, psi = target.split(z)
    fit = likelihood.log_prob(Y, prior.apply(theta, X), psi.unsqueeze(-2)).sum(-1)
    expected = prior.log_prob(theta) + likelihood.log_prior(psi) + fit / 2.5
    value, gradient = target.value_and_grad(z.detach())
    torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(target.log_prob(z), expected, rtol=1e-10, atol=1e-10)
    (slope,) = torch.autograd.grad(expected.sum(), z)
    assert (gradient - slope).abs().max() <= 1e-10 * slope.abs().max()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("noise", [*NOISES, "known"])
@pytest.mark.parametrize("n", [4, 20])
def test_the_last_layer_integrated_out(temperature: float, noise: str, n: int, seed: int) -> None:
    r"""log of the integral over c of N(c; 0, I) prod N(y; Phi c, v)^(1/T), by completing the square in c."""
    g = rnd.generator_from(seed)
    prior = probnn.BayesianNetwork(
        probnn.MLP(input_dim=3, hidden=(6, 5), output_dim=2), priors.NormalWeights((1.5, 0.7, 1.2), 0.5), dtype=DOUBLE
    )
    X, Y = (rnd.normal((n, k), generator=g, dtype=DOUBLE) for k in (3, 2))
    known = 0.1 + rnd.uniform((n, 2), generator=g, dtype=DOUBLE) if noise == "known" else None
    likelihood = NOISES["fixed" if noise == "known" else noise]
    target = CollapsedTarget(prior, likelihood, X, Y, known, temperature)
    z = target.start((2,), g)
    z = z + 0.1 * rnd.normal(z.shape, generator=g, like=z)
    value, gradient = target.value_and_grad(z)
    for at, found in zip(z, value, strict=True):
        rest, psi = target.split(at)
        phi = target._features(rest)[0]
        std = likelihood.constrain(psi)["noise"] if len(psi) else torch.tensor([0.3], dtype=DOUBLE)
        v = std.square().expand(n, 2) if known is None else known
        expected = likelihood.log_prior(psi)
        scales = prior.weight_prior.scales(target.layout, rest)  # type: ignore[attr-defined]
        expected = expected + torch.distributions.Normal(torch.zeros_like(rest), scales).log_prob(rest).sum()
        for j in range(2):
            weighed = phi / (temperature * v[:, j : j + 1])
            precision = torch.eye(phi.shape[-1], dtype=DOUBLE) + phi.mT @ weighed
            b = weighed.mT @ Y[:, j]
            square = (Y[:, j].square() / v[:, j]).sum() / temperature - b @ torch.linalg.solve(precision, b)
            normaliser = (2 * math.pi * v[:, j]).log().sum() / temperature + torch.logdet(precision)
            expected = expected - 0.5 * (square + normaliser)
        assert abs(found - expected) <= 1e-9 * max(1.0, abs(expected.item()))
    h, eye = 1e-5, torch.eye(target.size, dtype=DOUBLE)
    for j in range(target.size):
        up, down = (target.value_and_grad(z + sign * h * eye[j])[0] for sign in (1, -1))
        assert (gradient[:, j] - (up - down) / (2 * h)).abs().max() <= 1e-6 * gradient.abs().max()


@pytest.mark.parametrize("temperature", [0.3, 4.0])
def test_the_last_layer_is_drawn_from_its_tempered_posterior(temperature: float, seed: int) -> None:
    g, draws = rnd.generator_from(seed), 20_000
    prior = probnn.BayesianNetwork(probnn.MLP(input_dim=2, hidden=(3,)), priors.NormalWeights(), dtype=DOUBLE)
    X, Y = (rnd.normal((8, k), generator=g, dtype=DOUBLE) for k in (2, 1))
    target = CollapsedTarget(prior, NOISES["fixed"], X, Y, temperature=temperature)
    z = target.start((1,), g)
    theta, _ = target.complete(z.expand(draws, -1), g)
    phi = target._features(z)[0][0]
    scales = prior.weight_prior.scales(prior.network.layout, z)[target.last]  # type: ignore[attr-defined]
    drawn = theta[:, target.last] / scales
    covariance = torch.linalg.inv(phi.mT @ phi / (temperature * 0.3**2) + torch.eye(4, dtype=DOUBLE))
    mean = covariance @ phi.mT @ Y[:, 0] / (temperature * 0.3**2)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (drawn - mean).mT, upper=False).mT
    assert (white.mean(0).abs() <= 5 / draws**0.5).all()
    assert ((white.mT @ white / draws - torch.eye(4, dtype=DOUBLE)).abs() <= 5 * (2 / draws) ** 0.5).all()


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("collapsed", [False, True])
def test_draws_of_a_linear_model_with_inferred_noise(temperature: float, collapsed: bool, seed: int) -> None:
    """Slope, intercept and log noise against quadrature over the noise, within five Monte-Carlo errors."""
    prior, X, Y = line(seed)
    likelihood = likelihoods.Gaussian()
    hmc = probnn.HMC(
        num_chains=16, num_warmup=100, num_samples=150, temperature=temperature, collapse_last_layer=collapsed
    )
    post = hmc.fit(prior, likelihood, X, Y, seed=seed)
    assert post.info.temperature == temperature and post.info.converged

    grid = torch.linspace(-6, 4, 4001, dtype=DOUBLE)
    median = likelihood.prior_median(dtype=DOUBLE, device=torch.device("cpu"))
    psi = (median + grid.unsqueeze(-1)).contiguous()
    A = torch.cat([X, torch.ones_like(X)], -1) * prior.weight_prior.scales(prior.network.layout, X)  # type: ignore[attr-defined]
    v = likelihood.constrain(psi)["noise"].square().reshape(-1, 1, 1)
    precision = torch.eye(2, dtype=DOUBLE) + A.mT @ A / (temperature * v)
    b = A.mT @ Y / (temperature * v)
    mean = torch.linalg.solve(precision, b)
    square = (Y.square().sum() / (temperature * v)).flatten() - (b * mean).sum((-2, -1))
    log = -0.5 * (square + len(Y) * (2 * math.pi * v).log().flatten() / temperature + torch.logdet(precision))
    weights = (log + likelihood.log_prior(psi)).softmax(0)
    scales = prior.weight_prior.scales(prior.network.layout, X)  # type: ignore[attr-defined]
    first = (weights.unsqueeze(-1) * mean.squeeze(-1)).sum(0)
    covariance = torch.linalg.inv(precision)
    second = (weights[:, None, None] * (covariance + mean @ mean.mT)).sum(0)
    wanted = {
        "theta": (first * scales, (second.diagonal() - first.square()).sqrt() * scales),
        "psi": (
            (weights * psi[:, 0]).sum()[None],
            ((weights * psi[:, 0].square()).sum() - (weights @ psi[:, 0]) ** 2).sqrt()[None],
        ),
    }
    for draws, (centre, spread) in ((post.theta, wanted["theta"]), (post.psi, wanted["psi"])):
        size = ess(draws, "mean")
        assert ((draws.mean((0, 1)) - centre).abs() <= 5 * spread / size.sqrt()).all()
        squares = (draws - centre).square()
        error = squares.flatten(0, 1).std(0) / ess(squares, "mean").sqrt()
        assert ((squares.mean((0, 1)) - spread.square()).abs() <= 5 * error).all()


def test_a_batch_of_rows_stands_for_all(seed: int) -> None:
    """With temperature b / n the mean over disjoint batches of the density and its gradient is that of all rows."""
    prior, likelihood = network(output_dim=1), likelihoods.Gaussian()
    g = rnd.generator_from(seed)
    X, Y = (rnd.normal((12, k), generator=g, dtype=DOUBLE) for k in (prior.input_dim, 1))
    whole = Target(prior, likelihood, X, Y)
    z = whole.start((3,), g)
    parts = [Target(prior, likelihood, x, y, temperature=4 / 12) for x, y in zip(X.split(4), Y.split(4), strict=True)]
    for all_rows, few in zip(
        whole.value_and_grad(z), zip(*(part.value_and_grad(z) for part in parts), strict=True), strict=True
    ):
        torch.testing.assert_close(torch.stack(few).mean(0), all_rows, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, "hot"])
def test_bad_temperatures(value: object) -> None:
    with pytest.raises(DomainError, match="temperature"):
        probnn.HMC(temperature=value)  # type: ignore[arg-type]


def test_held_out_rows_of_a_tempered_posterior_are_refused(seed: int) -> None:
    """Their importance weights would be others."""
    prior = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=(3,)), priors.NormalWeights(), dtype=DOUBLE)
    _, X, Y = line(seed)
    post = probnn.HMC(num_chains=2, num_warmup=10, num_samples=2, temperature=0.5).fit(
        prior, likelihoods.Gaussian(noise=0.3), X, Y, seed=seed
    )
    with pytest.raises(UnsupportedError, match="tempered"):
        held_out_moments(post, X, Y)


def test_known_noise_leaves_psi_to_its_prior(seed: int) -> None:
    """A target made by hand may have both; its gradient in psi is that of the prior."""
    g = rnd.generator_from(seed)
    prior = probnn.BayesianNetwork(probnn.MLP(input_dim=2, hidden=(3,)), priors.NormalWeights(), dtype=DOUBLE)
    X, Y = (rnd.normal((8, k), generator=g, dtype=DOUBLE) for k in (2, 1))
    target = CollapsedTarget(prior, NOISES["inferred"], X, Y, torch.full_like(Y, 0.2), 0.7)
    z = target.start((1,), g) + 0.1
    shift = torch.zeros_like(z)
    shift[..., -1] = 1e-5
    slope = (target.value_and_grad(z + shift)[0] - target.value_and_grad(z - shift)[0]) / 2e-5
    assert abs(target.value_and_grad(z)[1][0, -1] - slope[0]) <= 1e-6
