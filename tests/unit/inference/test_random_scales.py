"""Methods with a place for random scales know them under every name: InverseGammaWeights is no special case."""

from __future__ import annotations

import math

import pytest
import torch

import probnn
from probnn import likelihoods, priors
from probnn import random as rnd
from probnn.inference.hyper import num_scales
from probnn.inference.target import Target
from probnn.inference.variational import Bound
from tests.cases import DOUBLE, data

OWN = priors.InverseGammaWeights((3.0, 2.0), (2.0, 0.5), 2.5, 0.3)


def same_law() -> priors.HierarchicalWeights:
    """OWN in the same coordinates: s = sqrt(b / a), and exp(-2u) ~ Gamma(a, a)."""
    shape = torch.tensor([3.0, 2.5, 2.0, 2.5], dtype=DOUBLE)
    scales = torch.tensor([2 / 3, 0.5 / 2], dtype=DOUBLE).sqrt(), math.sqrt(0.3 / 2.5)
    return priors.HierarchicalWeights(*scales, scale_prior="inverse_gamma", shape=shape, rate=shape)


def network(prior: priors.WeightPrior, hidden: tuple[int, ...] = (3,), d: int = 2) -> probnn.BayesianNetwork:
    return probnn.BayesianNetwork(probnn.MLP(input_dim=d, hidden=hidden), prior, dtype=DOUBLE)


@pytest.mark.parametrize(
    "method",
    [probnn.Laplace(steps=200), probnn.Laplace(steps=200, structure="diagonal"), probnn.MeanFieldVI(steps=120)],
    ids=["laplace", "diagonal", "vi"],
)
def test_one_law_under_two_names_has_one_posterior(method: probnn.inference.InferenceMethod, seed: int) -> None:
    X, Y = data(12, seed=seed)
    posts = [method.fit(network(p), likelihoods.Gaussian(noise=0.2), X, Y, seed=seed) for p in (OWN, same_law())]
    assert num_scales(network(OWN)) == 4
    torch.testing.assert_close(posts[0].loc, posts[1].loc, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(posts[0].scale, posts[1].scale, rtol=1e-5, atol=1e-5)
    first, second = (post.predict(X) for post in posts)
    torch.testing.assert_close(first.mean, second.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first.variance, second.variance, rtol=1e-4, atol=1e-4)
    if isinstance(method, probnn.Laplace):  # the scales are held, not random
        assert posts[0].num_parameters == network(OWN).network.num_parameters
        assert abs(posts[0].info.log_evidence - posts[1].info.log_evidence) < 1e-5


def test_laplace_holds_the_scales_where_evidence_times_prior_is_largest(seed: int) -> None:
    """Of a linear model: the evidence given the scales is a normal density, searched here on a grid."""
    a, b, bias_a, bias_b = 2.0, 1.5, 3.0, 0.5
    X, Y = data(8, d=1, seed=seed)
    prior = network(priors.InverseGammaWeights(a, b, bias_a, bias_b), (), 1)
    post = probnn.Laplace(tolerance=1e-8).fit(prior, likelihoods.Gaussian(noise=0.3), X, Y, seed=seed)

    def objective(log_sd: torch.Tensor) -> torch.Tensor:
        """Log evidence and log density of the log standard deviations of weight and bias."""
        variance = (2 * log_sd).exp()
        ones = torch.ones_like(X)
        features = torch.stack([X @ X.mT, ones @ ones.mT])
        covariance = (variance[..., None, None] * features).sum(-3) + 0.09 * torch.eye(8, dtype=DOUBLE)
        evidence = torch.distributions.MultivariateNormal(torch.zeros(8, dtype=DOUBLE), covariance).log_prob(Y[:, 0])
        shapes, rates = torch.tensor([a, bias_a], dtype=DOUBLE), torch.tensor([b, bias_b], dtype=DOUBLE)
        law = torch.distributions.InverseGamma(shapes, rates)
        return evidence + (law.log_prob(variance) + math.log(2) + 2 * log_sd).sum(-1)

    u = prior.weight_prior.sigma(prior.network.layout, post.loc).log()
    side = torch.linspace(-3, 3, 121, dtype=DOUBLE)
    coarse = torch.cartesian_prod(side, side)
    best = coarse[objective(coarse).argmax()]
    fine = best + 0.05 * torch.cartesian_prod(*2 * [torch.linspace(-1, 1, 101, dtype=DOUBLE)])
    best = fine[objective(fine).argmax()]
    assert (u - best).abs().max() < 2e-3
    assert abs(post.info.log_evidence - objective(best).item()) < 1e-5


def test_bound_of_inverse_gamma_variances_is_unbiased(seed: int) -> None:
    """Pre-activations given the scales, against draws of log p(Y, z) - log q(z)."""
    X, Y = data(5, seed=seed)
    generator = rnd.generator_from(seed)
    target = Target(network(OWN), likelihoods.Gaussian(noise=0.3), X, Y)
    loc = 0.5 * target.start((), generator)
    scale = 0.1 + 0.2 * rnd.uniform(loc.shape, generator=generator, like=loc)
    bound = Bound(target)
    assert bound.local
    with torch.no_grad():
        told = bound(loc, scale, 20_000, generator)
        q = torch.distributions.Normal(loc, scale)
        z = loc + scale * rnd.normal((20_000, *loc.shape), generator=generator, like=loc)
        naive = target.log_prob(z) - q.log_prob(z).sum(-1)
    error = math.sqrt((told.var() + naive.var()).item() / 20_000)
    assert abs((told.mean() - naive.mean()).item()) < 5 * error
