"""Fits at the edges: what is held, one expert, temperatures, saddles, steep gates, kinks, ranks, streams."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from probnn import moe
from probnn.errors import ConvergenceWarning, DomainError

from .models import CROSSING, GENTLE, sample

LINE = moe.GaussianMoE(2, 1)


def test_known_variances_stay_known_wherever_a_fit_starts(seed):
    X, Y = sample(GENTLE, 150, seed=seed)
    known = moe.GaussianMoE(2, 1, variance=1.0)
    auto = moe.fit(known, X, Y, num_restarts=8, seed=seed)
    for start in (GENTLE, moe.GaussianMoE.from_mixing_measure(GENTLE)):
        fit = moe.fit(known, X, Y, starts=start, num_restarts=2, seed=seed)
        assert fit.model.mixing_measure().variance.tolist() == pytest.approx([1.0, 1.0])
        assert fit.log_likelihood < auto.log_likelihood + 1e-5


def test_one_expert_has_no_gate_to_count(seed):
    X, Y = sample(GENTLE, 60, seed=seed)
    reference = moe.fit(moe.GaussianMoE(1, 1), X, Y)
    for gate in (moe.SigmoidGate(), moe.LaplaceGate(), moe.ActivationGate("gelu"), moe.ActivationGate("relu")):
        fit = moe.fit(moe.GaussianMoE(1, 1, gate=gate), X, Y, num_restarts=1)
        assert fit.num_free == 3
        torch.testing.assert_close(fit.bic, reference.bic)
        torch.testing.assert_close(fit.standard_errors()["coef"], reference.standard_errors()["coef"])
    assert moe.GaussianMoE(2, 1, gate=moe.TopKGate(active=1)).num_free == 7


def test_a_normalised_temperature_has_the_errors_of_what_is_reported(seed):
    """By the delta method from a softmax gate, whose weight is one over the temperature."""
    X, Y = sample(GENTLE, 300, seed=seed)
    softmax = moe.fit(LINE, X, Y, starts=GENTLE, num_restarts=1, tol=1e-12)
    start = replace(GENTLE, gate=moe.TemperatureGate())
    family = replace(LINE, gate=moe.TemperatureGate())
    fit = moe.fit(family, X, Y, starts=start, num_restarts=1, tol=1e-12)
    G, errors = fit.model.mixing_measure(), fit.standard_errors()
    plain = softmax.model.mixing_measure()
    weight, se = plain.gate_weight[0, 0], softmax.standard_errors()["gate_weight"][0, 0]
    assert G.temperature.item() == pytest.approx(1 / weight.abs().item(), rel=1e-6)
    assert errors["temperature"].item() == pytest.approx((se / weight.square()).item(), rel=1e-6)
    assert errors["gate_weight"].abs().max() < 1e-7  # plus or minus one by normalisation
    covariance = softmax.covariance()[:2, :2]  # of weight and bias
    slope = torch.stack([-plain.gate_bias[0] / weight.square(), 1 / weight])
    assert errors["gate_bias"][0].item() == pytest.approx((slope @ covariance @ slope).sqrt().item(), rel=1e-6)
    penalised = moe.fit(family, X, Y, starts=start, num_restarts=1, penalty=moe.Penalty(gate_scale=1.0))
    assert penalised.decrement < 1e-6
    torch.testing.assert_close(penalised.log_likelihood + penalised.penalty_value, penalised.restarts[0])


@pytest.mark.parametrize("method", ["em", "squarem", "lbfgs"])
def test_two_equal_experts_are_a_saddle(method, seed):
    X, Y = sample(GENTLE, 200, seed=seed)
    one = moe.fit(moe.GaussianMoE(1, 1), X, Y).model.mixing_measure()
    double = moe.MixingMeasure(
        gate_bias=torch.zeros(2).double(),
        gate_weight=torch.zeros(2, 1).double(),
        intercept=one.intercept.repeat(2),
        coef=one.coef.repeat(2, 1),
        variance=one.variance.repeat(2),
    )
    start = moe.GaussianMoE.from_mixing_measure(double)
    with pytest.warns(ConvergenceWarning, match="saddle"):
        fit = moe.fit(LINE, X, Y, starts=start, method=method)
    assert fit.status == "saddle" and not fit.converged
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # from there it may go to any maximum, or none
        newton = moe.fit(LINE, X, Y, starts=start)
    assert newton.status != "saddle" and newton.log_likelihood > fit.log_likelihood + 1


def test_a_steep_gate_is_not_separated_where_the_data_bound_it(seed):
    steep = replace(CROSSING, gate_bias=[-64.0, 0.0], gate_weight=[[200.0], [0.0]])
    X, Y = sample(steep, 20_000, seed=seed)
    fit = moe.fit(LINE, X, Y, starts=steep, num_restarts=1)
    assert fit.status == "converged"
    assert 100 < fit.model.mixing_measure().gate_weight[0, 0] < 400


@pytest.mark.parametrize("name", ["tanh", "gelu"])
def test_activations_that_separate_the_data_are_named(name, seed):
    generator = torch.Generator().manual_seed(seed)
    X = 2 * torch.rand(300, 1, generator=generator, dtype=torch.double) - 1
    noise = 0.1 * torch.randn(300, 1, generator=generator, dtype=torch.double)
    Y = torch.where(X < 0.2, 1 + 2 * X, -3 * X) + noise
    fit = moe.fit(replace(LINE, gate=moe.ActivationGate(name)), X, Y, num_restarts=4, seed=seed)
    assert fit.status == "separated"


def test_laplace_gates_of_one_input_converge(seed):
    truth = replace(GENTLE, gate=moe.LaplaceGate(), gate_weight=[[0.2], [0.8]])
    X, Y = sample(truth, 10, 400, seed=seed)
    fit = moe.fit(moe.GaussianMoE(2, 1, gate=moe.LaplaceGate()), X, Y, num_restarts=2)
    assert fit.method == "em" and fit.converged.all()


def test_few_rows_on_disk_start_where_tensors_start(seed):
    X, Y = sample(GENTLE, 300, seed=seed)
    model = moe.GaussianMoE(3, 1)
    whole = moe.fit(model, X, Y, num_restarts=1, starts="random", seed=seed)
    streamed = moe.fit(model, X.numpy(), Y.numpy(), num_restarts=1, starts="random", seed=seed)
    torch.testing.assert_close(streamed.log_likelihood, whole.log_likelihood, rtol=1e-9, atol=0)


def test_penalties_and_weights_are_checked(seed):
    X, Y = sample(GENTLE, 50, seed=seed)
    with pytest.raises(DomainError, match="penalty must be a moe.Penalty"):
        moe.fit(LINE, X, Y, penalty=1.0)
    with pytest.raises(DomainError, match="at least 6 rows, got 3"):
        moe.fit(LINE, X, Y, sample_weight=(torch.arange(50) < 3).double())
