"""Sequences of space-filling settings that satisfy constraints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import random as rnd
from ..errors import DomainError
from .choices import Categorical, Fixed
from .constraints import AtMost, Constraint, Linear
from .parameters import Number, Parameter
from .program import Program, nearest_values

TRIAL_POINTS = 256  # Sobol points that decide whether constraints are mild enough to pass points by
MIN_PASSING = 13  # of them (5 %)
MAX_TRIES = {"pass": 1000, "spread": 15}  # candidates in a row that were suggested before or do not pass
MAX_ENUMERATED = 10_000  # settings of a small space, gone through once points at random only repeat
MAX_ACTIVE_SETS = 20  # drawn before a limit on their number is left to the program
NUM_CHAINS = 8  # of hit-and-run; the end farthest from the points so far is taken
FLAT = 1e-7  # radius of the largest ball, in units of the ranges, below which a polytope has no inside


class DesignStream:
    """The sequence of settings of one seed, made as far as it was asked for.

    Args:
        parameters: All parameters of the space.
        constraints: Those on single settings; some setting satisfies them.
        seed: Same seed: same sequence.
        given: Values that are settled.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        constraints: Sequence[Constraint],
        seed: int,
        given: Mapping[str, Any],
    ):
        self.parameters, self.constraints, self.seed, self.given = parameters, constraints, seed, dict(given)
        self.free = {n: p for n, p in parameters.items() if not isinstance(p, Fixed)}
        involved = {name for c in constraints for name in c.names}
        self.numbers = {n: p for n, p in self.free.items() if n in involved and isinstance(p, Number)}
        self.settings: list[dict[str, Any]] = []
        self._seen: set[tuple[Any, ...]] = set()
        self._positions: list[np.ndarray] = []  # of the settings among the constrained numbers
        self._attempt = 0
        self._rest: Iterator[dict[str, Any]] | None = None
        self._engine = self._sobol()
        self._how = self._choose()

    def take(self, count: int) -> list[dict[str, Any]]:
        """The first `count` settings."""
        while len(self.settings) < count:
            values = self._next()
            self.settings.append(values)
            self._seen.add(tuple(values.values()))
            self._positions.append(self._position(values))
        return self.settings[:count]

    def _sobol(self) -> torch.quasirandom.SobolEngine:
        return torch.quasirandom.SobolEngine(len(self.free), scramble=True, seed=self.seed)

    def _choose(self) -> str:
        """How to find points: pass by those that do not satisfy the constraints, or spread over the polytope."""
        if any(isinstance(c, AtMost) or (isinstance(c, Linear) and c.equality) for c in self.constraints):
            return "spread"
        points = self._sobol().draw(TRIAL_POINTS if self.constraints else 1, dtype=torch.double)
        passing = sum(self._passes(self._rounded(u)) for u in points)
        return "pass" if not self.constraints or passing >= MIN_PASSING else "spread"

    def _passes(self, values: Mapping[str, Any]) -> bool:
        return not any(c.complaint(values) for c in self.constraints)

    def _next(self) -> dict[str, Any]:
        make: Callable[[Tensor], dict[str, Any] | None] = self._rounded if self._how == "pass" else self._spread
        repeated = None
        if self._rest is None:
            for _ in range(MAX_TRIES[self._how]):
                self._attempt += 1
                values = make(self._engine.draw(1, dtype=torch.double).squeeze(0))
                if values is None or not self._passes(values):
                    continue
                if tuple(values.values()) not in self._seen:
                    return values
                repeated = values
            if not self._small():
                return repeated if repeated is not None else self._projected()
            self._rest = self._enumerated()
        for values in self._rest:
            if tuple(values.values()) not in self._seen and self._passes(values):
                return values
        # Every setting of a small space was used: begin again.
        self._rest = None
        if not self._seen:
            raise self._none()
        self._seen.clear()
        return self._next()

    def _none(self) -> DomainError:
        return DomainError(
            f"design: found no setting that satisfies {', '.join(repr(c.text) for c in self.constraints)}"
        )

    def _rounded(self, u: Tensor) -> dict[str, Any]:
        at = self._at(u)
        return {n: self.given[n] if n in self.given else p.nearest(at[n]) for n, p in self.parameters.items()}

    def _projected(self) -> dict[str, Any]:
        at = self._at(self._engine.draw(1, dtype=torch.double).squeeze(0))
        values = nearest_values(self.parameters, at, self.given, self.constraints)
        if values is None:
            raise self._none()
        return values

    def _at(self, u: Tensor) -> dict[str, float]:
        """Coordinates of a point of the unit cube, each choice or level taking an equal share of its side."""
        at = {}
        for (name, p), x in zip(self.free.items(), u.tolist(), strict=True):
            if isinstance(p, Categorical):
                index = min(int(x * len(p.choices)), len(p.choices) - 1)
                at[name] = index / (len(p.choices) - 1) if p.ordered else float(index)
            elif isinstance(p, Number) and p.num_values is not None and not p.log:
                at[name] = p.coordinate(p.level(min(int(x * p.num_values), p.num_values - 1)))
            else:
                at[name] = x
        return at

    def _small(self) -> bool:
        counts = [p.num_values for n, p in self.free.items() if n not in self.given]
        return all(k is not None for k in counts) and math.prod(k for k in counts if k is not None) <= MAX_ENUMERATED

    def _enumerated(self) -> Iterator[dict[str, Any]]:
        levels = {n: list(p.levels()) for n, p in self.free.items() if n not in self.given}
        shape = tuple(len(choices) for choices in levels.values())
        order = torch.randperm(math.prod(shape), generator=rnd.generator_from(self.seed))
        for index in order.tolist():
            picked = np.unravel_index(index, shape) if shape else ()
            chosen = {n: choices[int(k)] for (n, choices), k in zip(levels.items(), picked, strict=True)}
            yield {n: self.given[n] if n in self.given else chosen[n] for n in self.parameters}

    def _position(self, values: Mapping[str, Any]) -> np.ndarray:
        return np.array([(values[n] - p.low) / (p.high - p.low) for n, p in self.numbers.items()])

    def _spread(self, u: Tensor) -> dict[str, Any] | None:
        """A setting near a point of the polytope of the constraints; what they do not speak of is as in `u`.

        The numbers of linear constraints are uniform on their own scale, also where `log`.
        """
        generator = rnd.generator_from((self.seed * 1_000_003 + self._attempt) % 2**63)
        at = self._at(u)
        linear = [c for c in self.constraints if isinstance(c, Linear)]
        for _ in range(MAX_ACTIVE_SETS):
            given = {**self.given, **self._out_of_use(generator)}
            program = Program(self.parameters, linear, given)
            if not program.possible:
                continue
            for name, position in self._farthest(program, given, generator).items():
                p = self.numbers[name]
                at[name] = p.coordinate(min(max(p.low + position * (p.high - p.low), p.low), p.high))
            values = nearest_values(self.parameters, at, given, self.constraints)
            if values is not None or given == self.given:
                return values
        return nearest_values(self.parameters, at, self.given, self.constraints)

    def _out_of_use(self, generator: torch.Generator) -> dict[str, Any]:
        """Zero for numbers left out, so that each limit on how many are in use holds: sets and sizes at random."""
        zero: dict[str, Any] = {}
        for constraint in self.constraints:
            if not isinstance(constraint, AtMost):
                continue
            used = sum(self.given.get(n, 0) != 0 for n in constraint.names)
            open_ = [n for n in constraint.names if n not in self.given and n not in zero]
            size = 1 + int(rnd.integers(constraint.count, (), generator=generator)) - used
            order = torch.randperm(len(open_), generator=generator).tolist()
            zero |= {open_[i]: type(self.numbers[open_[i]].low)(0) for i in order[max(size, 0) :]}
        return zero

    def _farthest(self, program: Program, given: Mapping[str, Any], generator: torch.Generator) -> dict[str, float]:
        """Positions in the ranges of the program's numbers: of uniform draws, the farthest from earlier settings."""
        if not program.names:
            return {}
        reach = np.array(program.upper, dtype=float)
        A, low, high = program.matrix(program.rows)
        scale = np.array(
            [float(u) / (p.high - p.low) for u, p in zip(program.unit, program.numbers.values(), strict=True)]
        )
        equal = np.isfinite(low)
        ends = hit_and_run(
            A[~equal] / scale, high[~equal], A[equal] / scale, high[equal], reach * scale, generator=generator
        )
        if ends is None:
            return {}
        points = np.zeros((len(ends), len(self.numbers)))
        for i, (name, p) in enumerate(self.numbers.items()):
            if name in program.at:
                points[:, i] = ends[:, program.at[name]]
            else:
                # Counted, but in no sum: out of use, given or left to the Sobol point.
                points[:, i] = (given[name] - p.low) / (p.high - p.low) if name in given else 0.0
        best = 0
        if self._positions:
            gaps = np.linalg.norm(points[:, None] - np.stack(self._positions)[None], axis=-1).min(axis=1)
            best = int(gaps.argmax())
        return dict(zip(program.names, ends[best].tolist(), strict=True))


