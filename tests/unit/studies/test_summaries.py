"""Performance measures against closed forms, naive loops and simulation; what summaries do with failures."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from probnn import io
from probnn.errors import DomainError
from probnn.studies import (
    RMSE,
    Bias,
    Coverage,
    EmpiricalSE,
    Mean,
    Measure,
    Median,
    Rate,
    Table,
    failures,
    pivot,
    replicates_needed,
    summarise,
)

NAN, INF = math.nan, math.inf


def of(measure: Measure, *columns: Any) -> tuple[float, float]:
    """Value and error of a measure; numbers stand for constant columns."""
    arrays = [np.asarray(c, dtype=np.float64) for c in columns]
    return measure.compute(*np.broadcast_arrays(*arrays))


def naive_jackknife(statistic: Any, x: np.ndarray) -> float:
    without = [statistic(np.delete(x, i)) for i in range(len(x))]
    centre = sum(without) / len(x)
    return math.sqrt((len(x) - 1) / len(x) * sum((w - centre) ** 2 for w in without))


def test_against_naive_formulas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, truth = rng.gamma(2.0, size=17), rng.standard_normal(17)
    n = 17
    assert of(Mean("x"), x) == pytest.approx((sum(x) / n, np.std(x, ddof=1) / math.sqrt(n)), rel=1e-13)
    e = [a - b for a, b in zip(x, truth, strict=True)]
    assert of(Bias("x", truth="t"), x, truth) == pytest.approx(
        (sum(e) / n, np.std(e, ddof=1) / math.sqrt(n)), rel=1e-12
    )
    r = [a / b for a, b in zip(e, truth, strict=True)]
    assert of(Bias("x", truth="t", relative=True), x, truth) == pytest.approx(
        (sum(r) / n, np.std(r, ddof=1) / math.sqrt(n)), rel=1e-12
    )
    constant = of(Bias("x", truth=-2.0), x, -2.0)
    assert of(Bias("x", truth=-2.0, relative=True), x, -2.0) == pytest.approx(
        (constant[0] / -2, constant[1] / 2), rel=1e-12
    )
    rms = lambda v: math.sqrt(sum(v**2) / len(v))  # noqa: E731
    assert of(RMSE("x", truth="t"), x, truth) == pytest.approx(
        (rms(np.array(e)), naive_jackknife(rms, np.array(e))), rel=1e-11
    )
    sd = lambda v: math.sqrt(sum((v - sum(v) / len(v)) ** 2) / (len(v) - 1))  # noqa: E731
    assert of(EmpiricalSE("x"), x) == pytest.approx((sd(x), naive_jackknife(sd, x)), rel=1e-11)
    hit = (x > 2).astype(float)
    p = sum(hit) / n
    assert of(Rate("h"), hit) == pytest.approx((p, math.sqrt(p * (1 - p) / n)), rel=1e-13)
    assert of(Median("x"), x)[0] == np.median(x) and of(Median("x"), x[:16])[0] == np.median(x[:16])


@pytest.mark.parametrize("n", [3, 5])
def test_median_error_is_the_exact_bootstrap_for_odd_n(n: int, seed: int) -> None:
    x = np.random.default_rng(seed).lognormal(size=n)
    medians = [np.median(sample) for sample in itertools.product(x, repeat=n)]
    assert of(Median("x"), x)[1] == pytest.approx(np.std(medians), rel=1e-10)


def test_median_error_with_infinities_is_that_of_finite_medians(seed: int) -> None:
    x = np.array([*np.random.default_rng(seed).lognormal(size=4), INF])
    medians = np.array([np.median(sample) for sample in itertools.product(x, repeat=5)])
    value, error = of(Median("x"), x)
    assert value == np.median(x) and error == pytest.approx(np.std(medians[np.isfinite(medians)]), rel=1e-10)
    value, error = of(Median("x"), [1.0, INF, INF])
    assert value == INF and math.isnan(error)
    assert all(map(math.isnan, of(Median("x"), [-INF, INF])))


def test_relation_to_published_formulas(seed: int) -> None:
    """Many normal estimates: the jackknife meets the formulas of Morris, White and Crowther (2019), table 6."""
    x = np.random.default_rng(seed).normal(1.0, 2.0, size=100_000)
    n = len(x)
    s, error = of(EmpiricalSE("x"), x)
    # The kurtosis of n normal draws, which the jackknife estimates, has a standard deviation of sqrt(24 / n).
    spread = 5 * math.sqrt(24 / n) / 4
    assert error == pytest.approx(s / math.sqrt(2 * (n - 1)), rel=spread)
    squares = (x - 0.5) ** 2
    mse_error = math.sqrt(((squares - squares.mean()) ** 2).sum() / (n * (n - 1)))
    value, error = of(RMSE("x", truth=0.5), x, 0.5)
    assert error == pytest.approx(mse_error / (2 * value), rel=1e-3)  # they differ in terms of order 1 / n


@pytest.mark.parametrize("shape", ["normal", "exponential"])
@pytest.mark.parametrize(
    "measure, low, high",
    [  # relative bias of the error to either side: none for means, terms of order 1 / n or n**-.5 for the others
        (Mean("x"), 0.0, 0.0),
        (Bias("x", truth=0.3), 0.0, 0.0),
        (RMSE("x", truth=0.3), 0.01, 0.01),
        (EmpiricalSE("x"), 0.01, 0.04),
        (Rate("x"), 0.005, 0.0),  # p (1 - p) / n underestimates by 1 / n
        (Median("x"), 0.0, 0.08),
    ],
    ids=lambda v: v.label if isinstance(v, Measure) else "",
)
def test_errors_are_those_of_repeated_studies(measure: Measure, low: float, high: float, shape: str, seed: int) -> None:
    """The mean square of reported errors is the variance of values over 4,000 studies of 100 replicates."""
    rng, studies, n = np.random.default_rng([seed, 7]), 4000, 100
    draws = {"normal": rng.standard_normal, "exponential": rng.standard_exponential}[shape]((studies, n))
    if isinstance(measure, Rate):
        draws = (draws > 0.8).astype(float)
    extra = [np.full(n, 0.3)] if len(measure.inputs) == 2 else []
    values, errors = np.array([measure.compute(x, *extra) for x in draws]).T
    z = (values - values.mean()) ** 2 - errors**2  # of expectation 0, up to the bias admitted
    slack = 5 * z.std() / math.sqrt(studies)
    square = float((errors**2).mean())
    assert -2 * low * square - slack < -z.mean() < 2 * high * square + slack


def test_coverage() -> None:
    low, high = [-1.0, 0.5, -INF, 2.0, 1.0], [1.0, 2.0, INF, 1.0, 1.0]
    value, error = of(Coverage(lower="l", upper="u", truth=1.0), low, high, 1.0)
    assert value == 0.8 and error == pytest.approx(math.sqrt(0.8 * 0.2 / 5))  # closed; reversed ends hold nothing
    assert of(Coverage("c"), [1, 1, 0, 1, 1]) == (value, error)
    assert Coverage(lower="l", upper="u", truth="t").inputs == ("l", "u", "t") and Coverage("c").inputs == ("c",)


@pytest.mark.parametrize(
    "measure", [Mean("x"), Median("x"), Bias("x", truth=0.1), RMSE("x", truth=0.1), EmpiricalSE("x")]
)
def test_constants_have_no_error(measure: Measure) -> None:
    extra = [0.1] if len(measure.inputs) == 2 else []
    value, error = of(measure, [0.1] * 7, *extra)
    assert error == 0.0 and value == (0.1 if isinstance(measure, (Mean, Median)) else 0.0)


@pytest.mark.parametrize(
    "measure", [Mean("x"), Median("x"), Bias("x", truth=0.0), RMSE("x", truth=0.0), EmpiricalSE("x"), Rate("x")]
)
def test_none_one_and_infinite(measure: Measure) -> None:
    extra = [0.0] if len(measure.inputs) == 2 else []
    assert all(map(math.isnan, of(measure, [], *[[] for _ in extra])))
    value, error = of(measure, [1.0], *extra)
    assert math.isnan(error) and (value == 1.0 or (math.isnan(value) and isinstance(measure, EmpiricalSE)))
    if isinstance(measure, (Mean, Bias, RMSE)):
        value, error = of(measure, [1.0, 2.0, INF], *extra)
        assert value == INF and math.isnan(error)
        value, error = of(measure, [1.0, INF, -INF], *extra)
        assert (value == INF if isinstance(measure, RMSE) else math.isnan(value)) and math.isnan(error)
    assert math.isnan(of(EmpiricalSE("x"), [1.0, 2.0])[1]) and of(EmpiricalSE("x"), [1.0, 3.0])[0] == math.sqrt(2)


@pytest.mark.parametrize(
    "measure", [Mean("x"), Median("x"), Bias("x", truth=0.0), RMSE("x", truth=0.0), EmpiricalSE("x")]
)
@pytest.mark.parametrize("power", [-900, 900])
def test_scale_does_not_matter(measure: Measure, power: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal(9)
    extra = [0.0] if len(measure.inputs) == 2 else []
    value, error = of(measure, x, *extra)
    assert of(measure, np.ldexp(x, power), *extra) == (math.ldexp(value, power), math.ldexp(error, power))


def test_too_large_is_infinite() -> None:
    x = [1.7e308, -1.7e308] * 2
    assert of(EmpiricalSE("x"), x)[0] == INF and of(Mean("x"), x)[0] == 0.0
    assert of(Bias("x", truth=-1.7e308), x, -1.7e308)[0] == INF


def test_shifted_values_lose_no_digits() -> None:
    x = np.array([1.0, 2.0, 4.0, 8.0])
    for measure in (Mean("x"), Median("x"), EmpiricalSE("x")):
        assert of(measure, x + 2.0**40)[1] == pytest.approx(of(measure, x)[1], rel=1e-12)


def study_table() -> Table:
    """Two cells of five and one of two replicates with everything that can happen."""
    return Table(
        {
            "n": [10] * 5 + [20] * 5 + [30] * 2,
            "replicate": [*range(5), *range(5), 0, 1],
            "seed": list(range(12)),
            "status": ["complete"] * 4 + ["failed"] + ["complete"] * 5 + ["timeout", "killed"],
            "loss": [1.0, 2.0, NAN, 3.0, NAN, 1.0, INF, 2.0, 3.0, 4.0, NAN, NAN],
            "hit": [1.0, 1.0, 0.0, 0.0, NAN, 1.0, 1.0, 1.0, 1.0, 1.0, NAN, NAN],
            "seconds": [0.1] * 12,
            "warnings": [0] * 12,
            "error": [""] * 4 + ["ValueError: n = 10"] + [""] * 5 + ["too long", ""],
        }
    )


def test_summary_counts_every_replicate() -> None:
    s = summarise(study_table(), [Mean("loss"), Median("loss"), Rate("hit")])
    assert s.names == (
        *("n", "measure", "value", "mcse"),
        *("num_rows", "num_failed", "num_nonfinite", "num_replicates"),
    )
    assert s["n"].tolist() == [10] * 3 + [20] * 3 + [30] * 3
    assert s["measure"].tolist() == ["mean loss", "median loss", "rate hit"] * 3
    np.testing.assert_array_equal(s["value"], [2.0, 2.0, 0.5, INF, 3.0, 1.0, NAN, NAN, NAN])
    assert s["num_rows"].tolist() == [3, 3, 4, 5, 5, 5, 0, 0, 0]
    assert s["num_failed"].tolist() == [1, 1, 1, 0, 0, 0, 2, 2, 2]
    assert s["num_nonfinite"].tolist() == [1, 1, 0, 1, 1, 0, 0, 0, 0]
    assert s["num_replicates"].tolist() == [5] * 6 + [2] * 3
    assert s["mcse"][0] == pytest.approx(1 / math.sqrt(3)) and np.isnan(s["mcse"][[3, 6, 7, 8]]).all()


def test_default_measures_axes_and_pooling() -> None:
    t = study_table()
    s = summarise(t)
    assert sorted(set(s["measure"].tolist())) == ["mean hit", "mean loss", "median hit", "median loss"]
    pooled = summarise(t, axes=())
    assert pooled.names[0] == "measure" and set(pooled["num_replicates"].tolist()) == {12}
    assert "mean n" not in pooled["measure"].tolist()  # an axis that is not asked for is no output
    assert pooled.where(measure="median loss")["value"].item() == 2.5  # of 1 1 2 2 3 3 4 inf
    bare = Table({"k": ["b", "a", "b"], "loss": [1, 2, 5], "ok": [True, False, True]})
    s = summarise(bare, axes=["k"])
    assert s["k"].tolist() == ["b"] * 4 + ["a"] * 4 and s.where(measure="mean ok", k="b")["value"].item() == 1.0
    assert len(summarise(t.take([]))) == 0 and summarise(t.take([])).names == summarise(t).names
    assert summarise(t.take([]))["value"].dtype == np.float64
    assert summarise(t, Mean("loss")) == summarise(t, [Mean("loss")])


def test_truth_is_a_number_an_output_or_an_axis() -> None:
    t = Table({"theta": [1, 1, 2, 2], "x": [1.5, 2.5, 2.0, 4.0], "t": [1.0, 2.0, NAN, 4.0]})
    s = summarise(t, [Bias("x", truth=1), Bias("x", truth="theta", name="axis"), RMSE("x", truth="t")], ["theta"])
    np.testing.assert_allclose(s["value"], [1.0, 1.0, 0.5, 2.0, 1.0, 0.0])
    assert s["num_rows"].tolist() == [2, 2, 2, 2, 2, 1] and s["num_nonfinite"].tolist() == [0, 0, 0, 0, 0, 1]
    zero = summarise(Table({"x": [1.0, 2.0]}), [Bias("x", truth=0.0, relative=True)], axes=())
    assert np.isnan(zero["value"]).all() and np.isnan(zero["mcse"]).all()


def test_own_measures() -> None:
    @dataclass(frozen=True)
    class Largest(Measure):
        output: str
        name: str | None = None

        @property
        def inputs(self) -> tuple[str | float, ...]:
            return (self.output,)

        def compute(self, *columns: np.ndarray) -> tuple[float, float]:
            return float(columns[0].max(initial=-INF)), NAN

        def _words(self) -> str:
            return f"largest {self.output}"

    s = summarise(study_table(), [Largest("loss")])
    assert s["value"].tolist() == [3.0, INF, -INF] and s["measure"][0] == "largest loss"


def test_measures_are_saved(tmp_path: Any) -> None:
    for measure in (
        Mean("x", name="m"),
        Bias("x", truth="t", relative=True),
        Coverage(lower="l", upper="u", truth=1.0),
    ):
        io.save(measure, tmp_path / "m.safetensors")
        assert io.load(tmp_path / "m.safetensors") == measure


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: Mean(3), "name of a column"),
        (lambda: Mean(""), "name of a column"),
        (lambda: Median("x", name=1), "name must be text"),
        (lambda: Bias("x", truth=NAN), "finite number"),
        (lambda: Bias("x", truth=True), "finite number"),
        (lambda: RMSE("x", truth=None), "finite number"),
        (lambda: Coverage(), "either an output"),
        (lambda: Coverage("c", lower="l", upper="u", truth=0.0), "either an output"),
        (lambda: Coverage(lower="l", truth=0.0), "either an output"),
        (lambda: Coverage(lower="l", upper="u", truth=INF), "finite number"),
        (lambda: of(Rate("x"), [0.0, 0.5]), "0 or 1"),
        (lambda: of(Coverage("x"), [0.0, INF]), "0 or 1"),
        (lambda: summarise(study_table(), [Mean("lost")]), "no column 'lost'"),
        (lambda: summarise(study_table(), [Mean("error")]), "holds text"),
        (lambda: summarise(study_table(), ["loss"]), "such as Mean"),
        (lambda: summarise(study_table(), []), "no measure"),
        (lambda: summarise(study_table(), [Mean("loss"), Median("loss", name="mean loss")]), "another name"),
        (lambda: summarise(study_table(), axes="n"), "different names"),
        (lambda: summarise(study_table(), axes=["n", "n"]), "different names"),
        (lambda: summarise(study_table(), axes=["m"]), "no column 'm'"),
        (lambda: summarise(Table({"x": [1.0]})), "axes="),
        (lambda: summarise({"x": [1.0]}), "needs a Table"),
        (lambda: summarise(Table({"value": [1.0], "x": [2.0]}), axes=["value"]), "rename"),
        (lambda: summarise(Table({"x": [1.0], "status": ["done"]}), axes=()), "status must be"),
        (lambda: failures(Table({"x": [1.0], "status": ["done"]}), axes=()), "status must be"),
        (lambda: replicates_needed(study_table(), 0.1), "needs a summary"),
        (lambda: replicates_needed(summarise(study_table()), 0.0), "positive"),
        (lambda: replicates_needed(summarise(study_table()), {"mean": 0.1}), "measure must be one of"),
        (lambda: pivot(study_table()), "needs a summary"),
        (lambda: pivot(summarise(study_table()), "k"), "columns must be one of"),
        (lambda: pivot(summarise(study_table(), [Mean("loss", name="n")])), "same names"),
    ],
)
def test_bad_input(make: Any, says: str) -> None:
    with pytest.raises(DomainError, match=re.escape(says)):
        make()


def test_failures() -> None:
    f = failures(study_table())
    assert f.names[:2] == ("n", "num_replicates") and f["num_replicates"].tolist() == [5, 5, 2]
    for name, counts in {
        "num_complete": [4, 5, 0],
        "num_failed": [1, 0, 0],
        "num_timeout": [0, 0, 1],
        "num_killed": [0, 0, 1],
        "num_nonfinite": [1, 1, 0],
    }.items():
        assert f[name].tolist() == counts
    assert f["first_error"].tolist() == ["ValueError: n = 10", "", "too long"]
    assert failures(Table({"x": [1.0, NAN]}), axes=()).take([0])["num_nonfinite"].tolist() == [1]
    assert len(failures(study_table().take([]))) == 0


def test_replicates_needed_is_right_on_the_scale(seed: int) -> None:
    rng = np.random.default_rng(seed)
    t = Table({"n": [10] * 50 + [20] * 50, "x": rng.standard_normal(100) * np.repeat([1.0, 3.0], 50)})
    s = summarise(t, [Mean("x"), Median("x")], ["n"])
    needed = replicates_needed(s, {"mean x": 0.1})
    assert set(needed["measure"].tolist()) == {"mean x"} and needed["n"].tolist() == [10, 20]
    for row, mcse in zip(needed.rows(), s.where(measure="mean x")["mcse"].tolist(), strict=True):
        assert row["num_needed"] == math.ceil(50 * (mcse / 0.1) ** 2)
        assert mcse * math.sqrt(50 / row["num_needed"]) <= 0.1 < mcse * math.sqrt(50 / (row["num_needed"] - 1))
    worst = int(needed["num_needed"][1])
    assert f"mean x at n = 20 from {s['mcse'][2]:.2g} to 0.1, {worst:,} replicates a cell" in needed.caption
    assert needed.caption.endswith("there are 50.")
    # Half the standard error takes four times as many, and that one exactly none.
    doubled = replicates_needed(s, {"mean x": float(s["mcse"][0]) / 2})
    assert doubled["num_needed"][0] == 200
    same = replicates_needed(s.where(n=10, measure="mean x"), float(s["mcse"][0]))
    assert same["num_needed"].tolist() == [50] and same.caption.startswith("There are enough replicates")


def test_replicates_needed_counts_failures_and_what_is_unknown() -> None:
    s = summarise(study_table(), [Mean("loss")])
    needed = replicates_needed(s, float(s["mcse"][0]) / 2)
    assert needed["num_needed"][0] == 20.0 and np.isnan(needed["num_needed"][1:]).all()  # 4 * 5, of which 12 are used
    assert "unknown in 2 of 3 lines" in needed.caption
    assert "No standard error is known" in replicates_needed(s.where(n=20), 0.1).caption
    assert len(replicates_needed(s.take([]), {})) == 0
    rate = summarise(study_table(), [Rate("hit")]).where(n=20)
    assert rate["mcse"].tolist() == [0.0]  # of a rate of 0 or 1, which says nothing
    assert np.isnan(replicates_needed(rate, 0.1)["num_needed"]).all()


def test_pivot() -> None:
    t = Table({"n": [10, 10, 20, 20, 20], "k": ["a", "b", "a", "a", "a"], "x": [1.0, NAN, 0.25, 0.5, 0.75]})
    s = summarise(t, [Mean("x"), Median("x")], ["n", "k"])
    wide = pivot(s)
    assert wide.names == ("n", "k", "mean x", "median x")
    assert wide["mean x"].tolist() == ["1 (–)", "nan (–)", "0.50 (0.14)"]
    assert "in 1 of 5 a measure met NaN" in wide.caption and "not complete" not in wide.caption
    across = pivot(s.where(measure="mean x"), "k")
    assert across.names == ("n", "k = a", "k = b") and "of the mean x" in across.caption
    assert across["k = b"].tolist() == ["nan (–)", ""]
    assert pivot(s, "k").names == ("n", "measure", "k = a", "k = b")
    assert "| 20 | 0.50 (0.14) |  |" in across.to_markdown()
    assert "20 & 0.50 (0.14) &  \\\\" in across.to_latex()
    failed = summarise(study_table(), [Mean("loss")])
    assert "3 of 12 replicates are not complete" in pivot(failed).caption
