"""Small data sets and starts that the tests of the optimisers share."""

from __future__ import annotations

import torch
from torch import Tensor

from probnn import moe
from probnn.moe.objective import Objective


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def truth() -> moe.GaussianMoE:
    """Two experts that overlap: one maximum that every method finds."""
    return moe.GaussianMoE.from_mixing_measure(
        moe.MixingMeasure(
            gate_bias=[0.5, 0.0],
            gate_weight=[[3.0], [0.0]],
            intercept=[1.0, -1.0],
            coef=[[2.0], [-1.5]],
            variance=[0.16, 0.25],
        )
    )


def easy(replicates: int, n: int, seed: int) -> tuple[Objective, Tensor]:
    """Data of the truth, and starts near it."""
    g, model = generator(seed), truth()
    X = 2 * torch.rand(replicates, n, 1, generator=g, dtype=torch.double) - 1
    Y = torch.stack([model.sample_outcomes(x, generator=g) for x in X])
    objective = Objective.of(moe.GaussianMoE(2, 1), X, Y)
    noise = 0.2 * torch.randn(replicates, model.num_parameters, generator=g, dtype=torch.double)
    theta = model.theta + noise
    return objective, objective.full(objective.free(theta), torch.zeros_like(theta))


def random_start(objective: Objective, batch: int, seed: int, scale: float = 0.5) -> Tensor:
    """Starts that respect what is held and tied."""
    size = objective.free(torch.zeros(1, objective.model.num_parameters, dtype=torch.double)).shape[-1]
    free = scale * torch.randn(batch, size, generator=generator(seed), dtype=torch.double)
    return objective.full(free, torch.zeros(batch, objective.model.num_parameters, dtype=torch.double))


def wavy(model: moe.GaussianMoE, replicates: int, n: int, seed: int, weighted: bool = False) -> Objective:
    """Outcomes along waves, or classes of them."""
    g, d, m = generator(seed), model.input_dim, model.num_outcomes
    X = torch.randn(replicates, n, d, generator=g, dtype=torch.double)
    wave = (2 * X.sum(-1, keepdim=True)).sin() * torch.arange(1, m + 1)
    Y = wave + 0.3 * torch.randn(replicates, n, m, generator=g, dtype=torch.double)
    if isinstance(model.outcome, moe.MultinomialLogit):
        Y = (Y > 0).double() + (Y > 0.8).double()
    weights = torch.rand(replicates, n, generator=g, dtype=torch.double) if weighted else None
    return Objective.of(model, X, Y, weights)
