"""Covariances in the form a Gauss-Newton fit produces: prior scales, and directions the data inform."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Spread:
    r"""The covariance of k coordinates whose precision is :math:`D^{-1}(I + U E U^\top)D^{-1}`.

    A root of it is :math:`S = D(I - U H U^\top)` with :math:`H = I - (I + E)^{-1/2}`. Work is with r
    directions, never with k x k matrices, and a small variance is no difference of large ones: in double
    precision that holds for standard deviations of the prior up to about 1e10 times those of the noise.

    Args:
        scale: The diagonal of D, of length k.
        directions: U, ``k x r`` with orthonormal columns.
        gains: The diagonal of E, of length r, not negative.
    """

    scale: Tensor
    directions: Tensor
    gains: Tensor

    @classmethod
    def diagonal(cls, scale: Tensor) -> Spread:
        """Independent coordinates with these standard deviations."""
        return cls(scale, scale.new_zeros(scale.shape[0], 0), scale.new_zeros(0))

    @classmethod
    def from_rows(cls, scale: Tensor, rows: Tensor) -> Spread:
        r"""The spread with precision :math:`D^{-1}(I + R^\top R)D^{-1}`, R = `rows` being ``N x k``."""
        if rows.shape[0] <= rows.shape[1]:
            q, r = torch.linalg.qr(rows.mT)  # twice as fast as the decomposition of the long matrix itself
            basis, singular, _ = torch.linalg.svd(r)
            return cls(scale, q @ basis, singular.square())
        gains, directions = torch.linalg.eigh(rows.mT @ rows)
        # A Gram matrix has no negative eigenvalue: what is below zero is rounding.
        return cls(scale, directions.contiguous(), gains.clamp_min(0.0))

    def rows(self) -> Tensor:
        """R of :meth:`from_rows`, ``r x k``."""
        return self.gains.sqrt().unsqueeze(-1) * self.directions.mT

    def lift(self, u: Tensor) -> Tensor:
        """S u for every row u ``... x k``: standard normal rows become draws."""
        return self._shrink(u) * self.scale

    def lower(self, x: Tensor) -> Tensor:
        """S' x for every row x ``... x k``: gradients and Jacobians in the coordinates of `lift`."""
        return self._shrink(x * self.scale)

    def _shrink(self, x: Tensor) -> Tensor:
        if not self.gains.numel():
            return x
        # 1 - 1/sqrt(1 + e) = e / (1 + e + sqrt(1 + e)), which is exact for small e too.
        factor = self.gains / (1 + self.gains + (1 + self.gains).sqrt())
        return x - (x @ self.directions * factor) @ self.directions.mT

    def log_det(self) -> Tensor:
        """Log determinant of the covariance."""
        return 2 * self.scale.log().sum() - self.gains.log1p().sum()

    def square(self, x: Tensor) -> Tensor:
        """Squared Mahalanobis length of every row x ``... x k``."""
        z = x / self.scale
        return z.square().sum(-1) + ((z @ self.directions).square() * self.gains).sum(-1)

    def dense(self) -> Tensor:
        """The covariance, ``k x k``."""
        root = self.lift(torch.eye(self.scale.shape[0], dtype=self.scale.dtype, device=self.scale.device))
        return root.mT @ root
