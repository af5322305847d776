"""DrawsPosterior against formulas written out as loops, scipy's root finder and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor

from probnn.errors import DomainError, NonFiniteError, ShapeError, UnsupportedError
from probnn.predictive import DrawsPosterior

INF = math.inf


def make(
    seed: int, batch=(), weight_batch=None, size=6, q=2, m=2, noise: str | None = "draw", weights: str = "unequal"
) -> DrawsPosterior:
    gen = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=gen, dtype=torch.float64)

    weight_batch = () if weight_batch is None else weight_batch
    log_weights = None if weights == "equal" else randn(*weight_batch, size)
    shape = {None: None, "draw": (size, 1, m), "full": (*batch, size, q, m), "one": ()}[noise]
    noise_std = None if shape is None else 0.3 + randn(*shape).abs()
    return DrawsPosterior(randn(*batch, size, q, m), log_weights, noise_std)


def full_noise(p: DrawsPosterior) -> Tensor:
    return p.noise_std.expand(p.values.shape)


def full_weights(p: DrawsPosterior) -> Tensor:
    return p.weights.expand(p.values.shape[:-2])


CASES = {
    "plain": {},
    "noise-free": {"noise": None},
    "equal weights": {"weights": "equal"},
    "batch": {"batch": (3,), "noise": "full"},
    "batched weights": {"batch": (4, 3), "weight_batch": (4, 3)},
    "fantasies": {"batch": (3,), "weight_batch": (4, 3), "noise": "one"},
    "weights of one batch dimension": {"batch": (4, 3), "weight_batch": (4, 1), "noise": None},
    "one draw": {"size": 1},
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def posterior(request, seed) -> DrawsPosterior:
    return make(seed, **request.param)


# Shapes


@pytest.mark.parametrize("noise", [None, "draw", "full"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch", [(), (3,), (4, 5)])
def test_shapes(batch, weighted, noise, seed):
    p = make(seed, batch, batch if weighted else None, q=2, m=3, noise=noise)
    assert p.mean.shape == p.variance.shape == (*batch, 2, 3)
    assert p.covariance.shape == (*batch, 6, 6)
    assert p.batch_shape == batch and p.event_shape == (2, 3)
    assert p.base_sample_shape == (*batch, 1 if noise is None else 3, 3) and p.batch_range == (0, -2)
    assert p.weights.shape == (*(batch if weighted else ()), 6) and p.ess.shape == p.weights.shape[:-1]
    assert p.dtype == torch.float64 and p.device == torch.device("cpu")
    for shape in [torch.Size([]), torch.Size([3]), torch.Size([3, 2]), torch.Size([0])]:
        assert p.rsample(shape).shape == p._extended_shape(shape) == (*shape, *batch, 2, 3)
    assert p.rsample().shape == (1, *batch, 2, 3)
    assert p._extended_shape() == (*batch, 2, 3)


@pytest.mark.parametrize(("batch", "q"), [((0,), 2), ((3,), 0)])
@pytest.mark.parametrize("noise", [None, "draw"])
def test_empty(batch, q, noise, seed):
    p = make(seed, batch, q=q, noise=noise)
    shape = (*batch, q, 2)
    assert p.mean.shape == p.variance.shape == p.quantile(0.5).shape == shape
    assert p.rsample(torch.Size([7])).shape == (7, *shape)


# Moments


def test_mean_and_variance_are_the_mixtures(posterior):
    p, w = posterior, full_weights(posterior)
    for index in itertools.product(*map(range, p._extended_shape())):
        *b, i, j = index
        f = p.values[(*b, slice(None), i, j)].numpy()
        weights = w[tuple(b)].numpy()
        mean = sum(a * x for a, x in zip(weights, f, strict=True))
        variance = sum(a * (x - mean) ** 2 for a, x in zip(weights, f, strict=True))
        if p.noise_std is not None:
            sd = full_noise(p)[(*b, slice(None), i, j)].numpy()
            variance += sum(a * s**2 for a, s in zip(weights, sd, strict=True))
        assert p.mean[index].item() == pytest.approx(mean, abs=1e-12)
        assert p.variance[index].item() == pytest.approx(variance, abs=1e-12)


def test_covariance_is_interleaved(posterior):
    p, w = posterior, full_weights(posterior)
    q, m = p.event_shape
    for b in itertools.product(*map(range, p.batch_shape)):
        expected = np.zeros((q * m, q * m))
        for (i, j), (k, l) in itertools.product(itertools.product(range(q), range(m)), repeat=2):
            for s in range(p.values.shape[-3]):
                f, mean, a = p.values[b][s], p.mean[b], w[b][s].item()
                expected[i * m + j, k * m + l] += a * ((f[i, j] - mean[i, j]) * (f[k, l] - mean[k, l])).item()
                if p.noise_std is not None and (i, j) == (k, l):
                    expected[i * m + j, k * m + l] += a * full_noise(p)[b][s, i, j].item() ** 2
        np.testing.assert_allclose(p.covariance[b].numpy(), expected, atol=1e-12)


def test_covariance_agrees_with_variance(posterior):
    diagonal = posterior.covariance.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(diagonal, posterior.variance.flatten(-2), rtol=1e-12, atol=1e-12)


def test_noise_adds_its_mean_variance(seed):
    p = make(seed, (3,), (3,), noise="full")
    silent = DrawsPosterior(p.values, p.log_weights)
    added = (p.weights[..., None, None] * p.noise_std**2).sum(-3)
    torch.testing.assert_close(p.variance - silent.variance, added, rtol=1e-12, atol=1e-12)


def test_log_weights_are_normalised(seed):
    p = make(seed, (3,), (3,))
    shifted = DrawsPosterior(p.values, p.log_weights + 123.0, p.noise_std)
    for name in ["weights", "mean", "variance", "covariance", "ess"]:
        torch.testing.assert_close(getattr(p, name), getattr(shifted, name), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.weights.sum(-1), torch.ones(3, dtype=torch.float64))


def test_effective_sample_size(seed):
    p = make(seed, (3,), (3,))
    torch.testing.assert_close(p.ess, 1 / (p.weights**2).sum(-1), rtol=1e-12, atol=0.0)
    assert make(seed, weights="equal", size=50).ess.item() == pytest.approx(50, rel=1e-12)


@pytest.mark.parametrize("low", [-1e6, -INF])
def test_one_draw_takes_all_the_weight(low, seed):
    p = make(seed, (3,), weights="equal")
    log_weights = torch.full((6,), low, dtype=torch.float64)
    log_weights[2] = 0.0
    one = DrawsPosterior(p.values, log_weights)
    assert torch.equal(one.mean, p.values[:, 2]) and torch.equal(one.variance, torch.zeros(3, 2, 2).double())
    assert torch.equal(one.quantile(0.01), p.values[:, 2]) and one.ess.item() == 1.0
    assert torch.equal(one.rsample(torch.Size([50])), p.values[:, 2].expand(50, 3, 2, 2))
    noisy = DrawsPosterior(p.values, log_weights, p.noise_std)
    torch.testing.assert_close(noisy.variance, (p.noise_std[2] ** 2).expand(3, 2, 2))
    normal = stats.norm(p.values[:, 2].numpy(), p.noise_std[2].numpy())
    np.testing.assert_allclose(noisy.quantile(0.3).numpy(), normal.ppf(0.3), rtol=1e-12)
    np.testing.assert_allclose(noisy.log_density(0.4).numpy(), normal.logpdf(0.4), rtol=1e-12)


# Infinities


@pytest.mark.parametrize("noise", [None, "draw"])
def test_draws_of_weight_zero_may_be_infinite(noise, seed):
    p = make(seed, noise=noise)
    log_weights = torch.cat([p.log_weights, torch.full((2,), -INF).double()])
    values = torch.cat([p.values, torch.tensor([INF, -INF]).double()[:, None, None].expand(2, 2, 2)])
    noise_std = None if noise is None else torch.cat([p.noise_std, torch.full((2, 1, 2), INF).double()])
    padded = DrawsPosterior(values, log_weights, noise_std)
    for name in ["mean", "variance", "covariance", "ess"]:
        torch.testing.assert_close(getattr(padded, name), getattr(p, name), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(padded.quantile(0.2), p.quantile(0.2), rtol=1e-12, atol=0.0)
    assert padded.rsample(torch.Size([500])).isfinite().all()
    if noise is not None:
        torch.testing.assert_close(padded.log_density(0.1), p.log_density(0.1), rtol=1e-12, atol=0.0)
    padded.values.requires_grad_()
    (gradient,) = torch.autograd.grad(padded.variance.sum() + padded.mean.sum(), padded.values)
    assert gradient.isfinite().all() and (gradient[-2:] == 0).all()


def test_infinite_moments_are_reported_infinite(seed):
    p = make(seed)
    noise_std = p.noise_std.clone()
    noise_std[3, 0, 1] = INF
    noisy = DrawsPosterior(p.values, p.log_weights, noise_std)
    assert torch.equal(noisy.mean, p.mean)
    assert torch.equal(noisy.variance.isinf(), torch.tensor([[False, True]] * 2))
    assert noisy.log_density(0.0).isfinite().all()
    values = p.values.clone()
    values[3, 0, 0] = -INF
    heavy = DrawsPosterior(values, p.log_weights)
    assert heavy.mean[0, 0] == -INF and heavy.variance[0, 0] == INF
    assert torch.equal(heavy.mean[1], p.mean[1]) and heavy.variance[1].isfinite().all()
    assert heavy.quantile(1e-6)[0, 0] == -INF and heavy.quantile(1 - 1e-6).isfinite().all()
    for bad in [noisy, DrawsPosterior(values, p.log_weights, p.noise_std)]:
        with pytest.raises(UnsupportedError, match="finite draws and noise"):
            bad.quantile(0.5)


# Quantiles and densities


def test_quantile_of_draws_is_the_weighted_order_statistic(seed):
    p = make(seed, (3,), (3,), size=9, noise=None)
    w = full_weights(p)
    levels = torch.tensor([0.031, 0.4, 0.73, 0.999], dtype=torch.float64)
    result = p.quantile(levels)
    assert result.shape == (4, 3, 2, 2)
    for (k, level), index in itertools.product(enumerate(levels.tolist()), itertools.product(*map(range, (3, 2, 2)))):
        b, i, j = index
        value, mass = -INF, 0.0
        for draw, weight in sorted(zip(p.values[b, :, i, j].tolist(), w[b].tolist(), strict=True)):
            if mass < level:
                value = draw
            mass += weight
        assert result[(k, *index)].item() == value


@pytest.mark.parametrize("size", [3, 7, 10, 49, 200])
def test_quantile_at_the_jumps_of_equal_weights(size, seed):
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    p = DrawsPosterior(order.double().reshape(size, 1, 1))
    levels = torch.arange(1, size).double() / size
    assert p.quantile(levels).flatten().tolist() == list(range(size - 1))


def test_quantile_shapes_follow_the_level(posterior):
    levels = torch.tensor([[0.2, 0.5, 0.9]], dtype=torch.float64)
    result = posterior.quantile(levels)
    assert result.shape == (1, 3, *posterior._extended_shape())
    for k, level in enumerate([0.2, 0.5, 0.9]):
        torch.testing.assert_close(posterior.quantile(level), result[0, k], rtol=1e-12, atol=1e-14)
    assert (result.diff(dim=1) >= 0).all()


def test_quantile_of_noisy_draws_solves_the_distribution_function(seed):
    p = make(seed, (3,), (3,), size=5, noise="full")
    w = full_weights(p)
    levels = [1e-8, 0.05, 0.5, 0.9, 1 - 1e-6]
    result = p.quantile(torch.tensor(levels, dtype=torch.float64))
    for (k, level), index in itertools.product(enumerate(levels), itertools.product(*map(range, (3, 2, 2)))):
        b, i, j = index
        parts = stats.norm(p.values[b, :, i, j].numpy(), full_noise(p)[b, :, i, j].numpy())
        root = optimize.brentq(
            lambda y, b=b, parts=parts, level=level: w[b].numpy() @ parts.cdf(y) - level, -100, 100, xtol=1e-13
        )
        # Near 1 the distribution function itself is known to 1e-16 only.
        assert result[(k, *index)].item() == pytest.approx(root, rel=1e-10, abs=1e-9 if level > 0.99 else 1e-12)


@pytest.mark.parametrize("sd", [1e-12, 1e-3, 1.0])
@pytest.mark.parametrize("far", [10.0, 1e8])
def test_quantile_in_gaps_and_spikes(sd, far, seed):
    values = torch.tensor([0.0, 1.0, far], dtype=torch.float64).reshape(3, 1, 1)
    p = DrawsPosterior(values, torch.tensor([0.3, 0.7, 1e-13]).double().log(), torch.full((), sd, dtype=torch.float64))
    for level in [0.1, 0.3, 0.6, 0.99]:
        y = p.quantile(level).item()
        cdf = float(p.weights.numpy() @ stats.norm(values.flatten().numpy(), sd).cdf(y))
        density = p.density(y).item()
        assert cdf == pytest.approx(level, abs=1e-11 + 1e-11 * density * max(1.0, abs(y)))
        assert -10 * sd < y < 1 + 10 * sd


def test_quantile_in_single_precision(seed):
    p = make(seed, (20,), size=40)
    single = DrawsPosterior(p.values.float(), p.log_weights.float(), p.noise_std.float())
    for level in [0.01, 0.3, 0.5, 0.9]:
        assert single.quantile(level).dtype == torch.float32
        torch.testing.assert_close(single.quantile(level).double(), p.quantile(level), rtol=1e-5, atol=1e-5)


def test_quantile_is_differentiable(seed):
    p = make(seed, (2,), (2,), size=4, noise="full")

    def quantile(values, log_weights, noise_std):
        return DrawsPosterior(values, log_weights, noise_std).quantile(torch.tensor([0.2, 0.7]).double())

    given = [x.clone().requires_grad_() for x in (p.values, p.log_weights, p.noise_std)]
    assert torch.autograd.gradcheck(quantile, given, atol=1e-6)
    silent = DrawsPosterior(given[0], given[1])
    (gradient,) = torch.autograd.grad(silent.quantile(0.3).sum(), given[0])
    assert torch.equal(gradient, (given[0] == silent.quantile(0.3).unsqueeze(-3)).double())


def test_log_density_is_that_of_the_mixture(posterior):
    p, w = posterior, full_weights(posterior)
    if p.noise_std is None:
        for ask in [p.log_density, p.density]:
            with pytest.raises(UnsupportedError, match="observation_noise=True"):
                ask(0.0)
        return
    y = torch.randn(p._extended_shape(), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for index in itertools.product(*map(range, y.shape)):
        *b, i, j = index
        parts = stats.norm(p.values[(*b, slice(None), i, j)].numpy(), full_noise(p)[(*b, slice(None), i, j)].numpy())
        expected = float(w[tuple(b)].numpy() @ parts.pdf(y[index].item()))
        assert p.density(y)[index].item() == pytest.approx(expected, rel=1e-12)
        assert p.log_density(y)[index].item() == pytest.approx(math.log(expected), rel=1e-10, abs=1e-12)


def test_log_density_far_out_and_of_many_outcomes(seed):
    p = make(seed, (3,))
    assert p.log_density(1e6).isfinite().all() and (p.log_density(1e6) < -1e9).all()
    grid = torch.linspace(-40, 40, 4001, dtype=torch.float64)
    density = p.density(grid.reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2))
    assert density.shape == (4001, 3, 2, 2)
    torch.testing.assert_close(torch.trapezoid(density, grid, dim=0), torch.ones(3, 2, 2).double())
    row = torch.tensor([0.1, 0.2], dtype=torch.float64)
    assert torch.equal(p.log_density(row)[..., 1], p.log_density(0.2)[..., 1])


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


# What is refused


V = torch.zeros(2, 5, 3, 1)
BAD = {
    "values of two dimensions": ((torch.zeros(5, 1),), {}, ShapeError, r"batch x S x q x m.*values \(5, 1\)"),
    "no draw": ((torch.zeros(2, 0, 3, 1),), {}, ShapeError, r"S >= 1 draws.*\(2, 0, 3, 1\)"),
    "no tensor": (([1.0],), {}, DomainError, "values must be a floating-point tensor.* got values .*list"),
    "integers": ((V.long(),), {}, DomainError, "values must be a floating-point tensor.*torch.int64"),
    "NaN values": ((V.log() - V.log(),), {}, NonFiniteError, "values must not hold NaN"),
    "number of weights": ((V, torch.zeros(4)), {}, ShapeError, r"values \(2, 5, 3, 1\).*log_weights \(4,\)"),
    "batch of weights": ((V, torch.zeros(3, 5)), {}, ShapeError, r"log_weights \(3, 5\)"),
    "scalar weight": ((V, torch.zeros(())), {}, ShapeError, r"log_weights \(\)"),
    "NaN weights": ((V, torch.full((5,), math.nan)), {}, NonFiniteError, "log_weights must not hold NaN"),
    "infinite weights": ((V, torch.full((5,), INF)), {}, NonFiniteError, r"\+inf"),
    "all weights zero": (
        (V, torch.tensor([[0.0] * 5, [-INF] * 5])),
        {},
        DomainError,
        r"above -inf, got .*log_weights \(2, 5\)",
    ),
    "dtype of weights": ((V, torch.zeros(5).double()), {}, DomainError, "float32 cpu, log_weights .* torch.float64"),
    "negative noise": ((V, None, -torch.ones(())), {}, DomainError, "got a minimum of -1"),
    "NaN noise": ((V, None, torch.full((5, 1, 1), math.nan)), {}, NonFiniteError, "noise_std must not hold NaN"),
    "shape of noise": ((V, None, torch.ones(5, 1)), {}, ShapeError, r"noise_std \(5, 1\)"),
    "batch of noise": ((V, None, torch.ones(7, 1, 5, 1, 1)), {}, ShapeError, r"noise_std \(7, 1, 5, 1, 1\)"),
    "salt": ((V,), {"salt": "a"}, DomainError, "salt must be an integer"),
    "salt that is a truth value": ((V,), {"salt": True}, DomainError, "salt must be an integer"),
}


@pytest.mark.parametrize(("args", "kwargs", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        DrawsPosterior(*args, **kwargs)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, math.nan])
@pytest.mark.parametrize("noise", [None, "draw"])
def test_bad_levels(level, noise, seed):
    with pytest.raises(DomainError, match="strictly between 0 and 1"):
        make(seed, noise=noise).quantile(torch.tensor([0.5, level]))


def test_unknown_keywords_fail():
    with pytest.raises(TypeError):
        DrawsPosterior(V, weights=torch.ones(5))
