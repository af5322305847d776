"""SQUAREM and L-BFGS: the maximum of EM, in fewer iterations, and never below where they began."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probnn import moe
from probnn.moe import data as data_module
from probnn.moe.accelerate import Squarem, run_squarem
from probnn.moe.data import Data
from probnn.moe.em import EM, em_step, run_em
from probnn.moe.gradient import run_lbfgs
from probnn.moe.objective import Objective

from .em_cases import easy, random_start, wavy


def test_all_reach_the_maximum_of_em(seed):
    objective, theta = easy(4, 300, seed)
    em = run_em(objective, theta, tol=1e-10)
    for state in (run_squarem(objective, theta, tol=1e-10), run_lbfgs(objective, theta, tol=1e-10)):
        assert state.converged.all() and not state.degenerate.any()
        torch.testing.assert_close(state.value, em.value, atol=1e-7, rtol=0)
        torch.testing.assert_close(state.value, objective.value(state.theta), atol=1e-9, rtol=0)
        torch.testing.assert_close(state.theta, em.theta, atol=1e-3, rtol=1e-3)


def test_squarem_needs_fewer_evaluations_where_em_is_slow(seed):
    data = easy(6, 300, seed)[0].data
    objective = Objective(moe.GaussianMoE(3, 1), data)  # one expert too many
    theta = random_start(objective, 6, seed)
    em, squarem = (run(objective, theta, max_iter=3000, criterion="aitken") for run in (run_em, run_squarem))
    assert squarem.converged.all()
    assert 3 * squarem.num_iter.sum() < em.num_iter.sum()


@pytest.mark.parametrize("gate", [moe.SoftmaxGate(), moe.LaplaceGate(), moe.GaussianGate(), moe.TopKGate(active=2)])
def test_a_cycle_is_never_below_its_em_iterates(gate, seed):
    objective = wavy(moe.GaussianMoE(3, 1, gate=gate), 6, 100, seed)
    theta = random_start(objective, 6, seed, scale=1.0)
    cycle = Squarem(EM.of(objective))
    for _ in range(15):
        second = em_step(objective, em_step(objective, theta)[0])[0]
        theta = cycle.step(theta).theta
        floor = objective.value(second)
        assert (objective.value(theta) >= floor - 1e-12 * floor.abs()).all()


@pytest.mark.parametrize(
    "options",
    [
        {"gate": moe.NetworkGate((4,))},
        {"expert": moe.MLPExpert((3,))},
        {"gate": moe.NetworkGate((3,)), "expert": moe.MLPExpert((3,)), "variance": "shared"},
        {"gate": moe.ActivationGate("gelu"), "outcome": moe.StudentTOutcome(3.0)},
        {"outcome": moe.MultinomialLogit(3)},
        {"gate": moe.GaussianGate()},
        {"gate": moe.TopKGate(active=2)},
    ],
    ids=repr,
)
def test_lbfgs_climbs_with_every_gate_and_expert(options, seed):
    objective = wavy(moe.GaussianMoE(2, 2, **options), 3, 120, seed, weighted=True)
    objective = Objective(objective.model, objective.data, moe.Penalty(10.0, 1.0, 0.01))
    theta = random_start(objective, 3, seed)
    short = run_lbfgs(objective, theta, max_iter=15)
    state = run_lbfgs(objective, theta, max_iter=150)
    assert (short.value > objective.value(theta)).all() and (state.value >= short.value).all()
    torch.testing.assert_close(state.value, objective.value(state.theta), atol=1e-9, rtol=0)
    held = objective.index < 0
    assert (state.theta[:, held] == theta[:, held]).all()
    for b in range(3):
        alone = run_lbfgs(objective.take(torch.tensor([b])), theta[b : b + 1], max_iter=15)
        torch.testing.assert_close(alone.value[0], short.value[b], atol=1e-6, rtol=1e-6)


def test_where_lbfgs_has_converged_on_networks_little_is_left(seed):
    objective = wavy(moe.GaussianMoE(2, 1, expert=moe.MLPExpert((2,))), 2, 60, seed)
    objective = Objective(objective.model, objective.data, moe.Penalty(3.0, 1.0, 0.1))
    state = run_lbfgs(objective, random_start(objective, 2, seed), max_iter=1500, tol=1e-4)
    assert state.converged.any() and (state.decrement[state.converged] < 1e-4).all()
    more = run_lbfgs(objective, state.theta, max_iter=100, tol=1e-12)
    assert (more.value - state.value)[state.converged].max() < 0.05


def test_lbfgs_stops_before_a_variance_collapses():
    x = torch.linspace(0, 1, 30).double()
    y = (9 * x).sin()
    y[x > 0.9] = 5 * x[x > 0.9]
    objective = Objective.of(moe.GaussianMoE(2, 1), x.unsqueeze(-1), y.unsqueeze(-1))
    theta = torch.tensor([[200.0, -180.0, 5.0, 0.0, -4.0, 0.0, 0.0, 0.0, 0.0, 0.0]]).double()
    state = run_lbfgs(objective, theta)
    assert state.degenerate.all() and not state.converged.any() and state.value.isfinite().all()


def test_streamed_rows_give_the_same_gradients(seed, monkeypatch):
    whole = wavy(moe.GaussianMoE(2, 1, gate=moe.NetworkGate((3,))), 1, 800, seed)
    theta = random_start(whole, 2, seed)
    arrays = (np.ascontiguousarray(x[0].T.numpy()) for x in (whole.data.X, whole.data.Y))
    streamed = Objective(whole.model, Data(*arrays, streamed=True))
    expected = run_lbfgs(whole, theta, max_iter=10)
    monkeypatch.setattr(data_module, "PIECE_BYTES", 1)
    found = run_lbfgs(streamed, theta, max_iter=10)
    torch.testing.assert_close(found.theta, expected.theta, atol=1e-9, rtol=1e-9)
