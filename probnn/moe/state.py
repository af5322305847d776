"""Where an optimiser of mixtures of experts stands."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(eq=False)
class State:
    """Where a batch of climbs stands, or ended.

    Args:
        theta: Coordinates, ``B x P``.
        value: Log-likelihood and penalty there, ``B``.
        num_iter: Iterations taken, ``B``.
        converged: The stopping rule was met, ``B``.
        decrement: Newton decrement in nats where it was evaluated, NaN where not, ``B``.
        degenerate: A variance or a covariance is at its floor, or an expert has no rows, ``B``.
    """

    theta: Tensor
    value: Tensor
    num_iter: Tensor
    converged: Tensor
    decrement: Tensor
    degenerate: Tensor

    @staticmethod
    def of(theta: Tensor, value: Tensor) -> State:
        """The state before the first iteration; the tensors are copied."""
        none = torch.zeros(len(theta), dtype=torch.bool, device=theta.device)
        iterations = torch.zeros(len(theta), dtype=torch.long, device=theta.device)
        return State(theta.clone(), value.clone(), iterations, none, torch.full_like(value, torch.nan), none.clone())

    def put(self, index: Tensor, other: State) -> None:
        """Write the entries of another state at `index`."""
        for field in fields(self):
            getattr(self, field.name)[index] = getattr(other, field.name)

    def take(self, index: Tensor) -> State:
        """The entries at `index`, a copy."""
        return State(*(getattr(self, field.name)[index] for field in fields(self)))
