"""Does a surrogate predict the data? What it says about rows it has not seen, against what was measured."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import random as rnd
from ..diagnostics.psis import GOOD_K, psis
from ..errors import DomainError, UnsupportedError
from ..inference.heldout import held_out_moments
from ..predictive import DrawsPosterior
from ..priors import GaussianProcess
from ..process import EmpiricalProcess
from ..surrogates import ProcessModel, Surrogate
from .models import Data
from .units import Units, in_units

MIN_ROWS = 5  # fewer say nothing about a model
FOLDS = 5
ENOUGH = 0.3  # a rank correlation below is no prediction, however many rows there are
_SIGNIFICANT = 1.645  # one-sided, 5 per cent
_UNLIKELY = 2.576  # two-sided, 1 per cent


@dataclass(frozen=True, eq=False)
class Check:
    r"""What a model predicted for every row without having seen it.

    Args:
        measured: The outcomes, of length n.
        mean: Predicted means.
        position: Where each outcome lies in its predictive distribution (noise included), :math:`F_i(y_i)`.
        method: How the rows were left out, in words.
        num_refitted: Rows that needed fits without them.
    """

    measured: Tensor
    mean: Tensor
    position: Tensor
    method: str
    num_refitted: int = 0

    @property
    def rank_correlation(self) -> float:
        """Spearman's rank correlation of predictions and outcomes; NaN where all of either are equal."""
        from scipy.stats import rankdata

        a, b = (torch.as_tensor(rankdata(x.numpy())) for x in (self.mean, self.measured))
        a, b = a - a.mean(), b - b.mean()
        scale = float(a.norm() * b.norm())
        return float(a @ b) / scale if scale > 0 else math.nan

    def coverage(self, prob: float = 0.9) -> float:
        """The share of outcomes within the central predictive intervals of a probability."""
        return float(((self.position - 0.5).abs() <= prob / 2).double().mean())

    @property
    def predicts(self) -> bool:
        """Whether the rank correlation is at least 0.3, and more than chance gives in 19 of 20 cases."""
        return self.rank_correlation >= max(ENOUGH, _SIGNIFICANT / math.sqrt(len(self.measured) - 1))

    def sentences(self, name: str) -> list[str]:
        """The verdict in plain words: the figures, and what to beware of.

        Args:
            name: The outcome.
        """
        n, correlation, coverage = len(self.measured), self.rank_correlation, self.coverage()
        shown = "undefined" if math.isnan(correlation) else f"{correlation:.2f}"
        found = [
            f"{name}: leave-one-out rank correlation {shown}, 90 % intervals hold {100 * coverage:.0f} % "
            f"of {n} rows ({self.method})"
        ]
        if not self.predicts:
            found.append(
                f"the model does not yet predict the data ({name}): take its suggestions as exploration, "
                "and its means as guesses"
            )
        excess = (coverage - 0.9) / math.sqrt(0.9 * 0.1 / n)
        if excess < -_UNLIKELY:
            found.append(f"the model is too sure of itself ({name}): its intervals are too narrow")
        return found


