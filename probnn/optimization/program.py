"""The nearest setting that satisfies constraints, as a mixed-integer linear program with an exact finish."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConvergenceError
from .constraints import AtMost, Constraint, Linear
from .parameters import Number, Parameter, exact, rounded

MAX_NODES = 20_000  # of branch and bound; a count and not a time, so that answers do not depend on the machine
LIMIT, INFEASIBLE = 1, 2  # statuses of scipy.optimize.milp
MAX_GRID = 1000  # levels; of a larger grid, the program sees those around the solution of its relaxation
MARGINS = (0.0, 1e-9)  # kept from the edge of inequalities, relative to their largest coefficient; tried in turn


class Row(NamedTuple):
    """``sum_j coefficients[j] * y_j <= rhs`` (or ``=``) over the variables of a :class:`Program`."""

    coefficients: dict[int, Fraction]
    rhs: Fraction
    equality: bool


class Program:
    """The constraints on what is not given yet, over one variable ``y`` a parameter.

    A parameter on a grid has the index of its level as its variable, a whole number; another one its position
    in [0, 1] between `low` and `high`, also where its scale is logarithmic, so that sums stay linear.

    Args:
        parameters: All parameters of the space.
        constraints: Linear ones and those on the number that is not zero.
        given: Values that are settled.
    """

    def __init__(
        self, parameters: Mapping[str, Parameter], constraints: Sequence[Constraint], given: Mapping[str, Any]
    ):
        self.given, self.constraints = given, constraints
        involved = {name for c in constraints for name in c.names}
        self.numbers: dict[str, Number] = {
            n: p for n, p in parameters.items() if n in involved and n not in given and isinstance(p, Number)
        }
        self.names = list(self.numbers)
        self.at = {name: j for j, name in enumerate(self.names)}
        self.offset = [exact(p.low) for p in self.numbers.values()]
        self.unit = [exact(p.high) - exact(p.low) if p.grid is None else p.grid[1] for p in self.numbers.values()]
        self.upper = [1 if p.grid is None else p.grid[2] - 1 for p in self.numbers.values()]
        self.whole = [p.grid is not None for p in self.numbers.values()]
        self.possible = True
        self.rows = [self._row(c) for c in constraints if isinstance(c, Linear)]
        self.rows = [row for row in self.rows if self._keeps(row)]
        self.counts = [c for c in constraints if isinstance(c, AtMost)]

    def _row(self, constraint: Linear) -> Row:
        """A linear constraint over the variables; one over grids alone in whole numbers, as tight as they allow."""
        rhs, coefficients = constraint.rhs, {}
        for name, a in zip(constraint.names, constraint.coefficients, strict=True):
            if name in self.at:
                j = self.at[name]
                coefficients[j] = a * self.unit[j]
                rhs -= a * self.offset[j]
            else:
                rhs -= a * exact(self.given[name])
        if coefficients and all(self.whole[j] for j in coefficients):
            common = math.lcm(*(a.denominator for a in coefficients.values()))
            scale = Fraction(common, math.gcd(*(int(a * common) for a in coefficients.values())))
            coefficients, rhs = {j: a * scale for j, a in coefficients.items()}, rhs * scale
            if not constraint.equality:
                rhs = Fraction(math.floor(rhs))
            elif rhs.denominator != 1:
                self.possible = False  # a sum of whole numbers is never a fraction
        elif (
            not coefficients
            and constraint.equality
            and abs(rhs)
            <= constraint.tolerance
            * max(
                [abs(constraint.rhs)]
                + [
                    abs(a * exact(self.given[n]))
                    for n, a in zip(constraint.names, constraint.coefficients, strict=True)
                ]
            )
        ):
            rhs = Fraction(0)
        return Row(coefficients, rhs, constraint.equality)

    def _keeps(self, row: Row) -> bool:
        """Whether a row still says something; one without variables is true or makes the program impossible."""
        if row.coefficients:
            return True
        if row.rhs < 0 or (row.equality and row.rhs != 0):
            self.possible = False
        return False

    def raw(self, j: int, y: float) -> float:
        """The number at a value of a variable."""
        return float(self.offset[j]) + y * float(self.unit[j])

    def targets(self, coordinates: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
        """Where the variables should be, and what one unit of each is worth in coordinates there."""
        y, worth = [], []
        for j, (name, p) in enumerate(self.numbers.items()):
            number = p.raw(coordinates[name])
            y.append(min(max((number - p.low) / float(self.unit[j]), 0.0), float(self.upper[j])))
            slope = 1 / (number * math.log(p.high / p.low)) if p.log else 1 / (p.high - p.low)
            worth.append(slope * float(self.unit[j]))
        return np.array(y), np.array(worth)

    def matrix(
        self, rows: Sequence[Row], margin: float = 0.0, shift: Mapping[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows as a matrix with lower and upper limits, the largest coefficient of each row being 1.

        With `shift`, they are over the variables less those whole numbers.
        """
        A = np.zeros((len(rows), len(self.names)))
        low, high = np.full(len(rows), -np.inf), np.zeros(len(rows))
        for i, row in enumerate(rows):
            scale = max(abs(a) for a in row.coefficients.values())
            for j, a in row.coefficients.items():
                A[i, j] = float(a / scale)
            moved = sum((a * (shift or {}).get(j, 0) for j, a in row.coefficients.items()), Fraction(0))
            high[i] = float((row.rhs - moved) / scale)
            if row.equality:
                low[i] = high[i]
            elif not all(self.whole[j] for j in row.coefficients):
                high[i] -= margin * max(1.0, abs(high[i]))
        return A, low, high

    def solve(self, coordinates: Mapping[str, float]) -> dict[str, Any] | None:
        """Values of the variables, nearest to coordinates in the sum of distances; None where there are none.

        Distances on a logarithmic scale are those of its tangent at the coordinates.

        Raises:
            ConvergenceError: Branch and bound stopped before it found anything.
        """
        if not self.possible:
            return None
        if not self.names:
            return {}
        target, worth = self.targets(coordinates)
        m, large = len(self.names), [j for j, upper in enumerate(self.upper) if upper > MAX_GRID]
        shift: dict[int, int] = {}
        decided: dict[int, bool] = {}
        if large:
            relaxed = self._integers(target, worth, shift, large, decided)
            if relaxed is None:
                return None
            shift = {j: round(relaxed[j]) for j in large}
            decided = {j: used for j, used in self._active(relaxed) if j in shift}
            shift |= {j: self._zero(j) for j, used in decided.items() if not used}
        first = self._integers(target, worth, shift, [], decided)
        if first is None:
            return None
        settled = {j: round(first[j]) for j in range(m) if self.whole[j]}
        active = dict(self._active(first))
        for margin in MARGINS:
            y = self._continuous(target, worth, settled, active, margin)
            if y is None:
                continue
            values = self._finish(y, settled, active)
            if values is not None and self._holds(values):
                return values
        return None

    def _holds(self, values: Mapping[str, Any]) -> bool:
        every = {**self.given, **values}
        inside = all(p.complaint(values[name]) is None for name, p in self.numbers.items())
        return inside and all(c.complaint(every) is None for c in self.constraints)

    def _integers(
        self,
        target: np.ndarray,
        worth: np.ndarray,
        shift: Mapping[int, int],
        relaxed: Sequence[int],
        decided: Mapping[int, bool],
    ) -> np.ndarray | None:
        """The mixed-integer program: variables, their distances, and whether each counted one is in use.

        Args:
            target, worth: As of :meth:`targets`.
            shift: Levels of large grids; only the levels around them are allowed.
            relaxed: Large grids that are taken as continuous.
            decided: Whether large grids are in use, where that is counted.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp

        m, users = len(self.names), self._counted()
        size = 2 * m + len(users)
        # The solver's variables v: y = moved + stretch * v, so that no number in it is large.
        moved = np.array([float(shift.get(j, 0)) for j in range(m)])
        stretch = np.array([float(self.upper[j]) if j in relaxed else 1.0 for j in range(m)])
        reach = np.array(self.upper, dtype=float)
        low = np.array([max(-moved[j], -MAX_GRID) if j in shift else 0.0 for j in range(m)])
        high = np.array([min(reach[j] - moved[j], MAX_GRID) if j in shift else reach[j] / stretch[j] for j in range(m)])
        for j, in_use in decided.items():
            if not in_use:
                low[j] = high[j] = 0.0
        target, worth = (target - moved) / stretch, worth * stretch
        limits = []
        if self.rows:
            A, least, most = self.matrix(self.rows, shift=shift)
            A = A * stretch
            scale = np.abs(A).max(axis=1)
            A, least, most = A / scale[:, None], least / scale, most / scale
            limits.append(LinearConstraint(np.hstack([A, np.zeros((len(A), size - m))]), least, most))
        # Distances: t_j >= |v_j - target_j|.
        distance = np.zeros((2 * m, size))
        distance[:m, :m], distance[:m, m : 2 * m] = -np.eye(m), np.eye(m)
        distance[m:, :m], distance[m:, m : 2 * m] = np.eye(m), np.eye(m)
        limits.append(LinearConstraint(distance, np.concatenate([-target, target]), np.inf))
        for z, j in enumerate(users):
            if j in decided:
                continue
            # Out of use (z = 0), a number is zero; in use, it is anywhere in its range.
            zero = (-float(self.offset[j] / self.unit[j]) - moved[j]) / stretch[j]
            above, below = np.zeros(size), np.zeros(size)
            above[j] = below[j] = 1.0
            above[2 * m + z], below[2 * m + z] = -(high[j] - zero), zero - low[j]
            limits.append(LinearConstraint(above, -np.inf, zero))
            limits.append(LinearConstraint(below, zero, np.inf))
        for count in self.counts:
            row = np.zeros(size)
            used = sum(name in self.given and self.given[name] != 0 for name in count.names)
            for z, j in enumerate(users):
                row[2 * m + z] = self.names[j] in count.names
            limits.append(LinearConstraint(row, -np.inf, count.count - used))
        whole = [self.whole[j] and j not in relaxed for j in range(m)]
        # Costs of one unit of distance; their largest is 1, as only their ratios matter.
        # Each distance is at most the reach of its variable; a program without infinities suits the solver better.
        most_away = np.maximum(np.abs(low - target), np.abs(high - target))
        cost = np.concatenate([np.zeros(m), worth / worth.max(), np.zeros(len(users))])
        bounds = Bounds(
            np.concatenate([low, np.zeros(m), [float(decided.get(j, False)) for j in users]]),
            np.concatenate([high, most_away, [float(decided.get(j, True)) for j in users]]),
        )
        integrality = np.concatenate([np.array(whole, dtype=int), np.zeros(m), np.ones(len(users))])
        for presolve in (True, False):  # HiGHS fails at times on what its own presolve made of a program
            options = {"node_limit": MAX_NODES, "presolve": presolve}
            # An irrational factor: of costs with a common unit HiGHS fails at times to make out its next bound.
            result = milp(np.pi * cost, integrality=integrality, bounds=bounds, constraints=limits, options=options)
            if result.x is not None:
                return np.concatenate([moved + stretch * result.x[:m], result.x[m:]])
            if result.status == INFEASIBLE:
                return None
            if result.status == LIMIT:
                break
        raise ConvergenceError(
            f"Space: no setting was found ({result.message}; up to {MAX_NODES} nodes of branch and bound); use fewer "
            "constraints, or coarser grids"
        )

    def _zero(self, j: int) -> int:
        """The level of a grid that is zero."""
        return int(-self.offset[j] / self.unit[j])

    def _counted(self) -> list[int]:
        return [j for j, name in enumerate(self.names) if any(name in c.names for c in self.counts)]

    def _active(self, solution: np.ndarray) -> list[tuple[int, bool]]:
        m = len(self.names)
        return [(j, bool(solution[2 * m + z] > 0.5)) for z, j in enumerate(self._counted())]

    def _continuous(
        self, target: np.ndarray, worth: np.ndarray, settled: dict[int, int], active: dict[int, bool], margin: float
    ) -> np.ndarray | None:
        """The linear program that is left once whole numbers are settled, to a fine tolerance."""
        from scipy.optimize import linprog

        m = len(self.names)
        low, high = np.zeros(m), np.ones(m)
        for j in range(m):
            if active.get(j) is False:
                low[j] = high[j] = -float(self.offset[j] / self.unit[j])
            elif j in settled:
                low[j] = high[j] = settled[j]
        if len(settled) == m:
            return low
        A, lower, upper = self.matrix(self.rows, margin)
        equal = np.isfinite(lower)
        pad = np.zeros((len(A), m))
        eye = np.eye(m)
        result = linprog(
            np.concatenate([np.zeros(m), worth]),
            A_ub=np.vstack([np.hstack([A, pad])[~equal], np.hstack([eye, -eye]), np.hstack([-eye, -eye])]),
            b_ub=np.concatenate([upper[~equal], target, -target]),
            A_eq=np.hstack([A, pad])[equal] if equal.any() else None,
            b_eq=upper[equal] if equal.any() else None,
            bounds=np.stack([np.concatenate([low, np.zeros(m)]), np.concatenate([high, np.full(m, np.inf)])], axis=1),
            method="highs",
            options={"primal_feasibility_tolerance": 1e-10},
        )
        return result.x[:m] if result.status == 0 else None

    def _finish(self, y: np.ndarray, settled: dict[int, int], active: dict[int, bool]) -> dict[str, Any] | None:
        """Values of the variables: 12 significant digits, and equalities solved for one parameter each.

        Gauss-Jordan elimination in rational arithmetic picks, for each equality, the parameter farthest from the
        ends of its range; it takes up what rounding the others left over.
        """
        free = [j for j in range(len(self.names)) if not self.whole[j] and active.get(j, True)]
        number: dict[int, Fraction] = {}
        for j, (name, p) in enumerate(self.numbers.items()):
            if active.get(j) is False:
                number[j] = Fraction(0)
            elif j in settled:
                number[j] = self.offset[j] + settled[j] * self.unit[j]
            else:
                number[j] = exact(min(max(rounded(self.raw(j, float(y[j]))), self.numbers[name].low), p.high))
        # Each equality in the numbers themselves: sum of coefficients * number over `free` = rest.
        system = []
        for row in self.rows:
            if row.equality and any(j in row.coefficients for j in free):
                natural = {j: a / self.unit[j] for j, a in row.coefficients.items()}
                rest = row.rhs + sum((a * self.offset[j] for j, a in natural.items()), Fraction(0))
                rest -= sum((a * number[j] for j, a in natural.items() if j not in free), Fraction(0))
                system.append(({j: a for j, a in natural.items() if j in free}, rest))
        pivots: list[tuple[int, dict[int, Fraction], Fraction]] = []
        for coefficients, rest in system:
            for pivot, equation, constant in pivots:
                factor = coefficients.get(pivot, Fraction(0))
                coefficients = _minus(coefficients, factor, equation)
                rest -= factor * constant
            coefficients = {j: a for j, a in coefficients.items() if a}
            if not coefficients:
                continue  # says again what others say, or cannot hold: the check at the end tells
            pivot = max(coefficients, key=lambda j: min(y[j], 1 - y[j]) * abs(float(coefficients[j] * self.unit[j])))
            scale = coefficients[pivot]
            equation = {j: a / scale for j, a in coefficients.items()}
            constant = rest / scale
            pivots = [
                (p, _minus(e, e.get(pivot, Fraction(0)), equation), c - e.get(pivot, Fraction(0)) * constant)
                for p, e, c in pivots
            ]
            pivots.append((pivot, equation, constant))
        solved = {p for p, _, _ in pivots}
        for pivot, equation, constant in pivots:
            number[pivot] = constant - sum((a * number[j] for j, a in equation.items() if j not in solved), Fraction(0))
        values: dict[str, Any] = {}
        for j, (name, p) in enumerate(self.numbers.items()):
            if self.whole[j]:
                index = (number[j] - self.offset[j]) / self.unit[j]
                if index.denominator != 1:
                    return None
                values[name] = p.level(int(index))
            else:
                values[name] = float(number[j])
        return values


def _minus(a: Mapping[int, Fraction], factor: Fraction, b: Mapping[int, Fraction]) -> dict[int, Fraction]:
    return {j: a.get(j, Fraction(0)) - factor * b.get(j, Fraction(0)) for j in sorted({*a, *b})}


def nearest_values(
    parameters: Mapping[str, Parameter],
    at: Mapping[str, float],
    given: Mapping[str, Any],
    constraints: Sequence[Constraint],
) -> dict[str, Any] | None:
    """The setting nearest to coordinates by name that satisfies constraints; None where there is none.

    Each parameter goes to its nearest value where that satisfies everything; else the program decides.
    """
    values = {name: given[name] if name in given else p.nearest(at[name]) for name, p in parameters.items()}
    # Rounding by itself meets an equality only roughly, so that one goes to the program.
    exactly = not any(isinstance(c, Linear) and c.equality for c in constraints)
    if exactly and not any(c.complaint(values) for c in constraints):
        return values
    found = Program(parameters, constraints, given).solve(at)
    return None if found is None else {**values, **found}
