"""DrawsSampler inside BoTorch: exact averages, the same value in every batch, independent models."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest
import torch
from botorch.acquisition import (
    LogExpectedImprovement,
    UpperConfidenceBound,
    qExpectedImprovement,
    qKnowledgeGradient,
    qNoisyExpectedImprovement,
)
from botorch.acquisition.logei import qLogExpectedImprovement, qLogNoisyExpectedImprovement
from botorch.acquisition.multi_step_lookahead import qMultiStepLookahead
from botorch.models import ModelList
from botorch.models.model import Model
from botorch.optim import optimize_acqf
from botorch.posteriors import GPyTorchPosterior, PosteriorList
from botorch.posteriors.ensemble import EnsemblePosterior
from botorch.posteriors.transformed import TransformedPosterior
from botorch.sampling import IIDNormalSampler, ListSampler, SobolQMCNormalSampler
from botorch.sampling.get_sampler import get_sampler
from gpytorch.distributions import MultivariateNormal
from torch import Tensor

from probnn.errors import DomainError, ShapeError, UnsupportedError
from probnn.predictive import DrawsPosterior, DrawsSampler

S, D = 64, 2
BEST = 0.4
# BoTorch recommends its log version at every qExpectedImprovement; here the plain one has a closed form.
pytestmark = pytest.mark.filterwarnings("ignore::botorch.exceptions.warnings.NumericsWarning")


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


class DrawsModel(Model):
    """S one-hidden-layer tanh networks: as little of a BoTorch model as these tests need."""

    def __init__(self, seed: int = 0, log_weights: Tensor | None = None, m: int = 1, salt: int = 0):
        super().__init__()
        gen = torch.Generator().manual_seed(seed)
        self.first, self.shift = (3 * torch.randn(S, k, 32, generator=gen) for k in (D, 1))
        self.last = torch.randn(S, 32, m, generator=gen) / math.sqrt(32)
        self.log_weights, self.salt, self.noise_std = log_weights, salt, torch.full((S, 1, m), 0.2)
        self.posterior_class: type = DrawsPosterior

    @property
    def num_outputs(self) -> int:
        return self.last.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size() if self.log_weights is None else self.log_weights.shape[:-1]

    def draws(self, X: Tensor) -> Tensor:
        return torch.tanh(X.unsqueeze(-3) @ self.first + self.shift) @ self.last

    def posterior(self, X, output_indices=None, observation_noise=False, posterior_transform=None):
        if self.posterior_class is EnsemblePosterior:
            return EnsemblePosterior(self.draws(X))
        noise_std = self.noise_std if observation_noise else None
        return DrawsPosterior(self.draws(X), self.log_weights, noise_std, salt=self.salt)

    def fantasize(self, X, sampler, observation_noise=None, propagate_grads=False):
        Y = sampler(self.posterior(X, observation_noise=True))
        error = (Y.unsqueeze(-3) - self.draws(X)) / self.noise_std
        conditioned = copy.copy(self)
        conditioned.log_weights = (self.log_weights if self.log_weights is not None else 0) - 0.5 * (
            error.square().sum((-1, -2))
        )
        return conditioned


def points(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, D, generator=torch.Generator().manual_seed(seed + 10))


def exact_ei(p: DrawsPosterior) -> Tensor:
    best_of_q = p.values.amax(-2).squeeze(-1)
    return (p.weights * (best_of_q - BEST).clamp_min(0)).sum(-1)


def random_weights(seed: int) -> Tensor:
    return torch.randn(S, generator=torch.Generator().manual_seed(seed + 20))


# Exactness


def counts(sampler: DrawsSampler, log_weights: Tensor | None = None) -> Tensor:
    labels = sampler(DrawsPosterior(torch.arange(float(S)).reshape(S, 1, 1), log_weights))
    return labels.flatten().long().bincount(minlength=S)


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_equal_weights_are_averaged_exactly(factor, seed):
    model, X = DrawsModel(seed), points(seed, 3)
    sampler = DrawsSampler(torch.Size([factor * S]), seed=seed)
    value = qExpectedImprovement(model, BEST, sampler=sampler)(X)
    torch.testing.assert_close(value, exact_ei(model.posterior(X)).reshape(1), rtol=0.0, atol=1e-12)
    assert (counts(sampler) == factor).all()


def test_a_draw_is_used_in_proportion_to_its_weight(seed):
    log_weights = random_weights(seed)
    for k in range(20):
        for n in [S, 100, 512]:
            used = counts(DrawsSampler(torch.Size([n]), seed=seed + k), log_weights)
            assert used.sum() == n and ((used - n * log_weights.softmax(-1)).abs() < 1).all()


def test_weighted_average_is_within_two_percent(seed):
    """Independent indices would have a standard error of 7 %; here every U gives an error below 1.7 %."""
    model, X = DrawsModel(2, random_weights(2)), points(2, 2)
    exact = exact_ei(model.posterior(X))
    for k in range(30):
        sampler = DrawsSampler(torch.Size([512]), seed=30 * seed + k)
        assert abs(qExpectedImprovement(model, BEST, sampler=sampler)(X) / exact - 1) < 0.02


def test_uniforms_are_unbiased_over_seeds(seed):
    log_weights, n, runs = random_weights(seed), 16, 2000
    p = DrawsPosterior(torch.arange(float(S)).reshape(S, 1, 1).sin(), log_weights)
    means = torch.stack([DrawsSampler(torch.Size([n]), seed=seed + k)(p).mean() for k in range(runs)])
    assert abs(means.mean() - p.mean) < 5 * means.std() / math.sqrt(runs)


def test_noise_has_its_moments_and_no_part_in_the_choice(seed):
    n, q, m = 256 * S, 2, 2
    gen = torch.Generator().manual_seed(seed)
    values, noise_std = torch.randn(S, q, m, generator=gen), 0.5 + torch.rand(S, q, m, generator=gen)
    p = DrawsPosterior(values, noise_std=noise_std)
    samples = DrawsSampler(torch.Size([n]), seed=seed)(p)
    quiet = DrawsSampler(torch.Size([n]), seed=seed)(DrawsPosterior(values))
    noise = (samples - quiet).flatten(-2)
    assert (noise.mean(0).abs() < 5 * noise.std(0) / math.sqrt(n)).all()
    products = noise.unsqueeze(-1) * noise.unsqueeze(-2)
    expected = noise_std.square().mean(0).flatten().diag()
    assert ((products.mean(0) - expected).abs() < 5 * products.std(0) / math.sqrt(n)).all()
    crossed = noise.unsqueeze(-1) * quiet.flatten(-2).unsqueeze(-2)
    assert (crossed.mean(0).abs() < 5 * crossed.std(0) / math.sqrt(n)).all()


def test_normal_samplers_of_botorch_work(seed):
    model, X = DrawsModel(2, random_weights(2)), points(2, 2)
    exact, p = exact_ei(model.posterior(X)), model.posterior(X)
    runs = 200

    def errors(kind) -> Tensor:
        each = [kind(torch.Size([512]), seed=runs * seed + k) for k in range(runs)]
        return torch.stack([qExpectedImprovement(model, BEST, sampler=s)(X)[0] for s in each]) / exact - 1

    assert errors(SobolQMCNormalSampler).square().mean().sqrt() < 0.02
    improvement = (p.values.amax(-2).squeeze(-1) - BEST).clamp_min(0)
    se = ((p.weights * (improvement - exact).square()).sum() / 512).sqrt() / exact
    iid = errors(IIDNormalSampler)
    assert iid.mean().abs() < 5 * se / math.sqrt(runs)
    assert iid.square().mean().sqrt() == pytest.approx(se.item(), rel=5 / math.sqrt(2 * runs))


# The same function everywhere in the batch


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", [DrawsSampler, SobolQMCNormalSampler])
def test_value_does_not_depend_on_the_batch(kind, weighted, seed):
    model = DrawsModel(seed, random_weights(seed) if weighted else None)
    acquisition = qLogExpectedImprovement(model, BEST, sampler=kind(torch.Size([128]), seed=seed))
    X = points(seed, 64, 2)
    alone = torch.stack([acquisition(x)[0] for x in X])
    torch.testing.assert_close(acquisition(X), alone, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(acquisition(X[:5]), alone[:5], rtol=1e-14, atol=1e-14)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(acquisition(X[order]), alone[order], rtol=1e-14, atol=1e-14)
    same = acquisition(X[0].expand(5, 2, D))
    assert (same - alone[0]).abs().max() <= 1e-14 * max(1.0, alone[0].abs())
    samples = acquisition.sampler(model.posterior(X))
    assert torch.equal(acquisition.sampler(model.posterior(X.reshape(8, 8, 2, D))).flatten(1, 2), samples)
    assert torch.equal(acquisition.sampler(model.posterior(X[7])), samples[:, 7])


def test_botorchs_ensemble_gives_one_candidate_several_values(seed):
    """The reason for these classes: an index for each t-batch element makes each a different function."""
    model, X = DrawsModel(seed), points(seed, 1, 2).expand(5, 2, D)
    spread = {}
    for model.posterior_class in [EnsemblePosterior, DrawsPosterior]:
        sampler = get_sampler(model.posterior(X), torch.Size([128]), seed=seed)
        values = qExpectedImprovement(model, BEST, sampler=sampler)(X)
        spread[model.posterior_class] = (values.max() - values.min()).item()
    assert spread[EnsemblePosterior] > 1e-3 and spread[DrawsPosterior] < 1e-14


def test_batched_weights_share_the_uniforms(seed):
    log_weights = torch.stack([random_weights(seed), random_weights(seed), random_weights(seed + 1)])
    values = torch.randn(S, 2, 1, generator=torch.Generator().manual_seed(seed))
    sampler = DrawsSampler(torch.Size([100]), seed=seed)
    together = sampler(DrawsPosterior(values, log_weights))
    for b in range(3):
        assert torch.equal(together[:, b], sampler(DrawsPosterior(values, log_weights[b])))
    assert torch.equal(together[:, 0], together[:, 1]) and not torch.equal(together[:, 0], together[:, 2])


def test_more_points_leave_the_old_ones_as_they_are(seed):
    gen = torch.Generator().manual_seed(seed)
    values, noise = torch.randn(7, S, 5, 2, generator=gen), torch.tensor(0.3)
    few, many = (DrawsPosterior(values[..., :q, :], noise_std=noise) for q in (3, 5))
    sampler = DrawsSampler(torch.Size([50]), seed=seed)
    first = sampler(few)
    assert torch.equal(sampler(many)[..., :3, :], first) and torch.equal(sampler(few), first)
    new = DrawsSampler(torch.Size([50]), seed=seed + 1)
    new._update_base_samples(many, sampler)
    assert torch.equal(new(many), sampler(many))
    with pytest.raises(DomainError, match="sample_shape"):
        new._update_base_samples(many, DrawsSampler(torch.Size([51])))
    with pytest.raises(RuntimeError, match="DrawsSampler"):
        new._update_base_samples(many, IIDNormalSampler(torch.Size([50])))


def test_pending_points_are_the_other_points_of_the_batch(seed):
    model, X = DrawsModel(seed), points(seed, 4, 3)
    sampler = DrawsSampler(torch.Size([S]), seed=seed)
    joint = qLogExpectedImprovement(model, BEST, sampler=sampler)(X)
    for b in range(4):
        pending = qLogExpectedImprovement(model, BEST, sampler=copy.deepcopy(sampler), X_pending=X[b, 1:])
        torch.testing.assert_close(pending(X[b, :1]), joint[b : b + 1], rtol=1e-12, atol=1e-12)


def test_noisy_ei_is_the_average_over_draws(seed):
    model, X, baseline = DrawsModel(seed), points(seed, 6, 1), points(seed + 1, 9)
    nei = qNoisyExpectedImprovement(
        model, baseline, sampler=DrawsSampler(torch.Size([2 * S]), seed=seed), prune_baseline=True, cache_root=False
    )
    best = model.draws(baseline).amax((-1, -2))
    expected = (model.draws(X)[..., 0, 0] - best).clamp_min(0).mean(-1)
    torch.testing.assert_close(nei(X), expected, rtol=0.0, atol=1e-12)


# Seeds


def test_global_stream_is_left_alone(seed):
    model, X = DrawsModel(seed), points(seed, 3, 2)
    before = torch.get_rng_state()
    acquisition = qLogExpectedImprovement(
        model, BEST, sampler=get_sampler(model.posterior(X), torch.Size([64]), seed=seed)
    )
    acquisition(X)
    get_sampler(model.posterior(X, observation_noise=True), torch.Size([64]), seed=seed)(
        model.posterior(X, observation_noise=True)
    )
    assert torch.equal(torch.get_rng_state(), before)
    other = DrawsSampler(torch.Size([64]))
    assert isinstance(other.seed, int)


def test_seeds_differ_and_repeat(seed):
    p = DrawsModel(seed, random_weights(seed)).posterior(points(seed, 3, 2), observation_noise=True)
    a, b, c = (DrawsSampler(torch.Size([64]), seed=k)(p) for k in (seed, seed, seed + 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    d = copy.deepcopy(DrawsSampler(torch.Size([64]), seed=seed))(p)
    assert torch.equal(a, d)


PROCESS = """
import torch
from probnn.predictive import DrawsPosterior, DrawsSampler
torch.set_default_dtype(torch.float64)
values = torch.arange(24.0).reshape(2, 4, 3, 1).sin()
p = DrawsPosterior(values, torch.tensor([0.1, 0.5, -1.0, 0.0]), torch.tensor(0.3), salt=5)
samples = DrawsSampler(torch.Size([32]), seed={seed})(p)
"""


def test_same_samples_in_another_process(seed):
    code = PROCESS.format(seed=seed)
    here: dict = {}
    exec(code, here)
    script = code + "print([x.hex() for x in samples.flatten().tolist()])"
    there = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert eval(there) == [x.hex() for x in here["samples"].flatten().tolist()]


def labels(salt: int, batch: tuple[int, ...] = ()) -> DrawsPosterior:
    return DrawsPosterior(torch.arange(float(S)).reshape(S, 1, 1).expand(*batch, S, 1, 1), salt=salt)


def test_one_seed_does_not_couple_two_models(seed):
    n = 64 * S
    for other, coupled in [(2, False), (1, True)]:
        p = PosteriorList(labels(1), labels(other))
        sampler = get_sampler(p, torch.Size([n]), seed=seed)
        assert isinstance(sampler, ListSampler)
        a, b = sampler(p).squeeze(-2).unbind(-1)
        correlation = torch.corrcoef(torch.stack([a, b]))[0, 1]
        assert torch.equal(a, b) if coupled else abs(correlation) < 5 / math.sqrt(n) < 0.15


def test_one_sampler_may_serve_two_models(seed):
    sampler = DrawsSampler(torch.Size([100]), seed=seed)
    first, second = sampler(labels(1)), sampler(labels(2))
    assert not torch.equal(first, second)
    assert torch.equal(sampler(labels(1)), first) and torch.equal(sampler(labels(2)), second)


# Where BoTorch uses samplers


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


# What is refused


def test_bad_arguments():
    gp = GPyTorchPosterior(MultivariateNormal(torch.zeros(2), torch.eye(2)))
    for other in [gp, PosteriorList(labels(0)), TransformedPosterior(gp, sample_transform=torch.exp)]:
        with pytest.raises(UnsupportedError, match="must be a DrawsPosterior, got a (GPy|PosteriorList)"):
            DrawsSampler(torch.Size([4]), seed=0)(other)
    for bad in [-1, "a", 1.0, True]:
        with pytest.raises(DomainError, match="seed must be an integer"):
            DrawsSampler(torch.Size([4]), seed=bad)
    for shape in [4, (-1,)]:
        with pytest.raises(ShapeError, match="sample_shape"):
            DrawsSampler(shape, seed=0)
