"""Small processes that need no inference, for the tests of the surrogates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from botorch.models.transforms import Normalize, Standardize
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn import random as rnd
from probnn.predictive import DrawsPosterior
from probnn.process import StochasticProcess

DOUBLE = torch.float64
BOX = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=DOUBLE)


def points(*shape: int, seed: int = 0) -> Tensor:
    """Uniform points in the unit box, ``shape x 2``."""
    return rnd.uniform((*shape, 2), generator=rnd.generator_from(seed), dtype=DOUBLE)


def draws(
    S: int = 64,
    m: int = 1,
    *,
    hidden: tuple[int, ...] = (16, 16),
    likelihood: Any = None,
    weighted: bool = True,
    seed: int = 0,
) -> probnn.EmpiricalProcess:
    """Draws of a network prior with an inferred noise and, where wanted, unequal weights."""
    likelihood = likelihoods.Gaussian(noise_median=1.0, noise_spread=0.3) if likelihood is None else likelihood
    net = probnn.MLP(input_dim=2, hidden=hidden, output_dim=likelihood.channels(m))
    weights = priors.NormalWeights(weight_scale=(4.0, 2.0, 0.7), bias_scale=(2.0, 1.0, 0.1))
    prior = probnn.BayesianNetwork(net, weights if len(hidden) == 2 else priors.NormalWeights(), dtype=DOUBLE)
    generator = rnd.generator_from(seed)
    theta = prior.sample_parameters((1, S), generator=generator)
    psi = likelihood.sample_prior((1, S), generator=generator, dtype=DOUBLE)
    log_weights = rnd.normal((S,), generator=generator, dtype=DOUBLE) if weighted else None
    return probnn.EmpiricalProcess(prior, theta, psi, likelihood, log_weights)


def model(S: int = 64, m: int = 1, *, scaled: bool = False, **options: Any) -> probnn.ProcessModel:
    """A model of such draws, with or without transforms."""
    return probnn.ProcessModel(draws(S, m, **options), **(transforms(m) if scaled else {}))


def transforms(m: int = 1) -> dict[str, Any]:
    """A fitted pair of BoTorch transforms: inputs from another box, outcomes in other units."""
    standardize = Standardize(m)
    standardize(4.74 + 3.0 * rnd.normal((30, m), generator=rnd.generator_from(7), dtype=DOUBLE))
    return {
        "input_transform": Normalize(2, bounds=torch.tensor([[-1.0, 0.0], [2.0, 1.5]], dtype=DOUBLE), center=0.0),
        "outcome_transform": standardize,
    }


@dataclass(frozen=True, eq=False)
class Marginals(StochasticProcess):
    """Knows one point at a time."""

    joint = None
    input_dim = 2
    output_dim = 1
    dtype = DOUBLE
    device = torch.device("cpu")

    def _sample_functions(self, shape: torch.Size, generator: torch.Generator | None) -> Callable[[Tensor], Tensor]:
        raise AssertionError("there are no functions")

    def _predict(self, X: Tensor, noise: bool) -> DrawsPosterior:
        f = X.sum(-1, keepdim=True).unsqueeze(-3) + torch.linspace(-1, 1, 16, dtype=X.dtype)[:, None, None]
        return DrawsPosterior(f)
