"""Coverage of predicted quantiles, and predictions against measurements."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from scipy.stats import binom, norm

from probnn.errors import DomainError, NonFiniteError, ShapeError
from probnn.plots import plot_calibration, plot_predictions
from probnn.plots.style import COLOR, FAILED


def curve(ax):
    return next(line for line in ax.lines if line.get_color() == COLOR)


def test_the_curve_is_the_distribution_of_the_transformed_measurements() -> None:
    _, ax = plt.subplots()
    assert plot_calibration([0.7, 0.2, 0.4, 0.9], ax=ax) is ax
    line = curve(ax)
    assert np.allclose(line.get_xdata(), [0, 0.2, 0.4, 0.7, 0.9, 1])
    assert np.allclose(line.get_ydata(), [0, 0.25, 0.5, 0.75, 1, 1])
    assert ax.get_ylabel() == "share measured below it" and "4 points" in line.get_label()


def test_normal_predictions_are_transformed_by_their_distribution(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    y, mean = torch.randn(9, 1, generator=g), torch.randn(9, generator=g)
    std = torch.rand(9, generator=g) + 0.5
    line = curve(plot_calibration(measured=y, mean=mean, std=std))
    expected = np.sort(norm(mean.numpy(), std.numpy()).cdf(y[:, 0].numpy()))
    assert np.allclose(line.get_xdata()[1:-1], expected, atol=1e-6)


def test_quantiles_are_counted_at_their_levels_in_any_order() -> None:
    quantiles = torch.tensor([[2.0, 0.0], [2.0, 0.0], [5.0, 4.0]])
    line = curve(plot_calibration(measured=[1.0, 3.0, 2.0], quantiles=quantiles, levels=[0.9, 0.1]))
    assert list(line.get_xdata()) == [0.1, 0.9]
    assert np.allclose(line.get_ydata(), [1 / 3, 2 / 3])


def test_the_band_holds_what_perfect_predictions_do() -> None:
    ax = plot_calibration(torch.linspace(0.01, 0.99, 20), prob=0.8)
    corners = ax.collections[0].get_paths()[0].vertices
    at = corners[np.isclose(corners[:, 0], 0.3)]
    assert {round(v, 6) for v in at[:, 1]} == {round(v, 6) for v in binom.ppf([0.1, 0.9], 20, 0.3) / 20}
    assert corners[:, 1].min() >= 0 and corners[:, 1].max() <= 1


def test_predictions_inside_and_outside_their_interval() -> None:
    y, mean = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([0.5, 1.5, 1.0])
    ax = plot_predictions(y, mean, std=torch.ones(3), name="yield (%)")
    inside, outside = (line for line in ax.lines if line.get_color() in (COLOR, FAILED))
    assert list(inside.get_xdata()) == [0, 1] and list(outside.get_ydata()) == [1]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("measured yield (%)", "predicted yield (%)")
    assert ax.get_title() == "2 of 3 within the 90% interval"
    segments = ax.collections[0].get_segments()
    assert segments[0][:, 1] == pytest.approx([0.5 - 1.6448536, 0.5 + 1.6448536])
    assert to_hex(ax.collections[0].get_color()[0]) == COLOR.lower()
    again = plot_predictions(y, mean, interval=torch.tensor([[-1.0, 1.0]] * 3), prob=0.5)
    assert again.get_title() == "2 of 3 within the 50% interval"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: plot_calibration(), DomainError, "give pit=, or"),
        (lambda: plot_calibration([0.5], mean=[0.0], std=[1.0]), DomainError, "give pit=, or"),
        (lambda: plot_calibration([0.5, 1.5]), DomainError, "between 0 and 1"),
        (lambda: plot_calibration([]), ShapeError, "n > 0"),
        (lambda: plot_calibration([0.5, float("nan")]), NonFiniteError, "finite"),
        (lambda: plot_calibration(["a"]), DomainError, "must be numbers"),
        (lambda: plot_calibration(mean=[0.0], std=[1.0]), DomainError, "measured= is missing"),
        (lambda: plot_calibration(measured=[1.0], mean=[0.0]), DomainError, "std= is missing"),
        (lambda: plot_calibration(measured=[1.0], mean=[0.0], std=[0.0]), DomainError, "std must be positive"),
        (lambda: plot_calibration(measured=[1.0], mean=[0.0, 1.0], std=[1.0]), ShapeError, r"must have shape \(1,\)"),
        (lambda: plot_calibration(measured=[1.0], quantiles=[[1.0]]), DomainError, "go together"),
        (lambda: plot_calibration(measured=[1.0], quantiles=[1.0], levels=[0.5]), ShapeError, r"\(1, 1\)"),
        (lambda: plot_calibration([0.5], prob=1.0), DomainError, "below 1"),
        (lambda: plot_predictions([1.0], [1.0]), DomainError, "either std= or interval="),
        (lambda: plot_predictions([1.0], [1.0], interval=[[2.0, 0.0]]), DomainError, "in this order"),
        (lambda: plot_predictions([1.0], [1.0], interval=[2.0, 0.0]), ShapeError, r"\(1, 2\)"),
    ],
)
def test_bad_input_says_what_to_do(make, error, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
