"""The network prior that suits most functions on a box."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import DomainError
from ..networks import MLP
from ..process import BayesianNetwork
from .hierarchical import HierarchicalWeights
from .weights import NormalWeights, WeightPrior, check_positive

# Scales of the first, the middle and the last weights, and of the first and the middle biases: they give a total
# standard deviation near 1 at every depth. Activations that are not bounded pass on variance, also that of the scales.
_SIGMOID = (4.0, 2.0, 1.0, 2.0, 0.5)
_PERIODIC = (2.0, 1.5, 1.15, 1.0, 0.5)
_UNBOUNDED = (4.0, 1.1, 0.35, 1.0, 0.25)
_SCALES = {"tanh": _SIGMOID, "erf": _SIGMOID, "sin": _PERIODIC}
_LINEAR_WEIGHT, _LINEAR_BIAS, _LAST_BIAS = 1.2, 0.3, 0.1


@dataclass(frozen=True)
class BNNPrior:
    r"""A Bayesian network made for inputs in :math:`[-1, 1]^d` and standardised outcomes.

    TODO

    Args:
        hidden: Widths of the hidden layers.
        activation: Of :class:`probnn.MLP`.
        weight_scale: Scale of the weights (times 1/sqrt(fan-in)): one number, one a layer, or None for the default.
        bias_scale: Scale of the biases, likewise.
        scale_prior: ``"log_normal"``, ``"half_cauchy"`` or ``"inverse_gamma"``: the law of the factor of each
            scale (see :class:`HierarchicalWeights`); None: the scales are fixed.
        spread: Standard deviation of the log scales (log_normal; default 0.5): one number, or one value a
            block of weights or biases.

    Raises:
        DomainError: A setting is out of its range, or scales do not match the layers.

    Example:
        >>> import torch, probnn
        >>> prior = probnn.priors.BNNPrior(hidden=(20, 20))(3, 1)
        >>> prior.input_dim, prior.output_dim, prior.layout.blocks[-1].name
        (3, 1, 'log_scale')
        >>> hash(BNNPrior()) == hash(BNNPrior(hidden=[50, 50]))
        True
    """

    hidden: tuple[int, ...] = (50, 50)
    activation: str = "tanh"
    weight_scale: float | tuple[float, ...] | None = None
    bias_scale: float | tuple[float, ...] | None = None
    scale_prior: str | None = "log_normal"
    spread: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        where = "priors.BNNPrior"
        network = MLP(input_dim=1, hidden=self.hidden, activation=self.activation)  # refuses bad ones
        object.__setattr__(self, "hidden", network.hidden)
        layers = len(self.hidden) + 1
        lengths = {"weight_scale": layers, "bias_scale": layers, "spread": 2 * layers}
        for name, length in lengths.items():
            value = getattr(self, name)
            if value is None:
                continue
            if torch.is_tensor(value):
                raise DomainError(
                    f"{where}: {name} must be numbers, because recipes are compared and hashed, got a tensor; "
                    "build a probnn.BayesianNetwork to differentiate in it"
                )
            value = check_positive(where, name, value)
            if isinstance(value, tuple) and len(value) != length:
                raise DomainError(
                    f"{where}: {name} has {len(value)} values but the {layers} layers of the network need {length}; "
                    "give one number for all of them"
                )
            object.__setattr__(self, name, value)
        if self.scale_prior is None and self.spread is not None:
            raise DomainError(f"{where}: spread belongs to scale_prior='log_normal', got it with fixed scales")
        self.weight_prior()  # refuses bad laws

    def __call__(self, input_dim: int, num_channels: int = 1) -> BayesianNetwork:
        """The process of `input_dim` inputs and `num_channels` channels, in torch's default dtype."""
        network = MLP(input_dim=input_dim, hidden=self.hidden, output_dim=num_channels, activation=self.activation)
        return BayesianNetwork(network, self.weight_prior())

    def weight_prior(self) -> WeightPrior:
        """The law of the weights, with the scales in use."""
        weights, biases = self._default_scales()
        weight_scale = weights if self.weight_scale is None else self.weight_scale
        bias_scale = biases if self.bias_scale is None else self.bias_scale
        if self.scale_prior is None:
            return NormalWeights(weight_scale, bias_scale)
        return HierarchicalWeights(weight_scale, bias_scale, scale_prior=self.scale_prior, spread=self.spread)

    def _default_scales(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if not self.hidden:
            return (_LINEAR_WEIGHT,), (_LINEAR_BIAS,)
        first, middle, last, first_bias, middle_bias = _SCALES.get(self.activation, _UNBOUNDED)
        between = len(self.hidden) - 1
        return (first, *(middle,) * between, last), (first_bias, *(middle_bias,) * between, _LAST_BIAS)
