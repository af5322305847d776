"""Matching: the weight prior whose functions look like those of another process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..diagnostics import energy_distance, marginal_wasserstein, sliced_wasserstein, squared_bures
from ..errors import DomainError, ShapeError, UnsupportedError
from ..process import BayesianNetwork, StochasticProcess
from ..progress import Progress
from .critic import Wasserstein, wasserstein
from .matching_stages import ORDERS, best, nngp, sampled
from .measurement import MeasurementSet, Points
from .tuning import Coordinates, Problem, Stage, probe_target
from .weights import WeightPrior
from .wide import check_normal, function_order

OBJECTIVES = ("auto", "energy", "mmd", "sliced", "nngp", "wasserstein")
NUM_EVALUATIONS = 2000  # fresh draws of each process for the report
_STEPS = {"auto": 120, "nngp": 150, "wasserstein": 200}
_WARM_STEPS = _STEPS["nngp"]


@dataclass(frozen=True, repr=False, eq=False)
class Match:
    """A prior matched to a target, and how near it came.

    Attributes:
        prior: The network with the matched prior of its weights.
        start: The network as it was given.
        target: The process it was matched to.
        points: Where the distances below were measured, ``M x d``.
        objective: The objective, as it was named.
        distances: Of the matched prior to the target, on fresh draws: ``energy`` (:func:`energy_distance`),
            ``sliced_w1``, ``marginal_w1`` and ``moments`` (:func:`squared_bures` of the empirical second moments).
            What is infinite under the prior is reported infinite.
        untuned: Those of the prior as it was given.
        floor: Those of the target to itself, with as many draws: no prior gets below but by luck.
        history: The objective at every step of each stage, by the name of the stage.
        seconds: CPU time of the matching, without the report.

    Example:
        >>> import torch, gpytorch, probnn
        >>> target = probnn.GaussianProcess(gpytorch.kernels.RBFKernel(), input_dim=1)
        >>> net = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=(20,)), probnn.priors.NormalWeights())
        >>> match = probnn.match_prior(net, target, probnn.priors.Grid(-1, 1, 10), objective="nngp", num_steps=20)
        >>> match.distances["energy"] < match.untuned["energy"]
        True
    """

    prior: BayesianNetwork
    start: BayesianNetwork
    target: StochasticProcess
    points: Tensor
    objective: str
    distances: dict[str, float]
    untuned: dict[str, float]
    floor: dict[str, float]
    history: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    def summary(self) -> str:
        """The distances as a table, and the scales that were found."""
        stages = " + ".join(f"{len(values)} {name}" for name, values in self.history.items())
        lines = [f"Match(objective={self.objective!r}): steps {stages}, {self.seconds:.1f} CPU s"]
        lines.append(f"{'distance':<12} {'untuned':>9} {'matched':>9} {'floor':>9}")
        for name, value in self.distances.items():
            lines.append(f"{name:<12} {self.untuned[name]:9.4g} {value:9.4g} {self.floor[name]:9.4g}")
        return "\n".join([*lines, *_described(self.prior)])

    def __repr__(self) -> str:
        return self.summary()

    def plot(self, path: Any = None, *, ax: Any = None, num_functions: int = 8, seed: int = 0) -> Any:
        """Draw functions of the prior before and after matching, and of the target; see `plots.plot_match`."""
        from ..plots import plot_match

        return plot_match(self, path, ax=ax, num_functions=num_functions, seed=seed)


def match_prior(
    prior: BayesianNetwork,
    target: StochasticProcess,
    measurement: MeasurementSet | Tensor,
    objective: str | Wasserstein = "auto",
    *,
    num_steps: int | None = None,
    num_draws: int | None = None,
    shrinkage: float = 0.0,
    seed: int = 0,
    progress: bool = False,
) -> Match:
    r"""Tune the prior of a network's weights until its functions look like those of a target process.

    Minimises a distance between the laws of the function values at measurement points over the hyper-parameters
    of the weight prior, as Tran et al. (2022, arXiv 2011.12829) proposed. The hyper-parameters are those which
    :meth:`WeightPrior.hyperparameters` names: scales of weights and biases, one a layer (one a weight, where they were
    given as a tensor of that length), spread or shape of random scales. Positive ones move on a logarithmic scale.

    Objectives, with their defaults:

    - ``"auto"``: 150 steps of ``"nngp"`` as a warm start, where the closed form is known, then 120 steps of
      ``"energy"``. The best of the given prior, the warm start and the result is kept, by new draws.
    - ``"energy"``: :func:`probnn.diagnostics.energy_distance` on 8 random measurement points a step, 256 draws, 300
      steps of Adam. A strictly proper distance of the laws at these points; needs a finite mean.
    - ``"mmd"``: :func:`probnn.diagnostics.squared_mmd`, likewise; needs no moment.
    - ``"sliced"``: :func:`probnn.diagnostics.sliced_wasserstein` along 64 new directions a step, at all points.
    - ``"nngp"``: :func:`probnn.diagnostics.squared_bures` between the target's second moments and those of the wide
      network (:func:`wide_covariance`) at up to 32 of the points, 150 steps. No draws of weights (random scales
      of hidden layers are taken at 64 fixed points), so by far the fastest, but blind to all that is not Gaussian;
      needs finite variances.
    - ``"wasserstein"`` or a :class:`Wasserstein`: the paper's critic, 200 steps of 128 draws. Costs minutes.

    Args:
        prior: The network and the prior of its weights to start from.
        target: Any process with the same inputs and channels. A Gaussian process with a hyper-prior
            draws new hyper-parameters for every function.
        measurement: :class:`Grid`, :class:`TrainingInputs`, or points ``M x d``.
        objective: See above.
        num_steps: Steps (of ``"auto"``: those after the warm start); None: the default of the objective.
        num_draws: Functions of each process a step, at least 2; None: 256, and 128 for the critic.
        shrinkage: Weight of the squared distance, in these free coordinates, from the prior as it was given. A network
            that cannot reach its target runs to extreme scales for the last bit of distance (2 x 50 tanh units to
            an RBF process: 80, and functions that are staircases); there 0.001 holds them at 12, for an energy
            distance of 0.10 instead of 0.07. Its unit is that of the energy distance at 8 points.
        seed: Same seed, same machine: the same match. torch's global stream is not touched.
        progress: Show a bar.

    Returns:
        The matched prior, with distances on fresh draws beside those of the given prior and of the target to itself.

    Raises:
        ShapeError: Prior, target and measurement points differ in inputs or channels.
        DomainError: An argument is of the wrong type or out of range, dtypes or devices differ, the
            objective needs moments that the functions do not have, or the target cannot be drawn at the points (the
            message names the kernel).
        NonFiniteError: Measurement points hold NaN or infinity.
        UnsupportedError: The prior names no hyper-parameters, the target has no joint draws, or the closed form of
            ``"nngp"`` is unknown.
        ConvergenceError: The objective became NaN or infinite; `partial` is the last prior of the weights before.

    Example:
        >>> import torch, gpytorch, probnn
        >>> target = probnn.GaussianProcess(gpytorch.kernels.RBFKernel(), input_dim=1)
        >>> net = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=(20,)), probnn.priors.NormalWeights())
        >>> match = probnn.match_prior(net, target, probnn.priors.Grid(-1, 1, 10), num_steps=10)
        >>> list(match.history), len(match.prior.weight_prior.weight_scale)
        (['nngp', 'energy'], 2)
    """
    where = "match_prior"
    name, settings = _objective(where, objective)
    measurement = _checked(where, prior, target, measurement)
    if num_steps is not None:
        validation.positive_int(where, "num_steps", num_steps)
    default = 128 if name == "wasserstein" else 256
    num_draws = validation.positive_int(where, "num_draws", default if num_draws is None else num_draws, 2)
    generator = rnd.generator_from(rnd.check_seed(where, seed))
    order = ORDERS.get(name, 1.0)
    if name == "nngp":
        check_normal(where, prior)
    finite = function_order(prior)
    if not finite > order:
        raise DomainError(
            f"{where}: objective {name!r} needs functions with moments of order {order:g}, but under "
            f"{type(prior.weight_prior).__name__} they exist below order {finite:g} only; take objective='mmd', or "
            "other hyper-parameters"
        )
    validation.positive(where, "shrinkage", shrinkage, allow_zero=True)
    problem = Problem(prior, target, measurement, generator, num_draws, prior.weight_prior, float(shrinkage))
    Coordinates(prior, order)  # refuses priors without hyper-parameters
    probe_target(where, problem)

    started, history, found = time.process_time(), {}, prior.weight_prior
    warm = name == "auto" and _closed_form(prior)
    steps = num_steps or (300 if name == "auto" and not warm else _STEPS.get(name, 300))
    total = steps + (_WARM_STEPS if warm else 0)
    with Progress(total, where, progress) as bar:
        for stage_name, stage, candidates in _stages(problem, name, settings, steps, warm, bar):
            history[stage_name] = stage.history
            found = candidates
    seconds = time.process_time() - started
    matched = replace(prior, weight_prior=found)
    points, reports = _report(problem, [prior, matched])
    return Match(matched, prior, target, points, name, reports[1], reports[0], reports[2], history, seconds)


def _stages(
    problem: Problem, name: str, settings: Wasserstein, steps: int, warm: bool, bar: Progress
) -> Iterator[tuple[str, Stage, WeightPrior]]:
    """Every stage with its name and the prior of the weights after it."""

    def advance(value: float) -> None:
        bar.update(1, objective=f"{value:.3g}")

    start = problem.process.weight_prior
    if name == "wasserstein":
        stage = wasserstein(problem, settings, steps, advance)
        yield name, stage, stage.found[-1]
        return
    candidates = [start]
    if warm or name == "nngp":
        stage = nngp(problem, _WARM_STEPS if warm else steps, advance)
        candidates.append(stage.found[-1])
        yield "nngp", stage, stage.found[-1]
        if name == "nngp":
            return
    distance = "energy" if name == "auto" else name
    stage = sampled(problem.with_prior(candidates[-1]), distance, steps, 0.05 if warm else 0.1, advance)
    yield distance, stage, best(problem, distance, [*candidates, *stage.found])


def _objective(where: str, objective: Any) -> tuple[str, Wasserstein]:
    if isinstance(objective, Wasserstein):
        return "wasserstein", objective
    return validation.choice(where, "objective", objective, OBJECTIVES), Wasserstein()


def _checked(where: str, prior: Any, target: Any, measurement: Any) -> MeasurementSet:
    """The measurement set, after the three were found to go together."""
    if not isinstance(prior, BayesianNetwork):
        raise DomainError(f"{where}: prior must be a BayesianNetwork, got a {type(prior).__name__}")
    if not isinstance(target, StochasticProcess):
        raise DomainError(f"{where}: target must be a StochasticProcess, got a {type(target).__name__}")
    if torch.is_tensor(measurement):
        measurement = Points(measurement)
    if not isinstance(measurement, MeasurementSet):
        raise DomainError(
            f"{where}: measurement must be probnn.priors.Grid, TrainingInputs or a tensor of points, got a "
            f"{type(measurement).__name__}"
        )
    if (prior.input_dim, prior.output_dim) != (target.input_dim, target.output_dim):
        raise ShapeError(
            f"{where}: prior and target must agree in inputs and channels, got {prior.input_dim} -> "
            f"{prior.output_dim} and {target.input_dim} -> {target.output_dim}"
        )
    if measurement.input_dim != prior.input_dim:
        raise ShapeError(
            f"{where}: measurement must have {prior.input_dim} inputs to match the prior, got {measurement.input_dim}"
        )
    given = getattr(measurement, "X", prior)
    for what, other in (("target", target), ("measurement points", given)):
        if (other.dtype, other.device) != (prior.dtype, prior.device):
            raise DomainError(
                f"{where}: prior and {what} must agree in dtype and device, got {prior.dtype} on {prior.device} and "
                f"{other.dtype} on {other.device}; convert one of them with .to(...)"
            )
    return measurement


def _closed_form(prior: BayesianNetwork) -> bool:
    """Whether the second moments are known and finite."""
    try:
        check_normal("match_prior", prior)
    except (UnsupportedError, DomainError):
        return False
    return True


def _report(problem: Problem, processes: list[BayesianNetwork]) -> tuple[Tensor, list[dict[str, float]]]:
    """The distances of every process to the target on fresh draws, and at the end those of the target to itself."""
    # Seeds of their own, which no other generator of this call has.
    seeds = [int(rnd.integers(2**62, (), generator=problem.generator)) for _ in range(4)]
    with torch.no_grad():
        points = problem.points(rnd.generator_from(seeds[0]))
        wanted, again = (problem.wanted(points, NUM_EVALUATIONS, rnd.generator_from(s)).flatten(1) for s in seeds[1:3])
        rows = []
        for process in processes:
            f = problem.functions(process.weight_prior, points, NUM_EVALUATIONS, rnd.generator_from(seeds[3]))
            rows.append(_distances(f.flatten(1), wanted, function_order(process)))
        rows.append(_distances(again, wanted, float("inf")))
    return points, rows


def _distances(x: Tensor, y: Tensor, order: float) -> dict[str, float]:
    infinite = float("inf")
    first = {
        "energy": lambda: energy_distance(x, y),
        "sliced_w1": lambda: sliced_wasserstein(x, y, generator=rnd.generator_from(0)),
        "marginal_w1": lambda: marginal_wasserstein(x, y),
    }
    found = {name: distance().item() if order > 1 else infinite for name, distance in first.items()}
    moment = squared_bures(x.mT @ x / len(x), y.mT @ y / len(y)).item() if order > 2 else infinite
    return {**found, "moments": moment}


def _described(process: BayesianNetwork) -> list[str]:
    """The hyper-parameters of the weights, where they are few."""
    found = process.weight_prior.hyperparameters(process.network.layout)
    lines = []
    for name, (value, _) in found.items():
        text = (
            ", ".join(f"{v:.3g}" for v in value.reshape(-1).tolist())
            if value.numel() <= 12
            else (f"{value.numel()} values, {value.min():.3g} to {value.max():.3g}")
        )
        lines.append(f"{name}: {text}")
    return lines
