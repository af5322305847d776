"""What studies of convergence fit to their data sets."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import moe, validation
from ..errors import ConvergenceWarning, DomainError
from ..moe.data import Data
from ..moe.iteration import CRITERIA
from ..moe.starts import KINDS, near_truth, starting_points
from ..random import generator_from
from ._truths import record

CHOICES = ("aic", "bic", "icl", "dsc", "dsc_mean_gate")
# Criteria of dendrograms, and what their heights are called.
_HEIGHTS = {"dsc": "height", "dsc_mean_gate": "mean_gate_height"}
METHODS = ("newton", "em", "squarem", "lbfgs")
STATUSES = ("converged", "separated", "saddle", "max_iter", "degenerate", "failed")
# Statuses whose likelihood is that of a fit, as in moe.select_num_experts.
_USABLE = [STATUSES.index(status) for status in ("converged", "separated", "saddle", "max_iter")]


@dataclass(frozen=True, eq=False)
class Fitted:
    """Fits of R data sets, one restart of each.

    Args:
        model: The model with its parameters, ``R x P``.
        log_likelihood: Of each, NaN where the fit failed.
        status: Its place in :data:`STATUSES`.
        converged: The stopping rule was met, at an estimate that is not degenerate.
        num_iter: Iterations of the restart that won.
    """

    model: moe.GaussianMoE
    log_likelihood: Tensor
    status: Tensor
    converged: Tensor
    num_iter: Tensor

    @property
    def usable(self) -> Tensor:
        """Whether the likelihood is that of a fit."""
        return torch.isin(self.status, torch.tensor(_USABLE))

    def better(self, other: Fitted) -> Fitted:
        """The better of two restarts, by data set."""
        mine, theirs = (x.log_likelihood.masked_fill(~x.usable, -math.inf) for x in (self, other))
        taken = (theirs > mine) | (mine.isneginf() & other.usable)
        tensors = {
            name: torch.where(taken, getattr(other, name), getattr(self, name))
            for name in ("log_likelihood", "status", "converged", "num_iter")
        }
        theta = torch.where(taken.unsqueeze(-1), _theta(other.model), _theta(self.model))
        return Fitted(replace(self.model, theta=theta), **tensors)


@dataclass(frozen=True, kw_only=True)
class Estimator:
    r"""A maximum-likelihood estimator of mixtures of linear experts, with all that its estimates depend on.

    Where a climb starts and which rule ends it decide which rate of convergence a study shows, so they belong to the
    estimator, and to what identifies its results.

    Args:
        num_experts: The number of experts that are fitted.
        gate: The gate; None: the truth's.
        variance: ``"per_expert"``, ``"shared"``, or a number: known.
        penalty: Added to the log-likelihood.
        method: ``"newton"``, ``"em"``, ``"squarem"`` or ``"lbfgs"``, as in :func:`probnn.moe.fit`.
        starts: ``"near_truth"``: every atom near a true one, each of which has at least one (Nguyen, Nguyen & Ho 2023,
            arXiv 2305.03288); ``"auto"``; or one or several of the kinds that :func:`probnn.moe.fit` has.
        num_restarts: Starts a data set; the best counts.
        criterion: The stopping rule; None: that of the method. ``"relative"`` with ``method="em"`` is the papers'.
        tolerance: Its bound.
        max_iter: Most iterations; None: the method's.
        num_warmup: EM iterations before Newton, one or several numbers; None: 10.

    Raises:
        DomainError: A setting is out of its range.

    Example:
        >>> Estimator(num_experts=3, method="em", criterion="relative").tolerance
        1e-06
    """

    num_experts: int
    gate: moe.Gate | None = None
    variance: str | float = "per_expert"
    penalty: moe.Penalty | None = None
    method: str = "newton"
    starts: str | tuple[str, ...] = "near_truth"
    num_restarts: int = 1
    criterion: str | None = None
    tolerance: float = 1e-6
    max_iter: int | None = None
    num_warmup: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        where = "studies.Estimator"
        for name in ("num_experts", "num_restarts"):
            object.__setattr__(self, name, validation.positive_int(where, name, getattr(self, name)))
        validation.choice(where, "method", self.method, METHODS)
        validation.positive(where, "tolerance", self.tolerance)
        if self.max_iter is not None:
            object.__setattr__(self, "max_iter", validation.positive_int(where, "max_iter", self.max_iter))
        if self.criterion is not None:
            validation.choice(where, "criterion", self.criterion, CRITERIA)
        object.__setattr__(self, "starts", _checked_starts(where, self.starts))
        if isinstance(self.num_warmup, list):
            object.__setattr__(self, "num_warmup", tuple(self.num_warmup))
        self.family(input_dim=1, num_outcomes=1, gate=self.gate or moe.SoftmaxGate())  # which checks the rest

    def family(self, input_dim: int, num_outcomes: int, gate: moe.Gate) -> moe.GaussianMoE:
        """The model that is fitted, where the truth has this gate."""
        return moe.GaussianMoE(self.num_experts, input_dim, num_outcomes, self.gate or gate, variance=self.variance)

    def record(self) -> dict[str, Any]:
        """All settings as plain values."""
        return record(self, "an estimator")

    def fit(self, truth: moe.MixingMeasure, X: Tensor, Y: Tensor, seeds: list[int]) -> Fitted:
        """Fit R data sets.

        Args:
            truth: The measure that some starts are near.
            X: Inputs ``R x n x d``, or ``n x d`` that all share.
            Y: Outcomes ``R x n x m``.
            seeds: A seed a data set, for its starts, so that they do not depend on which others are in the batch.

        Returns:
            The fits.
        """
        model = self.family(truth.input_dim, truth.num_outcomes, truth.gate)
        points = torch.cat([self._points(model, truth, X, Y, r, seed) for r, seed in enumerate(seeds)])
        fits = [self._climb(model, X, Y, points[:, s]) for s in range(self.num_restarts)]
        best = fits[0]
        for other in fits[1:]:
            best = best.better(other)
        return best

    def _points(
        self, model: moe.GaussianMoE, truth: moe.MixingMeasure, X: Tensor, Y: Tensor, r: int, seed: int
    ) -> Tensor:
        """Starts of one data set, ``1 x S x P``."""
        generator = generator_from(seed)
        if self.starts == "near_truth":
            return near_truth(model, _regated(truth, model.gate), X.shape[-2], (1, self.num_restarts), generator)
        inputs = X if X.ndim == 2 else X[r]
        data = Data(inputs.mT.unsqueeze(0).contiguous(), Y[r].mT.unsqueeze(0).contiguous())
        kinds = KINDS if self.starts == "auto" else self.starts
        return starting_points(model, data, tuple(kinds), self.num_restarts, generator)

    def _climb(self, model: moe.GaussianMoE, X: Tensor, Y: Tensor, theta: Tensor) -> Fitted:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # statuses are in the table
            result = moe.fit(
                model, X, Y, method=self.method, starts=replace(model, theta=theta), penalty=self.penalty,
                tol=self.tolerance, criterion=self.criterion, max_iter=self.max_iter, num_warmup=self.num_warmup,
            )  # fmt: skip
        status = torch.tensor([STATUSES.index(s) for s in result.status])
        return Fitted(result.model, result.log_likelihood, status, result.converged, result.num_iter)


@dataclass(frozen=True, kw_only=True)
class SelectionSweep:
    """Choices of the number of experts, by several criteria from the same fits.

    Args:
        candidates: The numbers that are fitted, increasing.
        criteria: Of ``"aic"``, ``"bic"``, ``"icl"`` (:func:`probnn.moe.select_num_experts`); ``"dsc"``, that of the
            dendrogram of the fit with the most experts (:class:`probnn.moe.Dendrogram`) with masses by biases, as in
            the paper; and ``"dsc_mean_gate"``, with mean probabilities of the gate over the data for masses.
        gate: The gate; None: the truth's.
        variance: As in :class:`Estimator`.
        penalty: Added to the log-likelihood.
        method: As in :class:`Estimator`.
        starts: ``"auto"``, or one or several of the kinds that :func:`probnn.moe.fit` has.
        num_restarts: Starts a fit.
        tolerance: Bound of the stopping rule.
        max_iter: Most iterations; None: the method's.
        num_warmup: As in :class:`Estimator`.
        second_moments: Merged atoms of the dendrogram keep their second moments.

    Raises:
        DomainError: A setting is out of its range.

    Example:
        >>> SelectionSweep(candidates=(1, 2, 3), criteria=("bic", "dsc")).outputs
        ('bic', 'dsc', 'height_2', 'height_3', 'num_unusable')
    """

    candidates: tuple[int, ...] = (1, 2, 3, 4)
    criteria: tuple[str, ...] = CHOICES
    gate: moe.Gate | None = None
    variance: str | float = "per_expert"
    penalty: moe.Penalty | None = None
    method: str = "newton"
    starts: str | tuple[str, ...] = "auto"
    num_restarts: int = 4
    tolerance: float = 1e-6
    max_iter: int | None = None
    num_warmup: int | tuple[int, ...] | None = (10, 400)
    second_moments: bool = True

    def __post_init__(self) -> None:
        where = "studies.SelectionSweep"
        numbers = tuple(validation.positive_int(where, "candidates", k) for k in self.candidates)
        if not numbers or list(numbers) != sorted(set(numbers)):
            raise DomainError(f"{where}: candidates must be different numbers in increasing order, got {numbers}")
        criteria = (self.criteria,) if isinstance(self.criteria, str) else tuple(self.criteria)
        if not criteria or len(set(criteria)) < len(criteria):
            raise DomainError(f"{where}: criteria must be different ones of {', '.join(CHOICES)}, got {criteria}")
        for criterion in criteria:
            validation.choice(where, "criteria", criterion, CHOICES)
        if _HEIGHTS.keys() & set(criteria) and numbers[-1] < 2:
            raise DomainError(f"{where}: a dendrogram needs a candidate of 2 experts at least, got {numbers}")
        object.__setattr__(self, "candidates", numbers)
        object.__setattr__(self, "criteria", criteria)
        object.__setattr__(self, "starts", _checked_starts(where, self.starts, near_truth=False))
        self._estimator(numbers[-1])

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the numbers of a replicate.

        The choice of every criterion, heights of the dendrograms at the levels of 2 experts and more, and how many of
        the candidates' fits were unusable.
        """
        return (*self.criteria, *self.heights, "num_unusable")

    @property
    def heights(self) -> tuple[str, ...]:
        """Names of the heights among the outputs."""
        levels = range(2, self.candidates[-1] + 1)
        return tuple(f"{_HEIGHTS[name]}_{k}" for name in self.criteria if name in _HEIGHTS for k in levels)

    def _estimator(self, num_experts: int) -> Estimator:
        return Estimator(
            num_experts=num_experts, gate=self.gate, variance=self.variance, penalty=self.penalty, method=self.method,
            starts=self.starts, num_restarts=self.num_restarts, tolerance=self.tolerance, max_iter=self.max_iter,
            num_warmup=self.num_warmup,
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        """All settings as plain values."""
        return record(self, "a selection")

    def choose(self, truth: moe.MixingMeasure, X: Tensor, Y: Tensor, seeds: list[int]) -> dict[str, np.ndarray]:
        """The numbers of R data sets; a choice is NaN where none of its fits was usable.

        Args:
            truth: Its gate is the one that is fitted, where the selection has none.
            X: Inputs ``R x n x d``, or ``n x d`` that all share.
            Y: Outcomes ``R x n x m``.
            seeds: A seed a data set, for its starts.

        Returns:
            :attr:`outputs`, ``R`` each.
        """
        fits = [self._estimator(k).fit(truth, X, Y, seeds) for k in self.candidates]
        out: dict[str, np.ndarray] = {}
        for name in self.criteria:
            if name in _HEIGHTS:
                out[name], heights = self._merged(fits[-1], X, Y, mean_gate=name == "dsc_mean_gate")
                out |= {f"{_HEIGHTS[name]}_{k}": heights[:, k - 2] for k in range(2, self.candidates[-1] + 1)}
            else:
                out[name] = self._least([_criterion(name, fit, X, Y) for fit in fits], fits)
        out["num_unusable"] = torch.stack([~fit.usable for fit in fits]).sum(0).double().numpy()
        return {name: out[name] for name in self.outputs}

    def _least(self, values: list[Tensor], fits: list[Fitted]) -> np.ndarray:
        table = torch.stack([v.masked_fill(~fit.usable, math.inf) for v, fit in zip(values, fits, strict=True)], -1)
        best = torch.tensor(self.candidates, dtype=torch.double)[table.argmin(-1)]
        return best.masked_fill(table.isinf().all(-1), math.nan).numpy()

    def _merged(self, fit: Fitted, X: Tensor, Y: Tensor, mean_gate: bool) -> tuple[np.ndarray, np.ndarray]:
        """The dendrogram's choices ``R`` and its heights ``R x (K - 1)``, those of two atoms first."""
        measure, K = fit.model.mixing_measure(), self.candidates[-1]
        choice, heights = np.full(len(Y), math.nan), np.full((len(Y), K - 1), math.nan)
        for r in fit.usable.nonzero().flatten().tolist():
            inputs = X if X.ndim == 2 else X[r]
            tree = moe.Dendrogram(measure[r], inputs if mean_gate else None, second_moments=self.second_moments)
            choice[r] = tree.select(inputs, Y[r])
            heights[r] = tree.heights.flip(0).numpy()
        return choice, heights


def _criterion(name: str, fit: Fitted, X: Tensor, Y: Tensor) -> Tensor:
    """AIC, BIC or ICL of R fits, as in probnn.moe."""
    n, free = Y.shape[-2], fit.model.num_free
    value = -2 * fit.log_likelihood + free * (2.0 if name == "aic" else math.log(n))
    if name == "icl":
        r = fit.model.responsibilities(X, Y)
        value = value - 2 * torch.special.xlogy(r, r).sum((-1, -2))
    return value


def _theta(model: moe.GaussianMoE) -> Tensor:
    if model.theta is None:
        raise DomainError("studies: a fitted model must have parameters")
    return model.theta


def _regated(truth: moe.MixingMeasure, gate: moe.Gate) -> moe.MixingMeasure:
    """The truth with a gate whose coordinates mean the same, so that starts can be near it."""
    same = isinstance(gate, moe.TemperatureGate) and isinstance(truth.gate, moe.TemperatureGate)
    return replace(truth, gate=gate) if same else truth


def _checked_starts(where: str, starts: Any, near_truth: bool = True) -> str | tuple[str, ...]:
    words = ("near_truth", "auto", *KINDS) if near_truth else ("auto", *KINDS)
    if isinstance(starts, str):
        return validation.choice(where, "starts", starts, words)
    kinds = tuple(starts) if isinstance(starts, (tuple, list)) else ()
    if not kinds or any(kind not in KINDS for kind in kinds):
        raise DomainError(f"{where}: starts must be one of {', '.join(words)}, or several of {KINDS}; got {starts!r}")
    return kinds
