"""Where BoTorch uses samplers: lists, fantasies, gradients, lookahead and optimisation."""

from __future__ import annotations

import math

import pytest
import torch
from botorch.acquisition import (
    LogExpectedImprovement,
    UpperConfidenceBound,
    qExpectedImprovement,
    qKnowledgeGradient,
)
from botorch.acquisition.logei import qLogExpectedImprovement, qLogNoisyExpectedImprovement
from botorch.acquisition.multi_step_lookahead import qMultiStepLookahead
from botorch.models import ModelList
from botorch.optim import optimize_acqf
from botorch.posteriors.transformed import TransformedPosterior
from botorch.sampling import SobolQMCNormalSampler
from botorch.sampling.get_sampler import get_sampler

from probnn.predictive import DrawsPosterior, DrawsSampler
from tests.unit.predictive.draws_model import BEST, D, DrawsModel, S, labels, points, random_weights

# BoTorch recommends its log version at every qExpectedImprovement; here the plain one has a closed form.
pytestmark = pytest.mark.filterwarnings("ignore::botorch.exceptions.warnings.NumericsWarning")


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def test_posterior_lists_and_transformed_posteriors(seed):
    X = points(seed, 4, 2)
    models = ModelList(DrawsModel(seed, salt=1), DrawsModel(seed + 1, salt=2))
    p = models.posterior(X)
    samples = get_sampler(p, torch.Size([S]), seed=seed)(p)
    assert samples.shape == p._extended_shape(torch.Size([S])) == (S, 4, 2, 2)
    torch.testing.assert_close(samples.mean(0), p.mean)
    transformed = TransformedPosterior(p.posteriors[0], sample_transform=torch.exp)
    sampler = get_sampler(transformed, torch.Size([S]), seed=seed)
    assert isinstance(sampler, DrawsSampler)
    assert torch.equal(sampler(transformed), samples[..., :1].exp())


def test_dimensions_that_are_not_collapsed_have_sets_of_their_own(seed):
    p = labels(0, (6, 3))
    sampler = DrawsSampler(torch.Size([2 * S]), seed=seed)
    sampler.batch_range_override = (-3, -2)
    samples = sampler(p).squeeze(-1).squeeze(-1)
    assert torch.equal(samples, samples[..., :1].expand(2 * S, 6, 3))
    for k in range(6):
        assert (samples[:, k, 0].long().bincount(minlength=S) == 2).all()
    assert len({tuple(samples[:, k, 0].tolist()) for k in range(6)}) == 6


def test_sample_shapes_of_several_dimensions(seed):
    samples = DrawsSampler(torch.Size([4, S]), seed=seed)(labels(0, (3,)))
    assert samples.shape == (4, S, 3, 1, 1)
    assert (samples[..., 0, 0, 0].long().flatten().bincount(minlength=S) == 4).all()
    assert DrawsSampler(torch.Size([0]), seed=seed)(labels(0, (3,))).shape == (0, 3, 1, 1)
    assert DrawsSampler(torch.Size([]), seed=seed)(labels(0, (3,))).shape == (3, 1, 1)


def test_single_precision_stays_exact(seed):
    sampler = DrawsSampler(torch.Size([8 * S]), seed=seed)
    p = DrawsPosterior(torch.arange(float(S)).reshape(S, 1, 1).float())
    assert sampler(p).dtype == torch.float32
    before = sampler.base_samples.clone()
    sampler.float()
    assert (sampler(p).flatten().long().bincount(minlength=S) == 8).all()
    assert torch.equal(sampler.base_samples, before)


@pytest.mark.parametrize("weighted", [False, True])
def test_acquisitions_are_differentiable(weighted, seed):
    model = DrawsModel(seed, random_weights(seed) if weighted else None)
    X = points(seed, 3, 2).requires_grad_()
    for kind in [qExpectedImprovement, qLogExpectedImprovement]:
        acquisition = kind(model, BEST, sampler=DrawsSampler(torch.Size([S]), seed=seed))
        assert torch.autograd.gradcheck(acquisition, X, eps=1e-6, atol=1e-4)


