"""Power laws fitted to losses: exact cases, naive formulas, and what is not dropped."""

from __future__ import annotations

import numpy as np
import pytest

from probnn import random
from probnn.errors import DomainError
from probnn.studies import _fits
from probnn.studies.rates import METHODS, STATISTICS, Rates, fit_rates
from probnn.studies.table import Table

from .rate_cases import SIZES, naive, noisy

ROUNDING = 1e-10


def study_table(seed: int, replicates: int = 12) -> Table:
    """What a study over n and k looks like, two losses, all rows complete."""
    parts = [noisy(seed + 10 * k, replicates=replicates) for k in (2, 3)]
    n, replicate, loss = (np.concatenate([p[name] for p in parts]) for name in ("n", "replicate", "loss"))
    count = len(n)
    return Table(
        {
            "n": n,
            "k": np.repeat([2, 3], count // 2),
            "replicate": replicate,
            "seed": np.arange(count),
            "status": ["complete"] * count,
            "D": loss,
            "tv": loss**2,
            "seconds": np.ones(count),
            "warnings": [""] * count,
            "error": [""] * count,
        }
    )


def changed(table: Table, **columns) -> Table:
    return Table({**table.columns, **columns})


def edited(table: Table, name: str, rows, value) -> Table:
    column = np.array(table[name], dtype="<U16" if table[name].dtype.kind == "U" else None)
    column[rows] = value
    return changed(table, **{name: column})


def one(rates: Rates) -> dict:
    (row,) = rates.table.rows()
    return row


@pytest.mark.parametrize("slope", [-0.5, -3.2, 0.0, 0.7])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_power_law_without_noise_is_found_exactly(statistic: str, method: str, slope: float) -> None:
    factors = np.array([0.5, 0.8, 1.0, 1.3, 2.9])
    n = np.repeat(SIZES, 5)
    t = Table({"n": n, "replicate": np.tile(np.arange(5), 5), "loss": 2 * n**slope * np.tile(factors, 5)})
    row = one(fit_rates(t, losses="loss", statistic=statistic, method=method, num_bootstrap=100))
    middle = factors.mean() if statistic == "mean" else 1.0
    assert row["slope"] == pytest.approx(slope, abs=ROUNDING)
    assert row["constant"] == pytest.approx(2 * middle, rel=ROUNDING)
    assert row["residual_sd"] < ROUNDING and abs(row["curvature"]) < ROUNDING
    assert slope == 0 or row["r_squared"] == pytest.approx(1, abs=ROUNDING)
    assert row["low"] < row["slope"] < row["high"]
    assert (row["sizes"], row["rows"]) == (5, 25)
    # A draw of equal rows has no standard error, so no weight.
    assert row["draws"] == 100 if method != "wls" else 80 < row["draws"] <= 100


@pytest.mark.parametrize("statistic", STATISTICS)
def test_least_squares_of_logs_against_polyfit(statistic: str, seed: int) -> None:
    t = noisy(seed, replicates=15)
    sizes, values, errors = naive(t, statistic)
    for method, w in (("ols", np.ones(5)), ("wls", 1 / errors)):
        row = one(fit_rates(t, losses="loss", statistic=statistic, method=method, num_bootstrap=100))
        slope, level = np.polyfit(np.log(sizes), np.log(values), 1, w=w)
        assert row["slope"] == pytest.approx(slope, rel=1e-9)
        assert row["constant"] == pytest.approx(np.exp(level), rel=1e-9)
        assert row["curvature"] == pytest.approx(np.polyfit(np.log(sizes), np.log(values), 2, w=w)[0], rel=1e-7)
        residual = np.log(values) - level - slope * np.log(sizes)
        assert row["residual_sd"] == pytest.approx(np.sqrt((residual**2).sum() / 3), rel=1e-9)
        spread = np.log(values) - np.average(np.log(values), weights=w**2)
        assert row["r_squared"] == pytest.approx(1 - (w**2 * residual**2).sum() / (w**2 * spread**2).sum(), rel=1e-9)
    points = fit_rates(t, losses="loss", statistic=statistic, num_bootstrap=100).points
    np.testing.assert_allclose(points["value"], values, rtol=1e-13)
    np.testing.assert_allclose(points["log_se"], errors, rtol=1e-12)


def test_standard_errors_are_the_spread_over_studies_and_intervals_cover(seed: int) -> None:
    # 250 studies: a standard deviation is known to 1/sqrt(2 · 250), a coverage to sqrt(.95 · .05 / 250).
    count = 250
    for statistic in STATISTICS:
        rows = [
            one(
                fit_rates(noisy(1000 * seed + i, sd=0.3), losses="loss", statistic=statistic, num_bootstrap=300, seed=i)
            )
            for i in range(count)
        ]
        slopes, errors = (np.array([r[name] for r in rows]) for name in ("slope", "se"))
        assert np.sqrt((errors**2).mean()) / slopes.std(ddof=1) == pytest.approx(1, abs=5 / np.sqrt(2 * count))
        assert abs(slopes.mean() + 0.5) < 5 * slopes.std() / np.sqrt(count)
        covered = np.mean([r["low"] <= -0.5 <= r["high"] for r in rows])
        assert covered == pytest.approx(0.95, abs=5 * np.sqrt(0.95 * 0.05 / count))


@pytest.mark.parametrize("method", ["ols", "wls"])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_every_draw_is_a_fit_to_resampled_replicates(statistic: str, method: str, seed: int) -> None:
    t = noisy(seed, replicates=15)
    rates = fit_rates(
        t, losses="loss", statistic=statistic, method=method, num_bootstrap=100, seed=seed, probability=0.8
    )
    generator = random.generator_from(seed)
    counts = [np.concatenate(list(_fits.resample(15, 100, statistic, generator)))[1:] for _ in SIZES]
    slopes = []
    for b in range(100):
        rows = [np.repeat(np.flatnonzero(t["n"] == n), c[b]) for n, c in zip(SIZES, counts, strict=True)]
        sizes, values, errors = naive(t.take(np.concatenate(rows)), statistic)
        w = 1 / errors if method == "wls" else np.ones(5)
        slopes.append(np.polyfit(np.log(sizes), np.log(values), 1, w=w)[0])
    np.testing.assert_allclose(rates.slopes[0], slopes, rtol=1e-8)
    row = one(rates)
    assert (row["low"], row["high"]) == (np.sort(rates.slopes[0])[9], np.sort(rates.slopes[0])[90])
    assert row["se"] == pytest.approx(np.std(slopes, ddof=1), rel=1e-8)


@pytest.mark.parametrize("method", ["ols", "wls"])
def test_bootstrap_error_is_that_of_the_delta_method(method: str, seed: int) -> None:
    t = noisy(seed, replicates=400, sd=0.2)
    sizes, _, errors = naive(t, "mean")
    w = np.ones(5) if method == "ols" else errors**-2
    d = np.log(sizes) - np.average(np.log(sizes), weights=w)
    expected = np.sqrt(((w * d * errors) ** 2).sum()) / (w * d**2).sum()
    row = one(fit_rates(t, losses="loss", method=method, num_bootstrap=2000, seed=seed))
    assert row["se"] == pytest.approx(expected, rel=5 / np.sqrt(2 * 2000) + 0.01)  # a hundredth: the logarithm
    assert row["curvature_se"] > 0


def test_groups_share_their_draws(seed: int) -> None:
    t = study_table(seed)
    half = len(t) // 2
    paired = changed(t, D=np.concatenate([t["D"][:half], 3 * t["D"][:half] * np.sqrt(t["n"][:half])]))
    rates = fit_rates(paired, losses=["D", "tv"], num_bootstrap=200)
    difference = rates.difference({"k": 2, "loss": "D"}, {"k": 3, "loss": "D"})
    assert difference.difference == pytest.approx(-0.5, abs=ROUNDING) and difference.se < ROUNDING
    assert difference.low == pytest.approx(-0.5, abs=ROUNDING)
    assert rates.table["se"][0] > 1e-2
    # Of unrelated data the slopes are nearly uncorrelated, although the draws are shared.
    apart = fit_rates(t, losses="D", num_bootstrap=500)
    assert abs(np.corrcoef(apart.slopes)[0, 1]) < 5 / np.sqrt(half)
    se = apart.difference({"k": 2}, {"k": 3}).se
    assert se == pytest.approx(np.std(apart.slopes[0] - apart.slopes[1], ddof=1), rel=1e-12)


def test_rates_depend_on_their_rows_alone(seed: int) -> None:
    t = study_table(seed)
    whole = fit_rates(t, num_bootstrap=100)
    assert whole.by == ("k",) and whole.losses == ("D", "tv")
    assert list(zip(whole.table["loss"].tolist(), whole.table["k"].tolist(), strict=True)) == [
        ("D", 2), ("D", 3), ("tv", 2), ("tv", 3)
    ]  # fmt: skip
    shuffled = fit_rates(t.take(np.random.default_rng(seed).permutation(len(t))), num_bootstrap=100)
    part = fit_rates(t.where(k=3), losses="tv", num_bootstrap=100)
    for name in ("slope", "se", "low", "high", "constant"):
        assert part.table[name][0] == pytest.approx(whole.table[name][3], rel=1e-12)
        for row in whole.table.rows():
            same = shuffled.table.where(k=row["k"], loss=row["loss"])
            assert same[name][0] == pytest.approx(row[name], rel=1e-12)
    assert fit_rates(t, num_bootstrap=100).table == whole.table
    assert fit_rates(t, num_bootstrap=100, seed=1).table["se"][0] != whole.table["se"][0]


def test_groups_may_have_different_replicates(seed: int) -> None:
    t = study_table(seed)
    fewer = t.take((t["k"] == 2) | (t["replicate"] < 4))
    rates = fit_rates(fewer, losses="D", num_bootstrap=400)
    alone = fit_rates(fewer.where(k=3), losses="D", num_bootstrap=400)
    assert rates.table["rows"].tolist() == [60, 20]
    assert rates.table["slope"][1] == pytest.approx(alone.table["slope"][0], rel=1e-12)
    # Some draws have none of the four replicates at some size: that is said.
    lost = 400 - rates.table["draws"][1]
    assert lost == np.isnan(rates.slopes[1]).sum() > 0
    assert f"no rate in {lost} bootstrap draws" in rates.table["note"][1]
    assert rates.table["draws"][0] == 400 and rates.table["se"][1] > 0


def test_failed_rows_are_counted_and_left_out_of_the_statistic(seed: int) -> None:
    t = study_table(seed).where(k=2)
    t = edited(t, "status", [0, 13], ["failed", "timeout"])
    t = edited(edited(t, "D", [0, 13], np.nan), "D", [14], np.nan)
    rates = fit_rates(t, losses="D", num_bootstrap=100)
    row = one(rates)
    assert (row["rows"], row["failed"], row["nan"], row["inf"], row["sizes"]) == (57, 2, 1, 0, 5)
    clean = fit_rates(t.take(~np.isnan(t["D"])), losses="D", num_bootstrap=100)
    assert row["slope"] == pytest.approx(one(clean)["slope"], rel=1e-12)
    assert rates.points["rows"].tolist() == [11, 10, 12, 12, 12]
    # A loss that a failed row happens to have counts for nothing.
    again = fit_rates(edited(t, "D", [0, 13], 1e9), losses="D", num_bootstrap=100)
    assert again.table == rates.table


def test_failures_may_count_as_infinite(seed: int) -> None:
    t = edited(edited(study_table(seed).where(k=2), "status", [0, 13], "failed"), "D", [14], np.nan)
    infinite = edited(t, "D", [0, 13, 14], np.inf)
    row = one(fit_rates(t, losses="D", statistic="median", num_bootstrap=100, failures="infinite"))
    expected = [np.median(infinite["D"][infinite["n"] == n]) for n in SIZES]
    assert row["slope"] == pytest.approx(np.polyfit(np.log(SIZES), np.log(expected), 1)[0], rel=1e-10)
    assert (row["rows"], row["failed"], row["nan"]) == (60, 2, 1)
    row = one(fit_rates(t, losses="D", num_bootstrap=100, failures="infinite"))
    assert np.isnan(row["slope"]) and row["note"] == "no rate: mean not finite at n = 100, 250"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("rows", "value", "note"),
    [
        ([5], np.inf, "no rate: mean not finite at n = 100"),
        (slice(12, 24), 0.0, "no rate: mean zero or negative at n = 250"),
        (slice(24, 36), -1.0, "no rate: mean zero or negative at n = 1000"),
        (slice(0, 60), np.nan, "no rate: no rows at n = 100, 250, 1000 and 2 more"),
        (slice(48, 60), np.nan, "no rate: no rows at n = 10000"),
    ],
)
def test_no_size_is_ever_left_out(rows, value: float, note: str, method: str, seed: int) -> None:
    t = edited(study_table(seed).where(k=2), "D", rows, value)
    rates = fit_rates(t, losses="D", method=method, num_bootstrap=100, theory={"D": -0.5})
    row = one(rates)
    assert row["note"].startswith(note) and row["sizes"] == 5 and row["draws"] == 0
    for name in (
        "slope",
        "se",
        "low",
        "high",
        "z",
        "constant",
        "residual_sd",
        "r_squared",
        "curvature",
        "curvature_se",
    ):
        assert np.isnan(row[name]), name
    assert len(rates.points) == 5


