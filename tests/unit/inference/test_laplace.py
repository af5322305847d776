"""Laplace's method against loops, quadrature and finite differences."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn import random as rnd
from probnn.errors import ConvergenceWarning, UnsupportedError
from probnn.inference import Target, hyper
from probnn.inference.base import Session
from probnn.inference.curvature import information, jacobian, jacobian_slope, weigh_root
from probnn.inference.laplace_fit import LaplaceFit
from probnn.inference.local import LocalModel
from tests.unit.inference.laplace_cases import DOUBLE, network, problem


def outcomes_for(likelihood: likelihoods.Likelihood, Y: Tensor) -> Tensor:
    """Outcomes a likelihood gives mass to, made of real ones."""
    if isinstance(likelihood, likelihoods.Bernoulli):
        return (Y > 0).double()
    if isinstance(likelihood, likelihoods.Categorical):
        return (Y > 0).double() + (Y > 0.5).double()
    if isinstance(likelihood, likelihoods.Poisson):
        return (2 * Y.exp()).round()
    return Y


# ---- derivatives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_prior", [priors.NormalWeights(), priors.HierarchicalWeights()])
def test_jacobian_is_that_of_autograd_row_by_row(weight_prior: priors.WeightPrior, seed: int) -> None:
    prior = network((4, 3), weight_prior, output_dim=2)
    X, _ = problem(5, seed=seed)
    theta = prior.sample_parameters(generator=rnd.generator_from(seed))
    f, J = jacobian(prior, theta, X)
    naive = torch.autograd.functional.jacobian(lambda t: prior.apply(t, X), theta)
    torch.testing.assert_close(f, prior.apply(theta, X), rtol=0, atol=1e-12)
    torch.testing.assert_close(J, naive, rtol=0, atol=1e-12)


def test_jacobian_is_differentiable_in_inputs(seed: int) -> None:
    prior = network((4,))
    theta = prior.sample_parameters(generator=rnd.generator_from(seed))
    X = problem(3, seed=seed)[0].requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: jacobian(prior, theta, x)[1], X)


def test_slope_of_a_weighted_jacobian(seed: int) -> None:
    prior = network((4,), output_dim=2)
    X, theta = problem(5, seed=seed)[0], prior.sample_parameters(generator=rnd.generator_from(seed))
    weights = rnd.normal((5, 2, prior.num_parameters), generator=rnd.generator_from(seed + 1), dtype=DOUBLE)
    step, slope = 1e-5, torch.zeros_like(theta)
    for i in range(len(theta)):
        up, down = theta.clone(), theta.clone()
        up[i], down[i] = theta[i] + step, theta[i] - step
        slope[i] = ((jacobian(prior, up, X)[1] - jacobian(prior, down, X)[1]) * weights).sum() / (2 * step)
    torch.testing.assert_close(jacobian_slope(prior, theta, X, weights), slope, rtol=0, atol=1e-7)


CONCAVE = [
    likelihoods.Gaussian(noise=0.3),
    likelihoods.Gaussian(noise=torch.tensor([0.3, 0.5, 0.2], dtype=DOUBLE)),
    likelihoods.Bernoulli(),
    likelihoods.Poisson(),
    likelihoods.Categorical(3),
]


@pytest.mark.parametrize("likelihood", CONCAVE, ids=lambda law: type(law).__name__)
def test_information_is_the_negative_hessian_of_natural_channels(likelihood: likelihoods.Likelihood, seed: int) -> None:
    f = rnd.normal((6, 3), generator=rnd.generator_from(seed), dtype=DOUBLE)
    Y = outcomes_for(likelihood, rnd.normal(f.shape, generator=rnd.generator_from(seed + 1), dtype=DOUBLE))
    Y = Y[:, : likelihood.outcomes(3)]
    psi = f.new_zeros(0)
    found = information(likelihood, Y, f, psi)
    found = torch.diag(found).expand(6, 3, 3) if found.ndim == 1 else found
    for i in range(6):
        hessian = torch.autograd.functional.hessian(
            lambda row, i=i: likelihood.log_prob(Y[i : i + 1], row.unsqueeze(0), psi.unsqueeze(0)).sum(), f[i]
        )
        torch.testing.assert_close(found[i], -hessian, rtol=0, atol=1e-10)
    # What is not in the list of closed forms gives the same through automatic differentiation.
    general = information.dispatch(likelihoods.Likelihood)(likelihood, Y, f, psi)
    torch.testing.assert_close(general, found, rtol=0, atol=1e-10)
    x = rnd.normal((6, 3, 4), generator=rnd.generator_from(seed + 2), dtype=DOUBLE)
    root = weigh_root("test", information(likelihood, Y, f, psi), x)
    torch.testing.assert_close(root.mT @ root, x.mT @ found @ x, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "likelihood", [likelihoods.StudentT(noise=0.5, df=3.0), likelihoods.Heteroscedastic(0.5)], ids=["t", "noise"]
)
def test_information_is_the_variance_of_the_score(likelihood: likelihoods.Likelihood, seed: int) -> None:
    """Fisher information by 40,000 draws, within five standard errors."""
    f, psi = torch.tensor([[0.3, -0.4]], dtype=DOUBLE), torch.zeros(0, dtype=DOUBLE)
    many = f.expand(40_000, 2).clone().requires_grad_(True)
    Y = likelihood.sample(many.detach(), psi.unsqueeze(0), generator=rnd.generator_from(seed))
    score = torch.autograd.grad(likelihood.log_prob(Y, many, psi.unsqueeze(0)).sum(), many)[0]
    products = score.unsqueeze(-1) * score.unsqueeze(-2)
    found = information(likelihood, Y[:1], f, psi)
    found = torch.diag(found) if found.ndim == 1 else found[0]
    error = products.std(0) / math.sqrt(len(products))
    assert ((products.mean(0) - found).abs() <= 5 * error).all()


def test_indefinite_curvature_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"Laplace.fit: the log likelihood is not concave .* at row 1"):
        weigh_root("Laplace.fit", torch.tensor([[[1.0]], [[-1.0]]]), torch.ones(2, 1, 3))


# ---- the approximation itself ------------------------------------------------------------------------------------


def naive_precision(prior: probnn.BayesianNetwork, likelihood, theta: Tensor, X: Tensor, Y: Tensor) -> Tensor:
    """J' Lambda J row by row plus the Hessian of the log prior, all by autograd."""
    psi, P = theta.new_zeros(0), len(theta)
    total = -torch.autograd.functional.hessian(prior.log_prob, theta)
    for x, y in zip(X, Y, strict=True):
        J = torch.autograd.functional.jacobian(lambda t, x=x: prior.apply(t, x.unsqueeze(0))[0], theta)
        middle = -torch.autograd.functional.hessian(
            lambda f, y=y: likelihood.log_prob(y.unsqueeze(0), f.unsqueeze(0), psi.unsqueeze(0)).sum(),
            prior.apply(theta, x.unsqueeze(0))[0],
        )
        total = total + J.mT @ middle @ J
    assert total.shape == (P, P)
    return total


