"""MeanFieldVI: the optimum in closed form, the bound against naive draws, warm starts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn import random as rnd
from probnn.errors import ConvergenceError, DomainError, ShapeError, UnsupportedError
from probnn.inference import GaussianWeightProcess, MeanFieldVI, Target
from probnn.inference.variational import Bound
from tests.cases import DOUBLE, data, empirical, module, network

SCALES = torch.tensor([1.5 / math.sqrt(2), 1.5 / math.sqrt(2), 0.7], dtype=DOUBLE)


def linear() -> probnn.BayesianNetwork:
    return network(priors.NormalWeights(weight_scale=1.5, bias_scale=0.7), hidden=())


def design(X: Tensor) -> Tensor:
    return torch.cat([X, torch.ones_like(X[:, :1])], -1)


def conjugate(X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and precision of the linear model."""
    A = design(X)
    precision = (A / variance).T @ A + torch.diag(SCALES.square().reciprocal())
    return torch.linalg.solve(precision, (A / variance).T @ Y).squeeze(-1), precision


def log_evidence(X: Tensor, Y: Tensor, variance: Tensor) -> Tensor:
    A = design(X) * SCALES
    covariance = A @ A.T + torch.diag(variance.expand(len(X)))
    return torch.distributions.MultivariateNormal(torch.zeros(len(X), dtype=DOUBLE), covariance).log_prob(Y.squeeze(-1))


# The linear model


@pytest.mark.parametrize("known", [False, True])
def test_linear_model_has_the_optimum_in_closed_form(known: bool, seed: int) -> None:
    """The exact mean, variances 1 / diag(precision), and the bound they give: pre-activations leave no noise."""
    X, Y = data(seed=seed)
    variance = torch.linspace(0.02, 0.2, len(X), dtype=DOUBLE).unsqueeze(-1) if known else X.new_full((1,), 0.04)
    options = {"noise_variance": variance} if known else {}
    posterior = MeanFieldVI(steps=800).fit(linear(), likelihoods.Gaussian(noise=0.2), X, Y, seed=seed, **options)
    mean, precision = conjugate(X, Y, variance)
    assert (posterior.loc - mean).abs().max() < 1e-6
    assert (posterior.scale.square() * precision.diagonal() - 1).abs().max() < 1e-6
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    evidence = log_evidence(X, Y, variance.squeeze(-1))
    trace = posterior.info.trace
    assert (trace["final_elbo"] - (evidence - gap)).abs() < 1e-9 and trace["final_elbo_se"] < 1e-9
    assert trace["final_elbo"] <= evidence and trace["local"] == 1 and posterior.info.converged
    assert posterior.info.log_evidence is None


@pytest.mark.parametrize("prior", ["module", "posterior"])
def test_draws_of_the_weights_find_the_same_optimum(prior: str, seed: int) -> None:
    """Where pre-activations cannot be sampled; the posterior of half the data is a prior with correlations."""
    X, Y = data(10, seed=seed)
    law, variance = likelihoods.Gaussian(noise=0.2), X.new_full((1,), 0.04)
    mean, precision = conjugate(X, Y, variance)
    process: probnn.ParametricProcess = probnn.BayesianNetwork(
        probnn.ModuleNetwork(torch.nn.Linear(2, 1), input_dim=2), linear().weight_prior, dtype=DOUBLE
    )
    if prior == "posterior":
        process, X, Y = probnn.Laplace().fit(linear(), law, X[:5], Y[:5]), X[5:], Y[5:]
        assert isinstance(process, GaussianWeightProcess) and process.gains is not None
    posterior = MeanFieldVI(steps=1000, num_samples=16).fit(process, law, X, Y, seed=seed)
    assert posterior.info.trace["local"] == 0
    sd = precision.diagonal().rsqrt()
    assert ((posterior.loc - mean) / sd).abs().max() < 0.1
    assert (posterior.scale / sd).log().abs().max() < 0.1


def test_bound_stays_below_the_evidence_with_an_inferred_noise(seed: int) -> None:
    X, Y = data(30, seed=seed)
    likelihood = likelihoods.Gaussian(noise_median=0.2)
    posterior = MeanFieldVI(steps=600).fit(linear(), likelihood, X, Y, seed=seed)
    grid = torch.linspace(-4, 2, 2001, dtype=DOUBLE)
    joint = torch.stack([log_evidence(X, Y, (2 * s).exp().reshape(1)) for s in grid])
    joint = joint + likelihood.log_prior(grid.unsqueeze(-1))
    evidence = joint.logsumexp(0) + math.log(6 / 2000)
    weights = joint.softmax(0)
    centre = (weights * grid).sum()
    spread = (weights * (grid - centre).square()).sum().sqrt()
    trace = posterior.info.trace
    assert trace["final_elbo"] < evidence + 5 * trace["final_elbo_se"]
    _, precision = conjugate(X, Y, (2 * centre).exp())
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    assert trace["final_elbo"] > evidence - gap - 0.3
    # The noise has a posterior of its own, drawn with theta; independence narrows it a little.
    assert (posterior.psi - centre).abs() < 0.5 * spread and 0.7 < posterior.psi_scale / spread < 1.2
    _, psi = posterior._sample_joint(torch.Size([4000]), rnd.generator_from(seed))
    assert abs(psi.std().item() / posterior.psi_scale.item() - 1) < 5 / math.sqrt(2 * 4000)


# The bound


