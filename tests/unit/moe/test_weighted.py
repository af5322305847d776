"""Draws as maxima of weighted likelihoods and shifted priors, and the surrogate made of them."""

from __future__ import annotations

import pytest
import torch
from botorch.acquisition.logei import qLogExpectedImprovement
from botorch.optim import optimize_acqf

import probnn
from probnn import likelihoods, moe
from probnn import random as rnd
from probnn.errors import DomainError, UnsupportedError
from probnn.moe.data import Data
from probnn.moe.newton import run_newton
from probnn.moe.perturbed import PerturbedObjective
from probnn.moe.uncertainty import dirichlet_weights
from probnn.testing import check_inference_method
from tests.cases import DOUBLE, data, mixture_of_experts, network


def perturbed(K: int, m: int, seed: int, known: bool = False, **family: object) -> PerturbedObjective:
    """Four members on ten rows."""
    X, Y = data(10, 2, m, seed)
    prior = moe.MixtureOfExperts(moe.GaussianMoE(K, 2, m, **family), dtype=DOUBLE)
    generator = rnd.generator_from(seed)
    anchors, weights = prior.sample_parameters((4,), generator=generator), dirichlet_weights(4, 10, generator)
    if known:
        Y = torch.cat([Y, 0.1 + rnd.uniform(Y.shape, generator=generator, dtype=DOUBLE)], -1)
    rows = Data(X.mT.unsqueeze(0), Y.mT.unsqueeze(0), weights)
    return PerturbedObjective(prior.model, rows, prior=prior, anchors=anchors, known=known)


@pytest.mark.parametrize("m", [1, 2])
def test_contract(m: int, seed: int) -> None:
    method = moe.WeightedBootstrap(size=16)
    check_inference_method(method, mixture_of_experts(m), moe.GaussianMixture(2), *data(m=m, seed=seed), seed=seed)


