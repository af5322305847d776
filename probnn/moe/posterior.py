"""The law of new outcomes of a mixture of experts, as a BoTorch posterior."""

from __future__ import annotations

import math

import torch
from botorch.posteriors import Posterior
from botorch.sampling.base import MCSampler
from botorch.sampling.get_sampler import GetSampler
from botorch.sampling.normal import IIDNormalSampler, SobolQMCNormalSampler
from torch import Tensor

from .. import validation
from ..errors import DomainError, NonFiniteError, ShapeError
from ..predictive.mixture import mixture_quantile
from ..random import Source, normal
from .transport import mixture_transport


class MixturePosterior(Posterior):
    r"""Outcomes that have a mixture of normals at every point, independent over points.

    .. math:: p(y \mid x_j) = \sum_{i \le K} \pi_{ji} \prod_{l \le m} N(y_l \mid \mu_{jil}, \sigma_{jil}^2)

    The m outcomes of a point share the expert, and are dependent through it.

    Samples are a smooth function of standard normals and of the parameters: outcome l of a point is the quantile, at
    :math:`\Phi(\varepsilon_l)`, of its law given the outcomes before it (Rosenblatt 1952), itself a mixture, with the
    probabilities of the experts given those outcomes. Their gradients are those of the implicit function (Figurnov,
    Mohamed & Mnih 2018, arXiv 1805.08498), so the gradient of an average of samples is an unbiased one of the
    expectation, probabilities included: choosing an expert at random and adding its noise would lose those. With the
    base samples of a Sobol sequence samples are quasi-Monte Carlo, and acquisition values deterministic.

    Args:
        log_weights: Log-probabilities of the experts up to a constant, ``batch x q x K``; ``-inf`` is zero.
        means: Means, ``batch x q x K x m``.
        stds: Positive standard deviations, like `means`.

    Raises:
        ShapeError: The shapes do not fit.
        NonFiniteError: A number is not finite.
        DomainError: A standard deviation is not positive, all weights of a point are zero, or dtypes differ.

    Example:
        >>> means = torch.tensor([-1.0, 1.0]).reshape(1, 2, 1)  # q = 1 point, K = 2 experts, m = 1 outcome
        >>> posterior = MixturePosterior(torch.zeros(1, 2), means, torch.full((1, 2, 1), 0.5))
        >>> posterior.mean, posterior.variance
        (tensor([[0.]]), tensor([[1.2500]]))
    """

    def __init__(self, log_weights: Tensor, means: Tensor, stds: Tensor) -> None:
        where = "moe.MixturePosterior"
        validation.tensor(where, "means", means)
        validation.tensor(where, "stds", stds, like=means)
        if means.ndim < 3 or means.shape[-2] == 0 or stds.shape != means.shape:
            raise ShapeError(
                f"{where}: means and stds must both be batch x q x K x m with K >= 1, got {tuple(means.shape)} and "
                f"{tuple(stds.shape)}"
            )
        validation.positive(where, "stds", stds)
        if not torch.is_tensor(log_weights) or log_weights.shape != means.shape[:-1]:
            got = tuple(log_weights.shape) if torch.is_tensor(log_weights) else f"a {type(log_weights).__name__}"
            raise ShapeError(f"{where}: log_weights must have shape {tuple(means.shape[:-1])}, got {got}")
        if (log_weights.dtype, log_weights.device) != (means.dtype, means.device):
            raise DomainError(f"{where}: log_weights must have the dtype and device of means, got {log_weights.dtype}")
        if log_weights.isnan().any() or log_weights.isposinf().any():
            raise NonFiniteError(f"{where}: log_weights must not hold NaN or +inf")
        if log_weights.isneginf().all(-1).any():
            raise DomainError(f"{where}: every point needs an expert of positive weight, got all log_weights -inf")
        self.log_weights, self.means, self.stds = log_weights.log_softmax(-1), means, stds

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the means."""
        return self.means.dtype

    @property
    def device(self) -> torch.device:
        """The device of the means."""
        return self.means.device

    @property
    def batch_shape(self) -> torch.Size:
        """The t-batch shape."""
        return self.means.shape[:-3]

    @property
    def event_shape(self) -> torch.Size:
        """``q x m``."""
        return torch.Size([self.means.shape[-3], self.means.shape[-1]])

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:
        return torch.Size(sample_shape) + self.batch_shape + self.event_shape

    @property
    def base_sample_shape(self) -> torch.Size:
        """A standard normal for every outcome of every point, ``batch x q x m``."""
        return self._extended_shape()

    @property
    def batch_range(self) -> tuple[int, int]:
        """The dimensions of `base_sample_shape` over which samplers share their base samples."""
        return (0, -2)

    @property
    def mean(self) -> Tensor:
        r""":math:`\bar\mu = \sum_i \pi_i \mu_i`, ``batch x q x m``."""
        return (self.log_weights.exp().unsqueeze(-1) * self.means).sum(-2)

    @property
    def variance(self) -> Tensor:
        r""":math:`\sum_i \pi_i (\sigma_i^2 + (\mu_i - \bar\mu)^2)`, ``batch x q x m``."""
        spread = (self.means - self.mean.unsqueeze(-2)).square()
        return (self.log_weights.exp().unsqueeze(-1) * (self.stds.square() + spread)).sum(-2)

    def quantile(self, value: Tensor | float) -> Tensor:
        """Quantiles of each outcome alone, ``value.shape x batch x q x m``; differentiable in the parameters.

        Args:
            value: Probabilities strictly between 0 and 1.

        Returns:
            The quantiles.

        Raises:
            DomainError: A probability is not between 0 and 1.
        """
        p = torch.as_tensor(value, dtype=self.dtype, device=self.device)
        if not ((p > 0) & (p < 1)).all():
            raise DomainError(f"moe.MixturePosterior.quantile: value must lie strictly between 0 and 1, got {value!r}")
        p = p.reshape(p.shape + (1,) * self.means.ndim)
        weights = self.log_weights.exp().mT.unsqueeze(-1)
        return mixture_quantile(p, weights, self.means.movedim(-2, -3), self.stds.movedim(-2, -3)).squeeze(-3)

    def density(self, value: Tensor) -> Tensor:
        """Density of each outcome alone at `value`, which broadcasts with ``batch x q x m``; of that shape."""
        return (self.log_weights.unsqueeze(-1) + self._log_normals(value)).logsumexp(-2).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the m outcomes of a point together.

        Args:
            value: Outcomes that broadcast with ``batch x q x m``.

        Returns:
            One a point, ``batch x q``.
        """
        return (self.log_weights + self._log_normals(value).sum(-1)).logsumexp(-1)

    def _log_normals(self, value: Tensor) -> Tensor:
        z = (value.unsqueeze(-2) - self.means) / self.stds
        return -0.5 * z.square() - self.stds.log() - 0.5 * math.log(2 * math.pi)

    def rsample(self, sample_shape: torch.Size | None = None, *, generator: Source = None) -> Tensor:
        """Samples ``sample_shape x batch x q x m``, differentiable in the parameters.

        Args:
            sample_shape: Shape of the samples; None means ``(1,)``, as everywhere in BoTorch.
            generator: Source of randomness; None is torch's global stream.

        Returns:
            The samples.

        Raises:
            ShapeError: `sample_shape` is none.
        """
        shape = validation.sample_shape("moe.MixturePosterior.rsample", (1,) if sample_shape is None else sample_shape)
        return self._of_normals(normal(self._extended_shape(shape), generator=generator, like=self.means))

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        """Samples from given standard normals ``sample_shape x batch x q x m``, where batch sizes may be one."""
        if base_samples.shape[: len(sample_shape)] != torch.Size(sample_shape):
            raise ShapeError(
                f"moe.MixturePosterior.rsample_from_base_samples: base_samples must begin with {tuple(sample_shape)}, "
                f"got {tuple(base_samples.shape)}"
            )
        return self._of_normals(base_samples.to(self.means).expand(self._extended_shape(torch.Size(sample_shape))))

    def _of_normals(self, eps: Tensor) -> Tensor:
        return mixture_transport(eps, self.log_weights, self.means, self.stds)


@GetSampler.register(MixturePosterior)
def _get_mixture_sampler(
    posterior: MixturePosterior, sample_shape: torch.Size, *, seed: int | None = None
) -> MCSampler:
    """Quasi-Monte Carlo normals as far as Sobol sequences reach, independent ones beyond."""
    size = posterior.event_shape.numel()
    kind = SobolQMCNormalSampler if size <= torch.quasirandom.SobolEngine.MAXDIM else IIDNormalSampler
    return kind(sample_shape=sample_shape, seed=seed)
