"""The joint density, and its gradient against automatic differentiation."""

from __future__ import annotations

import pytest
import torch

import probnn
from probnn import likelihoods
from probnn import random as rnd
from probnn.inference import Target
from probnn.networks.mlp import ACTIVATIONS
from tests.cases import DOUBLE, LIKELIHOODS, WEIGHT_PRIORS, data, module, network


def compare(target: Target, seed: int, shape: tuple[int, ...] = (3,)) -> None:
    """Closed-form gradients and automatic differentiation of the same density."""
    z = target.start(shape, rnd.generator_from(seed))
    z = z + 0.1 * rnd.normal(z.shape, generator=rnd.generator_from(seed + 1), like=z)
    leaf = z.clone().requires_grad_(True)
    expected = target.log_prob(leaf)
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    value, gradient = target.value_and_grad(z)
    assert value.shape == expected.shape and gradient.shape == z.shape
    assert ((value - expected).abs() <= 1e-10 * expected.abs().clamp_min(1)).all()
    assert (gradient - slope).abs().max() <= 1e-10 * slope.abs().max().clamp_min(1)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood(name: str, seed: int) -> None:
    likelihood = LIKELIHOODS[name]
    m = 1 if name == "categorical" else 2
    prior = network(output_dim=likelihood.channels(m))
    X, _ = data(6, seed=seed)
    f = prior.sample(X, generator=rnd.generator_from(seed))
    psi = likelihood.sample_prior((1,), generator=rnd.generator_from(seed), dtype=DOUBLE)
    Y = likelihood.sample(f, psi, generator=rnd.generator_from(seed))
    compare(Target(prior, likelihood, X, Y), seed)


@pytest.mark.parametrize("name", WEIGHT_PRIORS)
def test_every_weight_prior(name: str, seed: int) -> None:
    compare(Target(network(WEIGHT_PRIORS[name]), likelihoods.Gaussian(), *data(6, seed=seed)), seed)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(), (4,), (4, 3)])
def test_every_activation(activation: str, hidden: tuple[int, ...], seed: int) -> None:
    target = Target(network(activation=activation, hidden=hidden), likelihoods.Gaussian(), *data(6, seed=seed))
    compare(target, seed)


def test_modules_known_noise_and_replications(seed: int) -> None:
    X, Y = data(6, seed=seed)
    prior = probnn.BayesianNetwork(
        probnn.ModuleNetwork(module(), input_dim=2), probnn.priors.NormalWeights(), dtype=DOUBLE
    )
    compare(Target(prior, likelihoods.Gaussian(), X, Y), seed)
    compare(Target(network(), likelihoods.Gaussian(0.1), X, Y, torch.full_like(Y, 0.3)), seed)
    many = torch.stack([Y, -Y, 2 * Y, Y + 1]).unsqueeze(1)
    batch = Target(network(), likelihoods.Gaussian(), X, many)
    compare(batch, seed, (4, 3))
    z = batch.start((4, 3), rnd.generator_from(seed))
    for r in range(4):
        alone = Target(network(), likelihoods.Gaussian(), X, many[r, 0])
        assert (batch.log_prob(z)[r] - alone.log_prob(z[r])).abs().max() < 1e-10


def test_the_density_is_prior_times_likelihood() -> None:
    X, Y = data(4)
    prior, likelihood = network(hidden=()), likelihoods.Gaussian()
    target = Target(prior, likelihood, X, Y)
    z = target.start((2,), rnd.generator_from(0))
    theta, psi = target.split(z)
    assert target.size == 4 and (psi.exp() - 0.1).abs().max() < 1e-12
    for i in range(2):
        total = torch.distributions.Normal(0.0, 1.0).log_prob(torch.tensor(0.0, dtype=DOUBLE))  # psi at its median
        scales = torch.tensor([2**-0.5, 2**-0.5, 1.0], dtype=DOUBLE)
        total = total + torch.distributions.Normal(0.0, scales).log_prob(theta[i]).sum()
        for x, y in zip(X, Y, strict=True):
            mean = theta[i, 0] * x[0] + theta[i, 1] * x[1] + theta[i, 2]
            total = total + torch.distributions.Normal(mean, psi[i].exp()).log_prob(y).sum()
        assert (target.log_prob(z)[i] - total).abs() < 1e-10
