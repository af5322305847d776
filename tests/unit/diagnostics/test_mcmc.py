"""Diagnostics of chains: against ArviZ, naive loops, theory, and what each must detect."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from probnn.diagnostics import bfmi, chains, ess, mcse, nested_rhat, rhat, split_rhat, summary
from probnn.errors import ConvergenceWarning
from probnn.random import generator_from
from tests.unit.diagnostics.chain_cases import EVERY, ar1, normal


def by_element(function, x: Tensor, **options) -> np.ndarray:
    """An ArviZ function of C x S on every element of an event."""
    flat = x.reshape(*x.shape[:2], -1).numpy()
    values = [function(flat[..., i], **options) for i in range(flat.shape[-1])]
    return np.array(values).reshape(x.shape[2:])


def equal(ours: Tensor, theirs: np.ndarray) -> None:
    assert np.isfinite(theirs).all()
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-10, atol=0)


# --- against ArviZ -----------------------------------------------------------------------------

# 1 x 102: one chain; 3 x 37: an odd number of draws; the last event has two axes.
SHAPES = [(4, 500, 3), (1, 102), (16, 50, 2), (3, 37, 5), (2, 64, 2, 3)]
TRANSFORMS = {
    "normal": lambda x: x,
    "heavy": lambda x: x / (1.2 - x.tanh().square()) ** 4,
    "ties": lambda x: (16 * x).round() / 16,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("rho", [0.0, 0.8, -0.6])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_arviz(shape: tuple[int, ...], rho: float, transform: str, seed: int) -> None:
    az = pytest.importorskip("arviz", minversion="0.23", reason="the reference")
    if not hasattr(az, "rhat"):
        pytest.skip("ArviZ 1 has these functions elsewhere")
    x = TRANSFORMS[transform](ar1(shape, rho, seed))
    for kind in ("bulk", "tail", "mean", "sd", "median"):
        equal(ess(x, kind), by_element(az.ess, x, method=kind))
    equal(ess(x, 0.3), by_element(az.ess, x, method="quantile", prob=0.3))
    for kind in ("mean", "sd", "median"):
        equal(mcse(x, kind), by_element(az.mcse, x, method=kind))
    equal(mcse(x, 0.9), by_element(az.mcse, x, method="quantile", prob=0.9))
    if shape[0] > 1:  # ArviZ wants two chains
        equal(rhat(x), by_element(az.rhat, x, method="rank"))
        equal(split_rhat(x), by_element(az.rhat, x, method="split"))
    if len(shape) == 2:
        equal(bfmi(x), az.bfmi(x.numpy()))


@pytest.mark.parametrize("prob", [0.05, 0.3, 0.5])
def test_quantile_that_is_an_order_statistic(prob: float, seed: int) -> None:
    """101 draws: (n - 1) p is an integer, and the quantile is that draw whatever the rounding."""
    x = ar1((1, 101), 0.5, seed)
    cut = x.flatten().sort().values[round(100 * prob)]
    indicator = (x <= cut).double()
    assert int(indicator.sum()) == round(100 * prob) + 1
    torch.testing.assert_close(ess(x, prob), ess(indicator, "mean"), rtol=1e-12, atol=0)


# --- against the definitions -------------------------------------------------------------------


def naive_rhat(chains_of_draws: list[list[float]]) -> float:
    n = len(chains_of_draws[0])
    means = [np.mean(c) for c in chains_of_draws]
    within = np.mean([np.var(c, ddof=1) for c in chains_of_draws])
    between = n * np.var(means, ddof=1)
    return math.sqrt(((n - 1) / n * within + between / n) / within)


@pytest.mark.parametrize("draws", [40, 41])
def test_rhat_of_one_chain_compares_its_halves(draws: int, seed: int) -> None:
    from scipy.stats import norm, rankdata

    x = ar1((1, draws), 0.9, seed)
    half = draws // 2
    halves = np.stack([x[0, :half].numpy(), x[0, -half:].numpy()])
    assert split_rhat(x).item() == pytest.approx(naive_rhat(halves), rel=1e-12)

    def scores(a: np.ndarray) -> np.ndarray:
        return norm.ppf((rankdata(a).reshape(a.shape) - 3 / 8) / (a.size + 1 / 4))

    expected = max(naive_rhat(scores(halves)), naive_rhat(scores(abs(halves - np.median(halves)))))
    assert rhat(x).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("K", "M", "S"), [(2, 1, 5), (3, 4, 6), (4, 8, 1), (2, 2, 2)])
def test_nested_rhat_is_its_definition(K: int, M: int, S: int, seed: int) -> None:
    x = normal(K * M, S, 3, seed=seed) + normal(K, 3, seed=seed + 1).repeat_interleave(M, 0)[:, None]
    value = nested_rhat(x, K)
    for e in range(3):
        a = x[..., e].reshape(K, M, S).numpy()
        within = []
        for k in range(K):
            between_chains = np.var([a[k, m].mean() for m in range(M)], ddof=1) if M > 1 else 0.0
            in_chains = np.mean([np.var(a[k, m], ddof=1) if S > 1 else 0.0 for m in range(M)])
            within.append(between_chains + in_chains)
        between = np.var([a[k].mean() for k in range(K)], ddof=1)
        assert value[e].item() == pytest.approx(math.sqrt(1 + between / np.mean(within)), rel=1e-12)


def test_nested_rhat_takes_labels_in_any_order(seed: int) -> None:
    x = normal(12, 5, 2, seed=seed)
    order = torch.randperm(12, generator=generator_from(seed))
    labels = torch.arange(3).repeat_interleave(4)[order] * 7 - 2
    torch.testing.assert_close(nested_rhat(x[order], labels), nested_rhat(x, 3), rtol=1e-12, atol=0)


def test_ess_of_blocks_equals_ess_at_once(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    x = ar1((3, 60, 7), 0.5, seed)
    whole = ess(x, "mean")
    monkeypatch.setattr(chains, "_BLOCK", 1)
    torch.testing.assert_close(ess(x, "mean"), whole, rtol=1e-13, atol=0)


@given(st.integers(1, 3), st.integers(4, 11), st.lists(st.integers(1, 3), max_size=2), st.integers(0, 2**30))
def test_elements_do_not_know_each_other(C: int, S: int, event: list[int], seed: int) -> None:
    x = normal(C, S, *event, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of so few draws an indicator may be constant
        for function in EVERY.values():
            value = function(x)
            assert value.shape == tuple(event) and value.dtype == torch.float64
            for index in itertools.product(*map(range, event)):
                alone = function(x[(slice(None), slice(None), *index)])
                torch.testing.assert_close(value[index], alone, rtol=1e-9, atol=0, equal_nan=True)


# --- against theory ----------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8, -0.3])
@pytest.mark.parametrize("kind", ["mean", "bulk"])
def test_ess_of_ar1(rho: float, kind: str, seed: int) -> None:
    """tau = (1 + rho) / (1 - rho); 25 replicates keep the standard error above the estimator's bias of 1 %."""
    size = ess(ar1((4, 1000, 25), rho, seed), kind) / (4000 * (1 - rho) / (1 + rho))
    assert abs(size.mean() - 1) < 5 * size.std() / 5