def hit_and_run(
    A: np.ndarray, b: np.ndarray, E: np.ndarray, e: np.ndarray, upper: np.ndarray, *, generator: torch.Generator
) -> np.ndarray | None:
    """Draws from the uniform distribution on ``{x : A x <= b, E x = e, 0 <= x <= upper}``.

    Hit-and-run (Smith, 1984, Operations Research 32(6)) in the null space of E, from the centre of the largest
    ball; the ends of independent chains, each long enough to forget its start in polytopes of round shape.

    Returns:
        ``NUM_CHAINS x m``; None where the set is empty or has no inside.
    """
    from scipy.linalg import null_space
    from scipy.optimize import linprog

    m = len(upper)
    A = np.vstack([A, np.eye(m), -np.eye(m)])
    b = np.concatenate([b, upper, np.zeros(m)])
    basis = null_space(E) if len(E) else np.eye(m)
    directions = A @ basis
    reach = np.linalg.norm(directions, axis=1)
    A_eq = np.hstack([E, np.zeros((len(E), 1))]) if len(E) else None
    ball = linprog(
        np.append(np.zeros(m), -1.0),
        A_ub=np.hstack([A, reach[:, None]]),
        b_ub=b,
        A_eq=A_eq,
        b_eq=e if len(E) else None,
        bounds=[(None, None)] * m + [(0, 1)],
        method="highs",
    )
    if ball.status != 0 or basis.shape[1] == 0 or ball.x[-1] < FLAT:
        return None
    centre, k = ball.x[:m], basis.shape[1]
    room = np.tile(b - A @ centre, (NUM_CHAINS, 1))
    x = np.zeros((NUM_CHAINS, k))
    num_steps = 50 + 20 * k
    normal = rnd.normal((num_steps, NUM_CHAINS, k), generator=generator, dtype=torch.double).numpy()
    uniform = rnd.uniform((num_steps, NUM_CHAINS), generator=generator, dtype=torch.double).numpy()
    for direction, share in zip(normal, uniform, strict=True):
        direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)
        speed = direction @ directions.T
        with np.errstate(divide="ignore", invalid="ignore"):
            time = np.maximum(room, 0.0) / speed
        forward = np.where(speed > 1e-14, time, np.inf).min(axis=1)
        backward = np.where(speed < -1e-14, time, -np.inf).max(axis=1)
        step = backward + share * (forward - backward)
        x += step[:, None] * direction
        room -= step[:, None] * speed
    return centre + x @ basis.T
