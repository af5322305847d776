"""Normalising flows as laws of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError
from ..networks import Block, Layout
from .weights import ScaledWeights

_LOG_2PI = math.log(2 * math.pi)
_TABLES = ("directions", "shifts", "offsets")


@dataclass(frozen=True)
class WhitenedWeights(ScaledWeights):
    """Base of priors whose coordinates are standard normal, and whose weights are scales times a function of them."""

    def layout(self, network: Layout) -> Layout:
        """The network's blocks, without exchangeable axes: a flow tells the units of a layer apart."""
        return Layout(tuple(Block(b.name, b.shape, b.fan_in, (), b.role) for b in network.blocks))

    def sample(
        self,
        network: Layout,
        sample_shape: Sequence[int] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Draw z, ``sample_shape x P``."""
        like = torch.empty(0, dtype=dtype, device=device)
        return rnd.normal((*sample_shape, network.size), generator=generator, like=like)

    def log_prob(self, network: Layout, theta: Tensor) -> Tensor:
        """Log density of z ``... x P``: ``...``."""
        return -0.5 * (theta.square().sum(-1) + network.size * _LOG_2PI)

    def log_prob_and_grad(self, network: Layout, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form of both."""
        with torch.no_grad():
            return self.log_prob(network, theta), -theta


@dataclass(frozen=True)
class FlowWeights(WhitenedWeights):
    r"""Weights that are a normalising flow of standard normal ones: K planar maps a layer.

    With z standard normal, of as many entries as a layer has weights and biases (n together), and its scales s,

    .. math::
        w = s \odot (g_K \circ \dots \circ g_1)(z), \qquad
        g_k(z) = z + \hat u_k \tanh(\omega_k^\top z + b_k), \qquad \omega_k = d_k / \sqrt n,

    which is not normal, and couples the entries of a layer (Rezende and Mohamed 2015, arXiv 1505.05770; as a prior
    matched to a process: Tran, Rossi, Milios and Filippone 2022, arXiv 2011.12829, who apply the scales first, which
    gives the same family). With their correction

    .. math:: \hat u = u + \big(\log(1 + e^{\omega^\top u}) - 1 - \omega^\top u\big)\, \omega / |\omega|^2,

    :math:`\omega^\top \hat u > -1` for every u, so each map is one to one and w has the density of
    :meth:`log_abs_det`. Inference does not need it: the coordinates theta are z, whose prior is standard normal, and a
    sampler of z needs neither an inverse nor a determinant.

    Without tables the directions d are standard normal draws of `seed` and every map is the identity, so that the prior
    is :class:`NormalWeights` of the same scales until :func:`probnn.match_prior` tunes it: tables and scales.

    Args:
        weight_scale: s of the weights before fan-in scaling: a number, a tensor, one value a layer, or a tensor of one
            value a weight.
        bias_scale: s of the biases, likewise.
        scaling: ``"fan_in"`` divides the weights' scale by the square root of the number of inputs of the unit;
            ``"none"`` does not.
        num_flows: K; 0 is :class:`NormalWeights` in whitened coordinates.
        directions: d of every map and layer, ``K x P``, in the order of the network's weights; None: as above.
        shifts: u, likewise; given with `directions` or not at all.
        offsets: b, ``K x layers``, likewise.
        seed: Seed of the directions where they are not given.

    Raises:
        DomainError: A scale is not positive, tables are of the wrong size, not finite, or only some are given, or a
            layer has a direction of zero.

    Example:
        >>> import torch, probnn
        >>> net = probnn.MLP(input_dim=2, hidden=(5,))
        >>> prior = FlowWeights(weight_scale=2.0, num_flows=3)
        >>> {name: tuple(value.shape) for name, (value, _) in prior.hyperparameters(net.layout).items()}
        {'weight_scale': (2,), 'bias_scale': (2,), 'directions': (3, 21), 'shifts': (3, 21), 'offsets': (3, 2)}
        >>> theta = prior.sample(net.layout, (4,), generator=torch.Generator().manual_seed(0))
        >>> tuple(prior.weights(net.layout, theta).shape)
        (4, 21)
    """

    num_flows: int = 4
    directions: Tensor | None = None
    shifts: Tensor | None = None
    offsets: Tensor | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"priors.{type(self).__name__}"
        object.__setattr__(self, "num_flows", validation.positive_int(where, "num_flows", self.num_flows, minimum=0))
        object.__setattr__(self, "seed", rnd.check_seed(where, self.seed))
        missing = [name for name in _TABLES if getattr(self, name) is None]
        if missing and len(missing) < len(_TABLES):
            raise DomainError(f"{where}: give directions, shifts and offsets together, or none; missing: {missing}")
        for name in () if missing else _TABLES:
            object.__setattr__(self, name, self._table(where, name, getattr(self, name)))

    def _table(self, where: str, name: str, value: Any) -> Tensor:
        """`value` as a finite tensor of K rows; nested sequences are what tuning leaves."""
        if not torch.is_tensor(value):
            try:
                value = torch.tensor(value, dtype=torch.double)
            except (TypeError, ValueError) as error:
                raise DomainError(f"{where}: {name} must be a tensor, got {type(value).__name__} ({error})") from error
        validation.tensor(where, name, value)
        if value.ndim != 2 or len(value) != self.num_flows:
            raise DomainError(
                f"{where}: {name} must have {self.num_flows} rows, one for each of num_flows, got {tuple(value.shape)}"
            )
        return value

    def hyperparameters(self, network: Layout, order: float = 0.0) -> dict[str, tuple[Tensor, float | None]]:
        """The scales, and the tables of the flows."""
        found = super().hyperparameters(network, order)
        if self.num_flows:
            tables = zip(_TABLES, self._tables(network, torch.empty(0, dtype=torch.double)), strict=True)
            found.update({name: (value, None) for name, value in tables})
        return found

    def weights(self, network: Layout, theta: Tensor) -> Tensor:
        """The network's weights of z ``... x P``: ``... x P``; differentiable in z and all tensors."""
        return self._push(network, theta)[0] * self.scales(network, theta)

    def pullback(self, network: Layout, theta: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Closed form: the transposed Jacobians of the maps, the last one first."""
        with torch.no_grad():
            maps, scales = self._maps(network, theta), self.scales(network, theta)
            moved, pushed = self._push(network, theta, maps)
            slopes = [[1 - torch.tanh(x).square() for x in of_layer] for of_layer in pushed]

        def back(cotangent: Tensor) -> Tensor:
            cotangent, parts = cotangent * scales, []
            for (s, flows), of_layer in zip(maps, slopes, strict=True):
                delta = cotangent[..., s]
                for (omega, shift, *_), slope in zip(reversed(flows), reversed(of_layer), strict=True):
                    delta = delta + (slope * (delta @ shift)).unsqueeze(-1) * omega
                parts.append(delta)
            return torch.cat(parts, -1)

        return moved * scales, back

    def log_abs_det(self, network: Layout, theta: Tensor) -> Tensor:
        r"""Log of the absolute determinant of the Jacobian dw/dz, at z ``... x P``: ``...``.

        The log density of w is that of z less this. A planar map has
        :math:`1 + (1 - t^2)\, \omega^\top \hat u = t^2 + (1 - t^2) \log(1 + e^{\omega^\top u})` with t its tanh.

        Args:
            network: The layout of the network's weights.
            theta: Coordinates z.

        Returns:
            The logarithm.
        """
        maps = self._maps(network, theta)
        total = self.scales(network, theta).log().sum().expand(theta.shape[:-1])
        for (_, flows), arguments in zip(maps, self._push(network, theta, maps)[1], strict=True):
            for (_, _, _, log_gain), x in zip(flows, arguments, strict=True):
                # Both terms by their logarithms: either may be so small that the other, or 1, swallows it.
                t, size = torch.tanh(x), x.abs()
                log_square = torch.where(t == 0, -math.inf, 2 * torch.where(t == 0, 1.0, t).abs().log())
                log_slope = 2 * (math.log(2) - size - torch.log1p(torch.exp(-2 * size)))
                total = total + torch.logaddexp(log_square, log_slope + log_gain)
        return total

    def _push(self, network: Layout, z: Tensor, maps: Any = None) -> tuple[Tensor, list[list[Tensor]]]:
        """z after all maps, and of every layer what its maps take the tanh of, ``...`` each."""
        parts, arguments = [], []
        for s, flows in self._maps(network, z) if maps is None else maps:
            part, of_layer = z[..., s], []
            for omega, shift, offset, _ in flows:
                of_layer.append(part @ omega + offset)
                part = part + torch.tanh(of_layer[-1]).unsqueeze(-1) * shift
            parts.append(part)
            arguments.append(of_layer)
        return torch.cat(parts, -1), arguments

    def _maps(self, network: Layout, like: Tensor) -> list[tuple[slice, list[tuple[Tensor, Tensor, Tensor, Tensor]]]]:
        """Of every layer its slice, and of its maps omega, u-hat, b and log(1 + omega . u-hat)."""
        directions, shifts, offsets = self._tables(network, like)
        layers = []
        for i, s in enumerate(layer_slices(network)):
            omega, u = directions[:, s] / math.sqrt(s.stop - s.start), shifts[:, s]
            square, product = omega.square().sum(-1), (omega * u).sum(-1)
            if (square == 0).any():
                raise DomainError(f"priors.{type(self).__name__}: a direction of layer {i} is zero; a map needs one")
            gain = torch.nn.functional.softplus(product)
            u = u + ((gain - 1 - product) / square).unsqueeze(-1) * omega
            # Far below zero log(softplus) is its argument, and softplus itself may be zero.
            log_gain = torch.where(product < -40, product, torch.nn.functional.softplus(product.clamp_min(-40)).log())
            layers.append((s, list(zip(omega, u, offsets[:, i], log_gain, strict=True))))
        return layers

    def _tables(self, network: Layout, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Directions, shifts and offsets, with the dtype and device of `like`."""
        layers, K = layer_slices(network), self.num_flows
        if self.directions is not None and self.shifts is not None and self.offsets is not None:
            for name, columns in zip(_TABLES, (network.size, network.size, len(layers)), strict=True):
                if getattr(self, name).shape != (K, columns):
                    raise DomainError(
                        f"priors.{type(self).__name__}: {name} has {tuple(getattr(self, name).shape)} values but the "
                        f"network has {network.size} weights in {len(layers)} layers; it needs {(K, columns)}"
                    )
            directions, shifts, offsets = (x.to(like) for x in (self.directions, self.shifts, self.offsets))
            return directions, shifts, offsets
        directions = rnd.normal((K, network.size), generator=rnd.generator_from(self.seed), dtype=torch.double)
        # A map is the identity where log(1 + exp(omega . u)) = 1 and u is along omega: then u-hat is zero.
        shifts = torch.empty_like(directions)
        for s in layers:
            d = directions[:, s]
            shifts[:, s] = math.log(math.e - 1) * math.sqrt(d.shape[-1]) * d / d.square().sum(-1, keepdim=True)
        return directions.to(like), shifts.to(like), torch.zeros(K, len(layers)).to(like)


def layer_slices(network: Layout) -> list[slice]:
    """The slice of every layer: blocks in a row whose names agree up to the last dot."""
    found, at = [], 0
    for _, blocks in groupby(network.blocks, lambda block: block.name.rpartition(".")[0]):
        size = sum(block.size for block in blocks)
        found.append(slice(at, at + size))
        at += size
    return found
