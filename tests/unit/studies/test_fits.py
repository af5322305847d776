"""The arithmetic of rates against samples written out, scipy and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit

from probnn import random
from probnn.studies import _fits
from probnn.studies.rates import STATISTICS
from probnn.studies.table import Table

from .rate_cases import SIZES, naive


@pytest.mark.parametrize("statistic", STATISTICS)
def test_draws_are_those_of_samples_written_out(statistic: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(seed).lognormal(size=9)
    values[4] = np.nan
    monkeypatch.setattr(_fits, "_BLOCK", 9 * 20)  # in blocks of 20, 20 and 10
    blocks = list(_fits.resample(9, 50, statistic, random.generator_from(seed)))
    counts = np.concatenate(blocks)
    assert [len(block) for block in blocks] == [1, 20, 20, 10]
    assert (counts[0] == 1).all() and (counts[1:].sum(1) == (8 if statistic == "mean" else 9)).all()
    centre, error = _fits.centre(values, counts, statistic), _fits.log_error(values, counts, statistic)
    for b, count in enumerate(counts):
        sample = np.repeat(values, count)
        sample = sample[~np.isnan(sample)]
        written = Table({"n": np.ones(len(sample)), "loss": sample})
        _, value, log_se = naive(written, statistic)
        assert centre[b] == pytest.approx(value[0], rel=1e-12)
        assert error[b] == pytest.approx(log_se[0], rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(
    "sizes", [SIZES, (10, 20, 40), tuple(range(1000, 41000, 1000))], ids=["log", "three", "linear"]
)
def test_nonlinear_least_squares_against_scipy(sizes: tuple[int, ...], seed: int) -> None:
    x = np.log(np.array(sizes, float))
    noise = np.random.default_rng(seed).standard_normal((30, len(sizes)))
    t = 3 * np.exp(-0.5 * x + 0.3 * noise)
    slope, level = _fits.fit_power_law(x, t, "nls")
    for i in range(len(t)):
        start = (t[i, 0] * sizes[0] ** 0.5, -0.5)
        (c, s), _ = curve_fit(lambda n, c, s: c * n**s, np.array(sizes, float), t[i], p0=start, xtol=1e-14, ftol=1e-14)
        assert slope[i] == pytest.approx(s, abs=1e-6)
        assert np.exp(level[i]) == pytest.approx(c, rel=1e-5)


@pytest.mark.parametrize("count", [3, 5, 40])
def test_nonlinear_least_squares_finds_the_minimum_of_wild_statistics(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = np.sort(generator.uniform(0, 7, count))
    t = np.exp(3 * generator.standard_normal((60, count)))
    slope, level = _fits.fit_power_law(x, t, "nls")
    grid = np.concatenate([np.linspace(-40, 40, 20001), np.geomspace(40, 1e5, 500), -np.geomspace(40, 1e5, 500)])
    f = np.exp(grid[:, None] * (x - np.where(grid > 0, x[-1], x[0])[:, None]))
    explained = ((t @ f.T) ** 2 / (f**2).sum(1)).max(1)
    reached = (t**2).sum(1) - ((t - np.exp(level[:, None] + slope[:, None] * x)) ** 2).sum(1)
    assert (reached >= explained * (1 - 1e-12)).all()
