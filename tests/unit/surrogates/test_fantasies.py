"""Conditioning and fantasies are the process' own `condition`, and obey the laws of probability."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from botorch.sampling import SobolQMCNormalSampler
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn.errors import DegenerateWeightsWarning, DomainError, ShapeError
from probnn.predictive import DrawsSampler
from tests.unit.surrogates.toy import DOUBLE, draws, model, points

# Small sets of draws are meant to lose weight here; what is said about it has its own test.
pytestmark = pytest.mark.filterwarnings("ignore::probnn.errors.DegenerateWeightsWarning")
WIDE = likelihoods.Gaussian(noise=1.5)


def _weights(made: probnn.ProcessModel) -> Tensor:
    return made.process.log_weights


@pytest.mark.parametrize("scaled", [False, True])
def test_twice_is_once_and_nothing_is_shared(scaled: bool) -> None:
    made = model(m=2, scaled=scaled, likelihood=WIDE)
    before = _weights(made).clone()
    X, level = points(4), 4.74 if scaled else 0.0
    Y = level + 0.3 * torch.cat([X, X.flip(-1)], -1)[:, :2]
    a = made.condition_on_observations(X[:1], Y[:1]).condition_on_observations(X[1:], Y[1:])
    b = made.condition_on_observations(X, Y)
    torch.testing.assert_close(_weights(a), _weights(b), rtol=0, atol=1e-10)
    assert torch.equal(_weights(made), before) and made.batch_shape == b.batch_shape == torch.Size()


def test_units_of_the_data() -> None:
    scaled = model(scaled=True, likelihood=WIDE)
    bare = probnn.ProcessModel(draws(likelihood=WIDE))
    X = points(3)
    inside, outcome = scaled.input_transform(X), scaled.outcome_transform
    z = torch.tensor([[0.2], [-0.4], [0.1]], dtype=DOUBLE)
    Y = outcome.means + outcome.stdvs * z
    a, b = scaled.condition_on_observations(X, Y), bare.condition_on_observations(inside, z)
    torch.testing.assert_close(_weights(a), _weights(b), rtol=0, atol=1e-12)
    noise = torch.full_like(z, 4.0)
    a, b = scaled.condition_on_observations(X, Y, noise), bare.condition_on_observations(inside, z, noise)
    torch.testing.assert_close(_weights(a), _weights(b), rtol=0, atol=1e-12)
    assert not torch.equal(_weights(a), _weights(scaled.condition_on_observations(X, Y)))


def test_huge_noise_says_nothing() -> None:
    made = probnn.ProcessModel(draws(weighted=False))
    told = made.condition_on_observations(points(3), points(3)[:, :1], torch.full((3, 1), 1e10, dtype=DOUBLE))
    torch.testing.assert_close(told.process.weights, torch.full((64,), 1 / 64, dtype=DOUBLE), rtol=0, atol=1e-8)


def test_weights_are_the_likelihood() -> None:
    """Against a loop over draws that knows nothing of the library's shapes."""
    process = draws(16, m=2, weighted=False)
    made = probnn.ProcessModel(process)
    X, Y = points(5, 3), points(4, 5, 3, seed=1)
    got = made.condition_on_observations(X, Y)
    assert got.batch_shape == (4, 5) and got.process.weights.shape == (4, 5, 16)
    expected = []
    for theta, psi in zip(process.theta[0], process.psi[0], strict=True):
        sd, f = psi.exp(), process.base.apply(theta, X)
        terms = -0.5 * ((Y - f) / sd).square() - sd.log() - 0.5 * math.log(2 * math.pi)
        expected.append(terms.sum((-1, -2)))
    torch.testing.assert_close(got.process.log_weights, torch.stack(expected, -1).log_softmax(-1))


@pytest.mark.parametrize("m", [1, 2])
def test_shapes_of_fantasies(m: int) -> None:
    made = model(m=m, scaled=True, likelihood=WIDE)
    for lead in ((), (3,)):
        X = points(*lead, 2)
        fantasy = made.fantasize(X, DrawsSampler(torch.Size([5]), seed=0))
        assert fantasy.batch_shape == (5, *lead) and fantasy.num_outputs == m
        assert fantasy.posterior(points(5, *lead, 1)).mean.shape == (5, *lead, 1, m)
        again = fantasy.fantasize(points(5, *lead, 2, seed=1), SobolQMCNormalSampler(torch.Size([4]), seed=0))
        assert again.batch_shape == (4, 5, *lead)
    nothing = made.fantasize(points(3, 0), DrawsSampler(torch.Size([5]), seed=0))
    assert nothing.batch_shape == (5, 3)
    torch.testing.assert_close(nothing.posterior(points(2)).mean, made.posterior(points(2)).mean.expand(5, 3, 2, m))


def test_given_noise_is_drawn_and_believed() -> None:
    made, X = model(scaled=True, likelihood=WIDE), points(2)
    sampler = DrawsSampler(torch.Size([6]), seed=0)
    noise = torch.full((1, 1), 0.8, dtype=DOUBLE)
    Y = sampler(made.posterior(X, observation_noise=noise))
    expected = made.condition_on_observations(X, Y, noise.expand(2, 1))
    torch.testing.assert_close(_weights(made.fantasize(X, sampler, noise)), _weights(expected))
    with pytest.raises(DomainError, match="tensor or None"):
        made.fantasize(X, sampler, True)


