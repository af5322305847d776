"""One replicate, run again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from . import cells as naming
from .cells import Cell


@dataclass(frozen=True)
class Replay:
    """One replicate, run again.

    Args:
        cell: Its cell.
        replicate: Its number.
        seed: Its seed.
        status: How it ended now.
        values: Its outputs now.
        error: Why there are none.
        stored: Its outputs in the store; None where it is not complete there.
        equal: Whether both are the same to the last bit; None where there is nothing to compare.

    Example:
        >>> print(Replay({"n": 10}, 3, 17, "complete", {"x": 0.5}, "", {"x": 0.5}, True))
        n=10, replicate 3, seed 17: complete, bit-equal to the store
          x = 0.5
    """

    cell: Cell
    replicate: int
    seed: int
    status: str
    values: dict[str, float]
    error: str
    stored: dict[str, float] | None
    equal: bool | None

    def __str__(self) -> str:
        name = f"{naming.label(self.cell)}, replicate {self.replicate}, seed {self.seed}"
        if self.equal is None:
            known = "not complete in the store"
        else:
            known = "bit-equal to the store" if self.equal else "NOT equal to the store"
        lines = [f"{name}: {self.status}, {known}"]
        for output, value in self.values.items():
            stored = "" if self.equal is not False or self.stored is None else f"   stored {self.stored[output]!r}"
            lines.append(f"  {output} = {value!r}{stored}")
        return "\n".join([*lines, *([f"  {self.error}"] if self.error else [])])


def same_bits(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    """Whether two sets of outputs are the same to the last bit; NaN is equal to itself."""
    return _bits(a) == _bits(b)


def _bits(values: Mapping[str, float]) -> dict[str, bytes]:
    return {name: np.float64(value).tobytes() for name, value in values.items()}
