"""Draws whose outcomes are mixtures, against loops over draws and components, and simulation."""

from __future__ import annotations

import math

import pytest
import torch
from botorch.models.transforms.outcome import Standardize
from botorch.sampling.get_sampler import get_sampler
from botorch.sampling.normal import SobolQMCNormalSampler
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from probnn import random as rnd
from probnn.errors import DomainError, ShapeError
from probnn.moe import MixtureDrawsPosterior
from probnn.predictive import DrawsPosterior, DrawsSampler
from probnn.surrogates._posteriors import untransform

DOUBLE = torch.float64
S, Q, K = 3, 2, 2


def parts(m: int, seed: int, *lead: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = rnd.generator_from(seed)
    log_probs = rnd.normal((*lead, S, Q, K), generator=generator, dtype=DOUBLE)
    means = 2 * rnd.normal((*lead, S, Q, K, m), generator=generator, dtype=DOUBLE)
    stds = (0.5 * rnd.normal(means.shape, generator=generator, dtype=DOUBLE)).exp()
    return log_probs, means, stds, torch.tensor([0.5, 0.2, 0.3], dtype=DOUBLE).log()


def all_components(log_probs: Tensor, means: Tensor, stds: Tensor, log_weights: Tensor) -> MixtureSameFamily:
    """The law at every point, all components of all draws in one mixture."""
    logits = (log_weights[:, None, None] + log_probs.log_softmax(-1)).movedim(-3, -2).flatten(-2)
    means, stds = (x.movedim(-4, -3).flatten(-3, -2) for x in (means, stds))
    return MixtureSameFamily(Categorical(logits=logits), Independent(Normal(means, stds), 1))


@pytest.mark.parametrize("m", [1, 2])
def test_marginals_are_those_of_one_large_mixture(m: int, seed: int) -> None:
    given = parts(m, seed, 4)
    posterior, law = MixtureDrawsPosterior(*given), all_components(*given)
    torch.testing.assert_close(posterior.mean, law.mean, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(posterior.variance, law.variance, rtol=1e-12, atol=1e-13)
    y = rnd.normal((4, Q, m), generator=rnd.generator_from(seed), dtype=DOUBLE)
    for j in range(m):
        alone = all_components(given[0], given[1][..., [j]], given[2][..., [j]], given[3])
        torch.testing.assert_close(posterior.log_density(y)[..., j], alone.log_prob(y[..., [j]]))
        p = torch.tensor([0.02, 0.6], dtype=DOUBLE)
        at = posterior.quantile(p)[..., j]
        below = alone.component_distribution.base_dist.cdf(at[..., None, None]).squeeze(-1)
        cdf = (alone.mixture_distribution.probs * below).sum(-1)
        torch.testing.assert_close(cdf, p.reshape(2, 1, 1).expand_as(cdf), rtol=1e-9, atol=1e-12)
    with pytest.raises(DomainError, match="between 0 and 1"):
        posterior.quantile(1.0)


def test_samples_have_the_moments(seed: int) -> None:
    """Those over points and outcomes: one draw serves all points, one component the outcomes of a point."""
    given, n = parts(2, seed), 40_000
    posterior, law = MixtureDrawsPosterior(*given), all_components(*given)
    y = posterior.rsample(torch.Size([n]), generator=rnd.generator_from(seed))
    centred = (y - posterior.mean).flatten(1)
    products = centred.unsqueeze(-1) * centred.unsqueeze(-2)
    covariance = posterior.covariance
    torch.testing.assert_close(covariance.diagonal(), posterior.variance.flatten())
    assert (centred.mean(0).abs() <= 5 * (covariance.diagonal() / n).sqrt()).all()
    assert ((products.mean(0) - covariance).abs() <= 5 * products.std(0) / n**0.5).all()
    with rnd.forked(rnd.generator_from(seed + 1)):
        theirs = law.log_prob(law.sample((n,)))
    ours = law.log_prob(y)
    assert ((ours.mean(0) - theirs.mean(0)).abs() <= 5 * ((ours.var(0) + theirs.var(0)) / n).sqrt()).all()


def test_base_samples_choose_the_draws_that_they_choose_without_modes(seed: int) -> None:
    """With components far apart between draws, and close within, samples tell the draw."""
    _, _, _, log_weights = parts(1, seed)
    means = torch.arange(3.0, dtype=DOUBLE).reshape(S, 1, 1, 1).expand(S, Q, K, 1) * 100
    posterior = MixtureDrawsPosterior(torch.zeros(S, Q, K, dtype=DOUBLE), means, torch.ones_like(means), log_weights)
    plain = DrawsPosterior(means[..., 0, :], log_weights, torch.ones((), dtype=DOUBLE))
    for sampler in (DrawsSampler(torch.Size([16]), seed=seed), SobolQMCNormalSampler(torch.Size([16]), seed=seed)):
        torch.testing.assert_close(sampler(posterior), sampler(plain))
    few = get_sampler(posterior, torch.Size([8]), seed=0)
    together = MixtureDrawsPosterior(*(x.expand(5, *x.shape) for x in parts(1, seed)[:3]), log_weights)
    alone = MixtureDrawsPosterior(*parts(1, seed)[:3], log_weights)
    torch.testing.assert_close(few(together), few(alone).unsqueeze(1).expand(8, 5, Q, 1))


def test_samples_are_differentiable(seed: int) -> None:
    given = [x.requires_grad_(True) for x in parts(2, seed)[:3]]
    weights = parts(2, seed)[3]
    base = rnd.normal((4, 1 + Q, 2), generator=rnd.generator_from(seed), dtype=DOUBLE)

    def samples(*parts: Tensor) -> Tensor:
        return MixtureDrawsPosterior(*parts, weights).rsample_from_base_samples(torch.Size([4]), base)

    assert torch.autograd.gradcheck(samples, given, eps=1e-6, atol=1e-5)


def test_linear_changes_are_exact(seed: int) -> None:
    given = parts(2, seed, 3)
    posterior = MixtureDrawsPosterior(*given, salt=7)
    y = rnd.normal((3, Q, 2), generator=rnd.generator_from(seed), dtype=DOUBLE)
    shift, scale = torch.tensor([1.0, -2.0], dtype=DOUBLE), torch.tensor([-0.5, 3.0], dtype=DOUBLE)
    moved = posterior.affine(shift.expand(1, 2), scale.expand(1, 2))
    jacobian = scale.abs().log()
    torch.testing.assert_close(moved.log_density(shift + scale * y), posterior.log_density(y) - jacobian)
    torch.testing.assert_close(posterior.select([1]).log_density(y[..., 1:]), posterior.log_density(y)[..., 1:])
    assert moved.salt == posterior.select([0]).salt == 7
    weights = torch.tensor([2.0, -1.0], dtype=DOUBLE)
    one = posterior.scalarize(weights, 0.5)
    torch.testing.assert_close(one.mean.squeeze(-1), posterior.mean @ weights + 0.5)
    blocks = posterior.covariance.reshape(3, Q, 2, Q, 2)
    variance = torch.stack([weights @ blocks[:, i, :, i] @ weights for i in range(Q)], -1)
    torch.testing.assert_close(one.variance.squeeze(-1), variance)
    transform = Standardize(2)
    transform(4 * rnd.normal((9, 2), generator=rnd.generator_from(seed), dtype=DOUBLE) + 10)
    transform.eval()
    undone = untransform(posterior, transform, torch.zeros(3, Q, 1, dtype=DOUBLE))
    again = posterior.affine(transform.means, transform.stdvs)
    torch.testing.assert_close(undone.quantile(0.3), again.quantile(0.3))


def test_bad_shapes_are_named() -> None:
    log_probs, means, stds, _ = parts(1, 0)
    for bad in (
        (log_probs[..., :1], means, stds),
        (log_probs, means, stds[..., :1, :]),
        (log_probs, means[0], stds[0]),
    ):
        with pytest.raises(ShapeError, match="MixtureDrawsPosterior"):
            MixtureDrawsPosterior(*bad)
    with pytest.raises(DomainError):
        MixtureDrawsPosterior(log_probs, means, stds).select([1])
    assert math.isfinite(MixtureDrawsPosterior(log_probs, means, stds).log_density(0.0).sum().item())
