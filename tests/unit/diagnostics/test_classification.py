"""Reliability and expected calibration error against loops, against their laws, and on bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from probnn import random as rnd
from probnn.diagnostics import calibration_error, reliability
from probnn.errors import DomainError, NonFiniteError, ShapeError


def forecasts(rows: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Probabilities, and outcomes drawn from others: not calibrated."""
    generator = rnd.generator_from(seed)
    p = (2 * rnd.normal((rows, classes), generator=generator, dtype=torch.double)).softmax(-1)
    return p, rnd.integers(classes, (rows,), generator=generator)


def naive(p: Tensor, Y: Tensor, bin_of: list[int], bins: int) -> tuple[list[float], list[float], list[int], float]:
    """Confidence, accuracy and rows of every bin, and the error, by loops over bins and rows."""
    confidences, accuracies, counts, error = [], [], [], 0.0
    for b in range(bins):
        own = [i for i in range(len(p)) if bin_of[i] == b]
        rows = [p[i].tolist() for i in own]
        confidence = sum(max(row) for row in rows) / len(own) if own else math.nan
        hits = sum(row.index(max(row)) == int(Y[i]) for i, row in zip(own, rows, strict=True))
        accuracy = hits / len(own) if own else math.nan
        error += abs(accuracy - confidence) * len(own) / len(p) if own else 0.0
        confidences.append(confidence)
        accuracies.append(accuracy)
        counts.append(len(own))
    return confidences, accuracies, counts, error


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("bins", [1, 4, 15])
def test_bins_of_equal_width_are_those_of_loops(classes: int, bins: int, seed: int) -> None:
    p, Y = forecasts(60, classes, seed)
    bin_of = [next(b for b in range(bins) if b / bins < max(row) <= (b + 1) / bins) for row in p.tolist()]
    confidence, accuracy, rows, error = naive(p, Y, bin_of, bins)
    found = reliability(p, Y, bins=bins)
    torch.testing.assert_close(found.confidence, torch.tensor(confidence).double(), equal_nan=True)
    torch.testing.assert_close(found.accuracy, torch.tensor(accuracy).double(), equal_nan=True)
    assert found.rows.tolist() == rows
    assert calibration_error(p, Y, bins=bins).item() == pytest.approx(error)


@pytest.mark.parametrize("bins", [1, 4, 7])
def test_bins_of_equal_mass_are_those_of_loops(bins: int, seed: int) -> None:
    p, Y = forecasts(60, 3, seed)
    order = sorted(range(60), key=lambda i: max(p[i].tolist()))
    bin_of = [0] * 60
    for rank, i in enumerate(order):
        bin_of[i] = math.floor((rank + 0.5) * bins / 60)
    confidence, accuracy, rows, error = naive(p, Y, bin_of, bins)
    assert max(rows) - min(rows) <= 1
    found = reliability(p, Y, bins=bins, binning="mass")
    torch.testing.assert_close(found.confidence, torch.tensor(confidence).double())
    torch.testing.assert_close(found.accuracy, torch.tensor(accuracy).double())
    assert found.rows.tolist() == rows
    assert calibration_error(p, Y, bins=bins, binning="mass").item() == pytest.approx(error)


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_order_of_rows_is_of_no_account_with_ties(binning: str, seed: int) -> None:
    p, Y = forecasts(8, 3, seed)
    p = p.repeat_interleave(5, 0)
    Y = Y.repeat_interleave(5)
    Y[::2] = (Y[::2] + 1) % 3
    order = rnd.uniform((40,), generator=rnd.generator_from(seed)).argsort()
    expected, found = (calibration_error(p[i], Y[i], bins=6, binning=binning) for i in (torch.arange(40), order))
    torch.testing.assert_close(found, expected)


def test_constant_confidence_is_one_bin() -> None:
    p, Y = torch.full((7, 1), 0.6), torch.tensor([1, 1, 1, 0, 0, 0, 0])
    for binning in ("width", "mass"):
        assert sorted(reliability(p, Y, bins=5, binning=binning).rows.tolist()) == [0, 0, 0, 0, 7]
        assert calibration_error(p, Y, bins=5, binning=binning).item() == pytest.approx(0.6 - 3 / 7)


