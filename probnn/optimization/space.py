"""Spaces of parameters, and their map to the unit cube where models work."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DomainError, ShapeError


class Parameter(ABC):
    """One parameter: an interval that maps to [0, 1], and the values in it that can be set."""

    @abstractmethod
    def encode(self, value: Any) -> float:
        """The coordinate of a value; values outside the range map outside [0, 1]."""

    @abstractmethod
    def decode(self, coordinate: float) -> Any:
        """The nearest value that can be set."""

    def neighbours(self, coordinate: float) -> list[float]:
        """Coordinates of the settable values beside `coordinate`; itself where all values can be set."""
        return [min(max(coordinate, 0.0), 1.0)]


def _check_range(where: str, low: Any, high: Any, log: bool) -> None:
    if not (isinstance(low, (int, float)) and isinstance(high, (int, float))) or not math.isfinite(high - low):
        raise DomainError(f"{where}: low and high must be finite numbers, got {low!r} and {high!r}")
    if not low < high:
        raise DomainError(f"{where}: low must be below high, got {low!r} and {high!r}")
    if log and low <= 0:
        raise DomainError(f"{where}: a log scale needs low > 0, got {low!r}")


def _check_number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DomainError(f"{where}: expected a finite number, got {value!r}")
    return float(value)


@dataclass(frozen=True)
class Real(Parameter):
    """A real parameter between `low` and `high`.

    Args:
        low, high: The range, both ends included.
        log: Model and search on the logarithm; needs ``low > 0``.

    Example:
        >>> Real(1e-4, 1e-2, log=True).decode(0.5)
        0.001
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        _check_range("Real", self.low, self.high, self.log)

    def encode(self, value: Any) -> float:
        """Position of the value within the range, on the logarithm where `log`."""
        number = _check_number("Real", value)
        if self.log:
            if number <= 0:
                raise DomainError(f"Real: a value on a log scale must be positive, got {value!r}")
            return math.log(number / self.low) / math.log(self.high / self.low)
        return (number - self.low) / (self.high - self.low)

    def decode(self, coordinate: float) -> float:
        """The value at a coordinate, to 12 significant digits and inside the range."""
        if self.log:
            value = self.low * (self.high / self.low) ** coordinate
        else:
            value = self.low + coordinate * (self.high - self.low)
        return min(max(float(f"{value:.12g}"), self.low), self.high)


@dataclass(frozen=True)
class Integer(Parameter):
    """A whole number between `low` and `high`.

    Args:
        low, high: The range, both ends included.
        log: Model and search on the logarithm; needs ``low > 0``.

    Example:
        >>> Integer(1, 8).decode(0.5), Integer(1, 1024, log=True).decode(0.5)
        (5, 32)
    """

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        _check_range("Integer", self.low, self.high, self.log)
        if not (isinstance(self.low, int) and isinstance(self.high, int)):
            raise DomainError(f"Integer: low and high must be integers, got {self.low!r} and {self.high!r}")

    def encode(self, value: Any) -> float:
        """Position of the value within the range, on the logarithm where `log`."""
        return Real(self.low, self.high, self.log).encode(value)

    def _continuous(self, coordinate: float) -> float:
        return Real(self.low, self.high, self.log).decode(coordinate)

    def decode(self, coordinate: float) -> int:
        """The nearest whole number (halves go up)."""
        return min(max(math.floor(self._continuous(coordinate) + 0.5), self.low), self.high)

    def neighbours(self, coordinate: float) -> list[float]:
        """The whole numbers below and above."""
        value = self._continuous(coordinate)
        return sorted({self.encode(v) for v in (math.floor(value), math.ceil(value))})


class Space:
    """Named parameters, in the order given.

    Args:
        parameters: ``name=Real(...)`` or ``name=Integer(...)``.

    Raises:
        DomainError: There is no parameter, or one is of another type.

    Example:
        >>> space = Space(learning_rate=Real(1e-4, 1e-1, log=True), depth=Integer(1, 8))
        >>> space.decode(space.encode({"learning_rate": 0.01, "depth": 3}))
        {'learning_rate': 0.01, 'depth': 3}
    """

    def __init__(self, **parameters: Parameter):
        if not parameters:
            raise DomainError("Space: needs at least one parameter, such as Space(x=Real(0.0, 1.0))")
        for name, parameter in parameters.items():
            if not isinstance(parameter, Parameter):
                raise DomainError(
                    f"Space: {name} must be a Real or an Integer, got a {type(parameter).__name__}; "
                    f"write {name}=Real(low, high)"
                )
        self.parameters = dict(parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __repr__(self) -> str:
        return f"Space({', '.join(f'{name}={p!r}' for name, p in self.parameters.items())})"

    @property
    def bounds(self) -> Tensor:
        """The unit cube, ``2 x d``."""
        return torch.stack([torch.zeros(len(self)), torch.ones(len(self))]).double()

    def encode(self, values: Mapping[str, Any]) -> Tensor:
        """A setting as a point of the unit cube, of length d."""
        if set(values) != set(self.parameters):
            raise DomainError(
                f"Space.encode: expected the parameters {sorted(self.parameters)}, got {sorted(map(str, values))}"
            )
        return torch.tensor([p.encode(values[name]) for name, p in self.parameters.items()], dtype=torch.double)

    def decode(self, point: Tensor) -> dict[str, Any]:
        """The nearest setting to a point of the unit cube, of length d."""
        if point.shape != (len(self),):
            raise ShapeError(f"Space.decode: expected a point of shape ({len(self)},), got {tuple(point.shape)}")
        return {name: p.decode(c) for (name, p), c in zip(self.parameters.items(), point.tolist(), strict=True)}

    def neighbours(self, point: Tensor, limit: int = 64) -> Tensor:
        """Settable points around a point of the unit cube, ``k x d`` with k <= `limit`.

        All combinations of the values beside each coordinate; where those are more than `limit`, the
        nearest value is taken for the last parameters.
        """
        rows: list[list[float]] = [[]]
        for parameter, coordinate in zip(self.parameters.values(), point.tolist(), strict=True):
            near = parameter.neighbours(coordinate)
            if len(rows) * len(near) > limit:
                near = [parameter.encode(parameter.decode(coordinate))]
            rows = [[*row, c] for row in rows for c in near]
        return torch.tensor(rows, dtype=torch.double)
