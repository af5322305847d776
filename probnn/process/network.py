"""A network with a prior over its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError
from ..networks import Layout, Network
from ..networks.base import Pullback
from ..random import Source
from .parametric import ParametricProcess


@dataclass(frozen=True, eq=False)
class BayesianNetwork(ParametricProcess):
    """A network with a prior over its weights.

    Args:
        network: The function of flat parameters, such as :class:`probnn.MLP`.
        weight_prior: The law of the weights, such as :class:`probnn.priors.NormalWeights`.
        dtype: Precision of draws; None: torch's default when the object is made.
        device: Where it lives; None: torch's default device.

    Raises:
        DomainError: An argument is of the wrong type, or the prior does not fit the layers of the network.

    Example:
        >>> import torch, probnn
        >>> prior = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=(10,)), probnn.priors.NormalWeights())
        >>> f = prior.sample_functions((8,), generator=torch.Generator().manual_seed(0))
        >>> tuple(f(torch.linspace(-1, 1, 5).unsqueeze(-1)).shape)
        (8, 5, 1)
    """

    network: Network
    weight_prior: Any
    dtype: torch.dtype | None = None  # type: ignore[assignment]
    device: torch.device | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not isinstance(self.network, Network):
            raise DomainError(
                f"BayesianNetwork: network must be a probnn Network, got a {type(self.network).__name__}; "
                "wrap a torch module in probnn.ModuleNetwork"
            )
        prior, layout = self.weight_prior, self.network.layout
        if isinstance(prior, type):
            raise DomainError(
                f"BayesianNetwork: weight_prior is the class {prior.__name__}; give {prior.__name__}(...)"
            )
        if not hasattr(prior, "weights"):
            raise DomainError(
                f"BayesianNetwork: weight_prior must be a weight prior such as probnn.priors.NormalWeights(), "
                f"got a {type(prior).__name__}"
            )
        where = "BayesianNetwork"
        dtype, device = validation.float_dtype(where, self.dtype), validation.device(where, self.device)
        like = torch.empty(0, dtype=dtype, device=device)
        self._take(like, "dtype", "device")
        self._take(self.network, "input_dim", "output_dim")
        object.__setattr__(self, "_layout", prior.layout(layout))
        # One draw nobody sees, so that a prior made for another number of layers is refused here and not later.
        with torch.no_grad():
            theta = self._sample_parameters(torch.Size([1]), rnd.generator_from(0, device=self.device))
            prior.weights(layout, theta)

    @property
    def layout(self) -> Layout:
        """The blocks of theta: the coordinates the weight prior uses."""
        return self._layout  # type: ignore[attr-defined]

    def _sample_parameters(self, shape: torch.Size, generator: Source) -> Tensor:
        prior = self.weight_prior
        return prior.sample(self.network.layout, shape, generator=generator, dtype=self.dtype, device=self.device)

    def _log_prob(self, theta: Tensor) -> Tensor:
        return self.weight_prior.log_prob(self.network.layout, theta)

    def _log_prob_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight_prior.log_prob_and_grad(self.network.layout, theta)

    def _apply(self, theta: Tensor, X: Tensor) -> Tensor:
        return self.network(self.weight_prior.weights(self.network.layout, theta), X)

    def _pullback(self, theta: Tensor, X: Tensor) -> tuple[Tensor, Pullback]:
        weights, of_weights = self.weight_prior.pullback(self.network.layout, theta)
        value, of_network = self.network.pullback(weights, X)
        return value, lambda cotangent: of_weights(of_network(cotangent))
