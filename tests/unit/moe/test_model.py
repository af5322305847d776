"""The density of a mixture of experts: naive loops, identities, simulation, bad input."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import probnn
from probnn import moe
from probnn.errors import DomainError, NonFiniteError, ShapeError, UnsupportedError

from .models import CROSSING, EXPERTS, GATES, GENTLE, OUTCOMES, normal, sample, uniform


def random_model(seed, **options):
    model = moe.GaussianMoE(**{"num_experts": 3, "input_dim": 2, **options})
    return replace(model, theta=0.5 * normal(model.num_parameters, seed=seed))


def naive_log_prob(measure, x, y, gate):
    """log sum_i pi_i N(y | h_i, nu_i) by plain Python numbers."""
    k = measure.num_atoms
    w, b = measure.gate_weight.tolist(), measure.gate_bias.tolist()
    tau = 1.0 if measure.temperature is None else measure.temperature.item()
    scores = [gate(w[i], b[i], x, tau) for i in range(k)]
    total = sum(math.exp(s) for s in scores)
    density = 0.0
    for i in range(k):
        mean = measure.intercept[i].item() + sum(a * v for a, v in zip(measure.coef[i].tolist(), x, strict=True))
        nu = measure.variance[i].item()
        density += math.exp(scores[i]) / total * math.exp(-((y - mean) ** 2) / (2 * nu)) / math.sqrt(2 * math.pi * nu)
    return math.log(density)


def dot(w, x):
    return sum(a * b for a, b in zip(w, x, strict=True))


NAIVE = {
    "softmax": lambda w, b, x, t: dot(w, x) + b,
    "softmax, tempered": lambda w, b, x, t: (dot(w, x) + b) / t,
    "temperature": lambda w, b, x, t: (dot(w, x) + b) / t,
    "gelu": lambda w, b, x, t: (dot(w, x) * 0.5 * (1 + math.erf(dot(w, x) / math.sqrt(2))) + b) / t,
    "tanh": lambda w, b, x, t: (math.tanh(dot(w, x)) + b) / t,
    "sigmoid": lambda w, b, x, t: (1 / (1 + math.exp(-dot(w, x))) + b) / t,
    "silu": lambda w, b, x, t: (dot(w, x) / (1 + math.exp(-dot(w, x))) + b) / t,
    "relu": lambda w, b, x, t: (max(dot(w, x), 0.0) + b) / t,
    "laplace": lambda w, b, x, t: b - math.dist(w, x),
    "logistic": lambda w, b, x, t: -math.log1p(math.exp(-(dot(w, x) + b))),
}


@pytest.mark.parametrize("name", GATES)
def test_log_prob_is_that_of_plain_loops(name, seed):
    model = random_model(seed, gate=GATES[name])
    if model.gate.tied(2):  # one temperature
        index = model.free_index()
        theta = model.theta.clone()
        tied = [i * model.width + 3 for i in range(3)]
        theta[tied] = 0.3
        model = replace(model, theta=theta)
        assert len(index) == model.num_parameters
    X, Y = normal(7, 2, seed=seed + 1), normal(7, 1, seed=seed + 2)
    measure, rows = model.mixing_measure(), zip(X.tolist(), Y.flatten().tolist(), strict=True)
    expected = torch.tensor([naive_log_prob(measure, x, y, NAIVE[name]) for x, y in rows], dtype=torch.double)
    torch.testing.assert_close(model.log_prob(X, Y), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("outcome", [moe.GaussianOutcome(), moe.StudentTOutcome(3.0)], ids=["gaussian", "student-t"])
def test_densities_integrate_to_one(outcome, seed):
    model = random_model(seed, outcome=outcome)
    x = normal(2, seed=seed)
    # y = sinh(u) reaches far into the tails.
    u = torch.linspace(-18, 18, 40_001, dtype=torch.double)
    y = u.sinh()
    density = model.log_prob(x.expand(len(y), 2), y).exp()
    assert torch.trapezoid(density * u.cosh(), u).item() == pytest.approx(1, abs=1e-6)


def test_probabilities_of_classes_sum_to_one(seed):
    model = random_model(seed, outcome=moe.MultinomialLogit(3))
    X = normal(5, 2, seed=seed)
    probs = torch.stack([model.log_prob(X, torch.full((5, 1), float(c)).double()).exp() for c in range(3)], -1)
    torch.testing.assert_close(probs.sum(-1), torch.ones(5).double())
    torch.testing.assert_close(model.moments(X)[0], probs)
    torch.testing.assert_close(model.moments(X)[1], probs * (1 - probs))


def test_log_prob_of_outcomes_is_a_mixture_of_products(seed):
    model = random_model(seed, num_outcomes=2)
    X, Y = normal(4, 2, seed=seed), normal(4, 2, seed=seed + 1)
    scale = (0.5 * model.split(model.theta)[2]).exp()
    normals = torch.distributions.Normal(model.expert_means(X), scale)
    expected = (model.gate_log_probs(X) + normals.log_prob(Y.unsqueeze(1)).sum(-1)).logsumexp(-1)
    torch.testing.assert_close(model.log_prob(X, Y), expected)
    r = model.responsibilities(X, Y)
    torch.testing.assert_close(r.sum(-1), torch.ones(4).double())
    joint = model.gate_log_probs(X) + normals.log_prob(Y.unsqueeze(1)).sum(-1)
    torch.testing.assert_close(r, (joint - expected.unsqueeze(-1)).exp())


def test_the_gaussian_gate_is_a_mixture_of_joint_normals(seed):
    """Its density of (x, y) is a Gaussian mixture whose blocks follow from the regression."""
    covariance = torch.tensor([[[1.0, 0.3], [0.3, 0.5]], [[0.4, -0.1], [-0.1, 0.9]]], dtype=torch.double)
    measure = moe.MixingMeasure(
        gate_bias=torch.tensor([0.3, 0.7], dtype=torch.double).log(), gate_weight=[[0.5, -1.0], [1.0, 0.2]],
        intercept=[1.0, -1.0], coef=[[2.0, 0.5], [-1.5, 1.0]], variance=[0.16, 0.25], gate_covariance=covariance,
        gate=moe.GaussianGate(),
    )  # fmt: skip
    model = moe.GaussianMoE.from_mixing_measure(measure)
    X, Y = normal(6, 2, seed=seed), normal(6, 1, seed=seed + 1)
    joint = []
    for i in range(2):
        a, S = measure.coef[i], covariance[i]
        mean = torch.cat([measure.gate_weight[i], (measure.intercept[i] + a @ measure.gate_weight[i]).reshape(1)])
        cross = (S @ a).unsqueeze(-1)
        full = torch.cat(
            [torch.cat([S, cross], 1), torch.cat([cross.T, (a @ S @ a + measure.variance[i]).reshape(1, 1)], 1)]
        )
        law = torch.distributions.MultivariateNormal(mean, full)
        joint.append(measure.gate_bias[i] + law.log_prob(torch.cat([X, Y], -1)))
    torch.testing.assert_close(model.log_prob(X, Y), torch.stack(joint).logsumexp(0))
    torch.testing.assert_close(model.mixing_measure().gate_covariance, covariance)


@pytest.mark.parametrize("seed_shift", range(3))
@pytest.mark.parametrize("name", GATES)
def test_measures_and_canonical_forms_keep_the_density(name, seed_shift, seed):
    base = random_model(seed + seed_shift, gate=GATES[name])
    if base.gate.tied(2):
        theta = base.theta.clone()
        theta[[i * base.width + 3 for i in range(3)]] = 0.4
        base = replace(base, theta=theta)
    X, Y = normal(20, 2, seed=seed), normal(20, 1, seed=seed + 1)
    expected = base.log_prob(X, Y)
    again = moe.GaussianMoE.from_mixing_measure(base.mixing_measure())
    torch.testing.assert_close(again.log_prob(X, Y), expected, rtol=1e-12, atol=1e-12)
    canonical = base.canonicalize()
    torch.testing.assert_close(canonical.log_prob(X, Y), expected, rtol=1e-11, atol=1e-11)
    gamma = canonical.split(canonical.theta)[0]
    assert (gamma[-1, list(base.gate.held(2))] == 0).all()
    if name == "temperature":
        assert gamma[:, :2].square().sum().item() == pytest.approx(1)


def test_translation_changes_nothing(seed):
    X, Y = sample(GENTLE, 50, seed=seed)
    moved = replace(GENTLE, gate_bias=GENTLE.gate_bias + 3, gate_weight=GENTLE.gate_weight + 7)
    before = moe.GaussianMoE.from_mixing_measure(GENTLE).log_prob(X, Y)
    after = moe.GaussianMoE.from_mixing_measure(moved).log_prob(X, Y)
    assert ((before - after).abs() <= 1e-12 * before.abs().clamp_min(1)).all()


@pytest.mark.parametrize("c", [0.1, 10.0])
def test_a_linear_gate_has_no_temperature(c, seed):
    gate = moe.TemperatureGate()
    measure = replace(GENTLE, gate=gate, temperature=torch.tensor(0.7).double())
    scaled = replace(
        measure,
        gate_bias=c * measure.gate_bias,
        gate_weight=c * measure.gate_weight,
        temperature=c * measure.temperature,
    )
    X, Y = sample(GENTLE, 50, seed=seed)
    before, after = (moe.GaussianMoE.from_mixing_measure(m).log_prob(X, Y) for m in (measure, scaled))
    torch.testing.assert_close(before, after, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES.keys())
def test_drawn_outcomes_have_the_moments(outcome, seed):
    model = random_model(
        seed, outcome=outcome if not isinstance(outcome, moe.StudentTOutcome) else moe.StudentTOutcome(9.0)
    )
    X = normal(2, 2, seed=seed)
    n = 40_000
    mean, variance = model.moments(X)
    Y = model.sample_outcomes(X.repeat_interleave(n, 0), generator=torch.Generator().manual_seed(seed)).reshape(
        2, n, -1
    )
    if isinstance(outcome, moe.MultinomialLogit):
        Y = torch.nn.functional.one_hot(Y.long().squeeze(-1), 3).double()
    spread = Y.std(1) / math.sqrt(n)
    assert ((Y.mean(1) - mean).abs() < 5 * spread).all()
    square = (Y - mean.unsqueeze(1)).square()
    assert ((square.mean(1) - variance).abs() < 5 * square.std(1) / math.sqrt(n) + 1e-12).all()


def test_drawn_experts_have_the_gate_s_probabilities(seed):
    X = uniform(1, 1, seed=seed).expand(50_000, 1)
    Y = moe.GaussianMoE.from_mixing_measure(replace(CROSSING, variance=[1e-6, 1e-6])).sample_outcomes(
        X, generator=torch.Generator().manual_seed(seed)
    )
    model = moe.GaussianMoE.from_mixing_measure(CROSSING)
    first = ((Y - model.expert_means(X)[:, 0]).abs() < 0.1).double().mean().item()
    p = model.gate_log_probs(X[:1]).exp()[0, 0].item()
    assert abs(first - p) < 5 * math.sqrt(p * (1 - p) / len(X)) + 1e-9


def test_top_k_keeps_the_k_largest(seed):
    X, Y = normal(30, 2, seed=seed), normal(30, 1, seed=seed + 1)
    dense = random_model(seed)
    full = replace(dense, gate=moe.TopKGate(active=3))
    torch.testing.assert_close(full.log_prob(X, Y), dense.log_prob(X, Y), rtol=1e-15, atol=0)
    one = replace(dense, gate=moe.TopKGate(active=1))
    chosen = one.gate_log_probs(X).argmax(-1)
    scale = (0.5 * one.split(one.theta)[2][chosen]).exp()
    mean = one.expert_means(X)[torch.arange(30), chosen]
    torch.testing.assert_close(one.log_prob(X, Y), torch.distributions.Normal(mean, scale).log_prob(Y).squeeze(-1))
    two = replace(dense, gate=moe.TopKGate(active=2, rank_by="score"))
    assert (two.gate_log_probs(X).isfinite().sum(-1) == 2).all()
    scores = two.split(two.theta)[0][:, :2] @ X.T
    torch.testing.assert_close(two.gate_log_probs(X).isneginf().double().argmax(-1), scores.argmin(0))
    theta = two.theta.clone().requires_grad_(True)
    replace(two, theta=theta).log_prob(X, Y).sum().backward()
    assert theta.grad.isfinite().all()


@pytest.mark.parametrize("name", EXPERTS)
def test_features_of_experts(name):
    expert = EXPERTS[name]
    X = torch.tensor([[2.0, 3.0]], dtype=torch.double)
    features = expert.design(X.mT).flatten().tolist()
    expected = {
        "linear": [2, 3, 1],
        "polynomial": [2, 3, 4, 6, 9, 1],
        "additive": [2, 3, 4, 9, 8, 27, 1],
        "features": [math.sin(2), math.sin(3), 1],
    }[name]
    assert features == pytest.approx(expected)
    assert expert.width(2) == len(features)


def test_networks_are_those_of_the_library(seed):
    model = random_model(seed, expert=moe.MLPExpert(hidden=(4,)), gate=moe.NetworkGate(hidden=(3,)))
    _, beta, _, tail = model.split(model.theta)
    X = normal(5, 2, seed=seed)
    net = probnn.MLP(input_dim=2, hidden=(4,), output_dim=1)
    expected = torch.stack([net(beta[i, 0], X).squeeze(-1) for i in range(3)], -1)
    torch.testing.assert_close(model.expert_means(X).squeeze(-1), expected)
    gate = probnn.MLP(input_dim=2, hidden=(3,), output_dim=3)
    torch.testing.assert_close(model.gate_log_probs(X), gate(tail, X).log_softmax(-1))
    with pytest.raises(UnsupportedError, match="networks have no atoms"):
        model.mixing_measure()
    with pytest.raises(UnsupportedError, match="no features"):
        model.expert.design(X.mT)


def test_replicates_are_models_side_by_side(seed):
    model = moe.GaussianMoE(2, 1)
    theta = normal(3, model.num_parameters, seed=seed)
    X, Y = uniform(3, 6, 1, seed=seed), normal(3, 6, 1, seed=seed)
    together = replace(model, theta=theta)
    for r in range(3):
        alone = replace(model, theta=theta[r])
        torch.testing.assert_close(together.log_prob(X, Y)[r], alone.log_prob(X[r], Y[r]))
        torch.testing.assert_close(together.log_prob(X[0], Y[0])[r], alone.log_prob(X[0], Y[0]))
        torch.testing.assert_close(together.expert_means(X)[r], alone.expert_means(X[r]))
        torch.testing.assert_close(together.mixing_measure()[r].coef, alone.mixing_measure().coef)
        torch.testing.assert_close(together.information(X, Y)[r], alone.information(X[r], Y[r]))
    assert together.sample_outcomes(X, generator=torch.Generator().manual_seed(0)).shape == (3, 6, 1)
    assert together.log_prob(X, Y.squeeze(-1)).equal(together.log_prob(X, Y))


def test_saving_gives_the_model_back(tmp_path, seed):
    for gate in (*GATES.values(), moe.TopKGate(active=2), moe.GaussianGate()):
        model = random_model(seed, gate=gate, outcome=moe.StudentTOutcome(5.0))
        probnn.save(model, tmp_path / "model.safetensors")
        again = probnn.load(tmp_path / "model.safetensors")
        assert again.theta.equal(model.theta) and again.gate == gate and again.outcome == model.outcome


def test_bad_settings_are_refused():
    with pytest.raises(DomainError, match="num_experts must be an integer >= 1, got 0"):
        moe.GaussianMoE(0, 1)
    with pytest.raises(DomainError, match="active must be at most the 2 experts, got 3"):
        moe.GaussianMoE(2, 1, gate=moe.TopKGate(active=3))
    with pytest.raises(DomainError, match="temperature must be positive"):
        moe.SoftmaxGate(temperature=0.0)
    with pytest.raises(DomainError, match="gate must be a moe.Gate"):
        moe.GaussianMoE(2, 1, gate="softmax")
    with pytest.raises(DomainError, match="variance"):
        moe.GaussianMoE(2, 1, variance="each")
    with pytest.raises(DomainError, match="df must be positive"):
        moe.StudentTOutcome(-1.0)
    with pytest.raises(DomainError, match="num_classes"):
        moe.MultinomialLogit(1)
    with pytest.raises(ShapeError, match=r"theta must have shape .* P = 10, got \(3,\)"):
        moe.GaussianMoE(2, 1, theta=torch.zeros(3))
    with pytest.raises(UnsupportedError, match="no parameters yet"):
        moe.GaussianMoE(2, 1).log_prob(torch.zeros(3, 1), torch.zeros(3, 1))
    with pytest.raises(ShapeError, match="intercept must have shape"):
        replace(CROSSING, intercept=[1.0, 2.0, 3.0])
    with pytest.raises(DomainError, match="variance must be positive"):
        replace(CROSSING, variance=[0.1, 0.0])
    with pytest.raises(NonFiniteError, match="coef must be finite"):
        replace(CROSSING, coef=[[math.nan], [1.0]])
    with pytest.raises(DomainError, match="rectangular"):
        replace(CROSSING, coef=[[1.0], [1.0, 2.0]])
    with pytest.raises(ShapeError, match="one replicate only"):
        CROSSING[0]
    model = moe.GaussianMoE.from_mixing_measure(CROSSING)
    with pytest.raises(ShapeError, match="X must have shape"):
        model.log_prob(torch.zeros(3, 2).double(), torch.zeros(3, 1).double())
    with pytest.raises(DomainError, match="class numbers"):
        classes = moe.GaussianMoE(2, 1, outcome=moe.MultinomialLogit(3))
        replace(classes, theta=torch.zeros(classes.num_parameters).double()).log_prob(
            torch.zeros(3, 1).double(), torch.full((3, 1), 3.0).double()
        )


def test_measures_and_models_must_agree_on_variances():
    with pytest.raises(DomainError, match="must be that number"):
        moe.GaussianMoE.from_mixing_measure(CROSSING, variance=1.0)
    with pytest.raises(DomainError, match="must be equal"):
        moe.GaussianMoE.from_mixing_measure(CROSSING, variance="shared")
    same = replace(CROSSING, variance=[0.2, 0.2])
    for variance in ("shared", 0.2):
        model = moe.GaussianMoE.from_mixing_measure(same, variance=variance)
        assert model.mixing_measure().variance.tolist() == pytest.approx([0.2, 0.2])
    with pytest.raises(DomainError, match="needs gate_covariance"):
        replace(CROSSING, gate=moe.GaussianGate())
    with pytest.raises(DomainError, match="order must be the indices 0 to 1"):
        CROSSING.permuted([0, 0])


def test_atoms_can_be_reordered():
    swapped = CROSSING.permuted(torch.tensor([1, 0]))
    assert swapped.intercept.tolist() == [-5.0, 15.0] and swapped.coef.tolist() == [[20.0], [-20.0]]
    assert swapped.gate_bias.tolist() == [0.0, -8.0] and swapped.variance.tolist() == [0.16, 0.09]
