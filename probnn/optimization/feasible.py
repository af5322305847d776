"""Settings that satisfy everything: the nearest one, space-filling ones, and which constraints collide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError, ShapeError
from .constraints import Constraint
from .program import nearest_values
from .sampling import DesignStream

if TYPE_CHECKING:
    from .space import Space

MAX_STREAMS = 16  # designs that a space remembers


def nearest(space: Space, coordinates: Tensor, fixed: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The settable setting nearest to coordinates that satisfies every constraint on single settings.

    Without constraints each parameter goes to its nearest value. Otherwise a mixed-integer linear program
    (HiGHS) minimises the sum of the distances in coordinates; the result is checked in exact arithmetic. Distances
    of parameters with a logarithmic scale are those of the tangent at the point, so that another setting may be a
    little nearer.

    Args:
        space: The space.
        coordinates: A point of length d, also one that no setting has.
        fixed: Values to keep, by name.

    Returns:
        The setting; None where no setting with these values satisfies the constraints.

    Raises:
        DomainError: A value of `fixed` cannot be set.
        ConvergenceError: The search for a setting was given up.

    Example:
        >>> import torch
        >>> from probnn.optimization import Real, Space
        >>> space = Space(a=Real(0, 1, step=0.05), b=Real(0, 1), constraints=["a + b = 1"])
        >>> nearest(space, torch.tensor([0.34, 0.68], dtype=torch.double))
        {'a': 0.35, 'b': 0.65}
    """
    if coordinates.shape != (len(space),):
        raise ShapeError(f"nearest: coordinates must have shape ({len(space)},), got {tuple(coordinates.shape)}")
    given = check_fixed(space, fixed)
    at = dict(zip(space.free, coordinates.tolist(), strict=True))
    return nearest_values(space.parameters, at, given, space.bound)


def check_fixed(space: Space, fixed: Mapping[str, Any] | None) -> dict[str, Any]:
    """The values that are given: constants of the space and `fixed`, each checked by itself."""
    given = dict(space.fixed)
    for name, value in (fixed or {}).items():
        if name not in space.parameters:
            raise DomainError(
                f"fixed: there is no parameter {name!r}; known are {', '.join(map(repr, space.parameters))}"
            )
        if (complaint := space.parameters[name].complaint(value)) is not None:
            raise DomainError(f"fixed: {name} {complaint}")
        given[name] = value
    return given


def check_satisfiable(space: Space, fixed: Mapping[str, Any] | None = None) -> None:
    """Refuse constraints that no setting satisfies, naming a smallest set of them that collides.

    Args:
        space: The space, with its ranges and grids.
        fixed: Values to keep, by name.

    Raises:
        DomainError: There is no setting; or a value of `fixed` cannot be set.
        ConvergenceError: The search for a setting was given up.
    """
    given = check_fixed(space, fixed)
    middle = {name: p.upper / 2 if p.upper == 1.0 else 0.0 for name, p in space.free.items()}

    def possible(constraints: Sequence[Constraint]) -> bool:
        return nearest_values(space.parameters, middle, given, constraints) is not None

    colliding = list(space.bound)
    if possible(colliding):
        return
    for constraint in space.bound:
        others = [c for c in colliding if c is not constraint]
        if not possible(others):
            colliding = others
    names = dict.fromkeys(name for c in colliding for name in c.names)
    story = ", ".join(
        f"{name} = {given[name]!r} fixed" if name in given else f"{name} {space.parameters[name].describe()}"
        for name in names
    )
    texts = " and ".join(f"'{c.text}'" for c in colliding)
    raise DomainError(
        f"Space: no setting satisfies {texts} with {story}; "
        + ("drop or loosen one of these constraints" if len(colliding) > 1 else "drop or loosen the constraint")
        + ", or widen a range"
    )


def design(
    space: Space, n: int, seed: int, fixed: Mapping[str, Any] | None = None, *, skip: int = 0
) -> list[dict[str, Any]]:
    """Space-filling settings that satisfy every constraint on single settings, without repeats where possible.

    Scrambled Sobol points; where constraints leave little of the box, points spread over the polytope by
    hit-and-run, each the farthest of eight from those before, and parameters in use chosen at random where
    their number is limited (in long thin polytopes hit-and-run favours the places where it begins).
    All settings of a seed form one sequence: ``design(space, n, seed, skip=k)`` are those
    from number k on. Constraints on a batch are left to `fixed`.

    Args:
        space: The space.
        n: How many.
        seed: Same seed: same settings.
        fixed: Values to keep, by name.
        skip: How many settings of the sequence to leave out.

    Raises:
        DomainError: `fixed` cannot be set, or no setting with it satisfies the constraints.

    Example:
        >>> from probnn.optimization import Integer, Space
        >>> space = Space(a=Integer(0, 3), b=Integer(0, 3), constraints=["a + b = 3"])
        >>> sorted(s["a"] for s in design(space, 4, seed=0))
        [0, 1, 2, 3]
    """
    validation.positive_int("design", "n", n)
    rnd.check_seed("design", seed)
    if isinstance(skip, bool) or not isinstance(skip, int) or skip < 0:
        raise DomainError(f"design: skip must be a whole number from 0 on, got {skip!r}")
    given = check_fixed(space, fixed)
    key = (seed, tuple(sorted((name, repr(value)) for name, value in given.items())))
    if key not in space._streams:
        if fixed and space.bound:
            check_satisfiable(space, fixed)
        while len(space._streams) >= MAX_STREAMS:
            del space._streams[next(iter(space._streams))]
        space._streams[key] = DesignStream(space.parameters, space.bound, seed, given)
    return [dict(values) for values in space._streams[key].take(skip + n)[skip:]]