def test_medians_bear_infinite_losses(seed: int) -> None:
    t = edited(study_table(seed).where(k=2), "D", [5, 14], np.inf)
    for method in METHODS:
        row = one(fit_rates(t, losses="D", statistic="median", method=method, num_bootstrap=100))
        assert np.isfinite([row["slope"], row["se"]]).all() and row["inf"] == 2
    expected = [np.median(t["D"][t["n"] == n]) for n in SIZES]
    row = one(fit_rates(t, losses="D", statistic="median", num_bootstrap=100))
    assert row["slope"] == pytest.approx(np.polyfit(np.log(SIZES), np.log(expected), 1)[0], rel=1e-10)


def test_a_size_that_a_group_lacks_makes_no_rate(seed: int) -> None:
    t = study_table(seed)
    rates = fit_rates(t.take((t["k"] == 2) | (t["n"] < 10000)), losses="D", num_bootstrap=100)
    assert np.isfinite(rates.table["slope"][0]) and np.isnan(rates.table["slope"][1])
    assert rates.table["note"][1] == "no rate: no rows at n = 10000"


def test_few_rows_are_noted(seed: int) -> None:
    t = noisy(seed, replicates=12)
    single = t.take((t["n"] > 100) | (t["replicate"] == 0))
    for statistic in STATISTICS:
        row = one(fit_rates(single, losses="loss", statistic=statistic, num_bootstrap=100))
        assert row["note"] == "no standard error: a single row at n = 100"
        assert np.isfinite(row["slope"]) and np.isnan([row["se"], row["low"], row["curvature_se"]]).all()
    row = one(fit_rates(single, losses="loss", method="wls", num_bootstrap=100))
    assert row["note"].startswith("no rate: no weight") and np.isnan(row["slope"])
    few = t.take((t["n"] > 100) | (t["replicate"] < 7))
    assert one(fit_rates(few, losses="loss"))["note"] == "only 7 rows at n = 100: the standard error is rough"
    assert one(fit_rates(t, losses="loss"))["note"] == ""
    flat = changed(t, loss=t["n"] ** -0.5)
    assert one(fit_rates(flat, losses="loss"))["slope"] == pytest.approx(-0.5, abs=ROUNDING)
    assert one(fit_rates(changed(t, loss=np.ones(len(t))), losses="loss", method="wls"))["note"].startswith(
        "no rate: no w"
    )


