"""The data and networks of the tests of Laplace's method."""

from __future__ import annotations

import torch
from torch import Tensor

import probnn
from probnn import priors
from probnn import random as rnd

DOUBLE = torch.double


def problem(n: int = 12, d: int = 2, m: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth outcomes with noise 0.1."""
    generator = rnd.generator_from(seed)
    X = 2 * rnd.uniform((n, d), generator=generator, dtype=DOUBLE) - 1
    F = torch.stack([torch.sin(2 * X.sum(-1) + j) for j in range(m)], -1)
    return X, F + 0.1 * rnd.normal((n, m), generator=generator, dtype=DOUBLE)


def network(hidden: tuple[int, ...] = (4,), weight_prior: priors.WeightPrior | None = None, **options: int):
    net = probnn.MLP(input_dim=options.pop("d", 2), hidden=hidden, **options)
    return probnn.BayesianNetwork(net, weight_prior or priors.NormalWeights(2.0, 1.0), dtype=DOUBLE)
