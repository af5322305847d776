"""M-steps of the experts."""

from __future__ import annotations

import torch
from torch import Tensor

from ._solve import combine, contract, products, solve, unpack
from .expectation import Halving, Part, Update
from .objective import Objective
from .scaling import Scaling


class LeastSquares(Update):
    r"""Weighted least squares of normal or Student-t outcomes, and their variances from the residuals.

    Coefficients are updated by the regression of the residuals so far on standardised features: no digits are lost
    to the level of X or Y, and what the rows of an expert do not determine stays as it was. A variance is
    :math:`(\sum r e^2 + 2b)/(\sum r + 2(a + 1))` with the inverse gamma's a and b, and not below its floor. Latent
    precisions of Student-t outcomes multiply the weights (Lange, Little & Taylor 1989).
    """

    def __init__(self, objective: Objective, theta: Tensor, scaling: Scaling):
        model = objective.model
        _, self.beta, self.scales, _ = model.split(theta)
        self._scaling, self._variance = scaling, model.variance
        self._prior = objective.penalty.counts if isinstance(model.variance, str) else (0.0, 0.0)
        self._gram = self._moment = self._count = self._square = theta.new_zeros(())

    def collect(self, part: Part) -> None:
        """Normal equations of the residuals."""
        z = self._scaling.standardised(part.phi)
        residual = part.rows.Y.unsqueeze(-3) - part.means
        self._gram = self._gram + contract(part.precision, products(z))
        self._moment = self._moment + contract(part.precision * residual, z)
        self._count = self._count + part.share.sum(-1)

    def solve(self) -> None:
        """New coefficients."""
        p = self.beta.shape[-1]
        gram = unpack(self._gram, p).expand(*self.beta.shape, p)
        change, self.singular = solve(gram, self._moment)
        self.beta = self.beta + self._scaling.raw(change)

    def judge(self, part: Part) -> None:
        """Squared residuals of the new coefficients."""
        if isinstance(self._variance, str):
            residual = part.rows.Y.unsqueeze(-3) - combine(self.beta, part.phi)
            self._square = self._square + (part.precision * residual.square()).sum(-1)

    def settle(self) -> None:
        """New variances."""
        self.done = True
        empty = self._count <= torch.finfo(self._count.dtype).tiny
        self.degenerate = empty.any(-1)
        if not isinstance(self._variance, str):
            return
        square, count = self._square, self._count.unsqueeze(-1)
        if self._variance == "shared":
            square, count = square.sum(-2, keepdim=True), count.sum(-2, keepdim=True)
        extra, pseudo = self._prior
        variance = (square + extra) / (count + pseudo)
        floor = self._scaling.floor.unsqueeze(-2)
        low = variance < floor
        variance = torch.maximum(variance, floor).expand_as(self.scales)
        # An expert without rows keeps its variance; NaN keeps it too, as nothing can be said.
        known = (variance > 0) & ((count + pseudo) > torch.finfo(count.dtype).tiny)
        self.scales = torch.where(known, torch.where(known, variance, 1.0).log(), self.scales)
        self.degenerate = self.degenerate | low.flatten(1).any(-1)


class Logistic(Update):
    """One safeguarded Newton step on every expert's weighted multinomial logit."""

    def __init__(self, objective: Objective, theta: Tensor, scaling: Scaling):
        model = objective.model
        _, self._start, self.scales, _ = model.split(theta)
        self._law, self._scaling = model.outcome, scaling
        self._halving = Halving(self._start.shape[:2], theta)
        self._count = self._slope = theta.new_zeros(())
        self._bend: dict[tuple[int, int], Tensor] = {}

    def collect(self, part: Part) -> None:
        """Gradient and Hessian in the logits' standardised coefficients."""
        z = self._scaling.standardised(part.phi)
        pairs = products(z)
        terms = self._law.terms(part.means, self.scales, part.rows.Y)
        slope = part.share.unsqueeze(-2) * torch.stack(terms.first, -2)
        self._slope = self._slope + contract(slope, z)
        for at, bend in terms.second.items():
            self._bend[at] = self._bend.get(at, 0.0) - contract(part.share * bend, pairs)
        self._count = self._count + part.share.sum(-1)

    def solve(self) -> None:
        """The direction."""
        B, K, a, p = self._start.shape
        curvature = self._start.new_zeros(B, K, a, p, a, p)
        for (i, j), bend in self._bend.items():
            curvature[:, :, i, :, j, :] = curvature[:, :, j, :, i, :] = unpack(bend, p)
        flat = curvature.reshape(B, K, a * p, a * p)
        direction, self.singular = solve(flat, self._slope.flatten(-2), ascent=True)
        self._direction = self._scaling.raw(direction.reshape(B, K, a, p))

    @property
    def beta(self) -> Tensor:
        """The coefficients at the present length of the step."""
        return self._start + self._halving.length[..., None, None] * self._direction

    def judge(self, part: Part) -> None:
        """Gains in the weighted log-likelihoods."""
        old = self._law.log_prob(part.means, self.scales, part.rows.Y)
        new = self._law.log_prob(combine(self.beta, part.phi), self.scales, part.rows.Y)
        self._halving.add((part.share * (new - old)).sum(-1), (part.share * old.abs()).sum(-1))

    def settle(self) -> None:
        """Halve the steps that lose."""
        self.done = self._halving.settle()
        self.degenerate = (self._count <= torch.finfo(self._count.dtype).tiny).any(-1)
