"""Figures of summaries: what is drawn is what the summary says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from probnn.errors import DomainError
from probnn.studies import Mean, Median, Table, plot_summary, summarise


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def summary(seed: int = 0, **changes: Any) -> Table:
    rng = np.random.default_rng(seed)
    n, k, word = (a.ravel() for a in np.meshgrid([100, 1000, 10000], [2, 3], ["a", "b"], indexing="ij"))
    columns = {name: np.repeat(values, 6) for name, values in (("n", n), ("k", k), ("word", word))}
    columns["x"] = rng.gamma(4.0, size=len(columns["n"])) / np.sqrt(columns["n"])
    return summarise(Table({**columns, **changes}), [Mean("x"), Median("x")], ["n", "k", "word"])


def lines(ax: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


@pytest.mark.parametrize("log", ["", "x", "y", "xy"])
def test_points_and_bars_are_those_of_the_summary(log: str, seed: int) -> None:
    s = summary(seed)
    ax = plot_summary(s, "n", measure="mean x", errors=2.0, log=log)
    drawn = lines(ax)
    assert list(drawn) == [f"k = {k}, word = {w}" for k in (2, 3) for w in "ab"]
    bars = [segments.get_segments() for segments in ax.collections]
    for (cell, part), line, ends in zip(
        s.where(measure="mean x").groups(["k", "word"]), drawn.values(), bars, strict=True
    ):
        assert cell in [{"k": k, "word": w} for k in (2, 3) for w in "ab"]
        np.testing.assert_array_equal(line.get_ydata(), part["value"])
        width = 100.0 if "x" in log else 9900.0
        shift = (
            np.log(line.get_xdata() / part["n"]) / np.log(width)
            if "x" in log
            else (line.get_xdata() - part["n"]) / width
        )
        assert (np.abs(shift) < 0.02).all()
        low, high = np.array(ends)[:, 0, 1], np.array(ends)[:, 1, 1]
        np.testing.assert_allclose(high, part["value"] + 2 * part["mcse"])
        np.testing.assert_allclose(low, part["value"] - 2 * part["mcse"])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log" if "x" in log else "linear", "log" if "y" in log else "linear")
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title(loc="left")) == ("n", "mean x", "")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(drawn)
    if "x" in log:
        assert [t.get_text() for t in ax.get_xticklabels()] == ["100", "1,000", "10,000"]


def test_words_are_in_order_and_not_joined() -> None:
    s = summary().where(measure="mean x").where(n=100)
    ax = plot_summary(s, "word")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"]
    assert {line.get_linestyle() for line in lines(ax).values()} == {"None"}
    assert list(lines(ax)) == ["k = 2", "k = 3"] and ax.get_title(loc="left") == "n = 100"


def test_draws_into_the_axes_given() -> None:
    figure, panels = plt.subplots(1, 2)
    s = summary().where(k=2, word="a")
    assert plot_summary(s, "n", measure="median x", ax=panels[1]) is panels[1]
    assert not panels[0].lines and panels[1].get_legend() is None and plt.get_fignums() == [figure.number]
    assert panels[1].get_title(loc="left") == "k = 2, word = a"


def test_what_cannot_be_drawn_is_said() -> None:
    t = Table(
        {
            "n": [1, 1, 2, 2, 3, 3, 4],
            "x": [1.0, 2.0, math.inf, 1.0, math.nan, math.nan, 1.0],
            "status": ["complete"] * 5 + ["failed", "complete"],
        }
    )
    s = summarise(t, [Mean("x")], ["n"])
    ax = plot_summary(s, "n", log="y")
    assert ax.get_title(loc="left") == (
        "not drawn: 2 of 4 values, not finite; 1 of 7 replicates not complete; 2 with NaN or infinity"
    )
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1.5, math.nan, math.nan, 1.0])
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert len(hollow) == 1 and hollow[0].get_xdata().tolist() == [4.0]
    ax.figure.canvas.draw()
    ax = plot_summary(s.take([1, 2]), "n", log="xy")
    assert "2 of 2 values" in ax.get_title(loc="left")
    ax.figure.canvas.draw()


def test_bars_below_zero_on_a_logarithmic_scale() -> None:
    s = summarise(Table({"n": [1, 1, 10, 10], "x": [0.1, 5.0, 0.2, 0.3]}), [Mean("x")], ["n"])
    ax = plot_summary(s, "n", log="xy")
    ax.figure.canvas.draw()
    low, high = ax.get_ylim()
    assert 0.01 < low < 0.25 and high < 20


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"x": "m"}, "x must be one of"),
        ({"x": "n"}, "choose measure="),
        ({"x": "n", "measure": "mean"}, "measure must be one of"),
        ({"x": "n", "measure": "mean x", "log": "z"}, "log must be one of"),
        ({"x": "n", "measure": "mean x", "errors": 0.0}, "errors must be positive"),
        ({"x": "word", "measure": "mean x", "log": "x"}, "no logarithmic scale"),
    ],
)
def test_bad_input(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(DomainError, match=says):
        plot_summary(summary(), **arguments)


def test_bad_tables() -> None:
    with pytest.raises(DomainError, match="needs a summary"):
        plot_summary(Table({"n": [1]}), "n")
    with pytest.raises(DomainError, match="no rows"):
        plot_summary(summary().take([]), "n")
    below = summarise(Table({"n": [0, 1], "x": [-1.0, 1.0]}), [Mean("x")], ["n"])
    with pytest.raises(DomainError, match="positive values, got -1"):
        plot_summary(below, "n", log="y")
    with pytest.raises(DomainError, match="positive values of n, got 0"):
        plot_summary(below, "n", log="x")
