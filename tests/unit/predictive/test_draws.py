"""DrawsPosterior against formulas written out as loops, and scipy's root finder."""

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
from tests.unit.predictive.draws_cases import CASES, make

INF = math.inf


def full_noise(p: DrawsPosterior) -> Tensor:
    return p.noise_std.expand(p.values.shape)


def full_weights(p: DrawsPosterior) -> Tensor:
    return p.weights.expand(p.values.shape[:-2])


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
