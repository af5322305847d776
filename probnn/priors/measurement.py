"""Where two processes are compared: sets of measurement points."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..equality import ByValue
from ..errors import DomainError, ShapeError

MAX_GRID = 10_000


class MeasurementSet(ByValue, ABC):
    """Points x at which functions are compared; subclasses are frozen dataclasses."""

    @property
    @abstractmethod
    def input_dim(self) -> int:
        """Number of inputs d."""

    @property
    def fixed(self) -> bool:
        """Whether the points are the same at every step."""
        return True

    @abstractmethod
    def points(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The points ``M x d``, with the dtype and device of `like`; drawn with `generator` where not fixed."""


@dataclass(frozen=True)
class Grid(MeasurementSet):
    """A regular grid over a box, ends included.

    Args:
        low: Lower end: a number, or one an input.
        high: Upper end, likewise.
        size: Points along an axis: a number, or one an input. All together at most 10,000.

    Raises:
        DomainError: An end is not finite, a lower one is not below its upper one, a size is not a positive integer
            (1 is the middle), lengths differ, or there are too many points.

    Example:
        >>> import torch
        >>> Grid(-1, 1, 3).points(torch.empty(0)).squeeze(-1).tolist()
        [-1.0, 0.0, 1.0]
        >>> Grid((0, 0), (1, 2), 4).points(torch.empty(0)).shape
        torch.Size([16, 2])
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    size: int | tuple[int, ...]

    def __post_init__(self) -> None:
        where = "priors.Grid"
        given: dict[str, Any] = {}
        for name in ("low", "high", "size"):
            value = getattr(self, name)
            value = value.tolist() if torch.is_tensor(value) else value
            many = isinstance(value, Sequence) and not isinstance(value, str)
            given[name] = tuple(value) if many else value
        lengths = {len(value) for value in given.values() if isinstance(value, tuple)}
        if len(lengths) > 1 or 0 in lengths:
            raise DomainError(
                f"{where}: low, high and size must be numbers or have one value an input each, got {given}"
            )
        d = lengths.pop() if lengths else 1
        for name, value in given.items():
            entries = value if isinstance(value, tuple) else (value,) * d
            if name == "size":
                entries = tuple(validation.positive_int(where, "size", entry) for entry in entries)
            elif not all(isinstance(e, Real) and not isinstance(e, bool) and math.isfinite(e) for e in entries):
                raise DomainError(f"{where}: {name} must be finite, got {value!r}")
            else:
                entries = tuple(float(entry) for entry in entries)
            given[name] = entries
        if not all(low < high for low, high in zip(given["low"], given["high"], strict=True)):
            raise DomainError(f"{where}: low must be below high, got {self.low!r} and {self.high!r}")
        if math.prod(given["size"]) > MAX_GRID:
            raise DomainError(
                f"{where}: {math.prod(given['size'])} points are more than {MAX_GRID}; in many dimensions draw points "
                "with TrainingInputs, or give a tensor of points"
            )
        for name, value in given.items():
            object.__setattr__(self, name, value)

    @property
    def input_dim(self) -> int:
        """Number of inputs d."""
        return len(self.size)  # type: ignore[arg-type]

    def points(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The grid, ``M x d``; the last input varies fastest."""
        axes = [
            torch.linspace(low, high, size, dtype=like.dtype, device=like.device)
            if size > 1
            else like.new_tensor([(low + high) / 2])
            for low, high, size in zip(self.low, self.high, self.size, strict=True)  # type: ignore[arg-type]
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))


@dataclass(frozen=True)
class TrainingInputs(MeasurementSet):
    """Training inputs and points of the box around them, drawn again at every step.

    The mixture of Tran et al. (2022, arXiv 2011.12829): `fraction` of the points are training inputs, drawn without
    replacement, and the rest is uniform in a box, so that the prior is also matched where there are no data. Where
    there are fewer training inputs than that, all of them serve, and more points come from the box.

    Args:
        X: Training inputs ``n x d``.
        bounds: Lower and upper ends of the box, ``2 x d``; None: the smallest box around X.
        size: Number of points M at each step.
        fraction: Share of training inputs, from 0 to 1.

    Raises:
        ShapeError: X is empty or not ``n x d``, or the bounds are not ``2 x d``.
        DomainError: A lower end is above its upper end, or another argument is out of range.
        NonFiniteError: There is NaN or infinity in X or the bounds.

    Example:
        >>> import torch
        >>> inputs = TrainingInputs(torch.rand(50, 2), size=20)
        >>> inputs.points(torch.empty(0), torch.Generator().manual_seed(0)).shape
        torch.Size([20, 2])
    """

    X: Tensor
    bounds: Tensor | None = None
    size: int = 100
    fraction: float = 0.7

    def __post_init__(self) -> None:
        where = "priors.TrainingInputs"
        check_points(where, "X", self.X)
        bounds = torch.stack([self.X.amin(0), self.X.amax(0)]) if self.bounds is None else self.bounds
        validation.tensor(where, "bounds", bounds, like=self.X)
        if bounds.shape != (2, self.X.shape[-1]):
            raise ShapeError(f"{where}: bounds must have shape (2, {self.X.shape[-1]}), got {tuple(bounds.shape)}")
        if not (bounds[0] <= bounds[1]).all():
            raise DomainError(f"{where}: every lower bound must be at most its upper bound, got {bounds.tolist()}")
        validation.positive_int(where, "size", self.size)
        validation.positive(where, "fraction", self.fraction, maximum=1.0, allow_zero=True)
        object.__setattr__(self, "bounds", bounds)

    @property
    def input_dim(self) -> int:
        """Number of inputs d."""
        return self.X.shape[-1]

    @property
    def fixed(self) -> bool:
        """The points change from step to step."""
        return False

    def points(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A new draw of the points, ``M x d``: training inputs first."""
        count = min(len(self.X), round(self.fraction * self.size))
        order = rnd.uniform((len(self.X),), generator=generator, dtype=torch.double).argsort()[:count]
        low, high = self.bounds.to(like)  # type: ignore[union-attr]
        box = low + (high - low) * rnd.uniform((self.size - count, self.input_dim), generator=generator, like=like)
        return torch.cat([self.X[order.to(self.X.device)].to(like), box])


@dataclass(frozen=True)
class Points(MeasurementSet):
    """Points of the user's own; :func:`probnn.match_prior` makes this of a tensor.

    Args:
        X: The points, ``M x d``.

    Raises:
        ShapeError: X is empty or not ``M x d``.
        NonFiniteError: There is NaN or infinity in X.

    Example:
        >>> import torch
        >>> Points(torch.zeros(3, 2)).input_dim
        2
    """

    X: Tensor

    def __post_init__(self) -> None:
        check_points("priors.Points", "X", self.X)

    @property
    def input_dim(self) -> int:
        """Number of inputs d."""
        return self.X.shape[-1]

    def points(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The points, ``M x d``."""
        return self.X.to(like)


def check_points(where: str, name: str, X: Any) -> None:
    """Check points ``M x d``, one at least."""
    validation.tensor(where, name, X)
    if X.ndim != 2 or not X.numel():
        raise ShapeError(f"{where}: {name} must have shape (M, d) with at least one point, got {tuple(X.shape)}")
