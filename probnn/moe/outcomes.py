"""Laws of an expert's outcomes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import validation
from ..equality import ByValue
from ..errors import DomainError

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class OutcomeTerms:
    """Log densities of outcomes, with their derivatives in an expert's channels (means first, then log scales).

    Args:
        log_prob: ``B x K x n``.
        first: One ``B x K x n`` a channel.
        second: Those that are not zero, of channels (i, j) with i <= j.
    """

    log_prob: Tensor
    first: list[Tensor]
    second: dict[tuple[int, int], Tensor]


@dataclass(frozen=True)
class OutcomeLaw(ByValue, ABC):
    """The law of m outcomes given an expert's means and log variances.

    Those are ``... x K x a x n`` and ``... x K x b``, and outcomes ``... x m x n`` here, rows last.
    """

    def num_means(self, m: int) -> int:
        """Number a of channels that depend on the inputs."""
        return m

    def num_scales(self, m: int) -> int:
        """Number b of log variances."""
        return m

    @abstractmethod
    def log_prob(self, means: Tensor, scales: Tensor, Y: Tensor) -> Tensor:
        """Log densities ``... x K x n``."""

    @abstractmethod
    def terms(self, means: Tensor, scales: Tensor, Y: Tensor) -> OutcomeTerms:
        """Log densities and their derivatives."""

    @abstractmethod
    def moments(self, means: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the outcomes of every expert, ``... x K x predictions x n``."""

    @abstractmethod
    def sample(self, means: Tensor, scales: Tensor, generator: torch.Generator | None) -> Tensor:
        """Outcomes ``... x m x n`` for means ``... x a x n`` and log variances ``... x b x n`` of a chosen expert."""

    def check(self, where: str, Y: Tensor) -> None:
        """Raise `DomainError` where Y ``... x n x m`` holds values the law gives no mass."""


