"""Joint samples of a DrawsPosterior, against simulation, and the views that keep its draws."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from probnn.errors import DomainError, ShapeError
from probnn.predictive import DrawsPosterior
from tests.unit.predictive.draws_cases import CASES, make

INF = math.inf


# Joint samples


def test_samples_of_one_index_are_one_draw(seed):
    p = make(seed, (3,), size=16, q=4, noise=None)
    samples = p.rsample(torch.Size([40]))
    distance = (samples.unsqueeze(-4) - p.values.movedim(-3, 0)).abs().amax((-1, -2, -3))  # over batch, q and m
    assert (distance.min(-1).values == 0).all()


def test_samples_are_correlated_as_the_draws_are(seed):
    p, n = make(seed, size=6, q=2, m=1, noise=None), 10_000
    a, b = p.rsample(torch.Size([n]), generator=torch.Generator().manual_seed(seed)).squeeze(-1).unbind(-1)
    products = (a - p.mean[0, 0]) * (b - p.mean[1, 0])
    assert abs(products.mean() - p.covariance[0, 1]) < 5 * products.std() / math.sqrt(n)
    assert abs(a.mean() - p.mean[0, 0]) < 5 * a.std() / math.sqrt(n)


@pytest.mark.parametrize("case", ["plain", "batched weights", "fantasies", "batch"])
def test_samples_have_the_moments_of_the_posterior(case, seed):
    p, n = make(seed, **CASES[case]), 20_000
    samples = p.rsample(torch.Size([n]), generator=torch.Generator().manual_seed(seed + 1))
    error = samples.std(0) / math.sqrt(n)
    assert ((samples.mean(0) - p.mean).abs() < 5 * error).all()
    flat = (samples - p.mean).flatten(-2)
    products = flat.unsqueeze(-1) * flat.unsqueeze(-2)
    assert ((products.mean(0) - p.covariance).abs() < 5 * products.std(0) / math.sqrt(n)).all()
    assert abs((samples < 0.3).double().mean(0) - p_below(p, 0.3)).max() < 5 * 0.5 / math.sqrt(n)


def p_below(p: DrawsPosterior, y: float) -> Tensor:
    return (p.weights[..., None, None] * torch.special.ndtr((y - p.values) / p.noise_std)).sum(-3)


def test_noise_is_shared_over_the_batch_and_over_nothing_else(seed):
    q, m, n = 3, 2, 20_000
    p = DrawsPosterior(torch.zeros(5, 4, q, m).double(), noise_std=torch.ones(()).double())
    samples = p.rsample(torch.Size([n]), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(samples, samples[:, :1].expand(n, 5, q, m))
    correlation = samples[:, 0].flatten(-2).T.corrcoef() - torch.eye(q * m)
    assert correlation.abs().max() < 5 / math.sqrt(n)


def test_rsample_uses_its_generator_or_the_global_stream(seed):
    p = make(seed, (3,))
    before = torch.get_rng_state()
    a = p.rsample(torch.Size([9]), generator=torch.Generator().manual_seed(3))
    assert torch.equal(a, p.rsample(torch.Size([9]), generator=torch.Generator().manual_seed(3)))
    assert torch.equal(torch.get_rng_state(), before)
    b = p.rsample(torch.Size([9]))
    assert not torch.equal(torch.get_rng_state(), before) and not torch.equal(a, b)
    torch.set_rng_state(before)
    assert torch.equal(p.rsample(torch.Size([9])), b)
    values = p.values.clone().requires_grad_()
    assert not DrawsPosterior(values).sample().requires_grad and DrawsPosterior(values).rsample().requires_grad


def test_base_samples_choose_the_draw_and_are_the_noise(seed):
    p = make(seed, (3,), (3,), size=5, q=2, m=2, noise="full")
    z = torch.randn(11, *p.base_sample_shape, generator=torch.Generator().manual_seed(seed)).double()
    samples = p.rsample_from_base_samples(torch.Size([11]), z)
    for n, b in itertools.product(range(11), range(3)):
        s = int((p.weights[b].cumsum(0) < stats.norm.cdf(z[n, b, 0, 0].item())).sum())
        expected = p.values[b, s] + p.noise_std[b, s] * z[n, b, 1:]
        torch.testing.assert_close(samples[n, b], expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("case", ["batch", "batched weights", "fantasies"])
def test_base_samples_may_be_shared_expanded_or_full(case, seed):
    p = make(seed, **CASES[case])
    collapsed = torch.randn(4, 5, *[1] * len(p.batch_shape), 3, 2, generator=torch.Generator().manual_seed(seed))
    collapsed, shape = collapsed.double(), torch.Size([4, 5])
    expanded = collapsed.expand(*shape, *p.base_sample_shape)
    samples = p.rsample_from_base_samples(shape, collapsed)
    assert samples.shape == p._extended_shape(shape)
    assert torch.equal(samples, p.rsample_from_base_samples(shape, expanded))
    assert torch.equal(samples, p.rsample_from_base_samples(shape, expanded.clone()))
    for bad in [collapsed[:3], collapsed[..., :2, :], collapsed[0], collapsed[..., :1]]:
        with pytest.raises(ShapeError, match="sample_shape x base_sample_shape"):
            p.rsample_from_base_samples(shape, bad)


@pytest.mark.parametrize("batched", [False, True])
def test_extreme_base_samples_never_reach_a_draw_of_weight_zero(batched):
    values = torch.tensor([-INF, 1.0, 2.0, INF, INF]).double().reshape(5, 1, 1)
    log_weights = torch.tensor([-INF, 0.3, -1.0, -INF, -INF]).double()
    p = DrawsPosterior(values, log_weights.expand(2, 5) if batched else log_weights)
    z = torch.tensor([-INF, -40.0, 40.0, INF]).double().reshape(4, *[1] * len(p.batch_shape), 1, 1)
    samples = p.rsample_from_base_samples(torch.Size([4]), z)
    assert samples.reshape(4, -1)[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize("case", ["plain", "batched weights"])
def test_gradients_flow_through_values_noise_and_weighted_moments(case, seed):
    p = make(seed, **CASES[case], size=3)
    z = torch.randn(4, *p.base_sample_shape, generator=torch.Generator().manual_seed(seed)).double()
    values, log_weights = p.values.clone().requires_grad_(), p.log_weights.clone().requires_grad_()
    noise_std = p.noise_std.clone().requires_grad_()

    def sample(values, noise_std):
        return DrawsPosterior(values, p.log_weights, noise_std).rsample_from_base_samples(torch.Size([4]), z)

    def moments(values, log_weights, noise_std):
        made = DrawsPosterior(values, log_weights, noise_std)
        return made.mean, made.variance, made.covariance, made.log_density(0.2), made.ess

    assert torch.autograd.gradcheck(sample, (values, noise_std))
    assert torch.autograd.gradcheck(moments, (values, log_weights, noise_std))
    samples = DrawsPosterior(p.values, log_weights, p.noise_std).rsample(torch.Size([4]))
    assert not samples.requires_grad  # the choice of a draw has no derivative


# Views


def test_select_keeps_draws_and_noise(seed):
    for noise in [None, "draw", "full", "one"]:
        p = make(seed, (2,), q=3, m=3, noise=noise)
        two = p.select([2, -3])
        assert torch.equal(two.values, p.values[..., [2, 0]])
        assert torch.equal(two.mean, p.mean[..., [2, 0]]) and torch.equal(two.variance, p.variance[..., [2, 0]])
    for bad in [[3], [-4], [], [True], [0.0]]:
        with pytest.raises(DomainError, match="output_indices must be from -3 to 2"):
            p.select(bad)


def test_affine_is_the_law_of_the_transformed_outcome(seed):
    p = make(seed, (4,), q=2, m=2)
    gen = torch.Generator().manual_seed(seed)
    for shape in [(1, 2), (4, 1, 2), (4, 2, 2)]:
        mean, scale = (torch.randn(*shape, generator=gen, dtype=torch.float64) for _ in range(2))
        scaled = p.affine(mean, scale)
        torch.testing.assert_close(scaled.mean, mean + scale * p.mean)
        torch.testing.assert_close(scaled.variance, scale**2 * p.variance)
        y = mean + scale * 0.3
        torch.testing.assert_close(scaled.log_density(y), p.log_density(0.3) - scale.abs().log())
    assert torch.equal(p.affine(0.1, -2.0).values, 0.1 - 2.0 * p.values)


def test_scalarize_is_the_law_of_the_linear_combination(seed):
    a, offset = torch.tensor([2.0, -0.5, 1.0], dtype=torch.float64), 0.7
    p = make(seed, (4,), q=2, m=3)
    one = p.scalarize(a, offset)
    assert one.event_shape == (2, 1)
    torch.testing.assert_close(one.mean.squeeze(-1), p.mean @ a + offset)
    mix = torch.kron(torch.eye(2).double(), a.unsqueeze(0))  # q x q*m, interleaved
    torch.testing.assert_close(one.covariance, mix @ p.covariance @ mix.T)
    single = make(seed, (4,), q=2, m=3, noise="one").scalarize(a).noise_std
    assert single.isfinite().all()
    with pytest.raises(ShapeError, match=r"weights must have shape \(3,\), got \(2,\)"):
        p.scalarize(a[:2])


def test_a_single_noise_scalarizes_over_all_outcomes():
    p = DrawsPosterior(torch.zeros(4, 2, 3).double(), noise_std=torch.full((), 2.0).double())
    a = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    torch.testing.assert_close(p.scalarize(a).variance, torch.full((2, 1), 4.0 * 14).double())


def test_views_keep_weights_and_salt(seed):
    p = make(seed, (2,), (2,))
    p = DrawsPosterior(p.values, p.log_weights, p.noise_std, salt=12)
    for view in [p.select([1]), p.affine(1.0, 2.0), p.scalarize(torch.ones(2).double())]:
        assert view.salt == 12 and torch.equal(view.weights, p.weights)
    assert p.select([0]).noise_std is not None
