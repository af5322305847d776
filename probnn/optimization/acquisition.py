"""Acquisition functions over the features of a space, from models of the outcomes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from botorch.acquisition import AcquisitionFunction
from botorch.acquisition.logei import qLogExpectedImprovement, qLogNoisyExpectedImprovement
from botorch.acquisition.objective import GenericMCObjective
from botorch.models import ModelList
from botorch.posteriors.transformed import TransformedPosterior
from botorch.sampling.get_sampler import get_sampler
from botorch.sampling.list_sampler import ListSampler
from torch import Tensor

from .. import random as rnd
from ..errors import DomainError, UnsupportedError
from ..predictive import DrawsPosterior
from ..surrogates import ProcessModel
from ..surrogates.paths import ProcessPaths
from .feasibility import FeasibilityModel
from .goals import Goals
from .space import Space
from .units import Units

ACQUISITIONS = ("qLogNEI", "qLogEI", "qLogNEHVI", "thompson")
NUM_SAMPLES = 128
# Width of the edge of a bound, in standard deviations of its outcome. BoTorch's 1e-3 has a tail of (1e-3 / excess)^2,
# which a target that cannot be improved any more within its bounds outweighs.
SMOOTHING = 1e-5


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
    units: Sequence[Units] | None = None,
) -> AcquisitionFunction:
    """The acquisition function of features ``b x 1 x D``.

    Args:
        name: One of :data:`ACQUISITIONS`.
        models: One a measured outcome, in the order of ``goals.outcomes``, in its signs, and in `units`.
        goals: The goals.
        measured: Features with outcomes, ``n x D``.
        best: Scores of the measured feasible trials ``k x targets``, in `units` too.
        pending: Features under evaluation, ``p x D``.
        reference: Reference point of the hypervolume, in `units` too.
        seed: Seed of its samples.
        units: Those of the models; None: those of the bounds.
    """
    model = models[0] if len(models) == 1 else ModelList(*models)
    waiting = pending if len(pending) else None
    if name == "thompson":
        return PathAcquisition(models[0], seed)
    example, shape = model.posterior(measured[:1]), torch.Size([NUM_SAMPLES])
    sampler = get_sampler(example, shape, seed=seed % 2**31)
    if isinstance(sampler, ListSampler):  # BoTorch gives all normal outcomes the same numbers: they would move as one
        members = [get_sampler(example, shape, seed=(seed + i) % 2**31) for i in range(len(models))]
        sampler = ListSampler(*(s.samplers[i] for i, s in enumerate(members)))
    common: dict[str, Any] = {"sampler": sampler, "X_pending": waiting}
    if goals.bounds:
        common["constraints"] = goals.constraint_functions(units)
        common["eta"] = SMOOTHING
    if name == "qLogNEHVI":
        return _hypervolume(model, goals, measured, reference, common)
    if len(models) > 1:
        common["objective"] = GenericMCObjective(_First())
    if name == "qLogNEI" and len(models) == 1 and not goals.bounds and _has_draws(models[0], measured):
        return DrawsNoisyImprovement(models[0], torch.cat([measured, pending]), seed)
    if name == "qLogEI":
        if not len(best):
            return qLogNoisyExpectedImprovement(model, measured, **common)  # nothing feasible to improve on yet
        return qLogExpectedImprovement(model, best_f=best[:, 0].max(), **common)
    return qLogNoisyExpectedImprovement(model, measured, prune_baseline=True, **common)


def _has_draws(model: ProcessModel, measured: Tensor) -> bool:
    posterior = model.posterior(measured[:1])
    while isinstance(posterior, TransformedPosterior):
        posterior = posterior._posterior
    return isinstance(posterior, DrawsPosterior)


class DrawsNoisyImprovement(qLogExpectedImprovement):
    r"""The noisy expected improvement of a model of draws, each draw compared with its own best.

    .. math:: \log E_s\left[(f_s(x) - \max_i f_s(x_i))_+\right]

    over draws :math:`f_s`, smoothed as in qLogNEI (Ament et al., 2023, arXiv:2310.20708), which it equals: a draw is
    one function wherever it is asked, so its values at measured and pending points are worked out once,
    while qLogNEI evaluates them again together with every candidate. Measured at 100 rows: 30 times the work.

    Args:
        model: A model with one outcome whose posterior consists of draws.
        X_baseline: Features measured or under evaluation, ``n x D``.
        seed: Seed of the choice of draws.
        num_samples: How many draws are used.
    """

    def __init__(self, model: ProcessModel, X_baseline: Tensor, seed: int, num_samples: int = 256):
        sampler = get_sampler(model.posterior(X_baseline[:1]), torch.Size([num_samples]), seed=seed % 2**31)
        with torch.no_grad():
            values = sampler(model.posterior(X_baseline)).squeeze(-1)  # the same draws as at any other points
        super().__init__(model, best_f=values.amax(-1, keepdim=True), sampler=sampler)


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
        feasibility: Adds :math:`4 \log p(x)`: to the logarithm of an improvement, so that improvement times
            :math:`p^4` is maximised; to a draw of the target, which is no logarithm, in units of the target's spread.
            The plain product (:math:`p^1`; Gelbart, Snoek and Adams, 2014, arXiv 1403.5607) is indifferent between
            a sure gain and twice the gain with a half of the experiments lost.
    """

    def __init__(self, inner: AcquisitionFunction, space: Space, feasibility: FeasibilityModel | None = None):
        super().__init__(inner.model)
        self.inner, self.space, self.feasibility = inner, space, feasibility

    def forward(self, X: Tensor) -> Tensor:
        """Values of coordinates ``b x 1 x d``: ``b``."""
        features = self.space.features(X)
        value = self.inner(features)
        if self.feasibility is not None:
            value = value + CAUTION * self.feasibility.log_probability(features).sum(-1)
        return value
