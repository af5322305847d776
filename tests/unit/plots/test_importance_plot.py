"""The figure of Sobol indices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probnn.errors import DomainError
from probnn.optimization.importance import FactorImportance
from probnn.plots import plot_importance
from probnn.plots.style import COLOR


def test_medians_and_intervals_with_the_largest_on_top(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    total = torch.rand(101, 3, generator=g, dtype=torch.double) * 0.1 + torch.tensor([0.2, 0.7, 0.0])
    found = FactorImportance(("a", "b", "c"), total - 0.05, total, torch.ones(101), "yield (%)")
    ax = plot_importance(found, prob=0.8)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "a", "c"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1] and ax.get_xlabel() == "share of the variance of yield (%)"
    order = [1, 0, 2]
    line = next(line for line in ax.lines if line.get_color() == COLOR)
    assert np.allclose(line.get_xdata(), np.median(total.numpy(), 0)[order])
    bars = np.array([s[:, 0] for s in ax.collections[0].get_segments()])
    assert np.allclose(bars, np.quantile(total.numpy(), [0.1, 0.9], axis=0).T[order])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "total index, 80% interval", "first-order index, 80% interval",
    ]  # fmt: skip
    assert found.plot(ax) is ax


def test_one_known_function_has_no_intervals() -> None:
    one = torch.tensor([[0.4, 0.6]])
    ax = plot_importance(FactorImportance(("a", "b"), one, one, torch.ones(1)))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["total index", "first-order index"]
    assert ax.get_xlabel() == "share of the variance"


def test_bad_input_says_what_to_do() -> None:
    with pytest.raises(DomainError, match="factor_importance gives"):
        plot_importance([0.5])