@pytest.mark.parametrize("rows", [6, 40])  # fewer and more rows than parameters
@pytest.mark.parametrize("likelihood", [CONCAVE[0], *CONCAVE[2:]], ids=lambda law: type(law).__name__)
def test_posterior_is_the_naive_one(likelihood: likelihoods.Likelihood, rows: int, seed: int) -> None:
    c = 3 if isinstance(likelihood, likelihoods.Categorical) else 1
    prior = network((3,), output_dim=c)
    X, Y = problem(rows, seed=seed)
    Y = outcomes_for(likelihood, Y)
    post = probnn.Laplace(structure="full", steps=200).fit(prior, likelihood, X, Y, seed=seed)
    precision = naive_precision(prior, likelihood, post.loc, X, Y)
    covariance = torch.linalg.inv(precision)
    torch.testing.assert_close(post.spread.dense(), covariance, rtol=1e-8, atol=1e-10)
    joint = prior.log_prob(post.loc) + likelihood.log_prob(Y, prior.apply(post.loc, X), X.new_zeros(1, 0)).sum()
    evidence = joint + 0.5 * len(post.loc) * math.log(2 * math.pi) - 0.5 * torch.logdet(precision)
    # At the mode up to the tolerance: the evidence of the linearised model is at its own maximum.
    assert abs(post.info.log_evidence - evidence.item()) <= 1e-2
    gradient = torch.autograd.functional.jacobian(
        lambda t: prior.log_prob(t) + likelihood.log_prob(Y, prior.apply(t, X), X.new_zeros(1, 0)).sum(), post.loc
    )
    assert 0.5 * gradient @ covariance @ gradient <= 1e-2
    assert post.info.converged


