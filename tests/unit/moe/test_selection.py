"""The number of experts: criteria by hand, choices on simulated data, cross-validation by loops."""

from __future__ import annotations

import math

import pytest
import torch

from probnn import moe
from probnn.errors import ConvergenceError, ConvergenceWarning, DomainError

from .models import CROSSING, GENTLE, sample


def test_bic_finds_the_number_where_aic_takes_too_many(seed):
    X, Y = sample(CROSSING, 12, 1000, seed=seed)
    bic = moe.select_num_experts(moe.GaussianMoE(1, 1), X, Y, seed=seed)
    assert (bic.best == 2).sum() >= 11
    aic = torch.stack([fit.aic for fit in bic.fits], -1)
    assert (torch.tensor(bic.num_experts)[aic.argmin(-1)] > 2).sum() >= 4
    chosen = moe.select_num_experts(moe.GaussianMoE(1, 1), X[0], Y[0], candidates=(1, 2), criterion="aic")
    assert chosen.best.item() == 2 and chosen.best_fit is chosen.fits[1]
    assert chosen.values.shape == (2,)


def test_icl_adds_the_entropy_of_the_responsibilities(seed):
    X, Y = sample(GENTLE, 200, seed=seed)
    fit = moe.fit(moe.GaussianMoE(2, 1), X, Y, starts=GENTLE, num_restarts=1)
    entropy = 0.0
    for row in fit.model.responsibilities(X, Y).tolist():
        entropy -= sum(r * math.log(r) for r in row if r > 0)
    assert moe.icl(fit, X, Y).item() == pytest.approx(fit.bic.item() + 2 * entropy)
    selection = moe.select_num_experts(moe.GaussianMoE(1, 1), X, Y, candidates=(1, 2), criterion="icl")
    assert selection.values[0].item() == pytest.approx(selection.fits[0].bic.item())


def test_icl_counts_weights_as_rows(seed):
    X, Y = sample(GENTLE, 100, seed=seed)
    start = moe.GaussianMoE.from_mixing_measure(GENTLE)
    twice = torch.full((100,), 2.0, dtype=torch.double)
    weighted = moe.fit(moe.GaussianMoE(2, 1), X, Y, starts=start, sample_weight=twice, tol=1e-10)
    rows = (X.repeat(2, 1), Y.repeat(2, 1))
    repeated = moe.fit(moe.GaussianMoE(2, 1), *rows, starts=start, tol=1e-10)
    assert moe.icl(weighted, X, Y, twice).item() == pytest.approx(moe.icl(repeated, *rows).item(), rel=1e-8)


def test_cross_validation_is_that_of_a_loop(seed):
    X, Y = sample(GENTLE, 2, 150, seed=seed)
    start = moe.GaussianMoE.from_mixing_measure(GENTLE)
    options = {"candidates": (2,), "criterion": "cv", "folds": 3, "starts": start, "tol": 1e-10, "seed": seed}
    together = moe.select_num_experts(moe.GaussianMoE(2, 1), X, Y, **options)
    alone = moe.select_num_experts(moe.GaussianMoE(2, 1), X[1], Y[1], **options)
    torch.testing.assert_close(together.values[1], alone.values, rtol=1e-8, atol=0)
    fold = torch.randperm(150, generator=torch.Generator().manual_seed(seed)) % 3
    total = 0.0
    for f in range(3):
        fit = moe.fit(moe.GaussianMoE(2, 1), X[1][fold != f], Y[1][fold != f], starts=start, tol=1e-10)
        total -= fit.model.log_prob(X[1][fold == f], Y[1][fold == f]).sum().item()
    assert alone.values.item() == pytest.approx(total, rel=1e-6)


def test_bad_comparisons_are_refused(seed):
    X, Y = sample(GENTLE, 50, seed=seed)
    with pytest.raises(DomainError, match="criterion must be one of"):
        moe.select_num_experts(moe.GaussianMoE(1, 1), X, Y, criterion="dic")
    with pytest.raises(DomainError, match="increasing order"):
        moe.select_num_experts(moe.GaussianMoE(1, 1), X, Y, candidates=(2, 1))
    with pytest.raises(DomainError, match="there is one a replicate"):
        _ = moe.select_num_experts(
            moe.GaussianMoE(1, 1), X.expand(2, -1, -1), Y.expand(2, -1, -1), candidates=(1,)
        ).best_fit


def test_fits_whose_likelihood_has_no_bound_are_not_chosen(seed):
    X, Y = sample(GENTLE, 200, seed=seed)
    inflated = torch.where(torch.rand(200, 1, generator=torch.Generator().manual_seed(seed)) < 0.5, 0.0, Y)
    with pytest.warns(ConvergenceWarning, match="degenerate"):
        selection = moe.select_num_experts(moe.GaussianMoE(1, 1), X, inflated, candidates=(1, 2, 3), seed=seed)
    statuses = [fit.status for fit in selection.fits]
    assert "degenerate" in statuses
    assert [value.isnan().item() for value in selection.values] == [status == "degenerate" for status in statuses]
    assert statuses[selection.num_experts.index(selection.best.item())] != "degenerate"
    with pytest.warns(ConvergenceWarning), pytest.raises(ConvergenceError, match="every number of experts"):
        moe.select_num_experts(moe.GaussianMoE(1, 1), X, torch.zeros_like(Y), candidates=(1, 2))
