"""Every network, weight prior and likelihood meets its contract."""

from __future__ import annotations

import pytest
import torch

import probnn
from probnn.networks.mlp import ACTIVATIONS
from probnn.testing import check_likelihood, check_network, check_weight_prior
from tests.cases import LIKELIHOODS, WEIGHT_PRIORS, module

NETWORKS = {
    **{a: probnn.MLP(input_dim=3, hidden=(4, 3), output_dim=2, activation=a) for a in ACTIVATIONS},
    "linear": probnn.MLP(input_dim=3, hidden=(), output_dim=2),
    "one input": probnn.MLP(input_dim=1, hidden=(5,)),
    "module": probnn.ModuleNetwork(module(), input_dim=2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str, seed: int) -> None:
    check_network(NETWORKS[name], seed=seed)


@pytest.mark.parametrize("name", WEIGHT_PRIORS)
def test_weight_prior(name: str, seed: int) -> None:
    check_weight_prior(WEIGHT_PRIORS[name], probnn.MLP(input_dim=2, hidden=(6, 5)).layout, seed=seed)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihood(name: str, seed: int) -> None:
    check_likelihood(LIKELIHOODS[name], num_outcomes=1 if name == "categorical" else 2, seed=seed)


def test_hyper_parameters_are_differentiable() -> None:
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    prior = probnn.BayesianNetwork(
        probnn.MLP(input_dim=2, hidden=(3,)), probnn.priors.NormalWeights(weight_scale=scale), dtype=torch.float64
    )
    X = torch.rand(4, 2, dtype=torch.float64)
    prior.sample(X, (5,), generator=torch.Generator().manual_seed(0)).square().sum().backward()
    assert scale.grad is not None and scale.grad > 0
    noise = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    likelihood = probnn.likelihoods.Gaussian(noise=noise)
    likelihood.log_prob(X[:, :1], X[:, 1:], X.new_zeros(1, 0)).sum().backward()
    assert noise.grad is not None and noise.grad != 0
