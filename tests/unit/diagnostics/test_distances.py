"""Distances between laws: closed forms, naive versions, bias, gradients and bad input."""

from __future__ import annotations

import math

import pytest
import scipy.stats as st
import torch
from torch import Tensor

from probnn import random as rnd
from probnn.diagnostics import distances as module
from probnn.diagnostics import (
    energy_distance,
    marginal_wasserstein,
    sliced_wasserstein,
    squared_bures,
    squared_mmd,
    wasserstein_1d,
)
from probnn.errors import DomainError, NonFiniteError, ShapeError

OF_DRAWS = {
    "energy": energy_distance,
    "mmd": lambda x, y: squared_mmd(x, y, lengthscale=1.3),
    "sliced": lambda x, y: sliced_wasserstein(x, y, num_projections=7, generator=rnd.generator_from(3)),
    "marginal": marginal_wasserstein,
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return rnd.normal(shape, generator=rnd.generator_from(seed), dtype=torch.double)


def covariance(*batch: int, p: int = 4, seed: int = 0) -> Tensor:
    root = normal(*batch, p, p, seed=seed)
    return root @ root.mT


def naive(x: Tensor, y: Tensor, function) -> float:
    """2 E h(X, Y) - E h(X, X') - E h(Y, Y') by loops over pairs."""

    def mean(a, b, skip):
        values = [
            function((u - v).square().sum().item())
            for i, u in enumerate(a)
            for j, v in enumerate(b)
            if not skip or i != j
        ]
        return sum(values) / len(values)

    return 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)


@pytest.mark.parametrize("p", [1, 3, 20])
def test_energy_and_mmd_by_loops_over_pairs(p: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(7, p), 0.5 + 2 * normal(5, p, seed=1)

    def kernel(square: float) -> float:
        return -sum((1 + square / (2 * a * 1.3**2)) ** -a for a in (0.2, 0.5, 1, 2, 5)) / 5

    for chunk in (2**22, 11):  # whole, and in blocks of two rows
        monkeypatch.setattr(module, "_CHUNK", chunk)
        assert energy_distance(x, y).item() == pytest.approx(naive(x, y, math.sqrt), rel=1e-10)
        assert squared_mmd(x, y, lengthscale=1.3).item() == pytest.approx(naive(x, y, kernel), rel=1e-10)


def test_energy_distance_of_shifted_normals(seed: int) -> None:
    """2 E|N(delta, 2)| - 4 / sqrt(pi), the mean of a folded normal, within five standard errors of 40 batches."""
    delta = 0.7
    folded = 2 * math.exp(-(delta**2) / 4) / math.sqrt(math.pi) + delta * (1 - 2 * st.norm.cdf(-delta / math.sqrt(2)))
    expected = 2 * folded - 4 / math.sqrt(math.pi)
    x = normal(40, 500, 1, seed=seed)
    found = energy_distance(x, delta + normal(40, 500, 1, seed=seed + 1))
    assert abs(found.mean().item() - expected) < 5 * found.std().item() / math.sqrt(40)
    assert expected > 20 * found.std().item() / math.sqrt(40)  # so the test sees something


@pytest.mark.parametrize("distance", [energy_distance, squared_mmd])
def test_u_statistics_are_unbiased(distance, seed: int) -> None:
    """Zero on average where the laws are equal, and below zero sometimes; with pairs of equals left in it is not."""
    x, y = normal(400, 30, 3, seed=seed), normal(400, 30, 3, seed=seed + 1)
    found = distance(x, y)
    assert abs(found.mean().item()) < 5 * found.std().item() / 20
    assert (found < 0).any() and (found > 0).any()
    if distance is energy_distance:
        biased = found + (torch.cdist(x, x).mean((-1, -2)) + torch.cdist(y, y).mean((-1, -2))) / 29
        assert biased.mean().item() > 10 * found.std().item() / 20


def test_median_length_scale() -> None:
    x, y = normal(30, 2), 1 + normal(40, 2, seed=1)
    median = torch.pdist(y).median()
    assert torch.allclose(squared_mmd(x, y), squared_mmd(x, y, lengthscale=median), atol=1e-12)
    assert torch.allclose(squared_mmd(100 * x, 100 * y), squared_mmd(x, y), atol=1e-12)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (6, 4), (1, 5), (7, 3)])
def test_wasserstein_1d_is_scipys(n: int, m: int) -> None:
    x, y = normal(2, n), 3 * normal(2, m, seed=1)
    expected = [st.wasserstein_distance(a.numpy(), b.numpy()) for a, b in zip(x, y, strict=True)]
    assert wasserstein_1d(x, y).tolist() == pytest.approx(expected, rel=1e-12)


def test_marginal_and_sliced_in_closed_form() -> None:
    x, shift = normal(50, 3), torch.tensor([1.0, -2.0, 4.0], dtype=torch.double)
    assert marginal_wasserstein(x, x + shift).item() == pytest.approx(7 / 3)
    # Along u a shift moves by |u's|, whose mean over the sphere in three dimensions is |s| / 2.
    many = sliced_wasserstein(x, x + shift, num_projections=20_000, generator=rnd.generator_from(0))
    assert many.item() == pytest.approx(shift.norm().item() / 2, rel=0.02)
    g = [rnd.generator_from(5) for _ in range(2)]
    assert torch.equal(*(sliced_wasserstein(x, 2 * x, generator=one) for one in g))


