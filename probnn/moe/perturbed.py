"""The posterior density of a mixture of experts as something Newton's method maximises."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .data import Data, Rows
from .objective import Objective
from .process import MixtureOfExperts

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class PerturbedObjective(Objective):
    r"""A weighted log-likelihood and a shifted log prior, :math:`\log p(\theta) - \nabla\log p(\theta_0)^\top\theta`.

    Free coordinates are those of the process that the data can say something about: no expert is a reference, and log
    variances are left out where noise is known. The others stay where the anchors have them. With known noise the
    likelihood is that of nonlinear regression on the mixture's mean, and the Hessian is Gauss and Newton's.

    Args:
        model: The family.
        data: The data, with weights for every member; with known noise, Y holds the outcomes and their variances.
        prior: The process, in double precision.
        anchors: :math:`\theta_0`, ``B x P``; None: the prior is not shifted.
        known: Whether the noise is known.

    Attributes:
        used: The free coordinates' places in theta.
    """

    prior: MixtureOfExperts = field(kw_only=True)
    anchors: Tensor | None = field(default=None, kw_only=True)
    known: bool = field(default=False, kw_only=True)
    used: Tensor = field(init=False)

    def __post_init__(self) -> None:
        places = self.prior.places
        if self.known:
            gamma, beta, scales, _ = self.model.split(places)
            places = self.model.join(gamma, beta, torch.full_like(scales, -1))
        used = places[places >= 0].unique()
        rank = torch.full((self.prior.num_parameters + 1,), -1, device=places.device)  # the last entry is that of -1
        rank[used] = torch.arange(len(used), device=places.device)
        index = rank[places]
        spread = torch.zeros(len(index), len(used), dtype=torch.float64, device=index.device)
        spread[index >= 0, index[index >= 0]] = 1.0
        for name, value in (("index", index), ("_spread", spread), ("used", used)):
            object.__setattr__(self, name, value)

    def take(self, which: Tensor | None) -> PerturbedObjective:
        """The objective of some members."""
        if which is None:
            return self
        anchors = None if self.anchors is None else self.anchors[which]
        return replace(self, data=self.data.take(which), anchors=anchors)

    def plain(self) -> PerturbedObjective:
        """The posterior density itself, without weights or shifts."""
        return replace(self, data=Data(self.data.X, self.data.Y), anchors=None)

    def coordinates(self, theta: Tensor) -> Tensor:
        """Coordinates of the process, of those of the model; what the model does not have is the anchors'."""
        P = self.prior.num_parameters
        out = theta.new_zeros(len(theta), P) if self.anchors is None else self.anchors.clone()
        out[:, self.used] = self.free(theta)
        return out

    def _prior(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The shifted log prior ``B``, its gradient and the diagonal of its Hessian ``B x F``."""
        at = self.coordinates(theta)
        value = self.prior._log_prob(at)
        first, second = self.prior.prior_derivatives(at)
        if self.anchors is not None:
            pull = self.prior.prior_derivatives(self.anchors)[0]
            value, first = value - (pull * at).sum(-1), first - pull
        return value, first[:, self.used], second[:, self.used]

    def log_likelihood(self, theta: Tensor) -> Tensor:
        """Weighted log-likelihood, ``B``; minus infinity where it is not a number."""
        if not self.known:
            return super().log_likelihood(theta)
        total = theta.new_zeros(len(theta))
        for rows in self.data.pieces(self.bytes_a_row(len(theta)) // 4):
            total = total + rows.weighted_sum(self._regression(theta, rows)[0])
        return torch.where(total.isnan(), -torch.inf, total)

    def value(self, theta: Tensor) -> Tensor:
        """Log-likelihood and shifted log prior, ``B``."""
        return self.log_likelihood(theta) + self._prior(theta)[0]

    def derivatives(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value ``B``, gradient ``B x F`` and Hessian ``B x F x F``."""
        value, gradient, hessian = self._by_regression(theta) if self.known else super().derivatives(theta)
        extra, slope, bend = self._prior(theta)
        return value + extra, gradient + slope, hessian + torch.diag_embed(bend)

    def gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Value ``B`` and gradient ``B x F``."""
        return self.derivatives(theta)[:2]

    def _regression(self, theta: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Log densities ``B x n``, slopes and variances ``B x m x n``, and what the Jacobian is made of."""
        gamma, beta, _, _ = self.model.split(theta)
        terms, means = self.model.gate.terms(gamma, rows.X), self.model.expert.means(beta, rows.X)
        pi = terms.scores.softmax(-2).unsqueeze(-2)  # B K 1 n
        f = (pi * means).sum(-3)
        Y, variance = rows.Y.chunk(2, -2)
        slope = (Y - f) / variance
        density = -0.5 * ((Y - f) * slope + variance.log() + _LOG_2PI).sum(-2)
        return density, slope, variance, (pi, means - f.unsqueeze(-3), terms.jacobian)

    def _by_regression(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value, gradient and Gauss-Newton Hessian of the log-likelihood."""
        (B, F), (w, a, p, _) = (len(theta), len(self.used)), self.model.sizes
        value, gradient, hessian = theta.new_zeros(B), theta.new_zeros(B, F), theta.new_zeros(B, F, F)
        for rows in self.data.pieces(self.bytes_a_row(B) * a):
            density, slope, variance, (pi, offset, by_gate) = self._regression(theta, rows)
            value += rows.weighted_sum(density)
            J = theta.new_zeros(B, self.model.num_experts, self.model.width, a, density.shape[-1])
            J[:, :, :w] = (pi * offset).unsqueeze(-3) * by_gate.unsqueeze(-2)
            phi = self.model.expert.design(rows.X).unsqueeze(1)
            for j in range(a):
                J[:, :, w + j * p : w + (j + 1) * p, j] = pi * phi
            J = (self._spread.T @ J.flatten(1, 2).flatten(2)).unflatten(-1, (a, -1))
            weights = 1.0 if rows.weights is None else rows.weights.unsqueeze(-2)
            gradient += (J * (weights * slope).unsqueeze(1)).sum((-1, -2))
            hessian -= (J * (weights / variance).unsqueeze(1)).flatten(2) @ J.flatten(2).mT
        return value, gradient, hessian
