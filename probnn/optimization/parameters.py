"""Parameters: what can be set, and its coordinate."""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from typing import Any

from ..errors import DomainError, UnsupportedError

MAX_WHOLE = 2**53  # beyond, neighbouring whole numbers are one and the same double


def exact(number: float) -> Fraction:
    """The number a person writes, as a fraction: 0.1 is one tenth, not the double nearest to it."""
    return Fraction(int(number)) if isinstance(number, numbers.Integral) else Fraction(repr(float(number)))


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number (True and False are not)."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def same(a: Any, b: Any) -> bool:
    """Whether two choices are the same: True is not 1, but 1.0 is."""
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def read_number(expected: str, text: str) -> int | float:
    """A finite number of a text, whole numbers as int.

    Args:
        expected: What there should be, for the error: "expected a number from 0 to 1, got 'much'".
        text: The text.
    """
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DomainError(f"expected {expected}, got {text!r}")
    return number


def rounded(number: float) -> float:
    """A number to 12 significant digits: what is suggested can be typed."""
    return float(f"{number:.12g}")


class Parameter(ABC):
    """One parameter: the values that can be set, and their coordinates, where models and searches work."""

    def __repr__(self) -> str:
        parts = []
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if f.name in ("low", "high", "choices", "value"):
                parts.append(repr(list(value)) if f.name == "choices" else repr(value))
            elif value != f.default:
                parts.append(f"{f.name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    @property
    @abstractmethod
    def num_values(self) -> int | None:
        """How many values can be set; None where the parameter is continuous."""

    @property
    def num_features(self) -> int:
        """How many columns a model sees."""
        return 1

    @property
    def upper(self) -> float:
        """The largest coordinate that can be searched; the smallest is 0."""
        return 1.0

    @abstractmethod
    def levels(self) -> Iterator[Any]:
        """The values that can be set, one after the other (none is stored).

        Raises:
            UnsupportedError: The parameter is continuous.
        """

    @abstractmethod
    def coordinate(self, value: Any) -> float:
        """The coordinate of a value, also of one that cannot be set where there is a place for it."""

    @abstractmethod
    def nearest(self, coordinate: float) -> Any:
        """The nearest value that can be set."""

    @abstractmethod
    def neighbours(self, value: Any) -> list[Any]:
        """The settable values one step away from a value, itself excluded; none where continuous."""

    @abstractmethod
    def parse(self, text: str, *, unknown: bool = False) -> Any:
        """The value that a text (a cell of a table, a word on the command line) stands for.

        Numbers outside the range or off the grid are read as they are: :meth:`complaint` judges.

        Args:
            text: The text.
            unknown: Take a category that is not among the choices as it is, instead of an error.

        Raises:
            DomainError: The text is not of this parameter's kind.
        """

    @abstractmethod
    def complaint(self, value: Any) -> str | None:
        """Why a value cannot be set, in exact arithmetic and without the code that rounds; None if it can."""

    @abstractmethod
    def describe(self) -> str:
        """The settable values in words, such as ``from 1 to 8``."""


def _check_range(kind: str, low: Any, high: Any, log: Any, step: Any) -> None:
    if not is_number(low) or not is_number(high):
        raise DomainError(f"{kind}: low and high must be finite numbers, got {low!r} and {high!r}")
    if not low < high:
        hint = "a fixed parameter holds one value" if low == high else "exchange them"
        raise DomainError(f"{kind}: low must be below high, got {low!r} and {high!r}; {hint}")
    if not math.isfinite(float(high) - float(low)):
        raise DomainError(f"{kind}: the range from {low!r} to {high!r} is too wide for double precision")
    if not isinstance(log, bool):
        raise DomainError(f"{kind}: log must be True or False, got {log!r}")
    if log and low <= 0:
        raise DomainError(f"{kind}: a log scale needs low above 0 (zero has no logarithm), got low = {low!r}")
    if step is None:
        return
    if not is_number(step) or step <= 0:
        raise DomainError(f"{kind}: step must be a positive number (or be left out), got {step!r}")
    if exact(low) + exact(step) > exact(high):
        raise DomainError(
            f"{kind}: step {step!r} is larger than the range from {low!r} to {high!r}, so only low can be set; "
            "make it smaller, or make the parameter fixed"
        )


class Number(Parameter):
    """What :class:`Real` and :class:`Integer` share: a range, a scale and perhaps a grid."""

    low: float
    high: float
    log: bool
    step: float | None

    @cached_property
    def grid(self) -> tuple[Fraction, Fraction, int] | None:
        """First value, step and number of values of the grid; None where continuous."""
        if self.step is None:
            return None
        low, step = exact(self.low), exact(self.step)
        return low, step, (exact(self.high) - low) // step + 1

    @property
    def num_values(self) -> int | None:
        """How many values can be set; None where the parameter is continuous."""
        return None if self.grid is None else self.grid[2]

    def level(self, index: int) -> Any:
        """The value number `index` of the grid, as a person writes it (8.3, not 8.299999999999999)."""
        if self.grid is None:
            raise UnsupportedError(f"{self!r}: is continuous, so it has no levels; give it a step")
        low, step, _ = self.grid
        return float(low + index * step)

    def levels(self) -> Iterator[Any]:
        """The values that can be set, in rising order, made one by one."""
        if self.grid is None:
            raise UnsupportedError(f"{self!r}: is continuous, so it has no levels; give it a step")
        return map(self.level, range(self.grid[2]))

    def coordinate(self, value: Any) -> float:
        """Position of a value within the range, on the logarithm where `log`; outside [0, 1] outside the range."""
        if not is_number(value):
            raise DomainError(f"{type(self).__name__}: expected a finite number, got {value!r}")
        if not self.log:
            return (float(value) - self.low) / (self.high - self.low)
        if value <= 0:
            raise DomainError(f"{type(self).__name__}: a value on a log scale must be positive, got {value!r}")
        return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))

    def raw(self, coordinate: float) -> float:
        """The number at a coordinate of [0, 1] (the nearer end beyond), not rounded to what can be set."""
        if not math.isfinite(coordinate):
            raise DomainError(f"{type(self).__name__}: a coordinate must be finite, got {coordinate!r}")
        c = min(max(coordinate, 0.0), 1.0)
        number = self.low * (self.high / self.low) ** c if self.log else self.low + c * (self.high - self.low)
        return min(max(number, self.low), self.high)

    def _beside(self, number: float) -> list[int]:
        """Indices of the levels below and above a number; one where it is a level or beyond the grid."""
        if self.grid is None:
            raise UnsupportedError(f"{self!r}: is continuous, so it has no levels; give it a step")
        low, step, count = self.grid
        position = (number - float(low)) / float(step)
        near = round(position)
        # A coordinate holds about 15 digits: what is this close to a level is that level.
        if abs(position - near) <= max(1e-9, 1e-14 * abs(position)):
            indices = [near]
        else:
            indices = [math.floor(position), math.floor(position) + 1]
        return sorted({min(max(k, 0), count - 1) for k in indices})

    def nearest(self, coordinate: float) -> Any:
        """The nearest value that can be set; halfway between two, the upper one."""
        number = self.raw(coordinate)
        if self.grid is None:
            return min(max(rounded(number), self.low), self.high)
        levels = [self.level(k) for k in self._beside(number)]
        distances = [abs(self.coordinate(v) - coordinate) for v in levels]
        return levels[-1] if distances[-1] <= distances[0] * (1 + 1e-12) else levels[0]

    def neighbours(self, value: Any) -> list[Any]:
        """The settable values next below and next above a value; none where continuous."""
        if self.grid is None:
            return []
        if not is_number(value):
            raise DomainError(f"{type(self).__name__}: expected a finite number, got {value!r}")
        low, step, count = self.grid
        position = (exact(value) - low) / step
        below, above = math.ceil(position) - 1, math.floor(position) + 1
        return [self.level(k) for k in sorted({min(below, count - 1), max(above, 0)}) if 0 <= k < count]

    def parse(self, text: str, *, unknown: bool = False) -> Any:
        """The number a text stands for, whether or not it can be set."""
        return read_number(f"a number {self.describe()}", text.strip())

    def complaint(self, value: Any) -> str | None:
        """Why a value cannot be set; None if it can."""
        if not is_number(value):
            return f"must be a finite number, got {value!r}"
        number, low = exact(value), exact(self.low)
        if not low <= number <= exact(self.high):
            return f"must be {self.describe()}, got {value!r}"
        if self.step is not None and ((number - low) / exact(self.step)).denominator != 1:
            return f"must be {self.describe()}, got {value!r}"
        return None

    def describe(self) -> str:
        """The settable values in words."""
        words = f"from {self.low!r} to {self.high!r}"
        return words if self.step is None else f"{words} in steps of {self.step!r}"


