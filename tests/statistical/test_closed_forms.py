"""Laplace's method where the answer is known: conjugate posteriors, quadrature, and moments of its draws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn import random as rnd
from probnn.inference import GaussianWeightProcess

DOUBLE = torch.double


def linear_problem(n: int, d: int, m: int, seed: int) -> tuple[probnn.BayesianNetwork, Tensor, Tensor]:
    """A linear model with prior N(0, 1.3^2 / d) for weights and N(0, 0.7^2) for biases, and data with noise 0.1."""
    generator = rnd.generator_from(seed)
    net = probnn.MLP(input_dim=d, hidden=(), output_dim=m)
    prior = probnn.BayesianNetwork(net, priors.NormalWeights(1.3, 0.7), dtype=DOUBLE)
    X = rnd.normal((n, d), generator=generator, dtype=DOUBLE)
    F = prior.sample(X, generator=generator)
    return prior, X, F + 0.1 * rnd.normal((n, m), generator=generator, dtype=DOUBLE)


def conjugate(prior: probnn.BayesianNetwork, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance of the weights, and the log evidence: outcome by outcome, from the textbook."""
    d, m = X.shape[1], Y.shape[1]
    scales = prior.weight_prior.scales(prior.network.layout, X)
    A = torch.cat([X, torch.ones_like(X[:, :1])], -1)
    mean, covariance = torch.zeros(len(scales), dtype=DOUBLE), torch.zeros(len(scales), len(scales), dtype=DOUBLE)
    evidence = torch.zeros((), dtype=DOUBLE)
    for j in range(m):
        at = torch.tensor([*range(j * d, (j + 1) * d), m * d + j])  # weights of the outcome, then its bias
        inner = torch.diag(scales[at].square())
        own = torch.linalg.inv(A.mT @ (A / variance[:, j : j + 1]) + torch.linalg.inv(inner))
        mean[at] = own @ A.mT @ (Y[:, j] / variance[:, j])
        covariance[at.unsqueeze(-1), at] = own
        law = torch.distributions.MultivariateNormal(
            torch.zeros_like(Y[:, j]), A @ inner @ A.mT + variance[:, j].diag()
        )
        evidence = evidence + law.log_prob(Y[:, j])
    return mean, covariance, evidence


