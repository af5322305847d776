"""DrawsSampler inside BoTorch: exact averages, the same value in every batch, independent models."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest
import torch
from botorch.acquisition import qExpectedImprovement, qNoisyExpectedImprovement
from botorch.acquisition.logei import qLogExpectedImprovement
from botorch.posteriors import GPyTorchPosterior, PosteriorList
from botorch.posteriors.ensemble import EnsemblePosterior
from botorch.posteriors.transformed import TransformedPosterior
from botorch.sampling import IIDNormalSampler, ListSampler, SobolQMCNormalSampler
from botorch.sampling.get_sampler import get_sampler
from gpytorch.distributions import MultivariateNormal
from torch import Tensor

from probnn.errors import DomainError, ShapeError, UnsupportedError
from probnn.predictive import DrawsPosterior, DrawsSampler
from tests.unit.predictive.draws_model import BEST, D, DrawsModel, S, labels, points, random_weights

# BoTorch recommends its log version at every qExpectedImprovement; here the plain one has a closed form.
pytestmark = pytest.mark.filterwarnings("ignore::botorch.exceptions.warnings.NumericsWarning")


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def exact_ei(p: DrawsPosterior) -> Tensor:
    best_of_q = p.values.amax(-2).squeeze(-1)
    return (p.weights * (best_of_q - BEST).clamp_min(0)).sum(-1)


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
