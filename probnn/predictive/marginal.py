"""Predictions of processes that know marginals only."""

from __future__ import annotations

from typing import Any

import torch
from botorch.posteriors import Posterior
from botorch.sampling.base import MCSampler
from botorch.sampling.get_sampler import GetSampler, get_sampler
from torch import Tensor

from ..errors import UnsupportedError


class MarginalPosterior(Posterior):
    """A posterior whose joint law over several points is unknown.

    Means, variances, quantiles and densities are those of `posterior`; samples are refused where
    q > 1, because they would pretend that the points are independent.

    Args:
        posterior: The posterior to read marginals from.
        name: Whose prediction it is, for messages.
    """

    def __init__(self, posterior: Any, name: str = "the process"):
        self.posterior, self.name = posterior, name

    def __getattr__(self, attribute: str) -> Any:
        if attribute in ("posterior", "name"):  # not set yet: while being copied or unpickled
            raise AttributeError(attribute)
        return getattr(self.posterior, attribute)

    def _check(self) -> None:
        q = self.posterior._extended_shape()[-2]
        if q > 1:
            raise UnsupportedError(
                f"posterior.rsample: {self.name} knows marginals only (joint=None), so no joint samples at q = {q} "
                "points; use q = 1 (sequentially for a batch), or choose joint='autoregressive' or 'independent'"
            )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the samples."""
        return self.posterior.dtype

    @property
    def device(self) -> torch.device:
        """The device of the samples."""
        return self.posterior.device

    @property
    def base_sample_shape(self) -> torch.Size:
        """As of `posterior`."""
        return self.posterior.base_sample_shape

    @property
    def batch_range(self) -> tuple[int, int]:
        """As of `posterior`."""
        return self.posterior.batch_range

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:
        return self.posterior._extended_shape(sample_shape)

    def quantile(self, value: Tensor) -> Tensor:
        """As of `posterior`."""
        return self.posterior.quantile(value)

    def density(self, value: Tensor) -> Tensor:
        """As of `posterior`."""
        return self.posterior.density(value)

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Samples at one point, ``sample_shape x ... x 1 x m``."""
        self._check()
        return self.posterior.rsample(sample_shape)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        """Samples at one point from given base samples."""
        self._check()
        return self.posterior.rsample_from_base_samples(sample_shape, base_samples)


class _Unwrap(MCSampler):
    """The sampler of the posterior inside, where sampling is allowed."""

    def __init__(self, inner: MCSampler):
        super().__init__(sample_shape=inner.sample_shape, seed=inner.seed)
        self.inner = inner

    def forward(self, posterior: Posterior) -> Tensor:
        if isinstance(posterior, MarginalPosterior):
            posterior._check()
            posterior = posterior.posterior
        return self.inner(posterior)


@GetSampler.register(MarginalPosterior)
def _get_marginal_sampler(
    posterior: MarginalPosterior, sample_shape: torch.Size, *, seed: int | None = None
) -> MCSampler:
    return _Unwrap(get_sampler(posterior.posterior, sample_shape, seed=seed))
