"""The best settable point of an acquisition function."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from botorch.acquisition import AcquisitionFunction
from botorch.exceptions.errors import BotorchError
from botorch.exceptions.warnings import BotorchWarning
from botorch.generation.gen import gen_candidates_scipy
from botorch.optim.optimize_mixed import optimize_acqf_mixed_alternating
from linear_operator.utils.warnings import NumericalWarning
from scipy.optimize import OptimizeWarning
from torch import Tensor

from .. import random as rnd
from .constraints import AtMost, Linear
from .feasible import design, nearest
from .space import Space

NUM_RAW, NUM_LOCAL, NUM_STARTS = 192, 48, 4
NUM_NEW, MAX_TURNS = 32, 8  # a design of settings under constraints takes time, so most are used again
MAX_STEPS = 60  # of L-BFGS or SLSQP
MAX_ENUMERATED = 2000  # settings of a space that are all evaluated
MAX_MOVES = 6  # rounds of moving one coordinate that is a grid or a category
MAX_SWEEPS = 8  # rounds of moving each of them in turn
MAX_LEVELS = 32  # values of a grid that are all tried in its turn
BATCH = 256  # points evaluated at once: memory does not grow with the number of combinations

Key = tuple[Any, ...]


def key_of(space: Space, values: Mapping[str, Any]) -> Key:
    """What makes a setting the same as another."""
    return tuple(values[name] for name in space.free)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings that say nothing to a person who asks for a setting."""
    with warnings.catch_warnings(record=True) as caught:  # BoTorch shows its own whatever the filters say
        warnings.filterwarnings("ignore", message=".*Optimization failed.*", category=RuntimeWarning)
        warnings.simplefilter("ignore", OptimizeWarning)  # BoTorch gives SLSQP an option of L-BFGS
        # A candidate on a measured point makes their covariance singular; linear_operator's jitter is right there.
        warnings.simplefilter("ignore", NumericalWarning)
        warnings.simplefilter("ignore", BotorchWarning)
        warnings.filterwarnings("ignore", message=".*NumPy array is not writable.*")  # which BoTorch does not write to
        yield
    for w in caught:
        if not issubclass(w.category, BotorchWarning):  # a climb that stopped early still gives points to judge
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)


def evaluate(acquisition: AcquisitionFunction, points: Tensor) -> Tensor:
    """Values of coordinates ``k x d``, without gradients, in pieces."""
    with torch.no_grad():
        return torch.cat([acquisition(part.unsqueeze(-2)) for part in points.split(BATCH)])


def best_of_pool(
    acquisition: AcquisitionFunction, space: Space, candidates: Sequence[Mapping[str, Any]], points: Tensor,
    taken: set[Key],
) -> dict[str, Any] | None:  # fmt: skip
    """The candidate of a list with the highest value that was not suggested yet, or None."""
    free = [i for i, values in enumerate(candidates) if key_of(space, values) not in taken]
    if not free:
        return None
    with quiet():
        return dict(candidates[free[int(evaluate(acquisition, points[free]).argmax())]])


def best_setting(
    acquisition: AcquisitionFunction,
    space: Space,
    good: Sequence[Mapping[str, Any]],
    taken: set[Key],
    *,
    fixed: Mapping[str, Any] | None = None,
    seed: int,
    turn: int = 0,
) -> dict[str, Any] | None:
    """The settable setting with the highest value found that satisfies every constraint and was not suggested yet.

    Space-filling settings and settings near good ones are evaluated. From the best, coordinates on a scale
    climb by L-BFGS (SLSQP under constraints) and grids and categories move one at a time, through BoTorch's
    `optimize_acqf_mixed_alternating` where it knows the constraints. What is found is rounded to settings
    that satisfy everything, these and their neighbours are evaluated as they are, and the best one counts.
    Where all parameters are grids and categories there is nothing to alternate with: each in turn takes its best
    value, from several starts.

    Args:
        acquisition: A function of coordinates ``b x 1 x d``.
        space: The space.
        good: Settings worth searching around.
        taken: Settings not to suggest.
        fixed: Values to keep, by name.
        seed: Seed of all that is random.
        turn: Number of the suggestion: each has some space-filling settings that the one before had not.

    Returns:
        The setting, or None where all that were found are taken.
    """
    search = _Search(acquisition, space, dict(fixed or {}), seed)
    with rnd.forked(rnd.generator_from(seed)), quiet():
        if space.num_settings is not None and space.num_settings <= MAX_ENUMERATED:
            search.look_at(every_setting(space, fixed or {}))
            return search.best(taken)
        search.look_at(design(space, NUM_RAW, 0, fixed, skip=NUM_NEW * (turn % MAX_TURNS)))
        search.look_at(search.around(good))
        search.climb()
        return search.best(taken)


