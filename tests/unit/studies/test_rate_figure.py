"""The figure of rates: points, fits and the theory's lines where they belong."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pytest

from probnn.errors import DomainError
from probnn.studies.rate_figure import plot_rates
from probnn.studies.rates import Rates, fit_rates
from probnn.studies.table import Table

SIZES = (100, 1000, 10000)


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def table(seed: int, replicates: int = 12) -> Table:
    n = np.tile(np.repeat(SIZES, replicates), 2)
    loss = n**-0.5 * np.exp(0.5 * np.random.default_rng(seed).standard_normal(len(n)))
    replicate = np.tile(np.arange(replicates), 6)
    return Table({"n": n, "k": np.repeat([2, 3], len(n) // 2), "replicate": replicate, "D": loss, "tv": loss**2})


def fitted(seed: int, **options) -> Rates:
    return fit_rates(table(seed), losses=("D", "tv"), num_bootstrap=200, seed=seed, **options)


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_one_rate(seed: int) -> None:
    rates = fitted(seed, theory={"D": -0.4})
    _, given = plt.subplots()
    ax = plot_rates(rates, which={"k": 3, "loss": "D"}, ax=given)
    assert ax is given and (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("n", "mean D")
    points, fit, theory, _ = ax.lines
    shown = rates.points.where(k=3, loss="D")
    np.testing.assert_allclose(points.get_xdata(), SIZES, rtol=1e-12)  # a single rate stands where it is
    np.testing.assert_allclose(points.get_ydata(), shown["value"], rtol=1e-12)
    np.testing.assert_allclose(fit.get_ydata(), rates.curve([100, 10000], k=3, loss="D"), rtol=1e-12)
    x, y = np.log(theory.get_xdata()), np.log(theory.get_ydata())
    assert (y[1] - y[0]) / (x[1] - x[0]) == pytest.approx(-0.4, rel=1e-10)
    centre = np.interp(np.log(SIZES).mean(), x, y)
    assert centre == pytest.approx(np.log(shown["value"]).mean(), abs=1e-10)
    row = next(rates.table.where(k=3, loss="D").rows())
    assert texts(ax) == [f"slope {row['slope']:.3g} ± {row['se']:.2g}", "theory: slope -0.4"]
    (bars,) = ax.collections
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, np.stack([shown["low"], shown["high"]], axis=1), rtol=1e-12)


def test_several_rates_stand_apart_and_are_told_apart(seed: int) -> None:
    rates = fitted(seed, theory={"D": -0.5, "tv": -0.5}, statistic="median")
    ax = plot_rates(rates)
    labels = texts(ax)
    assert [label.partition(":")[0] for label in labels] == ["k = 2, D", "k = 3, D", "k = 2, tv", "k = 3, tv", "theory"]
    assert ax.get_ylabel() == "median loss"
    points = [line for line in ax.lines if line.get_linestyle() == "None" and len(line.get_xdata()) == 3]
    assert len({line.get_color() for line in points}) == 4 and len({line.get_marker() for line in points}) == 4
    assert len({float(line.get_xdata()[0]) for line in points}) == 4


def test_rates_that_are_none_say_why(seed: int) -> None:
    t = table(seed)
    loss = np.array(t["D"])
    loss[3] = np.inf
    rates = fit_rates(Table({**t.columns, "D": loss}), losses="D", num_bootstrap=100)
    ax = plot_rates(rates, which={"k": 2})
    assert texts(ax) == ["no rate (mean not finite at n = 100)"]
    assert ax.lines[0].get_xdata().tolist() == [1000, 10000]
    assert all(len(line.get_xdata()) != 2 or line.get_marker() == "o" for line in ax.lines)  # no line is fitted


def test_infinite_bars_end_in_arrows(seed: int) -> None:
    t = table(seed)
    loss = np.array(t["D"])
    loss[:5] = np.inf  # 5 of 12: the median is finite, that of some draws is not
    rates = fit_rates(Table({**t.columns, "D": loss}), losses="D", statistic="median", num_bootstrap=400)
    assert np.isinf(rates.points["high"][0]) and np.isfinite(rates.points["value"][0])
    ax = plot_rates(rates, which={"k": 2})
    arrows = [line for line in ax.lines if line.get_marker() == "^" and len(line.get_xdata())]
    assert [line.get_ydata().tolist() for line in arrows] == [[2 * rates.points["value"][0]]]


def test_bad_input(seed: int) -> None:
    with pytest.raises(DomainError, match="rates must come from fit_rates"):
        plot_rates(table(seed))
    with pytest.raises(DomainError, match="fits no rate"):
        plot_rates(fitted(seed), which={"k": 9})
    with pytest.raises(DomainError, match="told apart by k, loss, not by 'n'"):
        plot_rates(fitted(seed), which={"n": 100})
