"""Regressions on the intervals of a line: where the one active expert of every input changes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._solve import products, solve, unpack
from .data import Rows
from .objective import Objective
from .scaling import Scaling


class Segments:
    r"""Profile log-likelihoods of segments of the sorted rows of one data set, from cumulative sums.

    A segment's expert is the weighted regression of its rows; its variance is that of an M-step.

    Args:
        objective: What is maximised: linear experts with normal outcomes of one input.
        rows: All rows of one data set, ``1 x d x n``.
        scaling: Of that data set.
    """

    def __init__(self, objective: Objective, rows: Rows, scaling: Scaling):
        model = objective.model
        self._variance = model.variance
        self._extra, self._pseudo = objective.penalty.counts if isinstance(model.variance, str) else (0.0, 0.0)
        self._floor = scaling.floor[0]
        order = rows.X[0, 0].argsort(stable=True)
        self.x = rows.X[0, 0, order]
        w = torch.ones_like(self.x) if rows.weights is None else rows.weights[0, order]
        z = scaling.standardised(model.expert.design(rows.X))[:, :, order]
        self._size = z.shape[-2]
        # Residuals of one regression of all rows: their sums of squares lose no digits to the level of Y.
        gram = unpack((products(z) * w).sum(-1), self._size)
        Y = rows.Y[:, :, order]
        beta, _ = solve(gram.unsqueeze(1).expand(-1, Y.shape[1], -1, -1), (Y * w) @ z.mT)
        residual = (Y - beta @ z)[0]
        z = z[0]
        self._gram = _cumulative(w * products(z.unsqueeze(0))[0])
        self._moment = _cumulative(w * residual.unsqueeze(-2) * z)
        self._square = _cumulative(w * residual.square())
        self.count = _cumulative(w)
        self._rows = _cumulative((w > 0).to(w))

    @property
    def cuts(self) -> Tensor:
        """Numbers of rows that may lie below a boundary: it lies between different inputs."""
        return (self.x[1:] > self.x[:-1]).nonzero().squeeze(-1) + 1

    def residuals(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Residual sums of squares ``c x m`` and weights ``c`` of rows low to high; infinite where rows are too few."""
        gram = unpack((self._gram[:, high] - self._gram[:, low]).T, self._size)
        moment = (self._moment[..., high] - self._moment[..., low]).movedim(-1, 0)
        square = (self._square[:, high] - self._square[:, low]).T
        beta, _ = solve(gram.unsqueeze(1).expand(*moment.shape, self._size), moment)
        left = (square - (beta * moment).sum(-1)).clamp_min(0.0)
        few = self._rows[high] - self._rows[low] <= self._size
        return torch.where(few.unsqueeze(-1), torch.inf, left), self.count[high] - self.count[low]

    def value(self, square: Tensor, count: Tensor) -> Tensor:
        """Profile log-likelihood and penalty ``c`` of partitions with residuals ``c x s x m`` and weights ``c x s``."""
        if self._variance == "shared":
            square, count = square.sum(-2, keepdim=True), count.sum(-1, keepdim=True)
        count = count.unsqueeze(-1)
        if isinstance(self._variance, str):
            nu = torch.maximum((square + self._extra) / (count + self._pseudo), self._floor)
        else:
            nu = torch.full_like(square, self._variance)
        nu = torch.where(square.isfinite(), nu, 1.0)
        out = -0.5 * (count * math.log(2 * math.pi) + (count + self._pseudo) * nu.log() + (square + self._extra) / nu)
        return out.sum((-1, -2))

    def partition(self, inner: list[int]) -> tuple[Tensor, Tensor]:
        """Residuals ``s x m`` and weights ``s`` of the segments between boundaries."""
        ends = torch.tensor([0, *inner, len(self.x)])
        return self.residuals(ends[:-1], ends[1:])

    def best(self, inner: list[int]) -> tuple[list[int], float]:
        """Move one boundary at a time to where the likelihood is largest, until none moves; one boundary: exact."""
        cuts, value = self.cuts, -math.inf
        while True:
            before = list(inner)
            for j in range(len(inner)):
                low = 0 if j == 0 else inner[j - 1]
                high = len(self.x) if j == len(inner) - 1 else inner[j + 1]
                at = cuts[(cuts > low) & (cuts < high)]
                if len(at) == 0:
                    continue
                square, count = (x.repeat(len(at), *(1,) * x.ndim) for x in self.partition(inner))
                square[:, j], count[:, j] = self.residuals(torch.full_like(at, low), at)
                square[:, j + 1], count[:, j + 1] = self.residuals(at, torch.full_like(at, high))
                values = self.value(square, count)
                top = int(values.argmax())
                if values[top] > value:
                    inner[j], value = int(at[top]), float(values[top])
            if inner == before:
                return inner, value

    def thresholds(self, inner: list[int]) -> Tensor:
        """Inputs halfway between the rows on the two sides of every boundary."""
        at = torch.tensor(inner)
        return 0.5 * (self.x[at - 1] + self.x[at])


def _cumulative(x: Tensor) -> Tensor:
    """Sums of the first 0, 1, ..., n columns."""
    return torch.cat([torch.zeros_like(x[..., :1]), x.cumsum(-1)], -1)


def gate_of(thresholds: Tensor, order: Tensor) -> Tensor:
    """Weights and biases ``K x 2`` of linear scores of which that of expert ``order[j]`` is largest in interval j."""
    weight = torch.arange(len(order)).to(thresholds)
    bias = torch.cat([thresholds.new_zeros(1), -thresholds.cumsum(0)])
    gamma = torch.empty_like(torch.stack([weight, bias], -1))
    gamma[order] = torch.stack([weight, bias], -1)
    return gamma - gamma[-1:]