@pytest.mark.parametrize(
    ("kind", "truth"), [("mean", 0.0), ("sd", 1.0), ("median", 0.0), (0.05, -1.6448536269514722)], ids=str
)
def test_mcse_is_the_error_made(kind: str | float, truth: float, seed: int) -> None:
    x = ar1((4, 1000, 400), 0.5, seed)
    pooled = x.flatten(0, 1)
    estimates = {
        "mean": pooled.mean(0),
        "sd": pooled.std(0),
        "median": pooled.quantile(0.5, 0),
        0.05: pooled.quantile(0.05, 0),
    }
    squared = ((estimates[kind] - truth) / mcse(x, kind)).square()
    # The squared standardised error has mean 1; the estimated denominators add a few per cent.
    assert abs(squared.mean() - 1) < 5 * squared.std() / 20


def test_ess_of_anticorrelated_chains_exceeds_the_draws_but_is_bounded(seed: int) -> None:
    size = ess(ar1((4, 500, 10), -0.9, seed), "mean")
    assert (size > 2000).all()
    assert (size <= 2000 * math.log10(2000) + 1e-9).all()


def test_nested_rhat_at_stationarity(seed: int) -> None:
    """One independent draw a chain: M B / W is F-distributed with K - 1 and K (M - 1) degrees of freedom."""
    K, M = 8, 16
    ratio = M * (nested_rhat(normal(K * M, 1, 2000, seed=seed), K).square() - 1)
    expected = K * (M - 1) / (K * (M - 1) - 2)
    assert abs(ratio.mean() - expected) < 5 * ratio.std() / math.sqrt(2000)


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_bfmi_of_ar1_energies(rho: float, seed: int) -> None:
    value = bfmi(ar1((50, 2000), rho, seed))
    # The sample variance of correlated energies is low by tau / S, under one per cent here.
    assert abs(value.mean() - 2 * (1 - rho)) < 5 * value.std() / math.sqrt(50) + 0.01 * 2 * (1 - rho)


