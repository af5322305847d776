"""Pareto-smoothed weights against ArviZ and against averages known exactly."""

from __future__ import annotations

import math

import pytest
import torch

from probnn.diagnostics.psis import psis
from probnn.errors import DomainError, NonFiniteError, ShapeError


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@pytest.mark.parametrize("relative_efficiency", [1.0, 0.3])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_the_same_as_arviz(spread: float, relative_efficiency: float, seed: int) -> None:
    arviz = pytest.importorskip("arviz")
    if not hasattr(arviz, "psislw"):
        pytest.skip("ArviZ 1 has the function elsewhere")
    ratios = spread * normal(6, 500, seed=seed)
    weights, k = psis(ratios, relative_efficiency=relative_efficiency)
    theirs, their_k = arviz.psislw(ratios.numpy().copy(), relative_efficiency)
    torch.testing.assert_close(weights, torch.as_tensor(theirs), rtol=0, atol=1e-10)
    torch.testing.assert_close(k, torch.as_tensor(their_k), rtol=0, atol=1e-10)


def test_an_average_under_another_normal(seed: int) -> None:
    """Draws of N(0, 1) to averages under N(m, 1); the variance of the estimate is exp(m^2) (1 + m^2) / S."""
    x, m, S = normal(20_000, seed=seed), 0.5, 20_000
    weights, k = psis(m * x)
    error = math.sqrt(math.exp(m**2) * (1 + m**2) / S)
    assert float((weights.exp() * x).sum()) == pytest.approx(m, abs=5 * error)
    assert float(weights.logsumexp(-1)) == pytest.approx(0, abs=1e-12)
    assert k < 0.5


def test_the_shape_of_a_known_tail(seed: int) -> None:
    """Weights u^-k are Pareto with shape k; Zhang and Stephens' estimate of 424 of them, drawn to 1/2 by ten."""
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    for k in (0.3, 0.9):
        _, found = psis(-k * u.log())
        # The standard error of the maximum-likelihood estimate is (1 + k) / sqrt(M).
        assert float(found) == pytest.approx((424 * k + 5) / 434, abs=5 * (1 + k) / math.sqrt(424))


def test_few_and_equal_weights_stay() -> None:
    few = normal(10, seed=0)
    weights, k = psis(few)
    torch.testing.assert_close(weights, few.log_softmax(-1))
    assert k == math.inf
    weights, k = psis(torch.zeros(2, 3, 100, dtype=torch.double))
    assert weights.shape == (2, 3, 100) and k.shape == (2, 3)
    torch.testing.assert_close(weights, torch.full_like(weights, -math.log(100)))


def test_refusals() -> None:
    with pytest.raises(NonFiniteError):
        psis(torch.tensor([0.0, math.nan]))
    with pytest.raises(ShapeError):
        psis(torch.empty(3, 0))
    with pytest.raises(DomainError):
        psis(torch.zeros(5), relative_efficiency=0.0)
