"""DeepEnsemble: modes, anchored draws of the exact posterior, and the noise set by the evidence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn import random as rnd
from probnn.errors import ConvergenceError, ConvergenceWarning, DomainError, UnsupportedError
from probnn.inference import DeepEnsemble, GaussianWeightProcess, Target
from probnn.inference.ensemble import _gaussian_like, _set_psi
from tests.cases import DOUBLE, data, network


def linear(weight_prior: priors.WeightPrior | None = None, **options: int) -> probnn.BayesianNetwork:
    return network(weight_prior or priors.NormalWeights(weight_scale=1.5, bias_scale=0.7), hidden=(), **options)


def conjugate(prior: probnn.BayesianNetwork, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, float]:
    """Posterior mean, covariance and log evidence of the linear model: textbook formulas."""
    scales = prior.weight_prior.scales(prior.network.layout, X)
    design = torch.cat([X, torch.ones_like(X[:, :1])], -1)
    y, noise = Y.squeeze(-1), torch.diag(variance.expand(len(X)))
    precision = design.T @ torch.linalg.solve(noise, design) + torch.diag(scales.square().reciprocal())
    covariance = torch.linalg.inv(precision)
    marginal = torch.distributions.MultivariateNormal(
        torch.zeros_like(y), design @ torch.diag(scales.square()) @ design.T + noise
    )
    return covariance @ design.T @ torch.linalg.solve(noise, y), covariance, marginal.log_prob(y).item()


def check_draws(theta: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Mean and covariance of independent draws within five standard errors of a Gaussian's."""
    count, variance = len(theta), covariance.diagonal()
    assert ((theta.mean(0) - mean).abs() < 5 * (variance / count).sqrt()).all()
    # The variance of an entry of a Wishart matrix.
    error = ((covariance.square() + variance[:, None] * variance) / count).sqrt()
    assert ((theta.T.cov() - covariance).abs() < 5 * error).all()


# Plain members


def test_every_member_of_a_linear_model_is_its_mode(seed: int) -> None:
    X, Y = data(seed=seed)
    mean, _, _ = conjugate(linear(), X, Y, torch.tensor(0.04, dtype=DOUBLE))
    posterior = DeepEnsemble(size=3, steps=800).fit(linear(), likelihoods.Gaussian(noise=0.2), X, Y, seed=seed)
    assert posterior.theta.shape == (3, 1, 3) and posterior.info.converged
    assert (posterior.theta[:, 0] - mean).abs().max() < 1e-6


def test_members_do_not_see_each_other_and_climb_from_prior_draws(seed: int) -> None:
    X, Y = data(seed=seed)
    prior, likelihood = network(), likelihoods.Gaussian(noise=0.1)
    posterior = DeepEnsemble(size=5, steps=60).fit(prior, likelihood, X, Y, seed=seed)
    start = Target(prior, likelihood, X, Y).start((5,), rnd.generator_from(seed))
    density = Target(prior, likelihood, X, Y).log_prob
    trace, end = posterior.info.trace["log_prob"], posterior.theta[:, 0]
    assert trace.shape == (61, 5) and posterior.info.steps == 60 and posterior.info.gradients == 61 * 5
    torch.testing.assert_close(trace[0], density(start))
    torch.testing.assert_close(trace.max(0).values, density(end))
    assert (density(end) > density(start) + 1).all()
    assert torch.pdist(end).min() > 0.1


def test_warm_start_begins_at_the_members_and_takes_a_quarter(seed: int) -> None:
    X, Y = data(seed=seed)
    prior, likelihood = network(), likelihoods.Gaussian()
    method = DeepEnsemble(size=4, steps=200)
    first = method.fit(prior, likelihood, X, Y, seed=seed)
    again = method.fit(prior, likelihood, X, Y, seed=seed + 1, init=first)
    before = Target(prior, likelihood, X, Y).log_prob(torch.cat([first.theta, first.psi], -1).squeeze(1))
    assert again.info.steps == 50 and again.info.trace["log_prob"].shape == (51, 4)
    torch.testing.assert_close(again.info.trace["log_prob"][0], before)


# Noise