@pytest.mark.parametrize("structure", ["last_layer", "diagonal"])
@pytest.mark.parametrize("likelihood", [likelihoods.Gaussian(noise=0.2), likelihoods.Categorical(3)], ids=["g", "c"])
def test_other_structures_are_parts_of_the_naive_precision(
    likelihood: likelihoods.Likelihood, structure: str, seed: int
) -> None:
    c = 3 if isinstance(likelihood, likelihoods.Categorical) else 1
    prior, (X, Y) = network((3,), output_dim=c), problem(20, seed=seed)
    Y = outcomes_for(likelihood, Y)
    post = probnn.Laplace(structure=structure, steps=300).fit(prior, likelihood, X, Y, seed=seed)
    precision = naive_precision(prior, likelihood, post.loc, X, Y)
    k = 4 * c if structure == "last_layer" else prior.num_parameters
    precision = precision[-k:, -k:] if structure == "last_layer" else torch.diag(precision.diagonal())
    assert post.num_parameters == k
    torch.testing.assert_close(post.spread.dense(), torch.linalg.inv(precision), rtol=1e-8, atol=1e-10)
    if structure == "last_layer":
        assert [block.name for block in post.layout.blocks] == ["layers.1.weight", "layers.1.bias"]
    scales = prior.weight_prior.scales(prior.network.layout, X)[-k:]
    log_prior = torch.distributions.Normal(0.0, scales).log_prob(post.loc[-k:]).sum()
    fit = likelihood.log_prob(Y, prior.apply(post.loc, X), X.new_zeros(1, 0)).sum()
    evidence = fit + log_prior + 0.5 * k * math.log(2 * math.pi) - 0.5 * torch.logdet(precision)
    assert abs(post.info.log_evidence - evidence.item()) <= 1e-2


