"""The Gaussian gate: a mixture of Gaussians over inputs and outcomes together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .gates import Gate


@dataclass(frozen=True)
class GaussianGate(Gate):
    r"""Experts that live where inputs are normal, :math:`s_i(x) = \log\pi_i + \log N(x; c_i, \Gamma_i)`.

    The likelihood is that of (x, y) together, so that EM has closed forms (Gaussian locally linear mapping;
    Nguyen, Nguyen, Nguyen & Ho 2023, arXiv 2305.07572). Coordinates of an expert: the centre c, the log mass
    (up to a constant), and the Cholesky factor of :math:`\Gamma` by rows with the logarithm of its diagonal.

    Example:
        >>> GaussianGate().width(2)  # a centre of 2, a log mass, a triangle of 3
        6
    """

    joint: ClassVar[bool] = True
    affine: ClassVar[bool] = True

    def width(self, d: int) -> int:
        """Centre, log mass and triangle."""
        return d + 1 + d * (d + 1) // 2

    def _factor(self, gamma: Tensor, d: int) -> Tensor:
        row, column = torch.tril_indices(d, d)
        packed = gamma[..., d + 1 :]
        factor = gamma.new_zeros(*gamma.shape[:-1], d, d)
        factor[..., row, column] = torch.where((row == column).to(gamma.device), packed.exp(), packed)
        return factor

    def pack(self, log_mass: Tensor, centre: Tensor, covariance: Tensor) -> Tensor:
        """Coordinates ``... x K x w`` of log masses ``... x K``, centres ``... x K x d`` and their covariances."""
        d = centre.shape[-1]
        factor = torch.linalg.cholesky(covariance)
        row, column = torch.tril_indices(d, d)
        packed = factor[..., row, column]
        packed = torch.where((row == column).to(packed.device), packed.clamp_min(1e-300).log(), packed)
        return torch.cat([centre, log_mass.unsqueeze(-1), packed], -1)

    def covariance(self, gamma: Tensor, d: int) -> Tensor:
        """Covariances of the inputs, ``... x K x d x d``."""
        factor = self._factor(gamma, d)
        return factor @ factor.mT

    def scores(self, gamma: Tensor, X: Tensor, tail: Tensor) -> Tensor:
        """Log masses, summing to one, plus normal log densities of the inputs."""
        d = X.shape[-2]
        factor, centre = self._factor(gamma, d), gamma[..., :d]
        offset = X.unsqueeze(-3) - centre.unsqueeze(-1)
        white = torch.linalg.solve_triangular(factor, offset, upper=False)
        log_det = gamma[..., d + 1 :][..., _diagonal(d)].sum(-1, keepdim=True)
        log_mass = gamma[..., d].log_softmax(-1).unsqueeze(-1)
        return log_mass - 0.5 * (white.square().sum(-2) + d * math.log(2 * math.pi)) - log_det

    def log_probs(self, gamma: Tensor, X: Tensor, tail: Tensor) -> Tensor:
        """Joint log density of expert and input, not normalised over the experts."""
        return self.scores(gamma, X, tail)

    def canonical(self, gamma: Tensor) -> Tensor:
        """The last log mass is zero."""
        gamma = gamma.clone()
        d = _inputs_of(gamma.shape[-1])
        gamma[..., d] -= gamma[..., -1:, d].clone()
        return gamma


def _diagonal(d: int) -> Tensor:
    row, column = torch.tril_indices(d, d)
    return (row == column).nonzero().squeeze(-1)


def _inputs_of(width: int) -> int:
    """The d whose d + 1 + d(d + 1)/2 is the width."""
    return round((math.sqrt(9 + 8 * (width - 1)) - 3) / 2)
