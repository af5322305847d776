"""Test problems with known optima, to be minimised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import DomainError
from .parameters import Real
from .space import Space

PROBLEMS = ("branin", "hartmann6", "ackley5")
TARGET = "value"


@dataclass(frozen=True)
class Problem:
    """A function to minimise.

    Args:
        name: Its name.
        space: Its parameters, x1, x2, ...
        objective: Called with the parameters by name.
        optimum: The smallest value there is.
    """

    name: str
    space: Space
    objective: Callable[..., float]
    optimum: float


def named_problem(name: str) -> Problem:
    """A test problem by name: branin, hartmann6 or ackley5, with the ranges and values that BoTorch has.

    Raises:
        DomainError: There is no such problem.

    Example:
        >>> problem = named_problem("branin")
        >>> problem.space
        Space(x1=Real(-5.0, 10.0), x2=Real(0.0, 15.0))
        >>> round(problem.objective(x1=-3.14159, x2=12.275), 4), round(problem.optimum, 4)
        (0.3979, 0.3979)
    """
    if name not in PROBLEMS:
        raise DomainError(f"named_problem: there is no problem {name!r}; there are {', '.join(PROBLEMS)}")
    from botorch.test_functions import Ackley, Branin, Hartmann

    function = {"branin": Branin, "hartmann6": Hartmann, "ackley5": lambda: Ackley(dim=5)}[name]().double()
    low, high = function.bounds.tolist()
    ranges: dict[str, Any] = {f"x{i}": Real(a, b) for i, (a, b) in enumerate(zip(low, high, strict=True), 1)}
    return Problem(name, Space(**ranges), _Objective(function), float(function.optimal_value))


class _Objective:
    def __init__(self, function: Any):
        self.function = function

    def __call__(self, **parameters: float) -> float:
        point = torch.tensor([parameters[f"x{i}"] for i in range(1, len(parameters) + 1)], dtype=torch.double)
        return float(self.function(point))
