"""The last layer integrated out: densities, gradients, and the draws that complete them."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn import random as rnd
from probnn.errors import UnsupportedError
from probnn.inference.collapsed import CollapsedTarget, _marginal
from probnn.process import BayesianNetwork
from tests.cases import DOUBLE, module

SCALES = ((1.5, 0.7, 1.2), (0.5, 0.6, 0.3))
WEIGHTS = {
    "normal": priors.NormalWeights(*SCALES),
    "hierarchical": priors.HierarchicalWeights(*SCALES),
    "inverse gamma": priors.InverseGammaWeights((3.0, 2.0, 1.5), (1.0, 0.5, 1.5), 2.0, 0.3),
}
WEIGHTS_ONE = {
    "normal": priors.NormalWeights(0.7, 1.0),
    "hierarchical": priors.HierarchicalWeights(0.7, 1.0),
    "inverse gamma": priors.InverseGammaWeights(),
}
NOISES = {
    "fixed": likelihoods.Gaussian(noise=0.3),
    "inferred": likelihoods.Gaussian(),
    "one an outcome": likelihoods.Gaussian(levels=2),
}


def setting(
    weights: str, n: int, noise: str, seed: int, known: bool = False, hidden: tuple[int, ...] = (6, 5)
) -> tuple[CollapsedTarget, Tensor]:
    g = rnd.generator_from(seed)
    prior = BayesianNetwork(probnn.MLP(input_dim=3, hidden=hidden, output_dim=2), WEIGHTS[weights], dtype=DOUBLE)
    X, Y = (rnd.normal((n, k), generator=g, dtype=DOUBLE) for k in (3, 2))
    variance = 0.1 + rnd.uniform((n, 2), generator=g, dtype=DOUBLE) if known else None
    target = CollapsedTarget(prior, NOISES[noise], X, Y, variance)
    z = target.start((3,), g)
    return target, z + 0.1 * rnd.normal(z.shape, generator=g, like=z)


def linear_model(target: CollapsedTarget, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For one z, by brute force: theta without a last layer, d f / d(last layer), its prior sd, the noise variances."""
    prior, m = target.prior, target.Y.shape[-1]
    rest, psi = target.split(z)
    theta = prior.sample_parameters(generator=rnd.generator_from(0)) * 0
    names = {b.name: s for b, s in prior.layout.slices()}
    last = [max((k for k in names if k.endswith(kind)), key=lambda k: names[k].start) for kind in ("weight", "bias")]
    mask = torch.ones(len(theta), dtype=torch.bool)
    for name in last:
        mask[names[name]] = False
    theta[mask] = rest

    def f(coefficients: Tensor) -> Tensor:
        full = theta.clone()
        full[~mask] = coefficients
        return prior.apply(full, target.X).mT.flatten()

    k = int((~mask).sum())
    rows = torch.eye(k, dtype=DOUBLE)
    J = torch.stack([f(row) - f(0 * row) for row in rows], -1)
    weights = prior.weight_prior  # type: ignore[attr-defined]
    sd = torch.ones(k, dtype=DOUBLE)
    if isinstance(weights, priors.NormalWeights):
        sd = weights.scales(prior.network.layout, theta)[~mask]  # type: ignore[attr-defined]
    if target.noise_variance is not None:
        variance = target.noise_variance.mT.flatten()
    else:
        std = target.likelihood.constrain(psi)["noise"] if len(psi) else torch.tensor([0.3], dtype=DOUBLE)
        variance = (
            std.square().reshape(-1, 1).expand(m if std.numel() == m else 1, len(target.X)).expand(m, -1).flatten()
        )
    return theta, J, sd, variance


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("noise", [*NOISES, "known"])
@pytest.mark.parametrize("n", [4, 6, 20])  # fewer rows than units (5 and a bias), as many, more
def test_value_and_gradient(weights: str, noise: str, n: int, seed: int) -> None:
    """The density is that of y ~ N(0, J S J' + D), outcome by outcome stacked; slopes by finite differences."""
    target, z = setting(weights, n, "fixed" if noise == "known" else noise, seed, noise == "known")
    value, gradient = target.value_and_grad(z)
    y = target.Y.mT.flatten()
    for at, found in zip(z, value, strict=True):
        theta, J, sd, variance = linear_model(target, at)
        cov = (J * sd.square()) @ J.mT + variance.diag()
        zero = torch.zeros_like(sd)
        of_last = torch.distributions.Normal(zero, sd).log_prob(zero).sum()
        expected = torch.distributions.MultivariateNormal(torch.zeros_like(y), cov).log_prob(y)
        expected = expected + target.prior.log_prob(theta) - of_last + target.likelihood.log_prior(target.split(at)[1])
        assert abs(found - expected) <= 1e-9 * max(1.0, abs(expected.item()))
    h = 1e-5
    for j in range(target.size):
        shift = h * torch.eye(target.size, dtype=DOUBLE)[j]
        slope = (target.value_and_grad(z + shift)[0] - target.value_and_grad(z - shift)[0]) / (2 * h)
        assert (gradient[:, j] - slope).abs().max() <= 1e-6 * gradient.abs().max()


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("n", [4, 20])
def test_the_last_layer_follows_its_posterior(weights: str, n: int, seed: int) -> None:
    """Mean and covariance of completed draws against the conjugate posterior of the linear model."""
    target, z = setting(weights, n, "one an outcome", seed)
    draws = 20_000
    theta, psi = target.complete(z[0].expand(draws, -1), rnd.generator_from(seed))
    full, J, sd, variance = linear_model(target, z[0])
    free = full == 0
    drawn = theta[:, free]
    assert drawn.shape[-1] == len(sd) and (theta[:, ~free] == full[~free]).all()
    assert (psi == target.split(z[0])[1]).all()
    precision = (J.mT / variance) @ J + (1 / sd.square()).diag()
    cov = torch.linalg.inv(precision)
    mean = cov @ (J.mT @ (target.Y.mT.flatten() / variance))
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(cov), (drawn - mean).mT, upper=False).mT
    assert (white.mean(0).abs() <= 5 / draws**0.5).all()
    products = white.mT @ white / draws - torch.eye(len(sd), dtype=DOUBLE)
    assert (products.abs() <= 5 * (2 / draws) ** 0.5).all()


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("n", [1, 4])
def test_fewer_rows_than_inputs(weights: str, n: int, seed: int) -> None:
    """Along what the rows span nothing changes; across it, completed draws are the prior's."""
    g, d = rnd.generator_from(seed), 7
    prior = BayesianNetwork(probnn.MLP(input_dim=d, hidden=(6, 5), output_dim=2), WEIGHTS[weights], dtype=DOUBLE)
    X, Y = (rnd.normal((n, k), generator=g, dtype=DOUBLE) for k in (d, 2))
    wide = CollapsedTarget(prior, NOISES["inferred"], X, Y)
    # The same function of the data, with rows that say nothing (of endless noise) until they are as many as inputs.
    more = torch.cat([X, rnd.normal((d - n, d), generator=g, dtype=DOUBLE)])
    noise = torch.cat([torch.full((n, 2), 0.3**2, dtype=DOUBLE), torch.full((d - n, 2), 1e18, dtype=DOUBLE)])
    known = CollapsedTarget(prior, NOISES["fixed"], X, Y, noise[:n])
    full = CollapsedTarget(prior, NOISES["fixed"], more, torch.cat([Y, Y.new_zeros(d - n, 2)]), noise)
    assert wide.basis is not None and wide.basis.shape == (d, n) and full.basis is None
    assert full.num_theta - known.num_theta == 6 * (d - n)
    theta = prior.sample_parameters((2,), generator=g)
    z, psi = full.restrict(theta), theta.new_zeros(2, 0)
    reduced = known.restrict(theta)
    variance = (SCALES[0][0] / d**0.5) ** 2 if weights == "normal" else 1.0
    first = z[:, : 6 * d].unflatten(-1, (6, d))
    lost = first - first @ known.basis @ known.basis.mT
    of_lost = -0.5 * (lost.square().sum((-1, -2)) / variance + 6 * (d - n) * math.log(2 * math.pi * variance))
    blind = -0.5 * (d - n) * 2 * math.log(2 * math.pi * 1e18)
    expected = full.value_and_grad(torch.cat([z, psi], -1))[0] - of_lost - blind
    value, gradient = known.value_and_grad(torch.cat([reduced, psi], -1))
    assert (value - expected).abs().max() <= 1e-9 * expected.abs().max()
    h, eye = 1e-5, torch.eye(known.size, dtype=DOUBLE)
    for j in range(known.size):
        up, down = (known.value_and_grad(reduced + sign * h * eye[j])[0] for sign in (1, -1))
        assert (gradient[:, j] - (up - down) / (2 * h)).abs().max() <= 1e-6 * gradient.abs().max()
    draws = 20_000
    drawn, _ = known.complete(reduced[0].expand(draws, -1), rnd.generator_from(seed + 1))
    assert (known.restrict(drawn) - reduced[0]).abs().max() <= 1e-12
    null = torch.linalg.svd(X)[2][n:].mT  # an orthonormal basis of what is across
    white = (drawn[:, : 6 * d].unflatten(-1, (6, d)) @ null).flatten(1) / variance**0.5
    assert (white.mean(0).abs() <= 5 / draws**0.5).all()
    assert ((white.mT @ white / draws - torch.eye(white.shape[1], dtype=DOUBLE)).abs() <= 5 * (2 / draws) ** 0.5).all()


