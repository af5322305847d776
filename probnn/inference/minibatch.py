"""Log densities estimated from rows drawn at random."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .. import random as rnd
from .target import Target

_NUMBERS = 1 << 18  # random numbers drawn at once, at most


class Minibatches:
    r"""A target whose log density and gradient are estimated from b of its n rows.

    Every call draws, for every chain, b rows uniformly *with replacement*, which stand for all rows:

    .. math:: \log p(\theta) + \log p(\psi) + \frac{n}{bT} \sum_{i \in B} \log p(y_i \mid f_\theta(x_i), \psi).

    The estimates are unbiased and independent from call to call, so their variance is all there is to know about
    their noise; passes over a permuted data set would have noise that cancels over a pass, by an amount that depends
    on its length. Chains have rows of their own: rows in common would push chains of one mode alike, draw them
    together, and hide that from R-hat. With b >= n all rows are taken, once each.

    Args:
        target: The target of all rows.
        size: Rows b of a batch.
        generator: Source of randomness.
    """

    def __init__(self, target: Target, size: int, generator: torch.Generator):
        self.target, self.size, self.generator = target, size, generator
        self.num_rows = target.X.shape[-2]
        self.gradients = 0  # counted per chain
        self._drawn: list[Tensor] = []

    @property
    def exact(self) -> bool:
        """Whether a batch is all rows."""
        return self.size >= self.num_rows

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates of the log density of z ``R x C x D`` and of its gradient."""
        self.gradients += z.shape[:-1].numel()
        return (self.target if self.exact else self.batch(self._rows(z.shape[:-1]))).value_and_grad(z)

    def batch(self, rows: Tensor) -> Target:
        """The target of the given rows, ``R x C x b`` indices, standing for all."""
        target, noise = self.target, self.target.noise_variance
        return replace(
            target,
            X=_take(target.X, rows),
            Y=_take(target.Y, rows),
            noise_variance=None if noise is None else _take(noise, rows),
            temperature=target.temperature * rows.shape[-1] / self.num_rows,
        )

    def _rows(self, shape: torch.Size) -> Tensor:
        # By blocks: a call of the generator costs as much as the whole of a small network's layer.
        if not self._drawn or self._drawn[-1].shape[:-1] != shape:
            block = max(1, _NUMBERS // (shape.numel() * self.size))
            rows = rnd.integers(self.num_rows, (block, *shape, self.size), generator=self.generator)
            self._drawn = list(rows.to(self.target.X.device).unbind(0))
        return self._drawn.pop()


def _take(data: Tensor, rows: Tensor) -> Tensor:
    """Rows ``R x C x b`` of data ``n x m`` or ``R x 1 x n x m``: ``R x C x b x m``."""
    if data.ndim > 2:
        first = torch.arange(data.shape[0], device=rows.device)[:, None, None] * data.shape[-2]
        rows = rows + first
    return data.flatten(0, -2).index_select(0, rows.flatten()).view(*rows.shape, data.shape[-1])