@pytest.mark.parametrize("m", [1, 2])
def test_noise_of_a_linear_model_maximises_its_evidence(m: int, seed: int) -> None:
    """In a linear model the evidence the turns use is exact, wherever the member is."""
    X, Y = data(m=m, seed=seed)
    likelihood = likelihoods.Gaussian(noise_median=0.3, noise_spread=0.8, levels=m)
    posterior = DeepEnsemble(size=2, steps=40).fit(linear(output_dim=m), likelihood, X, Y, seed=seed)
    grid = torch.linspace(-4, 2, 6001, dtype=DOUBLE)
    for j in range(m):
        scales = 1.5 / math.sqrt(2), 1.5 / math.sqrt(2), 0.7
        design = torch.cat([X, torch.ones_like(X[:, :1])], -1) * torch.tensor(scales, dtype=DOUBLE)
        covariance = design @ design.T + (2 * grid).exp()[:, None, None] * torch.eye(len(X), dtype=DOUBLE)
        law = torch.distributions.MultivariateNormal(torch.zeros(len(X), dtype=DOUBLE), covariance)
        objective = law.log_prob(Y[:, j]) + likelihood.log_prior(grid.unsqueeze(-1))
        assert (posterior.psi[..., j] - grid[objective.argmax()]).abs().max() < 2e-3


def test_noise_objective_of_a_network_is_that_of_its_linearised_gaussian_process(seed: int) -> None:
    X, Y = data(seed=seed)
    prior, likelihood = network(), likelihoods.Gaussian()
    target = Target(prior, likelihood, X, Y)
    z = target.start((3,), rnd.generator_from(seed))
    found = target.split(_set_psi(target, z, *_gaussian_like(target, None)))[1]
    scales, grid = prior.weight_prior.scales(prior.network.layout, X), torch.linspace(-5, 3, 8001, dtype=DOUBLE)
    for theta, psi in zip(target.split(z)[0], found, strict=True):
        J = torch.func.jacrev(lambda t: prior.apply(t, X).squeeze(-1))(theta)
        mean = prior.apply(theta, X).squeeze(-1) - J @ theta
        covariance = (J * scales) @ (J * scales).T + (2 * grid).exp()[:, None, None] * torch.eye(len(X), dtype=DOUBLE)
        law = torch.distributions.MultivariateNormal(mean, covariance)
        objective = law.log_prob(Y.squeeze(-1)) + likelihood.log_prior(grid.unsqueeze(-1))
        inside = (grid - math.log(0.1)).abs() < 3  # as far as one turn goes
        assert (psi - grid[torch.where(inside, objective, -torch.inf).argmax()]).abs() < 3e-3


def test_networks_that_could_interpolate_keep_the_noise(seed: int) -> None:
    """The joint mode of weights and noise is at exp(-40) of the prior median here."""
    X, Y = data(40, seed=seed)
    noisy = Y + 0.3 * rnd.normal(Y.shape, generator=rnd.generator_from(seed + 1), like=Y)
    prior = network(priors.NormalWeights(weight_scale=2.0), hidden=(40, 40))
    posterior = DeepEnsemble(size=2, steps=300).fit(prior, likelihoods.Gaussian(), X, noisy, seed=seed)
    assert ((posterior.psi.exp() > 0.15) & (posterior.psi.exp() < 0.6)).all()


@pytest.mark.parametrize(
    "weight_prior", [priors.StudentTWeights(), priors.HierarchicalWeights(), priors.LaplaceWeights()]
)
def test_other_priors_and_likelihoods_with_parameters(weight_prior: priors.WeightPrior, seed: int) -> None:
    X, Y = data(seed=seed)
    posterior = DeepEnsemble(size=3, steps=40).fit(network(weight_prior), likelihoods.StudentT(), X, Y, seed=seed)
    assert posterior.predict(X).mean.isfinite().all()
    assert (posterior.psi != math.log(0.1)).all()


# Anchored members


def test_anchored_members_are_draws_of_the_exact_posterior(seed: int) -> None:
    X, Y = data(seed=seed)
    mean, covariance, _ = conjugate(linear(), X, Y, torch.tensor(0.04, dtype=DOUBLE))
    method = DeepEnsemble(size=3000, steps=1000, anchored=True)
    posterior = method.fit(linear(), likelihoods.Gaussian(noise=0.2), X, Y, seed=seed)
    assert posterior.info.converged
    check_draws(posterior.theta[:, 0], mean, covariance)