def test_theory_curve_and_text(seed: int) -> None:
    rates = fit_rates(study_table(seed), theory={"D": -0.5}, num_bootstrap=100)
    row = next(rates.table.rows())
    assert row["theory"] == -0.5 and row["z"] == pytest.approx((row["slope"] + 0.5) / row["se"], rel=1e-12)
    assert np.isnan(rates.table["z"][2]) and np.isnan(rates.table["theory"][3])
    curve = rates.curve([100.0, 400.0], loss="D", k=2)
    assert curve[0] == pytest.approx(row["constant"] * 100 ** row["slope"], rel=1e-12)
    assert np.log(curve[1] / curve[0]) / np.log(4) == pytest.approx(row["slope"], rel=1e-10)
    for text in (repr(rates), rates.to_markdown(), rates.to_latex()):
        assert "over all 5 sizes" in text and "slope" in text
    assert rates._repr_html_().startswith("<table")
    assert "theory" not in fit_rates(study_table(seed), num_bootstrap=100).table
    with pytest.raises(DomainError, match="fits 2 of 4 rates"):
        rates.curve([100.0], loss="D")
    with pytest.raises(DomainError, match="fits 0 of 4"):
        rates.difference({"k": 4, "loss": "D"}, {"k": 2, "loss": "D"})
    with pytest.raises(DomainError, match="told apart by k, loss, not by n"):
        rates.curve([100.0], n=100)
    with pytest.raises(DomainError, match="sizes must be positive"):
        rates.curve([0.0], loss="D", k=2)


