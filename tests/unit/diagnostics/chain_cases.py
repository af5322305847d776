"""Chains of known laws, and every diagnostic that takes draws of several variables."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probnn.diagnostics import ess, mcse, rhat, split_rhat
from probnn.random import generator_from

EVERY = {
    "rhat": rhat,
    "split_rhat": split_rhat,
    "ess": ess,
    "ess tail": lambda x: ess(x, "tail"),
    "mcse": mcse,
    "mcse quantile": lambda x: mcse(x, 0.9),
}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=generator_from(seed), dtype=torch.float64)


def ar1(shape: tuple[int, ...], rho: float, seed: int) -> Tensor:
    """Stationary AR(1) chains with standard normal margins."""
    noise = normal(*shape, seed=seed)
    x = noise.clone()
    for s in range(1, shape[1]):
        x[:, s] = rho * x[:, s - 1] + math.sqrt(1 - rho**2) * noise[:, s]
    return x
