"""Likelihoods of outcomes that are counted or classified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import validation
from ..errors import DomainError
from .base import Likelihood


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    r"""Outcomes 0 or 1 with :math:`P(y = 1) = 1/(1 + e^{-f(x)})`.

    `predict` speaks about the probability.

    Example:
        >>> import torch
        >>> Bernoulli().moments(torch.zeros(1, 1), torch.zeros(1, 0))[0].item()
        0.5
    """

    def distribution(self, f: Tensor, psi: Tensor) -> Any:
        """Independent Bernoulli outcomes with logits f."""
        return self._pyro.Bernoulli(logits=f, validate_args=False).to_event(1)

    def _log_prob(self, Y: Tensor, f: Tensor, psi: Tensor) -> Tensor:
        """:math:`yf - \\log(1 + e^f)`, one a row."""
        return (Y * f - torch.nn.functional.softplus(f)).sum(-1)

    def moments(self, f: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        """The probability p of one, and p(1 - p)."""
        p = torch.sigmoid(f)
        return p, p * torch.sigmoid(-f)

    def check_outcomes(self, where: str, Y: Tensor) -> None:
        """Y must be 0 or 1."""
        _refuse_values(where, Y, (Y != 0) & (Y != 1), "0 or 1 for a Bernoulli likelihood")


@dataclass(frozen=True)
class Categorical(Likelihood):
    r"""One outcome in 0, ..., K - 1 with :math:`P(y = k) = e^{f_k(x)} / \sum_j e^{f_j(x)}`.

    `predict` gives the K probabilities, one a column.

    Args:
        num_classes: Number of classes K >= 2; the function needs K channels.

    Example:
        >>> import torch
        >>> Categorical(4).moments(torch.zeros(1, 4), torch.zeros(1, 0))[0].tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """

    num_classes: int

    def __post_init__(self) -> None:
        validation.positive_int("likelihoods.Categorical", "num_classes", self.num_classes, 2)

    def channels(self, num_outcomes: int) -> int:
        """K, for the one outcome."""
        if num_outcomes != 1:
            raise DomainError(f"likelihoods.Categorical: describes one outcome, got {num_outcomes}")
        return self.num_classes

    def outcomes(self, channels: int) -> int:
        """One."""
        if channels != self.num_classes:
            raise DomainError(
                f"likelihoods.Categorical: needs {self.num_classes} channels, one a class, got {channels}"
            )
        return 1

    def predictions(self, channels: int) -> int:
        """K probabilities."""
        return self.num_classes

    def distribution(self, f: Tensor, psi: Tensor) -> Any:
        """The class as an event of one column."""
        return self._pyro.Categorical(logits=f.unsqueeze(-2), validate_args=False).to_event(1)

    def _log_prob(self, Y: Tensor, f: Tensor, psi: Tensor) -> Tensor:
        """Log-softmax at the class, one a row."""
        logits = f.log_softmax(-1)
        classes = Y.long().expand(*torch.broadcast_shapes(Y.shape[:-1], f.shape[:-1]), 1)
        return logits.expand(*classes.shape[:-1], -1).gather(-1, classes).squeeze(-1)

    def moments(self, f: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        """The class probabilities p, and p(1 - p)."""
        p = f.softmax(-1)
        # 1 - p of the likeliest class cancels; it is the sum of the others. Elsewhere p is at most a half.
        top = torch.zeros_like(p, dtype=torch.bool).scatter_(-1, p.argmax(-1, keepdim=True), True)
        others = p.masked_fill(top, 0.0).sum(-1, keepdim=True)
        return p, p * torch.where(top, others, 1 - p)

    def check_outcomes(self, where: str, Y: Tensor) -> None:
        """Y must be whole numbers from 0 to K - 1."""
        bad = (Y != Y.round()) | (Y < 0) | (Y >= self.num_classes)
        _refuse_values(where, Y, bad, f"a class from 0 to {self.num_classes - 1}")


@dataclass(frozen=True)
class Poisson(Likelihood):
    r"""Counts with rate :math:`e^{f(x)}`.

    Example:
        >>> import torch
        >>> Poisson().moments(torch.zeros(1, 1), torch.zeros(1, 0))[0].item()
        1.0
    """

    def distribution(self, f: Tensor, psi: Tensor) -> Any:
        """Independent Poisson outcomes."""
        return self._pyro.Poisson(f.exp(), validate_args=False).to_event(1)

    def _log_prob(self, Y: Tensor, f: Tensor, psi: Tensor) -> Tensor:
        """:math:`yf - e^f - \\log y!`, one a row."""
        return (Y * f - f.exp() - torch.lgamma(Y + 1)).sum(-1)

    def check_outcomes(self, where: str, Y: Tensor) -> None:
        """Y must be whole numbers >= 0."""
        _refuse_values(where, Y, (Y != Y.round()) | (Y < 0), "a count 0, 1, 2, ... for a Poisson likelihood")


def _refuse_values(where: str, Y: Tensor, bad: Tensor, expected: str) -> None:
    if bad.any():
        row = ", ".join(map(str, bad.any(-1).nonzero()[0].tolist()))
        raise DomainError(f"{where}: every entry of Y must be {expected}, got {Y[bad][0].item():g} in row {row}")
