"""Normal weights whose variances are inverse-gamma: one for the weights and one for the biases of every layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import validation
from ..errors import DomainError
from ..networks import Layout
from .random_scales import RandomScales, inverse_gamma_draws, inverse_gamma_law
from .weights import Scale, check_positive

_FIELDS = ("shape", "scale", "bias_shape", "bias_scale")


@dataclass(frozen=True)
class InverseGammaWeights(RandomScales):
    r"""Normal weights with an inverse-gamma variance for each layer, weights and biases apart.

    .. math:: \sigma_l^2 \sim \text{InvGamma}(a_l, b_l), \qquad w \mid \sigma_l \sim N(0, \sigma_l^2 / n_{in}),

    and likewise for the biases, without :math:`n_{in}`: the hierarchical prior of Tran, Rossi, Milios and Filippone
    (2022, arXiv 2011.12829). Every drawn function has scales of its own. With the scales integrated out a weight is
    Student-t with :math:`2a` degrees of freedom and scale :math:`\sqrt{b / a}` (over :math:`\sqrt{n_{in}}`), and the
    weights of a layer are dependent; their variance :math:`b / (a - 1)` is infinite for :math:`a \le 1`.

    The coordinates theta = (z, u) are :math:`w = \sqrt{b / (a n_{in})}\, e^u z` with standard normal z and
    :math:`e^{-2u} \sim \text{Gamma}(a, a)`: whitened, so that scales and weights form no funnel, and of a law that
    does not depend on b. The density is that of theta, with the Jacobian of the logarithm. Draws are differentiable
    in all hyper-parameters, in a by implicit reparameterisation (Figurnov, Mohamed and Mnih 2018, arXiv 1805.08498).
    :meth:`gibbs` draws the scales anew given the weights.

    :class:`HierarchicalWeights` has the same law among others, parameterised by a scale of each layer.

    Args:
        shape: a of the weights: a number, a tensor, or one value a layer.
        scale: b of the weights, likewise: the scale of the inverse-gamma law of the variance, so itself a variance.
            With the defaults the mean variance is 1.
        bias_shape: a of the biases, likewise.
        bias_scale: b of the biases, likewise.
        scaling: ``"fan_in"`` divides the weights' variance by the number of inputs of the unit; ``"none"`` does not.

    Raises:
        DomainError: A hyper-parameter is not positive, or has neither one value nor one for each layer.

    Example:
        >>> import torch, probnn
        >>> net = probnn.MLP(input_dim=2, hidden=(5,))
        >>> prior = InverseGammaWeights(shape=2.0, scale=(4.0, 1.0))
        >>> theta = prior.sample(net.layout, (3,), generator=torch.Generator().manual_seed(0))
        >>> again = prior.gibbs(net.layout, theta, torch.Generator().manual_seed(1))
        >>> net.num_parameters, tuple(theta.shape)
        (21, (3, 25))
        >>> torch.allclose(prior.weights(net.layout, theta), prior.weights(net.layout, again), atol=1e-5)
        True
    """

    shape: Scale = 3.0
    scale: Scale = 2.0
    bias_shape: Scale = 3.0
    bias_scale: Scale = 2.0
    scaling: str = "fan_in"

    def __post_init__(self) -> None:
        where = f"priors.{type(self).__name__}"
        for name in _FIELDS:
            object.__setattr__(self, name, check_positive(where, name, getattr(self, name)))
        validation.choice(where, "scaling", self.scaling, ("none", "fan_in"))

    def hyperparameters(self, network: Layout, order: float = 0.0) -> dict[str, tuple[Tensor, float | None]]:
        """a and b of weights and biases, one a layer; a stays above half of `order`."""
        found: dict[str, tuple[Tensor, float | None]] = {}
        for role, prefix in (("weight", ""), ("bias", "bias_")):
            if count := sum(block.role == role for block in network.blocks):
                for name, bound in ((f"{prefix}shape", order / 2), (f"{prefix}scale", 0.0)):
                    found[name] = torch.as_tensor(getattr(self, name), dtype=torch.double).expand(count), bound
        return found

    @property
    def moment_order(self) -> float:
        """The order below which all moments of the weights are finite: twice the smallest a."""
        return 2 * min(torch.as_tensor(value).min().item() for value in (self.shape, self.bias_shape))

    @property
    def has_gibbs(self) -> bool:
        """Always: variances are inverse-gamma."""
        return True

    def block_scales(self, network: Layout, like: Tensor) -> Tensor:
        r""":math:`\sqrt{b / a}` of every block, fan-in included: sigma at u = 0, the mode of its logarithm."""
        a, b = self._per_block(network, like)
        fans = [
            math.sqrt(block.fan_in) if self.scaling == "fan_in" and block.role == "weight" else 1.0
            for block in network.blocks
        ]
        return (b / a).sqrt() / torch.tensor(fans, dtype=like.dtype, device=like.device)

    def _scale_law(self, network: Layout, u: Tensor) -> tuple[Tensor, Tensor]:
        a, _ = self._per_block(network, u)
        return inverse_gamma_law(u, a, a)

    def _scale_draws(
        self, network: Layout, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        a, _ = self._per_block(network, like)
        return inverse_gamma_draws(a, a, (*shape, len(network.blocks)), generator)

    def _gamma(self, network: Layout, like: Tensor) -> tuple[Tensor, Tensor] | None:
        a, _ = self._per_block(network, like)
        return a, a

    def _per_block(self, network: Layout, like: Tensor) -> tuple[Tensor, Tensor]:
        """a and b of every block, with the dtype and device of `like`."""
        roles = [block.role for block in network.blocks]
        values: dict[str, Tensor] = {}
        for name in _FIELDS:
            value = torch.as_tensor(getattr(self, name), dtype=like.dtype, device=like.device)
            role = "bias" if name.startswith("bias_") else "weight"
            if value.ndim and value.shape != (roles.count(role),):
                raise DomainError(
                    f"priors.{type(self).__name__}: {name} has {tuple(value.shape)} values but the network has "
                    f"{roles.count(role)} {role} blocks; give one number, or one value for each of them"
                )
            values[name] = value.expand(roles.count(role))
        at = [roles[:i].count(role) for i, role in enumerate(roles)]
        prefix = {"weight": "", "bias": "bias_"}
        a, b = (
            torch.stack([values[f"{prefix[role]}{name}"][i] for role, i in zip(roles, at, strict=True)])
            for name in ("shape", "scale")
        )
        return a, b
