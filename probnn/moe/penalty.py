"""Penalties that keep estimates away from the edge of the parameter space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import validation
from ..equality import ByValue
from ..errors import DomainError

if TYPE_CHECKING:
    from .model import GaussianMoE


@dataclass(frozen=True)
class Penalty(ByValue):
    r"""What is added to the log-likelihood: log densities of priors, up to constants.

    .. math:: -\tfrac{1}{2 s^2} \sum_i \|w_i\|^2 - \sum_i \big[(a + 1)\log\nu_i + b/\nu_i\big]

    with w the gate's weights (not its biases) and :math:`\nu` the variances: a Gaussian keeps a gate finite that
    separates the data, an inverse gamma keeps variances from zero. The maximum is a mode of the posterior of
    :math:`(w, \nu)`.

    Args:
        gate_scale: Standard deviation s of the gate's weights; None: no such penalty.
        variance_shape: Shape a of the inverse gamma; None: no such penalty.
        variance_scale: Its scale b, in squared units of Y.

    Raises:
        DomainError: A number is not positive, or only one of shape and scale is given.

    Example:
        >>> Penalty(gate_scale=30.0)
        Penalty(gate_scale=30.0, variance_shape=None, variance_scale=None)
    """

    gate_scale: float | None = None
    variance_shape: float | None = None
    variance_scale: float | None = None

    def __post_init__(self) -> None:
        for name in ("gate_scale", "variance_shape", "variance_scale"):
            if getattr(self, name) is not None:
                validation.positive("moe.Penalty", name, getattr(self, name))
        if (self.variance_shape is None) != (self.variance_scale is None):
            raise DomainError("moe.Penalty: an inverse gamma needs variance_shape and variance_scale, got one of them")

    @property
    def gate_precision(self) -> float:
        """One over the squared scale of the gate's weights; 0 without penalty."""
        return 0.0 if self.gate_scale is None else self.gate_scale**-2

    @property
    def counts(self) -> tuple[float, float]:
        """What the inverse gamma adds to twice a variance's weighted sum of squares, and to its weight."""
        if self.variance_shape is None or self.variance_scale is None:
            return 0.0, 0.0
        return 2 * self.variance_scale, 2 * (self.variance_shape + 1)

    def value(self, model: GaussianMoE, theta: Tensor) -> Tensor:
        """The penalty of theta ``B x P``: ``B``."""
        return self.derivatives(model, theta)[0]

    def derivatives(self, model: GaussianMoE, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value ``B``, gradient ``B x P`` and diagonal of the Hessian ``B x P`` in the coordinates of theta.

        A tied variance is penalised once: its K copies share the penalty.
        """
        value = theta.new_zeros(len(theta))
        slope, bend = torch.zeros_like(theta), torch.zeros_like(theta)
        if self.gate_scale is None and self.variance_shape is None:
            return value, slope, bend
        K, d, (w, a, p, b) = model.num_experts, model.input_dim, model.sizes
        own = theta[:, : K * model.width].view(-1, K, model.width)
        own_slope = slope[:, : K * model.width].view_as(own)
        own_bend = bend[:, : K * model.width].view_as(own)
        if self.gate_scale is not None and w:
            weights = own[..., :d]
            value = value - 0.5 * self.gate_precision * weights.square().sum((-1, -2))
            own_slope[..., :d] -= self.gate_precision * weights
            own_bend[..., :d] -= self.gate_precision
        if self.variance_shape is not None and b and isinstance(model.variance, str):
            square, count = self.counts
            share = K if model.variance == "shared" else 1
            lv = own[..., w + a * p :]
            inverse = 0.5 * square * (-lv).exp() / share
            value = value - (0.5 * count / share * lv + inverse).sum((-1, -2))
            own_slope[..., w + a * p :] += inverse - 0.5 * count / share
            own_bend[..., w + a * p :] -= inverse
        return value, slope, bend


def check_penalty(where: str, penalty: Penalty | None) -> Penalty:
    """The penalty, or none at all."""
    if penalty is not None and not isinstance(penalty, Penalty):
        raise DomainError(f"{where}: penalty must be a moe.Penalty such as Penalty(gate_scale=10.0), got {penalty!r}")
    return penalty or Penalty()
