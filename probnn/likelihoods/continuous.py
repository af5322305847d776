"""Likelihoods of real outcomes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import validation
from ..errors import DomainError, ShapeError
from .base import Likelihood

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class _LogScale(Likelihood):
    r"""Base of likelihoods with one noise scale: fixed, or psi = log scale with a log-normal prior."""

    noise: float | Tensor | None = None
    noise_median: float | Tensor = 0.1
    noise_spread: float | Tensor = 1.0
    levels: int = 1

    def __post_init__(self) -> None:
        where = f"likelihoods.{type(self).__name__}"
        if self.noise is not None:
            validation.positive(where, "noise (a standard deviation, or None to infer it)", self.noise)
        validation.positive(where, "noise_median", self.noise_median)
        validation.positive(where, "noise_spread", self.noise_spread)
        validation.positive_int(where, "levels", self.levels)

    @property
    def num_parameters(self) -> int:
        """`levels` where the noise is inferred, 0 where it is fixed."""
        return self.levels if self.noise is None else 0

    def log_scale(self, psi: Tensor) -> Tensor:
        """Log of the scale, broadcasting against f ``... x n x m``."""
        if self.noise is None:
            return psi
        return torch.as_tensor(self.noise, dtype=psi.dtype, device=psi.device).log()

    def check_outcomes(self, where: str, Y: Tensor) -> None:
        """There must be one noise for all outcomes, or one for each."""
        m = Y.shape[-1]
        inferred = {"levels": m, "noise_median": self.levels, "noise_spread": self.levels}
        for name, own in (inferred if self.noise is None else {"noise": m}).items():
            value = getattr(self, name)
            given = value if name == "levels" else torch.atleast_1d(torch.as_tensor(value)).shape[-1]
            if given not in (1, own):
                raise ShapeError(
                    f"{where}: likelihoods.{type(self).__name__} must have {'1' if own == 1 else f'1 or {own}'} noise "
                    f"level{'s' if own > 1 else ''} ({name}) for {m} outcome{'s' if m > 1 else ''}, got {given}"
                )

    def _centre(self, like: Tensor) -> tuple[Tensor, Tensor]:
        median = torch.as_tensor(self.noise_median, dtype=like.dtype, device=like.device)
        return median.log(), torch.as_tensor(self.noise_spread, dtype=like.dtype, device=like.device)

    def _from_normal_scores(self, z: Tensor) -> Tensor:
        """Log scales from their normal prior."""
        centre, spread = self._centre(z)
        return centre + spread * z

    def log_prior(self, psi: Tensor) -> Tensor:
        """Normal log density of the log scales, summed over R."""
        centre, spread = self._centre(psi)
        return (-0.5 * ((psi - centre) / spread).square() - spread.log() - 0.5 * _LOG_2PI).sum(-1)

    def constrain(self, psi: Tensor) -> dict[str, Tensor]:
        """``{"noise": scale}``, or nothing where it is fixed."""
        return {"noise": psi.exp()} if self.num_parameters else {}

    def expand(self, num_outcomes: int) -> Likelihood:
        """An inferred scale for each outcome."""
        return replace(self, levels=num_outcomes) if self.noise is None else self


@dataclass(frozen=True)
class Gaussian(_LogScale):
    r"""Normal outcomes, :math:`y = f(x) + \sigma\varepsilon`.

    An inferred noise has the prior :math:`\log\sigma \sim N(\log s_0, \tau^2)`. Known variances of
    rows (``noise_variance``) replace :math:`\sigma^2` at those rows.

    Args:
        noise: Standard deviation, a number or a tensor that broadcasts over the outcomes;
            None: inferred along with the function.
        noise_median: Prior median s_0 of an inferred noise, in the units of Y (default 0.1: of
            standardised outcomes).
        noise_spread: Prior standard deviation of the log noise.
        levels: 1: one noise for all outcomes; m: one for each of m outcomes.

    Example:
        >>> import torch
        >>> Gaussian(noise=0.1).log_prob(torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(1, 0)).shape
        torch.Size([3])
    """

    def distribution(self, f: Tensor, psi: Tensor) -> Any:
        """Independent normal outcomes."""
        return self._pyro.Normal(f, self.log_scale(psi).exp().expand_as(f), validate_args=False).to_event(1)

    def _log_variance(self, psi: Tensor, noise_variance: Tensor | None) -> Tensor:
        return 2 * self.log_scale(psi) if noise_variance is None else noise_variance.log()

    def log_prob(self, Y: Tensor, f: Tensor, psi: Tensor, noise_variance: Tensor | None = None) -> Tensor:
        """Closed form: building a distribution costs as much as the rest of a leapfrog step."""
        lv = self._log_variance(psi, noise_variance)
        return -0.5 * ((Y - f).square() * (-lv).exp() + lv + _LOG_2PI).sum(-1)

    def log_prob_and_grad(
        self, Y: Tensor, f: Tensor, psi: Tensor, noise_variance: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Closed form of the value and of both gradients."""
        with torch.no_grad():
            lv = torch.atleast_2d(self._log_variance(psi, noise_variance)).expand(*f.shape[:-2], -1, f.shape[-1])
            residual = Y - f
            df = residual * (-lv).exp()
            scaled = residual * df
            rows = 1 if lv.shape[-2] == f.shape[-2] else f.shape[-2]
            value = -0.5 * (scaled.sum((-1, -2)) + rows * lv.sum((-1, -2)) + f.shape[-2] * f.shape[-1] * _LOG_2PI)
            dpsi = torch.zeros_like(psi)
            if self.noise is None and noise_variance is None:
                dpsi = (scaled - 1).sum(-2, keepdim=True)
                dpsi = dpsi.sum(-1, keepdim=True) if self.levels == 1 else dpsi
        return value, df, dpsi

    def moments(self, f: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        """f itself, and the noise variance."""
        return f, (2 * self.log_scale(psi)).exp().expand_as(f)

    def given_noise(self, noise_variance: Tensor) -> Likelihood:
        """An inferred noise is not inferred any more: new rows get the mean known variance."""
        if self.noise is not None or noise_variance.shape[-2] == 0:
            return self
        return replace(self, noise=noise_variance.mean(-2).sqrt())


@dataclass(frozen=True)
class StudentT(_LogScale):
    r"""Heavy-tailed outcomes, :math:`y = f(x) + s\,t_\nu`: outliers pull the function less.

    Args:
        noise: Scale s (not the standard deviation); None: inferred as in :class:`Gaussian`.
        noise_median: Prior median of an inferred scale.
        noise_spread: Prior standard deviation of its logarithm.
        levels: 1: one scale for all outcomes; m: one for each.
        df: Degrees of freedom nu. The variance is infinite for nu <= 2 and is reported so.

    Example:
        >>> import torch
        >>> StudentT(noise=1.0, df=2.0).moments(torch.zeros(1, 1), torch.zeros(1, 0))[1].item()
        inf
    """

    df: float | Tensor = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.positive("likelihoods.StudentT", "df", self.df)

    def distribution(self, f: Tensor, psi: Tensor) -> Any:
        """Independent Student-t outcomes."""
        df = torch.as_tensor(self.df, dtype=f.dtype, device=f.device)
        scale = self.log_scale(psi).exp().expand_as(f)
        return self._pyro.StudentT(df.expand_as(f), f, scale, validate_args=False).to_event(1)

    def _log_prob(self, Y: Tensor, f: Tensor, psi: Tensor) -> Tensor:
        df, log_scale = torch.as_tensor(self.df, dtype=f.dtype, device=f.device), self.log_scale(psi)
        kernel = 0.5 * (df + 1) * torch.log1p(((Y - f) * (-log_scale).exp()).square() / df)
        constant = torch.lgamma(0.5 * (df + 1)) - torch.lgamma(0.5 * df) - 0.5 * (df * math.pi).log()
        return (constant - log_scale - kernel).sum(-1)

    def from_normal(self, z: Tensor) -> Tensor:
        """Standard Student-t variables with the probabilities of the standard normal z: constants, without gradient."""
        from scipy.special import stdtrit  # torch has no inverse of the distribution function

        # Not torch's ndtr, which loses its digits in the tail.
        tail = 0.5 * torch.special.erfc(z.detach().double().abs() / math.sqrt(2)).cpu().numpy()
        df = torch.as_tensor(self.df, dtype=torch.double).cpu().numpy()
        return -torch.as_tensor(stdtrit(df, tail)).to(z) * z.detach().sign()

    def moments(self, f: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        """f (the median where nu <= 1), and :math:`s^2\\nu/(\\nu-2)`, infinite for nu <= 2."""
        df = torch.as_tensor(self.df, dtype=f.dtype, device=f.device)
        factor = torch.where(df > 2, df / (df - 2).clamp_min(torch.finfo(f.dtype).tiny), torch.full_like(df, torch.inf))
        return f, (factor * (2 * self.log_scale(psi)).exp()).expand_as(f)


@dataclass(frozen=True)
class Heteroscedastic(Likelihood):
    r"""Normal outcomes whose noise is a function too, :math:`y \sim N(f_1(x), s_0^2 e^{2 f_2(x)})`.

    The first m channels are the means, the next m the log standard deviations relative to s_0.

    Args:
        noise_median: The noise s_0 where the second channel is zero.

    Example:
        >>> import torch
        >>> mean, variance = Heteroscedastic(0.5).moments(torch.zeros(3, 2), torch.zeros(1, 0))
        >>> mean.shape, variance[0].item()
        (torch.Size([3, 1]), 0.25)
    """

    noise_median: float | Tensor = 0.1

    def __post_init__(self) -> None:
        validation.positive("likelihoods.Heteroscedastic", "noise_median", self.noise_median)

    def channels(self, num_outcomes: int) -> int:
        """Two an outcome."""
        return 2 * num_outcomes

    def outcomes(self, channels: int) -> int:
        """Half of the channels."""
        if channels % 2:
            raise DomainError(f"Heteroscedastic: needs a multiple of 2 channels, got {channels}")
        return channels // 2

    def _split(self, f: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_sd = f.chunk(2, -1)
        return mean, log_sd + torch.as_tensor(self.noise_median, dtype=f.dtype, device=f.device).log()

    def distribution(self, f: Tensor, psi: Tensor) -> Any:
        """Independent normal outcomes."""
        mean, log_sd = self._split(f)
        return self._pyro.Normal(mean, log_sd.exp(), validate_args=False).to_event(1)

    def _log_prob(self, Y: Tensor, f: Tensor, psi: Tensor) -> Tensor:
        mean, log_sd = self._split(f)
        return (-0.5 * ((Y - mean) * (-log_sd).exp()).square() - log_sd - 0.5 * _LOG_2PI).sum(-1)

    def moments(self, f: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        """The mean channels, and the variance of the noise."""
        mean, log_sd = self._split(f)
        return mean, (2 * log_sd).exp()
