"""The likelihood of mixtures of experts: a mixture of normals whose allocations are summed out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import validation
from ..errors import DomainError, ShapeError
from ..inference.curvature import information
from ..likelihoods import Likelihood

if TYPE_CHECKING:
    from .draws import MixtureDrawsPosterior

_LOG_2PI = math.log(2 * math.pi)
# Points of an expert's grid for one outcome, and how many standard deviations it reaches.
_POINTS, _REACH = 129, 8.0
# Nodes along an axis of the rule of Gauss and Hermite that integrates over m outcomes of an expert; beyond those, the
# number of points of a Sobol sequence.
_HERMITE, _SOBOL = {2: 16, 3: 7, 4: 5}, 512


@dataclass(frozen=True)
class GaussianMixture(Likelihood):
    r"""Outcomes from one of K normal laws, the choice summed out,

    .. math:: p(y \mid f) = \sum_{i \le K} \pi_i(f) \prod_{j \le m} N(y_j \mid h_{ij}, \nu_{ij}),
              \qquad \pi(f) = \operatorname{softmax}(f_1, \dots, f_K).

    The K (1 + 2 m) channels are the K scores of the gate, then the means h, expert by expert, then the log variances
    :math:`\log\nu` likewise. A :class:`MixtureOfExperts` has them; a network with as many outputs makes a mixture
    density network (Bishop 1994) of it. Predictions speak about the regression function
    :math:`\bar h = \sum_i \pi_i h_i`, and with observation noise about the mixture.

    Where the noise is known it is all there is around the regression function: outcomes are normal,
    :math:`N(\bar h_j, v_j)`, with the given variances of rows or the fixed `noise`, and the log variances are without
    effect.

    Args:
        num_experts: The number K.
        noise: Standard deviation of the outcomes around the regression function, a number or a tensor that broadcasts
            over the outcomes; None: outcomes are a mixture.

    Raises:
        DomainError: `num_experts` is no positive integer, or `noise` is not positive.

    Example:
        >>> import torch
        >>> likelihood = GaussianMixture(2)
        >>> f = torch.tensor([[0.0, 0.0, 1.0, -1.0, 0.0, 0.0]])  # two scores, two means, two log variances
        >>> likelihood.channels(1), likelihood.moments(f, torch.zeros(1, 0))
        (6, (tensor([[0.]]), tensor([[2.]])))
    """

    num_experts: int = 3
    noise: float | Tensor | None = None

    def __post_init__(self) -> None:
        where = "moe.GaussianMixture"
        object.__setattr__(self, "num_experts", validation.positive_int(where, "num_experts", self.num_experts))
        if self.noise is not None:
            validation.positive(where, "noise (a standard deviation, or None for a mixture)", self.noise)

    def channels(self, num_outcomes: int) -> int:
        """A score, m means and m log variances for every expert."""
        return self.num_experts * (1 + 2 * num_outcomes)

    def outcomes(self, channels: int) -> int:
        """Number of outcomes m that K (1 + 2 m) channels describe."""
        each, left = divmod(channels, self.num_experts)
        if left or each < 3 or each % 2 == 0:
            raise DomainError(
                f"moe.GaussianMixture: {self.num_experts} experts need {self.num_experts} (1 + 2 m) channels for m "
                f"outcomes, got {channels}"
            )
        return each // 2

    def parts(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores ``... x n x K``, means and log variances ``... x n x K x m`` within channels ``... x n x c``."""
        K, m = self.num_experts, self.outcomes(f.shape[-1])
        scores, means, scales = f.split([K, K * m, K * m], -1)
        means, scales = (x.reshape(*x.shape[:-1], K, m) for x in (means, scales))
        return scores, means, scales

    def known_variance(self, f: Tensor, noise_variance: Tensor | None = None) -> Tensor | None:
        """Variances around the regression function where they are known, else None."""
        if noise_variance is not None or self.noise is None:
            return noise_variance
        return torch.as_tensor(self.noise, dtype=f.dtype, device=f.device).square()

    def predictive(self, f: Tensor, psi: Tensor, log_weights: Tensor | None) -> MixtureDrawsPosterior | None:
        """The K normal laws of every draw, unless noise is known."""
        from .draws import MixtureDrawsPosterior  # which needs BoTorch

        if self.noise is not None:
            return None
        scores, means, scales = self.parts(f)
        return MixtureDrawsPosterior(scores, means, (0.5 * scales).exp(), log_weights)

    def distribution(self, f: Tensor, psi: Tensor) -> Any:
        """Pyro's mixture of the K normal laws, or its normal law."""
        import pyro.distributions as dist

        if self.noise is not None:
            mean, variance = self.moments(f, psi)
            return dist.Normal(mean, variance.sqrt(), validate_args=False).to_event(1)
        scores, means, scales = self.parts(f)
        normals = dist.Normal(means, (0.5 * scales).exp(), validate_args=False).to_event(1)
        which = dist.Categorical(logits=scores, validate_args=False)
        return dist.MixtureSameFamily(which, normals, validate_args=False)

    def _terms(self, Y: Tensor, f: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-probabilities and joint log densities ``... x n x K``; residuals and their squares over variances."""
        scores, means, scales = self.parts(f)
        residual = Y.unsqueeze(-2) - means
        scaled = residual * (-scales).exp()
        square = residual * scaled
        log_pi = scores.log_softmax(-1)
        return log_pi, log_pi - 0.5 * (square + scales + _LOG_2PI).sum(-1), scaled, square

    def score(self, Y: Tensor, f: Tensor) -> Tensor:
        r"""Gradient of the mixture's log density in the channels, ``... x n x c``.

        With responsibilities r it is :math:`r - \pi`, :math:`r (y - h)/\nu` and
        :math:`\tfrac12 r ((y - h)^2/\nu - 1)`.
        """
        log_pi, joint, scaled, square = self._terms(Y, f)
        r = joint.softmax(-1)
        each = r.unsqueeze(-1)
        return torch.cat([r - log_pi.exp(), (each * scaled).flatten(-2), (0.5 * each * (square - 1)).flatten(-2)], -1)

    def regression(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """The mixture's mean ``... x n x m`` and its Jacobian in the channels, ``... x n x m x c``."""
        scores, means, _ = self.parts(f)
        pi = scores.softmax(-1).unsqueeze(-1)
        mean = (pi * means).sum(-2)
        of_scores = (pi * (means - mean.unsqueeze(-2))).mT
        eye = torch.eye(mean.shape[-1], dtype=f.dtype, device=f.device)
        of_means = (pi.unsqueeze(-1) * eye).movedim(-2, -3).flatten(-2)  # K m m -> m K m
        return mean, torch.cat([of_scores, of_means, torch.zeros_like(of_means)], -1)

    def log_prob(self, Y: Tensor, f: Tensor, psi: Tensor, noise_variance: Tensor | None = None) -> Tensor:
        """Closed form, one a row."""
        variance = self.known_variance(f, noise_variance)
        if variance is None:
            return self._terms(Y, f)[1].logsumexp(-1)
        residual = Y - self._mean(f)
        return -0.5 * (residual.square() / variance + variance.log() + _LOG_2PI).sum(-1)

    def log_prob_and_grad(
        self, Y: Tensor, f: Tensor, psi: Tensor, noise_variance: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Closed form of the value and of both gradients."""
        with torch.no_grad():
            value = self.log_prob(Y, f, psi, noise_variance).sum(-1)
            variance = self.known_variance(f, noise_variance)
            if variance is None:
                return value, self.score(Y, f), torch.zeros_like(psi)
            mean, jacobian = self.regression(f)
            slope = ((Y - mean) / variance).unsqueeze(-2)
            return value, (slope @ jacobian).squeeze(-2), torch.zeros_like(psi)

    def _mean(self, f: Tensor) -> Tensor:
        scores, means, _ = self.parts(f)
        return (scores.softmax(-1).unsqueeze(-1) * means).sum(-2)

    def moments(self, f: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\bar h`, and :math:`\sum_i \pi_i (\nu_i + (h_i - \bar h)^2)` or the known variance."""
        mean = self._mean(f)
        variance = self.known_variance(f)
        if variance is not None:
            return mean, variance.expand_as(mean)
        scores, means, scales = self.parts(f)
        spread = (means - mean.unsqueeze(-2)).square()
        return mean, (scores.softmax(-1).unsqueeze(-1) * (scales.exp() + spread)).sum(-2)

    def given_noise(self, noise_variance: Tensor) -> Likelihood:
        """Outcomes are no mixture any more: new rows get the mean known variance around the regression function."""
        if self.noise is not None or noise_variance.shape[-2] == 0:
            return self
        return replace(self, noise=noise_variance.mean(-2).sqrt())

    def check_outcomes(self, where: str, Y: Tensor) -> None:
        """There must be one noise for all outcomes, or one for each."""
        if self.noise is None:
            return
        given, m = torch.atleast_1d(torch.as_tensor(self.noise)).shape, Y.shape[-1]
        if len(given) > 1 or given[0] not in (1, m):
            raise ShapeError(
                f"{where}: moe.GaussianMixture must have one noise for all outcomes or one for each of {m}, got shape "
                f"{tuple(given)}"
            )


@cache
def _nodes(m: int) -> tuple[Tensor, Tensor]:
    """Nodes ``G x m`` and weights ``G`` of a rule for expectations over m independent standard normals."""
    if m not in _HERMITE:
        u = torch.quasirandom.SobolEngine(m).draw(_SOBOL + 1, dtype=torch.float64)[1:]  # the first point is the corner
        return torch.special.ndtri(u), torch.full((_SOBOL,), 1 / _SOBOL, dtype=torch.float64)
    import numpy

    x, w = (torch.from_numpy(part) for part in numpy.polynomial.hermite_e.hermegauss(_HERMITE[m]))
    grids = torch.meshgrid(*[x] * m, indexing="ij"), torch.meshgrid(*[w / w.sum()] * m, indexing="ij")
    return torch.stack(grids[0], -1).reshape(-1, m), torch.stack(grids[1], -1).prod(-1).flatten()


@information.register
def _(likelihood: GaussianMixture, Y: Tensor, f: Tensor, psi: Tensor, noise_variance: Tensor | None = None) -> Tensor:
    r"""Fisher information, :math:`\sum_i \pi_i E_{y \sim N(h_i, \nu_i)}[s(y) s(y)^\top]` with s the score.

    The integrals have no closed form: a fixed rule takes their place, and the sum of outer products stays positive
    semi-definite. For one outcome it is accurate to 0.1 %; for several only where no expert is much narrower than
    another one that overlaps with it. Of known noise the closed form is that of nonlinear regression.
    """
    variance = likelihood.known_variance(f, noise_variance)
    if variance is not None:
        jacobian = likelihood.regression(f)[1]
        return jacobian.mT @ (jacobian / variance.expand(jacobian.shape[:-1]).unsqueeze(-1))
    y, mass = _line(likelihood, f) if likelihood.outcomes(f.shape[-1]) == 1 else _product(likelihood, f)
    rows = mass.sqrt().unsqueeze(-1) * likelihood.score(y, f.unsqueeze(-2))
    return rows.mT @ rows


def _line(likelihood: GaussianMixture, f: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes ``N x G x 1`` and masses ``N x G`` of the trapezoidal rule on all experts' grids in one.

    Every expert brings points at its own scale, so narrow experts within wide ones are resolved.
    """
    scores, means, scales = likelihood.parts(f)
    steps = torch.linspace(-_REACH, _REACH, _POINTS, dtype=f.dtype, device=f.device)
    grid = means + (0.5 * scales).exp() * steps  # N K G, m being 1
    y = grid.flatten(-2).sort(-1).values
    gaps = y.diff(dim=-1)
    width = 0.5 * (torch.nn.functional.pad(gaps, (1, 0)) + torch.nn.functional.pad(gaps, (0, 1)))
    density = likelihood._terms(y.unsqueeze(-1), f.unsqueeze(-2))[1].logsumexp(-1).exp()
    return y.unsqueeze(-1), width * density


def _product(likelihood: GaussianMixture, f: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes ``N x G x m`` and masses ``N x G``: a rule for normals under every expert."""
    scores, means, scales = likelihood.parts(f)
    nodes, weights = (x.to(f) for x in _nodes(means.shape[-1]))
    y = means.unsqueeze(-2) + (0.5 * scales).exp().unsqueeze(-2) * nodes
    mass = scores.softmax(-1).unsqueeze(-1) * weights
    return y.flatten(-3, -2), mass.flatten(-2)
