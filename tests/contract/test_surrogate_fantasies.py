"""The contract of surrogates: conditioning and fantasies obey the laws of probability."""

from __future__ import annotations

import pytest
import torch
from botorch.sampling import SobolQMCNormalSampler

import probnn
from probnn.likelihoods import Gaussian
from probnn.predictive import DrawsSampler
from probnn.priors import NormalWeights
from tests.surrogate_models import ALL, DOUBLE, DRAWS, data, fitted, points

# Fantasies of few draws rest on few of them; what is said about that has its own tests.
# Small editions of HMC diverge here and there.
pytestmark = [
    pytest.mark.filterwarnings("ignore::probnn.errors.DegenerateWeightsWarning"),
    pytest.mark.filterwarnings("ignore::probnn.errors.DivergenceWarning"),
]


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("name", ALL)
def test_shapes_of_fantasies(name: str, m: int) -> None:
    model = fitted(name, m)
    sampler = SobolQMCNormalSampler(torch.Size([4]), seed=0)
    fantasy = model.fantasize(points(3, 2), sampler)
    assert fantasy.batch_shape == (4, 3) and fantasy.num_outputs == m
    assert fantasy.posterior(points(4, 3, 1)).mean.shape == (4, 3, 1, m)
    assert fantasy.posterior(points(3, 1), observation_noise=True).variance.shape == (4, 3, 1, m)
    second = fantasy.fantasize(points(4, 3, 1), SobolQMCNormalSampler(torch.Size([2]), seed=0))
    assert second.batch_shape == (2, 4, 3) and second.posterior(points(2, 4, 3, 1)).mean.shape == (2, 4, 3, 1, m)
    assert model.batch_shape == torch.Size()


@pytest.mark.parametrize("name", ALL)
def test_fantasies_are_conditioning_and_nothing_else(name: str) -> None:
    model, X = fitted(name), points(3, 2)
    sampler = SobolQMCNormalSampler(torch.Size([4]), seed=0)
    Y = sampler(model.posterior(X, observation_noise=True))
    a, b = model.fantasize(X, sampler), model.condition_on_observations(X, Y)
    far = points(5)
    torch.testing.assert_close(a.posterior(far).mean, b.posterior(far).mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(a.posterior(far).variance, b.posterior(far).variance, rtol=1e-9, atol=1e-9)


# C17: with as much noise as signal, where a fantasy never rests on one draw, and with the model's own
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_tower_property(name: str, own: bool) -> None:
    """Means of fantasies average to the mean; their variance and spread make the variance."""
    model, x, far, n = fitted(name), points(1, seed=2), points(5, seed=3), 4096
    noise = None if own else model.posterior(x).variance / model.outcome_transform.stdvs.square()
    fantasy = model.fantasize(x, SobolQMCNormalSampler(torch.Size([n]), seed=0), noise)
    now, then = model.posterior(far), fantasy.posterior(far)
    assert ((then.mean.mean(0) - now.mean).abs() < 1e-2 * now.variance.sqrt()).all()
    total = then.variance.mean(0) + then.mean.var(0)
    assert ((total / now.variance - 1).abs() < 0.02).all()


# C19
def test_reweighted_draws_are_the_conjugate_posterior() -> None:
    """Bayesian linear regression: 2^14 Sobol draws of the prior, two observations of noise one."""
    prior = probnn.BayesianNetwork(probnn.MLP(input_dim=2, hidden=()), NormalWeights(scaling="none"), dtype=DOUBLE)
    u = torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(2**14, dtype=DOUBLE)
    theta = torch.special.ndtri(u + 2.0**-31).unsqueeze(0)  # multiples of 2^-30, zero among them
    draws = probnn.EmpiricalProcess(prior, theta, theta[..., :0], Gaussian(noise=1.0))
    X = torch.tensor([[0.5, -1.0], [1.0, 0.3]], dtype=DOUBLE)
    Y, far = torch.tensor([[1.2], [-0.4]], dtype=DOUBLE), points(5)
    told = probnn.ProcessModel(draws, num_draws=2**14).condition_on_observations(X, Y)
    A, B = (torch.cat([x, torch.ones_like(x[:, :1])], -1) for x in (X, far))
    covariance = torch.linalg.inv(torch.eye(3, dtype=DOUBLE) + A.mT @ A)
    variance = (B @ covariance @ B.mT).diagonal().unsqueeze(-1)
    posterior = told.posterior(far)
    assert ((posterior.mean - B @ covariance @ A.mT @ Y).abs() < 0.05).all()
    assert ((posterior.variance / variance - 1).abs() < 0.05).all()
    assert 1_000 < told.process.ess < 2**14
    torch.testing.assert_close(told.process.ess, posterior.ess)


@pytest.mark.parametrize("name", ALL)
def test_twice_is_once_and_nothing_is_shared(name: str) -> None:
    model, far = fitted(name, 2), points(4)
    before = model.posterior(far).mean
    X, noise = points(3, seed=8), torch.full((3, 2), 1.0, dtype=DOUBLE)
    Y = model.posterior(X).mean + 1.0
    means = model.outcome_transform.means.clone()
    once = model.condition_on_observations(X, Y, noise)
    first = model.condition_on_observations(X[:1], Y[:1], noise[:1])
    twice = first.condition_on_observations(X[1:], Y[1:], noise[1:])
    for a, b in ((once, twice), (once, model.condition_on_observations(X.flip(0), Y.flip(0), noise))):
        torch.testing.assert_close(a.posterior(far).mean, b.posterior(far).mean, rtol=0, atol=1e-8)
        torch.testing.assert_close(a.posterior(far).variance, b.posterior(far).variance, rtol=1e-6, atol=1e-9)
    if name in DRAWS:
        torch.testing.assert_close(once.process.log_weights, twice.process.log_weights, rtol=0, atol=1e-10)
    assert torch.equal(model.posterior(far).mean, before) and torch.equal(once.outcome_transform.means, means)
    assert (once.posterior(X).mean - Y).abs().mean() < (model.posterior(X).mean - Y).abs().mean()


@pytest.mark.parametrize("name", ALL)
def test_units_of_the_data(name: str) -> None:
    """Conditioning in the units of the data is conditioning the process in its own."""
    model, X = fitted(name), points(3, seed=8)
    outcome = model.outcome_transform
    z = torch.tensor([[0.3], [-0.2], [0.1]], dtype=DOUBLE)
    told = model.condition_on_observations(X, outcome.means + outcome.stdvs * z)
    direct = model.process.condition(model.input_transform(X), z)
    inside = model.input_transform(points(4))
    torch.testing.assert_close(told.process.predict(inside).mean, direct.predict(inside).mean, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ALL)
def test_huge_noise_says_nothing(name: str) -> None:
    model, far = fitted(name), points(4)
    told = model.condition_on_observations(points(2), data()[1][:2] + 10, torch.full((2, 1), 1e12, dtype=DOUBLE))
    torch.testing.assert_close(told.posterior(far).mean, model.posterior(far).mean, rtol=0, atol=1e-6)
    if name in DRAWS:
        torch.testing.assert_close(told.process.weights, model.process.weights, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", DRAWS)
def test_weights_are_reported(name: str) -> None:
    model = fitted(name)
    fantasy = model.fantasize(points(3, 1), DrawsSampler(torch.Size([2]), seed=0))
    assert isinstance(fantasy.process, probnn.EmpiricalProcess)
    ess = fantasy.process.ess
    assert ess.shape == (2, 3) and ((ess >= 1 - 1e-9) & (ess <= model.process.num_draws)).all()
    torch.testing.assert_close(fantasy.posterior(points(1)).ess, ess)
