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
# standard deviation of about 1 at every depth. Unbounded activations pass on variance, also that of the scales.
_SIGMOID = (4.0, 1.5, 1.25, 2.0, 0.5)
_PERIODIC = (2.0, 1.5, 1.15, 1.0, 0.5)
_UNBOUNDED = (4.0, 1.1, 0.35, 1.0, 0.25)
_SCALES = {"tanh": _SIGMOID, "erf": _SIGMOID, "sin": _PERIODIC}
_LINEAR_WEIGHT, _LINEAR_BIAS, _LAST_BIAS = 1.2, 0.3, 0.1


@dataclass(frozen=True)
class BNNPrior:
    r"""A Bayesian network made for inputs in :math:`[-1, 1]^d` and standardised outcomes.

    With scale one everywhere a network is a prior over nearly constant functions around a large
    offset, and real signal is then explained as noise. The default scales were chosen by the
    statistics of prior functions on the box (:func:`probnn.diagnostics.function_statistics`; two
    hidden layers of 50, 2,000 functions, standard errors up to 0.03, of the turns 0.06):

    ========== == ======== ============ ======= =====
    prior      d  total sd within share axis sd turns
    ========== == ======== ============ ======= =====
    scale one  6  1.24     0.03         0.08    0.4
    tanh       1  1.21     0.44         0.58    3.1
    tanh       2  1.16     0.50         0.50    2.6
    tanh       6  1.15     0.53         0.37    1.7
    tanh       20 1.14     0.55         0.25    1.1
    sin        1  1.02     0.49         0.56    3.8
    sin        2  0.99     0.59         0.49    2.7
    sin        6  1.00     0.63         0.36    1.5
    sin        20 0.96     0.65         0.24    0.8
    ========== == ======== ============ ======= =====

    and by prediction: mean log density of a normal with the predictive mean and variance, and root
    mean square error, at 300 new points of standardised functions without noise, averaged over four
    Sobol designs (Hamiltonian Monte Carlo with the last layer integrated out, 16 chains of 200 + 32, R-hat up to
    1.2, but 1.5 for tanh on the Hartmann function). The Gaussian process is BoTorch's SingleTaskGP:

    ==================== =========== =========== =========== ================
    function, n          scale one   tanh        sin         Gaussian process
    ==================== =========== =========== =========== ================
    Branin, 20           -1.36, 0.93 -0.01, 0.36 0.04, 0.35  0.47, 0.25
    Hartmann (d = 6), 50 -1.25, 0.84 -1.13, 0.71 -1.03, 0.67 -1.36, 0.71
    Ackley (d = 5), 40   -1.43, 0.97 -1.27, 0.80 -1.24, 0.78 -1.89, 0.80
    Levy (d = 4), 40     -1.39, 0.97 -1.25, 0.81 -1.24, 0.83 -1.68, 0.85
    ==================== =========== =========== =========== ================

    - Scales of the inputs do not depend on d: fan-in scaling keeps the total, and variation along
      one axis falls as more inputs share it.
    - Biases are half as large as the weights of the first layer. Smaller ones leave more variance
      within the box, but tanh is odd: such functions are nearly odd about the centre, and predict worse.
    - Random scales predict better than fixed ones (Branin with fixed scales: -0.49, 0.45). Half-Cauchy
      scales did as well, but their chains mixed worse and no moment of their functions is finite.
    - ``"sin"`` has even and odd parts alike and mixed better than tanh. Unbounded activations (relu, gelu,
      silu) have scales for a total near 1 and were not compared by prediction.

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