def every_setting(space: Space, fixed: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All settings of a finite space that satisfy the constraints and have the values given."""
    levels = [[fixed[name]] if name in fixed else list(p.levels()) for name, p in space.free.items()]
    for values in itertools.product(*levels):
        setting = {**space.fixed, **dict(zip(space.free, values, strict=True))}
        if not space.violations(setting):
            yield setting


class _Search:
    """Settings seen, with their values."""

    def __init__(self, acquisition: AcquisitionFunction, space: Space, fixed: dict[str, Any], seed: int):
        self.acquisition, self.space, self.fixed, self.seed = acquisition, space, fixed, seed
        self.settings: list[dict[str, Any]] = []
        self.points = torch.empty(0, len(space), dtype=torch.double)
        self.scores = torch.empty(0, dtype=torch.double)
        self._seen: dict[Key, int] = {}  # where in `settings`
        self._at: dict[tuple[str, bool, Any], float] = {}  # coordinates of values; True is not 1
        self._order = list(space.free)
        self._held = {self._order.index(n): v for n, v in fixed.items() if n in space.free}

    def look_at(self, settings: Iterable[Mapping[str, Any] | None]) -> None:
        """Evaluate settings that were not seen yet; all of them can be set."""
        new: list[dict[str, Any]] = []
        for values in settings:
            if values is not None and key_of(self.space, values) not in self._seen:
                self._seen[key_of(self.space, values)] = len(self.settings) + len(new)
                new.append({**self.space.fixed, **values})
        if not new:
            return
        points = torch.tensor([self._coordinates(values) for values in new], dtype=torch.double)
        self.settings += new
        self.points = torch.cat([self.points, points])
        self.scores = torch.cat([self.scores, evaluate(self.acquisition, points)])

    def _coordinates(self, values: Mapping[str, Any]) -> list[float]:
        """`Space.coordinates` of a setting that can be set, remembering those of every value."""
        found = []
        for name, parameter in self.space.free.items():
            key = name, isinstance(values[name], bool), values[name]
            if key not in self._at:
                self._at[key] = parameter.coordinate(values[name])
            found.append(self._at[key])
        return found

    def around(self, good: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
        """Settings near good ones: a few coordinates changed, numbers by little, categories at random."""
        if not good:
            return []
        upper, found = self.space.search_bounds[1], []
        for i in range(NUM_LOCAL):
            point = self.space.coordinates({n: good[i % len(good)][n] for n in self.space.free}).clamp_min(0)
            point = torch.minimum(point, upper)
            change = torch.rand(len(self.space)) < max(0.3, 1.5 / len(self.space))
            moved = (point + 0.05 * torch.randn(len(self.space), dtype=torch.double)).clamp(0, 1)
            for j, count in self.space.categorical.items():
                moved[j] = float(torch.randint(count, ()))
            found.append(nearest(self.space, torch.where(change, moved, point), self.fixed))
        return found

    def climb(self) -> None:
        """Improve on the best settings seen."""
        if any(isinstance(c, AtMost) for c in self.space.constraints) or self.space.curved_constraints():
            relaxed = self._alternate()
        elif len(self.space.discrete) + len(self.space.categorical) == len(self.space):
            self._sweep()
            relaxed = self._alternate()
        elif self.space.discrete or self.space.categorical:
            relaxed = torch.cat([self._mixed(), self._alternate()])
        else:
            relaxed = self._continuous(self.starts())
        near = [nearest(self.space, point, self.fixed) for point in relaxed]
        self.look_at(near)
        self.look_at(self._neighbours(values for values in near if values is not None))

    def starts(self) -> Tensor:
        """Points to climb from."""
        return self.points[self._tops()]

    def _tops(self) -> Tensor:
        """The best setting overall, and the best of the spread-out ones: one maximum must not take all restarts."""
        order = self.scores.argsort(descending=True)
        spread = order[order < NUM_RAW][:NUM_STARTS]
        return torch.cat([order[:1], spread]).unique()[:NUM_STARTS]

    def _sweep(self) -> None:
        """Coordinate ascent: every grid or category in turn moves to its best value, from all starts side by side.

        A round over d categories makes up to d moves, for as many evaluations as steepest ascent needs for one.
        """
        at = self._tops().tolist()
        for _ in range(MAX_SWEEPS):
            before = at
            for name in self.space.free:
                moves = [self._moved(self.settings[i], name, all_levels=True) for i in at]
                self.look_at(values for found in moves for values in found)
                scores, reached = self.scores.tolist(), []
                for i, found in zip(at, moves, strict=True):
                    tried = [i, *(self._seen[key_of(self.space, values)] for values in found)]
                    reached.append(max(tried, key=scores.__getitem__))
                at = list(dict.fromkeys(reached))  # starts that meet go on as one
            if at == before:
                return

    def _continuous(self, starts: Tensor, free: Tensor | None = None) -> Tensor:
        """Climb in coordinates on a scale; others, and fixed ones, stay where each start has them."""
        lower, upper = self.space.search_bounds.unsqueeze(1)
        keep = torch.zeros(starts.shape, dtype=torch.bool) if free is None else ~free
        keep[:, list(self._held)] = True
        low, high = torch.where(keep, starts, lower), torch.where(keep, starts, upper)
        start = torch.minimum(torch.maximum(starts, low), high)
        inequalities, equalities = self.space.linear_constraints()
        curved = self.space.curved_constraints()
        found = []
        # Constraints couple the points of one call of SLSQP: then each start climbs on its own.
        alone = bool(inequalities or equalities or curved)
        # BoTorch climbs side by side where all points have the same bounds, and else as one long vector.
        shared = not alone and bool((low == low[0]).all() and (high == high[0]).all())
        for rows in torch.arange(len(start)).split(1 if alone else len(start)):
            with torch.enable_grad():
                try:
                    points, _ = gen_candidates_scipy(
                        start[rows].unsqueeze(-2),
                        self.acquisition,
                        lower_bounds=low[0] if shared else low[rows].unsqueeze(-2),
                        upper_bounds=high[0] if shared else high[rows].unsqueeze(-2),
                        use_parallel_mode=shared,
                        inequality_constraints=inequalities or None,
                        equality_constraints=equalities or None,
                        nonlinear_inequality_constraints=[(c, True) for c in curved] or None,
                        options={"maxiter": MAX_STEPS},
                    )
                except (BotorchError, ValueError):  # an infeasible step of SLSQP: the start itself is still there
                    continue
            found.append(points.squeeze(-2).detach())
        return torch.cat([start, *found])

    def _alternate(self) -> Tensor:
        """From the best settings: move one grid or category at a time, then climb on the scales, and again."""
        discrete = {*self.space.discrete, *self.space.categorical} - set(self._held)
        free = torch.ones(len(self.space), dtype=torch.bool)
        free[list(discrete)] = False
        limited = [c for c in self.space.constraints if isinstance(c, AtMost)]
        relaxed = self.starts()
        for _ in range(2):
            starts = self.starts()
            moving = free.expand(starts.shape).clone()
            for constraint in limited:  # what is not in use stays out of use
                for name in constraint.names:
                    if name in self.space.free:
                        j = self._order.index(name)
                        zero = self.space.coordinates({**self._any(), name: 0})[j]
                        moving[:, j] &= starts[:, j] != zero
            if free.any():
                relaxed = torch.cat([relaxed, self._continuous(starts, moving)])
                self.look_at(nearest(self.space, point, self.fixed) for point in relaxed[-len(starts) :])
            for _ in range(MAX_MOVES):
                before = float(self.scores.max())
                tops = self.scores.topk(min(2, len(self.scores))).indices.tolist()
                self.look_at(self._neighbours([self.settings[i] for i in tops]))
                if float(self.scores.max()) <= before:
                    break
        return relaxed

    def _any(self) -> dict[str, Any]:
        return {name: self.settings[0][name] for name in self.space.free}

    def _mixed(self) -> Tensor:
        """BoTorch's alternating search."""
        inequalities, equalities = self.space.linear_constraints()
        held = self._any()
        held.update({self._order[i]: value for i, value in self._held.items()})
        at = self.space.coordinates(held)
        try:
            points, _ = optimize_acqf_mixed_alternating(
                self.acquisition,
                bounds=self.space.search_bounds,
                discrete_dims={j: values for j, values in self.space.discrete.items() if j not in self._held},
                cat_dims={j: list(range(n)) for j, n in self.space.categorical.items() if j not in self._held},
                fixed_features={j: float(at[j]) for j in self._held} or None,
                inequality_constraints=inequalities or None,
                equality_constraints=equalities or None,
                q=1,
                raw_samples=64,
                num_restarts=2,
                options={"maxiter_alternating": 4, "maxiter_continuous": 20, "batch_limit": 64},
            )
        except (BotorchError, ValueError):  # no start that satisfies the constraints: ours do
            return torch.empty(0, len(self.space), dtype=torch.double)
        return points.detach()

    def _neighbours(self, settings: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Settings that differ in one grid or category and can be set."""
        return [moved for values in settings for name in self.space.free for moved in self._moved(values, name)]

    def _moved(self, values: Mapping[str, Any], name: str, *, all_levels: bool = False) -> list[dict[str, Any]]:
        """Settings with another value of a grid or category that can be set: one beside it, or any of a short grid."""
        parameter = self.space.free[name]
        if name in self.fixed or parameter.num_values is None:
            return []
        short = all_levels and parameter.num_values <= MAX_LEVELS
        found = []
        for other in parameter.levels() if short else parameter.neighbours(values[name]):
            moved = {**values, name: other}
            if not self.space.constraints or not self.space.violations(moved):  # values are settable one by one
                found.append(moved)
            else:
                found += self._exchanges(moved, name)
        return found

    def _exchanges(self, moved: dict[str, Any], name: str) -> list[dict[str, Any]]:
        """Settings where one other parameter of an equality takes up what a step of `name` left open."""
        found = []
        for constraint in self.space.constraints:
            if isinstance(constraint, Linear) and constraint.equality and name in constraint.names:
                for partner in constraint.names:
                    if partner == name or partner in self.fixed or partner not in self.space.free:
                        continue
                    parameter = self.space.free[partner]
                    if parameter.num_values is None:  # a number without step: the rest of it, found by rounding
                        kept = {n: v for n, v in moved.items() if n != partner}
                        at = self.space.coordinates({n: moved[n] for n in self.space.free})
                        settled = nearest(self.space, at, {n: kept[n] for n in self.space.free if n in kept})
                        found += [] if settled is None else [settled]
                        continue
                    for other in parameter.neighbours(moved[partner]):
                        both = {**moved, partner: other}
                        if not self.space.violations(both):
                            found.append(both)
        return found

    def best(self, taken: set[Key]) -> dict[str, Any] | None:
        """The best setting seen that is not taken."""
        for i in self.scores.argsort(descending=True).tolist():
            if key_of(self.space, self.settings[i]) not in taken:
                return self.settings[i]
        return None
