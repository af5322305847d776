"""Diagnostics of chains that cannot tell anything: NaN with a warning, an empty answer, or an error."""

from __future__ import annotations

import math

import pytest
import torch

from probnn.diagnostics import bfmi, chains, ess, mcse, nested_rhat, rhat, summary
from probnn.errors import ConvergenceWarning, DomainError, NonFiniteError, ShapeError
from probnn.random import generator_from
from tests.unit.diagnostics.chain_cases import EVERY, ar1, normal

# --- what cannot be told -----------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_a_constant_chain_is_nan_with_a_warning(name: str, seed: int) -> None:
    x = normal(4, 101, 3, seed=seed)
    x[..., 0] = 1.1  # a variable that is constant
    x[2, :, 1] = 0.1  # one chain that is stuck
    with pytest.warns(ConvergenceWarning, match=r"2 of 3 variables"):
        value = EVERY[name](x)
    assert value[:2].isnan().all() and value[2].isfinite()


def test_constant_chains_of_the_others_are_nan_with_a_warning(seed: int) -> None:
    energy = normal(3, 50, seed=seed)
    energy[1] = 0.1
    with pytest.warns(ConvergenceWarning, match="bfmi: 1 of 3"):
        value = bfmi(energy)
    assert value.isnan().tolist() == [False, True, False]
    x = normal(8, 1, 2, seed=seed)
    x[:4, :, 0] = 0.1  # super-chain 0 has not moved since its start
    with pytest.warns(ConvergenceWarning, match="nested_rhat: 1 of 2"):
        assert nested_rhat(x, 2).isnan().tolist() == [True, False]


def test_tail_of_draws_that_nearly_all_coincide_is_nan_with_a_warning() -> None:
    x = torch.zeros(2, 100, dtype=torch.float64)
    x[:, ::50] = -1.0  # 4 % lie below: the 5 % quantile and all above it are zero
    with pytest.warns(ConvergenceWarning, match="coincide"):
        assert ess(x, "tail").isnan()
    assert ess(x, "mean").isfinite()


def test_two_valued_draws_have_the_rhat_of_their_bulk() -> None:
    """As many zeros as ones fold onto a single distance from the median, which says nothing."""
    x = torch.tensor([0.0, 1.0, 1.0, 0.0] * 25, dtype=torch.float64).reshape(2, 50)
    expected = chains.rhat_of(chains.normal_scores(chains.split(x[None]))).item()
    assert rhat(x).item() == pytest.approx(expected, rel=1e-12)


def test_no_variables() -> None:
    for function in EVERY.values():
        assert function(torch.zeros(2, 10, 0)).shape == (0,)
    assert nested_rhat(torch.zeros(4, 1, 0), 2).shape == (0,)
    assert all(value.shape == (3, 0) for value in summary(torch.zeros(2, 10, 3, 0)).values())


def test_single_precision_is_computed_in_double(seed: int) -> None:
    x = ar1((2, 100), 0.5, seed).float()
    for function in EVERY.values():
        assert function(x).equal(function(x.double()))


def test_no_graph_is_kept(seed: int) -> None:
    x = normal(2, 20, seed=seed).requires_grad_(True)
    assert not ess(x).requires_grad and not rhat(x).requires_grad


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_bad_draws(name: str) -> None:
    function = EVERY[name]
    with pytest.raises(ShapeError, match="at least 4 draws.*longer chains"):
        function(torch.zeros(4, 3))
    with pytest.raises(ShapeError, match=r"\(chains, draws, ...\)"):
        function(torch.zeros(10))
    with pytest.raises(ShapeError):
        function(torch.zeros(0, 10))
    with pytest.raises(DomainError):
        function(torch.zeros(2, 10, dtype=torch.long))
    with pytest.raises(DomainError):
        function([[1.0, 2.0, 3.0, 4.0]])
    for bad in (math.nan, math.inf):
        x = torch.ones(2, 10)
        x[1, 3] = bad
        with pytest.raises(NonFiniteError):
            function(x)


@pytest.mark.parametrize("kind", ["variance", 0.0, 1.0, -0.1, math.nan, True, None])
def test_bad_kinds(kind: object) -> None:
    x = torch.randn(2, 10, generator=generator_from(0))
    with pytest.raises(DomainError, match="ess"):
        ess(x, kind)
    with pytest.raises(DomainError, match="mcse"):
        mcse(x, kind)
    if kind != "variance":
        with pytest.raises(DomainError, match="prob"):
            summary(x, prob=kind)
    with pytest.raises(DomainError):
        mcse(x, "bulk")  # no error of a bulk


@pytest.mark.parametrize(
    ("C", "S", "superchains", "error"),
    [
        (8, 5, 3, ShapeError),
        (8, 5, 1, ShapeError),
        (8, 5, 0, DomainError),
        (8, 5, 2.0, DomainError),
        (4, 1, 4, ShapeError),
        (4, 5, torch.tensor([0, 0, 0, 1]), ShapeError),
        (4, 5, torch.tensor([0, 0, 1]), ShapeError),
        (4, 5, torch.tensor([0, 0, 0, 0]), ShapeError),
        (4, 5, torch.tensor([0.0, 0.0, 1.0, 1.0]), ShapeError),
    ],
)
def test_bad_superchains(C: int, S: int, superchains: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="nested_rhat"):
        nested_rhat(torch.randn(C, S, generator=generator_from(0)), superchains)


def test_bad_energies() -> None:
    with pytest.raises(ShapeError, match="energy must have shape"):
        bfmi(torch.zeros(2, 10, 1))
    with pytest.raises(ShapeError, match="at least 4 draws"):
        bfmi(torch.zeros(2, 3))