def test_rows_in_a_plane_and_rows_of_zeros() -> None:
    prior = BayesianNetwork(probnn.MLP(input_dim=5, hidden=(4,)), priors.NormalWeights(), dtype=DOUBLE)
    X = torch.tensor([[1.0, 2.0, 0.0, 0.0, 0.0], [2.0, 4.0, 0.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0, 0.0]], dtype=DOUBLE)
    for data, rank in ((X, 2), (0 * X, 1)):
        target = CollapsedTarget(prior, NOISES["inferred"], data, data[:, :1])
        assert target.basis is not None and target.basis.shape == (5, rank)
        assert (data @ target.basis @ target.basis.mT - data).abs().max() <= 1e-14
        value, slope = target.value_and_grad(target.start((3,), rnd.generator_from(0)))
        assert value.isfinite().all() and slope.isfinite().all()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_masses_between_data_sets(weights: str, seed: int) -> None:
    """Masses in terms of inputs: the prior's where nothing was learnt, whatever rows there are."""
    g = rnd.generator_from(seed)
    prior = BayesianNetwork(probnn.MLP(input_dim=6, hidden=(4,)), WEIGHTS_ONE[weights], dtype=DOUBLE)
    X = rnd.normal((4, 6), generator=g, dtype=DOUBLE)
    few, more, all_of_them = (
        CollapsedTarget(prior, NOISES["inferred"], rows, rows[:, :1]) for rows in (X[:3], X, X.repeat(2, 1))
    )
    variance = 0.7**2 / 6 if weights == "normal" else 1.0
    of_few = torch.full((few.size,), variance, dtype=DOUBLE)
    known = few.spread_variances(of_few)
    assert known.shape == (all_of_them.size,) and (all_of_them.gather_variances(known) == known).all()
    assert (known - variance).abs().max() <= 1e-14
    assert (more.gather_variances(known) - variance).abs().max() <= 1e-14
    of_few[: 4 * 3] *= 0.25  # learnt along three directions
    squares = few.basis.square().sum(-1)
    expected = variance * (0.25 * squares + 1 - squares)
    assert (few.spread_variances(of_few)[: 4 * 6].unflatten(0, (4, 6)) - expected).abs().max() <= 1e-14