def test_two_sizes_are_refused(seed: int) -> None:
    t = study_table(seed)
    with pytest.raises(DomainError, match=r"at least three sizes, got 2 in 'n' \(100, 250\).*add sizes"):
        fit_rates(t.take(t["n"] < 1000))
    with pytest.raises(DomainError, match="at least three sizes, got 0"):
        fit_rates(t.take(t["n"] < 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistic": "mode"}, "statistic must be one of"),
        ({"method": "lad"}, "method must be one of"),
        ({"failures": "drop"}, "failures must be one of"),
        ({"num_bootstrap": 99}, "num_bootstrap must be an integer >= 100"),
        ({"seed": -1}, "seed must be an integer"),
        ({"probability": 1.0}, "probability must be a probability"),
        ({"losses": "E"}, "losses must be different columns of"),
        ({"losses": ["D", "D"]}, "losses must be different columns of"),
        ({"losses": []}, "losses must be columns that hold numbers"),
        ({"losses": "status"}, "losses must be columns that hold numbers, 'status' does not"),
        ({"by": ()}, r"rows differ in 'k', which by=\(\) does not name"),
        ({"by": ("k", "n")}, "by must name neither the size nor the replicate"),
        ({"by": "gate"}, "by must be different columns of"),
        ({"size": "N"}, "size must be different columns of"),
        ({"size": "status"}, "sizes must be positive numbers"),
        ({"size": "replicate"}, "rows differ in 'n'|sizes must be positive|by must name neither"),
        ({"theory": {"E": -0.5}}, "theory must map losses"),
        ({"theory": {}}, "theory must map losses"),
        ({"theory": -0.5}, "theory must map losses"),
        ({"theory": {"D": np.nan}}, "the exponent of 'D' must be a finite number"),
        ({"theory": {"D": True}}, "the exponent of 'D' must be a finite number"),
    ],
)  # fmt: skip
def test_bad_input(options: dict, message: str, seed: int) -> None:
    with pytest.raises(DomainError, match=message):
        fit_rates(study_table(seed), **options)


