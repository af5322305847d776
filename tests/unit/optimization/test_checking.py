"""Leaving rows out: closed forms and weights against fits that have not seen the row."""

from __future__ import annotations

import math
from dataclasses import replace

import gpytorch
import pytest
import torch
from scipy.stats import norm, spearmanr
from torch import Tensor

import probnn
from probnn.errors import DomainError
from probnn.inference.heldout import held_out_moments
from probnn.likelihoods import Gaussian
from probnn.optimization import checking
from probnn.optimization.checking import Check, cdf, check_model, draws_leave_one_out, gaussian_leave_one_out
from probnn.optimization.models import Data
from probnn.predictive import DrawsPosterior
from probnn.priors import BNNPrior, NormalWeights
from probnn.surrogates import Inferred, Surrogate, get_surrogate

UNIT = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.double)


def data(n: int, seed: int, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=g, dtype=torch.double)
    return X, (3 * X.sum(-1, keepdim=True)).sin() + noise * torch.randn(n, 1, generator=g, dtype=torch.double)


def without(X: Tensor, i: int) -> Tensor:
    return torch.cat([X[:i], X[i + 1 :]])


@pytest.mark.parametrize("known", [False, True])
def test_gaussian_processes_in_closed_form(known: bool, seed: int) -> None:
    """Against conditioning on the other rows, one by one."""
    X, Y = data(9, seed)
    variance = 0.01 + 0.1 * torch.rand(9, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    given = variance if known else torch.full_like(variance, 0.2**2)
    mean = gpytorch.means.ConstantMean()
    mean.initialize(constant=0.7)
    prior = probnn.GaussianProcess(gpytorch.kernels.RBFKernel(), mean, input_dim=2).to(dtype=torch.double)
    fit = probnn.Exact(optimize=False).fit
    full = fit(prior, Gaussian(noise=0.2), X, Y, noise_variance=variance if known else None)
    mu, v = gaussian_leave_one_out(full)
    for i in range(9):
        rest = fit(
            prior, Gaussian(noise=0.2), without(X, i), without(Y, i),
            noise_variance=without(variance, i) if known else None,
        )  # fmt: skip
        law = rest.predict(X[i : i + 1])
        assert float(mu[i]) == pytest.approx(law.mean.item(), abs=1e-9)
        assert float(v[i]) == pytest.approx(law.variance.item() + given[i].item(), rel=1e-7)


def test_the_registered_gp_in_units_of_the_data(seed: int) -> None:
    """Outcomes of any scale and place: the same verdict, means moved along."""
    X, Y = data(15, seed)
    gp = get_surrogate("gp")
    one = check_model(gp, gp.fit(X, Y, bounds=UNIT), Data(X, Y, None), UNIT)
    other = check_model(gp, gp.fit(X, 40 * Y + 300, bounds=UNIT), Data(X, 40 * Y + 300, None), UNIT)
    torch.testing.assert_close(other.mean, 40 * one.mean + 300, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(other.position, one.position, rtol=1e-3, atol=1e-3)
    assert one.rank_correlation == pytest.approx(spearmanr(one.mean, one.measured).statistic)


def linear() -> probnn.BayesianNetwork:
    """A linear model: everything about it is known in closed form, but for its noise."""
    net = probnn.MLP(input_dim=2, hidden=())
    return probnn.BayesianNetwork(net, NormalWeights(1.0, 1.0), dtype=torch.double)


def small() -> probnn.BayesianNetwork:
    return probnn.BayesianNetwork(probnn.MLP(input_dim=2, hidden=(8,)), NormalWeights(1.0, 1.0), dtype=torch.double)


def test_each_draw_leaves_rows_out_exactly(seed: int) -> None:
    """Given hidden units and noise the last layer is a Gaussian process; its rows one by one, by plain algebra."""
    X, Y = data(7, seed)
    posterior = probnn.HMC(num_chains=3, num_warmup=30, num_samples=4).fit(
        small(), Gaussian(noise_median=0.3), X, Y, seed=seed
    )
    mean, variance = held_out_moments(posterior, X, Y)
    network, theta = posterior.prior.network, posterior.theta.flatten(0, 1)
    noise = posterior.psi.flatten(0, 1).exp()
    for s in (0, 5, 11):
        blocks = network.layout.unflatten(theta[s])
        [first, bias, *_] = blocks.values()
        units = torch.tanh(X @ first.mT + bias)
        # Last layer: weights of variance 1 over the width, a bias of variance 1.
        K = units @ units.mT / 8 + 1 + noise[s] ** 2 * torch.eye(7, dtype=torch.double)
        for i in (0, 3):
            rest = [j for j in range(7) if j != i]
            solved = torch.linalg.solve(K[rest][:, rest], torch.stack([Y[rest, 0], K[rest, i]], -1))
            assert mean[s, i, 0].item() == pytest.approx((K[i, rest] @ solved[:, 0]).item(), abs=1e-9)
            assert variance[s, i, 0].item() == pytest.approx((K[i, i] - K[i, rest] @ solved[:, 1]).item(), rel=1e-8)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_weighted_draws_against_fits_without_the_row(temperature: float, seed: int) -> None:
    """Bayesian linear regression with known noise: draws of all weights, and the predictive in closed form."""
    X, Y = data(12, seed, noise=0.5)
    method = probnn.HMC(num_chains=8, num_warmup=100, num_samples=200, temperature=temperature)
    posterior = method.fit(linear(), Gaussian(noise=0.5), X, Y, seed=seed)
    mean, position, k = draws_leave_one_out(posterior, X, Y)
    F = torch.cat([X / math.sqrt(2), torch.ones(12, 1, dtype=torch.double)], -1)  # fan-in scaling
    # N(y; f, v)^(1/T) says about f what N(y; f, T v) does; new outcomes keep their v.
    K = F @ F.mT + temperature * 0.25 * torch.eye(12, dtype=torch.double)
    for i in range(12):
        rest = [j for j in range(12) if j != i]
        solved = torch.linalg.solve(K[rest][:, rest], torch.stack([Y[rest, 0], K[rest, i]], -1))
        exact, variance = (K[i, rest] @ solved[:, 0]).item(), (K[i, i] - K[i, rest] @ solved[:, 1]).item()
        variance += (1 - temperature) * 0.25
        assert k[i] < 0.7
        # 1600 draws: five standard errors of three hundred effective ones.
        error = math.sqrt((variance - 0.25) / 300)
        assert mean[i].item() == pytest.approx(exact, abs=5 * error)
        z = (Y[i, 0].item() - exact) / math.sqrt(variance)
        # The distribution function moves with the mean by its density, and with the variance little more.
        assert position[i].item() == pytest.approx(norm.cdf(z), abs=8 * error * norm.pdf(0) / math.sqrt(variance))


QUICK = probnn.HMC(num_chains=8, num_warmup=40, num_samples=16, max_leapfrog=8, collapse_last_layer=True)
SMALL = Surrogate(Inferred(BNNPrior(hidden=(10,)), Gaussian(noise_median=0.1, noise_spread=0.5), QUICK))


@pytest.mark.filterwarnings("ignore::probnn.errors.ConvergenceWarning", "ignore::probnn.errors.DivergenceWarning")
def test_networks_by_weights_and_fits(seed: int) -> None:
    """The check of a network agrees with leaving out rows in turn, as far as two short chains agree."""
    X, Y = data(16, seed)
    check = check_model(SMALL, SMALL.fit(X, Y, bounds=UNIT, seed=seed), Data(X, Y, None), UNIT, seed=seed)
    brute, rows = [], [0, 4, 8, 12]
    for i in rows:
        model = SMALL.fit(without(X, i), without(Y, i), bounds=UNIT, seed=seed + 1)
        brute.append(model.posterior(X[i : i + 1]).mean.item())
    off = (check.mean[rows] - torch.tensor(brute, dtype=torch.double)).abs()
    assert float(off.mean()) < 0.3 * float(Y.std())
    assert check.predicts
    assert "Pareto-smoothed weights" in check.method


@pytest.mark.filterwarnings("ignore::probnn.errors.ConvergenceWarning", "ignore::probnn.errors.DivergenceWarning")
def test_fits_on_two_threads_are_those_on_one(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    threads, before = torch.get_num_threads(), torch.get_rng_state()
    X, Y = data(12, seed)
    model = SMALL.fit(X, Y, bounds=UNIT, seed=seed)
    found = []
    try:
        torch.set_num_threads(1)
        for cores in (1, 2):
            monkeypatch.setattr(checking, "_cores", lambda cores=cores: cores)
            found.append(checking._refitted(SMALL, Data(X, Y, None), UNIT, seed, torch.arange(12), model))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    assert torch.equal(before, torch.get_rng_state())


def test_other_methods_are_refitted() -> None:
    """Five fits that have not seen the row: a model that memorises its data is found out."""
    X, Y = data(20, 0)
    shuffled = Y[torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    ensemble = replace(get_surrogate("ensemble"), build=replace(
        get_surrogate("ensemble").build, method=probnn.DeepEnsemble(size=4, anchored=True)
    ))  # fmt: skip
    good = check_model(ensemble, ensemble.fit(X, Y, bounds=UNIT), Data(X, Y, None), UNIT)
    bad = check_model(ensemble, ensemble.fit(X, shuffled, bounds=UNIT), Data(X, shuffled, None), UNIT)
    assert good.num_refitted == 20
    assert good.predicts
    assert not bad.predicts
    assert "does not yet predict the data (y)" in bad.sentences("y")[1]


def test_known_noise_counts_in_refits() -> None:
    X, Y = data(20, 0)
    laplace = get_surrogate("laplace")
    small = replace(laplace, build=replace(laplace.build, prior=BNNPrior(hidden=(5,), scale_prior=None)))
    found = []
    for sd in (0.05, 50.0):
        rows = Data(X, Y, torch.full_like(Y, sd**2))
        found.append(check_model(small, small.fit(X, Y, rows.Yvar, bounds=UNIT), rows, UNIT))
    # With noise far above the spread every outcome lies in the middle of what was predicted.
    assert float((found[1].position - 0.5).abs().max()) < 0.05 < float((found[0].position - 0.5).abs().max())


def test_the_verdict_by_hand() -> None:
    y = torch.arange(10, dtype=torch.double)
    position = torch.tensor([0.01, 0.05, 0.5, 0.5, 0.5, 0.5, 0.5, 0.949, 0.951, 0.99], dtype=torch.double)
    perfect = Check(y, y.square(), position, "m")
    assert perfect.rank_correlation == pytest.approx(1.0)
    assert perfect.coverage() == pytest.approx(0.7)
    assert perfect.sentences("y") == ["y: leave-one-out rank correlation 1.00, 90 % intervals hold 70 % of 10 rows (m)"]
    narrow = Check(y, y, torch.zeros(10, dtype=torch.double), "m")
    assert narrow.sentences("y")[1:] == ["the model is too sure of itself (y): its intervals are too narrow"]
    assert math.isnan(Check(y, torch.ones(10, dtype=torch.double), position, "m").rank_correlation)
    assert not Check(y, torch.ones(10, dtype=torch.double), position, "m").predicts
    assert not Check(y, -y, position, "m").predicts


def test_distribution_functions() -> None:
    values = torch.tensor([0.0, 1.0, 2.0], dtype=torch.double).reshape(3, 1, 1)
    assert cdf(DrawsPosterior(values), 1.0).item() == pytest.approx(2 / 3)
    noisy = DrawsPosterior(values, None, torch.tensor(0.5, dtype=torch.double).expand(3, 1, 1))
    assert cdf(noisy, 0.7).item() == pytest.approx(sum(norm.cdf((0.7 - m) / 0.5) for m in range(3)) / 3)


def test_too_few_rows() -> None:
    X, Y = data(4, 0)
    gp = get_surrogate("gp")
    with pytest.raises(DomainError, match="at least 5 measured rows"):
        check_model(gp, gp.fit(X, Y, bounds=UNIT), Data(X, Y, None), UNIT)
