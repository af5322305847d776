"""The hyper-parameters of a weight prior as free coordinates, and what is drawn with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from ..errors import ConvergenceError, DomainError, NonFiniteError, UnsupportedError
from ..networks import Network
from ..process import BayesianNetwork, StochasticProcess
from .measurement import MeasurementSet
from .random_scales import RandomScales
from .weights import WeightPrior
from .wide import LAST, bounded

Bound = Tensor | float | None  # of a hyper-parameter from below


def _hyperparameters(process: BayesianNetwork, prior: WeightPrior, order: float) -> dict[str, tuple[Tensor, Bound]]:
    """Of the prior, with bounds that keep moments of the functions of this order finite.

    Where the moments of the functions hang on the last layer alone (:func:`function_order`), so do these bounds.
    """
    layout = process.network.layout
    found: dict[str, tuple[Tensor, Bound]] = {**prior.hyperparameters(layout, order)}
    if not (isinstance(prior, RandomScales) and bounded(process.network)):
        return found
    blocks = len(layout.blocks)
    for name, (value, free) in prior.hyperparameters(layout, 0.0).items():
        bound = found[name][1]
        if isinstance(bound, float) and free is not None and bound != free:  # one value a block, or one a layer
            limits = torch.full_like(value, free)
            limits[-LAST if len(value) == blocks else -1 :] = bound
            found[name] = value, limits.to(process.device)
    return found


class Coordinates:
    """Hyper-parameters as free numbers: the logarithm of what they exceed their bound by.

    Args:
        process: The network and the prior of its weights.
        order: Order of the moment of the weights that must stay finite.
        anchor: The prior that shrinkage pulls towards; None: that of the process.
        shrinkage: Weight of the squared distance from the anchor in these coordinates.
    """

    def __init__(
        self, process: BayesianNetwork, order: float, anchor: WeightPrior | None = None, shrinkage: float = 0.0
    ):
        self.prior: Any = process.weight_prior
        self.shrinkage = shrinkage
        found = _hyperparameters(process, self.prior, order)
        if not found:
            raise UnsupportedError(
                f"match_prior: {type(self.prior).__name__} names no hyper-parameters to tune; write its method "
                "hyperparameters, or take NormalWeights"
            )
        self.bounds: dict[str, Bound] = {name: bound for name, (_, bound) in found.items()}
        self.start = [self._free(process, value, bound) for value, bound in found.values()]
        of_anchor = self.prior if anchor is None else anchor
        others = _hyperparameters(process, of_anchor, order).values()
        self.anchor = [self._free(process, value, bound) for value, bound in others]

    @staticmethod
    def _free(process: BayesianNetwork, value: Tensor, bound: Bound) -> Tensor:
        value = value.detach().to(device=process.device, dtype=torch.double)
        return value.clone() if bound is None else (value - bound).log()

    def penalty(self, raw: Sequence[Tensor]) -> Tensor:
        """The pull towards the anchor."""
        distances = [(x - a).square().sum() for x, a in zip(raw, self.anchor, strict=True)]
        return self.shrinkage * torch.stack(distances).sum()

    def build(self, raw: Sequence[Tensor]) -> WeightPrior:
        """The prior at `raw`, differentiable in it."""
        return replace(self.prior, **dict(zip(self.bounds, self._values(raw), strict=True)))

    def finish(self, raw: Sequence[Tensor]) -> WeightPrior:
        """The prior at `raw` with numbers, or tensors where it had tensors."""
        values: dict[str, Any] = {}
        for name, value in zip(self.bounds, self._values(raw), strict=True):
            old, value = getattr(self.prior, name), value.detach()
            if torch.is_tensor(old):
                values[name] = value.to(old)
            else:
                values[name] = tuple(value.tolist()) if value.ndim else value.item()
        return replace(self.prior, **values)

    def _values(self, raw: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(raw, self.bounds.values(), strict=True)
        return [x if bound is None else bound + x.exp() for x, bound in pairs]


@dataclass(frozen=True)
class Problem:
    """What is compared: draws of a network's functions and of a target's, at points."""

    process: BayesianNetwork
    target: StochasticProcess
    measurement: MeasurementSet
    generator: torch.Generator
    num_draws: int
    anchor: WeightPrior | None = None
    shrinkage: float = 0.0

    def coordinates(self, order: float, weight: float = 1.0) -> Coordinates:
        """The hyper-parameters as free numbers, with the shrinkage times `weight`."""
        return Coordinates(self.process, order, self.anchor, weight * self.shrinkage)

    def points(self, generator: torch.Generator | None = None) -> Tensor:
        """The measurement points ``M x d``, drawn again where they are not fixed."""
        like = torch.empty(0, dtype=self.process.dtype, device=self.process.device)
        return self.measurement.points(like, self.generator if generator is None else generator)

    def some_points(self, count: int) -> Tensor:
        """A random subset of the measurement points, all of them where there are no more than `count`."""
        X = self.points()
        if len(X) <= count:
            return X
        order = rnd.uniform((len(X),), generator=self.generator, dtype=torch.double).argsort()[:count]
        return X[order.to(X.device)]

    def functions(
        self, prior: WeightPrior, X: Tensor, count: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Values of functions of the network, ``count x M x c`` in float64; every count has weights of its own."""
        count, generator = count or self.num_draws, generator or self.generator
        network, process = self.process.network, self.process
        theta = prior.sample(network.layout, (count,), generator=generator, dtype=process.dtype, device=process.device)
        weights = prior.weights(network.layout, theta)
        if weights.requires_grad and torch.is_grad_enabled():
            return _Evaluate.apply(weights, network, X).double()
        return network(weights, X).double()

    def wanted(self, X: Tensor, count: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Values of functions of the target, likewise."""
        with torch.no_grad():
            return self.target.sample(X, (count or self.num_draws,), generator=generator or self.generator).double()

    def with_prior(self, prior: WeightPrior) -> Problem:
        """The same with another prior of the weights."""
        return replace(self, process=replace(self.process, weight_prior=prior))


class _Evaluate(torch.autograd.Function):
    """A network's values, with the network's own gradient in the weights: less than half of autograd's time."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, network: Network, X: Tensor) -> Tensor:
        value, ctx.back = network.pullback(weights, X)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(cotangent), None, None


@dataclass(frozen=True)
class Stage:
    """What an optimisation leaves: the priors it found, the best guess last, and the objective at every step."""

    found: tuple[WeightPrior, ...]
    history: Tensor


def descend(
    coordinates: Coordinates,
    loss: Callable[[WeightPrior], Tensor],
    steps: int,
    lr: float,
    *,
    last: float = 1.0,
    advance: Callable[[float], None],
) -> tuple[list[list[Tensor]], Tensor]:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980) on the coordinates.

    The learning rate falls along a half cosine, to `last` times what it was at the start.

    Returns:
        The coordinates before every step and after the last one, and the objective at every step.
    """
    raw = [x.clone().requires_grad_() for x in coordinates.start]
    moments = [(torch.zeros_like(x), torch.zeros_like(x)) for x in raw]
    visited, history = [_detached(raw)], []
    for step in range(steps):
        try:
            value = loss(coordinates.build(raw))
        except NonFiniteError:  # of the draws
            value = raw[0].new_tensor(math.nan)
        check_finite(value, coordinates, visited, step)
        rate = lr * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * step / steps)))
        gradients = torch.autograd.grad(value + coordinates.penalty(raw), raw)
        with torch.no_grad():
            for x, g, (mean, square) in zip(raw, gradients, moments, strict=True):
                mean.lerp_(g, 0.1)
                square.mul_(0.999).addcmul_(g, g, value=0.001)
                spread = (square / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
                x.addcdiv_(mean, spread, value=-rate / (1 - 0.9 ** (step + 1)))
        visited.append(_detached(raw))
        history.append(value.item())
        advance(history[-1])
    return visited, torch.tensor(history, dtype=torch.double)


def check_finite(value: Tensor, coordinates: Coordinates, visited: list[list[Tensor]], step: int) -> None:
    """Stop where the objective is NaN or infinite."""
    if not value.isfinite():
        raise ConvergenceError(
            f"match_prior: the objective is {value.item()} at step {step + 1}; `partial` holds the last prior of the "
            "weights with a finite one. Start from smaller scales, or take objective='mmd', which is bounded",
            partial=coordinates.finish(visited[-1]),
        )


def average(visited: list[list[Tensor]]) -> list[Tensor]:
    """The mean of the coordinates over the last third of the steps."""
    tail = visited[-max(1, len(visited) // 3) :]
    return [torch.stack(values).mean(0) for values in zip(*tail, strict=True)]


def _detached(raw: Sequence[Tensor]) -> list[Tensor]:
    return [x.detach().clone() for x in raw]


def probe_target(where: str, problem: Problem) -> None:
    """Draw twice from the target, so that one that cannot be drawn is refused before the work."""
    try:
        problem.wanted(problem.points(rnd.generator_from(0)), 2, rnd.generator_from(0))
    except DomainError as error:
        told = str(error).replace(", and give noise_variance where rows repeat", "")  # which is for data, not draws
        kernels = getattr(problem.target, "kernels", ())
        named = ", ".join(_described(kernel) for kernel in kernels) or type(problem.target).__name__
        raise DomainError(f"{where}: target cannot be drawn at the measurement points: {named}: {told}") from error


def _described(kernel: Any) -> str:
    base = getattr(kernel, "base_kernel", None)
    return type(kernel).__name__ + ("" if base is None else f"({_described(base)})")
