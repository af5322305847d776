"""The mixture likelihood against loops, Pyro, automatic differentiation and simulation."""

from __future__ import annotations

import math

import pytest
import torch

import probnn
from probnn import moe
from probnn import random as rnd
from probnn.errors import DomainError, ShapeError
from probnn.inference.curvature import information
from tests.cases import DOUBLE, data

NONE = torch.zeros(1, 0, dtype=DOUBLE)


def channels(K: int, m: int, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = rnd.generator_from(seed)
    f = rnd.normal((n, K * (1 + 2 * m)), generator=generator, dtype=DOUBLE)
    return f, rnd.normal((n, m), generator=generator, dtype=DOUBLE)


@pytest.mark.parametrize(("K", "m"), [(1, 1), (2, 3), (3, 2)])
def test_density_and_moments_against_loops(K: int, m: int, seed: int) -> None:
    f, Y = channels(K, m, 5, seed)
    likelihood = moe.GaussianMixture(K)
    density, (mean, variance) = likelihood.log_prob(Y, f, NONE), likelihood.moments(f, NONE)
    for row in range(5):
        weights = [math.exp(f[row, i]) for i in range(K)]
        total, first, second = 0.0, [0.0] * m, [0.0] * m
        for i in range(K):
            p = weights[i] / sum(weights)
            product = p
            for j in range(m):
                h, v = f[row, K + i * m + j].item(), math.exp(f[row, K + K * m + i * m + j])
                product *= math.exp(-((Y[row, j].item() - h) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
                first[j] += p * h
                second[j] += p * (v + h * h)
            total += product
        assert density[row].item() == pytest.approx(math.log(total), rel=1e-12)
        assert mean[row].tolist() == pytest.approx(first, rel=1e-12)
        assert variance[row].tolist() == pytest.approx([s - a * a for s, a in zip(second, first, strict=True)])


def test_pyro_has_the_same_moments(seed: int) -> None:
    f, _ = channels(3, 2, 6, seed)
    likelihood = moe.GaussianMixture(3)
    law = likelihood.distribution(f, NONE)
    mean, variance = likelihood.moments(f, NONE)
    torch.testing.assert_close(law.mean, mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(law.variance, variance, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("noise", ["channels", "fixed", "known"])
def test_gradient_against_autograd(noise: str, seed: int) -> None:
    f, Y = channels(3, 2, 7, seed)
    f[0, :3] = torch.tensor([800.0, 0.0, -800.0])  # experts without any weight
    f[1, 3:9], Y[2] = 40.0, 30.0  # and outcomes far from all of them
    likelihood = moe.GaussianMixture(3, noise=0.4 if noise == "fixed" else None)
    known = rnd.uniform(Y.shape, generator=rnd.generator_from(seed), dtype=DOUBLE) + 0.1 if noise == "known" else None
    leaf = f.clone().requires_grad_(True)
    value = likelihood.log_prob(Y, leaf, NONE, known).sum()
    (expected,) = torch.autograd.grad(value, leaf)
    found, gradient, _ = likelihood.log_prob_and_grad(Y, f, NONE, known)
    torch.testing.assert_close(found, value.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
    if noise != "channels":
        assert (gradient[:, 9:] == 0).all()
        psd = information(likelihood, Y, f, NONE[0], known)
        jacobian = torch.stack([
            torch.autograd.grad(likelihood.moments(leaf, NONE)[0][:, j].sum(), leaf)[0] for j in range(2)
        ], -2)  # fmt: skip
        variance = torch.full_like(Y, 0.16) if known is None else known
        torch.testing.assert_close(psd, torch.einsum("njc,nj,njd->ncd", jacobian, 1 / variance, jacobian))


def test_known_noise_is_around_the_regression_function(seed: int) -> None:
    f, Y = channels(2, 1, 4, seed)
    known = torch.full_like(Y, 0.3)
    likelihood = moe.GaussianMixture(2)
    mean = likelihood.moments(f, NONE)[0]
    expected = torch.distributions.Normal(mean, 0.3**0.5).log_prob(Y).squeeze(-1)
    torch.testing.assert_close(likelihood.log_prob(Y, f, NONE, known), expected)
    given = likelihood.given_noise(known)
    torch.testing.assert_close(given.log_prob(Y, f, NONE), expected)
    torch.testing.assert_close(given.moments(f, NONE)[1], known)
    assert given.predictive(f, NONE, None) is None
    assert moe.GaussianMixture(2, noise=0.1).given_noise(known).noise == 0.1
    with pytest.raises(ShapeError, match="one noise"):
        moe.GaussianMixture(2, noise=torch.ones(3)).check_outcomes("here", Y)


def test_fisher_information_on_a_fine_grid(seed: int) -> None:
    """Of one outcome, with experts of very different widths."""
    f, _ = channels(3, 1, 8, seed)
    f[0, 6:] = torch.tensor([-8.0, 0.0, 2.0])
    likelihood = moe.GaussianMixture(3)
    found = information(likelihood, f[:, :1], f, NONE[0])
    y = torch.linspace(-40, 40, 160_001, dtype=DOUBLE).unsqueeze(-1)
    for row in range(8):
        at = f[row].expand(len(y), -1)
        score, mass = likelihood.score(y, at), likelihood.log_prob(y, at, NONE).exp() * (y[1] - y[0])
        expected = (score * mass.unsqueeze(-1)).mT @ score
        assert (found[row] - expected).abs().max() < 2e-3 * expected.abs().max()
        assert torch.linalg.eigvalsh(found[row]).min() > -1e-10


def test_fisher_information_by_simulation(seed: int) -> None:
    """Of two outcomes, with experts of similar widths."""
    f, _ = channels(2, 2, 1, seed)
    f[:, 6:] *= 0.2
    likelihood, n = moe.GaussianMixture(2), 40_000
    Y = likelihood.sample(f.expand(n, -1), NONE, generator=rnd.generator_from(seed))
    score = likelihood.log_prob_and_grad(Y.unsqueeze(-2), f.expand(n, 1, -1), NONE.expand(n, 1, 0))[1].squeeze(-2)
    products = score.unsqueeze(-1) * score.unsqueeze(-2)
    found = information(likelihood, Y[:1], f, NONE[0])[0]
    bound = 5 * products.std(0) / n**0.5 + 1e-3  # the rule has an error of its own
    assert ((products.mean(0) - found).abs() <= bound).all()
    assert torch.linalg.eigvalsh(found).min() > -1e-12


def test_fisher_information_of_one_expert_is_exact() -> None:
    f = torch.tensor([[0.7, 2.0, math.log(0.25)]], dtype=DOUBLE)
    found = information(moe.GaussianMixture(1), f[:, 1:2], f, NONE[0])[0]
    torch.testing.assert_close(found, torch.diag(torch.tensor([0.0, 4.0, 0.5], dtype=DOUBLE)), rtol=1e-9, atol=1e-9)
    two = torch.tensor([[0.7, 2.0, -1.0, math.log(0.25), 0.0]], dtype=DOUBLE)
    found = information(moe.GaussianMixture(1), two[:, 1:3], two, NONE[0])[0]
    expected = torch.diag(torch.tensor([0.0, 4.0, 1.0, 0.5, 0.5], dtype=DOUBLE))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    known = torch.full((1, 1), 0.5, dtype=DOUBLE)
    found = information(moe.GaussianMixture(1), f[:, 1:2], f, NONE[0], known)[0]
    torch.testing.assert_close(found, torch.diag(torch.tensor([0.0, 2.0, 0.0], dtype=DOUBLE)), rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore::probnn.errors.DivergenceWarning")
@pytest.mark.filterwarnings("ignore::probnn.errors.ConvergenceWarning")
def test_a_network_becomes_a_mixture_density_network() -> None:
    net = probnn.MLP(input_dim=2, hidden=(4,), output_dim=6)
    prior = probnn.BayesianNetwork(net, probnn.priors.NormalWeights(), dtype=DOUBLE)
    X, Y = data()
    posterior = probnn.HMC(num_chains=2, num_warmup=10, num_samples=5).fit(prior, moe.GaussianMixture(2), X, Y)
    assert posterior.predict(X).mean.shape == (8, 1) and posterior.predict(X).mean.isfinite().all()


def test_bad_channels_are_named() -> None:
    for count in (2, 4, 5, 8):  # two experts have 6, 10, ... channels
        with pytest.raises(DomainError, match=f"got {count}"):
            moe.GaussianMixture(2).outcomes(count)
    for bad in (0, 1.5, True):
        with pytest.raises(DomainError, match="num_experts"):
            moe.GaussianMixture(bad)  # type: ignore[arg-type]
    with pytest.raises(DomainError, match="noise"):
        moe.GaussianMixture(2, noise=-1.0)