@dataclass(frozen=True)
class GaussianOutcome(OutcomeLaw):
    r"""Normal outcomes, :math:`y \mid i, x \sim N(h_i(x), \nu_i)`, independent given the expert where m > 1.

    Example:
        >>> import torch
        >>> law = GaussianOutcome()
        >>> law.log_prob(torch.zeros(2, 1, 1), torch.zeros(2, 1), torch.zeros(1, 1)).flatten()
        tensor([-0.9189, -0.9189])
    """

    def log_prob(self, means: Tensor, scales: Tensor, Y: Tensor) -> Tensor:
        """Normal log densities, summed over outcomes."""
        lv = scales.unsqueeze(-1)
        return -0.5 * ((Y.unsqueeze(-3) - means).square() * (-lv).exp() + lv + _LOG_2PI).sum(-2)

    def terms(self, means: Tensor, scales: Tensor, Y: Tensor) -> OutcomeTerms:
        """Closed form in means and log variances."""
        lv, m = scales.unsqueeze(-1), means.shape[-2]
        precision = (-lv).exp()
        residual = Y.unsqueeze(-3) - means
        z = residual * precision
        square = residual * z
        log_prob = -0.5 * (square + lv + _LOG_2PI).sum(-2)
        first = [z[..., j, :] for j in range(m)] + [0.5 * (square[..., j, :] - 1) for j in range(m)]
        second = {(j, j): -precision[..., j, :] for j in range(m)}
        second |= {(j, m + j): -z[..., j, :] for j in range(m)}
        second |= {(m + j, m + j): -0.5 * square[..., j, :] for j in range(m)}
        return OutcomeTerms(log_prob, first, second)

    def moments(self, means: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """The means, and the variances."""
        return means, scales.exp().unsqueeze(-1).expand_as(means)

    def sample(self, means: Tensor, scales: Tensor, generator: torch.Generator | None) -> Tensor:
        """Normal draws."""
        from .. import random as rnd

        return means + (0.5 * scales).exp() * rnd.normal(means.shape, generator=generator, like=means)


@dataclass(frozen=True)
class StudentTOutcome(OutcomeLaw):
    r"""Heavy-tailed outcomes, :math:`y = h_i(x) + \sqrt{\nu_i}\, t_{df}`: outliers pull experts less.

    Args:
        df: Degrees of freedom; the variance is infinite for df <= 2 and is reported so.

    Raises:
        DomainError: `df` is not positive.

    Example:
        >>> import torch
        >>> StudentTOutcome(df=3.0).moments(torch.zeros(1, 1, 1), torch.zeros(1, 1))[1].item()
        3.0
    """

    df: float = 4.0

    def __post_init__(self) -> None:
        validation.positive("moe.StudentTOutcome", "df", self.df)

    def _constant(self) -> float:
        return math.lgamma((self.df + 1) / 2) - math.lgamma(self.df / 2) - 0.5 * math.log(self.df * math.pi)

    def log_prob(self, means: Tensor, scales: Tensor, Y: Tensor) -> Tensor:
        """Student-t log densities, summed over outcomes."""
        lv = scales.unsqueeze(-1)
        square = (Y.unsqueeze(-3) - means).square() * (-lv).exp()
        return (self._constant() - 0.5 * lv - 0.5 * (self.df + 1) * torch.log1p(square / self.df)).sum(-2)

    def terms(self, means: Tensor, scales: Tensor, Y: Tensor) -> OutcomeTerms:
        r"""Closed form; with :math:`u = (df + 1)/(df + e^2/\nu)` it is that of a normal of variance nu / u."""
        lv, m, df = scales.unsqueeze(-1), means.shape[-2], self.df
        precision = (-lv).exp()
        residual = Y.unsqueeze(-3) - means
        square = residual.square() * precision
        u = (df + 1) / (df + square)
        log_prob = (self._constant() - 0.5 * lv - 0.5 * (df + 1) * torch.log1p(square / df)).sum(-2)
        mean_slope, scale_slope = u * residual * precision, 0.5 * (u * square - 1)
        shrink = df / (df + square)  # of the derivative of u e^2/nu in its argument
        mm = -u * precision * (1 - 2 * square / (df + square))
        ms, ss = -mean_slope * shrink, -0.5 * u * square * shrink
        first = [mean_slope[..., j, :] for j in range(m)] + [scale_slope[..., j, :] for j in range(m)]
        second = {(j, j): mm[..., j, :] for j in range(m)}
        second |= {(j, m + j): ms[..., j, :] for j in range(m)}
        second |= {(m + j, m + j): ss[..., j, :] for j in range(m)}
        return OutcomeTerms(log_prob, first, second)

    def weights(self, means: Tensor, scales: Tensor, Y: Tensor) -> Tensor:
        """Expected precisions u of the latent scale mixture, ``... x K x m x n``."""
        square = (Y.unsqueeze(-3) - means).square() * (-scales.unsqueeze(-1)).exp()
        return (self.df + 1) / (self.df + square)

    def moments(self, means: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """The means, and nu df / (df - 2)."""
        factor = self.df / (self.df - 2) if self.df > 2 else math.inf
        return means, (factor * scales.exp()).unsqueeze(-1).expand_as(means)

    def sample(self, means: Tensor, scales: Tensor, generator: torch.Generator | None) -> Tensor:
        """Student-t draws."""
        from .. import random as rnd

        with rnd.forked(generator):
            t = torch.distributions.StudentT(means.new_tensor(self.df)).sample(means.shape)
        return means + (0.5 * scales).exp() * t


@dataclass(frozen=True)
class MultinomialLogit(OutcomeLaw):
    r"""A class as outcome, :math:`P(y = c \mid i, x) \propto e^{h_{ic}(x)}`, where the last class has h = 0.

    Nguyen, Akbarian, Nguyen & Ho (2023, arXiv 2310.14188). Y is one column of class numbers 0, ..., C - 1.

    Args:
        num_classes: The number C of classes.

    Raises:
        DomainError: There are fewer than two.

    Example:
        >>> import torch
        >>> law = MultinomialLogit(3)
        >>> law.log_prob(torch.zeros(1, 2, 1), torch.zeros(1, 0), torch.tensor([[2.0]])).exp()
        tensor([[0.3333]])
    """

    num_classes: int = 2

    def __post_init__(self) -> None:
        validation.positive_int("moe.MultinomialLogit", "num_classes", self.num_classes, 2)

    def num_means(self, m: int) -> int:
        """One logit a class but the last."""
        return self.num_classes - 1

    def num_scales(self, m: int) -> int:
        """None."""
        return 0

    def _log_probs(self, means: Tensor) -> Tensor:
        return torch.cat([means, torch.zeros_like(means[..., :1, :])], -2).log_softmax(-2)

    def log_prob(self, means: Tensor, scales: Tensor, Y: Tensor) -> Tensor:
        """Log-probabilities of the classes seen."""
        log_probs = self._log_probs(means)
        seen = Y.long().unsqueeze(-3).expand(*log_probs.shape[:-2], 1, log_probs.shape[-1])
        return log_probs.gather(-2, seen).squeeze(-2)

    def terms(self, means: Tensor, scales: Tensor, Y: Tensor) -> OutcomeTerms:
        """Closed form of the multinomial."""
        log_prob = self.log_prob(means, scales, Y)
        p = self._log_probs(means)[..., :-1, :].exp()
        seen, C = Y.long().squeeze(-2).unsqueeze(-2), self.num_classes - 1
        first = [(seen == c).to(p) - p[..., c, :] for c in range(C)]
        second = {
            (a, b): p[..., a, :] * p[..., b, :] - (p[..., a, :] if a == b else 0.0)
            for a in range(C)
            for b in range(a, C)
        }
        return OutcomeTerms(log_prob, first, second)

    def moments(self, means: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of the classes, and p (1 - p)."""
        p = self._log_probs(means).exp()
        return p, p * (1 - p)

    def sample(self, means: Tensor, scales: Tensor, generator: torch.Generator | None) -> Tensor:
        """Class numbers."""
        from .. import random as rnd

        below = self._log_probs(means).exp().cumsum(-2)
        u = rnd.uniform((*means.shape[:-2], 1, means.shape[-1]), generator=generator, like=means)
        return (u > below).sum(-2, keepdim=True).clamp_max(self.num_classes - 1).to(means)

    def check(self, where: str, Y: Tensor) -> None:
        """Y is one column of whole numbers below the number of classes."""
        if Y.shape[-1] != 1 or (Y != Y.round()).any() or (Y < 0).any() or (Y >= self.num_classes).any():
            raise DomainError(
                f"{where}: Y must be one column of class numbers 0 to {self.num_classes - 1}, got shape "
                f"{tuple(Y.shape)} with values from {Y.min().item():g} to {Y.max().item():g}"
            )