FAMILIES = {
    "softmax": {},
    "laplace": {"gate": moe.LaplaceGate(), "expert": moe.PolynomialExpert(2)},
    "shared": {"gate": moe.ActivationGate("tanh"), "variance": "shared"},
    "known variance": {"gate": moe.SoftmaxGate(temperature=2.0), "variance": 0.2},
}


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_derivatives_against_autograd(name: str, m: int, seed: int) -> None:
    objective = perturbed(3, m, seed, **FAMILIES[name])
    prior, weights = objective.prior, objective.data.weights
    X, Y = objective.data.X[0].mT, objective.data.Y[0].mT
    at = prior.sample_parameters((4,), generator=rnd.generator_from(seed + 1))

    def density(theta: torch.Tensor) -> torch.Tensor:
        fit = (weights * prior.likelihood.log_prob(Y, prior.apply(theta, X), theta.new_zeros(1, 0))).sum(-1)
        return fit + prior.log_prob(theta) - (prior.prior_derivatives(objective.anchors)[0] * theta).sum(-1)

    leaf = at.clone().requires_grad_(True)
    value = density(leaf)
    (slope,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    hessian = torch.stack(
        [torch.autograd.grad(slope[:, j].sum(), leaf, retain_graph=True)[0] for j in range(at.shape[1])], 1
    )
    found = objective.derivatives(prior._full(at))
    torch.testing.assert_close(objective.value(prior._full(at)), value.detach(), rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(found, (value, slope, hessian), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(objective.gradient(prior._full(at))[1], slope.detach(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("m", [1, 2])
def test_derivatives_of_regression(m: int, seed: int) -> None:
    """With known noise: value and gradient by autograd, the Hessian by the Jacobian's outer products."""
    objective = perturbed(3, m, seed, known=True)
    prior, weights = objective.prior, objective.data.weights
    X, (Y, variance) = objective.data.X[0].mT, objective.data.Y[0].mT.chunk(2, -1)
    at = prior.sample_parameters((4,), generator=rnd.generator_from(seed + 1))
    at[:, -3 * m :] = objective.anchors[:, -3 * m :]  # log variances, about which the data say nothing
    none = at.new_zeros(1, 0)
    leaf = at.clone().requires_grad_(True)
    fit = (weights * prior.likelihood.log_prob(Y, prior.apply(leaf, X), none, variance)).sum(-1)
    pull = prior.prior_derivatives(objective.anchors)[0]
    value = fit + prior.log_prob(leaf) - (pull * leaf).sum(-1)
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    found = objective.derivatives(prior._full(at))
    torch.testing.assert_close(found[0], value.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[1], slope[:, objective.used], rtol=1e-9, atol=1e-9)
    bend = prior.prior_derivatives(at)[1]
    for s in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda theta: prior.likelihood.moments(prior.apply(theta, X), none)[0], at[s]
        )  # n m P
        outer = torch.einsum("njp,nj,njq->pq", jacobian, weights[s].unsqueeze(-1) / variance, jacobian)
        expected = (bend[s].diag() - outer)[objective.used][:, objective.used]
        torch.testing.assert_close(found[2][s], expected, rtol=1e-9, atol=1e-9)
    assert len(objective.used) == prior.num_parameters - 3 * m
    torch.testing.assert_close(objective.coordinates(prior._full(at)), at)


def test_one_expert_with_known_noise_has_a_closed_form(seed: int) -> None:
    objective = perturbed(1, 1, seed, known=True)
    prior, anchors = objective.prior, objective.anchors
    state = run_newton(objective, prior._full(torch.zeros_like(anchors)), tol=1e-12)
    X, (Y, variance) = objective.data.X[0].mT, objective.data.Y[0].mT.chunk(2, -1)
    A = torch.cat([X, torch.ones_like(X[:, :1])], -1)
    S = torch.diag(torch.tensor([1 / 1.125, 1 / 1.125, 1.0], dtype=DOUBLE))
    for s in range(4):
        w = objective.data.weights[s].unsqueeze(-1) / variance
        expected = torch.linalg.solve(A.mT @ (w * A) + S, A.mT @ (w * Y) + S @ anchors[s, 3:6].unsqueeze(-1))
        torch.testing.assert_close(objective.coordinates(state.theta)[s, 3:6], expected.squeeze(-1))
    torch.testing.assert_close(objective.coordinates(state.theta)[:, :3], anchors[:, :3])  # a gate of one expert


def test_weights_have_the_moments_of_a_dirichlet_law(seed: int) -> None:
    S, n = 20_000, 5
    w = dirichlet_weights(S, n, rnd.generator_from(seed))
    torch.testing.assert_close(w.sum(-1), torch.full((S,), 5.0, dtype=DOUBLE))
    variance = (n - 1) / (n + 1)
    squares = (w - 1).square()
    assert ((w.mean(0) - 1).abs() <= 5 * (variance / S) ** 0.5).all()
    assert ((squares.mean(0) - variance).abs() <= 5 * squares.std(0) / S**0.5).all()


def test_many_draws_agree_with_the_bootstrap_to_first_order(seed: int) -> None:
    """Of one expert: sd of a slope is the sandwich's, sqrt(sum x^2 r^2) / sum x^2, up to 1 / n and the prior."""
    n, S = 400, 400
    generator = rnd.generator_from(seed)
    X = 2 * rnd.uniform((n, 1), generator=generator, dtype=DOUBLE) - 1
    Y = 0.8 * X + 0.3 * rnd.normal((n, 1), generator=generator, dtype=DOUBLE)
    prior = moe.MixtureOfExperts(moe.GaussianMoE(1, 1), dtype=DOUBLE)
    posterior = moe.WeightedBootstrap(size=S).fit(prior, moe.GaussianMixture(1), X, Y, seed=seed)
    slope = posterior.theta[0, :, 2]
    A = torch.cat([X, torch.ones_like(X)], -1)
    inverse = torch.linalg.inv(A.mT @ A)
    r = Y - A @ inverse @ A.mT @ Y
    sd = (inverse @ (A * r).mT @ (A * r) @ inverse)[0, 0].sqrt()
    assert abs(slope.std() / sd - 1) <= 5 / (2 * S) ** 0.5 + 0.02
    assert abs(slope.mean() - (inverse @ A.mT @ Y)[0]) <= 5 * sd / S**0.5 + 0.05 * sd


def test_acquisition_functions_of_the_surrogate(seed: int) -> None:
    X, Y = data(40, 2, 1, seed)
    bounds = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=DOUBLE)
    model = probnn.get_surrogate("moe").fit(X, Y, bounds=bounds, seed=seed)
    assert isinstance(model.process, probnn.EmpiricalProcess) and model.process.num_draws == 64
    at = 2 * rnd.uniform((3, 5, 2), generator=rnd.generator_from(seed), dtype=DOUBLE) - 1
    posterior = model.posterior(at)
    assert posterior.rsample(torch.Size([16])).shape == (16, 3, 5, 1)
    draws = posterior.values
    torch.testing.assert_close(posterior.mean, draws.mean(-3), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(posterior.variance, draws.var(-3, correction=0), rtol=1e-10, atol=1e-14)
    acquisition = qLogExpectedImprovement(model, best_f=Y.max())
    inputs = at[:1].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(acquisition(inputs).sum(), inputs)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    candidate, value = optimize_acqf(acquisition, bounds, q=2, num_restarts=2, raw_samples=8, options={"maxiter": 10})
    assert candidate.isfinite().all() and value >= acquisition(at[:, :2]).max() - 1.0


def test_what_it_cannot_fit_is_named() -> None:
    X, Y = data()
    method = moe.WeightedBootstrap(size=2)
    with pytest.raises(UnsupportedError, match="MixtureOfExperts"):
        method.fit(network(), likelihoods.Gaussian(), X, Y)
    with pytest.raises(UnsupportedError, match=r"GaussianMixture\(2\)"):
        method.fit(moe.MixtureOfExperts(moe.GaussianMoE(2, 2)), moe.GaussianMixture(1, noise=0.1), X, Y)
    with pytest.raises(UnsupportedError, match="TopKGate"):
        method.fit(mixture_of_experts(gate=moe.TopKGate()), moe.GaussianMixture(2), X, Y)
    for field in ("size", "max_iter", "tolerance"):
        with pytest.raises(DomainError, match=field):
            moe.WeightedBootstrap(**{field: 0})
    assert moe.WeightedBootstrap().cite()
