"""The stages of matching but for the critic's: closed-form moments, and distances of draws."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import random as rnd
from ..diagnostics import energy_distance, sliced_wasserstein, squared_bures, squared_mmd
from .gaussian_process import GaussianProcess
from .tuning import Problem, Stage, average, descend
from .weights import WeightPrior
from .wide import moments

SUBSET = 8  # points of one step: as good as all of them, at a fraction of the cost
MOMENT_POINTS = 32
NUM_SCALES = 64  # points for random scales of hidden layers in the closed form
TARGET_DRAWS = 4000  # for the moments of a target that has none in closed form
HELD_OUT = 1000
PROJECTIONS = 64
# Order of the moment that functions must have for the objective to be finite, where it is not 1.
ORDERS = {"nngp": 2.0, "mmd": 0.0}
Advance = Callable[[float], None]


def nngp(problem: Problem, steps: int, advance: Advance) -> Stage:
    """Minimise the squared Bures distance of the closed-form moments; the best of all steps is kept."""
    X = problem.some_points(MOMENT_POINTS).double()
    wanted = _target_moments(problem, X)
    network = problem.process.network
    seed = int(rnd.integers(2**31, (), generator=problem.generator))
    # Sums over all points and channels of squares: about that many times the energy distance at a few points.
    coordinates = problem.coordinates(ORDERS["nngp"], 10.0 * len(X))

    def loss(prior: WeightPrior) -> Tensor:
        return squared_bures(moments(network, prior, X, NUM_SCALES, seed), wanted).sum()  # type: ignore[arg-type]

    visited, history = descend(coordinates, loss, steps, 0.1, advance=advance)
    penalties = torch.stack([coordinates.penalty(raw) for raw in visited[:-1]]).cpu()
    return Stage((coordinates.finish(visited[int((history + penalties).argmin())]),), history)


def _target_moments(problem: Problem, X: Tensor) -> Tensor:
    """E f(x) f(x') of the target, ``c x n x n``."""
    target = problem.target
    if isinstance(target, GaussianProcess) and not target.hyperprior and not target._batch_shape:
        mean, covariances, _ = target._double._moments(X)
        return covariances + mean.unsqueeze(-1) * mean.unsqueeze(-2)
    f = problem.wanted(X.to(problem.process.dtype), TARGET_DRAWS).movedim(-1, 0)
    return f.mT @ f / f.shape[-2]


def sampled(problem: Problem, distance: str, steps: int, lr: float, advance: Advance) -> Stage:
    """Minimise a distance of draws; what is found are the last step and the mean of the last third of them."""
    coordinates = problem.coordinates(ORDERS.get(distance, 1.0))

    def loss(prior: WeightPrior) -> Tensor:
        X = problem.points() if distance == "sliced" else problem.some_points(SUBSET)
        return discrepancy(distance, problem.functions(prior, X), problem.wanted(X), problem.generator)

    visited, history = descend(coordinates, loss, steps, lr, last=0.02, advance=advance)
    return Stage((coordinates.finish(visited[-1]), coordinates.finish(average(visited))), history)


def discrepancy(distance: str, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """The distance that an objective minimises, of draws ``n x M x c``."""
    x, y = x.flatten(1), y.flatten(1)
    if distance == "mmd":
        return squared_mmd(x, y)
    if distance == "sliced":
        return sliced_wasserstein(x, y, num_projections=PROJECTIONS, generator=generator)
    return energy_distance(x, y)


def best(problem: Problem, distance: str, priors: list[WeightPrior]) -> WeightPrior:
    """The prior that is closest to the target on draws no step has seen, the same ones for all."""
    seed = int(rnd.integers(2**31, (), generator=problem.generator))
    order = ORDERS.get(distance, 1.0)  # of the coordinates that shrinkage is measured in
    with torch.no_grad():
        X = problem.points(rnd.generator_from(seed))
        y = problem.wanted(X, HELD_OUT, rnd.generator_from(seed + 1))
        scores = []
        for prior in priors:
            x = problem.functions(prior, X, HELD_OUT, rnd.generator_from(seed + 2))
            value = discrepancy(distance, x, y, rnd.generator_from(seed + 3))
            coordinates = problem.with_prior(prior).coordinates(order)
            scores.append((value + coordinates.penalty(coordinates.start)).item())
    return priors[scores.index(min(scores))]
