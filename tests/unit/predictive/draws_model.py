"""A BoTorch model whose posterior is a DrawsPosterior, and points and weights for it."""

from __future__ import annotations

import copy
import math

import torch
from botorch.models.model import Model
from botorch.posteriors.ensemble import EnsemblePosterior
from torch import Tensor

from probnn.predictive import DrawsPosterior

S, D = 64, 2
BEST = 0.4


class DrawsModel(Model):
    """S one-hidden-layer tanh networks: as little of a BoTorch model as these tests need."""

    def __init__(self, seed: int = 0, log_weights: Tensor | None = None, m: int = 1, salt: int = 0):
        super().__init__()
        gen = torch.Generator().manual_seed(seed)
        self.first, self.shift = (3 * torch.randn(S, k, 32, generator=gen) for k in (D, 1))
        self.last = torch.randn(S, 32, m, generator=gen) / math.sqrt(32)
        self.log_weights, self.salt, self.noise_std = log_weights, salt, torch.full((S, 1, m), 0.2)
        self.posterior_class: type = DrawsPosterior

    @property
    def num_outputs(self) -> int:
        return self.last.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size() if self.log_weights is None else self.log_weights.shape[:-1]

    def draws(self, X: Tensor) -> Tensor:
        return torch.tanh(X.unsqueeze(-3) @ self.first + self.shift) @ self.last

    def posterior(self, X, output_indices=None, observation_noise=False, posterior_transform=None):
        if self.posterior_class is EnsemblePosterior:
            return EnsemblePosterior(self.draws(X))
        noise_std = self.noise_std if observation_noise else None
        return DrawsPosterior(self.draws(X), self.log_weights, noise_std, salt=self.salt)

    def fantasize(self, X, sampler, observation_noise=None, propagate_grads=False):
        Y = sampler(self.posterior(X, observation_noise=True))
        error = (Y.unsqueeze(-3) - self.draws(X)) / self.noise_std
        conditioned = copy.copy(self)
        conditioned.log_weights = (self.log_weights if self.log_weights is not None else 0) - 0.5 * (
            error.square().sum((-1, -2))
        )
        return conditioned


def points(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, D, generator=torch.Generator().manual_seed(seed + 10))


def random_weights(seed: int) -> Tensor:
    return torch.randn(S, generator=torch.Generator().manual_seed(seed + 20))


def labels(salt: int, batch: tuple[int, ...] = ()) -> DrawsPosterior:
    return DrawsPosterior(torch.arange(float(S)).reshape(S, 1, 1).expand(*batch, S, 1, 1), salt=salt)
