"""Sparse gates: their likelihood, their EM, and the searches where one expert is active."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from probnn import moe
from probnn.errors import UnsupportedError
from probnn.moe.em import EM
from probnn.moe.objective import Objective
from probnn.moe.topk import run_topk

from .em_cases import generator, random_start, wavy


@pytest.mark.parametrize("rank_by", ["logit", "score"])
def test_all_active_experts_are_a_softmax(rank_by, seed):
    g = generator(seed)
    X, Y = torch.randn(50, 2, generator=g).double(), torch.randn(50, 1, generator=g).double()
    theta = torch.randn(3, 4 * 7, generator=g).double()
    sparse = moe.GaussianMoE(4, 2, gate=moe.TopKGate(active=4, rank_by=rank_by), theta=theta)
    dense = moe.GaussianMoE(4, 2, theta=theta)
    assert (sparse.log_prob(X.expand(3, -1, -1), Y.expand(3, -1, -1)) == dense.log_prob(X, Y)).all()
    assert (sparse.gate_log_probs(X) == dense.gate_log_probs(X)).all()


@pytest.mark.parametrize("rank_by", ["logit", "score"])
def test_one_active_expert_has_the_likelihood_of_the_selected(rank_by, seed):
    g = generator(seed)
    X, Y = torch.randn(60, 2, generator=g).double(), torch.randn(60, 1, generator=g).double()
    model = moe.GaussianMoE(3, 2, gate=moe.TopKGate(active=1, rank_by=rank_by), theta=torch.randn(21).double())
    gamma, beta, scales, _ = model.split(model.theta)
    score = X @ gamma[:, :2].T + (gamma[:, 2] if rank_by == "logit" else 0)
    chosen = score.argmax(-1)
    assert len(chosen.unique()) > 1
    mean = (X * beta[chosen, 0, :2]).sum(-1) + beta[chosen, 0, 2]
    expected = torch.distributions.Normal(mean, (0.5 * scales[chosen, 0]).exp()).log_prob(Y[:, 0])
    torch.testing.assert_close(model.log_prob(X, Y), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("active", [1, 2, 3])
def test_exactly_that_many_are_active_and_gradients_are_finite(active, seed):
    model = moe.GaussianMoE(4, 2, gate=moe.TopKGate(active=active))
    objective = wavy(model, 2, 70, seed)
    theta = random_start(objective, 2, seed)
    log_probs = moe.GaussianMoE(4, 2, gate=model.gate, theta=theta).gate_log_probs(objective.data.X.mT)
    assert (log_probs.isfinite().sum(-1) == active).all() and not log_probs.isnan().any()
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 70).double())
    value, gradient = objective.gradient(theta)
    assert value.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("rank_by", ["logit", "score"])
def test_several_active_experts_climb_and_move_the_ranks(rank_by, seed):
    objective = wavy(moe.GaussianMoE(3, 1, gate=moe.TopKGate(active=2, rank_by=rank_by)), 5, 150, seed)
    theta = random_start(objective, 5, seed, scale=1.0)
    state = run_topk(objective, theta, max_iter=300)
    assert (state.value > objective.value(theta) + 1).all()
    torch.testing.assert_close(state.value, objective.value(state.theta), atol=1e-9, rtol=0)
    masks = [objective.model.gate.mask(objective.model.split(t)[0], objective.data.X) for t in (theta, state.theta)]
    # On a line ranks by score change only where two weights change places.
    assert rank_by == "score" or (masks[0] != masks[1]).any()
    gamma = objective.model.split(state.theta)[0]
    assert (gamma != objective.model.split(theta)[0]).any()


def profile(x, y, w, parts, variance, penalty):
    """Penalised log-likelihood of experts fitted to given rows each, by numpy."""
    squares, counts = [], []
    for rows in parts:
        design = np.column_stack([x[rows], np.ones(len(rows))]) * np.sqrt(w[rows])[:, None]
        target = y[rows] * np.sqrt(w[rows])
        coef = np.linalg.lstsq(design, target, rcond=None)[0]
        squares.append(((target - design @ coef) ** 2).sum())
        counts.append(w[rows].sum())
    if variance == "shared":
        squares, counts = [sum(squares)], [sum(counts)]
    a, b = (-1.0, 0.0) if penalty.variance_shape is None else (penalty.variance_shape, penalty.variance_scale)
    total = 0.0
    for square, count in zip(squares, counts, strict=True):
        known = not isinstance(variance, str)
        nu = variance if known else (square + 2 * b) / (count + 2 * (a + 1))
        total -= 0.5 * (count * math.log(2 * math.pi * nu) + square / nu)
        total -= 0.0 if known else (a + 1) * math.log(nu) + b / nu
    return total


def brute_force(x, y, w, k, variance, penalty):
    """The best of all partitions of the line into k intervals of more than two rows."""
    order, n = np.argsort(x), len(x)
    values = [
        profile(x, y, w, np.split(order, inner), variance, penalty)
        for inner in itertools.combinations(range(1, n), k - 1)
        if min(np.diff([0, *inner, n])) > 2
    ]
    return max(values)


def broken_line(seed, n, k):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, n)
    piece = np.minimum(((x + 1) / 2 * k).astype(int), k - 1)
    y = np.array([3.0, -2.0, 1.0])[piece] + np.array([1.0, 2.0, -3.0])[piece] * x + rng.normal(0, 0.3, n)
    return x, y, rng.integers(1, 4, n).astype(float)


@pytest.mark.parametrize("penalty", [moe.Penalty(), moe.Penalty(4.0, 2.0, 0.5)])
@pytest.mark.parametrize("variance", ["per_expert", "shared", 0.2])
def test_the_scan_finds_the_best_of_all_splits(variance, penalty, seed):
    model = moe.GaussianMoE(2, 1, gate=moe.TopKGate(active=1), variance=variance)
    data = [broken_line(seed + r, 40, 2) for r in range(3)]
    x, y, w = (torch.from_numpy(np.stack(part)) for part in zip(*data, strict=True))
    objective = Objective.of(model, x.unsqueeze(-1), y.unsqueeze(-1), w)
    objective = Objective(model, objective.data, penalty)
    theta = random_start(objective, 3, seed)
    if not isinstance(variance, str):
        theta = model.join(*model.split(theta)[:2], torch.full((3, 2, 1), math.log(variance), dtype=torch.double))
    state = run_topk(objective, theta)
    expected = [brute_force(*entry, 2, variance, penalty) for entry in data]
    np.testing.assert_allclose(state.value, expected, rtol=1e-10)
    torch.testing.assert_close(state.value, objective.value(state.theta), atol=1e-9, rtol=0)
    assert state.converged.all() and not state.degenerate.any()


def test_three_intervals_are_found_by_moving_one_boundary_at_a_time(seed):
    model = moe.GaussianMoE(3, 1, gate=moe.TopKGate(active=1))
    x, y, w = broken_line(seed, 30, 3)
    objective = Objective.of(model, *(torch.from_numpy(v).unsqueeze(-1) for v in (x, y)), torch.from_numpy(w))
    theta = random_start(objective, 8, seed)
    state = run_topk(objective, theta)
    best = brute_force(x, y, w, 3, "per_expert", moe.Penalty())
    assert (state.value <= best + 1e-9).all() and (state.value >= objective.value(theta)).all()
    assert state.value.max().item() == pytest.approx(best, rel=1e-10)


def test_equal_inputs_are_never_split(seed):
    g = generator(seed)
    x = torch.arange(6).repeat_interleave(8).double()
    y = torch.where(x < 2.5, x, 4 - x) + 0.1 * torch.randn(48, generator=g).double()
    model = moe.GaussianMoE(2, 1, gate=moe.TopKGate(active=1))
    objective = Objective.of(model, x.unsqueeze(-1), y.unsqueeze(-1))
    state = run_topk(objective, random_start(objective, 1, seed))
    owner = model.gate.mask(model.split(state.theta)[0], objective.data.X)[0, 0]
    assert all(len(owner[x == v].unique()) == 1 for v in range(6))
    assert owner[x < 2.5].unique().tolist() != owner[x > 2.5].unique().tolist()


@pytest.mark.parametrize("rank_by", ["logit", "score"])
def test_the_pattern_search_finds_a_boundary_in_the_plane(rank_by, seed):
    g = generator(seed)
    X = torch.randn(300, 2, generator=g).double()
    upper = X[:, 0] + 0.5 * X[:, 1] > 0
    Y = torch.where(upper, 2 + X[:, 0], -1 - X[:, 1]) + 0.2 * torch.randn(300, generator=g).double()
    model = moe.GaussianMoE(2, 2, gate=moe.TopKGate(active=1, rank_by=rank_by))
    objective = Objective.of(model, X, Y.unsqueeze(-1))
    theta = random_start(objective, 4, seed)
    theta[:, :3] = torch.tensor([[1.0, 0.0, 0.2], [0.0, 1.0, 0.2], [-1.0, 0.0, 0.2], [0.0, -1.0, 0.2]])
    state = run_topk(objective, theta, max_iter=200)
    truth = theta[:1].clone()
    truth[0, :3] = torch.tensor([1.0, 0.5, 0.0])
    em = EM.of(objective)
    reference = objective.value(em.step(truth).theta)
    assert (state.value >= objective.value(theta)).all()
    assert state.value.max() > reference - 3  # nats, of several hundred
    assert state.converged.all()


def test_other_gates_are_refused(seed):
    objective = wavy(moe.GaussianMoE(2, 1), 1, 30, seed)
    with pytest.raises(UnsupportedError, match="TopKGate"):
        run_topk(objective, random_start(objective, 1, seed))