def test_groups_of_single_rows_have_no_rate(seed: int) -> None:
    rates = fit_rates(study_table(seed, replicates=3), by=("k", "seed"), losses="tv", num_bootstrap=100)
    assert len(rates.table) == 30 and all(note.startswith("no rate: no rows") for note in rates.table["note"])


def test_bad_tables(seed: int) -> None:
    t = study_table(seed)
    with pytest.raises(DomainError, match="table must be a Table"):
        fit_rates({"n": [1, 2, 3]})
    with pytest.raises(DomainError, match="must have a column 'replicate'"):
        fit_rates(Table({"n": [1, 2, 3], "status": ["complete"] * 3, "loss": [1.0, 2.0, 3.0]}))
    with pytest.raises(DomainError, match="no column 'status'.*give losses="):
        fit_rates(noisy(seed))
    with pytest.raises(DomainError, match="several rows have n = 100, {'k': 2} and the same replicate"):
        fit_rates(edited(t, "replicate", [1], 0))
    with pytest.raises(DomainError, match="sizes must be positive numbers"):
        fit_rates(edited(t, "n", [0], 0))
    with pytest.raises(DomainError, match="called slope too; rename the axis"):
        fit_rates(Table({"n": t["n"], "slope": t["k"], **{x: t[x] for x in ("replicate", "status", "D")}}))


def test_a_theory_that_differs_by_group(seed):
    tables = [noisy(seed + i, sd=0.1) for i in range(2)]
    columns = {name: np.concatenate([t[name] for t in tables]) for name in tables[0].names}
    both = Table({"estimator": np.repeat(["a", "b"], len(tables[0])), **columns})
    rates = fit_rates(both, losses="loss", theory={"loss": {"a": -0.5}}).table
    assert rates.where(estimator="a")["theory"][0] == -0.5 and abs(rates.where(estimator="a")["z"][0]) < 5
    assert np.isnan(rates.where(estimator="b")["theory"][0]) and np.isnan(rates.where(estimator="b")["z"][0])
    with pytest.raises(DomainError, match="theory of 'loss' must be about a, b, got c"):
        fit_rates(both, losses="loss", theory={"loss": {"c": -0.5}})


def test_a_loss_that_never_changes_is_no_standard_errors_away():
    constant = Table({**noisy(0).columns, "loss": np.full(len(noisy(0)), 0.3)})
    rate = next(fit_rates(constant, losses="loss", theory={"loss": -0.5}).table.rows())
    assert abs(rate["slope"]) < 1e-12 and np.isnan(rate["z"])
