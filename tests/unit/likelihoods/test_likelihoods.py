"""Likelihoods against scipy, and their bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats as st
import torch

from probnn import likelihoods
from probnn.errors import DomainError, UnsupportedError
from tests.cases import DOUBLE

F = torch.tensor([[0.3, -1.2], [2.0, 0.1], [-0.4, 0.8]], dtype=DOUBLE)
Y = torch.tensor([[0.5, -1.0], [1.0, 0.0], [0.0, 3.0]], dtype=DOUBLE)
NONE = torch.zeros(1, 0, dtype=DOUBLE)


def compare(value: torch.Tensor, expected: np.ndarray) -> None:
    assert np.abs(value.numpy() - expected).max() < 1e-12


def test_gaussian() -> None:
    psi = torch.tensor([[math.log(0.7)]], dtype=DOUBLE)
    expected = st.norm.logpdf(Y.numpy(), F.numpy(), 0.7).sum(-1)
    compare(likelihoods.Gaussian().log_prob(Y, F, psi), expected)
    compare(likelihoods.Gaussian(noise=0.7).log_prob(Y, F, NONE), expected)
    known = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], dtype=DOUBLE)
    compare(
        likelihoods.Gaussian().log_prob(Y, F, psi, known),
        st.norm.logpdf(Y.numpy(), F.numpy(), known.sqrt().numpy()).sum(-1),
    )
    per_outcome = likelihoods.Gaussian().expand(2)
    assert per_outcome.num_parameters == 2 and likelihoods.Gaussian(noise=0.1).expand(2).num_parameters == 0
    psi = torch.tensor([[math.log(0.7), math.log(0.2)]], dtype=DOUBLE)
    compare(per_outcome.log_prob(Y, F, psi), st.norm.logpdf(Y.numpy(), F.numpy(), [0.7, 0.2]).sum(-1))
    assert per_outcome.constrain(psi)["noise"].tolist() == [[pytest.approx(0.7), pytest.approx(0.2)]]


def test_the_noise_prior_is_log_normal_with_its_jacobian() -> None:
    likelihood = likelihoods.Gaussian(noise_median=0.3, noise_spread=0.5)
    noise = torch.tensor([0.05, 0.3, 1.0], dtype=DOUBLE)
    in_log = st.lognorm.logpdf(noise.numpy(), 0.5, scale=0.3) + noise.log().numpy()
    compare(likelihood.log_prior(noise.log().unsqueeze(-1)), in_log)
    assert likelihood.prior_median(dtype=DOUBLE).exp().item() == pytest.approx(0.3)


def test_known_noise_replaces_an_inferred_one() -> None:
    variance = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=DOUBLE)
    given = likelihoods.Gaussian().given_noise(variance)
    assert given.num_parameters == 0
    assert given.moments(F, NONE)[1][0].tolist() == [pytest.approx(0.2), pytest.approx(0.3)]
    fixed = likelihoods.Gaussian(noise=0.5)
    assert fixed.given_noise(variance) is fixed


def test_student_t() -> None:
    likelihood = likelihoods.StudentT(noise=0.7, df=3.5)
    compare(likelihood.log_prob(Y, F, NONE), st.t.logpdf(Y.numpy(), 3.5, F.numpy(), 0.7).sum(-1))
    compare(likelihood.moments(F, NONE)[1], st.t.var(3.5, F.numpy(), 0.7))
    for df in (1.0, 2.0):
        assert torch.isinf(likelihoods.StudentT(noise=0.7, df=df).moments(F, NONE)[1]).all()


def test_heteroscedastic() -> None:
    channels = torch.cat([F, 0.3 * F], -1)
    expected = st.norm.logpdf(Y.numpy(), F.numpy(), 0.2 * np.exp(0.3 * F.numpy())).sum(-1)
    compare(likelihoods.Heteroscedastic(0.2).log_prob(Y, channels, NONE), expected)
    with pytest.raises(DomainError, match="multiple of 2"):
        likelihoods.Heteroscedastic().outcomes(3)


def test_discrete() -> None:
    binary = (Y > 0.2).double()
    p = 1 / (1 + np.exp(-F.numpy()))
    compare(likelihoods.Bernoulli().log_prob(binary, F, NONE), st.bernoulli.logpmf(binary.numpy(), p).sum(-1))
    counts = torch.tensor([[0.0, 3.0], [7.0, 1.0], [2.0, 0.0]], dtype=DOUBLE)
    expected = st.poisson.logpmf(counts.numpy(), np.exp(F.numpy())).sum(-1)
    compare(likelihoods.Poisson().log_prob(counts, F, NONE), expected)
    logits = torch.cat([F, -F], -1)
    classes = torch.tensor([[0.0], [3.0], [2.0]], dtype=DOUBLE)
    softmax = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(-1, keepdims=True)
    compare(likelihoods.Categorical(4).log_prob(classes, logits, NONE), np.log(softmax[[0, 1, 2], [0, 3, 2]]))
    assert likelihoods.Categorical(4).predictions(4) == 4
    extreme = likelihoods.Bernoulli().log_prob(torch.ones(1, 1), torch.tensor([[-1e4]]), torch.zeros(1, 0))
    assert extreme.item() == -1e4


def test_classes_are_drawn_with_their_probabilities(seed: int) -> None:
    n, logits = 20_000, torch.tensor([[0.5, -1.0, 0.2]], dtype=DOUBLE)
    generator = torch.Generator().manual_seed(seed)
    drawn = likelihoods.Categorical(3).sample(logits.expand(n, 1, 3), NONE, generator=generator)
    p = logits.softmax(-1).squeeze(0)
    share = torch.stack([(drawn == k).double().mean() for k in range(3)])
    assert ((share - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: likelihoods.Gaussian(noise=0.0),
        lambda: likelihoods.Gaussian(noise=-1),
        lambda: likelihoods.Gaussian(noise="0.1"),  # type: ignore[arg-type]
        lambda: likelihoods.Gaussian(noise_median=0),
        lambda: likelihoods.Gaussian(levels=0),
        lambda: likelihoods.StudentT(df=-1),
        lambda: likelihoods.Heteroscedastic(0),
        lambda: likelihoods.Categorical(1),
        lambda: likelihoods.Categorical(3).channels(2),
        lambda: likelihoods.Categorical(3).outcomes(4),
    ],
)
def test_bad_settings(make) -> None:
    with pytest.raises(DomainError):
        make()


@pytest.mark.parametrize("likelihood", [likelihoods.StudentT(0.1), likelihoods.Bernoulli(), likelihoods.Poisson()])
def test_known_noise_is_gaussian_only(likelihood: likelihoods.Likelihood) -> None:
    for call in (lambda: likelihood.log_prob(Y, F, NONE, Y.abs() + 1), lambda: likelihood.given_noise(Y)):
        with pytest.raises(UnsupportedError, match="noise_variance"):
            call()


def test_the_variance_of_a_likely_class_does_not_cancel() -> None:
    """p(1 - p) with 1 - p as the sum of the other probabilities; gradients as those of the softmax."""
    f = torch.tensor([[40.0, 0.0, 0.0], [0.0, 500.0, -100.0], [1.0, 1.0, 1.0]], dtype=DOUBLE, requires_grad=True)
    p, variance = likelihoods.Categorical(3).moments(f, NONE)
    assert variance[0, 0].item() == pytest.approx(2 * math.exp(-40), rel=1e-14)
    assert variance[1, 1].item() == pytest.approx(math.exp(-500), rel=1e-13)
    torch.testing.assert_close(variance[2], torch.full((3,), 2 / 9, dtype=DOUBLE))
    (slope,) = torch.autograd.grad(variance[0, 0], f)  # dv/df_0 = p(1 - p)(1 - 2p)
    assert slope[0, 0].item() == pytest.approx(-2 * math.exp(-40), rel=1e-12)