@pytest.mark.parametrize("structure", ["full", "last_layer"])
@pytest.mark.parametrize(("n", "d", "m"), [(20, 3, 1), (3, 6, 1), (20, 2, 3), (2, 4, 2)])
@pytest.mark.parametrize("known", [False, True])
def test_linear_model_is_conjugate(structure: str, n: int, d: int, m: int, known: bool, seed: int) -> None:
    """Mean, covariance and evidence to 1e-8, with fewer and more rows than weights, noise fixed or known by row."""
    prior, X, Y = linear_problem(n, d, m, seed)
    variance = torch.full_like(Y, 0.01)
    if known:
        variance = 0.02 * rnd.uniform(Y.shape, generator=rnd.generator_from(seed + 1), dtype=DOUBLE) + 0.005
    mean, covariance, evidence = conjugate(prior, X, Y, variance)
    likelihood = likelihoods.Gaussian(noise=0.1)
    post = probnn.Laplace(structure=structure, steps=50).fit(
        prior, likelihood, X, Y, noise_variance=variance if known else None, seed=seed
    )
    torch.testing.assert_close(post.loc, mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(post.spread.dense(), covariance, rtol=0, atol=1e-8)
    assert post.info.log_evidence == pytest.approx(evidence.item(), abs=1e-8) and post.info.converged


def test_conditioning_a_linearised_posterior_is_fitting_all_the_data(seed: int) -> None:
    prior, X, Y = linear_problem(12, 3, 2, seed)
    method, likelihood = probnn.Laplace(steps=50), likelihoods.Gaussian(noise=0.1)
    some, whole = (method.fit(prior, likelihood, X[:n], Y[:n], seed=seed) for n in (5, 12))
    variance = torch.full_like(Y[5:], 0.01)
    for conditioned in (some.condition(X[5:], Y[5:]), some.condition(X[5:], Y[5:], noise_variance=variance)):
        torch.testing.assert_close(conditioned.mean, whole.mean, rtol=0, atol=1e-8)
        torch.testing.assert_close(conditioned.spread.dense(), whole.spread.dense(), rtol=0, atol=1e-8)
    twice = some.condition(X[5:8], Y[5:8]).condition(X[8:], Y[8:])
    torch.testing.assert_close(twice.predict(X).mean, whole.predict(X).mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(twice.predict(X).variance, whole.predict(X).variance, rtol=0, atol=1e-8)
    with pytest.raises(probnn.errors.UnsupportedError, match="batch of shape"):
        some.condition(X.expand(2, -1, -1), Y.expand(2, -1, -1))


def test_conditioning_in_a_network_is_gaussian_process_regression_with_its_kernel(seed: int) -> None:
    """The posterior is a Gaussian process; knowing more must agree with conditioning that one by its kernel."""
    generator = rnd.generator_from(seed)
    prior = probnn.BayesianNetwork(probnn.MLP(input_dim=2, hidden=(5,)), priors.NormalWeights(2.0), dtype=DOUBLE)
    X = 2 * rnd.uniform((16, 2), generator=generator, dtype=DOUBLE) - 1
    Y = X.sum(-1, keepdim=True).sin() + 0.1 * rnd.normal((16, 1), generator=generator, dtype=DOUBLE)
    for structure in ("full", "last_layer", "diagonal"):
        post = probnn.Laplace(structure=structure, steps=200).fit(
            prior, likelihoods.Gaussian(noise=0.1), X[:8], Y[:8], seed=seed
        )
        law = post.predict(X)
        K, mean = law.distribution.covariance_matrix, law.mean
        gain = torch.linalg.solve(K[8:, 8:] + 0.01 * torch.eye(8, dtype=DOUBLE), K[8:]).mT
        after = post.condition(X[8:], Y[8:]).predict(X)
        torch.testing.assert_close(after.mean, mean + gain @ (Y[8:] - mean[8:]), rtol=0, atol=1e-8)
        torch.testing.assert_close(after.distribution.covariance_matrix, K - gain @ K[8:], rtol=0, atol=1e-8)


def test_inferred_noise_of_a_linear_model_maximises_evidence_times_prior(seed: int) -> None:
    """Against a fine grid of the closed form; the evidence reported is the top of it."""
    prior, X, Y = linear_problem(15, 3, 1, seed)
    likelihood = likelihoods.Gaussian()
    post = probnn.Laplace(steps=50).fit(prior, likelihood, X, Y, seed=seed)

    def objective(log_noise: Tensor) -> Tensor:
        evidence = conjugate(prior, X, Y, (2 * log_noise).exp().expand_as(Y))[2]
        return evidence + likelihood.log_prior(log_noise.reshape(1))

    grid = torch.linspace(-5, 1, 3001, dtype=DOUBLE)
    values = torch.stack([objective(at) for at in grid])
    assert abs(post.psi.item() - grid[values.argmax()].item()) <= 0.002
    assert post.info.log_evidence == pytest.approx(objective(post.psi[0]).item(), abs=1e-8)
    assert post.info.log_evidence >= values.max().item() - 1e-6


def test_tuned_linear_model_is_at_the_top_of_its_evidence(seed: int) -> None:
    """No change of a scale or the noise, alone or together, has more evidence in closed form."""
    prior, X, Y = linear_problem(30, 3, 1, seed)
    post = probnn.Laplace(steps=50, tune=True, tolerance=1e-8).fit(prior, likelihoods.Gaussian(0.5), X, Y, seed=seed)
    law, noise = post.prior.weight_prior, post.likelihood.noise

    def evidence(change: Tensor) -> float:
        weight, bias, log_noise = change.exp()
        new = probnn.BayesianNetwork(
            prior.network, priors.NormalWeights(law.weight_scale * weight, law.bias_scale * bias), dtype=DOUBLE
        )
        return conjugate(new, X, Y, (noise * log_noise).square().expand_as(Y))[2].item()

    top = evidence(torch.zeros(3, dtype=DOUBLE))
    assert post.info.log_evidence == pytest.approx(top, abs=1e-8)
    changes = 0.3 * rnd.normal((50, 3), generator=rnd.generator_from(seed), dtype=DOUBLE)
    assert max(evidence(change) for change in changes) <= top + 1e-7


@pytest.mark.parametrize("d", [1, 2])
def test_evidence_of_a_classifier_is_near_quadrature(d: int, seed: int) -> None:
    """One or two weights and many rows: the posterior is nearly normal, the error of order 1/n."""
    generator = rnd.generator_from(seed)
    module = torch.nn.Linear(d, 1, bias=False)
    prior = probnn.BayesianNetwork(probnn.ModuleNetwork(module, input_dim=d), priors.NormalWeights(1.0), dtype=DOUBLE)
    X = rnd.normal((60, d), generator=generator, dtype=DOUBLE)
    Y = (rnd.uniform((60, 1), generator=generator, dtype=DOUBLE) < torch.sigmoid(X.sum(-1, keepdim=True))).double()
    post = probnn.Laplace(steps=200, tolerance=1e-12).fit(prior, likelihoods.Bernoulli(), X, Y, seed=seed)
    line = torch.linspace(-6, 6, 601, dtype=DOUBLE)
    theta = torch.cartesian_prod(*[line] * d).reshape(-1, d)
    joint = prior.log_prob(theta) + likelihoods.Bernoulli().log_prob(Y, prior.apply(theta, X), X.new_zeros(1, 0)).sum(
        -1
    )
    exact = joint.logsumexp(0) + d * math.log(12 / 600)
    assert post.info.log_evidence == pytest.approx(exact.item(), abs=0.15)
    # The mode to the fineness of the grid, and the curvature at it from the logistic model's own formula.
    assert (post.loc - theta[joint.argmax()]).abs().max() <= 0.011
    p = torch.sigmoid(X @ post.loc)
    precision = X.mT @ ((p * (1 - p)).unsqueeze(-1) * X) + d * torch.eye(d, dtype=DOUBLE)
    torch.testing.assert_close(post.spread.dense(), torch.linalg.inv(precision), rtol=1e-8, atol=0)


def within_five_errors(draws: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Mean and covariance of independent normal draws ``S x k``."""
    S, variance = len(draws), covariance.diagonal()
    assert ((draws.mean(0) - mean).abs() <= 5 * (variance / S).sqrt() + 1e-12).all()
    error = ((variance.unsqueeze(-1) * variance + covariance.square()) / S).sqrt()
    assert ((draws.mT.cov() - covariance).abs() <= 5 * error + 1e-12).all()


@pytest.mark.parametrize("structure", ["full", "last_layer", "diagonal"])
def test_draws_have_the_moments_of_the_law(structure: str, seed: int) -> None:
    """Weights, functions and the closed-form predictive distribution, which are three paths through the algebra."""
    generator = rnd.generator_from(seed)
    prior = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=(4,)), priors.NormalWeights(2.0), dtype=DOUBLE)
    X = torch.linspace(-1, 1, 9, dtype=DOUBLE).unsqueeze(-1)
    Y = (2 * X).sin() + 0.1 * rnd.normal(X.shape, generator=generator, dtype=DOUBLE)
    post = probnn.Laplace(structure=structure, steps=200).fit(prior, likelihoods.Gaussian(0.1), X, Y, seed=seed)
    assert isinstance(post, GaussianWeightProcess)
    within_five_errors(post.sample_parameters((20_000,), generator=generator), post.mean, post.spread.dense())
    grid = torch.tensor([[-1.5], [0.1], [1.5]], dtype=DOUBLE)
    law = post.predict(grid)
    f = post.sample(grid, (20_000,), generator=generator).squeeze(-1)
    within_five_errors(f, law.mean.squeeze(-1), law.distribution.covariance_matrix)
