"""A finite pool of candidates, where only listed settings can be tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import DomainError
from .space import Space


class Pool:
    """The settings that can be suggested, where those are a list (samples in a freezer, finished experiments).

    Args:
        space: The parameters; constraints and grids hold for candidates too.
        rows: One mapping a candidate: values, or their text. A candidate listed twice counts once.

    Raises:
        DomainError: There is no candidate, or a row cannot be set; the message names the row, from 1.

    Example:
        >>> from probnn.optimization import Real, Space
        >>> pool = Pool(Space(x=Real(0, 10)), [{"x": "2.5"}, {"x": 5.0}])
        >>> pool.candidates, pool.coordinates.tolist()
        ([{'x': 2.5}, {'x': 5.0}], [[0.25], [0.5]])
    """

    def __init__(self, space: Space, rows: Iterable[Mapping[str, Any]]):
        self.space = space
        found: dict[tuple[Any, ...], dict[str, Any]] = {}
        for number, row in enumerate(rows, start=1):
            values = self._read(number, row)
            found.setdefault(tuple(values.values()), values)
        if not found:
            raise DomainError("Pool: needs at least one candidate")
        self.candidates = list(found.values())
        self.coordinates: Tensor = torch.stack([space.coordinates(values) for values in self.candidates])

    def _read(self, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
        values = dict(row)
        for name, value in values.items():
            if isinstance(value, str) and name in self.space.parameters:
                try:
                    values[name] = self.space.parameters[name].parse(value)
                except DomainError as error:
                    raise DomainError(f"Pool: row {number}: {name}: {error}") from None
        if violations := self.space.violations(values):
            raise DomainError(f"Pool: row {number}: " + "; ".join(violations))
        values = {**self.space.fixed, **values}
        return {name: values[name] for name in self.space.parameters}

    def __len__(self) -> int:
        return len(self.candidates)
