"""Draws whose noise is exactly zero: outcomes that are certain."""

from __future__ import annotations

import math

import pytest
import torch
from botorch.sampling import SobolQMCNormalSampler
from scipy import stats

import probnn
from probnn import likelihoods
from probnn.errors import UnsupportedError
from probnn.predictive import DrawsPosterior, DrawsSampler
from probnn.predictive.mixture import root
from tests.cases import DOUBLE, network

VALUES = torch.tensor([-1.0, 0.0, 0.5, 2.0], dtype=DOUBLE).reshape(4, 1, 1)
WEIGHTS = torch.tensor([0.2, 0.3, 0.1, 0.4], dtype=DOUBLE)
NOISE = torch.tensor([0.5, 0.0, 0.0, 0.3], dtype=DOUBLE).reshape(4, 1, 1)


def mixed(values: torch.Tensor = VALUES, noise: torch.Tensor = NOISE) -> DrawsPosterior:
    return DrawsPosterior(values, WEIGHTS.log(), noise)


def cdf(y: float) -> float:
    parts = stats.norm([-1.0, 2.0], [0.5, 0.3]).cdf(y)
    return 0.2 * parts[0] + 0.4 * parts[1] + 0.3 * (y >= 0) + 0.1 * (y >= 0.5)


@pytest.mark.parametrize("level", [0.01, 0.15, 0.199, 0.21, 0.4, 0.497, 0.55, 0.59, 0.61, 0.8, 0.999])
def test_quantiles_of_noise_and_point_masses(level: float) -> None:
    """inf{y: P(Y <= y) >= p}: a point mass where the distribution function jumps over p, a root elsewhere."""
    y = mixed().quantile(level).item()
    jumps = [at for at in (0.0, 0.5) if cdf(math.nextafter(at, -1)) < level <= cdf(at)]
    assert y == jumps[0] if jumps else cdf(y) == pytest.approx(level, abs=1e-12)


def test_quantiles_follow_the_draw_they_are() -> None:
    values = VALUES.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(mixed(values).quantile(0.4).sum(), values)
    assert slope.flatten().tolist() == [0.0, 1.0, 0.0, 0.0]
    (slope,) = torch.autograd.grad(mixed(values).quantile(0.8).sum(), values)
    assert slope.isfinite().all() and slope.sum().item() == pytest.approx(1.0)


def test_no_noise_anywhere_is_noise_free() -> None:
    """At one of two points all draws are certain: the order statistics there, the mixture at the other."""
    values, noise = VALUES.expand(4, 2, 1), torch.cat([0 * NOISE, NOISE + 0.1], 1)
    silent, levels = DrawsPosterior(VALUES, WEIGHTS.log()), torch.tensor([0.2, 0.5, 0.6, 0.9], dtype=DOUBLE)
    both = DrawsPosterior(values, WEIGHTS.log(), noise)
    assert torch.equal(both.quantile(levels)[:, :1], silent.quantile(levels))
    noisy = DrawsPosterior(VALUES, WEIGHTS.log(), NOISE + 0.1)
    torch.testing.assert_close(both.quantile(levels)[:, 1:], noisy.quantile(levels))


def test_moments_and_samples() -> None:
    p, silent = mixed(), DrawsPosterior(VALUES, WEIGHTS.log())
    extra = (WEIGHTS * NOISE.flatten().square()).sum().item()
    assert p.variance.item() == pytest.approx(silent.variance.item() + extra)
    assert p.covariance.item() == pytest.approx(p.variance.item())
    certain = DrawsPosterior(VALUES, WEIGHTS.log(), torch.zeros(()).double())
    for sampler in (DrawsSampler(torch.Size([64]), seed=0), SobolQMCNormalSampler(torch.Size([64]), seed=0)):
        assert torch.isin(sampler(certain), VALUES).all()
    assert torch.isin(certain.rsample(torch.Size([50])), VALUES).all()


def test_a_point_mass_has_no_density() -> None:
    for call in (mixed().density, mixed().log_density):
        with pytest.raises(UnsupportedError, match="point masses and have no density"):
            call(0.3)
    unweighted = DrawsPosterior(VALUES, torch.tensor([0.0, -math.inf, -math.inf, 0.0]).double(), NOISE)
    assert unweighted.density(2.0).item() == pytest.approx(0.5 * stats.norm([-1, 2], [0.5, 0.3]).pdf(2.0).sum())


def test_the_root_of_zero_has_no_slope() -> None:
    variance = torch.tensor([0.0, 4.0, math.inf], dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(root(variance)[:2].sum(), variance)
    assert slope[:2].tolist() == [0.0, 0.25] and root(variance).tolist() == [0.0, 2.0, math.inf]


@pytest.mark.parametrize(
    ("likelihood", "scale", "dtype"),
    [(likelihoods.Categorical(3), 3e3, DOUBLE), (likelihoods.Bernoulli(), 3e3, DOUBLE),
     (likelihoods.Poisson(), 3e2, torch.float32), (likelihoods.Heteroscedastic(), 3e2, torch.float32)],
    ids=lambda x: type(x).__name__,
)  # fmt: skip
def test_certain_outcomes_are_predicted(likelihood: likelihoods.Likelihood, scale: float, dtype: torch.dtype) -> None:
    """Draws so far out that a variance rounds to zero."""
    c = likelihood.channels(1)
    prior = network(hidden=(), output_dim=c).to(dtype=dtype)
    theta = torch.zeros(1, 5, prior.num_parameters, dtype=dtype)
    theta[..., : 2 * c] = scale * torch.linspace(-1, 1, 10 * c).to(dtype).reshape(5, 2 * c)
    theta[..., -c:] = -scale * (1 + torch.arange(c))
    process = probnn.EmpiricalProcess(prior, theta, theta.new_zeros(1, 5, 0), likelihood)
    X = torch.full((2, 2), -0.2, dtype=dtype, requires_grad=True)
    prediction = process.predict(X, observation_noise=True)
    assert (prediction.noise_std == 0).any() and not prediction.noise_std.isnan().any()
    assert prediction.mean.isfinite().all() and prediction.rsample(torch.Size([3])).shape == (3, *prediction.mean.shape)
    finite = prediction.variance.isfinite()
    (slope,) = torch.autograd.grad(prediction.variance[finite].sum(), X)
    assert slope.isfinite().all()
