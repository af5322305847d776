"""Simulation-based calibration of Bayesian mixtures of experts: minutes, so not among the tests that always run.

``python -m pytest -m slow tests/slow``
"""

from __future__ import annotations

import pytest
import torch

import probnn
from probnn import moe
from probnn import random as rnd
from probnn.diagnostics import sbc_ranks, uniformity_test

DOUBLE = torch.float64


@pytest.mark.slow
def test_posterior_of_two_experts_is_calibrated(seed: int) -> None:
    """Ranks of truths among draws of HMC are uniform, of functionals that do not depend on the labels."""
    R, n, draws = 100, 60, 63
    prior = moe.MixtureOfExperts(moe.GaussianMoE(num_experts=2, input_dim=1), dtype=DOUBLE)
    likelihood = prior.likelihood
    generator = rnd.generator_from(seed)
    X = torch.linspace(-1, 1, n, dtype=DOUBLE).unsqueeze(-1)
    at = torch.tensor([[0.25], [0.75]], dtype=DOUBLE)
    new = torch.tensor([[0.1]], dtype=DOUBLE)
    truth = prior.sample_parameters((R,), generator=generator)
    Y = likelihood.sample(prior.apply(truth, X), truth.new_zeros(1, 0), generator=generator)
    Y_new = likelihood.sample(prior.apply(truth, new), truth.new_zeros(1, 0), generator=generator)

    hmc = probnn.HMC(num_chains=9, num_warmup=500, num_samples=140, max_leapfrog=32)
    theta, _ = hmc.fit_batch(prior, likelihood, X, Y.unsqueeze(1), seed=seed)
    theta = theta[:, :, ::20].flatten(1, 2)  # nine chains of seven draws far apart

    def functionals(theta: torch.Tensor, Y_new: torch.Tensor) -> torch.Tensor:
        none = theta.new_zeros(*theta.shape[:-1], 1, 0)
        mean = likelihood.moments(prior._apply(theta, at), none)[0].squeeze(-1)
        density = likelihood.log_prob(Y_new, prior._apply(theta, new), none)
        scores, _, scales = likelihood.parts(prior._apply(theta, X))
        noise = (scores.softmax(-1).mean(-2) * scales[..., 0, :, 0].exp()).sum(-1, keepdim=True)
        return torch.cat([mean, density, noise], -1)

    assert theta.shape[1] == draws
    of_draws = functionals(theta, Y_new.unsqueeze(1))
    ranks = sbc_ranks(of_draws, functionals(truth, Y_new), generator=generator)
    p_values = uniformity_test(ranks, draws, bins=8).p_value
    assert (p_values > 0.005).all(), p_values
