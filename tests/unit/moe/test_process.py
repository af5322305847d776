"""The prior over mixtures of experts: its coordinates, its law and inference with it."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

import probnn
from probnn import moe
from probnn import random as rnd
from probnn.errors import DomainError, ShapeError, UnsupportedError
from tests.cases import DOUBLE, data

NONE = torch.zeros(1, 0, dtype=DOUBLE)
FAMILIES = {
    "softmax": {},
    "tempered, two outcomes": {"gate": moe.SoftmaxGate(temperature=2.0), "num_outcomes": 2},
    "laplace, polynomial": {"gate": moe.LaplaceGate(), "expert": moe.PolynomialExpert(2)},
    "sigmoid, shared": {"gate": moe.SigmoidGate(), "variance": "shared", "num_outcomes": 2},
    "gelu, known variance": {"gate": moe.ActivationGate("gelu"), "variance": 0.3},
    "relu": {"gate": moe.ActivationGate("relu")},
    "temperature": {"gate": moe.TemperatureGate()},
    "top-1": {"gate": moe.TopKGate(active=1)},
}


def process(name: str = "softmax", K: int = 3, d: int = 2, **scales: float) -> moe.MixtureOfExperts:
    return moe.MixtureOfExperts(moe.GaussianMoE(K, d, **FAMILIES[name]), moe.PriorScales(**scales), dtype=DOUBLE)


@pytest.mark.parametrize("name", FAMILIES)
def test_channels_say_what_the_model_says(name: str, seed: int) -> None:
    prior = process(name)
    m = prior.model.num_outcomes
    X, Y = data(6, 2, m, seed)
    theta = prior.sample_parameters((5,), generator=rnd.generator_from(seed))
    model = prior.experts(theta)
    f = prior.apply(theta, X)
    expected = model.log_prob(X.expand(5, 6, 2), Y.expand(5, 6, m))
    torch.testing.assert_close(prior.likelihood.log_prob(Y, f, NONE), expected, rtol=1e-10, atol=1e-10)
    mean, variance = model.moments(X.expand(5, 6, 2))
    found = prior.likelihood.moments(f, NONE)
    torch.testing.assert_close(found[0], mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[1], variance, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(prior.coordinates(model), theta, rtol=0, atol=0)
    torch.testing.assert_close(prior.coordinates(prior.experts(theta[0])), theta[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_derivatives_of_the_density(name: str, seed: int) -> None:
    prior = process(name)
    theta = prior.sample_parameters((4,), generator=rnd.generator_from(seed))
    leaf = theta.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(prior.log_prob(leaf).sum(), leaf, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), leaf)  # coordinates are independent
    first, second = prior.prior_derivatives(theta)
    torch.testing.assert_close(first, slope.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(second, bend, rtol=1e-10, atol=1e-12)


def test_density_is_that_of_its_parts(seed: int) -> None:
    prior = process(variance_shape=3.0, variance_scale=0.4, gate=5.0, coef=0.7)
    theta = prior.sample_parameters(generator=rnd.generator_from(seed))
    named = {name: x.flatten().numpy() for name, x in prior.layout.unflatten(theta).items()}
    scales = {"gate.weight": 5 / 2**0.5, "gate.bias": 2.0, "coef": 0.7 / 2**0.5, "intercept": 1.0}
    total = sum(stats.norm(scale=scale).logpdf(named[name]).sum() for name, scale in scales.items())
    variance = [math.exp(v) for v in named["log_variance"]]
    total += sum(stats.invgamma(3, scale=0.4).logpdf(v) + math.log(v) for v in variance)  # with the Jacobian
    assert prior.log_prob(theta).item() == pytest.approx(total, rel=1e-12)


def test_moments_of_the_prior(seed: int) -> None:
    """Of weights and log variances; and E f^2 of one expert, s_a^2 |x|^2 / d + s_c^2."""
    prior, n = process(K=1), 40_000
    theta = prior.sample_parameters((n,), generator=rnd.generator_from(seed))
    a, b = torch.tensor(2.0, dtype=DOUBLE), 0.05
    mean = torch.zeros(prior.num_parameters, dtype=DOUBLE)
    mean[-1] = math.log(b) - torch.digamma(a)
    variance = torch.tensor([8.0, 8.0, 4.0, 1.125, 1.125, 1.0, 0.0], dtype=DOUBLE)
    variance[-1] = torch.polygamma(1, a)
    assert ((theta.mean(0) - mean).abs() <= 5 * (variance / n).sqrt()).all()
    squares = (theta - mean).square()
    assert ((squares.mean(0) - variance).abs() <= 5 * squares.std(0) / n**0.5).all()
    X = torch.tensor([[0.6, -1.0]], dtype=DOUBLE)
    f = prior.likelihood.moments(prior.apply(theta, X), NONE)[0].flatten().square()
    assert abs(f.mean() - (2.25 * 1.36 / 2 + 1)) <= 5 * f.std() / n**0.5
    noise = theta[:, -1].exp()  # mean b / (a - 1), without a variance: the share above it instead
    share = stats.invgamma(2, scale=0.05).sf(0.05)
    assert abs((noise > 0.05).double().mean() - share) <= 5 * (share * (1 - share) / n) ** 0.5


def test_two_experts_change_places_as_often_as_said(seed: int) -> None:
    """Where the more probable expert changes within [-1, 1]: probability 2 / pi arctan(s_w / s_b), for d = 1."""
    prior, n = process(K=2, d=1), 20_000
    ends = torch.tensor([[-1.0], [1.0]], dtype=DOUBLE)
    f = prior.sample(ends, (n,), generator=rnd.generator_from(seed))
    first = f[..., 0] > f[..., 1]
    share, expected = (first[:, 0] != first[:, 1]).double().mean(), 2 / math.pi * math.atan(2)
    assert abs(share - expected) <= 5 * (expected * (1 - expected) / n) ** 0.5


def test_the_order_of_experts_does_not_matter(seed: int) -> None:
    prior = process()
    theta = prior.sample_parameters((4,), generator=rnd.generator_from(seed))
    order = torch.tensor([2, 0, 1])
    moved = prior.layout.flatten({name: x[:, order] for name, x in prior.layout.unflatten(theta).items()})
    torch.testing.assert_close(prior.log_prob(moved), prior.log_prob(theta))
    X = data(5, seed=seed)[0]
    pairs = zip(*(prior.likelihood.moments(prior.apply(t, X), NONE) for t in (theta, moved)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b)


def test_tasks_train_on_outcomes(seed: int) -> None:
    prior = process("tempered, two outcomes")
    X = data(5, seed=seed)[0].expand(7, 5, 2)
    f = prior.sample_tasks(X, generator=rnd.generator_from(seed))
    Y = prior.likelihood.sample(f, NONE, generator=rnd.generator_from(seed))
    assert f.shape == (7, 5, prior.output_dim) and Y.shape == (7, 5, 2) and Y.isfinite().all()


METHODS = {
    "hmc": probnn.HMC(num_chains=2, num_warmup=20, num_samples=10, max_leapfrog=16),
    "laplace": probnn.Laplace(steps=150, num_starts=2),
    "vi": probnn.MeanFieldVI(steps=50),
    "ensemble": probnn.DeepEnsemble(size=3, steps=50),
}


@pytest.mark.filterwarnings("ignore::probnn.errors.DivergenceWarning")
@pytest.mark.filterwarnings("ignore::probnn.errors.ConvergenceWarning")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("m", [1, 2])
def test_every_method_of_inference_works(name: str, m: int, seed: int) -> None:
    X, Y = data(20, 1, m, seed)
    prior = moe.MixtureOfExperts(moe.GaussianMoE(2, 1, m), dtype=DOUBLE)
    posterior = METHODS[name].fit(prior, moe.GaussianMixture(2), X, Y, seed=seed)
    plain, noisy = posterior.predict(X), posterior.predict(X, observation_noise=True)
    assert plain.mean.shape == (20, m) and plain.mean.isfinite().all()
    assert (noisy.variance > plain.variance).all()
    assert (plain.mean - Y).square().mean() < Y.var()
    known = METHODS[name].fit(prior, moe.GaussianMixture(2), X, Y, noise_variance=torch.full_like(Y, 0.01), seed=seed)
    extra = known.predict(X, observation_noise=True).variance - known.predict(X).variance
    torch.testing.assert_close(extra, torch.full_like(Y, 0.01), rtol=0, atol=1e-6)


def test_laplace_agrees_with_the_closed_form_of_one_expert(seed: int) -> None:
    """Mean and covariance of coefficients under known noise are those of Bayesian linear regression."""
    X, Y = data(15, 2, 1, seed)
    prior = process(K=1)
    posterior = probnn.Laplace(steps=200).fit(prior, moe.GaussianMixture(1, noise=0.3), X, Y, seed=seed)
    A = torch.cat([X, torch.ones_like(X[:, :1])], -1)
    precision = A.mT @ A / 0.09 + torch.diag(torch.tensor([1 / 1.125, 1 / 1.125, 1.0], dtype=DOUBLE))
    mean = torch.linalg.solve(precision, A.mT @ Y / 0.09).squeeze(-1)
    torch.testing.assert_close(posterior.loc[3:6], mean, rtol=1e-3, atol=1e-3)
    covariance = posterior.spread.dense()[3:6, 3:6]
    torch.testing.assert_close(covariance, torch.linalg.inv(precision), rtol=1e-6, atol=1e-8)


def test_priors_of_recipes_are_values() -> None:
    a, b = moe.MoEPrior(2), moe.MoEPrior(2)
    assert a == b and hash(a) == hash(b) and a != moe.MoEPrior(3)
    assert a(3, 10).model.num_outcomes == 2
    with pytest.raises(DomainError, match="got 7"):
        a(3, 7)


def test_what_has_no_such_prior_is_named() -> None:
    for family, word in (
        ({"expert": moe.MLPExpert()}, "BayesianNetwork"),
        ({"gate": moe.NetworkGate()}, "BayesianNetwork"),
        ({"gate": moe.GaussianGate()}, "GaussianGate"),
        ({"outcome": moe.StudentTOutcome()}, "StudentTOutcome"),
    ):
        with pytest.raises(UnsupportedError, match=word):
            moe.MixtureOfExperts(moe.GaussianMoE(2, 1, **family))
    prior = process()
    theta = prior.sample_parameters(generator=rnd.generator_from(0))
    with pytest.raises(DomainError, match="without parameters"):
        moe.MixtureOfExperts(prior.experts(theta))
    with pytest.raises(ShapeError, match="parameters"):
        prior.coordinates(process(K=2).experts(theta[: process(K=2).num_parameters]))
    with pytest.raises(DomainError, match="coef must be positive"):
        moe.PriorScales(coef=0.0)
