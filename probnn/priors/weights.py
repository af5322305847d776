"""Independent priors over the weights of a network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..equality import ByValue
from ..errors import DomainError
from ..networks import Layout

_LOG_2PI = math.log(2 * math.pi)
Scale = float | Tensor | tuple[float, ...]


class WeightPrior(ByValue, ABC):
    """The law of a network's weights, through coordinates theta of its own.

    theta may be the weights themselves or what they are made of: whitened weights and log scales,
    or the base variable of a flow. Subclasses are frozen dataclasses.
    """

    def layout(self, network: Layout) -> Layout:
        """The blocks of theta for a network of that layout; default: the weights themselves."""
        return network

    @abstractmethod
    def sample(
        self,
        network: Layout,
        sample_shape: Sequence[int] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Draw theta, ``sample_shape x P``."""

    @abstractmethod
    def log_prob(self, network: Layout, theta: Tensor) -> Tensor:
        """Log density of theta ``... x P``: ``...``."""

    def weights(self, network: Layout, theta: Tensor) -> Tensor:
        """The network's flat weights of theta; default: theta."""
        return theta

    def hyperparameters(self, network: Layout, order: float = 0.0) -> dict[str, tuple[Tensor, float | None]]:
        """What :func:`probnn.match_prior` may tune; default: nothing.

        Args:
            network: The layout of the network's weights.
            order: The moment of the functions that must stay finite.

        Returns:
            By field name the value, as a tensor of the shape it is tuned in, and the bound it stays above;
            None instead of the bound: any number will do.
        """
        return {}

    @property
    def moment_order(self) -> float:
        """The order below which all moments of the weights are finite; default: infinity."""
        return math.inf

    def log_prob_and_grad(self, network: Layout, theta: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`log_prob` and its gradient, outside of autograd."""
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_(True)
            value = self.log_prob(network, leaf)
            return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

    def pullback(self, network: Layout, theta: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """:meth:`weights`, and the map from a cotangent of the weights to that of theta."""
        if type(self).weights is WeightPrior.weights:
            return theta, lambda cotangent: cotangent
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_(True)
            value = self.weights(network, leaf)
        return value.detach(), lambda cotangent: torch.autograd.grad(value, leaf, cotangent)[0]


@dataclass(frozen=True)
class ScaledWeights(WeightPrior):
    """Base of priors with a scale for the weights and one for the biases of every layer.

    Scales are numbers, tensors (everything is differentiable in them) or one value a layer. Where the weights
    are independent, a tensor may also hold one value a weight, in the order of the network's layout.
    """

    weight_scale: Scale = 1.0
    bias_scale: Scale = 1.0
    scaling: str = "fan_in"

    def __post_init__(self) -> None:
        where = f"priors.{type(self).__name__}"
        for name in ("weight_scale", "bias_scale"):
            object.__setattr__(self, name, check_positive(where, name, getattr(self, name)))
        validation.choice(where, "scaling", self.scaling, ("none", "fan_in"))

    def hyperparameters(self, network: Layout, order: float = 0.0) -> dict[str, tuple[Tensor, float | None]]:
        """The scales of weights and biases: one a layer, or one a weight where they were given so."""
        found: dict[str, tuple[Tensor, float | None]] = {}
        for role in ("weight", "bias"):
            if count := sum(b.role == role for b in network.blocks):
                value = torch.as_tensor(getattr(self, f"{role}_scale"), dtype=torch.double)
                found[f"{role}_scale"] = value if value.ndim else value.expand(count), 0.0
        return found

    def block_scales(self, network: Layout, like: Tensor) -> Tensor:
        """The scale of every block of the network, fan-in included, with the dtype and device of `like`."""
        of_role = {
            role: torch.as_tensor(scale, dtype=like.dtype, device=like.device)
            for role, scale in (("weight", self.weight_scale), ("bias", self.bias_scale))
        }
        count = {role: sum(b.role == role for b in network.blocks) for role in of_role}
        for role, scale in of_role.items():
            if scale.ndim and scale.shape != (count[role],):
                raise DomainError(
                    f"priors.{type(self).__name__}: {role}_scale has {tuple(scale.shape)} values but the network has "
                    f"{count[role]} {role} blocks; give one number, or one value for each of them"
                )
        seen = {"weight": 0, "bias": 0}
        per_block = []
        for block in network.blocks:
            scale = of_role[block.role]
            scale = scale[seen[block.role]] if scale.ndim else scale
            seen[block.role] += 1
            fan = math.sqrt(block.fan_in) if self.scaling == "fan_in" and block.role == "weight" else 1.0
            per_block.append(scale / fan)
        return torch.stack(per_block)

    def scales(self, network: Layout, like: Tensor) -> Tensor:
        """The scale of every weight, of length P, with the dtype and device of `like`."""
        given = {"weight": torch.as_tensor(self.weight_scale), "bias": torch.as_tensor(self.bias_scale)}
        roles = [block.role for block in network.blocks]
        # As many values as blocks are one a block. Blocks of one entry each are no exception: it means the same.
        if all(scale.ndim == 0 or scale.shape == (roles.count(role),) for role, scale in given.items()):
            return network.expand(self.block_scales(network, like))
        size = {role: sum(b.size for b in network.blocks if b.role == role) for role in given}
        values, at, parts = {}, {"weight": 0, "bias": 0}, []
        for role, scale in given.items():
            if scale.ndim and scale.shape not in ((roles.count(role),), (size[role],)):
                raise DomainError(
                    f"priors.{type(self).__name__}: {role}_scale has {tuple(scale.shape)} values but the network has "
                    f"{roles.count(role)} {role} blocks of {size[role]} entries together; give one number, one value "
                    "for each block, or one for each entry"
                )
            scale = scale.to(dtype=like.dtype, device=like.device)
            if scale.ndim and scale.shape != (size[role],):
                per_block = [b.size for b in network.blocks if b.role == role]
                scale = torch.cat([s.expand(k) for s, k in zip(scale, per_block, strict=True)])
            values[role] = scale.expand(size[role])
        for block in network.blocks:
            first = at[block.role]
            at[block.role] += block.size
            fan = math.sqrt(block.fan_in) if self.scaling == "fan_in" and block.role == "weight" else 1.0
            parts.append(values[block.role][first : at[block.role]] / fan)
        return torch.cat(parts)


def check_positive(where: str, name: str, value: Any) -> Any:
    """`value` if it is a positive number or tensor, or a sequence of positive numbers (as a tuple)."""
    if isinstance(value, (tuple, list)):
        if any(map(torch.is_tensor, value)):
            raise DomainError(f"{where}: {name} must be numbers or one tensor, got a sequence with tensors; stack them")
        return tuple(float(validation.positive(where, f"every entry of {name}", v)) for v in value)
    return validation.positive(where, name, value)


@dataclass(frozen=True)
class IndependentWeights(ScaledWeights):
    """Base of priors whose weights are independent, w = scale * z; subclasses give the law of z."""

    def sample(
        self,
        network: Layout,
        sample_shape: Sequence[int] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Draw weights, ``sample_shape x P``."""
        like = torch.empty(0, dtype=dtype, device=device)
        return self._standard((*sample_shape, network.size), like, generator) * self.scales(network, like)

    def log_prob(self, network: Layout, theta: Tensor) -> Tensor:
        """Log density of the weights ``... x P``, summed over them: ``...``."""
        scales = self.scales(network, theta)
        return self._log_density(theta / scales) - scales.log().sum()

    def log_prob_and_grad(self, network: Layout, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form of both."""
        with torch.no_grad():
            scales = self.scales(network, theta)
            z = theta / scales
            return self._log_density(z) - scales.log().sum(), self._score(z) / scales

    @abstractmethod
    def _standard(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draws of z."""

    @abstractmethod
    def _log_density(self, z: Tensor) -> Tensor:
        """Log density of z ``... x P``, summed over P."""

    @abstractmethod
    def _score(self, z: Tensor) -> Tensor:
        """Gradient of :meth:`_log_density`."""


@dataclass(frozen=True)
class NormalWeights(IndependentWeights):
    r"""Independent normal weights, :math:`w \sim N(0, \sigma_w^2 / n_{in})`, :math:`b \sim N(0, \sigma_b^2)`.

    Args:
        weight_scale: sigma_w: a number, a tensor, one value a layer, or a tensor of one value a weight.
        bias_scale: sigma_b, likewise.
        scaling: ``"fan_in"`` divides the weights' standard deviation by the square root of the
            number of inputs of the unit (so functions keep their scale as the network widens);
            ``"none"`` does not.

    Example:
        >>> import torch, probnn
        >>> net = probnn.MLP(input_dim=4, hidden=())
        >>> prior = NormalWeights(weight_scale=2.0, bias_scale=0.5)
        >>> prior.scales(net.layout, torch.empty(0)).tolist()
        [1.0, 1.0, 1.0, 1.0, 0.5]
    """

    def _standard(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
        return rnd.normal(shape, generator=generator, like=like)

    def _log_density(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square().sum(-1) + z.shape[-1] * _LOG_2PI)

    def _score(self, z: Tensor) -> Tensor:
        return -z


@dataclass(frozen=True)
class LaplaceWeights(IndependentWeights):
    r"""Independent Laplace (double exponential) weights: :math:`p(w) = e^{-|w| / b} / (2b)`.

    The scale is b, so the standard deviation is :math:`\sqrt2\,b`; the mode of a posterior under
    this prior is the lasso's (Tibshirani 1996; Park and Casella 2008). The density has a kink at
    zero, where its gradient is taken to be 0.

    Args:
        weight_scale: b of the weights before fan-in scaling: a number, a tensor, or one value a layer.
        bias_scale: b of the biases, likewise.
        scaling: ``"fan_in"`` divides the weights' scale by the square root of the number of inputs
            of the unit; ``"none"`` does not.

    Example:
        >>> import torch, probnn
        >>> net = probnn.MLP(input_dim=1, hidden=())
        >>> LaplaceWeights(weight_scale=0.5).log_prob(net.layout, torch.zeros(3, 2)).tolist()  # log 1 + log 1/2
        [-0.6931471824645996, -0.6931471824645996, -0.6931471824645996]
    """

    def _standard(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
        # A difference of exponentials: inverting the distribution function in one uniform would
        # give infinity wherever that uniform is exactly zero.
        first, second = rnd.uniform((2, *shape), generator=generator, like=like)
        return torch.log1p(-second) - torch.log1p(-first)

    def _log_density(self, z: Tensor) -> Tensor:
        return -z.abs().sum(-1) - z.shape[-1] * math.log(2)

    def _score(self, z: Tensor) -> Tensor:
        return -z.sign()


@dataclass(frozen=True)
class StudentTWeights(IndependentWeights):
    r"""Independent Student-t weights: :math:`p(w) \propto (1 + w^2 / (\nu s^2))^{-(\nu + 1) / 2}`.

    The scale is s, so the standard deviation is :math:`s\sqrt{\nu / (\nu - 2)}` (infinite for
    :math:`\nu \le 2`). A normal weight with a scale of its own, inverse-gamma in its square, has this law.

    Args:
        weight_scale: s of the weights before fan-in scaling: a number, a tensor, or one value a layer.
        bias_scale: s of the biases, likewise.
        scaling: ``"fan_in"`` divides the weights' scale by the square root of the number of inputs
            of the unit; ``"none"`` does not.
        df: Degrees of freedom nu: a positive number or a tensor of one; 1 is the Cauchy law.

    Raises:
        DomainError: A scale or df is not positive.

    Example:
        >>> import torch, probnn
        >>> net = probnn.MLP(input_dim=1, hidden=())
        >>> round(StudentTWeights(df=1.0).log_prob(net.layout, torch.zeros(2)).exp().item() * torch.pi**2, 4)
        1.0
    """

    df: float | Tensor = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"priors.{type(self).__name__}"
        validation.positive(where, "df", self.df)
        if torch.is_tensor(self.df) and self.df.ndim:
            raise DomainError(f"{where}: df must be one number for all weights, got shape {tuple(self.df.shape)}")

    def hyperparameters(self, network: Layout, order: float = 0.0) -> dict[str, tuple[Tensor, float | None]]:
        """The scales, and the degrees of freedom."""
        df = torch.as_tensor(self.df, dtype=torch.double)
        return {**super().hyperparameters(network, order), "df": (df, order)}

    @property
    def moment_order(self) -> float:
        """The order below which all moments of the weights are finite: the degrees of freedom."""
        return float(self.df)

    def _standard(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
        # Bailey (1994): with E exponential and V uniform, sqrt(nu (exp(2E / nu) - 1)) cos(2 pi V) is exactly
        # Student-t. Written as Box-Muller's normal, sqrt(2E) cos(2 pi V), times what df adds to it; that
        # factor goes to 1 with x, and the smallest number keeps it and its gradient defined at E = 0.
        first, second = rnd.uniform((2, *shape), generator=generator, like=like)
        twice = -2 * torch.log1p(-first)
        x = twice / self._df(like) + torch.finfo(like.dtype).tiny
        # sqrt(expm1(x) / x), which goes on where exp(x) overflows: heavy tails reach far.
        stretch = torch.exp(x / 2) * (-torch.expm1(-x) / x).sqrt()
        return twice.sqrt() * stretch * torch.cos(2 * math.pi * second)

    def _log_density(self, z: Tensor) -> Tensor:
        df = self._df(z)
        peak = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (df * math.pi).log()
        return z.shape[-1] * peak - (df + 1) / 2 * torch.log1p(z.square() / df).sum(-1)

    def _score(self, z: Tensor) -> Tensor:
        df = self._df(z)
        return -(df + 1) * z / (df + z.square())

    def _df(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.df, dtype=like.dtype, device=like.device)
