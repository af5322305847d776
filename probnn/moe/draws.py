"""The law of outcomes under weighted draws, each of which gives them a mixture of normals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import DomainError, ShapeError
from ..predictive import DrawsPosterior
from ..predictive.mixture import mixture_quantile, root
from .transport import mixture_transport


class MixtureDrawsPosterior(DrawsPosterior):
    r"""A :class:`DrawsPosterior` of new outcomes that are, given a draw, a mixture of K normals at every point,

    .. math:: p(y \mid x) = \sum_s w_s \sum_{i \le K} \pi_{si}(x) \prod_j N(y_j \mid h_{sij}(x), \sigma_{sij}(x)^2).

    A joint sample has one draw for all points and, given it, outcomes that are independent over points; the m outcomes
    of a point share the component. `values` are the means :math:`\sum_i \pi_{si} h_{si}`, `noise_std` the standard
    deviations around them, so moments are read as those of normal noise; samples, quantiles and densities have the
    modes. Base samples are as many, and mean the same draws, as those of normal noise.

    Args:
        log_probs: Log-probabilities of the components up to a constant, ``batch x S x q x K``.
        means: ``batch x S x q x K x m``.
        stds: Positive standard deviations, like `means`.
        log_weights: As of :class:`DrawsPosterior`.
        salt: As of :class:`DrawsPosterior`.

    Raises:
        ShapeError: The shapes do not fit.
        NonFiniteError, DomainError: As of :class:`DrawsPosterior`.

    Example:
        >>> means = torch.tensor([-1.0, 1.0]).reshape(1, 1, 2, 1)  # S = 1 draw, q = 1 point, K = 2, m = 1
        >>> posterior = MixtureDrawsPosterior(torch.zeros(1, 1, 2), means, torch.full_like(means, 0.1))
        >>> posterior.mean.item(), round(posterior.variance.item(), 4), posterior.quantile(0.25).item()
        (0.0, 1.01, -1.0)
    """

    def __init__(
        self,
        log_probs: Tensor,
        means: Tensor,
        stds: Tensor,
        log_weights: Tensor | None = None,
        *,
        salt: int = 0,
    ) -> None:
        if means.ndim < 4 or stds.shape != means.shape or log_probs.shape != means.shape[:-1]:
            raise ShapeError(
                "MixtureDrawsPosterior: means and stds must be batch x S x q x K x m and log_probs batch x S x q x K, "
                f"got {tuple(means.shape)}, {tuple(stds.shape)} and {tuple(log_probs.shape)}"
            )
        log_probs = log_probs.log_softmax(-1)
        probs = log_probs.exp().unsqueeze(-1)
        mean = (probs * means).sum(-2)
        variance = (probs * (stds.square() + (means - mean.unsqueeze(-2)).square())).sum(-2)
        super().__init__(mean, log_weights, root(variance), salt=salt)
        lead = self.values.shape[:-1]  # log-weights may have a batch of their own
        self.log_probs = log_probs.expand(*lead, -1)
        self.means, self.stds = (x.expand(*lead, *means.shape[-2:]) for x in (means, stds))

    def mapped(self, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> MixtureDrawsPosterior:
        """The law after a linear change of the outcomes.

        Args:
            change: Maps means and variances ``batch x S x q x m`` of normals to those after the change.

        Returns:
            The law, from the same draws.
        """
        K = self.means.shape[-2]
        each = [change(self.means[..., i, :], self.stds[..., i, :].square()) for i in range(K)]
        means, variances = (torch.stack(x, -2) for x in zip(*each, strict=True))
        return MixtureDrawsPosterior(self.log_probs, means, variances.sqrt(), self.log_weights, salt=self.salt)

    def select(self, output_indices: Sequence[int]) -> MixtureDrawsPosterior:
        """The outcomes `output_indices`, in that order, from the same draws."""
        super().select(output_indices)  # refuses what is no index
        indices = list(output_indices)
        return self.mapped(lambda mean, variance: (mean[..., indices], variance[..., indices]))

    def affine(self, mean: Tensor | float, scale: Tensor | float) -> MixtureDrawsPosterior:
        """The law of ``mean + scale * Y``, both broadcasting with ``batch x q x m``."""
        shift, factor = self._beside_draws(mean), self._beside_draws(scale)
        return self.mapped(lambda loc, variance: (shift + factor * loc, factor**2 * variance))

    def scalarize(self, weights: Tensor, offset: Tensor | float = 0.0) -> MixtureDrawsPosterior:
        """The law of the one outcome ``offset + Y @ weights``."""
        super().scalarize(weights, offset)  # refuses weights of another shape
        return self.mapped(
            lambda mean, variance: (
                (mean @ weights).unsqueeze(-1) + offset, (variance @ weights.square()).unsqueeze(-1)
            )
        )  # fmt: skip

    @property
    def covariance(self) -> Tensor:
        """Covariance over points and outcomes, ``batch x q*m x q*m``; outcomes of a point share the component."""
        out = super().covariance
        q, m = self.event_shape
        deviation = self.means - self.values.unsqueeze(-2)  # batch S q K m
        weighted = (self._of_all().exp()).unsqueeze(-1) * deviation
        shared = (weighted.mT @ deviation).sum(-4)  # batch q m m
        shared = shared - torch.diag_embed(shared.diagonal(dim1=-2, dim2=-1))  # which is in the noise already
        blocks = torch.zeros_like(out).reshape(*out.shape[:-2], q, m, q, m)
        at = torch.arange(q, device=out.device)
        blocks[..., at, :, at, :] = shared.movedim(-3, 0)
        return out + blocks.reshape(out.shape)

    def _of_all(self) -> Tensor:
        """Log-weights of the components of all draws, ``batch x S x q x K``."""
        return self.log_weights[..., None, None] + self.log_probs

    def _joint(self, sample_shape: torch.Size, u: Tensor, eps: Tensor | None) -> Tensor:
        if eps is None:
            return super()._joint(sample_shape, u, None)
        K, m = self.means.shape[-2:]
        flat = torch.cat([self.log_probs, self.means.flatten(-2), self.stds.flatten(-2)], -1)
        chosen = DrawsPosterior(flat, self.log_weights)._joint(sample_shape, u, None)
        log_probs, means, stds = chosen.split([K, K * m, K * m], -1)
        means, stds = (x.reshape(*x.shape[:-1], K, m) for x in (means, stds))
        return mixture_transport(eps.expand(*log_probs.shape[:-1], m), log_probs, means, stds)

    def _flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights ``batch x (S K) x q x 1``, means and standard deviations of all components of all draws."""
        log_weights = self._of_all().mT.flatten(-3, -2).unsqueeze(-1)
        means, stds = (x.movedim(-2, -3).flatten(-4, -3) for x in (self.means, self.stds))
        return log_weights, means, stds

    def quantile(self, value: Tensor | float) -> Tensor:
        """Marginal quantiles, ``value.shape + batch x q x m``; differentiable.

        Args:
            value: Probabilities p strictly between 0 and 1, anything else is a DomainError.

        Returns:
            The quantiles.

        Raises:
            DomainError: A probability is not between 0 and 1.
        """
        p = torch.as_tensor(value, dtype=self.dtype, device=self.device)
        if not ((p > 0) & (p < 1)).all():
            raise DomainError(f"MixtureDrawsPosterior.quantile: value must lie strictly between 0 and 1, got {value!r}")
        log_weights, means, stds = self._flat()
        return mixture_quantile(p.reshape(p.shape + (1,) * means.ndim), log_weights.exp(), means, stds).squeeze(-3)

    def log_density(self, y: Tensor | float) -> Tensor:
        """Marginal log density of each point and outcome, of the shape to which y and ``batch x q x m`` broadcast."""
        log_weights, means, stds = self._flat()
        normal = -0.5 * ((self._beside_draws(y) - means) / stds).square() - stds.log() - 0.5 * math.log(2 * math.pi)
        return (log_weights + normal).logsumexp(-3)
