"""Fantasies under Student-t noise follow the Student-t law, and what was imagined is what reweights."""

from __future__ import annotations

import pytest
import torch
from botorch.sampling import SobolQMCNormalSampler
from scipy import stats

import probnn
from probnn import likelihoods
from probnn.predictive import DrawsSampler
from tests.unit.surrogates.toy import DOUBLE, draws, model, points

pytestmark = pytest.mark.filterwarnings("ignore::probnn.errors.DegenerateWeightsWarning")


@pytest.mark.parametrize("df", [0.8, 2.0, 4.0, 300.0])
def test_normal_variables_become_student_t(df: float) -> None:
    z = torch.tensor([-8.0, -3.0, -0.5, 0.0, 1e-9, 2.0, 6.0], dtype=DOUBLE)
    t = likelihoods.StudentT(df=df).from_normal(z)
    for a, b in zip(z.tolist(), t.tolist(), strict=True):
        expected = stats.t(df).ppf(stats.norm.cdf(a)) if a < 0 else stats.t(df).isf(stats.norm.sf(a))
        assert b == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("df", [1.5, 4.0])
def test_imagined_outcomes_have_the_law_of_the_likelihood(df: float, seed: int) -> None:
    """One draw of the function, so that an outcome less the function is noise; the law by Kolmogorov and Smirnov."""
    process = draws(1, weighted=False, likelihood=likelihoods.StudentT(noise=0.5, df=df))
    made, X = probnn.ProcessModel(process), points(2)
    count = 4000
    Y = made._imagine("test", X, DrawsSampler(torch.Size([count]), seed=seed), True)
    noise = (Y - made.posterior(X).mean) / 0.5
    for j in range(2):
        # 2.2 / sqrt(n) is exceeded with probability 1e-4.
        assert stats.kstest(noise[:, j, 0].numpy(), stats.t(df).cdf).statistic < 2.2 / count**0.5
    assert abs(stats.kendalltau(noise[:, 0, 0], noise[:, 1, 0]).statistic) < 5 * (4 / (9 * count)) ** 0.5


@pytest.mark.parametrize("scaled", [False, True])
def test_fantasies_without_variance_are_finite_and_differentiable(scaled: bool) -> None:
    made = model(scaled=scaled, likelihood=likelihoods.StudentT(noise=0.5, df=1.5))
    X = points(3, 2).requires_grad_(True)
    for sampler in (DrawsSampler(torch.Size([4]), seed=0), SobolQMCNormalSampler(torch.Size([4]), seed=0)):
        fantasy = made.fantasize(X, sampler)
        assert fantasy.batch_shape == (4, 3)
        (slope,) = torch.autograd.grad(fantasy.posterior(points(5)).mean.sum(), X)
        assert slope.isfinite().all() and (slope != 0).any()
        Y = made._imagine("test", X, sampler, True)
        told = made.condition_on_observations(X, Y)
        assert torch.equal(told.process.log_weights, fantasy.process.log_weights)


def test_the_units_are_those_of_the_data() -> None:
    likelihood = likelihoods.StudentT(noise=0.5)
    scaled, bare = model(scaled=True, likelihood=likelihood), probnn.ProcessModel(draws(likelihood=likelihood))
    X, sampler = points(3), DrawsSampler(torch.Size([6]), seed=0)
    outcome = scaled.outcome_transform
    expected = outcome.means + outcome.stdvs * bare._imagine("test", scaled.input_transform(X), sampler, True)
    torch.testing.assert_close(scaled._imagine("test", X, sampler, True), expected)