def test_warm_starts_with_other_rows(seed: int) -> None:
    """Tuning is carried on although the rows, and so the coordinates, are others."""
    g = rnd.generator_from(seed)
    prior = BayesianNetwork(probnn.MLP(input_dim=9, hidden=(5,)), priors.HierarchicalWeights(), dtype=DOUBLE)
    X = rnd.normal((12, 9), generator=g, dtype=DOUBLE)
    hmc = probnn.HMC(num_chains=4, num_warmup=80, num_samples=5, max_leapfrog=20, collapse_last_layer=True)
    fit = hmc.fit(prior, likelihoods.Gaussian(), X[:6], X[:6, :1], seed=seed)
    for n in (5, 7, 12):
        again = hmc.fit(prior, likelihoods.Gaussian(), X[:n], X[:n, :1], seed=seed, init=fit)
        assert len(again.info.trace["warmup_acceptance"]) == 20
        assert again.info.inverse_mass.shape == fit.info.inverse_mass.shape


def test_warm_starts(seed: int) -> None:
    """Tuning is carried on between fits of one kind, and begun anew from draws of the other."""
    prior = BayesianNetwork(probnn.MLP(input_dim=1, hidden=(5,)), priors.HierarchicalWeights(), dtype=DOUBLE)
    X = torch.linspace(-1, 1, 10, dtype=DOUBLE).unsqueeze(-1)
    whole = probnn.HMC(num_chains=4, num_warmup=80, num_samples=5, max_leapfrog=20)
    collapsed = probnn.HMC(num_chains=4, num_warmup=80, num_samples=5, max_leapfrog=20, collapse_last_layer=True)
    lik = likelihoods.Gaussian(noise_median=0.3, noise_spread=0.2)
    for method, other in ((whole, collapsed), (collapsed, whole)):
        first = method.fit(prior, lik, X, X.sin(), seed=seed)
        assert first.theta.shape == (4, 5, prior.num_parameters)
        assert len(method.fit(prior, lik, X, X.sin(), seed=seed, init=first).info.trace["warmup_acceptance"]) == 20
        assert len(other.fit(prior, lik, X, X.sin(), seed=seed, init=first).info.trace["warmup_acceptance"]) == 80