def check_model(surrogate: Surrogate, model: ProcessModel, data: Data, bounds: Tensor, *, seed: int = 0) -> Check:
    r"""Predict every row from the others.

    A Gaussian process: exactly, in closed form, with its hyper-parameters kept (:func:`gaussian_leave_one_out`).
    Draws of a posterior: by importance weights :math:`1/p(y_i \mid \cdot)`, Pareto-smoothed (PSIS-LOO: Vehtari,
    Gelman and Gabry, 2017, arXiv:1507.04544), with the last layer integrated out where it is Gaussian
    (:func:`probnn.inference.heldout.held_out_moments`); rows where the weights cannot be trusted (Pareto k above
    0.7) are predicted by fits without them, a fifth of the data at most at a time, whose chains start at `model`.
    Other methods: by five fits, each without a fifth of the rows. Rows at one setting count one by one.

    Args:
        surrogate: The recipe.
        model: What it made of all rows.
        data: The rows: features, outcomes, known noise.
        bounds: Bounds of the features, ``2 x D``.
        seed: Of the folds and the fits.

    Raises:
        DomainError: There are fewer than five rows.

    Example:
        >>> import torch, probnn
        >>> from probnn.optimization.models import Data
        >>> X = torch.linspace(0, 1, 12, dtype=torch.double).unsqueeze(-1)
        >>> data, bounds = Data(X, (4 * X).sin(), None), torch.tensor([[0.0], [1.0]], dtype=torch.double)
        >>> gp = probnn.get_surrogate("gp")
        >>> check = check_model(gp, gp.fit(data.X, data.Y, bounds=bounds), data, bounds)
        >>> check.predicts, check.rank_correlation > 0.9
        (True, True)
    """
    where, n = "check_model", len(data.X)
    if n < MIN_ROWS:
        raise DomainError(f"{where}: needs at least {MIN_ROWS} measured rows to leave some out, got {n}")
    rnd.check_seed(where, seed)
    source = model.source
    known = None
    inside, Y, variance = data.X, data.Y, data.Yvar
    with torch.no_grad():
        inside = model.transform_inputs(data.X)
        if hasattr(model, "outcome_transform"):
            Y, variance = model.outcome_transform(data.Y, data.Yvar)
    known = variance
    if isinstance(source, GaussianProcess) and not source.hyperprior and source.output_dim == 1:
        mean, spread = gaussian_leave_one_out(source)
        position = _normal_cdf((Y.squeeze(-1) - mean) / spread.sqrt())
        return Check(data.Y.squeeze(-1), _outside(model, mean), position, "exact, hyper-parameters kept")
    if isinstance(source, EmpiricalProcess) and getattr(source.info, "method", "").startswith("HMC"):
        mean, position, k = draws_leave_one_out(source, inside, Y, known)
        mean, bad = _outside(model, mean), k > GOOD_K
        if bool(bad.any()):
            rows = bad.nonzero().squeeze(-1)
            mean[rows], position[rows] = _refitted(surrogate, data, bounds, seed, rows, model)
        again = int(bad.sum())
        method = "Pareto-smoothed weights" + (f", and fits without {again} rows that they cannot do" if again else "")
        return Check(data.Y.squeeze(-1), mean, position, method, again)
    mean, position = _refitted(surrogate, data, bounds, seed, torch.arange(n), None)
    return Check(data.Y.squeeze(-1), mean, position, f"{FOLDS} fits, each without a fifth of the rows", n)


def gaussian_leave_one_out(process: GaussianProcess) -> tuple[Tensor, Tensor]:
    r"""Mean and variance of each outcome given the others, for a Gaussian process with one outcome.

    .. math:: \mu_i = y_i - [K^{-1} (y - m)]_i / [K^{-1}]_{ii}, \qquad \sigma_i^2 = 1 / [K^{-1}]_{ii}

    with K the covariance of the outcomes, noise included (Rasmussen and Williams, 2006, equations 5.10 to 5.12).

    Args:
        process: Conditioned on its data, which it keeps.

    Returns:
        Means and variances, of length n, in the units the process has.

    Raises:
        DomainError: The process has no data.
    """
    if process.train_X is None or process.train_Y is None or process.factor is None:
        raise DomainError("gaussian_leave_one_out: the process has seen no data; condition or fit it first")
    with torch.no_grad():
        inverse = torch.cholesky_inverse(process.factor.squeeze(-3))
        y = process.train_Y.squeeze(-1)
        precision = inverse.diagonal()
        residual = y - process._mean_values(process.train_X).squeeze(-2)
        return y - inverse @ residual / precision, 1 / precision


