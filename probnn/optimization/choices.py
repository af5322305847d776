"""Parameters that are one of some choices, and constants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DomainError, UnsupportedError
from .parameters import Parameter, is_number, read_number, same


@dataclass(frozen=True, repr=False)
class Categorical(Parameter):
    """One of some choices: words, numbers or truth values.

    Args:
        choices: At least two, all different (also as text: ``1`` and ``"1"`` look alike in a table).
        ordered: The choices are in order (``["low", "medium", "high"]``): models see equally spaced numbers
            instead of one column a choice.
        known: Categories of old data that models know and nobody is asked to set; only where not ordered.

    Raises:
        DomainError: Fewer than two choices, two alike, or one of another type.

    Example:
        >>> loss = Categorical(["hinge", "log", "square"])
        >>> loss.coordinate("log"), loss.nearest(2.0), loss.num_features
        (1.0, 'square', 3)
    """

    choices: Sequence[Any]
    ordered: bool = False
    known: Sequence[Any] = ()

    def __post_init__(self) -> None:
        for name in ("choices", "known"):
            given = getattr(self, name)
            if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
                raise DomainError(f"Categorical: {name} must be a list such as ['a', 'b'], got {given!r}")
            object.__setattr__(self, name, tuple(given))
        if not isinstance(self.ordered, bool):
            raise DomainError(f"Categorical: ordered must be True or False, got {self.ordered!r}")
        if len(self.choices) < 2:
            raise DomainError(
                f"Categorical: needs at least two choices, got {list(self.choices)!r}; "
                "a fixed parameter holds a single one, or leave it out"
            )
        if self.ordered and self.known:
            raise DomainError(
                f"Categorical: {self.known[0]!r} has no place among ordered choices; add it to choices where it belongs"
            )
        for choice in self.all_choices:
            _check_constant("Categorical: a choice", choice)
        for a, b in itertools.combinations(self.all_choices, 2):
            if same(a, b) or str(a).strip() == str(b).strip():
                raise DomainError(f"Categorical: choices must differ, also as text, got {a!r} and {b!r}")

    @property
    def all_choices(self) -> tuple[Any, ...]:
        """The choices and the known categories."""
        return (*self.choices, *self.known)

    @property
    def num_values(self) -> int:
        """How many values can be set."""
        return len(self.choices)

    @property
    def num_features(self) -> int:
        """One column where ordered or of two categories, else one a category (one-hot)."""
        return 1 if self.ordered or len(self.all_choices) == 2 else len(self.all_choices)

    @property
    def upper(self) -> float:
        """The largest coordinate that can be searched: 1 where ordered, else the last index."""
        return 1.0 if self.ordered else len(self.choices) - 1.0

    def levels(self) -> Iterator[Any]:
        """The choices."""
        return iter(self.choices)

    def coordinate(self, value: Any) -> float:
        """The index of a choice or known category; where ordered, the index over the last index."""
        for index, choice in enumerate(self.all_choices):
            if same(choice, value):
                return index / (len(self.choices) - 1) if self.ordered else float(index)
        raise DomainError(f"Categorical: expected {self.describe()}, got {value!r}")

    def nearest(self, coordinate: float) -> Any:
        """The choice at an index; where ordered, the choice nearest to a coordinate of [0, 1]."""
        if not math.isfinite(coordinate):
            raise DomainError(f"Categorical: a coordinate must be finite, got {coordinate!r}")
        last = len(self.choices) - 1
        if self.ordered:
            return self.choices[min(max(math.floor(coordinate * last + 0.5), 0), last)]
        index = math.floor(coordinate + 0.5)
        if not 0 <= index <= last:
            raise DomainError(f"Categorical: index {coordinate!r} is not that of a choice, which go from 0 to {last}")
        return self.choices[index]

    def neighbours(self, value: Any) -> list[Any]:
        """The other choices; where ordered, the one before and the one after."""
        if not self.ordered:
            return [choice for choice in self.choices if not same(choice, value)]
        index = round(self.coordinate(value) * (len(self.choices) - 1))
        return [self.choices[k] for k in (index - 1, index + 1) if 0 <= k < len(self.choices)]

    def parse(self, text: str, *, unknown: bool = False) -> Any:
        """The choice a text stands for: word for word, as a number, or true and false in any case."""
        text = text.strip()
        for choice in self.all_choices:
            if text == str(choice).strip():
                return choice
        try:
            number: Any = read_number("", text)
        except DomainError:
            number = None
        for choice in self.all_choices:
            if isinstance(choice, bool) and text.casefold() == str(choice).casefold():
                return choice
            if number is not None and not isinstance(choice, (bool, str)) and choice == number:
                return choice
        if unknown and text:
            return number if number is not None and all(map(is_number, self.choices)) else text
        raise DomainError(f"expected {self.describe()}, got {text!r}")

    def complaint(self, value: Any) -> str | None:
        """Why a value cannot be set; None if it can."""
        if any(same(choice, value) for choice in self.choices):
            return None
        return f"must be {self.describe()}, got {value!r}"

    def describe(self) -> str:
        """The choices in words."""
        shown = ", ".join(repr(c) for c in self.choices[:10])
        return f"one of {shown}" + (f" (and {len(self.choices) - 10} more)" if len(self.choices) > 10 else "")


@dataclass(frozen=True, repr=False)
class Fixed(Parameter):
    """A constant: part of every setting, not of the search.

    Args:
        value: A word, a number or a truth value.

    Example:
        >>> Fixed("water").complaint("oil")
        "must be 'water', got 'oil'"
    """

    value: Any

    def __post_init__(self) -> None:
        _check_constant("Fixed: the value", self.value)

    @property
    def num_values(self) -> int:
        """One."""
        return 1

    @property
    def num_features(self) -> int:
        """None: models do not see it."""
        return 0

    def levels(self) -> Iterator[Any]:
        """The value."""
        return iter((self.value,))

    def coordinate(self, value: Any) -> float:
        """A constant has no coordinate."""
        raise UnsupportedError("Fixed: a constant has no coordinate")

    def nearest(self, coordinate: float) -> Any:
        """The value."""
        return self.value

    def neighbours(self, value: Any) -> list[Any]:
        """None: there is nothing else to set."""
        return []

    def parse(self, text: str, *, unknown: bool = False) -> Any:
        """The value a text stands for; another one than the constant only where `unknown`."""
        text = text.strip()
        if isinstance(self.value, bool):
            if text.casefold() in ("true", "false"):
                found: Any = text.casefold() == "true"
            else:
                raise DomainError(f"expected {self.value!r}, got {text!r}")
        elif is_number(self.value):
            found = read_number(repr(self.value), text)
        else:
            found = text
        if same(found, self.value):
            return self.value
        if isinstance(self.value, str) and text == self.value.strip():
            return self.value
        if unknown and text:
            return found
        raise DomainError(f"expected {self.value!r}, got {text!r}")

    def complaint(self, value: Any) -> str | None:
        """Why a value cannot be set; None if it can."""
        return None if same(value, self.value) else f"must be {self.value!r}, got {value!r}"

    def describe(self) -> str:
        """The value in words."""
        return f"always {self.value!r}"


def _check_constant(where: str, value: Any) -> None:
    if isinstance(value, bool):
        return
    if isinstance(value, str) and value.strip():
        return
    if isinstance(value, (int, float)) and math.isfinite(value):
        return
    raise DomainError(
        f"{where} must be a word that is not empty, a finite number, True or False, got {value!r}"
        + (f" (a {type(value).__name__})" if not isinstance(value, (str, float)) else "")
    )
