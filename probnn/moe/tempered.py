"""Gates with a temperature among their coordinates."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import validation
from .gates import Gate, GateTerms

# (value, first and second derivative) of an activation at v
_Jet = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def _gelu(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    density = torch.exp(-0.5 * v.square()) / math.sqrt(2 * math.pi)
    below = torch.special.ndtr(v)
    return v * below, below + v * density, (2 - v.square()) * density


def _tanh(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = v.tanh()
    slope = 1 - t.square()
    return t, slope, -2 * t * slope


def _sigmoid(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p = v.sigmoid()
    slope = p * (1 - p)
    return p, slope, slope * (1 - 2 * p)


def _silu(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p, slope, bend = _sigmoid(v)
    return v * p, p + v * slope, 2 * slope + v * bend


def _relu(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return v.relu(), (v > 0).to(v), torch.zeros_like(v)


def _identity(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return v, torch.ones_like(v), torch.zeros_like(v)


_ACTIVATIONS: dict[str, _Jet] = {
    "gelu": _gelu, "tanh": _tanh, "sigmoid": _sigmoid, "silu": _silu, "relu": _relu,
}  # fmt: skip


@dataclass(frozen=True)
class Tempered(Gate):
    """Base of gates with a temperature among their coordinates: weights, bias, log temperature (tied)."""

    def width(self, d: int) -> int:
        """Weights, bias and the log temperature."""
        return d + 2

    def tied(self, d: int) -> tuple[int, ...]:
        """The log temperature."""
        return (d + 1,)

    @abstractmethod
    def _jet(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value, first and second derivative of what the linear scores go through."""

    def scores(self, gamma: Tensor, X: Tensor, tail: Tensor) -> Tensor:
        """The scores over the temperature."""
        return (self._jet(gamma[..., :-2] @ X)[0] + gamma[..., -2:-1]) * (-gamma[..., -1:]).exp()

    def terms(self, gamma: Tensor, X: Tensor) -> GateTerms:
        """Closed form; the score is its own negative derivative in the log temperature."""
        value, slope, bend = self._jet(gamma[..., :-2] @ X)
        inverse = (-gamma[..., -1:]).exp()
        scores = (value + gamma[..., -2:-1]) * inverse
        by_weight = (slope * inverse).unsqueeze(-2) * X.unsqueeze(-3)
        ones = inverse.unsqueeze(-2).expand(*scores.shape[:-1], 1, scores.shape[-1])
        jacobian = torch.cat([by_weight, ones, -scores.unsqueeze(-2)], -2)

        def curvature(a: Tensor) -> Tensor:
            d, w = X.shape[-2], gamma.shape[-1]
            out = gamma.new_zeros(*scores.shape[:-1], w, w)
            weighted = (a * bend * inverse).unsqueeze(-2) * X.unsqueeze(-3)
            out[..., :d, :d] = weighted @ X.unsqueeze(-3).mT
            out[..., -1, :] = -(a.unsqueeze(-2) * jacobian).sum(-1)
            out[..., :, -1] = out[..., -1, :]
            return out

        return GateTerms(scores, jacobian, curvature)

    def steeper(self, gamma: Tensor) -> Tensor | None:
        """Half of the temperature."""
        return torch.cat([gamma[..., :-1], gamma[..., -1:] - math.log(2)], -1)

    def untempered(self, gamma: Tensor) -> Tensor:
        """The same probabilities at a temperature of one, where scores are homogeneous; else as they are."""
        if not self.frozen(0):
            return gamma
        return torch.cat([gamma[..., :-1] * (-gamma[..., -1:]).exp(), torch.zeros_like(gamma[..., -1:])], -1)

    def canonical(self, gamma: Tensor) -> Tensor:
        """The last bias is zero."""
        gamma = gamma.clone()
        gamma[..., -2] -= gamma[..., -1:, -2].clone()
        return gamma


@dataclass(frozen=True)
class TemperatureGate(Tempered):
    r"""Linear scores with a temperature of their own, :math:`s_i(x) = (w_i^\top x + b_i)/\tau`.

    :math:`(cw, cb, c\tau)` gives the same probabilities for every c > 0, so data say nothing about the temperature
    (the dense-to-sparse gate of Nguyen, Akbarian & Ho 2024, arXiv 2401.13875): a normalisation says which of them is
    reported, and without one the temperature stays where the start had it.

    Args:
        normalise: ``"weights"``: the weights have a sum of squares of one; None: as started, with a warning.

    Raises:
        DomainError: There is no such normalisation.

    Example:
        >>> TemperatureGate().width(2)  # two weights, a bias, the log temperature
        4
    """

    affine: ClassVar[bool] = True

    normalise: str | None = "weights"

    def __post_init__(self) -> None:
        if self.normalise is not None:
            validation.choice("moe.TemperatureGate", "normalise", self.normalise, ("weights",))

    def held(self, d: int) -> tuple[int, ...]:
        """Weights and bias: a common translation of them changes nothing."""
        return tuple(range(d + 1))

    def frozen(self, d: int) -> tuple[int, ...]:
        """The log temperature."""
        return (d + 1,)

    def _jet(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _identity(v)

    def canonical(self, gamma: Tensor) -> Tensor:
        """The last expert at zero and, where weights are normalised, their norm in the temperature."""
        own, log_temperature = gamma[..., :-1] - gamma[..., -1:, :-1], gamma[..., -1:]
        if self.normalise is None:
            return torch.cat([own, log_temperature], -1)
        norm = own[..., :-1].square().sum((-1, -2), keepdim=True).sqrt()
        norm = torch.where(norm > 0, norm, 1.0)
        return torch.cat([own / norm, log_temperature - norm.log()], -1)


@dataclass(frozen=True)
class ActivationGate(Tempered):
    r"""Scores through an activation, :math:`s_i(x) = (\sigma(w_i^\top x) + b_i)/\tau`, with a learned temperature.

    The activation breaks the scale invariance of linear scores, and the temperature is identified (activation
    dense-to-sparse gate; Nguyen, Akbarian & Ho 2024, arXiv 2401.13875). Positively homogeneous activations such as
    ReLU do not break it: there the temperature stays as it was started.

    Args:
        activation: ``"gelu"``, ``"tanh"``, ``"sigmoid"``, ``"silu"`` or ``"relu"``.

    Raises:
        DomainError: There is no such activation.

    Example:
        >>> ActivationGate("tanh").tied(2)
        (3,)
    """

    activation: str = "gelu"

    def __post_init__(self) -> None:
        validation.choice("moe.ActivationGate", "activation", self.activation, tuple(_ACTIVATIONS))

    def frozen(self, d: int) -> tuple[int, ...]:
        """The log temperature of a homogeneous activation."""
        return (d + 1,) if self.activation == "relu" else ()

    def _jet(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _ACTIVATIONS[self.activation](v)
