"""Choosing the number of experts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import ConvergenceError, DomainError
from . import _checks
from .fitting import fit
from .model import GaussianMoE
from .result import MoEFit

CRITERIA = ("bic", "aic", "icl", "cv")


@dataclass(frozen=True, eq=False)
class Selection:
    """Numbers of experts compared.

    Args:
        num_experts: The numbers that were tried, in order.
        values: The criterion of each, lower is better: ``len(num_experts)``, or ``R x len(num_experts)``. NaN where a
            fit ended as degenerate or failed, so that its likelihood means nothing.
        criterion: Its name.
        best: The number chosen, or R of them.
        fits: The fits, one a number.

    Example:
        >>> import torch
        >>> Selection((1, 2), torch.tensor([3.0, 1.0]), "bic", torch.tensor(2), ()).best.item()
        2
    """

    num_experts: tuple[int, ...]
    values: Tensor
    criterion: str
    best: Tensor
    fits: tuple[MoEFit, ...]

    @property
    def best_fit(self) -> MoEFit:
        """The fit of the number chosen, of a single data set.

        Raises:
            DomainError: There are replicates, which may have chosen differently.
        """
        if self.best.ndim:
            raise DomainError("Selection.best_fit: there is one a replicate; look into fits at best[r]")
        return self.fits[self.num_experts.index(int(self.best))]


def icl(result: MoEFit, X: Tensor, Y: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    r"""Integrated completed likelihood, :math:`\mathrm{BIC} + 2\sum_{n,i} -r_{ni}\log r_{ni}`.

    It adds to the Bayesian criterion twice the entropy of the responsibilities r, so that experts which overlap count
    as fewer (Biernacki, Celeux & Govaert 2000).

    Args:
        result: The fit.
        X: The inputs of the fit.
        Y: Its outcomes.
        sample_weight: Its weights of the observations, ``n`` or ``R x n``.

    Returns:
        The criterion, lower is better, one a replicate.

    Example:
        >>> import torch
        >>> from probnn import moe
        >>> X = torch.linspace(-1, 1, 50).double().unsqueeze(-1)
        >>> one = moe.fit(moe.GaussianMoE(1, 1), X, X + 0.1 * (9 * X).sin())
        >>> bool(icl(one, X, X + 0.1 * (9 * X).sin()) == one.bic)  # one expert: no entropy
        True
    """
    r = result.model.responsibilities(X, Y)
    entropy = -torch.special.xlogy(r, r).sum(-1)
    if sample_weight is not None:
        entropy = entropy * torch.as_tensor(sample_weight).to(entropy)
    return result.bic + 2 * entropy.sum(-1)


def select_num_experts(
    model: GaussianMoE,
    X: Tensor,
    Y: Tensor,
    *,
    candidates: Iterable[int] = (1, 2, 3, 4),
    criterion: str = "bic",
    folds: int = 5,
    num_restarts: int = 4,
    seed: int = 0,
    **options: Any,
) -> Selection:
    r"""Fit several numbers of experts and choose one.

    ``"bic"`` (Schwarz 1978) chose the true number in nearly every simulated data set where ``"aic"`` (Akaike 1974) took
    too many; ``"icl"`` counts experts that overlap as one; ``"cv"`` is minus the mean log density of the rows left out
    of their fold, times n, for prediction. A mixture with superfluous experts is singular, so that the penalties of
    the first three are those of regular models, and heuristics here.

    Args:
        model: The family; its number of experts is replaced.
        X: Inputs ``n x d`` or ``R x n x d``.
        Y: Outcomes ``n x m`` or ``R x n x m``.
        candidates: The numbers to try.
        criterion: ``"bic"``, ``"aic"``, ``"icl"`` or ``"cv"``.
        folds: Number of folds of the cross-validation.
        num_restarts: Starts of a fit.
        seed: Same seed, same machine: the same choice.
        **options: Further ones of :func:`probnn.moe.fit`.

    Returns:
        The comparison.

    Raises:
        ShapeError, DomainError, NonFiniteError: Data or settings are unusable; the message says how.
        ConvergenceError: No number of experts gave a usable fit.

    Example:
        >>> import torch
        >>> from probnn import moe
        >>> g = torch.Generator().manual_seed(0)
        >>> X = torch.rand(300, 1, generator=g, dtype=torch.double)
        >>> Y = torch.where(X < 0.5, 3 * X, 2 - X) + 0.1 * torch.randn(300, 1, generator=g, dtype=torch.double)
        >>> moe.select_num_experts(moe.GaussianMoE(1, 1), X, Y, candidates=(1, 2, 3)).best.item()
        2
    """
    where = "moe.select_num_experts"
    validation.choice(where, "criterion", criterion, CRITERIA)
    validation.positive_int(where, "folds", folds, 2)
    if not isinstance(candidates, Iterable):
        raise DomainError(f"{where}: candidates must be several numbers such as (1, 2, 3), got {candidates!r}")
    numbers = tuple(validation.positive_int(where, "candidates", k) for k in candidates)
    if not numbers or list(numbers) != sorted(set(numbers)):
        raise DomainError(f"{where}: candidates must be different numbers in increasing order, got {numbers}")
    settings = {"num_restarts": num_restarts, "seed": seed, **options}
    weights = options.get("sample_weight")
    fits, values = [], []
    for k in numbers:
        family = replace(model, num_experts=k, theta=None)
        result = fit(family, X, Y, **settings)
        fits.append(result)
        if criterion == "cv":
            value = _left_out(where, family, X, Y, folds, settings)
        else:
            value = icl(result, X, Y, weights) if criterion == "icl" else getattr(result, criterion)
        values.append(torch.where(_usable(result), value, torch.nan))
    table = torch.stack(values, -1)
    if table.isnan().all(-1).any():
        raise ConvergenceError(
            f"{where}: every number of experts in {numbers} ended as degenerate or failed"
            + (f" in replicates {table.isnan().all(-1).nonzero().flatten().tolist()}" if table.ndim > 1 else "")
            + "; give a penalty such as moe.Penalty(variance_shape=2.0, variance_scale=...), or look at the data"
        )
    best = torch.tensor(numbers)[table.nan_to_num(torch.inf).argmin(-1)]
    return Selection(numbers, table, criterion, best, tuple(fits))


def _usable(result: MoEFit) -> Tensor:
    """Whether a likelihood is that of a fit, one a replicate."""
    statuses = (result.status,) if isinstance(result.status, str) else result.status
    usable = torch.tensor([status not in ("degenerate", "failed") for status in statuses])
    return usable[0] if isinstance(result.status, str) else usable


def _left_out(where: str, model: GaussianMoE, X: Tensor, Y: Tensor, folds: int, settings: dict[str, Any]) -> Tensor:
    """Minus the log density of the rows left out, summed; every fold of every replicate is a fit of one batch."""
    data, single = _checks.prepared(where, model, X, Y, None)
    if data.streamed:
        raise DomainError(f"{where}: cross-validation needs data in memory; use 'bic'")
    R, n = data.num_replicates, data.num_rows
    fold = torch.randperm(n, generator=rnd.generator_from(settings["seed"])) % folds
    kept = (fold != torch.arange(folds).unsqueeze(-1)).double()  # F n
    inputs, outcomes = (x.mT.expand(R, -1, -1).repeat_interleave(folds, 0) for x in (data.X, data.Y))
    given = settings.get("sample_weight")
    own = torch.ones(1, n, dtype=torch.double) if given is None else torch.as_tensor(given).double().reshape(-1, n)
    weights = own.expand(R, n).repeat_interleave(folds, 0)
    inside = weights * kept.repeat(R, 1)
    result = fit(model, inputs, outcomes, **{**settings, "sample_weight": inside})
    # A fold whose fit failed says nothing, and its log-likelihood is NaN.
    failed = result.log_likelihood.isnan().unsqueeze(-1)
    density = result.model.log_prob(inputs, outcomes).masked_fill(failed, torch.nan)
    left = -(weights * (1 - kept.repeat(R, 1)) * density).sum(-1).reshape(R, folds).sum(-1)
    return left[0] if single else left