def test_noisy_samples_are_differentiable(seed):
    model, X = DrawsModel(seed), points(seed, 2, 2).requires_grad_()
    sampler = DrawsSampler(torch.Size([16]), seed=seed)
    assert torch.autograd.gradcheck(lambda x: sampler(model.posterior(x, observation_noise=True)), X, atol=1e-6)


@pytest.mark.parametrize("own", [False, True])
def test_knowledge_gradient_flows_through_the_weights(own, seed):
    model = DrawsModel(seed)
    sampler = DrawsSampler(torch.Size([4]), seed=seed) if own else SobolQMCNormalSampler(torch.Size([4]), seed=seed)
    acquisition = qKnowledgeGradient(model, num_fantasies=4, sampler=sampler)
    X = points(seed, 2, 1 + 4).requires_grad_()
    value = acquisition(X)
    assert value.shape == (2,) and value.isfinite().all()
    assert torch.autograd.gradcheck(acquisition, X, eps=1e-6, atol=1e-4)
    torch.testing.assert_close(acquisition(X[1:]), value[1:], rtol=1e-13, atol=1e-13)


def test_fantasies_average_to_the_posterior(seed):
    model, X, n = DrawsModel(seed), points(seed, 3, 1), 4096
    fantasy = model.fantasize(X, DrawsSampler(torch.Size([n]), seed=seed))
    target = points(seed + 1, 3, 1)
    p, now = fantasy.posterior(target), model.posterior(target)
    assert p.batch_shape == (n, 3)
    assert ((p.mean.mean(0) - now.mean).abs() < 5 * p.mean.std(0) / math.sqrt(n)).all()
    total = (p.variance + (p.mean - now.mean).square()).mean(0)
    torch.testing.assert_close(total, now.variance, rtol=0.05, atol=0.0)


@pytest.mark.parametrize("collapse", [True, False])
def test_multi_step_lookahead_runs(collapse, seed):
    acquisition = qMultiStepLookahead(
        DrawsModel(seed),
        batch_sizes=[1, 1],
        samplers=[DrawsSampler(torch.Size([k]), seed=seed) for k in (3, 2)],
        collapse_fantasy_base_samples=collapse,
    )
    X = points(seed, 4, acquisition.get_augmented_q_batch_size(1)).requires_grad_()
    value = acquisition(X)
    assert value.shape == (4,) and torch.autograd.grad(value.sum(), X)[0].isfinite().all()
    torch.testing.assert_close(acquisition(X[:2]), value[:2], rtol=1e-13, atol=1e-13)


def test_optimisation_of_noisy_ei_keeps_the_bounds(seed):
    model, bounds = DrawsModel(seed), torch.tensor([[0.0] * D, [1.0] * D])
    acquisition = qLogNoisyExpectedImprovement(
        model, points(seed, 5), sampler=DrawsSampler(torch.Size([S]), seed=seed), prune_baseline=True
    )
    candidates, value = optimize_acqf(
        acquisition, bounds, q=2, num_restarts=2, raw_samples=16, sequential=True, options={"maxiter": 5}
    )
    assert candidates.shape == (2, D) and value.isfinite().all()
    assert (candidates >= 0).all() and (candidates <= 1).all()


def test_analytic_acquisitions_have_finite_gradients_where_draws_agree():
    """The variance is exactly zero there: BoTorch clamps it before it takes the root."""
    model = DrawsModel(0)
    model.last = torch.zeros_like(model.last)
    X = points(0, 3, 1).requires_grad_()
    assert torch.equal(model.posterior(X).variance, torch.zeros(3, 1, 1))
    for acquisition in [LogExpectedImprovement(model, best_f=0.1), UpperConfidenceBound(model, beta=2.0)]:
        value = acquisition(X)
        assert value.isfinite().all() and torch.autograd.grad(value.sum(), X)[0].isfinite().all()