def test_rank_scores_are_normal_and_respect_ties() -> None:
    draws = torch.tensor([[[3.0, 1.0, 3.0, 2.0]]], dtype=torch.float64)
    ranks = torch.tensor([3.5, 1.0, 3.5, 2.0], dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, 1.0).icdf((ranks - 3 / 8) / 4.25)
    torch.testing.assert_close(chains.normal_scores(draws)[0, 0], expected)


# --- what must be seen -------------------------------------------------------------------------


def test_mixed_chains_pass(seed: int) -> None:
    x = normal(4, 1000, 50, seed=seed)
    assert (rhat(x) < 1.01).all() and (split_rhat(x) < 1.01).all()


def test_shifted_chain_is_seen(seed: int) -> None:
    x = normal(4, 500, 2, seed=seed)
    x[0, :, 1] += 1.0
    value = rhat(x)
    assert value[0] < 1.02 < 1.05 < value[1]
    assert ess(x)[1] < 0.05 * ess(x)[0]


def test_drift_within_the_chains_is_seen(seed: int) -> None:
    """All chains drift together: only halves disagree."""
    x = normal(4, 500, seed=seed) + torch.linspace(-2, 2, 500, dtype=torch.float64)
    assert rhat(x) > 1.2
    assert naive_rhat(x.tolist()) < 1.01


def test_scaled_chain_is_seen_by_the_folded_part_only(seed: int) -> None:
    x = normal(4, 1000, seed=seed)
    x[0] *= 4
    assert rhat(x) > 1.1
    assert split_rhat(x) < 1.02
    halves = chains.split(x[None])
    assert chains.rhat_of(chains.normal_scores(halves)) < 1.02


def test_heavy_tails_neither_alarm_nor_hide(seed: int) -> None:
    """Cauchy draws have no variance: the plain R-hat cannot see a shift of one chain, the ranks can."""
    u = torch.rand(4, 1000, 20, generator=generator_from(seed), dtype=torch.float64)
    x = torch.tan(math.pi * (u - 0.5))
    assert (rhat(x) < 1.015).all()
    assert (ess(x) > 3000).all()
    x[0] += 5.0
    assert (rhat(x) > 1.1).all()
    assert split_rhat(x).median() < 1.01


def test_unmixed_superchains_are_seen(seed: int) -> None:
    """Chains that agree within a super-chain but remember where it started."""
    starts = torch.linspace(-2, 2, 8, dtype=torch.float64).repeat_interleave(16)[:, None, None]
    for draws in (1, 5):
        x = normal(128, draws, 3, seed=seed)
        assert (nested_rhat(x + starts, 8) > 1.3).all()
        assert (nested_rhat(x, 8) < 1.2).all()


def test_slow_energy_is_seen(seed: int) -> None:
    assert (bfmi(ar1((4, 2000), 0.95, seed)) < 0.3).all()


# --- the table ---------------------------------------------------------------------------------


def test_summary(seed: int) -> None:
    x = ar1((4, 250, 2, 3), 0.5, seed)
    table = summary(x, prob=0.8)
    pooled = x.flatten(0, 1)
    expected = {
        "mean": pooled.mean(0),
        "sd": pooled.std(0),
        "q10": pooled.quantile(0.1, 0),
        "q50": pooled.quantile(0.5, 0),
        "q90": pooled.quantile(0.9, 0),
        "mcse_mean": mcse(x),
        "mcse_sd": mcse(x, "sd"),
        "ess_bulk": ess(x),
        "ess_tail": ess(x, "tail"),
        "rhat": rhat(x),
    }
    assert list(table) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(table[name], value, rtol=1e-12, atol=1e-12)


def test_summary_of_a_stuck_chain_keeps_the_estimates(seed: int) -> None:
    x = normal(4, 100, 2, seed=seed)
    x[1, :, 0] = 0.5
    with pytest.warns(ConvergenceWarning, match="summary: 1 of 2") as caught:
        table = summary(x)
    assert len(caught) == 1
    for name, value in table.items():
        estimate = name in ("mean", "sd", "q5", "q50", "q95")
        assert bool(value[0].isfinite()) == estimate and bool(value[1].isfinite())
