"""Rows of data, in memory or streamed from disk, in pieces that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Bytes that the largest temporary of a pass over the data may take.
PIECE_BYTES = 48 * 2**20


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of every data set of a batch, rows last.

    Args:
        X: Inputs ``B|1 x d x n``.
        Y: Outcomes ``B|1 x m x n``.
        weights: Weights of the observations, ``B|1 x n``; None: all one.
    """

    X: Tensor
    Y: Tensor
    weights: Tensor | None = None

    def weighted_sum(self, x: Tensor) -> Tensor:
        """Sum of ``B x ... x n`` over rows, with their weights."""
        if self.weights is None:
            return x.sum(-1)
        shape = (self.weights.shape[0], *(1,) * (x.ndim - 2), self.weights.shape[-1])
        return (x * self.weights.reshape(shape)).sum(-1)


@dataclass(frozen=True, eq=False)
class Data:
    """Data sets of a batch: tensors ``R|1 x d x n``, or arrays ``n x d`` that are read a piece at a time.

    Args:
        X: Inputs.
        Y: Outcomes ``R|1 x m x n``, or an array ``n x m``.
        weights: ``R|1 x n``, or an array ``n``; None: all one.
        streamed: X and Y are arrays on disk.
    """

    X: Any
    Y: Any
    weights: Any = None
    streamed: bool = False

    @property
    def num_rows(self) -> int:
        """Number n of rows of a data set."""
        return self.X.shape[0] if self.streamed else self.X.shape[-1]

    @property
    def num_replicates(self) -> int:
        """Number R of data sets; 1 where all of a batch share one."""
        if self.streamed:
            return 1
        return max(len(x) for x in (self.X, self.Y, self.weights) if x is not None)

    @property
    def total_weight(self) -> Tensor:
        """Sum of the weights of every data set, ``R|1``: its number of observations."""
        if self.weights is None:
            return torch.full((1,), float(self.num_rows), dtype=torch.float64)
        weights = torch.as_tensor(self.weights)
        return weights.sum(-1).reshape(-1)

    def take(self, which: Tensor | None) -> Data:
        """The data sets of a batch, by index ``B``; shared ones stay shared."""
        if which is None or self.streamed:
            return self
        X, Y, weights = (None if x is None else x if len(x) == 1 else x[which] for x in (self.X, self.Y, self.weights))
        return Data(X, Y, weights)

    def pieces(self, bytes_a_row: int) -> Iterator[Rows]:
        """All rows, in pieces of a limited size.

        Args:
            bytes_a_row: What a row takes in the largest temporary of the caller, the batch included.
        """
        n, step = self.num_rows, max(256, PIECE_BYTES // max(bytes_a_row, 1))
        if not self.streamed and step >= n:
            yield Rows(self.X, self.Y, self.weights)
            return
        for low in range(0, n, step):
            at = slice(low, min(low + step, n))
            if self.streamed:
                weights = None if self.weights is None else _read(self.weights, at).unsqueeze(0)
                yield Rows(_read(self.X, at).T.unsqueeze(0), _read(self.Y, at).T.unsqueeze(0), weights)
            else:
                yield Rows(self.X[..., at], self.Y[..., at], None if self.weights is None else self.weights[..., at])

    def moments(self, pick: Callable[[Rows], Tensor], bytes_a_row: int) -> Tensor:
        """Weighted means and standard deviations of features ``R|1 x f x n`` of the rows, in two passes.

        Args:
            pick: Makes the features of some rows.
            bytes_a_row: As in :meth:`pieces`.

        Returns:
            ``R|1 x 2 x f``; the standard deviation of a constant is 1.
        """
        total = self.total_weight.unsqueeze(-1)
        mean = torch.zeros(())
        for rows in self.pieces(bytes_a_row):
            mean = mean + rows.weighted_sum(pick(rows))
        mean = mean / total
        square = torch.zeros(())
        for rows in self.pieces(bytes_a_row):
            square = square + rows.weighted_sum((pick(rows) - mean.unsqueeze(-1)).square())
        spread = (square / total).sqrt()
        # The spread of a constant column is the rounding of its mean.
        varies = spread > 1e-14 * mean.abs()
        return torch.stack([mean, torch.where(varies, spread, 1.0)], 1)

    def sample(self, count: int, generator: torch.Generator) -> Data:
        """At most `count` rows of every data set, the same ones of all, drawn without replacement; in memory."""
        n = self.num_rows
        index = torch.randperm(n, generator=generator)[: min(count, n)].sort().values
        if n <= count and not self.streamed:
            return self
        if not self.streamed:
            weights = None if self.weights is None else self.weights[..., index]
            return Data(self.X[..., index], self.Y[..., index], weights)
        at = index.numpy()
        weights = None if self.weights is None else _read(self.weights, at).unsqueeze(0)
        return Data(_read(self.X, at).T.unsqueeze(0), _read(self.Y, at).T.unsqueeze(0), weights)


def _read(array: Any, at: Any) -> Tensor:
    """Rows of an array as a double tensor of their own memory."""
    import numpy

    return torch.from_numpy(numpy.array(array[at], dtype=numpy.float64))
