"""Weighted draws: sampling, thinning, reweighting."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch

import probnn
from probnn import likelihoods, priors
from probnn import random as rnd
from probnn.errors import DegenerateWeightsWarning, DomainError, NonFiniteError, ShapeError, UnsupportedError
from tests.cases import DOUBLE, data, network


def linear(scale: float = 1.0) -> probnn.BayesianNetwork:
    return network(priors.NormalWeights(scale, scale, "none"), hidden=(), input_dim=1)


def draws(n: int, seed: int, noise: float = 0.5) -> probnn.EmpiricalProcess:
    prior = linear()
    theta = prior.sample_parameters((1, n), generator=rnd.generator_from(seed))
    return probnn.EmpiricalProcess(prior, theta, theta.new_zeros(1, n, 0), likelihoods.Gaussian(noise=noise))


def test_reweighted_draws_are_the_conjugate_posterior(seed: int) -> None:
    """Bayesian linear regression: importance weights against the closed form, within standard errors."""
    process, noise = draws(200_000, seed), 0.5
    X = torch.tensor([[-0.5], [0.2], [0.7], [0.9]], dtype=DOUBLE)
    Y = torch.tensor([[-0.3], [0.4], [1.1], [0.8]], dtype=DOUBLE)
    posterior = process.condition(X, Y)
    A = torch.cat([X, torch.ones_like(X)], -1)
    covariance = torch.linalg.inv(A.T @ A / noise**2 + torch.eye(2, dtype=DOUBLE))
    exact_mean = covariance @ A.T @ Y / noise**2
    Z = torch.tensor([[-1.0, 1.0], [0.0, 1.0], [1.5, 1.0]], dtype=DOUBLE)
    prediction = posterior.predict(Z[:, :1])
    sd = ((Z @ covariance) * Z).sum(-1, keepdim=True).sqrt()
    error = 5 * sd / posterior.ess.sqrt()
    assert ((prediction.mean - Z @ exact_mean).abs() <= error).all()
    assert ((prediction.variance.sqrt() / sd - 1).abs() <= 5 / posterior.ess.sqrt()).all()
    assert 2_000 < posterior.ess < 200_000


def test_conditioning_twice_is_conditioning_once() -> None:
    process = draws(2_000, 0)
    X, Y = data(6, 1)
    once = process.condition(X, Y)
    twice = process.condition(X[:2], Y[:2]).condition(X[2:], Y[2:])
    assert (once.log_weights - twice.log_weights).abs().max() < 1e-10
    assert process.log_weights is None


def test_batches_of_data_are_batches_of_processes() -> None:
    process = draws(500, 0)
    X, Y = data(3, 1)
    fantasies = Y + torch.randn(4, 2, 3, 1, dtype=DOUBLE, generator=rnd.generator_from(0))
    batch = process.condition(X.expand(2, 3, 1), fantasies)
    assert batch.ess.shape == (4, 2)
    prediction = batch.predict(X.expand(4, 2, 3, 1))
    assert prediction.mean.shape == (4, 2, 3, 1)
    for i in range(4):
        for j in range(2):
            alone = process.condition(X, fantasies[i, j]).predict(X)
            assert (alone.mean - prediction.mean[i, j]).abs().max() < 1e-10
            assert (alone.variance - prediction.variance[i, j]).abs().max() < 1e-10
    with pytest.raises(UnsupportedError, match="batch of processes"):
        batch.sample(X)


def test_known_noise_of_rows() -> None:
    process = draws(2_000, 0, noise=0.5)
    X, Y = data(4, 1)
    same = process.condition(X, Y, noise_variance=torch.full_like(Y, 0.25))
    assert (same.log_weights - process.condition(X, Y).log_weights).abs().max() < 1e-10
    useless = process.condition(X, Y, noise_variance=torch.full_like(Y, 1e12))
    assert (useless.weights - 1 / 2_000).abs().max() < 1e-9


def test_a_surprise_warns() -> None:
    process = draws(500, 0, noise=0.1)
    X = torch.zeros(1, 1, dtype=DOUBLE)
    with pytest.warns(DegenerateWeightsWarning, match="effective sample size"):
        process.condition(X, torch.full((1, 1), 20.0, dtype=DOUBLE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        process.condition(X, torch.zeros(1, 1, dtype=DOUBLE))


def test_sampling_follows_the_weights(seed: int) -> None:
    process, n = draws(4, seed), 20_000
    weights = torch.tensor([0.1, 0.2, 0.0, 0.7], dtype=DOUBLE)
    weighted = probnn.EmpiricalProcess(process.base, process.theta, process.psi, process.likelihood, weights.log())
    theta = weighted.sample_parameters((n,), generator=rnd.generator_from(seed))
    counts = (theta[:, None] == process.theta[0]).all(-1).double().mean(0)
    assert ((counts - weights).abs() <= 5 * (weights * (1 - weights) / n).sqrt()).all()
    assert abs(weighted.ess - 1 / weights.square().sum()) < 1e-12


def test_thinning_keeps_the_law() -> None:
    process = draws(1_000, 0)
    thin = process.thin(50)
    assert thin.theta.shape == (1, 50, 2) and (process.thin(1_000).theta == process.theta).all()
    weights = torch.zeros(1_000, dtype=DOUBLE).fill_(-torch.inf)
    weights[7], weights[11] = 0.0, 0.0
    two = probnn.EmpiricalProcess(process.base, process.theta, process.psi, process.likelihood, weights).thin(10)
    assert (two.theta[0, :5] == process.theta[0, 7]).all() and (two.theta[0, 5:] == process.theta[0, 11]).all()


def test_wrong_shapes() -> None:
    process = draws(4, 0)
    with pytest.raises(ShapeError, match="theta"):
        probnn.EmpiricalProcess(process.base, process.theta[0], process.psi)
    with pytest.raises(ShapeError, match="psi"):
        probnn.EmpiricalProcess(process.base, process.theta, process.theta)
    with pytest.raises(ShapeError, match="at least one draw"):
        probnn.EmpiricalProcess(process.base, process.theta[:, :0], process.psi[:, :0])
    with pytest.raises(UnsupportedError, match="no likelihood"):
        linear().draws(4).condition(*data(2, 1))


@pytest.mark.parametrize("name", ["Bernoulli", "Categorical", "Poisson"])
def test_outcomes_outside_the_likelihood_are_refused(name: str) -> None:
    likelihood = {
        "Bernoulli": likelihoods.Bernoulli(),
        "Categorical": likelihoods.Categorical(3),
        "Poisson": likelihoods.Poisson(),
    }[name]
    prior = network(output_dim=likelihood.channels(1))
    process = probnn.EmpiricalProcess(
        prior, prior.sample_parameters((1, 8)), torch.zeros(1, 8, 0, dtype=DOUBLE), likelihood
    )
    X = torch.zeros(2, 2, dtype=DOUBLE)
    with pytest.raises(ValueError, match="row 1"):
        process.condition(X, torch.tensor([[1.0], [-1.0]], dtype=DOUBLE))
    mean = process.predict(X).mean
    assert mean.shape == (2, 3 if name == "Categorical" else 1) and (mean >= 0).all()
    if name == "Categorical":
        assert (mean.sum(-1) - 1).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"theta": lambda p: p.theta * torch.nan}, NonFiniteError, "theta must be finite"),
        ({"theta": lambda p: p.theta.long()}, DomainError, "theta must be floating point, got torch.int64"),
        ({"theta": lambda p: p.theta.float()}, DomainError, "psi must have dtype torch.float32, got torch.float64"),
        ({"psi": lambda p: p.psi + torch.inf}, NonFiniteError, "psi must be finite"),
        ({"log_weights": lambda p: p.theta.new_zeros(3)}, ShapeError, r"shape \(..., 5\), one a draw, got \(3,\)"),
        ({"log_weights": lambda p: torch.tensor(0.0).to(p.theta)}, ShapeError, r"got \(\)"),
        ({"log_weights": lambda p: p.theta.new_full((5,), torch.inf)}, NonFiniteError, "log_weights must be finite"),
        ({"log_weights": lambda p: p.theta.new_full((5,), torch.nan)}, NonFiniteError, "log_weights must be finite"),
        ({"log_weights": lambda p: p.theta.new_full((2, 5), -torch.inf)}, DomainError, "must not all be -inf"),
        ({"log_weights": lambda p: torch.zeros(5)}, DomainError, "log_weights must have dtype torch.float64"),
        ({"log_weights": lambda p: [0.0] * 5}, DomainError, "log_weights must be a torch tensor, got a list"),
    ],
)
def test_draws_that_are_none(options: dict, error: type[Exception], message: str) -> None:
    prior = linear()
    theta = prior.sample_parameters((1, 5), generator=rnd.generator_from(0))
    process = probnn.EmpiricalProcess(prior, theta, theta.new_zeros(1, 5, 1), likelihoods.Gaussian())
    with pytest.raises(error, match=message):
        dataclasses.replace(process, **{name: change(process) for name, change in options.items()})


def test_outcomes_that_no_draw_can_explain_are_refused() -> None:
    """All weights zero: a softmax of them would be NaN."""
    prior = linear()
    theta = torch.zeros(1, 20, 2, dtype=DOUBLE)
    process = probnn.EmpiricalProcess(prior, theta + 800, theta[..., :0], likelihoods.Poisson())
    X = torch.ones(1, 1, dtype=DOUBLE)
    with pytest.raises((NonFiniteError, DomainError), match="log_weights"):
        process.condition(X, X)
