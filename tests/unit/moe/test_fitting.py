"""Maximum likelihood: closed forms, EM from the same starts, standard errors, statuses, bad input."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import probnn
from probnn import moe
from probnn.errors import ConvergenceWarning, DomainError, NonFiniteError, PrecisionWarning, ShapeError
from probnn.moe.em import run_em
from probnn.moe.gradient import run_lbfgs
from probnn.moe.newton import run_newton
from probnn.moe.objective import Objective
from probnn.moe.starts import KINDS, near_truth, starting_points
from probnn.progress import Progress

from .models import CROSSING, GENTLE, normal, sample, uniform

LINE = moe.GaussianMoE(2, 1)


def test_one_expert_is_least_squares(seed):
    X = normal(40, 2, seed=seed)
    Y = X @ torch.tensor([[1.0], [-2.0]], dtype=torch.double) + 0.3 * normal(40, 1, seed=seed + 1) + 5
    fit = moe.fit(moe.GaussianMoE(1, 2), X, Y)
    design = torch.cat([X, torch.ones(40, 1)], 1)
    solution = torch.linalg.lstsq(design, Y).solution
    rss = (Y - design @ solution).square().sum()
    G = fit.model.mixing_measure()
    torch.testing.assert_close(G.coef[0], solution[:2, 0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(G.intercept[0], solution[2, 0], rtol=1e-9, atol=1e-9)
    assert G.variance.item() == pytest.approx(rss.item() / 40, rel=1e-9)
    assert fit.log_likelihood.item() == pytest.approx(-20 * (math.log(2 * math.pi * rss.item() / 40) + 1), abs=1e-9)
    assert fit.num_iter <= 2 and fit.status == "converged"
    errors = fit.standard_errors()
    expected = (rss / 40 * torch.linalg.inv(design.T @ design).diagonal()).sqrt()
    torch.testing.assert_close(errors["coef"][0], expected[:2], rtol=1e-6, atol=0)
    assert errors["variance"].item() == pytest.approx(rss.item() / 40 * math.sqrt(2 / 40), rel=1e-6)


def test_newton_reaches_what_em_reaches(seed):
    """From the same starts near the truth, three experts where two are true."""
    R = 16
    X, Y = sample(CROSSING, R, 1000, seed=seed)
    model = moe.GaussianMoE(3, 1)
    objective = Objective.of(model, X, Y)
    generator = torch.Generator().manual_seed(seed)
    theta = near_truth(model, CROSSING, 1000, (R, 1), generator).squeeze(1)
    warm = run_em(objective, theta, max_iter=10, tol=1e-300, criterion="relative").theta
    newton = run_newton(objective, warm)
    assert newton.converged.all() and (newton.decrement < 1e-6).all()
    assert (newton.value >= objective.value(warm)).all()
    em = run_em(objective, theta, max_iter=1500, tol=1e-10, criterion="relative")
    lead = newton.value - em.value
    assert (lead >= -5.0).all() and (lead >= -1e-3).double().mean() >= 0.75


def test_restarts_are_never_below_em_from_the_same_starts(seed):
    R, S = 6, 6
    X, Y = sample(CROSSING, R, 300, seed=seed)
    model = moe.GaussianMoE(3, 1)
    fit = moe.fit(model, X, Y, num_restarts=S, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    starts = starting_points(model, Objective.of(model, X, Y).data, KINDS, S, generator)
    objective = Objective.of(model, X.repeat_interleave(S, 0), Y.repeat_interleave(S, 0))
    em = run_em(objective, starts.flatten(0, 1), max_iter=3000, tol=1e-9, criterion="relative")
    # An expert on a few rows that lie on a line by chance is a maximum too; there are more of them than starts.
    scales = model.split(em.theta)[2].squeeze(-1)
    spike = scales.amin(-1) < scales.amax(-1) + math.log(1e-3)
    best = em.value.masked_fill(em.degenerate | spike, -math.inf).reshape(R, S).amax(-1)
    assert (fit.log_likelihood >= best - 1e-4).all()


def test_a_batch_is_its_members(seed):
    X, Y = sample(GENTLE, 16, 200, seed=seed)
    together = moe.fit(LINE, X, Y, starts=GENTLE, num_restarts=1, tol=1e-12)
    for r in range(0, 16, 5):
        start = moe.GaussianMoE.from_mixing_measure(GENTLE)
        batch = moe.fit(LINE, X, Y, starts=start, tol=1e-12)
        alone = moe.fit(LINE, X[r], Y[r], starts=start, tol=1e-12)
        torch.testing.assert_close(alone.model.theta, batch.model.theta[r], rtol=1e-8, atol=1e-8)
        assert alone.status == batch.status[r]
        torch.testing.assert_close(alone.log_likelihood, together.log_likelihood[r], rtol=0, atol=1e-6)
    assert together.restarts.shape == (16, 1) and together.decrement.shape == (16,)


def test_standard_errors_are_the_spread_of_the_estimates(seed):
    R = 200
    X, Y = sample(CROSSING, R, 3000, seed=seed)
    fit = moe.fit(LINE, X, Y, starts=CROSSING, num_restarts=1, seed=seed)
    assert set(fit.status) == {"converged"}
    G, errors = fit.model.mixing_measure(), fit.standard_errors()
    covered = []
    for name, se in errors.items():
        estimate, truth = getattr(G, name).reshape(R, -1), getattr(CROSSING, name).reshape(-1)
        se = se.reshape(R, -1)
        kept = se[0] > 0  # the reference expert's gate is held
        estimate, truth, se = estimate[:, kept], truth[kept], se[:, kept]
        ratio = se.mean(0) / estimate.std(0)
        # The standard error of a standard deviation is 1/sqrt(2 R) of it, 5 %; the gate's small-sample skewness adds.
        assert ((ratio > 0.8) & (ratio < 1.25)).all(), name
        covered.append(((estimate - truth).abs() < 1.96 * se).double())
    share = torch.cat(covered, 1).mean().item()
    # 8 parameters a replicate hang together: as if 200 to 1600 independent ones.
    assert abs(share - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 400)


def test_whole_weights_count_rows(seed):
    X, Y = sample(GENTLE, 150, seed=seed)
    counts = torch.randint(0, 3, (150,), generator=torch.Generator().manual_seed(seed))
    start = moe.GaussianMoE.from_mixing_measure(GENTLE)
    weighted = moe.fit(LINE, X, Y, sample_weight=counts.double(), starts=start, tol=1e-10)
    repeated = moe.fit(LINE, X.repeat_interleave(counts, 0), Y.repeat_interleave(counts, 0), starts=start, tol=1e-10)
    torch.testing.assert_close(weighted.model.theta, repeated.model.theta, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weighted.log_likelihood, repeated.log_likelihood, rtol=1e-10, atol=1e-8)
    assert weighted.num_observations == repeated.num_observations == counts.sum()


def test_arrays_on_disk_give_what_tensors_give(seed, tmp_path, monkeypatch):
    X, Y = sample(GENTLE, 5000, seed=seed)
    for name, x in (("X", X), ("Y", Y)):
        np.save(tmp_path / f"{name}.npy", x.numpy())
    maps = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "XY"]
    whole = moe.fit(LINE, X, Y, num_restarts=2, seed=seed)
    monkeypatch.setattr(moe.data, "PIECE_BYTES", 100_000)
    streamed = moe.fit(LINE, *maps, num_restarts=2, seed=seed)
    torch.testing.assert_close(streamed.model.theta, whole.model.theta, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(streamed.log_likelihood, whole.log_likelihood, rtol=1e-12, atol=0)
    assert streamed.status == whole.status


def test_the_maximum_does_not_depend_on_units(seed):
    X, Y = sample(GENTLE, 400, seed=seed)
    fit = moe.fit(LINE, X, Y, num_restarts=4, seed=seed)
    other = moe.fit(LINE, 1e-3 * X + 5.0, 1e4 * Y, num_restarts=4, seed=seed)
    expected = fit.log_likelihood - 400 * math.log(1e4)
    torch.testing.assert_close(other.log_likelihood, expected, rtol=0, atol=1e-5)


def test_a_gate_that_separates_the_data_is_named(seed):
    X = torch.linspace(-1, 1, 200).double().unsqueeze(-1)
    Y = torch.where(X < 0.1, -3.0, 3.0) + 0.1 * normal(200, 1, seed=seed)
    fit = moe.fit(LINE, X, Y, num_restarts=4, seed=seed)
    assert fit.status == "separated"
    errors, G = fit.standard_errors(), fit.model.mixing_measure()
    assert errors["gate_weight"].isnan().any()
    side = (X < 0.1).squeeze(-1)
    for i in range(2):  # those of the experts are least squares' of their sides
        own = side if G.intercept[i] < 0 else ~side
        design = torch.cat([X, torch.ones_like(X)], 1)[own]
        expected = (G.variance[i] * torch.linalg.inv(design.T @ design)[0, 0]).sqrt()
        torch.testing.assert_close(errors["coef"][i, 0], expected, rtol=1e-5, atol=0)
    held = moe.fit(LINE, X, Y, num_restarts=4, seed=seed, penalty=moe.Penalty(gate_scale=5.0))
    assert held.status == "converged"
    assert held.penalty_value < 0 and held.log_likelihood < fit.log_likelihood


def test_a_variance_that_collapses_is_named():
    X = torch.linspace(0, 1, 30).double().unsqueeze(-1)
    Y = torch.where(X < 0.5, 2 * X, 1 - X)  # no noise at all
    with pytest.warns(ConvergenceWarning, match="degenerate"):
        fit = moe.fit(LINE, X, Y, num_restarts=2)
    assert fit.status == "degenerate" and not fit.converged
    held = moe.fit(LINE, X, Y, num_restarts=2, penalty=moe.Penalty(variance_shape=2.0, variance_scale=1e-3))
    assert held.status in ("converged", "separated")


@pytest.mark.parametrize("method", ["newton", "lbfgs"])
def test_an_expert_without_rows_is_named(method, seed):
    """Its parameters have no gradient: a stopping rule alone would call that a maximum."""
    X, Y = sample(GENTLE, 100, seed=seed)
    away = moe.GaussianMoE.from_mixing_measure(
        moe.MixingMeasure([0.0, 0.0], [[0.0], [0.0]], [1e3, 0.0], [[0.0], [0.0]], [1.0, 1.0])
    )
    warmup = {"num_warmup": 0} if method == "newton" else {}
    with pytest.warns(ConvergenceWarning, match="1 of 1 fits ended as degenerate; use fewer experts"):
        fit = moe.fit(LINE, X, Y, starts=away, method=method, **warmup)
    assert fit.status == "degenerate" and not fit.converged
    one = moe.fit(moe.GaussianMoE(1, 1), X, Y)
    # The bias goes towards minus infinity, where the other expert is alone.
    assert fit.log_likelihood <= one.log_likelihood + 1e-9


@pytest.mark.parametrize("method", ["newton", "em", "squarem", "lbfgs"])
def test_one_replicate_may_fail(method, seed):
    """Outcomes whose squares overflow have no likelihood; the other replicates are as they are alone."""
    X, Y = sample(GENTLE, 3, 120, seed=seed)
    start = moe.GaussianMoE.from_mixing_measure(GENTLE)
    bad = Y.clone()
    bad[1, 7] = 1e200
    with pytest.warns(ConvergenceWarning, match="1 of 3 fits ended as failed; look at the data"):
        fit = moe.fit(LINE, X, bad, starts=start, method=method, tol=1e-8)
    alone = moe.fit(LINE, X[[0, 2]], Y[[0, 2]], starts=start, method=method, tol=1e-8)
    assert fit.status == (alone.status[0], "failed", alone.status[1])
    torch.testing.assert_close(fit.log_likelihood[[0, 2]], alone.log_likelihood, rtol=0, atol=1e-8)
    for number in (fit.log_likelihood, fit.penalty_value, fit.decrement, fit.bic, fit.condition_number):
        assert number[1].isnan() and number[[0, 2]].isfinite().all()
    assert fit.converged.tolist() == [True, False, True] and fit.num_same_optimum[1] == 0
    assert (fit.model.theta[1] == 0).all() and fit.standard_errors()["coef"][1].isnan().all()
    assert "nan" not in repr(fit)


def test_a_fit_is_saved_with_its_model(seed, tmp_path):
    X, Y = sample(GENTLE, 2, 100, seed=seed)
    fit = moe.fit(LINE, X, Y, starts=GENTLE, num_restarts=2, seed=seed)
    probnn.save(fit, tmp_path / "fit.safetensors")
    other = probnn.load(tmp_path / "fit.safetensors")
    assert isinstance(other, moe.MoEFit) and repr(other) == repr(fit) and other.status == fit.status
    assert other.model.theta.equal(fit.model.theta) and other.model.gate == fit.model.gate
    for name, errors in fit.standard_errors().items():
        assert other.standard_errors()[name].equal(errors)


@pytest.mark.parametrize("method", ["em", "squarem"])
def test_steps_on_a_bound_find_the_same_maximum(method, seed):
    X, Y = sample(GENTLE, 2, 300, seed=seed)
    newton, bound = (
        moe.fit(LINE, X, Y, starts=GENTLE, num_restarts=1, method=method, tol=1e-8, criterion="decrement", gate_step=g)
        for g in ("newton", "mm")
    )
    torch.testing.assert_close(bound.log_likelihood, newton.log_likelihood, rtol=0, atol=1e-6)
    assert bound.converged.all() and not bound.model.theta.equal(newton.model.theta)


@pytest.mark.parametrize("method", ["newton", "em", "squarem", "lbfgs"])
def test_the_bar_counts_climbs(method, seed, monkeypatch):
    bars = []

    class Recorder(Progress):
        def __init__(self, total, label, enabled):
            super().__init__(total, label, False)
            self.total, self.steps = total, []
            bars.append(self)

        def update(self, steps=1, **shown):
            self.steps.append(steps)

    monkeypatch.setattr("probnn.moe.fitting.Progress", Recorder)
    X, Y = sample(GENTLE, 3, 100, seed=seed)
    monkeypatch.setattr("probnn.moe.fitting.BATCH_BYTES", 1)  # a batch a replicate
    moe.fit(LINE, X, Y, num_restarts=4, method=method, seed=seed, progress=True)
    (bar,) = bars
    assert bar.total == 12 == sum(bar.steps) and min(bar.steps) >= 0
    assert sum(step > 0 for step in bar.steps) > 3  # not only as batches end


@pytest.mark.parametrize("method", ["newton", "em", "squarem"])
def test_a_small_variance_that_is_known_has_not_collapsed(method, seed):
    X = torch.linspace(-1, 1, 60).double().unsqueeze(-1)
    Y = 1 + 2 * X + 1e-6 * normal(60, 1, seed=seed)
    model = moe.GaussianMoE(1, 1, variance=1e-12)
    fit = moe.fit(model, X, Y, method=method, num_restarts=1)
    solution = torch.linalg.lstsq(torch.cat([X, torch.ones_like(X)], 1), Y).solution
    assert fit.status == "converged"
    torch.testing.assert_close(fit.model.mixing_measure().coef[0], solution[0], rtol=0, atol=1e-8)
    objective, start = Objective.of(model, X, Y), torch.full((1, 5), math.log(1e-12)).double()
    climbed = run_lbfgs(objective, start, max_iter=20)
    assert not climbed.degenerate.any() and climbed.value > objective.value(start) and climbed.num_iter == 20


def test_iterations_that_end_too_early_are_named(seed):
    X, Y = sample(GENTLE, 200, seed=seed)
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        fit = moe.fit(moe.GaussianMoE(3, 1), X, Y, num_restarts=1, max_iter=1, num_warmup=0, seed=seed)
    assert fit.status == "max_iter" and not fit.converged


@pytest.mark.parametrize("method", ["newton", "em", "squarem", "lbfgs"])
def test_methods_agree_where_there_is_one_maximum(method, seed):
    X, Y = sample(GENTLE, 2, 400, seed=seed)
    reference = moe.fit(LINE, X, Y, starts=GENTLE, num_restarts=1)
    fit = moe.fit(LINE, X, Y, starts=GENTLE, num_restarts=1, method=method, tol=1e-8, criterion="decrement")
    assert fit.criterion == "decrement"
    torch.testing.assert_close(fit.log_likelihood, reference.log_likelihood, rtol=0, atol=1e-6)
    assert fit.method == method and fit.converged.all()


def test_a_fit_repeats_itself_and_leaves_the_global_stream(seed):
    X, Y = sample(GENTLE, 100, seed=seed)
    before = torch.get_rng_state()
    one, two = (moe.fit(LINE, X, Y, num_restarts=3, seed=7) for _ in range(2))
    assert one.model.theta.equal(two.model.theta)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("kind", KINDS)
def test_starts_have_a_likelihood(kind, seed):
    X, Y = sample(GENTLE, 3, 100, seed=seed)
    for gate in (
        moe.SoftmaxGate(),
        moe.LaplaceGate(),
        moe.ActivationGate("tanh"),
        moe.GaussianGate(),
        moe.NetworkGate(),
    ):
        model = moe.GaussianMoE(3, 1, gate=gate)
        objective = Objective.of(model, X, Y)
        theta = starting_points(model, objective.data, (kind,), 4, torch.Generator().manual_seed(seed))
        assert theta.shape == (3, 4, model.num_parameters)
        for s in range(4):
            assert objective.value(theta[:, s]).isfinite().all()
        assert not theta[:, 0].equal(theta[:, 1])


def test_bad_data_is_refused(seed):
    X, Y = sample(GENTLE, 50, seed=seed)
    with pytest.raises(NonFiniteError, match="Y must be finite"):
        moe.fit(LINE, X, torch.where(Y == Y.max(), torch.nan, Y))
    with pytest.raises(NonFiniteError, match="row 3"):
        bad = X.numpy().copy()
        bad[3] = np.inf
        moe.fit(LINE, bad, Y.numpy())
    with pytest.raises(DomainError, match="3 experts of 1 inputs need at least 9 rows, got 8"):
        moe.fit(moe.GaussianMoE(3, 1), X[:8], Y[:8])
    with pytest.raises(DomainError, match="feature 0 of the experts is constant"):
        moe.fit(LINE, torch.ones_like(X), Y)
    with pytest.raises(DomainError, match=r"features \[0, 1\] of the experts are linearly dependent"):
        moe.fit(moe.GaussianMoE(2, 2), torch.cat([X, 2 * X + 1], 1), Y)
    with pytest.raises(ShapeError, match="Y must have shape"):
        moe.fit(LINE, X, Y[:-1])
    with pytest.raises(ShapeError, match=r"sample_weight must have shape \(50,\)"):
        moe.fit(LINE, X, Y, sample_weight=torch.ones(49))
    with pytest.raises(DomainError, match="sample_weight must be >= 0"):
        moe.fit(LINE, X, Y, sample_weight=-torch.ones(50))
    with pytest.raises(DomainError, match="method must be one of"):
        moe.fit(LINE, X, Y, method="bfgs")
    with pytest.raises(DomainError, match="criterion must be one of"):
        moe.fit(LINE, X, Y, criterion="absolute")
    with pytest.raises(DomainError, match="criterion of method 'newton' with a SoftmaxGate must be one of 'decrement'"):
        moe.fit(LINE, X, Y, criterion="relative")
    with pytest.raises(DomainError, match="must be one of 'aitken', got 'relative'"):
        moe.fit(replace(LINE, gate=moe.TopKGate(active=1)), X, Y, criterion="relative")
    with pytest.raises(DomainError, match="must be one of 'aitken', 'relative', got 'decrement'"):
        moe.fit(replace(LINE, gate=moe.GaussianGate()), X, Y, criterion="decrement")
    with pytest.raises(DomainError, match="num_warmup is for method='newton', got method='em'"):
        moe.fit(LINE, X, Y, method="em", num_warmup=10)
    with pytest.raises(DomainError, match="num_warmup must be a number of iterations or an increasing tuple"):
        moe.fit(LINE, X, Y, num_warmup=(100, 10))
    with pytest.raises(DomainError, match="gate_step must be one of 'newton', 'mm'"):
        moe.fit(LINE, X, Y, method="em", gate_step="bound")
    for method, gate in (("newton", moe.SoftmaxGate()), ("lbfgs", moe.SoftmaxGate()), ("em", moe.SigmoidGate())):
        with pytest.raises(DomainError, match="gate_step='mm' is for"):
            moe.fit(replace(LINE, gate=gate), X, Y, method=method, gate_step="mm")
    with pytest.raises(DomainError, match="starts must be"):
        moe.fit(LINE, X, Y, starts="k-means")
    with pytest.raises(DomainError, match="networks are fitted with method='lbfgs'"):
        moe.fit(moe.GaussianMoE(2, 1, expert=moe.MLPExpert()), X, Y, method="em")
    with pytest.raises(DomainError, match="X and Y must both be"):
        moe.fit(LINE, X.numpy(), Y)
    with pytest.raises(DomainError, match="model must be a moe.GaussianMoE"):
        moe.fit("softmax", X, Y)
    with pytest.warns(PrecisionWarning, match="float32"):
        moe.fit(LINE, X.float(), Y.float(), starts=GENTLE, num_restarts=1)
    with pytest.warns(ConvergenceWarning, match="do not identify the temperature"):
        moe.fit(replace(LINE, gate=moe.TemperatureGate(normalise=None)), X, Y, num_restarts=1)


def test_outcomes_may_come_without_their_column(seed):
    X, Y = sample(GENTLE, 2, 60, seed=seed)
    start = moe.GaussianMoE.from_mixing_measure(GENTLE)
    for x, y in ((X, Y), (X[0], Y[0])):
        with_column, without = (moe.fit(LINE, x, z, starts=start) for z in (y, y.squeeze(-1)))
        assert with_column.model.theta.equal(without.model.theta)
    shared = moe.fit(LINE, X[0], Y.squeeze(-1), starts=start)  # one design, two sets of outcomes
    assert shared.log_likelihood.shape == (2,)
    torch.testing.assert_close(shared.model.theta[0], moe.fit(LINE, X[0], Y[0], starts=start).model.theta)


def test_criteria_count_parameters(seed):
    X, Y = sample(GENTLE, 100, seed=seed)
    fit = moe.fit(LINE, X, Y, starts=GENTLE, num_restarts=1)
    assert fit.num_free == 8
    assert fit.bic.item() == pytest.approx(-2 * fit.log_likelihood.item() + 8 * math.log(100))
    assert fit.aic.item() == pytest.approx(-2 * fit.log_likelihood.item() + 16)
    shared = moe.GaussianMoE(3, 2, variance="shared", expert=moe.PolynomialExpert(2))
    assert shared.num_free == 2 * 3 + 3 * 6 + 1
    assert uniform(1, seed=seed).shape == (1,)