def test_auto_takes_the_structure_its_limits_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = problem(8)

    def chosen(*limits: int) -> int:
        monkeypatch.setattr("probnn.inference.laplace_fit.MAX_SIDE", limits[0])
        monkeypatch.setattr("probnn.inference.laplace_fit.MAX_JACOBIAN", limits[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            post = probnn.Laplace(steps=20, polish_steps=2).fit(network((4,)), likelihoods.Gaussian(0.1), X, Y)
        return -1 if post.support is not None else post.directions.shape[1]

    assert chosen(8, 10_000) == 8  # full: as many directions as rows
    assert chosen(7, 10_000) == -1 and chosen(8, 8 * 17 - 1) == -1  # last layer
    assert chosen(4, 10_000) == 0 and chosen(7, 39) == 0  # diagonal


def test_hierarchical_scales_are_held_where_the_evidence_puts_them(seed: int) -> None:
    """At the end no scale promises evidence, and given the scales the posterior is that of normal weights."""
    X, Y = problem(15, seed=seed)
    prior = network((3,), priors.HierarchicalWeights(2.0, 1.0))
    likelihood = likelihoods.Gaussian(noise=0.1)
    post = probnn.Laplace(steps=300, tolerance=1e-4).fit(prior, likelihood, X, Y, seed=seed)
    size = prior.network.num_parameters
    assert post.num_parameters == size and len(post.loc) == size + 4
    u = post.loc[size:]
    assert u.abs().max() > 0.02  # they moved
    scales = prior.weight_prior.block_scales(prior.network.layout, X) * u.exp()
    root = torch.tensor([2.0, 3.0], dtype=DOUBLE).sqrt()
    given = network((3,), priors.NormalWeights(scales[::2] * root, scales[1::2]))
    weights = prior.weight_prior.weights(prior.network.layout, post.loc)
    covariance = torch.linalg.inv(naive_precision(given, likelihood, weights, X, Y))
    each = prior.network.layout.expand(scales)
    torch.testing.assert_close(post.spread.dense() * each * each.unsqueeze(-1), covariance, rtol=1e-7, atol=1e-10)


# ---- hyper-parameters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [likelihoods.Gaussian(0.2), likelihoods.StudentT(0.2), likelihoods.Bernoulli()])
def test_gradient_of_the_evidence_follows_the_mode(likelihood: likelihoods.Likelihood) -> None:
    """Against differences of the evidence at modes found anew: the part a fixed mode would miss is not small."""
    X = torch.linspace(-1, 1, 12, dtype=DOUBLE).unsqueeze(-1)
    Y = torch.sin(3 * X) + 0.1 * rnd.normal(X.shape, generator=rnd.generator_from(0), like=X)
    method = probnn.Laplace(tune=True, tolerance=1e-14, polish_steps=5000, steps=1000, num_starts=1)
    prior = network((4,), priors.NormalWeights((3.0, 1.5), (2.0, 0.5)), d=1)
    target = Target(prior, likelihood, X, outcomes_for(likelihood, Y))
    fit = LaplaceFit(method, target, Session("test", 0, X.device, False, None))
    with fit.session.bar(1) as bar:
        z, model, reached = fit._newton(fit._start(None, bar))
    assert reached
    hyper = fit._hyper(z)
    start = hyper.start().requires_grad_(True)
    explicit = torch.autograd.grad(hyper.objective(model, start), start)[0]
    followed = torch.autograd.grad(model.response(*hyper.unpack(start)), start)[0]
    step, differences = 1e-3, torch.zeros_like(explicit)
    for i in range(len(start)):
        ends = []
        for sign in (1, -1):
            vector = hyper.start()
            vector[i] += sign * step
            moved, there, reached = fit._newton(fit._at(hyper, vector, z, target))
            other = fit._hyper(moved)
            assert reached
            ends.append(other.objective(there, other.start()).item())
        differences[i] = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(explicit + followed, differences, rtol=0, atol=5e-3)
    assert (explicit - differences).abs().max() > 0.2


@pytest.mark.parametrize("structure", ["full", "last_layer", "diagonal"])
def test_tuning_raises_the_evidence(structure: str, seed: int) -> None:
    X, Y = problem(30, seed=seed)
    prior, likelihood = network((5,), priors.NormalWeights(1.0, 1.0)), likelihoods.Gaussian(noise=0.5)
    options = {"structure": structure, "steps": 300}
    plain = probnn.Laplace(**options).fit(prior, likelihood, X, Y, seed=seed)
    tuned = probnn.Laplace(tune=True, **options).fit(prior, likelihood, X, Y, seed=seed)
    trace = tuned.info.trace["log_evidence"]
    assert (trace.diff() > 0).all() and abs(trace[0].item() - plain.info.log_evidence) < 1e-6
    assert tuned.info.log_evidence == pytest.approx(trace[-1].item()) and tuned.info.log_evidence > trace[0] + 0.1
    assert plain.prior.weight_prior == prior.weight_prior and plain.likelihood == likelihood
    assert isinstance(tuned.likelihood.noise, float) and tuned.likelihood.noise < 0.5
    assert structure != "full" or 0.05 < tuned.likelihood.noise < 0.3
    scale = tuned.prior.weight_prior.weight_scale
    assert scale.shape == (2,) and (scale[0] == 1.0) == (structure == "last_layer")
    # The hyper-parameters it reports are those of its evidence.
    still = probnn.Laplace(structure=structure, steps=1, lr=1e-9)
    again = still.fit(tuned.prior, tuned.likelihood, X, Y, init=tuned, seed=seed)
    if structure == "full":  # one more step may leave a saddle, where a diagonal evidence jumps
        assert again.info.log_evidence == pytest.approx(tuned.info.log_evidence, abs=0.1)


def test_scales_are_set_on_the_device_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device without values, which refuses tensors of another as an accelerator does."""
    monkeypatch.setattr(hyper, "replace", lambda old, **changes: changes)  # priors look at values when they are made
    changes = hyper.tuned(network(hidden=(3,)), (0, 2), torch.zeros(2, dtype=DOUBLE, device="meta"))
    scale = changes["weight_prior"]["weight_scale"]
    assert scale.device.type == "meta" and scale.shape == (2,)


@pytest.mark.gpu
@pytest.mark.parametrize("structure", ["full", "diagonal", "last_layer"])
def test_tuning_on_a_device(structure: str) -> None:
    X, Y = (t.cuda() for t in problem(20))
    method = probnn.Laplace(tune=True, structure=structure, steps=100)
    posterior = method.fit(network(hidden=(4,)), likelihoods.Gaussian(), X, Y)
    assert posterior.predict(X).mean.device == X.device and posterior.sample(X, (3,)).device == X.device


def test_inferred_noise_does_not_depend_on_where_it_starts(seed: int) -> None:
    X, Y = problem(40, d=1, seed=seed)
    found = []
    for median in (0.03, 0.1, 0.5):
        likelihood = likelihoods.Gaussian(noise_median=median, noise_spread=5.0)
        post = probnn.Laplace(steps=300).fit(network((8,), d=1), likelihood, X, Y, seed=seed)
        assert post.info.converged and post.psi_scale is None
        found.append(post.psi.exp().item())
    # True noise 0.1, known to about 1 / sqrt(2 n) = 11 per cent.
    assert all(0.05 < noise < 0.18 for noise in found) and max(found) < 1.5 * min(found)


def test_known_noise_of_rows_is_not_tuned(seed: int) -> None:
    X, Y = problem(20, seed=seed)
    variance = torch.full_like(Y, 0.01)
    post = probnn.Laplace(tune=True, steps=100).fit(
        network(()), likelihoods.Gaussian(), X, Y, noise_variance=variance, seed=seed
    )
    assert post.likelihood.noise.tolist() == pytest.approx([0.1]) and len(post.psi) == 0
    assert post.prior.weight_prior.weight_scale.shape == (1,)


def test_local_model_evidence_agrees_in_both_spaces(seed: int) -> None:
    """Through n x n and through k x k matrices, with other scales and another noise than its own."""
    X, Y = problem(9, m=2, seed=seed)
    prior = network((), output_dim=2)  # k = 6 < 18 = n c
    z = prior.sample_parameters(generator=rnd.generator_from(seed))
    groups = torch.tensor([0, 0, 0, 0, 1, 1])
    likelihood, other = likelihoods.Gaussian(noise=0.3), likelihoods.Gaussian(noise=0.2)
    change = torch.tensor([0.3, -0.4], dtype=DOUBLE)
    model = LocalModel("test", Target(prior, likelihood, X, Y), z, groups=groups)
    over_weights = model.evidence(other, z[:0], change)
    A = torch.cat([X, torch.ones_like(X[:, :1])], -1)
    scales = prior.weight_prior.scales(prior.network.layout, X)[[0, 1, 4]] * change.exp()[[0, 0, 1]]
    law = torch.distributions.MultivariateNormal(
        torch.zeros(9, dtype=DOUBLE), A @ torch.diag(scales**2) @ A.mT + 0.04 * torch.eye(9, dtype=DOUBLE)
    )
    exact = law.log_prob(Y.mT).sum()
    torch.testing.assert_close(over_weights, exact, rtol=0, atol=1e-9)
    few = LocalModel("test", Target(prior, likelihood, X[:2], Y[:2]), z, groups=groups)  # n c = 4 < 6 = k
    small = torch.distributions.MultivariateNormal(
        torch.zeros(2, dtype=DOUBLE), A[:2] @ torch.diag(scales**2) @ A[:2].mT + 0.04 * torch.eye(2, dtype=DOUBLE)
    )
    torch.testing.assert_close(few.evidence(other, z[:0], change), small.log_prob(Y[:2].mT).sum(), rtol=0, atol=1e-9)


def test_evidence_where_the_prior_is_lost_beside_the_data(seed: int) -> None:
    """A Gram matrix of 1e16 and more: through its triangular root, against the n c x n c matrices."""
    X, Y = problem(9, seed=seed)
    prior, likelihood = network(()), likelihoods.Gaussian(noise=1e-10)
    X = torch.cat([X[:, :1], X[:, :1]], -1)  # one direction of the weights is known through the prior alone
    z = prior.sample_parameters(generator=rnd.generator_from(seed))
    A = torch.cat([X, torch.ones_like(X[:, :1])], -1)
    Y = A @ z.unsqueeze(-1) + 1e-10 * Y
    model = LocalModel("test", Target(prior, likelihood, X, Y), z)
    F = model.features.reshape(9, -1)
    singular = torch.linalg.svdvals(F / 1e-10)
    residual = (Y - A @ z.unsqueeze(-1)).flatten() / 1e-10
    # u solves a least-squares problem in [F / sd; I]; no Gram matrix in it.
    stacked = torch.cat([F / 1e-10, torch.eye(3, dtype=DOUBLE)])
    right = torch.cat([residual, -model.u])
    left = right - stacked @ torch.linalg.lstsq(stacked, right.unsqueeze(-1)).solution.flatten()
    exact = (
        -0.5 * left.square().sum()
        - 0.5 * singular.square().log1p().sum()
        - 9 * (math.log(1e-10) + 0.5 * math.log(2 * math.pi))
    )
    assert model.evidence(likelihood, z[:0]).item() == pytest.approx(exact.item(), abs=1e-3)
    scale = torch.zeros(1, dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(model.evidence(likelihood, z[:0], scale), scale)
    assert slope.isfinite().all()