def test_what_cannot_be_collapsed() -> None:
    X, Y = torch.zeros(4, 1, dtype=DOUBLE), torch.eye(4, dtype=DOUBLE)[:, :1]
    hmc = probnn.HMC(num_chains=2, num_warmup=50, num_samples=2, collapse_last_layer=True)
    net = probnn.MLP(input_dim=1, hidden=(3,))
    normal = BayesianNetwork(net, priors.NormalWeights(), dtype=DOUBLE)
    with pytest.raises(UnsupportedError, match="Gaussian likelihood, got StudentT"):
        hmc.fit(normal, likelihoods.StudentT(), X, Y)
    with pytest.raises(UnsupportedError, match="LaplaceWeights"):
        hmc.fit(BayesianNetwork(net, priors.LaplaceWeights(), dtype=DOUBLE), likelihoods.Gaussian(), X, Y)
    with pytest.raises(UnsupportedError, match="over a probnn.MLP"):
        network = probnn.ModuleNetwork(module(), input_dim=2, output_dim=1)
        wide = torch.zeros(4, 2, dtype=DOUBLE)
        hmc.fit(BayesianNetwork(network, priors.NormalWeights(), dtype=DOUBLE), likelihoods.Gaussian(), wide, Y)
    linear = BayesianNetwork(probnn.MLP(input_dim=1, hidden=()), priors.NormalWeights(), dtype=DOUBLE)
    with pytest.raises(UnsupportedError, match="nothing is left to sample"):
        hmc.fit(linear, likelihoods.Gaussian(noise=0.1), X, Y)
    assert hmc.fit(linear, likelihoods.Gaussian(), X, Y).theta.shape == (2, 2, 2)


@pytest.mark.parametrize("sd", [1e-2, 1e-6])
@pytest.mark.parametrize("n", [3, 20])
def test_the_marginal_does_not_cancel_where_the_noise_is_tiny(sd: float, n: int, seed: int) -> None:
    """Against rational arithmetic on the same numbers; y . A^-1 y is 0.03 nats off at the smaller noise."""
    g = rnd.generator_from(seed)
    phi, c, e = (rnd.normal(shape, generator=g, dtype=DOUBLE) for shape in ((n, 5), (5, 1), (n, 1)))
    Y, v = phi @ c + sd * e, Fraction(sd**2)
    P, y = [[Fraction(x) for x in row] for row in phi.tolist()], [Fraction(x) for x in Y.flatten().tolist()]
    B = [[sum(row[a] * row[b] for row in P) / v + (a == b) for b in range(5)] for a in range(5)]
    push = [sum(row[a] * t for row, t in zip(P, y, strict=True)) / v for a in range(5)]
    square, log_det = sum(t * t for t in y) / v, n * math.log(v)
    for a in range(5):  # Gaussian elimination of B, which is positive definite
        square -= push[a] ** 2 / B[a][a]
        log_det += math.log(B[a][a].numerator) - math.log(B[a][a].denominator)
        for b in range(a + 1, 5):
            factor = B[b][a] / B[a][a]
            push[b] -= factor * push[a]
            B[b] = [x - factor * z for x, z in zip(B[b], B[a], strict=True)]
    exact = -0.5 * (float(square) + log_det + n * math.log(2 * math.pi))
    value = _marginal(Y, phi, torch.full((1, 1), sd**2, dtype=DOUBLE))[0].item()
    assert value == pytest.approx(exact, abs=1e-6)
