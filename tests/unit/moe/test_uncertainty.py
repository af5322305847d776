"""Posteriors around maximum likelihood estimates, and the labels of draws."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from probnn import moe
from probnn import random as rnd
from probnn.errors import ConvergenceWarning, DomainError, ShapeError, UnsupportedError
from probnn.moe.newton import run_newton
from probnn.moe.objective import Objective

from .models import GENTLE, sample


def estimate(n: int, seed: int) -> tuple[moe.GaussianMoE, torch.Tensor, torch.Tensor]:
    """The maximum near the truth."""
    X, Y = sample(GENTLE, n, seed=seed)
    truth = moe.GaussianMoE.from_mixing_measure(GENTLE)
    state = run_newton(Objective.of(replace(truth, theta=None), X, Y), truth.theta.unsqueeze(0))
    assert state.converged.all()
    return replace(truth, theta=state.theta[0]), X, Y


def test_draws_of_laplace_have_the_inverse_information(seed: int) -> None:
    model, X, Y = estimate(1000, seed)
    posterior = moe.laplace(model, X, Y, num_draws=20_000, seed=seed)
    assert posterior.info.converged and posterior.info.trace["held"] == 0
    index = model.free_index()
    at = [int((index == j).nonzero()[0]) for j in range(model.num_free)]
    free = posterior.base.experts(posterior.theta[0]).theta[:, at]
    covariance = torch.linalg.inv(model.information(X, Y))
    centred = free - model.theta[at]
    products = centred.unsqueeze(-1) * centred.unsqueeze(-2)
    assert (centred.mean(0).abs() <= 5 * (covariance.diagonal() / 20_000) ** 0.5).all()
    assert ((products.mean(0) - covariance).abs() <= 5 * products.std(0) / 20_000**0.5).all()
    # Predictions speak about sum pi h; with noise they are those of the mixture.
    plain, noisy = posterior.predict(X[:4]), posterior.predict(X[:4], observation_noise=True)
    mean, variance = model.moments(X[:4])
    assert ((plain.mean - mean).abs() < 3 * plain.variance.sqrt()).all()
    assert (plain.variance < 0.05 * variance).all()
    torch.testing.assert_close(noisy.variance, variance, rtol=0.2, atol=0)


def test_the_bootstrap_agrees_with_laplace(seed: int) -> None:
    model, X, Y = estimate(3000, seed)
    S = 100
    posterior = moe.bootstrap(model, X, Y, num_draws=S, seed=seed)
    assert posterior.theta.shape == (1, S, 10) and posterior.info.converged
    assert (posterior.info.trace["decrement"] < 1e-6).all()
    index = model.free_index()
    at = [int((index == j).nonzero()[0]) for j in range(model.num_free)]
    free = posterior.base.experts(posterior.theta[0]).theta[:, at]
    se = torch.linalg.inv(model.information(X, Y)).diagonal().sqrt()
    # A tenth for what the two differ by at this n, and five standard errors of a standard deviation.
    assert ((free.std(0) / se).log().abs() < 0.1 + 5 / (2 * S) ** 0.5).all()
    assert ((free.mean(0) - model.theta[at]).abs() < (5 / S**0.5 + 0.2) * se).all()


def test_weights_of_observations_count(seed: int) -> None:
    """A weight of zero is a row that is not there: to Laplace exactly."""
    model, X, Y = estimate(300, seed)
    weight = torch.ones(300, dtype=torch.double)
    weight[200:] = 0.0
    state = run_newton(Objective.of(replace(model, theta=None), X[:200], Y[:200]), model.theta.unsqueeze(0))
    part = replace(model, theta=state.theta[0])
    a = moe.laplace(part, X, Y, sample_weight=weight, num_draws=5)
    b = moe.laplace(part, X[:200], Y[:200], num_draws=5)
    torch.testing.assert_close(a.theta, b.theta, rtol=1e-6, atol=1e-6)
    drawn = moe.bootstrap(part, X, Y, sample_weight=weight, num_draws=3)
    moved = Y.clone()
    moved[200:] += 100.0
    again = moe.bootstrap(part, X, moved, sample_weight=weight, num_draws=3)
    torch.testing.assert_close(drawn.theta, again.theta, rtol=1e-5, atol=1e-5)


def superfluous(seed: int) -> tuple[moe.GaussianMoE, torch.Tensor, torch.Tensor]:
    """One line fitted by two experts that are the same: a critical point with singular information."""
    generator = rnd.generator_from(seed)
    X = rnd.uniform((200, 1), generator=generator, dtype=torch.double)
    Y = 1 + 2 * X + 0.3 * rnd.normal((200, 1), generator=generator, dtype=torch.double)
    A = torch.cat([X, torch.ones_like(X)], -1)
    beta = torch.linalg.lstsq(A, Y).solution.squeeze(-1)
    variance = (Y.squeeze(-1) - A @ beta).square().mean()
    G = moe.MixingMeasure([0.0, 0.0], [[0.0], [0.0]], beta[1].repeat(2), beta[:1].repeat(2, 1), variance.repeat(2))
    return moe.GaussianMoE.from_mixing_measure(G), X, Y


def test_superfluous_experts_are_reported(seed: int) -> None:
    model, X, Y = superfluous(seed)
    with pytest.warns(ConvergenceWarning, match="singular in"):
        posterior = moe.laplace(model, X, Y, num_draws=50)
    assert posterior.info.trace["held"] >= 2 and posterior.info.converged is False
    # The bias of an expert is one such direction. It is held where the others leave its share: at the mean input.
    parts = posterior.layout.unflatten(posterior.theta)
    score = parts["gate.bias"] + parts["gate.weight"].squeeze(-1) * X.mean()
    assert posterior.theta.isfinite().all() and (score.abs() < 1e-6).all()


@pytest.mark.parametrize("units", [1.0, 1e-3, 1e3])
def test_little_noise_is_no_lack_of_information(units: float, seed: int) -> None:
    """Shares of information depend neither on the noise beside the range of the outcomes nor on units and origins."""
    generator = rnd.generator_from(seed)
    X = rnd.uniform((400, 1), generator=generator, dtype=torch.double)
    left = X + 0.1 * rnd.normal((400, 1), generator=generator, dtype=torch.double) < 0.5
    noise = rnd.normal((400, 1), generator=generator, dtype=torch.double)
    line = moe.MixingMeasure([-10.0, 0.0], [[20.0], [0.0]], [2.0, 0.0], [[-1.0], [3.0]], [1e-6, 1e-6])
    Y = torch.where(left, 3 * X, 2 - X) + 1e-3 * noise
    model = moe.GaussianMoE.from_mixing_measure(line)
    fit = moe.fit(replace(model, theta=None), X, Y, starts=model, tol=1e-12)
    assert fit.status == "converged" and fit.condition_number < 1e4
    torch.testing.assert_close(fit.covariance(), torch.linalg.inv(fit.information), rtol=1e-5, atol=1e-12)
    assert moe.laplace(fit, X, Y, num_draws=2).info.trace["held"] == 0
    far = moe.MixingMeasure(
        [-10.0 - 20 * 7 / units, 0.0], line.gate_weight / units, 5 * (line.intercept - 7 / units * line.coef[:, 0]),
        5 * line.coef / units, 25 * line.variance,
    )  # fmt: skip
    start = moe.GaussianMoE.from_mixing_measure(far)
    other = moe.fit(replace(model, theta=None), units * X + 7, 5 * Y, starts=start, tol=1e-12)
    torch.testing.assert_close(other.condition_number, fit.condition_number, rtol=1e-3, atol=0)
    torch.testing.assert_close(
        other.standard_errors()["coef"], 5 * fit.standard_errors()["coef"] / units, rtol=1e-3, atol=0
    )


def test_superfluous_experts_have_no_standard_errors(seed: int) -> None:
    """What a flat direction moves has no variance; where it moves nothing else, the rest has."""
    model, X, Y = superfluous(seed)
    objective, theta = Objective.of(replace(model, theta=None), X, Y), model.theta.unsqueeze(0)
    regular = moe.fit(replace(model, theta=None), *estimate(300, seed)[1:], num_restarts=2, seed=seed)
    information, complete = -objective.derivatives(theta)[2][0], objective.complete_information(theta)[0]
    fit = replace(regular, model=model, information=information, complete_information=complete)
    assert fit.condition_number > 1e10
    errors = fit.standard_errors()
    assert errors["gate_bias"][0].isnan() and errors["gate_bias"][1] == 0
    # Two blocks that have nothing to do with each other, one of them singular.
    F = len(regular.information)
    both, flat = torch.zeros(F + 2, F + 2).double(), torch.full((2, 2), 3.0).double()
    both[:F, :F], both[F:, F:] = regular.information, flat
    scale = torch.block_diag(regular.complete_information, 3 * torch.eye(2).double())
    covariance = replace(regular, information=both, complete_information=scale).covariance()
    assert covariance[F:].isnan().all() and covariance[:, F:].isnan().all()
    torch.testing.assert_close(covariance[:F, :F], regular.covariance(), rtol=1e-6, atol=1e-12)


def test_information_of_complete_data_is_that_of_each_expert_alone(seed: int) -> None:
    """Experts so far apart that every row is known: theirs are blocks of least squares."""
    X = rnd.uniform((60, 1), generator=rnd.generator_from(seed), dtype=torch.double)
    noise = rnd.normal((60, 1), generator=rnd.generator_from(seed + 1), dtype=torch.double)
    upper = torch.arange(60).unsqueeze(-1) % 2 == 0
    Y = 0.1 * noise + torch.where(upper, 50.0, -50.0)
    G = moe.MixingMeasure([0.3, 0.0], [[0.5], [0.0]], [50.0, -50.0], [[0.0], [0.0]], [0.01, 0.01])
    model = moe.GaussianMoE.from_mixing_measure(G)
    objective = Objective.of(replace(model, theta=None), X, Y)
    found = objective.complete_information(model.theta.unsqueeze(0))[0]
    scores = objective.row_scores(model.theta.unsqueeze(0))[0]
    rows = upper.squeeze(-1)
    at = model.free_index().reshape(2, -1)[:, 2:4]
    for i, own in enumerate((rows, ~rows)):
        expected = scores[own][:, at[i]].T @ scores[own][:, at[i]]
        torch.testing.assert_close(found[at[i]][:, at[i]], expected)
    design = torch.cat([X, torch.ones_like(X)], -1)[rows]
    torch.testing.assert_close(found[:2, :2], design.T @ design)
    assert (found[at[0]][:, at[1]] == 0).all()
    shares = objective.shares(model.theta.unsqueeze(0))
    torch.testing.assert_close(shares, torch.full((1, 2), 0.5).double())


def test_an_estimate_that_is_none_is_reported(seed: int) -> None:
    model, X, Y = estimate(300, seed)
    with pytest.warns(ConvergenceWarning, match="no maximum"):
        moe.laplace(model, X, Y + 0.1, num_draws=2)


def test_labels_are_found_again(seed: int) -> None:
    generator = rnd.generator_from(seed)
    k, R = 4, 30
    reference = moe.MixingMeasure(
        *(3 * rnd.normal(shape, generator=generator, dtype=torch.double) for shape in ((k,), (k, 2), (k,), (k, 2))),
        torch.tensor([0.1, 0.2, 0.4, 0.8], dtype=torch.double),
    )
    order = torch.stack([torch.randperm(k, generator=generator) for _ in range(R)])
    noise = 0.01 * rnd.normal((R, k, 2), generator=generator, dtype=torch.double)
    draws = moe.MixingMeasure(
        (reference.gate_bias + 5.0).expand(R, k), reference.gate_weight - 7.0 + noise,
        reference.intercept.expand(R, k), reference.coef + noise, reference.variance.expand(R, k),
    )  # fmt: skip
    found = moe.relabel(draws.permuted(order), reference)
    for name in ("gate_bias", "gate_weight", "intercept", "coef", "variance"):
        torch.testing.assert_close(getattr(found, name), getattr(draws, name), rtol=0, atol=0)
    with pytest.raises(ShapeError, match="one measure"):
        moe.relabel(draws, draws)


def test_bad_input_is_named(seed: int) -> None:
    model, X, Y = estimate(200, seed)
    for verb in (moe.laplace, moe.bootstrap):
        with pytest.raises(DomainError, match="with parameters"):
            verb(replace(model, theta=None), X, Y)
        with pytest.raises(ShapeError, match="one fit"):
            verb(replace(model, theta=model.theta.expand(2, -1)), X, Y)
        with pytest.raises(ShapeError):
            verb(model, X, Y[1:])
        with pytest.raises(DomainError, match="num_draws"):
            verb(model, X, Y, num_draws=0)
        top = replace(model, gate=moe.TopKGate(active=1))
        with pytest.raises(UnsupportedError, match="TopKGate"):
            verb(top, X, Y)


@pytest.mark.parametrize("gate", [moe.TemperatureGate(), moe.ActivationGate("relu")], ids=["linear", "relu"])
def test_draws_are_of_the_model_at_any_temperature(gate, seed):
    """A temperature that data do not identify is another way to write the same weights."""
    measure = moe.MixingMeasure(
        gate_bias=[0.25, 0.0], gate_weight=[[1.5], [-0.2]], intercept=[1.0, -1.0], coef=[[2.0], [-1.5]],
        variance=[0.16, 0.25], temperature=0.5, gate=gate,
    )  # fmt: skip
    model = moe.GaussianMoE.from_mixing_measure(measure)
    base = moe.MixtureOfExperts(moe.GaussianMoE(2, 1, gate=gate), moe.PriorScales()).to(torch.double)
    X = torch.linspace(-1, 1, 9).double().unsqueeze(-1)
    again = base.experts(base.coordinates(model))
    torch.testing.assert_close(again.moments(X)[0], model.moments(X)[0])
