"""HMC against laws that are known exactly, within Monte Carlo errors."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn import random as rnd
from probnn.diagnostics import ess, mcse, rhat, sbc
from probnn.networks import Block, Layout
from probnn.process import ParametricProcess
from tests.cases import DOUBLE, data, network


@dataclass(frozen=True, eq=False)
class CorrelatedCoordinates(ParametricProcess):
    """f(x) = x . theta with theta normal, neighbours correlated by `correlation`."""

    size: int
    correlation: float
    dtype: torch.dtype = DOUBLE
    device: torch.device = torch.device("cpu")
    output_dim: int = 1

    @property
    def input_dim(self) -> int:
        return self.size

    @property
    def layout(self) -> Layout:
        return Layout((Block("theta", (self.size,)),))

    @property
    def covariance(self) -> Tensor:
        i = torch.arange(self.size, dtype=DOUBLE)
        return self.correlation ** (i[:, None] - i).abs() * (1 + i[:, None]) * (1 + i)

    def _sample_parameters(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        z = rnd.normal((*shape, self.size), generator=generator, dtype=DOUBLE)
        return z @ torch.linalg.cholesky(self.covariance).mT

    def _log_prob(self, theta: Tensor) -> Tensor:
        return torch.distributions.MultivariateNormal(torch.zeros(self.size, dtype=DOUBLE), self.covariance).log_prob(
            theta
        )

    def _apply(self, theta: Tensor, X: Tensor) -> Tensor:
        return X @ theta.unsqueeze(-1)


@pytest.mark.parametrize("size", [2, 20])
def test_correlated_normal_target(size: int, seed: int) -> None:
    """Mean and covariance of a normal of correlation .95 (the data say nothing: their noise is huge)."""
    process = CorrelatedCoordinates(size, 0.95)
    X, Y = torch.ones(1, size, dtype=DOUBLE), torch.zeros(1, 1, dtype=DOUBLE)
    posterior = probnn.HMC(num_chains=16, num_warmup=200, num_samples=300).fit(
        process, likelihoods.Gaussian(noise=1e9), X, Y, seed=seed
    )
    theta = posterior.theta
    assert rhat(theta).max() < 1.02
    assert (theta.mean((0, 1)).abs() <= 5 * mcse(theta)).all()
    products = theta.unsqueeze(-1) * theta.unsqueeze(-2)
    assert ((products.mean((0, 1)) - process.covariance).abs() <= 5 * mcse(products)).all()
    assert abs(posterior.info.acceptance - 0.8) < 0.05 and posterior.info.divergences == 0


def test_linear_regression(seed: int) -> None:
    """The conjugate posterior of a linear network."""
    prior = network(priors.NormalWeights(1.3, 0.7), hidden=())
    X, Y = data(20, seed=seed)
    # So long that five per cent of a standard deviation are six of its Monte Carlo errors.
    posterior = probnn.HMC(num_chains=16, num_warmup=300, num_samples=1000).fit(
        prior, likelihoods.Gaussian(noise=0.3), X, Y, seed=seed
    )
    A = torch.cat([X, torch.ones_like(X[:, :1])], -1)
    precision = A.T @ A / 0.3**2 + torch.diag(1 / torch.tensor([1.3**2 / 2, 1.3**2 / 2, 0.49], dtype=DOUBLE))
    covariance = torch.linalg.inv(precision)
    exact = (covariance @ A.T @ Y / 0.3**2).squeeze(-1)
    theta = posterior.theta
    assert ((theta.mean((0, 1)) - exact).abs() <= 5 * mcse(theta)).all()
    sd, expected = theta.std((0, 1)), covariance.diagonal().sqrt()
    assert ((sd - expected).abs() <= 5 * mcse(theta, kind="sd")).all()
    assert (sd / expected - 1).abs().max() < 0.05
    # All entries, in units of the standard deviations: exact ones near 0 have no relative error.
    error = (torch.cov(theta.flatten(0, 1).mT) - covariance) / (expected[:, None] * expected)
    assert error.abs().max() < 0.1


def test_an_inferred_noise(seed: int) -> None:
    """The marginal posterior of the log noise against quadrature over it (theta integrated out in closed form)."""
    prior, likelihood = network(priors.NormalWeights(), hidden=()), likelihoods.Gaussian(noise_median=0.3)
    X, Y = data(12, seed=seed)
    posterior = probnn.HMC(num_chains=8, num_warmup=300, num_samples=500).fit(prior, likelihood, X, Y, seed=seed)
    A = torch.cat([X, torch.ones_like(X[:, :1])], -1) * torch.tensor([0.5**0.5, 0.5**0.5, 1.0], dtype=DOUBLE)
    grid = torch.linspace(-5, 2, 4001, dtype=DOUBLE)
    K = A @ A.T + (2 * grid).exp()[:, None, None] * torch.eye(12, dtype=DOUBLE)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(12, dtype=DOUBLE), K).log_prob(Y.squeeze(-1))
    weights = (evidence + likelihood.log_prior(grid.unsqueeze(-1))).softmax(0)
    mean = (weights * grid).sum()
    sd = (weights * (grid - mean) ** 2).sum().sqrt()
    psi = posterior.psi
    assert (psi.mean() - mean).abs() <= 5 * mcse(psi).item()
    assert (psi.std() - sd).abs() <= 5 * mcse(psi, kind="sd").item()


def test_settings_agree_on_a_small_network(seed: int) -> None:
    """Another number of chains, step size and trajectory, or no last layer: the same posterior of the function."""
    X, Y = data(8, 1, seed=seed)
    prior = network(input_dim=1, hidden=(3,))
    settings = (
        probnn.HMC(num_chains=32, num_warmup=300, num_samples=150),
        probnn.HMC(num_chains=8, num_warmup=300, num_samples=600, target_accept=0.9, max_leapfrog=30),
        probnn.HMC(num_chains=16, num_warmup=200, num_samples=200, collapse_last_layer=True),
    )
    Z = torch.linspace(-1.2, 1.2, 5, dtype=DOUBLE).unsqueeze(-1)
    values = [s.fit(prior, likelihoods.Gaussian(noise=0.3), X, Y, seed=seed + i) for i, s in enumerate(settings)]
    f = [posterior.apply(posterior.theta, Z).squeeze(-1) for posterior in values]
    assert all(rhat(v).max() < 1.05 and ess(v).min() > 100 for v in f)
    for other in f[1:]:
        error = (mcse(f[0]) ** 2 + mcse(other) ** 2).sqrt()
        assert ((f[0].mean((0, 1)) - other.mean((0, 1))).abs() <= 5 * error).all()
        error = (mcse(f[0], kind="sd") ** 2 + mcse(other, kind="sd") ** 2).sqrt()
        assert ((f[0].std((0, 1)) - other.std((0, 1))).abs() <= 5 * error).all()


@pytest.mark.parametrize(("noise", "collapse"), [(0.3, False), (None, False), (None, True)])
def test_simulation_based_calibration(noise: float | None, collapse: bool, seed: int) -> None:
    """Ranks of the truth are uniform: 200 data sets of a 1-5-1 network, all in one batch of chains."""
    prior = network(input_dim=1, hidden=(5,))
    X = torch.linspace(-1, 1, 10, dtype=DOUBLE).unsqueeze(-1)
    Z = torch.tensor([[-0.5], [0.8]], dtype=DOUBLE)
    likelihood = likelihoods.Gaussian(noise=noise, noise_median=0.3, noise_spread=0.5)
    method = probnn.HMC(num_chains=4, num_warmup=150, num_samples=150, collapse_last_layer=collapse)
    result = sbc(prior, likelihood, method, X, Z, num_replications=200, num_draws=92, seed=seed)
    assert result.p_value(bins=31) > 1e-3