def test_one_column_is_the_probability_of_class_one(seed: int) -> None:
    p, Y = forecasts(50, 2, seed)
    for binning in ("width", "mass"):
        expected = calibration_error(p, Y, binning=binning)
        torch.testing.assert_close(calibration_error(p[:, 1:], Y.double()[:, None], binning=binning), expected)


def test_error_of_a_calibrated_forecast_is_its_bias(seed: int) -> None:
    """Outcomes drawn from the forecast: the expectation that the docstring tells, of 300 repetitions."""
    generator = rnd.generator_from(seed)
    p = 0.5 + 0.45 * rnd.uniform((2000, 1), generator=generator, dtype=torch.double)
    bins = 5
    spread = torch.zeros(bins, dtype=torch.double)
    index = (p[:, 0] * bins).ceil().long() - 1
    spread.index_add_(0, index, (p * (1 - p))[:, 0])
    expected = (2 * spread / math.pi).sqrt().sum() / len(p)
    found = torch.stack(
        [calibration_error(p, (rnd.uniform(p.shape, generator=generator) < p).long(), bins=bins) for _ in range(300)]
    )
    assert abs(found.mean() - expected) < 5 * found.std() / math.sqrt(len(found)) + 0.01 * expected  # few rows a bin


def test_overconfident_forecasts_err_by_what_they_claim_too_much(seed: int) -> None:
    generator = rnd.generator_from(seed)
    Y = (rnd.uniform((20_000,), generator=generator) < 0.7).long()
    found = calibration_error(torch.full((20_000, 1), 0.9, dtype=torch.double), Y)
    assert abs(found.item() - 0.2) < 5 * math.sqrt(0.7 * 0.3 / 20_000)


def test_certain_forecasts_and_rounding_of_single_precision() -> None:
    p = torch.tensor([[1.0, 0.0], [1.0 + 1e-7, -1e-7], [0.0, 1.0]])
    assert calibration_error(p, torch.tensor([0, 0, 1])).item() == pytest.approx(0.0, abs=1e-6)
    assert calibration_error(p, torch.tensor([1, 1, 0])).item() == pytest.approx(1.0, abs=1e-6)


def test_probabilities_of_single_precision_may_have_been_converted(seed: int) -> None:
    logits = 5 * rnd.normal((500, 10), generator=rnd.generator_from(seed), dtype=torch.float32)
    p, Y = logits.softmax(-1), logits.argmax(-1)
    assert ((p.double().sum(-1) - 1).abs() > 1e-8).any()
    torch.testing.assert_close(calibration_error(p.double(), Y), calibration_error(p, Y))


@pytest.mark.parametrize(
    ("p", "Y", "options", "error", "message"),
    [
        ([[0.2, 0.7]], [0], {}, DomainError, "sum to 1.*in row 0; give probabilities, not logits"),
        ([[0.5, 0.5], [-0.5, 1.5]], [0, 0], {}, DomainError, "in row 1"),
        ([[1.5]], [0], {}, DomainError, "at least 0"),
        ([[math.nan, 0.5]], [0], {}, NonFiniteError, "probabilities"),
        ([0.5, 0.5], [0], {}, ShapeError, r"shape \(n, K\)"),
        ([[0.5, 0.5]], [0, 1], {}, ShapeError, r"Y must have shape \(1,\) or \(1, 1\)"),
        ([[0.5, 0.5]], [2], {}, DomainError, "a class from 0 to 1, got 2"),
        ([[0.5, 0.5]], [0.5], {}, DomainError, "a class from 0 to 1, got 0.5"),
        ([[0.5, 0.5]], [math.nan], {}, DomainError, "a class from 0 to 1, got nan"),
        ([[0.5, 0.5]], [-1], {}, DomainError, "a class from 0 to 1, got -1"),
        ([[0.5, 0.5]], [0], {"bins": 0}, DomainError, "bins"),
        ([[0.5, 0.5]], [0], {"binning": "count"}, DomainError, "binning"),
    ],
)
def test_bad_input_is_named(
    p: list[list[float]], Y: list[float], options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        calibration_error(torch.tensor(p), torch.tensor(Y), **options)  # type: ignore[arg-type]


def test_no_row_and_no_tensor_are_refused() -> None:
    with pytest.raises(ShapeError, match="n >= 1"):
        calibration_error(torch.empty(0, 2), torch.empty(0))
    with pytest.raises(ShapeError, match="got a list"):
        calibration_error(torch.ones(1, 1), [1])  # type: ignore[arg-type]
