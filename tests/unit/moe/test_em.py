"""EM: exact steps, monotone values, streamed data, weights."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from probnn import moe
from probnn.errors import UnsupportedError
from probnn.moe import data as data_module
from probnn.moe._checks import VARIANCE_FLOOR
from probnn.moe.data import Data
from probnn.moe.em import EM, em_step, run_em
from probnn.moe.objective import Objective

from .em_cases import easy, generator, random_start, truth, wavy

GATES = [
    moe.SoftmaxGate(),
    moe.SoftmaxGate(temperature=0.5),
    moe.SigmoidGate(),
    moe.TemperatureGate(),
    moe.ActivationGate("gelu"),
    moe.ActivationGate("relu"),
    moe.LaplaceGate(),
    moe.GaussianGate(),
    moe.TopKGate(active=2),
    moe.TopKGate(active=1),
]
LAWS = [
    (moe.GaussianOutcome(), "per_expert", 1),
    (moe.GaussianOutcome(), "shared", 2),
    (moe.GaussianOutcome(), 0.7, 1),
    (moe.StudentTOutcome(3.0), "per_expert", 2),
    (moe.MultinomialLogit(3), "per_expert", 1),
]


def climbs(objective: Objective, theta: torch.Tensor, steps: int, gate: str = "newton") -> torch.Tensor:
    """Values along EM."""
    em, values = EM.of(objective, gate), []
    for _ in range(steps):
        step = em.step(theta)
        values.append(step.value)
        theta = step.theta
    return torch.stack(values)


@pytest.mark.parametrize("penalty", [moe.Penalty(), moe.Penalty(5.0, 2.0, 0.1)])
@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{type(law[0]).__name__}-{law[1]}")
@pytest.mark.parametrize("gate", GATES, ids=repr)
def test_the_value_never_falls(gate, law, penalty, seed):
    outcome, variance, m = law
    model = moe.GaussianMoE(3, 2, m, gate=gate, outcome=outcome, variance=variance)
    objective = wavy(model, 3, 80, seed, weighted=True)
    objective = Objective(model, objective.data, penalty)
    values = climbs(objective, random_start(objective, 3, seed), 12)
    assert (values.diff(dim=0) >= -1e-11 * values[:-1].abs()).all()
    assert (values[-1] > values[0]).all()


def test_the_value_never_falls_from_many_starts(seed):
    objective = wavy(moe.GaussianMoE(3, 1), 1, 100, seed)
    values = climbs(objective, random_start(objective, 200, seed, scale=2.0), 100)
    assert (values.diff(dim=0) >= -1e-8 * values[:-1].abs()).all()


def test_constant_experts_are_a_gaussian_mixture(seed):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    rng = np.random.default_rng(seed)
    y = np.concatenate([rng.normal(-2, 1, 60), rng.normal(0, 0.5, 70), rng.normal(3, 1.5, 70)])
    start = {"weights_init": [0.3, 0.3, 0.4], "means_init": [[-1.0], [0.5], [2.0]]}
    model = moe.GaussianMoE(3, 0)
    Y = torch.from_numpy(y).unsqueeze(-1)
    objective = Objective.of(model, Y.new_zeros(len(Y), 0), Y)
    log_mass = torch.tensor([0.3, 0.3, 0.4], dtype=torch.double).log()
    means = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.double)
    theta = torch.stack([log_mass - log_mass[-1], means, torch.zeros(3).double()], -1).reshape(1, -1)
    for steps in range(1, 15):
        theta, _ = em_step(objective, theta)
        other = GaussianMixture(3, reg_covar=0, tol=0, max_iter=steps, precisions_init=[[[1.0]]] * 3, **start)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            other.fit(y[:, None])
        gamma, beta, scales, _ = model.split(theta[0])
        np.testing.assert_allclose(gamma[:, 0].softmax(0), other.weights_, atol=1e-10)
        np.testing.assert_allclose(beta.flatten(), other.means_[:, 0], atol=1e-9)
        np.testing.assert_allclose(scales.exp()[:, 0], other.covariances_[:, 0, 0], rtol=1e-9)
        assert objective.value(theta).item() / len(y) == pytest.approx(other.score(y[:, None]), abs=1e-10)


def test_a_gaussian_gate_is_a_mixture_of_joint_normals(seed):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    rng = np.random.default_rng(seed)
    xy = np.concatenate([rng.normal(size=(80, 3)) @ rng.normal(size=(3, 3)) + 3 * k for k in (-1, 0, 1)])
    centre, log_mass = np.array([[-2.0, -2.0], [0.0, 0.5], [2.0, 1.0]]), np.log([0.2, 0.3, 0.5])
    coef, intercept, covariance = np.array([[0.5, 0.2], [0.0, 1.0], [-0.3, 0.1]]), np.array([0.1, -0.2, 0.4]), np.eye(2)
    covariances, gate = np.stack([covariance] * 3), moe.GaussianGate()
    G = moe.MixingMeasure(log_mass, centre, intercept, coef, [1.0, 1.5, 2.0], None, covariances, gate)
    model = moe.GaussianMoE.from_mixing_measure(G)
    X, Y = torch.from_numpy(xy[:, :2]), torch.from_numpy(xy[:, 2:])
    objective, theta = Objective.of(model, X, Y), model.theta.unsqueeze(0)
    joint_mean = np.column_stack([centre, (coef * centre).sum(-1) + intercept])
    joint = [
        np.block([[covariance, a[:, None]], [a[None], a @ a + v]]) for a, v in zip(coef, (1.0, 1.5, 2.0), strict=True)
    ]
    start = {
        "weights_init": np.exp(log_mass),
        "means_init": joint_mean,
        "precisions_init": np.linalg.inv(np.array(joint)),
    }
    for steps in range(1, 8):
        value = objective.value(theta)
        theta, same = em_step(objective, theta)
        torch.testing.assert_close(value, same)
        other = GaussianMixture(3, reg_covar=0, tol=0, max_iter=steps, **start)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            other.fit(xy)
        assert objective.value(theta).item() == pytest.approx(other.score_samples(xy).sum(), rel=1e-10)
        np.testing.assert_allclose(model.split(theta[0])[0][:, :2], other.means_[:, :2], atol=1e-8)


@pytest.mark.parametrize("gate", ["newton", "mm"])
def test_known_classes_make_the_gate_a_logistic_regression(gate, seed):
    from sklearn.linear_model import LogisticRegression

    g = generator(seed)
    label = torch.arange(2000) % 3
    X = torch.randn(2000, 2, generator=g, dtype=torch.double) + label.unsqueeze(-1) * 0.5
    # Constant experts at the label with a tiny variance: responsibilities are one-hot.
    model = moe.GaussianMoE(3, 2, variance=1e-4)
    objective = Objective.of(model, X, label.double().unsqueeze(-1))
    theta = torch.zeros(1, model.num_parameters, dtype=torch.double)
    gamma, beta, scales, _ = model.split(theta)
    beta[..., 0, -1] = torch.arange(3)
    theta = model.join(gamma, beta, scales + torch.tensor(1e-4).double().log())
    values = climbs(objective, theta, 40, gate)
    assert (values.diff(dim=0) >= -1e-13 * values[:-1].abs()).all()
    state = run_em(objective, theta, tol=1e-12, gate=gate)
    assert state.converged.all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spellings of the penalty differ between versions of scikit-learn
        other = LogisticRegression(C=1e10, tol=1e-10, max_iter=10_000).fit(X.numpy(), label.numpy())
    expected = np.column_stack([other.coef_, other.intercept_])
    np.testing.assert_allclose(model.split(state.theta[0])[0], expected - expected[-1:], atol=1e-4)


@pytest.mark.parametrize("criterion", ["decrement", "aitken"])
def test_methods_of_the_gate_and_rules_agree_on_the_maximum(criterion, seed):
    objective, theta = easy(4, 300, seed)
    newton = run_em(objective, theta, tol=1e-9, criterion=criterion)
    bound = run_em(objective, theta, tol=1e-9, criterion=criterion, gate="mm")
    assert newton.converged.all() and bound.converged.all()
    torch.testing.assert_close(newton.value, bound.value, atol=1e-6, rtol=0)
    torch.testing.assert_close(newton.value, objective.value(newton.theta), atol=1e-10, rtol=0)
    _, gradient, _ = objective.derivatives(newton.theta)
    assert gradient.abs().max() < 1e-2
    early = run_em(objective, theta, tol=1e-4, criterion="relative")
    assert early.converged.all() and (early.value < newton.value).all() and (early.num_iter < newton.num_iter).all()


def test_entries_climb_as_if_alone(seed):
    objective, theta = easy(4, 200, seed)
    together = run_em(objective, theta, tol=1e-8, criterion="aitken")
    assert len(together.num_iter.unique()) > 1  # they left the batch at different times
    for b in range(4):
        alone = run_em(objective.take(torch.tensor([b])), theta[b : b + 1], tol=1e-8, criterion="aitken")
        torch.testing.assert_close(alone.theta[0], together.theta[b], atol=1e-8, rtol=1e-8)
        assert alone.num_iter[0] == together.num_iter[b]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{type(law[0]).__name__}-{law[1]}")
@pytest.mark.parametrize("gate", [moe.SoftmaxGate(), moe.LaplaceGate(), moe.GaussianGate(), moe.TopKGate(active=2)])
def test_streamed_rows_give_the_same_fit(gate, law, seed, tmp_path, monkeypatch):
    outcome, variance, m = law
    model = moe.GaussianMoE(3, 2, m, gate=gate, outcome=outcome, variance=variance)
    whole = wavy(model, 1, 1000, seed, weighted=True)
    theta = random_start(whole, 2, seed)
    arrays = []
    for name, x in (("X", whole.data.X[0].T), ("Y", whole.data.Y[0].T)):
        array = np.lib.format.open_memmap(tmp_path / f"{name}.npy", mode="w+", dtype=float, shape=tuple(x.shape))
        array[:] = x.numpy()
        arrays.append(array)
    streamed = Objective(model, Data(*arrays, whole.data.weights[0].numpy(), streamed=True))
    settings = {"tol": 1e-300, "criterion": "relative"}
    once, expected = (run_em(whole, theta, max_iter=steps, **settings) for steps in (1, 8))
    monkeypatch.setattr(data_module, "PIECE_BYTES", 1)
    assert len(list(streamed.data.pieces(1))) == 4
    found = run_em(streamed, theta, max_iter=1, **settings)
    torch.testing.assert_close(found.theta, once.theta, atol=1e-9, rtol=1e-9)
    found = run_em(streamed, theta, max_iter=8, **settings)
    torch.testing.assert_close(found.value, expected.value, atol=0, rtol=1e-9)


@pytest.mark.parametrize("gate", GATES, ids=repr)
def test_whole_weights_are_repeated_rows(gate, seed):
    model = moe.GaussianMoE(3, 2, gate=gate)
    data = wavy(model, 1, 60, seed).data
    times = torch.arange(60) % 3
    weighted = Objective(model, Data(data.X, data.Y, times.double().unsqueeze(0)))
    repeated = Objective(model, Data(*(x.repeat_interleave(times, -1) for x in (data.X, data.Y))))
    theta = random_start(weighted, 2, seed)
    for _ in range(3):
        one, two = em_step(weighted, theta), em_step(repeated, theta)
        torch.testing.assert_close(one[1], two[1], atol=1e-9, rtol=1e-11)
        torch.testing.assert_close(one[0], two[0], atol=1e-8, rtol=1e-8)
        theta = one[0]


@pytest.mark.parametrize("expert", [moe.LinearExpert(), moe.PolynomialExpert(1)])
@pytest.mark.parametrize("gate", [moe.SoftmaxGate(), moe.SigmoidGate()])
def test_far_from_the_origin_no_digits_are_lost(gate, expert, seed):
    X = 1e6 + torch.rand(300, 1, generator=generator(seed), dtype=torch.double).mul(2).sub(1)
    near = X - 1e6  # exact
    Y = 1e5 + truth().sample_outcomes(near, generator=generator(seed + 1))
    model = moe.GaussianMoE(2, 1, gate=gate, expert=expert)
    here, there = Objective.of(model, near, Y - 1e5), Objective.of(model, X, Y)
    theta = random_start(here, 3, seed)
    gamma, beta, scales, _ = (x.clone() for x in model.split(theta))
    gamma[..., 1] -= 1e6 * gamma[..., 0]
    beta[..., 1] += 1e5 - 1e6 * beta[..., 0]
    far = model.join(gamma, beta, scales)
    one, two = (run_em(o, t, max_iter=15, tol=1e-300, criterion="relative") for o, t in ((here, theta), (there, far)))
    torch.testing.assert_close(one.value, two.value, atol=1e-5, rtol=0)


def test_residual_variances_do_not_cancel(seed):
    x = torch.rand(50, 1, generator=generator(seed), dtype=torch.double)
    noise = 1e-3 * torch.randn(50, 1, generator=generator(seed + 1), dtype=torch.double)
    model = moe.GaussianMoE(1, 1)
    objective = Objective.of(model, x, 1e6 + 2e2 * x + noise)
    theta = torch.zeros(1, model.num_parameters, dtype=torch.double)
    for _ in range(3):
        theta, _ = em_step(objective, theta)
    design = np.column_stack([x.numpy(), np.ones(50)])
    rss = np.linalg.lstsq(design, (objective.data.Y[0, 0] - 1e6).numpy(), rcond=None)[1][0]
    assert theta[0, -1].exp().item() == pytest.approx(rss / 50, rel=1e-5)


def test_an_expert_of_few_rows_ends_as_degenerate():
    x = torch.linspace(0, 1, 30).double()
    y = (9 * x).sin() + 3 * (x > 0.9)
    y[x > 0.9] = 5 * x[x > 0.9]  # rows on a line: their variance is zero
    model = moe.GaussianMoE(2, 1)
    objective = Objective.of(model, x.unsqueeze(-1), y.unsqueeze(-1))
    theta = torch.tensor([[200.0, -180.0, 5.0, 0.0, -4.0, 0.0, 0.0, 0.0, 0.0, 0.0]]).double()
    state = run_em(objective, theta, criterion="relative", tol=1e-12)
    assert state.degenerate.all() and not state.converged.any()
    floor = VARIANCE_FLOOR * y.var(correction=0)
    torch.testing.assert_close(model.split(state.theta)[2].exp().min(), floor, rtol=1e-9, atol=0)


def test_an_expert_without_rows_stays_as_it_is(seed):
    objective = wavy(moe.GaussianMoE(2, 1), 1, 40, seed)
    theta = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1e6, 0.0]]).double()
    step = EM.of(objective).step(theta)
    assert step.degenerate.all()
    assert (step.theta[0, 7:] == theta[0, 7:]).all() and step.theta.isfinite().all()


def test_networks_are_referred_to_lbfgs(seed):
    for options in ({"gate": moe.NetworkGate()}, {"expert": moe.MLPExpert()}):
        objective = wavy(moe.GaussianMoE(2, 1, **options), 1, 20, seed)
        with pytest.raises(UnsupportedError, match="method='lbfgs'"):
            run_em(objective, random_start(objective, 1, seed))
    objective = wavy(moe.GaussianMoE(2, 1, gate=moe.GaussianGate()), 1, 20, seed)
    with pytest.raises(UnsupportedError, match="aitken"):
        run_em(objective, random_start(objective, 1, seed))
    with pytest.raises(UnsupportedError, match="gate='newton'"):
        run_em(objective, random_start(objective, 1, seed), gate="mm", criterion="aitken")


def test_a_callback_sees_the_climb_and_stops_it(seed):
    objective, theta = easy(2, 100, seed)
    seen = []

    def callback(done, total, state):
        seen.append((done, total, state.theta.clone()))
        return done == 4

    state = run_em(objective, theta, max_iter=50, tol=1e-300, criterion="relative", callback=callback)
    assert [entry[:2] for entry in seen] == [(t, 50) for t in range(1, 5)]
    assert (state.num_iter == 4).all() and (state.theta == seen[-1][2]).all() and not state.converged.any()
    torch.testing.assert_close(state.value, objective.value(state.theta), atol=0, rtol=0)
