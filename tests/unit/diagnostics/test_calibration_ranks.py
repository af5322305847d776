"""Ranks of simulation-based calibration: their ties, the test that they are uniform, and the bands."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from probnn import random as rnd
from probnn.diagnostics import ecdf_bands, sbc_ranks, uniformity_test
from probnn.errors import DomainError, NonFiniteError, ShapeError, SmallSampleWarning

FAULT = 1e-6  # an error of five standard deviations is as likely


# --- ranks -------------------------------------------------------------------------------------


def test_ranks_count_the_draws_below(seed: int) -> None:
    generator = rnd.generator_from(seed)
    draws, truth = rnd.normal((6, 20, 2, 3), generator=generator), rnd.normal((6, 2, 3), generator=generator)
    ranks = sbc_ranks(draws, truth, generator=generator)
    assert ranks.shape == (6, 2, 3) and ranks.dtype == torch.long
    for r in range(6):
        for i in range(2):
            for j in range(3):
                assert ranks[r, i, j] == sum(float(d) < float(truth[r, i, j]) for d in draws[r, :, i, j])


def test_ties_are_broken_evenly(seed: int) -> None:
    """The truth equals two of three draws and exceeds one: ranks 1, 2 and 3, a third each."""
    draws = torch.tensor([0.0, 1.0, 1.0]).expand(3000, 3)
    ranks = sbc_ranks(draws, torch.ones(3000), generator=rnd.generator_from(seed))
    counts = torch.bincount(ranks, minlength=4)
    assert counts[0] == 0
    assert (abs(counts[1:] - 1000) < 5 * math.sqrt(3000 * 2 / 9)).all()


def test_discrete_quantities_have_uniform_ranks(seed: int) -> None:
    """Truth and draws from one Poisson law: only randomised ties make ranks uniform."""
    values = torch.poisson(torch.full((4000, 10), 1.5), generator=rnd.generator_from(seed))
    ranks = sbc_ranks(values[:, 1:], values[:, 0], generator=rnd.generator_from(seed + 1))
    assert uniformity_test(ranks, 9).p_value > FAULT
    below = (values[:, 1:] < values[:, :1]).sum(1)
    assert uniformity_test(below, 9).p_value < FAULT


def test_ranks_are_seeded_and_leave_the_global_stream(seed: int) -> None:
    draws, truth = torch.zeros(50, 20), torch.zeros(50)
    before = torch.random.get_rng_state()
    first = sbc_ranks(draws, truth, generator=rnd.generator_from(seed))
    assert first.equal(sbc_ranks(draws, truth, generator=rnd.generator_from(seed)))
    assert torch.random.get_rng_state().equal(before)
    assert first.unique().numel() > 5


def test_bad_ranks() -> None:
    with pytest.raises(ShapeError, match="sbc_ranks"):
        sbc_ranks(torch.zeros(3, 5, 2), torch.zeros(3))
    with pytest.raises(ShapeError):
        sbc_ranks(torch.zeros(3, 0), torch.zeros(3))
    with pytest.raises(ShapeError):
        sbc_ranks(torch.zeros(3), torch.zeros(3))
    with pytest.raises(DomainError):
        sbc_ranks(torch.zeros(3, 5, dtype=torch.float64), torch.zeros(3))
    with pytest.raises(NonFiniteError):
        sbc_ranks(torch.full((3, 5), math.nan), torch.zeros(3))
    with pytest.raises(DomainError, match="generator"):
        sbc_ranks(torch.zeros(3, 5), torch.zeros(3), generator=0)


# --- uniformity --------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_draws", "bins"), [(99, 10), (99, 7), (30, 31), (63, 2)])
def test_uniformity_is_the_chi_square_test(num_draws: int, bins: int, seed: int) -> None:
    from scipy.stats import chisquare

    ranks = rnd.integers(num_draws + 1, (400, 2, 3), generator=rnd.generator_from(seed))
    statistic, p_value = uniformity_test(ranks, num_draws, bins)
    assert statistic.shape == p_value.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            observed, expected = [0] * bins, [0.0] * bins
            for r in ranks[:, i, j].tolist():
                observed[r * bins // (num_draws + 1)] += 1
            for r in range(num_draws + 1):
                expected[r * bins // (num_draws + 1)] += 400 / (num_draws + 1)
            theirs = chisquare(observed, expected)
            assert statistic[i, j].item() == pytest.approx(theirs.statistic, rel=1e-10)
            assert p_value[i, j].item() == pytest.approx(theirs.pvalue, rel=1e-8)


def test_p_values_of_uniform_ranks_are_uniform(seed: int) -> None:
    """Bins of unequal size included: 100 ranks in 7 bins."""
    ranks = rnd.integers(100, (500, 2000), generator=rnd.generator_from(seed))
    p = uniformity_test(ranks, 99, 7).p_value
    for level in (0.05, 0.5):
        # The law of the statistic is discrete; at 500 replications that is worth about half a per cent.
        assert abs((p < level).double().mean() - level) < 5 * math.sqrt(level * (1 - level) / 2000) + 0.005


def test_few_replications_warn() -> None:
    with pytest.warns(SmallSampleWarning, match="2.0 of 20 replications"):
        uniformity_test(torch.arange(20), 99)


def test_bad_uniformity_arguments() -> None:
    for bad in (
        torch.zeros(10),
        torch.zeros(10, dtype=torch.bool),
        [1, 2, 3],
        torch.tensor([0, 100]),
        torch.tensor([-1, 3]),
    ):
        with pytest.raises(DomainError, match="ranks"):
            uniformity_test(bad, 99)
    for bad in (torch.tensor(3), torch.zeros(0, dtype=torch.long)):
        with pytest.raises(ShapeError):
            uniformity_test(bad, 99)
    ranks = torch.arange(100)
    for bins in (1, 101, 5.0):
        with pytest.raises(DomainError, match="bins"):
            uniformity_test(ranks, 99, bins)
    with pytest.raises(DomainError, match="num_draws"):
        uniformity_test(ranks, 0)


# --- bands -------------------------------------------------------------------------------------


def contained(ranks: Tensor, num_draws: int, bands) -> Tensor:
    """Which of the columns of ranks R x E stay within the bands everywhere."""
    below = torch.stack([(ranks < i).double().mean(0) for i in range(1, num_draws + 1)], -1)
    return ((bands.lower - 1e-12 <= below) & (below <= bands.upper + 1e-12)).all(-1)


@pytest.mark.parametrize(("R", "L", "prob"), [(200, 99, 0.95), (100, 19, 0.8)])
def test_bands_hold_uniform_ranks_with_their_probability(R: int, L: int, prob: float, seed: int) -> None:
    bands = ecdf_bands(R, L, prob=prob, seed=seed)
    assert bands.points.tolist() == pytest.approx([i / (L + 1) for i in range(1, L + 1)])
    inside = contained(rnd.integers(L + 1, (R, 4000), generator=rnd.generator_from(seed + 1)), L, bands)
    # Both the level and this check rest on 4,000 simulations; the law is discrete, and the bands err outwards.
    error = math.sqrt(2 * prob * (1 - prob) / 4000)
    assert prob - 5 * error < inside.double().mean() < prob + 5 * error + 0.01


def test_bands_reject_what_is_not_uniform(seed: int) -> None:
    u = rnd.uniform((200, 200), generator=rnd.generator_from(seed))
    bands = ecdf_bands(200, 99)
    assert contained((100 * u.square()).long(), 99, bands).double().mean() < 0.05


def test_bad_band_arguments() -> None:
    for arguments, options in [
        ((0, 9), {}),
        ((9, 0), {}),
        ((9, 9), {"prob": 1.0}),
        ((9, 9), {"num_simulations": 5}),
        ((9, 9), {"seed": -1}),
    ]:
        with pytest.raises(DomainError, match="ecdf_bands"):
            ecdf_bands(*arguments, **options)