def test_a_subset_imagines_every_outcome() -> None:
    whole, X = model(m=2, likelihood=WIDE), points(3, 1)
    sampler = DrawsSampler(torch.Size([4]), seed=0)
    a = whole.fantasize(X, sampler).subset_output([1])
    b = whole.subset_output([1]).fantasize(X, sampler)
    assert b.num_outputs == 1
    assert torch.equal(a.posterior(points(2)).values, b.posterior(points(2)).values)
    assert torch.equal(_weights(a), _weights(b))


def test_tower_property_and_total_variance() -> None:
    """The mean of fantasy means is the mean; expected variance and variance of means make the variance."""
    made = model(likelihood=likelihoods.Gaussian(noise=0.7))
    X, far, n = points(1, seed=3), points(6, seed=4), 4096
    fantasy = made.fantasize(X, SobolQMCNormalSampler(torch.Size([n]), seed=0))
    now, then = made.posterior(far), fantasy.posterior(far)
    sd = now.variance.sqrt()
    assert ((then.mean.mean(0) - now.mean).abs() < 1e-2 * sd).all()
    total = then.variance.mean(0) + then.mean.var(0)
    assert ((total / now.variance - 1).abs() < 0.02).all()


def test_conjugate_regression() -> None:
    """Many prior draws of a linear model against the closed form."""
    net = probnn.MLP(input_dim=2, hidden=())
    prior = probnn.BayesianNetwork(net, priors.NormalWeights(scaling="none"), dtype=DOUBLE)
    z = torch.special.ndtri(torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(2**14, dtype=DOUBLE))
    lik = likelihoods.Gaussian(noise=1.0)
    process = probnn.EmpiricalProcess(prior, z.unsqueeze(0), z.new_zeros(1, 2**14, 0), lik)
    X, Y = points(2), torch.tensor([[0.8], [-0.5]], dtype=DOUBLE)
    told = probnn.ProcessModel(process, num_draws=2**14).condition_on_observations(X, Y)
    far = points(5, seed=1)
    A, B = (torch.cat([x, torch.ones_like(x[:, :1])], -1) for x in (X, far))
    covariance = torch.linalg.inv(torch.eye(3, dtype=DOUBLE) + A.T @ A)
    posterior = told.posterior(far)
    torch.testing.assert_close(posterior.mean, B @ covariance @ A.T @ Y, rtol=0, atol=0.05)
    torch.testing.assert_close(posterior.variance.squeeze(-1), (B @ covariance * B).sum(-1), rtol=0.05, atol=0)
    assert 1000 < told.process.ess < 2**14


def test_collapse_is_said_once_a_model() -> None:
    made = model(likelihood=likelihoods.Gaussian(noise=0.01))
    sampler = DrawsSampler(torch.Size([8]), seed=0)
    with pytest.warns(DegenerateWeightsWarning, match="of 64 draws"):
        fantasy = made.fantasize(points(1), sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.fantasize(points(1, seed=1), sampler)
        fantasy.fantasize(points(1, seed=1), sampler)
    with pytest.warns(DegenerateWeightsWarning, match="fit again"):  # real data: said every time
        made.condition_on_observations(points(1), torch.zeros(1, 1, dtype=DOUBLE))


def test_fantasies_are_differentiable_in_their_points() -> None:
    made = model(32, scaled=True, likelihood=WIDE)
    far = points(3, seed=1)

    def mean(X: Tensor) -> Tensor:
        # Normals that choose draws far from a boundary: the choice itself is piecewise constant.
        sampler = SobolQMCNormalSampler(torch.Size([4]), seed=0)
        return made.fantasize(X, sampler).posterior(far).mean

    assert torch.autograd.gradcheck(mean, (points(2).requires_grad_(True),), eps=1e-6, atol=1e-6)


def test_what_does_not_fit_is_named_as_the_caller_named_it() -> None:
    made, X, sampler = model(likelihood=WIDE), points(3), DrawsSampler(torch.Size([2]))
    Y = X[:, :1]
    with pytest.raises(DomainError, match="condition_on_observations: noise must be a torch tensor"):
        made.condition_on_observations(X, Y, noise=0.1)  # type: ignore[arg-type]
    with pytest.raises(DomainError, match="condition_on_observations: noise must be positive"):
        made.condition_on_observations(X, Y, noise=torch.zeros_like(Y))
    with pytest.raises(ShapeError, match=r"ProcessModel.fantasize: X must have shape"):
        made.fantasize(X[:, :1], sampler)
    with pytest.raises(DomainError, match="ProcessModel.fantasize: X must have dtype"):
        made.fantasize(X.float(), sampler)
    with pytest.raises(
        DomainError, match="ProcessModel.fantasize: sampler must be a botorch MCSampler, got a NoneType"
    ):
        made.fantasize(X, None)  # type: ignore[arg-type]
