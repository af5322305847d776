"""Surrogates of what was measured so far."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import ConvergenceWarning, DivergenceWarning
from ..surrogates import ProcessModel, Surrogate
from .space import Space
from .trials import Trial

FIRST, GROWTH = 5, 1.5  # sizes of data at which fits start afresh: 5, 8, 12, 18, ...
MIN_DEGREES = 3  # of freedom, for a variance pooled over replicates


@dataclass(frozen=True)
class Data:
    """What one outcome's model is fitted to.

    Args:
        X: Features ``n x D``.
        Y: Outcomes ``n x 1``, more being better where the sign says so.
        Yvar: Known noise variances ``n x 1``, or None where the model infers the noise.
    """

    X: Tensor
    Y: Tensor
    Yvar: Tensor | None

    def first(self, n: int) -> Data:
        """The first `n` rows."""
        return Data(self.X[:n], self.Y[:n], None if self.Yvar is None else self.Yvar[:n])

    def same(self, other: Data) -> bool:
        """Whether two are equal in every number."""
        pairs = [(self.X, other.X), (self.Y, other.Y)]
        if (self.Yvar is None) != (other.Yvar is None):
            return False
        if self.Yvar is not None and other.Yvar is not None:
            pairs.append((self.Yvar, other.Yvar))
        return all(torch.equal(a, b) for a, b in pairs)


def data_of(trials: Sequence[Trial], space: Space, name: str, sign: float) -> Data:
    r"""The measurements of one outcome, in the order of the trials' numbers.

    Standard errors count where they are given. If only some rows have one, the others take the variance of
    their own replicates, pooled over settings, :math:`\sum_s \sum_i (y_{si} - \bar y_s)^2 / \sum_s (n_s - 1)`, where
    that has at least three degrees of freedom, and else the mean of the known variances. If none has one, the
    model infers the noise, to which replicates speak too.

    Args:
        trials: The trials; those without the outcome are left out.
        space: The space, also for rows outside of it.
        name: The outcome.
        sign: -1 to turn what is minimised round.
    """
    rows = sorted((t for t in trials if t.status == "complete" and name in t.values), key=lambda t: t.number)
    if not rows:
        return Data(torch.empty(0, space.num_features, dtype=torch.double), torch.empty(0, 1, dtype=torch.double), None)
    X = torch.stack([space.encode(_free(space, t)) for t in rows])
    Y = torch.tensor([[t.values[name]] for t in rows], dtype=torch.double)
    known = [t.sems.get(name) for t in rows]
    Yvar = None
    if any(s is not None and s > 0 for s in known):
        given = [s**2 for s in known if s is not None and s > 0]
        bare = torch.tensor([s is None or s <= 0 for s in known])
        other = _pooled_variance(X[bare], Y[bare]) if bare.any() else None
        other = sum(given) / len(given) if other is None else other
        Yvar = torch.tensor([[other if s is None or s <= 0 else s**2] for s in known], dtype=torch.double)
    return Data(X, sign * Y, Yvar)


def _free(space: Space, trial: Trial) -> dict[str, Any]:
    return {name: trial.parameters[name] for name in space.free}


def _pooled_variance(X: Tensor, Y: Tensor) -> float | None:
    _, group = torch.unique(X, dim=0, return_inverse=True)
    count = torch.zeros(int(group.max()) + 1, 1, dtype=Y.dtype).index_add_(0, group, torch.ones_like(Y))
    mean = torch.zeros_like(count).index_add_(0, group, Y) / count
    degrees = int((count - 1).sum())
    if degrees < MIN_DEGREES:
        return None
    variance = float((Y - mean[group]).square().sum() / degrees)
    return variance if variance > 0 else None


def fresh_size(n: int) -> int:
    """The largest size 5, 8, 12, 18, ... of at most n; n itself below."""
    size = FIRST
    while math.ceil(GROWTH * size) <= n:
        size = math.ceil(GROWTH * size)
    return min(size, n)


@dataclass
class ModelCache:
    """Fits the surrogate of every outcome, and keeps fits that are still good.

    A fit to n rows starts from a fit, made afresh, to the first of them, as many as :func:`fresh_size` says: that
    is faster than to begin anew with every row and, other than a chain of fits, depends on the data alone. A
    loop that was stopped and taken up again so makes the same models. What samplers warn of while fitting is
    kept in ``model.source.info.warnings``: chains of a loop are short on purpose.

    Args:
        surrogate: The recipe.
        seed: Seed of every fit.
        warm: Start from smaller fits; False: every fit begins anew.
    """

    surrogate: Surrogate
    seed: int
    warm: bool = True
    _fits: dict[tuple[str, bool], tuple[Data, ProcessModel]] = field(default_factory=dict)

    def model(self, name: str, data: Data, bounds: Tensor) -> ProcessModel:
        """The model of an outcome.

        Args:
            name: The outcome, under which fits are kept.
            data: Its data, in the order of time.
            bounds: Bounds of the features, ``2 x D``.
        """
        n = len(data.X)
        size = fresh_size(n) if self.warm else n
        start = self._fit(name, data.first(size), bounds, None)
        return start if size == n else self._fit(name, data, bounds, start)

    def _fit(self, name: str, data: Data, bounds: Tensor, init: ProcessModel | None) -> ProcessModel:
        key = (name, init is None)
        if key in self._fits and self._fits[key][0].same(data):
            return self._fits[key][1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DivergenceWarning)
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = self.surrogate.fit(data.X, data.Y, data.Yvar, bounds=bounds, seed=self.seed, init=init)
        self._fits[key] = (data, model)
        return model
