"""The multilayer perceptron, evaluated for a stack of draws at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from .. import validation
from ..errors import DomainError
from .base import Network, Pullback
from .layout import Block, Layout

_aten = torch.ops.aten


def _tanh(a: Tensor) -> Tensor:
    # MKL's tanh takes 5 to 10 times as long as the logistic function on processors that are not
    # Intel's, and was two thirds of a gradient. To 4e-16 absolute the same number in float64.
    return (2 * a).sigmoid_().mul(2).sub_(1) if a.device.type == "cpu" else torch.tanh(a)


def _erf_pull(delta: Tensor, a: Tensor, h: Tensor) -> Tensor:
    return delta * (a * a).neg_().exp_().mul_(2 / math.sqrt(math.pi))


# The activation, and the product of a cotangent with its derivative from the input a and the output h.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "tanh": (_tanh, lambda delta, a, h: _aten.tanh_backward(delta, h)),
    "relu": (torch.relu, lambda delta, a, h: _aten.threshold_backward(delta, h, 0.0)),
    "erf": (torch.erf, _erf_pull),
    "gelu": (torch.nn.functional.gelu, lambda delta, a, h: _aten.gelu_backward(delta, a)),
    "silu": (torch.nn.functional.silu, lambda delta, a, h: _aten.silu_backward(delta, a)),
    "sin": (torch.sin, lambda delta, a, h: delta * torch.cos(a)),
}


@dataclass(frozen=True, kw_only=True)
class MLP(Network):
    r"""A multilayer perceptron as a function of one flat parameter vector.

    :math:`h_0 = x,\; h_l = \phi(W_l h_{l-1} + b_l),\; f(x) = W_L h_{L-1} + b_L`. All draws of the
    parameters are evaluated by batched matrix products; large stacks are worked off in pieces of
    about 4 MB of activations.

    Args:
        input_dim: Number of inputs d.
        hidden: Widths of the hidden layers; ``()`` is the linear model.
        output_dim: Number of channels c.
        activation: ``"tanh"``, ``"relu"``, ``"erf"``, ``"gelu"``, ``"silu"`` or ``"sin"``.

    Raises:
        DomainError: A width is not a positive integer, or the activation is unknown.

    Example:
        >>> import torch
        >>> net = MLP(input_dim=2, hidden=(5,), output_dim=3)
        >>> net.num_parameters, tuple(net(torch.zeros(4, 33), torch.zeros(7, 2)).shape)
        (33, (4, 7, 3))
    """

    input_dim: int
    hidden: tuple[int, ...] = (50, 50)
    output_dim: int = 1
    activation: str = "tanh"

    def __post_init__(self) -> None:
        for name in ("input_dim", "output_dim"):
            object.__setattr__(self, name, validation.positive_int("MLP", name, getattr(self, name)))
        if isinstance(self.hidden, str) or not hasattr(self.hidden, "__iter__"):
            raise DomainError(f"MLP: hidden must be a tuple of widths such as (50, 50), got {self.hidden!r}")
        hidden = tuple(validation.positive_int("MLP", "every width in hidden", width) for width in self.hidden)
        object.__setattr__(self, "hidden", hidden)
        validation.choice("MLP", "activation", self.activation, tuple(ACTIVATIONS))

    @cached_property
    def layout(self) -> Layout:
        """Blocks ``layers.i.weight`` (out x in) and ``layers.i.bias`` (out)."""
        blocks: list[Block] = []
        for i, (a, b) in enumerate(pairwise((self.input_dim, *self.hidden, self.output_dim))):
            out = (0,) if i < len(self.hidden) else ()
            into = (1,) if i > 0 else ()
            blocks.append(Block(f"layers.{i}.weight", (b, a), a, out + into, "weight"))
            blocks.append(Block(f"layers.{i}.bias", (b,), a, out, "bias"))
        return Layout(tuple(blocks))

    @property
    def _width(self) -> int:
        return max((*self.hidden, self.output_dim))

    def _affine(self, params: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Weights ``S x out x in`` and biases ``S x 1 x out`` of every layer, as views."""
        out, blocks = [], self.layout.slices()
        for (weight, of_weight), (_, of_bias) in zip(blocks, blocks, strict=True):
            out.append((params[:, of_weight].unflatten(-1, weight.shape), params[:, of_bias].unsqueeze(-2)))
        return out

    def _stacked(self, params: Tensor, X: Tensor) -> Tensor:
        activation, layers = ACTIVATIONS[self.activation][0], self._affine(params)
        h = X.expand(params.shape[0], -1, -1)
        for i, (weight, bias) in enumerate(layers):
            h = torch.baddbmm(bias, h, weight.mT)
            if i < len(layers) - 1:
                h = activation(h)
        return h

    def _stacked_pullback(self, params: Tensor, X: Tensor) -> tuple[Tensor, Pullback]:
        # Written out because it is what every leapfrog step pays for: about half the time of
        # automatic differentiation, which keeps and walks a graph for the same products.
        activation, pull = ACTIVATIONS[self.activation]
        with torch.no_grad():
            layers = self._affine(params)
            h = X.expand(params.shape[0], -1, -1)
            kept: list[tuple[Tensor, Tensor, Tensor]] = []  # input of the layer, a and h behind it
            for weight, bias in layers[:-1]:
                a = torch.baddbmm(bias, h, weight.mT)
                out = activation(a)
                kept.append((h, a, out))
                h = out
            value = torch.baddbmm(layers[-1][1], h, layers[-1][0].mT)
        last = h

        def back(cotangent: Tensor) -> Tensor:
            with torch.no_grad():
                grad = params.new_empty(params.shape)
                delta, into = cotangent, last
                for i, (of_weight, of_bias) in reversed(list(enumerate(self._affine(grad)))):
                    torch.sum(delta, -2, keepdim=True, out=of_bias)
                    # One product each, in the order that runs along memory (out= of a strided view does not).
                    single = delta.shape[-1] == 1
                    of_weight.copy_(torch.bmm(delta.mT, into) if single else _into_delta(into, delta, X, i).mT)
                    if i > 0:
                        weight, (into, pre, post) = layers[i][0], kept[i - 1]
                        delta = delta * weight if single else torch.bmm(delta, weight)
                        delta = pull(delta, pre, post)
                return grad

        return value, back


def _into_delta(into: Tensor, delta: Tensor, X: Tensor, layer: int) -> Tensor:
    """``into^T delta`` of every draw; rows shared by all draws are one matrix, not a stack of copies."""
    if layer == 0 and X.shape[0] == 1:
        return torch.matmul(X[0].mT, delta)
    return torch.bmm(into.mT, delta)
