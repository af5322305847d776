"""The log-likelihood and its closed-form derivatives, against autograd, naive loops and known identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from probnn import moe
from probnn.errors import UnsupportedError
from probnn.moe import data as data_module
from probnn.moe.objective import Objective

from .models import EXPERTS, GATES, GENTLE, OUTCOMES, normal, sample, uniform

RELATIVE = 1e-10


def objective_of(model, R, n, seed, *, penalty=None, weighted=True):
    X = normal(R, n, model.input_dim, seed=seed)
    if isinstance(model.outcome, moe.MultinomialLogit):
        Y = torch.randint(0, 3, (R, n, 1), generator=torch.Generator().manual_seed(seed)).double()
    else:
        Y = normal(R, n, model.num_outcomes, seed=seed + 1)
    base = Objective.of(model, X, Y, uniform(R, n, seed=seed + 2) if weighted else None)
    return Objective(model, base.data, penalty or moe.Penalty())


def start(objective, R, seed):
    """Coordinates that respect what is tied."""
    theta = 0.5 * normal(R, objective.model.num_parameters, seed=seed)
    return objective.full(objective.free(theta), theta)


def assert_derivatives(objective, theta):
    value, gradient, hessian = objective.derivatives(theta)
    free = objective.free(theta)
    for r in range(len(theta)):
        own = objective.take(torch.tensor([r]))

        def f(z, own=own, r=r):
            return own.value(own.full(z.unsqueeze(0), theta[r : r + 1])).squeeze(0)

        torch.testing.assert_close(value[r], f(free[r]), rtol=1e-12, atol=1e-12)
        for got, expected in (
            (gradient[r], torch.autograd.functional.jacobian(f, free[r])),
            (hessian[r], torch.autograd.functional.hessian(f, free[r])),
        ):
            assert (got - expected).abs().max() <= RELATIVE * expected.abs().max()
    torch.testing.assert_close(objective.gradient(theta)[1], gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("gate", GATES.values(), ids=GATES.keys())
def test_derivatives_are_those_of_autograd_for_every_gate(gate, d, seed):
    model = moe.GaussianMoE(3, d, gate=gate)
    objective = objective_of(model, 2, 50, seed)
    assert_derivatives(objective, start(objective, 2, seed))


@pytest.mark.parametrize("variance", ["per_expert", "shared", 0.3])
@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES.keys())
@pytest.mark.parametrize("expert", EXPERTS.values(), ids=EXPERTS.keys())
def test_derivatives_are_those_of_autograd_for_every_expert_and_outcome(expert, outcome, variance, seed):
    m = 1 if isinstance(outcome, moe.MultinomialLogit) else 2
    model = moe.GaussianMoE(3, 2, m, expert=expert, outcome=outcome, variance=variance)
    penalty = moe.Penalty(gate_scale=2.0, variance_shape=3.0, variance_scale=0.7)
    objective = objective_of(model, 2, 30, seed, penalty=penalty)
    assert_derivatives(objective, start(objective, 2, seed))


def test_gates_without_closed_form_refuse_derivatives(seed):
    for gate in (moe.GaussianGate(), moe.NetworkGate()):
        model = moe.GaussianMoE(2, 1, gate=gate)
        objective = objective_of(model, 1, 10, seed)
        with pytest.raises(UnsupportedError, match="no closed-form derivatives"):
            objective.derivatives(start(objective, 1, seed))


def test_the_penalty_is_a_sum_over_experts(seed):
    penalty = moe.Penalty(gate_scale=2.0, variance_shape=3.0, variance_scale=0.7)
    for variance in ("per_expert", "shared"):
        model = moe.GaussianMoE(2, 1, variance=variance)
        objective = objective_of(model, 1, 10, seed, penalty=penalty)
        theta = start(objective, 1, seed)
        gamma, _, scales, _ = model.split(theta[0])
        expected = -sum(w.item() ** 2 for w in gamma[:, 0]) / (2 * 2.0**2)
        variances = scales.exp().flatten().tolist() if variance == "per_expert" else [scales.exp()[0, 0].item()]
        expected -= sum(4.0 * math.log(v) + 0.7 / v for v in variances)
        assert penalty.value(model, theta).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gate", [moe.SoftmaxGate(), moe.ActivationGate("tanh")], ids=["softmax", "tanh"])
def test_pieces_and_streams_give_what_one_piece_gives(gate, seed, monkeypatch, tmp_path):
    model = moe.GaussianMoE(3, 2, gate=gate)
    whole = objective_of(model, 1, 3000, seed)
    theta = start(whole, 1, seed)
    expected = (*whole.derivatives(theta), whole.log_likelihood(theta), whole.outer_products(theta))
    monkeypatch.setattr(data_module, "PIECE_BYTES", 200_000)
    arrays = {}
    for name in ("X", "Y", "weights"):
        x = getattr(whole.data, name).squeeze(0).numpy()
        path = tmp_path / f"{name}.npy"
        np.save(path, x.T if x.ndim == 2 else x)
        arrays[name] = np.load(path, mmap_mode="r")
    streamed = Objective(model, moe.data.Data(**arrays, streamed=True))
    for objective in (whole, streamed):
        assert len(list(objective.data.pieces(objective.bytes_a_row(1)))) > 3
        got = (*objective.derivatives(theta), objective.log_likelihood(theta), objective.outer_products(theta))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-9)


def test_weights_count_rows(seed):
    model = moe.GaussianMoE(2, 1)
    X, Y = sample(GENTLE, 20, seed=seed)
    counts = torch.randint(0, 4, (20,), generator=torch.Generator().manual_seed(seed))
    weighted = Objective.of(model, X, Y, counts.double())
    repeated = Objective.of(model, X.repeat_interleave(counts, 0), Y.repeat_interleave(counts, 0))
    theta = start(weighted, 1, seed)
    for a, b in zip(weighted.derivatives(theta), repeated.derivatives(theta), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(weighted.outer_products(theta), repeated.outer_products(theta))


def test_scores_of_rows_sum_to_the_gradient(seed):
    model = moe.GaussianMoE(3, 2, gate=moe.ActivationGate("gelu"))
    objective = objective_of(model, 2, 40, seed, weighted=False)
    theta = start(objective, 2, seed)
    scores = objective.row_scores(theta)
    torch.testing.assert_close(scores.sum(1), objective.derivatives(theta)[1])
    torch.testing.assert_close(scores.mT @ scores, objective.outer_products(theta))


def test_information_identity(seed):
    """Minus the expected Hessian is the expected outer product of the scores, at the truth."""
    truth = moe.GaussianMoE.from_mixing_measure(GENTLE)
    X, Y = sample(GENTLE, 20_000, seed=seed)
    scores = Objective.of(truth, X, Y).row_scores(truth.theta.unsqueeze(0)).squeeze(0)
    error = scores.mean(0) / (scores.std(0) / math.sqrt(len(X)))
    assert error.abs().max() < 5
    observed = truth.information(X, Y) / len(X)
    opg = truth.information(X, Y, kind="opg") / len(X)
    products = scores.unsqueeze(-1) * scores.unsqueeze(-2)
    # Both are means over rows: the spread of the products bounds that of the difference within a factor.
    spread = products.std(0) / math.sqrt(len(X))
    assert ((observed - opg).abs() < 5 * 2 * spread).all()


@pytest.mark.parametrize(
    ("gate", "zeros"),
    [(moe.TemperatureGate(), 2), (moe.ActivationGate("relu"), 1), (moe.ActivationGate("gelu"), 0)],
    ids=["linear", "relu", "gelu"],
)
def test_what_a_temperature_leaves_unidentified(gate, zeros, seed):
    """Number of directions that move no outcome: the scale (broken by gelu) and the translation (by any activation)."""
    model = moe.GaussianMoE(2, 1, gate=gate)
    truth = moe.MixingMeasure(
        gate_bias=[0.4, 0.0], gate_weight=[[2.0], [-1.0]], intercept=[1.0, -1.0], coef=[[2.0], [-1.5]],
        variance=[0.16, 0.25], temperature=0.8, gate=gate,
    )  # fmt: skip
    theta = moe.GaussianMoE.from_mixing_measure(truth).theta.unsqueeze(0)
    generator = torch.Generator().manual_seed(seed)
    X = 4 * torch.rand(4000, 1, generator=generator, dtype=torch.double) - 2
    Y = moe.GaussianMoE.from_mixing_measure(truth).sample_outcomes(X, generator=generator)
    objective = Objective.of(model, X, Y)
    # Every gate coordinate but the last bias, and one temperature: what `free_index` may hold is let go.
    from probnn.moe.objective import _Derivatives

    rows = next(objective.data.pieces(1))
    own = _Derivatives(model, theta, rows).row_scores().squeeze(0)  # K q n
    temperature = own[:, 2].sum(0)
    scores = torch.stack([own[0, 0], own[0, 1], own[1, 0], temperature, *own[0, 3:], *own[1, 3:]])
    product = scores @ scores.T
    scale = product.diagonal().rsqrt()
    values = torch.linalg.eigvalsh(scale[:, None] * product * scale)
    assert (values < 1e-10 * values[-1]).sum() == zeros
    # The score along (c w, c b, c tau), c = 1: zero for homogeneous scores only.
    gamma = model.split(theta[0])[0]
    orbit = (own[:, 0] * gamma[:, :1] + own[:, 1] * gamma[:, 1:2]).sum(0) + temperature
    size = orbit.abs().max().item()
    assert size < 1e-10 if zeros else size > 1e-2
