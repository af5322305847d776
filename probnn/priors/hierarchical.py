"""Weights whose scales are random too."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError
from ..networks import Layout
from .random_scales import RandomScales, inverse_gamma_draws, inverse_gamma_law
from .weights import Scale, ScaledWeights, check_positive

_LOG_2, _LOG_2PI = math.log(2), math.log(2 * math.pi)
# The laws of a block's scale, each with its hyper-parameters and their defaults.
_LAWS: dict[str, dict[str, float]] = {
    "log_normal": {"spread": 0.5},
    "half_cauchy": {},
    "inverse_gamma": {"shape": 3.0, "rate": 2.0},
}


@dataclass(frozen=True)
class HierarchicalWeights(ScaledWeights, RandomScales):
    r"""Normal weights with a random scale for each block of weights and each block of biases.

    With :math:`s_k` the scale given for block k (`weight_scale` or `bias_scale` of its layer),

    .. math:: w_{ki} = \frac{s_k}{\sqrt{n_{in}}}\, e^{u_k} z_{ki}, \qquad z_{ki} \sim N(0, 1),

    so the block's standard deviation is :math:`\sigma_k = s_k e^{u_k}` before fan-in scaling. Every
    drawn function has scales of its own, and inference finds them along with the weights. The
    coordinates theta = (z, u) are non-centred: they are independent under the prior, where weights
    and scales would form a funnel (Papaspiliopoulos, Roberts and Skold 2007; Betancourt and
    Girolami 2015, arXiv 1312.0906). The density is that of theta, so of the log of a scale.

    The laws of :math:`e^{u}`:

    - ``"log_normal"``: :math:`u \sim N(0, \tau^2)` with :math:`\tau` = `spread`; :math:`s_k` is the median of
      :math:`\sigma_k`. All moments of the functions are finite, and the density of theta is
      Gaussian, which suits Hamiltonian Monte Carlo.
    - ``"half_cauchy"``: :math:`\sigma_k \sim C^+(0, s_k)`, so :math:`s_k` is again the median (Gelman 2006;
      Polson and Scott 2012, arXiv 1104.4937); :math:`p(u) = 1 / (\pi \cosh u)`. Its tails are heavy: one scale in
      16 is over ten times the median, and no moment of the functions is finite.
    - ``"inverse_gamma"``: :math:`\sigma_k^2 / s_k^2 \sim \text{InvGamma}(a, b)` with a = `shape` and b = `rate`;
      a weight is then Student-t with 2a degrees of freedom and scale :math:`s_k \sqrt{b / a} / \sqrt{n_{in}}`.
      With b = a - 1, as in the default, :math:`s_k` is the root mean square of :math:`\sigma_k`.

    Args:
        weight_scale: s of the weights: a number, a tensor, or one value a layer.
        bias_scale: s of the biases, likewise.
        scaling: ``"fan_in"`` divides the weights' scale by the square root of the number of inputs
            of the unit; ``"none"`` does not.
        scale_prior: ``"log_normal"``, ``"half_cauchy"`` or ``"inverse_gamma"``.
        spread: Standard deviation of the log scale (log_normal; default 0.5): a number, a tensor, or one
            value a block, in the order of the network's layout.
        shape: a (inverse_gamma; default 3), likewise.
        rate: b (inverse_gamma; default 2), likewise.

    Raises:
        DomainError: A scale or hyper-parameter is not positive, does not belong to the law, or has
            neither one value nor one for each layer (block).

    Example:
        >>> import torch, probnn
        >>> net = probnn.MLP(input_dim=2, hidden=(5,))
        >>> prior = HierarchicalWeights(weight_scale=(4.0, 1.0), bias_scale=(2.0, 0.1))
        >>> theta = prior.sample(net.layout, (3,), generator=torch.Generator().manual_seed(0))
        >>> net.num_parameters, tuple(theta.shape), tuple(prior.weights(net.layout, theta).shape)
        (21, (3, 25), (3, 21))
    """

    scale_prior: str = "log_normal"
    spread: Scale | None = None
    shape: Scale | None = None
    rate: Scale | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"priors.{type(self).__name__}"
        validation.choice(where, "scale_prior", self.scale_prior, tuple(_LAWS))
        for name in ("spread", "shape", "rate"):
            value = getattr(self, name)
            if value is None:
                continue
            if name not in _LAWS[self.scale_prior]:
                law = next(law for law, names in _LAWS.items() if name in names)
                raise DomainError(f"{where}: {name} belongs to scale_prior={law!r}, got it with {self.scale_prior!r}")
            object.__setattr__(self, name, check_positive(where, name, value))

    def hyperparameters(self, network: Layout, order: float = 0.0) -> dict[str, tuple[Tensor, float | None]]:
        """The scales, and of the law of the scales the spread or the shape: one a block (the rate is in the scales)."""
        found, like = super().hyperparameters(network, order), torch.empty(0, dtype=torch.double)
        for name, bound in (("spread", 0.0), ("shape", order / 2)):
            if name in _LAWS[self.scale_prior]:
                blocks = len(network.blocks)
                found[name] = self._hyper(name, like, blocks).expand(blocks), bound
        return found

    @property
    def moment_order(self) -> float:
        """The order below which all moments of the weights are finite."""
        if self.scale_prior == "inverse_gamma":
            shape = _LAWS["inverse_gamma"]["shape"] if self.shape is None else self.shape
            return 2 * torch.as_tensor(shape).min().item()
        return 1.0 if self.scale_prior == "half_cauchy" else math.inf

    @property
    def has_gibbs(self) -> bool:
        """Whether the squared scales are inverse-gamma, so that :meth:`gibbs` is there."""
        return self.scale_prior == "inverse_gamma"

    def mean_squares(self, network: Layout, like: Tensor) -> Tensor:
        """E sigma^2 of every block, fan-in included, differentiable in the hyper-parameters; infinite where it is."""
        if self.scale_prior == "inverse_gamma":
            return super().mean_squares(network, like)
        squares = self.block_scales(network, like).square()
        if self.scale_prior == "half_cauchy":
            return torch.full_like(squares, math.inf)
        return squares * torch.exp(2 * self._hyper("spread", like, len(network.blocks)).square())

    def scale_quantiles(self, network: Layout, p: Tensor) -> Tensor:
        """u of every block where its distribution function is p, ``... x blocks``; likewise differentiable."""
        if self.scale_prior == "inverse_gamma":
            return super().scale_quantiles(network, p)
        if self.scale_prior == "half_cauchy":
            return torch.log(torch.tan(math.pi / 2 * p))
        return self._hyper("spread", p, len(network.blocks)) * torch.special.ndtri(p)

    def _scale_law(self, network: Layout, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._law(u)

    def _scale_draws(
        self, network: Layout, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        return self._draw((*shape, len(network.blocks)), like, generator)

    def _gamma(self, network: Layout, like: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.scale_prior != "inverse_gamma":
            return None
        return self._hyper("shape", like, len(network.blocks)), self._hyper("rate", like, len(network.blocks))

    def _hyper(self, name: str, like: Tensor, blocks: int) -> Tensor:
        """A hyper-parameter of the law: a number, or one value a block."""
        value = getattr(self, name)
        value = _LAWS[self.scale_prior][name] if value is None else value
        value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
        if value.ndim and value.shape != (blocks,):
            raise DomainError(
                f"priors.{type(self).__name__}: {name} has {tuple(value.shape)} values but the network has {blocks} "
                "blocks; give one number, or one value for each of them"
            )
        return value

    def _law(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log density and its derivative at every u ``... x blocks``, Jacobian of u = log(scale) included."""
        if self.scale_prior == "half_cauchy":
            return _LOG_2 - math.log(math.pi) - torch.logaddexp(u, -u), -torch.tanh(u)
        if self.scale_prior == "inverse_gamma":
            return inverse_gamma_law(u, *(self._hyper(name, u, u.shape[-1]) for name in ("shape", "rate")))
        spread = self._hyper("spread", u, u.shape[-1])
        z = u / spread
        return -0.5 * (z.square() + _LOG_2PI) - spread.log(), -z / spread

    def _draw(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draws of u, differentiable in the hyper-parameters."""
        if self.scale_prior == "log_normal":
            return self._hyper("spread", like, shape[-1]) * rnd.normal(shape, generator=generator, like=like)
        if self.scale_prior == "half_cauchy":
            # The quantile function log tan(pi p / 2), upper half with a random sign: p is in [1/2, 1)
            # as the distance 1 - p is never zero, so u is never infinite.
            distance, sign = rnd.uniform((2, *shape), generator=generator, like=like)
            u = -torch.log(torch.tan((1 - distance) * (math.pi / 4)))
            return torch.where(sign < 0.5, u, -u)
        a, b = (self._hyper(name, like, shape[-1]) for name in ("shape", "rate"))
        return inverse_gamma_draws(a, b, shape, generator)
