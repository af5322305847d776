"""What a likelihood is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from ..equality import ByValue
from ..errors import UnsupportedError
from ..random import Device, Dtype, Shape, Source


@dataclass(frozen=True)
class Likelihood(ByValue, ABC):
    """The law of the outcomes Y (m columns) given the channels f (c columns) and parameters psi.

    psi are unconstrained, ``... x 1 x R`` beside f ``... x n x c``; R = 0 for most. A subclass is a
    frozen dataclass and writes :meth:`distribution`; everything else has a default.
    """

    @property
    def num_parameters(self) -> int:
        """Number R of parameters psi inferred along with the function."""
        return 0

    def channels(self, num_outcomes: int) -> int:
        """Number of channels the function needs for `num_outcomes` outcomes."""
        return num_outcomes

    def outcomes(self, channels: int) -> int:
        """Number of outcomes m that `channels` channels describe."""
        return channels

    def predictions(self, channels: int) -> int:
        """Number of columns of :meth:`moments`: m, but one a class for `Categorical`."""
        return self.outcomes(channels)

    @property
    def _pyro(self) -> Any:
        """Pyro's distributions, imported where one is needed: `import probnn` is not to wait for them."""
        import pyro.distributions

        return pyro.distributions

    @abstractmethod
    def distribution(self, f: Tensor, psi: Tensor) -> Any:
        """The Pyro distribution of Y: batch ``... x n``, event ``m``."""

    def log_prob(self, Y: Tensor, f: Tensor, psi: Tensor, noise_variance: Tensor | None = None) -> Tensor:
        """Log density of Y ``... x n x m``, one a row: ``... x n``."""
        self._refuse(noise_variance)
        return self._log_prob(Y, f, psi)

    def _log_prob(self, Y: Tensor, f: Tensor, psi: Tensor) -> Tensor:
        """The log density without known noise: in closed form where that is faster than building a distribution."""
        return self.distribution(f, psi).log_prob(Y)

    def log_prob_and_grad(
        self, Y: Tensor, f: Tensor, psi: Tensor, noise_variance: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The log density summed over rows, with its gradients in f and in psi ``... x 1 x R``."""
        with torch.enable_grad():
            f, psi = f.detach().requires_grad_(True), psi.detach().requires_grad_(True)
            value = self.log_prob(Y, f, psi, noise_variance).sum(-1)
            # allow_unused: a likelihood without parameters never touches psi.
            df, dpsi = torch.autograd.grad(value.sum(), (f, psi), allow_unused=True)
        return value.detach(), df, torch.zeros_like(psi) if dpsi is None else dpsi

    def moments(self, f: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of Y given f and psi, ``... x n x predictions`` each."""
        law = self.distribution(f, psi)
        return law.mean, law.variance

    def predictive(self, f: Tensor, psi: Tensor, log_weights: Tensor | None) -> Any:
        """The posterior of new outcomes given draws f ``... x S x n x c``; None: normal given f, with these moments."""
        return None

    def sample(self, f: Tensor, psi: Tensor, *, generator: Source = None) -> Tensor:
        """Draw outcomes ``... x n x m``, numbers of the dtype of f whatever they count or name."""
        with rnd.forked(generator), torch.no_grad():
            return self.distribution(f, psi).sample().to(f.dtype)

    def sample_prior(
        self, sample_shape: Shape = (), *, generator: Source = None, dtype: Dtype = None, device: Device = None
    ) -> Tensor:
        """Draw psi from its prior, ``sample_shape x R``."""
        z = rnd.normal((*sample_shape, self.num_parameters), generator=generator, dtype=dtype, device=device)
        return self._from_normal_scores(z)

    def prior_median(self, *, dtype: Dtype = None, device: Device = None) -> Tensor:
        """The median of psi under its prior, of length R."""
        return self._from_normal_scores(torch.zeros(self.num_parameters, dtype=dtype, device=device))

    def _from_normal_scores(self, z: Tensor) -> Tensor:
        """psi of which standard normal z ``... x R`` are the scores under its prior: increasing in every entry."""
        return torch.zeros_like(z)

    def log_prior(self, psi: Tensor) -> Tensor:
        """Log prior density of psi ``... x R``, in the unconstrained coordinates."""
        return psi.new_zeros(psi.shape[:-1])

    def constrain(self, psi: Tensor) -> dict[str, Tensor]:
        """psi ``... x R`` under natural names and scales, such as ``{"noise": ...}``."""
        return {}

    def given_noise(self, noise_variance: Tensor) -> Likelihood:
        """The likelihood when the noise variance of every row is known."""
        self._refuse(noise_variance)
        return self

    def expand(self, num_outcomes: int) -> Likelihood:
        """The likelihood with parameters of its own for each of `num_outcomes` outcomes."""
        return self

    def check_outcomes(self, where: str, Y: Tensor) -> None:
        """Raise `DomainError` where Y holds values the likelihood gives no mass."""

    def _refuse(self, noise_variance: Tensor | None) -> None:
        if noise_variance is not None:
            raise UnsupportedError(
                f"{type(self).__name__}: noise_variance is known noise of a Gaussian likelihood; "
                "leave it out, or use likelihoods.Gaussian"
            )