def test_anchored_members_with_a_correlated_prior_and_known_noise(seed: int) -> None:
    """A Gaussian posterior as prior: conditioning in two steps is conditioning at once."""
    X, Y = data(10, seed=seed)
    variance = torch.linspace(0.02, 0.2, 10, dtype=DOUBLE).unsqueeze(-1)
    mean, covariance, _ = conjugate(linear(), X, Y, variance.squeeze(-1))
    law = likelihoods.Gaussian(noise=1.0)
    first = probnn.Laplace().fit(linear(), law, X[:5], Y[:5], noise_variance=variance[:5])
    assert isinstance(first, GaussianWeightProcess) and first.directions is not None
    method = DeepEnsemble(size=2000, steps=800, anchored=True)
    posterior = method.fit(first, law, X[5:], Y[5:], noise_variance=variance[5:], seed=seed)
    check_draws(posterior.theta[:, 0], mean, covariance)


def test_anchored_members_use_the_noise_of_their_psi(seed: int) -> None:
    """With an inferred noise they are draws given the noise that maximises evidence and prior."""
    X, Y = data(seed=seed)
    likelihood = likelihoods.Gaussian(noise_median=0.3)
    method = DeepEnsemble(size=400, steps=800, anchored=True)
    posterior = method.fit(linear(), likelihood, X, Y, seed=seed)
    psi = posterior.psi[:, 0]
    assert (psi - psi[0]).abs().max() < 1e-3
    mean, covariance, _ = conjugate(linear(), X, Y, (2 * psi[0]).exp())
    check_draws(posterior.theta[:, 0], mean, covariance)


def test_anchored_works_where_coordinates_are_gaussian() -> None:
    X, Y = data()
    method = DeepEnsemble(size=2, steps=10, anchored=True)
    for scale_prior in ("half_cauchy", "inverse_gamma"):
        with pytest.raises(UnsupportedError, match="coordinates are Gaussian, got HierarchicalWeights"):
            method.fit(network(priors.HierarchicalWeights(scale_prior=scale_prior)), likelihoods.Gaussian(), X, Y)
    with pytest.raises(UnsupportedError, match="got StudentTWeights"):
        method.fit(network(priors.StudentTWeights()), likelihoods.Gaussian(), X, Y)
    with pytest.raises(UnsupportedError, match="got a StudentT likelihood"):
        method.fit(network(), likelihoods.StudentT(), X, Y)
    posterior = method.fit(network(priors.HierarchicalWeights()), likelihoods.Gaussian(), X, Y)
    assert posterior.predict(X).mean.isfinite().all()


# Errors


def test_settings_and_lost_members() -> None:
    with pytest.raises(DomainError, match="anchored must be True or False"):
        DeepEnsemble(anchored=1)  # type: ignore[arg-type]
    with pytest.raises(DomainError, match="lr"):
        DeepEnsemble(lr=0.0)
    X, Y = data()
    with pytest.raises(ConvergenceError, match="3 of 3 members") as caught:
        DeepEnsemble(size=3, steps=10).fit(network(), likelihoods.Gaussian(noise=1e-2), X, 1e160 * Y)
    assert caught.value.partial.shape == (3, network().num_parameters)


@pytest.mark.parametrize("sd", [0.01, 1e-4])
@pytest.mark.parametrize("n", [2, 8])
def test_anchored_members_are_exact_draws_at_a_small_noise(sd: float, n: int, seed: int) -> None:
    """Where 400 steps of Adam are far from enough; with fewer rows than weights and with more."""
    X, Y = data(n, seed=seed)
    mean, covariance, _ = conjugate(linear(), X, Y, torch.tensor(sd**2, dtype=DOUBLE))
    posterior = DeepEnsemble(size=1000, anchored=True).fit(linear(), likelihoods.Gaussian(noise=sd), X, Y, seed=seed)
    assert posterior.info.converged
    check_draws(posterior.theta[:, 0], mean, covariance)


def test_anchored_members_still_climbing_are_flagged() -> None:
    X, Y = data(30)
    method = DeepEnsemble(size=4, steps=120, lr=1e-3, anchored=True)
    with pytest.warns(ConvergenceWarning, match=r"4 of 4 anchored members still gained more than 10 nats"):
        posterior = method.fit(network(), likelihoods.Gaussian(noise=0.01), X, Y)
    assert posterior.info.converged is False and len(posterior.info.warnings) == 1
    short = DeepEnsemble(size=4, steps=20, lr=1e-3, anchored=True)
    assert short.fit(network(), likelihoods.Gaussian(noise=0.01), X, Y).info.warnings == ()
