"""Acquisition functions over the features of a space, from models of the outcomes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from botorch.acquisition import AcquisitionFunction
from botorch.acquisition.logei import qLogExpectedImprovement, qLogNoisyExpectedImprovement
from botorch.acquisition.objective import GenericMCObjective
from botorch.models import ModelList
from botorch.sampling.get_sampler import get_sampler
from torch import Tensor

from .. import random as rnd
from ..errors import DomainError, UnsupportedError
from ..surrogates import ProcessModel
from ..surrogates.paths import ProcessPaths
from .feasibility import FeasibilityModel
from .goals import Goals
from .space import Space

ACQUISITIONS = ("qLogNEI", "qLogEI", "qLogNEHVI", "thompson")
NUM_SAMPLES = 128


def check_acquisition(where: str, name: str | None, goals: Goals) -> str:
    """The name of the acquisition function; None: qLogNEI for one target, qLogNEHVI for several.

    Raises:
        DomainError: There is no such function.
        UnsupportedError: It cannot work towards these goals.
    """
    several = len(goals.targets) > 1
    if name is None:
        return "qLogNEHVI" if several else "qLogNEI"
    if name not in ACQUISITIONS:
        raise DomainError(f"{where}: acquisition must be one of {', '.join(ACQUISITIONS)}, got {name!r}")
    if several and name != "qLogNEHVI":
        raise UnsupportedError(f"{where}: {name} works for one target, there are {len(goals.targets)}; use qLogNEHVI")
    if not several and name == "qLogNEHVI":
        raise UnsupportedError(f"{where}: qLogNEHVI needs several targets, there is one; use qLogNEI")
    if name == "thompson" and goals.bounds:
        raise UnsupportedError(f"{where}: Thompson sampling knows no bounds on outcomes; use qLogNEI")
    return name


def build(
    name: str,
    models: list[ProcessModel],
    goals: Goals,
    measured: Tensor,
    best: Tensor,
    pending: Tensor,
    *,
    reference: Tensor | None,
    seed: int,
) -> AcquisitionFunction:
    """The acquisition function of features ``b x 1 x D``.

    Args:
        name: One of :data:`ACQUISITIONS`.
        models: One a measured outcome, in the order of ``goals.outcomes`` and in its signs.
        goals: The goals.
        measured: Features with outcomes, ``n x D``.
        best: Scores of the measured feasible trials ``k x targets``.
        pending: Features under evaluation, ``p x D``.
        reference: Reference point of the hypervolume.
        seed: Seed of its samples.
    """
    model = models[0] if len(models) == 1 else ModelList(*models)
    waiting = pending if len(pending) else None
    if name == "thompson":
        return PathAcquisition(models[0], seed)
    sampler = get_sampler(model.posterior(measured[:1]), torch.Size([NUM_SAMPLES]), seed=seed % 2**31)
    common: dict[str, Any] = {"sampler": sampler, "X_pending": waiting}
    if goals.bounds:
        common["constraints"] = goals.constraint_functions()
    if name == "qLogNEHVI":
        return _hypervolume(model, goals, measured, reference, common)
    if len(models) > 1:
        common["objective"] = GenericMCObjective(_First())
    if name == "qLogEI":
        if not len(best):
            return qLogNoisyExpectedImprovement(model, measured, **common)  # nothing feasible to improve on yet
        return qLogExpectedImprovement(model, best_f=best[:, 0].max(), **common)
    return qLogNoisyExpectedImprovement(model, measured, prune_baseline=True, **common)


class _First:
    """The first outcome of samples: the target."""

    def __call__(self, samples: Tensor, X: Tensor | None = None) -> Tensor:
        return samples[..., 0]


def _hypervolume(
    model: Any, goals: Goals, measured: Tensor, reference: Tensor | None, common: dict[str, Any]
) -> AcquisitionFunction:
    from botorch.acquisition.multi_objective.objective import IdentityMCMultiOutputObjective

    with _without_compiler():
        from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement

        outcomes = list(range(len(goals.targets)))
        objective = IdentityMCMultiOutputObjective(outcomes=outcomes, num_outcomes=len(goals.outcomes))
        if reference is None:
            raise DomainError("qLogNEHVI: needs a reference point")
        return qLogNoisyExpectedHypervolumeImprovement(
            model, ref_point=reference, X_baseline=measured, objective=objective, prune_baseline=True, **common
        )


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """BoTorch compiles a C++ kernel for minutes at the first of these functions; its plain one does as well."""
    from botorch.acquisition.multi_objective import logei

    if hasattr(logei, "_load_attempted"):
        logei._load_attempted = True
    yield


class PathAcquisition(AcquisitionFunction):
    """A draw of the function, to be maximised: Thompson sampling.

    Args:
        model: The model.
        seed: Which draw.
    """

    def __init__(self, model: ProcessModel, seed: int):
        super().__init__(model)
        with rnd.forked(rnd.generator_from(seed)):
            self._path = ProcessPaths(model, torch.Size([1]))

    def forward(self, X: Tensor) -> Tensor:
        """The draw at ``b x 1 x D``: ``b``."""
        return self._path(X.unsqueeze(-3)).reshape(X.shape[:-2])  # one path meets all points


# The power of the probability of success: at 1 as many suggestions fail along the edge of what works as without it,
# since there the probability is a half and the improvement often the largest; see the benchmark `failures`.
CAUTION = 4.0


class OverSpace(AcquisitionFunction):
    r"""An acquisition function of coordinates, with the probability that the experiment succeeds.

    Args:
        inner: A function of features.
        space: The space that makes features of coordinates.
        feasibility: Adds :math:`4 \log p(x)`, times `unit`: to the logarithm of an improvement 1, so that improvement
            times :math:`p^4` is maximised; to a draw of the target, which is no logarithm, the target's spread.
            The plain product (:math:`p^1`; Gelbart, Snoek and Adams, 2014, arXiv 1403.5607) is indifferent between
            a sure gain and twice the gain with a half of the experiments lost.
        unit: See above.
    """

    def __init__(
        self, inner: AcquisitionFunction, space: Space, feasibility: FeasibilityModel | None = None, unit: float = 1.0
    ):
        super().__init__(inner.model)
        self.inner, self.space, self.feasibility, self.unit = inner, space, feasibility, unit

    def forward(self, X: Tensor) -> Tensor:
        """Values of coordinates ``b x 1 x d``: ``b``."""
        features = self.space.features(X)
        value = self.inner(features)
        if self.feasibility is not None:
            value = value + CAUTION * self.unit * self.feasibility.log_probability(features).sum(-1)
        return value
