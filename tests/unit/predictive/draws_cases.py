"""Posteriors from draws of every shape of batch, weights and noise."""

from __future__ import annotations

import torch

from probnn.predictive import DrawsPosterior


def make(
    seed: int, batch=(), weight_batch=None, size=6, q=2, m=2, noise: str | None = "draw", weights: str = "unequal"
) -> DrawsPosterior:
    gen = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=gen, dtype=torch.float64)

    weight_batch = () if weight_batch is None else weight_batch
    log_weights = None if weights == "equal" else randn(*weight_batch, size)
    shape = {None: None, "draw": (size, 1, m), "full": (*batch, size, q, m), "one": ()}[noise]
    noise_std = None if shape is None else 0.3 + randn(*shape).abs()
    return DrawsPosterior(randn(*batch, size, q, m), log_weights, noise_std)


CASES = {
    "plain": {},
    "noise-free": {"noise": None},
    "equal weights": {"weights": "equal"},
    "batch": {"batch": (3,), "noise": "full"},
    "batched weights": {"batch": (4, 3), "weight_batch": (4, 3)},
    "fantasies": {"batch": (3,), "weight_batch": (4, 3), "noise": "one"},
    "weights of one batch dimension": {"batch": (4, 3), "weight_batch": (4, 1), "noise": None},
    "one draw": {"size": 1},
}
