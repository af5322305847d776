"""Weights whose scales are random too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError
from ..networks import Block, Layout
from .weights import Scale, ScaledWeights, check_positive

_LOG_2, _LOG_2PI = math.log(2), math.log(2 * math.pi)
# The laws of a block's scale, each with its hyper-parameters and their defaults.
_LAWS: dict[str, dict[str, float]] = {
    "log_normal": {"spread": 0.5},
    "half_cauchy": {},
    "inverse_gamma": {"shape": 3.0, "rate": 2.0},
}


@dataclass(frozen=True)
class HierarchicalWeights(ScaledWeights):
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

    def layout(self, network: Layout) -> Layout:
        """The network's blocks, holding z, and a last block ``log_scale`` with u of each of them."""
        return Layout((*network.blocks, Block("log_scale", (len(network.blocks),), role="scale")))

    def sample(
        self,
        network: Layout,
        sample_shape: Sequence[int] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Draw (z, u), ``sample_shape x P``."""
        like = torch.empty(0, dtype=dtype, device=device)
        z = rnd.normal((*sample_shape, network.size), generator=generator, like=like)
        return torch.cat([z, self._draw((*sample_shape, len(network.blocks)), like, generator)], -1)

    def log_prob(self, network: Layout, theta: Tensor) -> Tensor:
        """Log density of (z, u) ``... x P``: ``...``."""
        z, u = theta[..., : network.size], theta[..., network.size :]
        return -0.5 * (z.square().sum(-1) + network.size * _LOG_2PI) + self._law(u)[0].sum(-1)

    def log_prob_and_grad(self, network: Layout, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form of both."""
        with torch.no_grad():
            z, u = theta[..., : network.size], theta[..., network.size :]
            value, slope = self._law(u)
            value = -0.5 * (z.square().sum(-1) + network.size * _LOG_2PI) + value.sum(-1)
            return value, torch.cat([-z, slope], -1)

    def sigma(self, network: Layout, theta: Tensor) -> Tensor:
        """The standard deviation of every block's weights, fan-in included: ``... x blocks``."""
        return theta[..., network.size :].exp() * self.block_scales(network, theta)

    def weights(self, network: Layout, theta: Tensor) -> Tensor:
        """The network's weights of (z, u) ``... x P``: ``... x size``."""
        return theta[..., : network.size] * network.expand(self.sigma(network, theta))

    def pullback(self, network: Layout, theta: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Closed form: dz = sigma dw, and du of a block is the sum of w dw over it."""
        with torch.no_grad():
            sigma = network.expand(self.sigma(network, theta))
            weights = theta[..., : network.size] * sigma

        def back(cotangent: Tensor) -> Tensor:
            products = (weights * cotangent).split([block.size for block in network.blocks], -1)
            return torch.cat([sigma * cotangent, torch.stack([p.sum(-1) for p in products], -1)], -1)

        return weights, back

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
            a, b = (self._hyper(name, u, u.shape[-1]) for name in ("shape", "rate"))
            tail = b * torch.exp(-2 * u)
            return _LOG_2 + a * b.log() - torch.lgamma(a) - 2 * a * u - tail, 2 * (tail - a)
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
        # Gamma(a) = Gamma(a + 1) U^(1/a), in logarithms: for small a draws of Gamma(a) round to zero.
        a, b = (self._hyper(name, like, shape[-1]) for name in ("shape", "rate"))
        log_uniform = torch.log1p(-rnd.uniform(shape, generator=generator, like=like))
        log_precision = _log_gamma(a + 1, shape, generator) + log_uniform / a - b.log()
        return -0.5 * log_precision


def _log_gamma(a: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """The log of Gamma(a, 1) draws of `shape`."""
    import pyro.distributions as dist

    at = generator.device if generator is not None else a.device
    concentration = a.to(at).expand(shape)
    with rnd.forked(generator):
        return dist.Gamma(concentration, torch.ones_like(concentration)).rsample().log().to(a.device)
