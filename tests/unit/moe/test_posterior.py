"""Mixture posteriors against torch's mixtures, automatic differentiation and simulation."""

from __future__ import annotations

import math

import pytest
import torch
from botorch.acquisition.logei import qLogExpectedImprovement
from botorch.models.model import Model
from botorch.optim import optimize_acqf
from botorch.sampling.get_sampler import get_sampler
from botorch.sampling.normal import IIDNormalSampler, SobolQMCNormalSampler
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from probnn import moe
from probnn import random as rnd
from probnn.errors import DomainError, NonFiniteError, ShapeError
from tests.cases import DOUBLE


def parts(m: int, seed: int, *lead: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-weights, means and standard deviations of three experts at two points."""
    generator = rnd.generator_from(seed)
    log_weights = rnd.normal((*lead, 2, 3), generator=generator, dtype=DOUBLE)
    means = 2 * rnd.normal((*lead, 2, 3, m), generator=generator, dtype=DOUBLE)
    return log_weights, means, (0.5 * rnd.normal(means.shape, generator=generator, dtype=DOUBLE)).exp()


def torchs(log_weights: Tensor, means: Tensor, stds: Tensor) -> MixtureSameFamily:
    return MixtureSameFamily(Categorical(logits=log_weights), Independent(Normal(means, stds), 1))


@pytest.mark.parametrize("m", [1, 3])
def test_moments_and_densities_are_those_of_torch(m: int, seed: int) -> None:
    given = parts(m, seed, 4)
    posterior, law = moe.MixturePosterior(*given), torchs(*given)
    torch.testing.assert_close(posterior.mean, law.mean, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(posterior.variance, law.variance, rtol=1e-12, atol=1e-13)
    y = rnd.normal((5, 1, 2, m), generator=rnd.generator_from(seed), dtype=DOUBLE)
    torch.testing.assert_close(posterior.log_prob(y), law.log_prob(y.expand(5, 4, 2, m)), rtol=1e-12, atol=1e-12)
    for j in range(m):
        alone = torchs(given[0], given[1][..., [j]], given[2][..., [j]])
        density = alone.log_prob(y[..., [j]].expand(5, 4, 2, 1)).exp()
        torch.testing.assert_close(posterior.density(y)[..., j], density, rtol=1e-12, atol=0)


def test_quantiles_invert_the_distribution_function(seed: int) -> None:
    log_weights, means, stds = parts(2, seed, 3)
    means[0, 0, :, 0], stds[0, 0, :, 0] = torch.tensor([-50.0, 0.0, 1e3], dtype=DOUBLE), 1e-3  # far apart
    posterior = moe.MixturePosterior(log_weights, means, stds)
    p = torch.tensor([1e-9, 0.01, 0.5, 0.9], dtype=DOUBLE)
    found = posterior.quantile(p)
    assert found.shape == (4, 3, 2, 2)
    below = torch.special.ndtr((found.unsqueeze(-2) - means) / stds)
    cdf = (log_weights.softmax(-1).unsqueeze(-1) * below).sum(-2)
    torch.testing.assert_close(cdf, p.reshape(4, 1, 1, 1).expand_as(cdf), rtol=1e-6, atol=1e-11)
    for bad in (0.0, 1.0, math.nan):
        with pytest.raises(DomainError, match="between 0 and 1"):
            posterior.quantile(bad)


@pytest.mark.parametrize("m", [1, 2])
def test_samples_have_the_law(m: int, seed: int) -> None:
    given, n = parts(m, seed), 20_000
    posterior, law = moe.MixturePosterior(*given), torchs(*given)
    y = posterior.rsample(torch.Size([n]), generator=rnd.generator_from(seed))
    assert y.shape == (n, 2, m)
    centred = y - law.mean
    products = centred.unsqueeze(-1) * centred.unsqueeze(-2)
    spread = given[1] - law.mean.unsqueeze(-2)
    w = given[0].softmax(-1)[..., None, None]
    covariance = (w * (spread.unsqueeze(-1) * spread.unsqueeze(-2) + torch.diag_embed(given[2].square()))).sum(-3)
    assert (centred.mean(0).abs() <= 5 * (law.variance / n).sqrt()).all()
    assert ((products.mean(0) - covariance).abs() <= 5 * products.std(0) / n**0.5).all()
    with rnd.forked(rnd.generator_from(seed + 1)):
        theirs = law.log_prob(law.sample((n,)))
    ours = law.log_prob(y)
    error = (ours.var(0) / n + theirs.var(0) / n).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() <= 5 * error).all()
    # Points are independent, though one draw serves them.
    between = centred[:, 0].unsqueeze(-1) * centred[:, 1].unsqueeze(-2)
    assert (between.mean(0).abs() <= 5 * between.std(0) / n**0.5).all()


@pytest.mark.parametrize("m", [1, 2])
def test_gradients_of_samples(m: int, seed: int) -> None:
    """Those of finite differences at fixed base samples."""
    given = [x.requires_grad_(True) for x in parts(m, seed)]
    eps = rnd.normal((3, 2, m), generator=rnd.generator_from(seed + 1), dtype=DOUBLE)

    def samples(*parts: Tensor) -> Tensor:
        return moe.MixturePosterior(*parts).rsample_from_base_samples(torch.Size([3]), eps)

    assert torch.autograd.gradcheck(samples, given, eps=1e-6, atol=1e-5)


def test_gradients_of_averages_are_unbiased(seed: int) -> None:
    """Of E[y1 y2] = sum_i pi_i mu_i1 mu_i2: probabilities included."""
    given = [x.requires_grad_(True) for x in parts(2, seed)]
    exact = (given[0].softmax(-1) * given[1].prod(-1)).sum()
    expected = torch.autograd.grad(exact, given[:2])
    blocks, each = [], 500
    for block in range(40):
        y = moe.MixturePosterior(*given).rsample(torch.Size([each]), generator=rnd.generator_from(97 * seed + block))
        blocks.append(torch.autograd.grad(y.prod(-1).sum(-1).mean(), given))
    for i in range(2):
        found = torch.stack([block[i] for block in blocks])
        assert ((found.mean(0) - expected[i]).abs() <= 5 * found.std(0) / 40**0.5 + 1e-12).all()
    of_scales = torch.stack([block[2] for block in blocks])  # on which the expectation does not depend
    assert (of_scales.mean(0).abs() <= 5 * of_scales.std(0) / 40**0.5).all()


class Mixture(Model):
    """A BoTorch model of outcomes of one mixture of experts."""

    num_outputs = 1

    def __init__(self, law: moe.GaussianMoE) -> None:
        super().__init__()
        self.law = law

    def posterior(self, X: Tensor, *args: object, **options: object) -> moe.MixturePosterior:
        return self.law.predict(X)


def law() -> moe.GaussianMoE:
    return moe.GaussianMoE.from_mixing_measure(
        moe.MixingMeasure([0.0, 0.0], [[3.0, 0.0], [0.0, 0.0]], [1.0, -1.0], [[2.0, 0.5], [-1.5, 1.0]], [0.16, 0.25])
    )


def test_predictions_serve_acquisition_functions() -> None:
    model = Mixture(law())
    bounds = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=DOUBLE)
    X = 2 * rnd.uniform((3, 5, 2), generator=rnd.generator_from(0), dtype=DOUBLE) - 1
    posterior = model.posterior(X)
    sampler = get_sampler(posterior, torch.Size([512]), seed=0)
    assert isinstance(sampler, SobolQMCNormalSampler)
    y = sampler(posterior)
    assert y.shape == posterior._extended_shape(torch.Size([512])) == (512, 3, 5, 1)
    error = (y.mean(0) - posterior.mean).abs() / posterior.variance.sqrt()
    assert error.max() < 0.05  # a Monte Carlo standard error is 0.044
    mean, variance = model.law.moments(X)
    torch.testing.assert_close(posterior.mean, mean)
    torch.testing.assert_close(posterior.variance, variance)
    acquisition = qLogExpectedImprovement(model, best_f=1.0, sampler=SobolQMCNormalSampler(torch.Size([64]), seed=0))
    value = acquisition(X)
    torch.testing.assert_close(acquisition(X[1:2]), value[1:2])  # whatever else is in the batch
    assert torch.autograd.gradcheck(acquisition, (X[:1].clone().requires_grad_(True),), eps=1e-6, atol=1e-4)
    candidate, best = optimize_acqf(acquisition, bounds, q=2, num_restarts=2, raw_samples=16, options={"maxiter": 10})
    assert candidate.isfinite().all() and best >= value.max()


def test_beyond_sobol_sequences_normals_are_independent() -> None:
    q = torch.quasirandom.SobolEngine.MAXDIM + 1
    ones = torch.ones(q, 1, 1, dtype=DOUBLE)
    posterior = moe.MixturePosterior(torch.zeros(q, 1, dtype=DOUBLE), ones, ones)
    assert isinstance(get_sampler(posterior, torch.Size([2]), seed=0), IIDNormalSampler)


def test_experts_of_no_weight_do_not_matter(seed: int) -> None:
    log_weights, means, stds = parts(1, seed)
    log_weights[..., 2] = -math.inf
    whole = moe.MixturePosterior(log_weights, means, stds)
    without = moe.MixturePosterior(log_weights[..., :2], means[..., :2, :], stds[..., :2, :])
    y = torch.zeros(2, 1, dtype=DOUBLE)
    for a, b in ((whole.mean, without.mean), (whole.log_prob(y), without.log_prob(y))):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(whole.quantile(0.3), without.quantile(0.3))
    same = [p.rsample(torch.Size([4]), generator=rnd.generator_from(0)) for p in (whole, without)]
    torch.testing.assert_close(*same)


def test_bad_input_is_named() -> None:
    log_weights, means, stds = parts(1, 0)
    with pytest.raises(ShapeError, match="log_weights"):
        moe.MixturePosterior(log_weights[..., :2], means, stds)
    with pytest.raises(ShapeError, match="stds"):
        moe.MixturePosterior(log_weights, means, stds[..., :2, :])
    with pytest.raises(DomainError, match="stds must be positive"):
        moe.MixturePosterior(log_weights, means, 0 * stds)
    with pytest.raises(NonFiniteError, match="means"):
        moe.MixturePosterior(log_weights, means * math.nan, stds)
    with pytest.raises(NonFiniteError, match="log_weights"):
        moe.MixturePosterior(log_weights * math.nan, means, stds)
    with pytest.raises(DomainError, match="all log_weights -inf"):
        moe.MixturePosterior(log_weights - math.inf, means, stds)
    with pytest.raises(DomainError, match="float32"):
        moe.MixturePosterior(log_weights.float(), means, stds)
    with pytest.raises(ShapeError, match="base_samples"):
        moe.MixturePosterior(log_weights, means, stds).rsample_from_base_samples(torch.Size([3]), means[..., 0, :])
