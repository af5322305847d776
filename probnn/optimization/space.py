"""Spaces of parameters: settings as a person writes them, as coordinates to search, as features to learn from."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DomainError, ShapeError
from .choices import Categorical, Fixed
from .constraints import Constraint, Linear, SameInBatch, check_pairs, check_sizes, parse_constraint
from .parameters import Number, Parameter, exact, same

if TYPE_CHECKING:
    from .sampling import DesignStream

MAX_DISCRETE = 200  # larger grids are searched as if they were continuous, and rounded


class Space:
    """Named parameters in the order given, and constraints on them.

    A setting has three forms. Its *values* are what a person sets, a dictionary. Its *coordinates* are a
    tensor of one number a parameter that is not fixed: numbers lie in [0, 1] over their range (on the
    logarithm where ``log``), ordered categories at equal distances in [0, 1], other categories are the index
    of the choice. Its *features* are what models see: coordinates, with one column a category for
    categories of more than two.

    Args:
        constraints: Strings: linear (``"power + depth <= 14"``, ``"a + b + c = 1"``), ``"at most 3 of a, b, c, d"``
            (that many may differ from zero) and ``"same in batch: temperature"``. All hold exactly for what is
            suggested, after rounding; an equality of numbers without step, to 1e-9 of its largest term.
        parameters: ``name=Real(...)``, ``Integer(...)``, ``Categorical(...)`` or ``Fixed(...)``. Names that are not
            identifiers go in as ``Space(**{"flow rate": Real(0, 1)})``; ``constraints`` is no name for a parameter.

    Raises:
        DomainError: There is nothing to search, a parameter is of another type, a constraint cannot be read, or
            no setting satisfies the constraints: the message names those that collide.

    Example:
        >>> from probnn.optimization import Categorical, Integer, Real, Space
        >>> space = Space(rate=Real(1e-4, 1e-1, log=True), depth=Integer(1, 8), loss=Categorical(["a", "b", "c"]),
        ...               power=Real(8, 9.8, step=0.1), constraints=["power + depth <= 14"])
        >>> point = space.coordinates({"rate": 0.01, "depth": 3, "loss": "c", "power": 8.3})
        >>> space.values(point)
        {'rate': 0.01, 'depth': 3, 'loss': 'c', 'power': 8.3}
        >>> len(space), space.num_features
        (4, 6)
        >>> space.violations({"rate": 0.01, "depth": 6, "loss": "c", "power": 8.3})
        ["'power + depth <= 14' does not hold for power = 8.3, depth = 6 (off by 0.3)"]
    """

    def __init__(self, /, *, constraints: Sequence[str] = (), **parameters: Parameter):
        for name, parameter in parameters.items():
            if not name.strip() or any(c in name for c in "\r\n"):
                raise DomainError(f"Space: a parameter needs a name of one line, got {name!r}")
            if not isinstance(parameter, Parameter):
                raise DomainError(
                    f"Space: {name} must be a Real, an Integer, a Categorical or Fixed, got a "
                    f"{type(parameter).__name__}; write {name}=Real(low, high)"
                )
        if isinstance(constraints, (str, Parameter)) or not isinstance(constraints, Sequence):
            raise DomainError(
                f"Space: constraints must be a list of strings, got {constraints!r}; a parameter cannot have that name"
            )
        self.parameters: dict[str, Parameter] = dict(parameters)
        self.free: dict[str, Parameter] = {n: p for n, p in parameters.items() if not isinstance(p, Fixed)}
        self.fixed: dict[str, Any] = {n: p.value for n, p in parameters.items() if isinstance(p, Fixed)}
        if not self.free:
            raise DomainError("Space: needs at least one parameter that is not fixed, such as Space(x=Real(0.0, 1.0))")
        self.constraints: tuple[Constraint, ...] = tuple(parse_constraint(c, self.parameters) for c in constraints)
        check_pairs(self.constraints)
        check_sizes(self.constraints, self.parameters)
        self._streams: dict[Any, DesignStream] = {}  # designs begun, see feasible.design
        if self.bound:
            from .feasible import check_satisfiable

            check_satisfiable(self)

    @property
    def bound(self) -> tuple[Constraint, ...]:
        """The constraints on single settings: all but those on a batch."""
        return tuple(c for c in self.constraints if not isinstance(c, SameInBatch))

    @property
    def same_in_batch(self) -> tuple[str, ...]:
        """The parameters that have one value in all settings suggested together."""
        return tuple(dict.fromkeys(n for c in self.constraints if isinstance(c, SameInBatch) for n in c.names))

    def __len__(self) -> int:
        return len(self.free)

    def __iter__(self) -> Iterator[str]:
        return iter(self.free)

    def __repr__(self) -> str:
        plain = {name: p for name, p in self.parameters.items() if name.isidentifier()}
        parts = [f"{name}={p!r}" for name, p in plain.items()]
        if len(plain) < len(self.parameters):
            parts = ["**{" + ", ".join(f"{name!r}: {p!r}" for name, p in self.parameters.items()) + "}"]
        if self.constraints:
            parts.append(f"constraints={[c.text for c in self.constraints]!r}")
        return f"Space({', '.join(parts)})"

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other) if isinstance(other, Space) else NotImplemented

    def __hash__(self) -> int:
        return hash(repr(self))

    @property
    def num_features(self) -> int:
        """Number of columns a model sees, D."""
        return sum(p.num_features for p in self.free.values())

    @property
    def num_settings(self) -> int | None:
        """How many settings there are without constraints; None where a parameter is continuous."""
        counts = [p.num_values for p in self.free.values()]
        return None if any(n is None for n in counts) else math.prod(n for n in counts if n is not None)

    @property
    def bounds(self) -> Tensor:
        """The unit cube of the features, ``2 x D``."""
        D = self.num_features
        return torch.stack([torch.zeros(D, dtype=torch.double), torch.ones(D, dtype=torch.double)])

    @property
    def search_bounds(self) -> Tensor:
        """Bounds of the coordinates, ``2 x d``."""
        upper = torch.tensor([p.upper for p in self.free.values()], dtype=torch.double)
        return torch.stack([torch.zeros_like(upper), upper])

    @property
    def categorical(self) -> dict[int, int]:
        """Number of choices by index of the coordinate, for unordered categories."""
        return {
            i: len(p.choices) for i, p in enumerate(self.free.values()) if isinstance(p, Categorical) and not p.ordered
        }

    @property
    def discrete(self) -> dict[int, list[float]]:
        """Settable coordinates by index, for grids and ordered categories of at most 200 values."""
        return {
            i: [p.coordinate(v) for v in p.levels()]
            for i, p in enumerate(self.free.values())
            if p.num_values is not None and p.num_values <= MAX_DISCRETE and i not in self.categorical
        }

    def _check_names(self, where: str, values: Mapping[str, Any]) -> None:
        missing = [name for name in self.free if name not in values]
        extra = [name for name in values if name not in self.parameters]
        if missing or extra:
            raise DomainError(
                f"{where}: expected the parameters {', '.join(map(repr, self.parameters))}"
                + (f"; missing are {', '.join(map(repr, missing))}" if missing else "")
                + (f"; unknown are {', '.join(map(repr, extra))}" if extra else "")
            )

    def coordinates(self, values: Mapping[str, Any]) -> Tensor:
        """A setting as coordinates, of length d.

        Values outside a range map outside [0, 1] and values off a grid stay off it. Those of fixed parameters may
        be left out and do not matter.

        Raises:
            DomainError: A parameter is missing or unknown, or a value has no coordinate.
        """
        self._check_names("Space.coordinates", values)
        found = []
        for name, parameter in self.free.items():
            try:
                found.append(parameter.coordinate(values[name]))
            except DomainError as error:
                raise DomainError(f"Space.coordinates: {name}: {error}") from None
        return torch.tensor(found, dtype=torch.double)

    def features(self, coordinates: Tensor) -> Tensor:
        """What models see of coordinates, ``... x d`` -> ``... x D``; differentiable where they are numbers."""
        if coordinates.ndim == 0 or coordinates.shape[-1] != len(self):
            raise ShapeError(
                f"Space.features: coordinates must have shape (..., {len(self)}), got {tuple(coordinates.shape)}"
            )
        columns = []
        for i, parameter in enumerate(self.free.values()):
            column = coordinates[..., i : i + 1]
            if isinstance(parameter, Categorical) and parameter.num_features > 1:
                index = column.squeeze(-1).round().long()
                K = parameter.num_features
                if bool(((index < 0) | (index >= K)).any()):
                    raise DomainError(f"Space.features: an index of {list(self.free)[i]} is not from 0 to {K - 1}")
                column = torch.eye(K, dtype=coordinates.dtype, device=coordinates.device)[index]
            columns.append(column)
        return torch.cat(columns, dim=-1)

    def encode(self, values: Mapping[str, Any]) -> Tensor:
        """The features of a setting, of length D."""
        return self.features(self.coordinates(values))

    def values(self, coordinates: Tensor) -> dict[str, Any]:
        """The nearest value of each parameter to coordinates of length d; constraints are not looked at.

        See :func:`probnn.optimization.feasible.nearest` for the nearest setting that satisfies the constraints.
        """
        if coordinates.shape != (len(self),):
            raise ShapeError(f"Space.values: expected shape ({len(self)},), got {tuple(coordinates.shape)}")
        at = dict(zip(self.free, coordinates.tolist(), strict=True))
        return {name: p.nearest(at[name]) if name in at else self.fixed[name] for name, p in self.parameters.items()}

    def violations(self, values: Mapping[str, Any], batch: Iterable[Mapping[str, Any]] = ()) -> list[str]:
        """Everything that keeps a setting from being set, in plain sentences; empty where it is fine.

        Works on the values themselves in rational arithmetic (0.1 is one tenth) and shares no code with what
        rounds and suggests.

        Args:
            values: The setting, with or without the fixed parameters.
            batch: The other settings that are suggested together with it.

        Returns:
            The sentences.
        """
        found = [f"{name} is missing" for name in self.free if name not in values]
        found += [f"{name} is not a parameter of this space" for name in values if name not in self.parameters]
        given = {**self.fixed, **values}
        wrong = set()
        for name, parameter in self.parameters.items():
            if name in given and (complaint := parameter.complaint(given[name])) is not None:
                found.append(f"{name} {complaint}")
                # A sum needs numbers; one outside its range is still a number.
                if not isinstance(given[name], (int, float)) or isinstance(given[name], bool):
                    wrong.add(name)
                elif not math.isfinite(given[name]):
                    wrong.add(name)
        others = [{**self.fixed, **other} for other in batch]
        for constraint in self.constraints:
            usable = all(name in given and (name not in wrong) for name in constraint.names)
            if usable and (complaint := constraint.complaint(given, others)) is not None:
                found.append(complaint)
        return found

    def extended(self, rows: Iterable[Mapping[str, Any]]) -> Space:
        """A space whose unordered categories also know those of old rows, without ever suggesting them.

        Raises:
            DomainError: A row has a category that ordered choices have no place for.
        """
        further: dict[str, list[Any]] = {}
        for row in rows:
            for name, parameter in self.free.items():
                if not isinstance(parameter, Categorical) or name not in row:
                    continue
                seen = [*parameter.all_choices, *further.get(name, ())]
                if not any(same(choice, row[name]) for choice in seen):
                    further.setdefault(name, []).append(row[name])
        if not further:
            return self
        parameters = dict(self.parameters)
        for name, new in further.items():
            old = parameters[name]
            if isinstance(old, Categorical):
                try:
                    parameters[name] = Categorical(old.choices, old.ordered, (*old.known, *new))
                except DomainError as error:
                    raise DomainError(f"Space.extended: {name}: {error}") from None
        return Space(**parameters, constraints=[c.text for c in self.constraints])

    def _numbers(self, constraint: Linear) -> tuple[list[int], list[Number], list[float], float]:
        """Indices, parameters and coefficients of what is not fixed in a constraint, and its right-hand side."""
        order = list(self.free)
        rhs, indices, numbers, coefficients = constraint.rhs, [], [], []
        for name, a in zip(constraint.names, constraint.coefficients, strict=True):
            parameter = self.parameters[name]
            if isinstance(parameter, Number):
                indices.append(order.index(name))
                numbers.append(parameter)
                coefficients.append(float(a))
            else:
                rhs -= a * exact(self.fixed[name])
        return indices, numbers, coefficients, float(rhs)

    def linear_constraints(self) -> tuple[list[tuple[Tensor, Tensor, float]], list[tuple[Tensor, Tensor, float]]]:
        """The linear constraints that are linear in the coordinates too, as BoTorch takes them.

        Returns:
            Inequalities and equalities, each as ``(indices, coefficients, rhs)`` for
            ``sum(coefficients * coordinates[indices]) >= rhs`` or ``== rhs``.
        """
        inequalities: list[tuple[Tensor, Tensor, float]] = []
        equalities: list[tuple[Tensor, Tensor, float]] = []
        for constraint in self.constraints:
            if not isinstance(constraint, Linear):
                continue
            indices, numbers, coefficients, rhs = self._numbers(constraint)
            if any(p.log for p in numbers):
                continue
            rhs -= sum(a * p.low for a, p in zip(coefficients, numbers, strict=True))
            slopes = [a * (p.high - p.low) for a, p in zip(coefficients, numbers, strict=True)]
            sign = 1.0 if constraint.equality else -1.0
            row = (torch.tensor(indices), sign * torch.tensor(slopes, dtype=torch.double), sign * rhs)
            (equalities if constraint.equality else inequalities).append(row)
        return inequalities, equalities

    def curved_constraints(self) -> list[Callable[[Tensor], Tensor]]:
        """The linear constraints on parameters with a logarithmic scale, as functions of coordinates.

        Returns:
            Functions ``... x d -> ...`` that are at least 0 where the constraint holds, in units of the sum of the
            largest terms.
        """
        return [
            _Curved(*self._numbers(c))
            for c in self.constraints
            if isinstance(c, Linear) and any(getattr(self.parameters[name], "log", False) for name in c.names)
        ]

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Space:
        """Read a space from a TOML file: one table a parameter, and a list of `constraints` above them.

        Raises:
            DomainError: The file cannot be read or describes no space; the message names file, table and key.
        """
        from .spacefile import read_space

        return read_space(path)

    def to_toml(self, path: str | os.PathLike[str] | None = None, *, comments: Mapping[str, str] | None = None) -> str:
        """The space as the text of a TOML file, which is also written where `path` is given.

        Args:
            path: The file, written all at once.
            comments: Words above the table of each parameter; those of ``""`` stand at the top.

        Returns:
            The text.
        """
        from .spacefile import write_space

        return write_space(self, path, comments=comments)


class _Curved:
    """``(rhs - sum_i a_i x_i) / scale`` with numbers on their own scales."""

    def __init__(self, indices: list[int], numbers: list[Number], coefficients: list[float], rhs: float):
        self.terms = list(zip(indices, numbers, coefficients, strict=True))
        self.rhs = rhs
        self.scale = sum(abs(a) * max(abs(p.low), abs(p.high)) for _, p, a in self.terms)

    def __call__(self, coordinates: Tensor) -> Tensor:
        total = torch.zeros_like(coordinates[..., 0])
        for i, p, a in self.terms:
            c = coordinates[..., i]
            x = p.low * (p.high / p.low) ** c if p.log else p.low + c * (p.high - p.low)
            total = total + a * x
        return (self.rhs - total) / self.scale