CASES = {
    "normal weights": (priors.NormalWeights(1.5, 0.5), likelihoods.Gaussian()),
    "student-t weights": (priors.StudentTWeights(), likelihoods.Gaussian(noise=0.3)),
    "log-normal scales": (priors.HierarchicalWeights(spread=0.7), likelihoods.Gaussian(noise=0.3)),
    "half-Cauchy scales": (priors.HierarchicalWeights(scale_prior="half_cauchy"), likelihoods.Gaussian()),
    "student-t outcomes": (priors.NormalWeights(), likelihoods.StudentT()),
}


@pytest.mark.parametrize("name", CASES)
def test_bound_is_unbiased(name: str, seed: int) -> None:
    """Against the definition: draws of log p(Y, z) - log q(z), at a q that is anywhere."""
    weight_prior, likelihood = CASES[name]
    X, Y = data(5, seed=seed)
    generator = rnd.generator_from(seed)
    target = Target(network(weight_prior, hidden=(4, 3)), likelihood, X, Y)
    loc = 0.5 * target.start((), generator)
    scale = 0.1 + 0.2 * rnd.uniform(loc.shape, generator=generator, like=loc)
    bound = Bound(target)
    with torch.no_grad():
        told = bound(loc, scale, 20_000, generator)
        q = torch.distributions.Normal(loc, scale)
        z = loc + scale * rnd.normal((20_000, *loc.shape), generator=generator, like=loc)
        naive = target.log_prob(z) - q.log_prob(z).sum(-1)
    assert bound.local
    error = math.sqrt((told.var() + naive.var()).item() / 20_000)
    assert abs((told.mean() - naive.mean()).item()) < 5 * error


def test_pre_activations_are_quieter_than_weights(seed: int) -> None:
    """The reason for them: with many rows their noise averages out, that of shared weights does not."""
    X, Y = data(100, seed=seed)
    target = Target(network(), likelihoods.Gaussian(noise=0.1), X, Y)
    loc = target.start((), rnd.generator_from(seed))
    local, plain = Bound(target), Bound(target)
    plain.__dict__["local"] = False
    with torch.no_grad():
        spread = [b(loc, torch.full_like(loc, 0.1), 500, rnd.generator_from(seed)).std() for b in (local, plain)]
    assert spread[0] < 0.5 * spread[1]


# Networks and starts


@pytest.mark.parametrize("likelihood", [likelihoods.Bernoulli(), likelihoods.Gaussian(noise=0.2)])
def test_a_network_learns(likelihood: likelihoods.Likelihood, seed: int) -> None:
    X, Y = data(200, seed=seed)  # binary outcomes say little each
    Y = (Y > 0).to(Y) if isinstance(likelihood, likelihoods.Bernoulli) else Y
    prior = network(hidden=(10,))
    posterior = MeanFieldVI(steps=400).fit(prior, likelihood, X, Y, seed=seed)
    error = (posterior.predict(X).mean - Y).square().mean()
    assert error < 0.5 * Y.var()
    elbo = posterior.info.trace["elbo"]
    assert len(elbo) == 400 and posterior.info.steps == 550 and elbo[-50:].mean() > elbo[:50].mean()


def test_warm_start_goes_on_where_the_fit_ended(seed: int) -> None:
    X, Y = data(seed=seed)
    likelihood, method = likelihoods.Gaussian(), MeanFieldVI(steps=300)
    first = method.fit(network(), likelihood, X, Y, seed=seed)
    again = method.fit(network(), likelihood, X, Y, seed=seed + 1, init=first)
    assert len(again.info.trace["elbo"]) == again.info.steps == 150
    # The first ELBO is one step's draws (four) at the previous result.
    noise = first.info.trace["final_elbo_se"] * math.sqrt(256 / 4)
    assert (again.info.trace["elbo"][0] - first.info.trace["final_elbo"]).abs() < 6 * noise
    # A Laplace posterior of the last layer only has its mean to give, draws one of them.
    laplace = probnn.Laplace(structure="last_layer", steps=100).fit(network(), likelihood, X, Y)
    draws = first.draws(10)
    for init in (laplace, draws):
        warm = method.fit(network(), likelihood, X, Y, seed=seed, init=init)
        assert warm.info.steps == 150 and warm.predict(X).mean.isfinite().all()
    with pytest.raises(ShapeError, match="init must have the prior's"):
        method.fit(network(), likelihood, X, Y, init=linear().draws(4))


def test_user_module() -> None:
    X, Y = data()
    prior = probnn.BayesianNetwork(probnn.ModuleNetwork(module(), input_dim=2), priors.NormalWeights(), dtype=DOUBLE)
    posterior = MeanFieldVI(steps=50).fit(prior, likelihoods.Gaussian(), X, Y)
    assert posterior.info.trace["local"] == 0 and posterior.predict(X).mean.isfinite().all()


def test_errors() -> None:
    X, Y = data()
    for name in ("steps", "num_samples", "num_starts", "lr"):
        with pytest.raises(DomainError, match=name):
            MeanFieldVI(**{name: 0})
    with pytest.raises(UnsupportedError, match="draws have no density"):
        MeanFieldVI(steps=10).fit(empirical(), likelihoods.Gaussian(), X, Y)
    with pytest.raises(ConvergenceError, match="not finite at any of 4 starts"):
        MeanFieldVI(steps=10).fit(network(), likelihoods.Gaussian(noise=0.01), X, 1e160 * Y)
    with pytest.raises(ConvergenceError, match="not finite at step"):
        MeanFieldVI(steps=50, lr=1e200).fit(network(), likelihoods.Gaussian(noise=0.01), X, Y)
