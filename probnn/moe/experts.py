"""Experts: how their means depend on the inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import ClassVar

import torch
from torch import Tensor

from .. import validation
from ..equality import ByValue
from ..errors import DomainError, ShapeError, UnsupportedError
from ..networks import MLP
from .gates import Gate, with_ones


@dataclass(frozen=True)
class Expert(ByValue, ABC):
    """The mean of an expert's outcomes as a function of the inputs.

    Inputs are ``... x d x n`` here, rows last.

    Attributes:
        affine: An affine map of the inputs can be made up for by the coefficients.
        linear: Means are linear in the coordinates, with the features of :meth:`design`.
    """

    affine: ClassVar[bool] = False
    linear: ClassVar[bool] = True

    @abstractmethod
    def width(self, d: int) -> int:
        """Number of coordinates of a mean."""

    def design(self, X: Tensor) -> Tensor:
        """Features ``... x p x n`` of the inputs; the last is one."""
        raise UnsupportedError(
            f"moe.{type(self).__name__}: its means are not linear in coordinates, so there are no features; fit it "
            "with method='lbfgs'"
        )

    def means(self, beta: Tensor, X: Tensor) -> Tensor:
        """Means ``... x K x m x n`` for coordinates ``... x K x m x p``."""
        phi = self.design(X)
        K, m, p = beta.shape[-3:]
        flat = beta.reshape(*beta.shape[:-3], K * m, p) @ phi
        return flat.reshape(*flat.shape[:-2], K, m, flat.shape[-1])


@dataclass(frozen=True)
class LinearExpert(Expert):
    r"""Linear means, :math:`h_i(x) = a_i^\top x + b_i`.

    Example:
        >>> LinearExpert().width(3)  # three slopes and an intercept
        4
    """

    affine: ClassVar[bool] = True

    def width(self, d: int) -> int:
        """One slope an input, and the intercept."""
        return d + 1

    def design(self, X: Tensor) -> Tensor:
        """The inputs, and ones."""
        return with_ones(X)


@dataclass(frozen=True)
class PolynomialExpert(Expert):
    r"""Polynomial means, with all monomials of total degree at most `degree`, or with the pure powers only.

    Args:
        degree: The total degree.
        interactions: Whether monomials of several inputs are among them; without them the mean is additive, and has
            `degree` d + 1 coefficients.

    Raises:
        DomainError: `degree` is no positive integer, or `interactions` no boolean.

    Example:
        >>> PolynomialExpert(2).width(2)  # x1, x2, x1 x1, x1 x2, x2 x2, 1
        6
        >>> PolynomialExpert(2, interactions=False).width(2)  # x1, x2, x1 x1, x2 x2, 1
        5
    """

    degree: int = 2
    interactions: bool = True

    def __post_init__(self) -> None:
        validation.positive_int("moe.PolynomialExpert", "degree", self.degree)
        if not isinstance(self.interactions, bool):
            raise DomainError(f"moe.PolynomialExpert: interactions must be True or False, got {self.interactions!r}")

    def _monomials(self, d: int) -> list[tuple[int, ...]]:
        powers = range(1, self.degree + 1)
        if not self.interactions:
            return [(j,) * k for k in powers for j in range(d)]
        return [m for k in powers for m in combinations_with_replacement(range(d), k)]

    def width(self, d: int) -> int:
        """One coefficient a monomial, and the intercept."""
        return len(self._monomials(d)) + 1

    def design(self, X: Tensor) -> Tensor:
        """Monomials by degree, then ones."""
        columns = [X[..., list(m), :].prod(-2) for m in self._monomials(X.shape[-2])]
        return torch.stack([*columns, X.new_ones(*X.shape[:-2], X.shape[-1])], -2)


@dataclass(frozen=True)
class FeatureExpert(Expert):
    """Means linear in features of one's own.

    Args:
        features: Maps inputs ``... x n x d`` to features ``... x n x p``; an intercept is added. A module-level
            function, so that models can be compared. Functions are not saved, nor are models that have one: save
            `theta`, and pass it to the model again.
        num_features: The number p.

    Raises:
        DomainError, ShapeError: The features are no such function.

    Example:
        >>> import torch
        >>> FeatureExpert(torch.sin, 1).design(torch.zeros(1, 3))
        tensor([[0., 0., 0.],
                [1., 1., 1.]])
    """

    features: Callable[[Tensor], Tensor]
    num_features: int

    def __post_init__(self) -> None:
        if not callable(self.features):
            raise DomainError(f"moe.FeatureExpert: features must be callable, got {self.features!r}")
        validation.positive_int("moe.FeatureExpert", "num_features", self.num_features)

    def width(self, d: int) -> int:
        """One coefficient a feature, and the intercept."""
        return self.num_features + 1

    def design(self, X: Tensor) -> Tensor:
        """The features, and ones."""
        phi = self.features(X.mT)
        if tuple(phi.shape) != (*X.mT.shape[:-1], self.num_features):
            raise ShapeError(
                f"moe.FeatureExpert: features must map {tuple(X.mT.shape)} to "
                f"{(*X.mT.shape[:-1], self.num_features)}, got {tuple(phi.shape)}; give num_features={phi.shape[-1]}?"
            )
        return with_ones(phi.mT)


@dataclass(frozen=True)
class MLPExpert(Expert):
    """Means that are small networks; fitted with ``method="lbfgs"``.

    Args:
        hidden: Widths of the hidden layers.
        activation: Of :class:`probnn.MLP`.

    Example:
        >>> MLPExpert(hidden=(4,)).width(1)
        13
    """

    linear: ClassVar[bool] = False

    hidden: tuple[int, ...] = (8,)
    activation: str = "tanh"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", self._network(1).hidden)

    def _network(self, d: int) -> MLP:
        return MLP(input_dim=d, hidden=self.hidden, output_dim=1, activation=self.activation)

    def width(self, d: int) -> int:
        """The parameters of a network."""
        return self._network(d).num_parameters

    def means(self, beta: Tensor, X: Tensor) -> Tensor:
        """A network for every expert and outcome."""
        return self._network(X.shape[-2])(beta, X.mT.unsqueeze(-3).unsqueeze(-3)).squeeze(-1)


@dataclass(frozen=True)
class NetworkGate(Gate):
    """Scores that are the outputs of one small network; fitted with ``method="lbfgs"``.

    Args:
        hidden: Widths of the hidden layers.
        activation: Of :class:`probnn.MLP`.

    Example:
        >>> NetworkGate(hidden=(4,)).tail(1, 3)  # all coordinates belong to all experts
        23
    """

    hidden: tuple[int, ...] = (8,)
    activation: str = "tanh"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", self._network(1, 1).hidden)

    def _network(self, d: int, num_experts: int) -> MLP:
        return MLP(input_dim=d, hidden=self.hidden, output_dim=num_experts, activation=self.activation)

    def width(self, d: int) -> int:
        """None of an expert's own."""
        return 0

    def held(self, d: int) -> tuple[int, ...]:
        """None."""
        return ()

    def tail(self, d: int, num_experts: int) -> int:
        """The parameters of the network."""
        return self._network(d, num_experts).num_parameters

    def scores(self, gamma: Tensor, X: Tensor, tail: Tensor) -> Tensor:
        """The outputs of the network."""
        return self._network(X.shape[-2], gamma.shape[-2])(tail, X.mT).mT

    def canonical(self, gamma: Tensor) -> Tensor:
        """As it is."""
        return gamma