def draws_leave_one_out(
    process: EmpiricalProcess, X: Tensor, Y: Tensor, noise_variance: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Predictive mean, position of the outcome, and Pareto's k of each row, from draws that have seen all rows.

    Without its row a draw weighs the inverse of that row's likelihood, to the power 1/T where it was tempered.

    Args:
        process: Draws of equal weight of the posterior, chain by chain.
        X, Y: The data it was fitted to, ``n x d`` and ``n x 1``.
        noise_variance: Known noise variances ``n x 1``.

    Returns:
        Three tensors of length n; where k is above 0.7 the first two cannot be trusted.

    Raises:
        UnsupportedError: The draws are weighted, or of no posterior.
    """
    if process.log_weights is not None:
        raise UnsupportedError("draws_leave_one_out: the draws are weighted; resample them first, process.thin(...)")
    with torch.no_grad():
        try:
            mean, variance = held_out_moments(process, X, Y, noise_variance)
            log_density = -0.5 * ((Y - mean).square() / variance + variance.log()).squeeze(-1)
        except UnsupportedError:  # no Gaussian last layer to integrate out, or tempered: the weights of whole draws
            f, psi = process._channels(X)
            if process.likelihood is None:
                raise
            mean, variance = process.likelihood.moments(f, psi)
            if noise_variance is not None:
                variance = noise_variance.expand_as(mean)
            log_density = process.likelihood.log_prob(Y, f, psi, noise_variance)
            log_density = log_density / getattr(process.info, "temperature", 1.0)
        S = len(log_density)
        weights, k = psis(-log_density.mT, relative_efficiency=_efficiency(log_density, process.theta.shape[0], S))
        weights = weights.exp()
        inside = _normal_cdf((Y - mean) / variance.sqrt()).squeeze(-1)
        return (weights * mean.squeeze(-1).mT).sum(-1), (weights * inside.mT).sum(-1), k


def _efficiency(log_density: Tensor, chains: int, S: int) -> float:
    """Effective over actual number of draws, averaged over rows."""
    from ..diagnostics import ess

    per_chain = log_density.exp().reshape(chains, S // chains, -1)
    if per_chain.shape[1] < 4:
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of chains that are stuck: their rows are left out here
        found = ess(per_chain)
    found = found[torch.isfinite(found)]
    return min(1.0, max(float(found.mean()) / S, 1 / S)) if len(found) else 1.0


def _refitted(
    surrogate: Surrogate, data: Data, bounds: Tensor, seed: int, rows: Tensor, start: ProcessModel | None
) -> tuple[Tensor, Tensor]:
    """Means and positions of some rows, by fits that have not seen them."""
    mean, position = data.Y.new_empty(len(data.X)), data.Y.new_empty(len(data.X))
    units = Units.of(data.Y)
    folds = list(_folds(rows, len(data.X), seed))

    def fitted(out: Tensor) -> ProcessModel:
        keep = torch.ones(len(data.X), dtype=torch.bool)
        keep[out] = False
        variance = None if data.Yvar is None else data.Yvar[keep]
        return surrogate.fit(data.X[keep], data.Y[keep], variance, bounds=bounds, seed=seed, init=start)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # samplers' remarks on short chains: what they predict is judged here
        # Chains draw from generators of their own; other methods touch the global one, which threads would share.
        models = _side_by_side(fitted, folds) if start is not None else [fitted(out) for out in folds]
    for out, model in zip(folds, models, strict=True):
        with torch.no_grad():
            noise: bool | Tensor = True
            if data.Yvar is not None:
                noise = data.Yvar[out].unsqueeze(-2)
                if hasattr(model, "outcome_transform"):
                    noise = model.outcome_transform(data.Y[out].unsqueeze(-2), noise)[1]
            posterior = in_units(model, units).posterior(data.X[out].unsqueeze(-2), observation_noise=noise)
            mean[out] = units.outside(posterior.mean.flatten())
            position[out] = cdf(posterior, units.inside(data.Y[out]).unsqueeze(-2)).flatten()
    return mean[rows], position[rows]


def _side_by_side(work: Callable[[Tensor], ProcessModel], parts: list[Tensor]) -> list[ProcessModel]:
    """The work on every part, on two cores where there are two and torch keeps to one thread.

    Torch leaves the interpreter to other threads while it computes. Its own threads gain nothing on products
    this small, two fits at a time do.
    """
    if len(parts) < 2 or torch.get_num_threads() > 1 or _cores() < 2:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(work, parts))


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _folds(rows: Tensor, n: int, seed: int) -> Iterator[Tensor]:
    """The rows, shuffled, in parts of at most a fifth of the data."""
    order = torch.randperm(len(rows), generator=rnd.generator_from(seed))
    most = math.ceil(n / FOLDS)
    return iter(rows[order].chunk(math.ceil(len(rows) / most)))


def cdf(posterior: object, y: Tensor | float) -> Tensor:
    """The marginal distribution function at y, of a mixture of draws or, by its moments, of a normal posterior.

    Args:
        posterior: A BoTorch posterior over ``... x q x m``.
        y: Values that broadcast with it.
    """
    inner = getattr(posterior, "posterior", posterior)  # of a MarginalPosterior
    if isinstance(inner, DrawsPosterior):
        w, values, noise = inner._components()
        y = y.unsqueeze(-3) if isinstance(y, Tensor) else y
        below = (values <= y).to(values.dtype) if noise is None else _normal_cdf((y - values) / noise)
        return (w * below).sum(-3)
    mean, variance = posterior.mean, posterior.variance  # type: ignore[attr-defined]
    return _normal_cdf((y - mean) / variance.clamp_min(torch.finfo(mean.dtype).tiny).sqrt())


def _normal_cdf(z: Tensor) -> Tensor:
    return torch.special.ndtr(z)


def _outside(model: ProcessModel, mean: Tensor) -> Tensor:
    """Means in the units of the data."""
    if not hasattr(model, "outcome_transform"):
        return mean.clone()
    return model.outcome_transform.untransform(mean.unsqueeze(-1))[0].squeeze(-1)
