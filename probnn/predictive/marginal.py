"""Predictions of processes that know marginals only."""

from __future__ import annotations

from typing import Any

import torch
from botorch.posteriors import Posterior, TransformedPosterior
from torch import Tensor

from ..errors import UnsupportedError


class MarginalPosterior(TransformedPosterior):
    """A posterior whose joint law over several points is unknown.

    Means, variances, quantiles and densities are those of `posterior`; samples are refused where
    q > 1, because they would pretend that the points are independent. To BoTorch it is a transformed
    posterior that transforms nothing, so it takes the sampler of `posterior`.

    Args:
        posterior: The posterior to read marginals from.
        name: Whose prediction it is, for messages.
    """

    def __init__(self, posterior: Posterior, name: str = "the process"):
        super().__init__(posterior, sample_transform=torch.positive)  # which returns what it is given
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
    def mean(self) -> Tensor:
        """As of `posterior`."""
        return self.posterior.mean

    @property
    def variance(self) -> Tensor:
        """As of `posterior`."""
        return self.posterior.variance

    def quantile(self, value: Tensor) -> Tensor:
        """As of `posterior`."""
        return self.posterior.quantile(value)

    def density(self, value: Tensor) -> Tensor:
        """As of `posterior`."""
        return self.posterior.density(value)

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Samples at one point, ``sample_shape x ... x 1 x m``."""
        self._check()
        return super().rsample(sample_shape)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        """Samples at one point from given base samples."""
        self._check()
        return super().rsample_from_base_samples(sample_shape, base_samples)