@dataclass(frozen=True, repr=False)
class Real(Number):
    """A real parameter between `low` and `high`.

    Args:
        low, high: The range, both ends included.
        log: Model and search on the logarithm; needs ``low > 0``.
        step: Only ``low, low + step, low + 2 step, ...`` up to `high` can be set, also where `log`; None: any
            number (suggestions have 12 significant digits).

    Raises:
        DomainError: The range is empty or not finite, `low` has no logarithm, or the step does not fit.

    Example:
        >>> Real(1e-4, 1e-2, log=True).nearest(0.5)
        0.001
        >>> power = Real(8, 9.8, step=0.1)
        >>> power.num_values, list(power.levels())[:4]
        (19, [8.0, 8.1, 8.2, 8.3])
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        _check_range("Real", self.low, self.high, self.log, self.step)
        for name in ("low", "high", "step"):
            number = getattr(self, name)
            object.__setattr__(self, name, None if number is None else float(number))

    def parse(self, text: str, *, unknown: bool = False) -> float:
        """The number a text stands for, whether or not it can be set."""
        return float(read_number(f"a number {self.describe()}", text.strip()))


@dataclass(frozen=True, repr=False)
class Integer(Number):
    """A whole number between `low` and `high`.

    Args:
        low, high: The range, both ends included; at most 2**53 in size.
        log: Model and search on the logarithm; needs ``low > 0``.
        step: Only ``low, low + step, low + 2 step, ...`` up to `high` can be set; None: every whole number.

    Raises:
        DomainError: The range is empty or not of whole numbers, `low` has no logarithm, or the step does not fit.

    Example:
        >>> Integer(1, 8).nearest(0.5), Integer(1, 1024, log=True).nearest(0.5)
        (5, 32)
        >>> list(Integer(16, 64, step=16).levels())
        [16, 32, 48, 64]
    """

    low: int
    high: int
    log: bool = False
    step: int | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            number = getattr(self, name)
            if number is None and name == "step":
                continue
            if not isinstance(number, numbers.Integral) or isinstance(number, bool):
                raise DomainError(
                    f"Integer: {name} must be a whole number, got {number!r}; a real parameter takes any number"
                )
            object.__setattr__(self, name, int(number))
            if abs(int(number)) > MAX_WHOLE:
                raise DomainError(
                    f"Integer: {name} must be at most 2**53 in size, got {number}; take a real parameter on a log scale"
                )
        _check_range("Integer", self.low, self.high, self.log, self.step)

    @cached_property
    def grid(self) -> tuple[Fraction, Fraction, int]:
        """First value, step and number of values."""
        step = self.step or 1
        return Fraction(self.low), Fraction(step), (self.high - self.low) // step + 1

    def level(self, index: int) -> int:
        """The value number `index` of the grid."""
        return self.low + index * (self.step or 1)

    def parse(self, text: str, *, unknown: bool = False) -> int | float:
        """The number a text stands for; one that is not whole (an old row, off the grid) as a float."""
        number = read_number(f"a whole number {self.describe()}", text.strip())
        return int(number) if number == int(number) else number

    def complaint(self, value: Any) -> str | None:
        """Why a value cannot be set; None if it can."""
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            return f"must be a whole number, got {value!r}"
        return super().complaint(value)