@pytest.mark.parametrize("distance", OF_DRAWS.values(), ids=OF_DRAWS)
def test_batches_and_gradients(distance) -> None:
    x, y = normal(2, 1, 6, 3), 0.3 + normal(4, 5, 3, seed=1)
    batch = distance(x, y)
    assert batch.shape == (2, 4)
    # The squared MMD's centre is shared by the batch: equal up to rounding.
    assert torch.allclose(batch[1, 2], distance(x[1, 0], y[2]), rtol=1e-10, atol=1e-12)
    leaves = [x[0, 0].clone().requires_grad_(), y[0].clone().requires_grad_()]
    assert torch.autograd.gradcheck(distance, leaves, atol=1e-6)


def test_energy_gradient_is_finite_at_coincident_draws() -> None:
    x = torch.zeros(4, 2, dtype=torch.double, requires_grad=True)
    (slope,) = torch.autograd.grad(energy_distance(x, x.detach() + 0.0), x)
    assert torch.equal(slope, torch.zeros_like(slope))


def test_bures_of_commuting_matrices() -> None:
    a, b = torch.tensor([4.0, 1.0, 0.0, 9.0]).double(), torch.tensor([1.0, 16.0, 2.0, 0.0]).double()
    basis = torch.linalg.qr(normal(4, 4)).Q
    expected = (a.sqrt() - b.sqrt()).square().sum().item()
    for rotate in (torch.eye(4, dtype=torch.double), basis):
        found = squared_bures(rotate @ a.diag() @ rotate.mT, rotate @ b.diag() @ rotate.mT)
        assert found.item() == pytest.approx(expected, abs=1e-10)


def test_bures_vanishes_on_the_diagonal_also_of_singular_matrices() -> None:
    x = torch.linspace(-3, 3, 60, dtype=torch.double)
    smooth = torch.exp(-0.5 * (x[:, None] - x).square() / 0.36)  # of numerical rank 30 or so
    for A in (covariance(p=6), smooth):
        assert abs(squared_bures(A, A).item()) < 1e-8


def test_bures_against_matrix_roots() -> None:
    from scipy.linalg import sqrtm

    A, B = covariance(2), covariance(seed=1)
    for found, one in zip(squared_bures(A, B), A, strict=True):
        root = sqrtm(one.numpy())
        expected = one.trace().item() + B.trace().item() - 2 * sqrtm(root @ B.numpy() @ root).trace().real
        assert found.item() == pytest.approx(expected, rel=1e-8)


def test_bures_gradient() -> None:
    """By finite differences, in both arguments, also at repeated eigenvalues, where roots have no autograd."""
    for A, B in ((covariance(), covariance(seed=1)), (torch.eye(4).double(), 2 * torch.eye(4).double())):
        leaves = [A.clone().requires_grad_(), B.clone().requires_grad_()]
        assert torch.autograd.gradcheck(lambda a, b: squared_bures((a + a.mT) / 2, (b + b.mT) / 2), leaves, rtol=1e-4)


@pytest.mark.parametrize("distance", OF_DRAWS.values(), ids=OF_DRAWS)
def test_bad_draws(distance) -> None:
    x = normal(4, 2)
    with pytest.raises(ShapeError, match="one dimension p"):
        distance(x, x[:, :1])
    with pytest.raises(ShapeError, match="at least two draws"):
        distance(x, x[:1])
    with pytest.raises(DomainError, match="dtype"):
        distance(x, x.float())
    with pytest.raises(NonFiniteError):
        distance(x, torch.full_like(x, math.nan))


def test_bad_input() -> None:
    x = normal(4, 2)
    with pytest.raises(DomainError, match="coincide"):
        squared_mmd(x, torch.zeros_like(x))
    with pytest.raises(DomainError, match="lengthscale"):
        squared_mmd(x, x, lengthscale=0.0)
    with pytest.raises(DomainError, match="num_projections"):
        sliced_wasserstein(x, x, num_projections=0)
    with pytest.raises(ShapeError, match="needs draws"):
        wasserstein_1d(x[:, :0], x)
    with pytest.raises(ShapeError, match="square"):
        squared_bures(x, x)
    with pytest.raises(DomainError, match="symmetric"):
        squared_bures(x[:2], torch.eye(2).double())
    with pytest.raises(DomainError, match="semi-definite"):
        squared_bures(-torch.eye(2), torch.eye(2))


@pytest.mark.parametrize(("size", "dtype"), [(1e25, torch.float32), (1e30, torch.float32), (1e200, torch.double)])
def test_far_draws_do_not_overflow(size: float, dtype: torch.dtype) -> None:
    """Energy scales with its draws, and the mean discrepancy at a median length scale not at all."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(6, 3, generator=g, dtype=dtype) + i for i in range(2))
    assert energy_distance(size * x, size * y).item() == pytest.approx(size * energy_distance(x, y).item(), rel=1e-4)
    assert squared_mmd(size * x, size * y).item() == pytest.approx(squared_mmd(x, y).item(), rel=1e-4)
    given = squared_mmd(size * x, size * y, lengthscale=2 * size).item()
    assert given == pytest.approx(squared_mmd(x, y, lengthscale=2.0).item(), rel=1e-4)
