"""Posteriors around an estimate by maximum likelihood, and labels for the experts of many draws."""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import ConvergenceWarning, DomainError, ShapeError, UnsupportedError, user_level
from ..inference.base import FitInfo
from ..process import EmpiricalProcess
from . import _checks
from ._information import FLAT, spectrum
from .data import Data
from .gates import SoftmaxGate
from .measure import MixingMeasure
from .model import GaussianMoE
from .newton import run_newton
from .objective import Objective
from .penalty import Penalty, check_penalty
from .process import MixtureOfExperts
from .result import MoEFit

# An estimate of a larger Newton decrement, in nats, is no maximum; a bootstrap fit of a larger one, no draw.
_FAR = 1e-2


def laplace(
    estimate: MoEFit | GaussianMoE,
    X: Tensor,
    Y: Tensor,
    *,
    penalty: Penalty | None = None,
    sample_weight: Tensor | None = None,
    num_draws: int = 256,
    seed: int = 0,
) -> EmpiricalProcess:
    r"""Draws from :math:`N(\hat\theta, (-H)^{-1})` in the free parameters, H the Hessian of the log-likelihood.

    The law that the posterior and the estimate share for many data, where the model is identified. With superfluous
    experts the information is singular: directions of no curvature, or of the wrong sign, are held at the estimate,
    with a warning and their number in ``info.trace["held"]``; a penalty gives all directions curvature, and
    :func:`bootstrap` needs none.

    Args:
        estimate: A fit, or a model with parameters at the maximum.
        X: The data of the fit, ``n x d``.
        Y: ``n x m``, or ``n`` where m = 1.
        penalty: That of the fit.
        sample_weight: Those of the fit, ``n``.
        num_draws: Number of draws.
        seed: Same seed, same machine: the same draws.

    Returns:
        The draws as a process; its `base` says what the coordinates are, and that prior has no part in it.
        ``info.trace["eigenvalues"]`` are those of the information relative to what it would be if the expert of every
        row were known; those under 1e-8 count as none.

    Raises:
        ShapeError, DomainError, NonFiniteError: The data do not fit the model, or it has replicates.
        UnsupportedError: There is no closed-form Hessian, or outcomes are not normal.

    Example:
        >>> import torch
        >>> from probnn import moe
        >>> g = torch.Generator().manual_seed(0)
        >>> X = torch.rand(300, 1, generator=g, dtype=torch.double)
        >>> Y = torch.where(X < 0.5, 3 * X, 2 - X) + 0.1 * torch.randn(300, 1, generator=g, dtype=torch.double)
        >>> fit = moe.fit(moe.GaussianMoE(num_experts=2, input_dim=1), X, Y, num_restarts=4)
        >>> tuple(moe.laplace(fit, X, Y, num_draws=100).predict(X[:5]).variance.shape)
        (5, 1)
    """
    where, begun = "moe.laplace", time.perf_counter()
    generator = rnd.generator_from(rnd.check_seed(where, seed))
    num_draws = validation.positive_int(where, "num_draws", num_draws)
    model, base, data = _parts(where, estimate, X, Y, sample_weight)
    objective = Objective(model, data, check_penalty(where, penalty))
    theta = _theta(model).unsqueeze(0)
    value, gradient, hessian = objective.derivatives(theta)
    values, directions = spectrum(-hessian.squeeze(0), objective.complete_information(theta).squeeze(0))
    kept = values > FLAT
    slope = (directions.mT @ gradient.squeeze(0))[kept]
    decrement, held = (slope.square() / values[kept]).sum().item(), int((~kept).sum())
    said = []
    if not decrement <= _FAR:
        said.append(
            f"{where}: the estimate is no maximum of this likelihood (Newton decrement {decrement:.2g} nats); give the "
            "data, weights and penalty of the fit, or fit until it converges"
        )
    if held:
        said.append(
            f"{where}: the information is singular in {held} of {len(values)} directions, which are held at the "
            "estimate, so the draws spread too little; use fewer experts, a penalty, or moe.bootstrap"
        )
    for message in said:
        warnings.warn(message, ConvergenceWarning, stacklevel=user_level())
    z = rnd.normal((num_draws, int(kept.sum())), generator=generator, like=theta)
    free = objective.free(theta) + (z * values[kept].rsqrt()) @ directions[:, kept].mT
    info = FitInfo(
        method=where,
        seconds=time.perf_counter() - begun,
        converged=not said,
        trace={"eigenvalues": values, "held": torch.tensor(held), "decrement": torch.tensor(decrement)},
        warnings=tuple(said),
    )
    return _draws(base, objective.full(free, theta.expand(num_draws, -1)), info)


def bootstrap(
    estimate: MoEFit | GaussianMoE,
    X: Tensor,
    Y: Tensor,
    *,
    penalty: Penalty | None = None,
    sample_weight: Tensor | None = None,
    num_draws: int = 64,
    max_iter: int = 200,
    seed: int = 0,
) -> EmpiricalProcess:
    r"""The weighted-likelihood bootstrap: estimates under random weights of the rows, in one batch of Newton's method.

    Draw s maximises :math:`\sum_i w_{si} \log p(y_i \mid x_i, \theta)` with :math:`w_s/n` from a flat Dirichlet law,
    which agrees with the posterior to first order where that is normal, and follows the likelihood where it is not
    (Newton & Raftery 1994). All searches start at the estimate. Those whose variance collapsed are left out, and
    those that have not converged are kept; a warning counts both.

    Args:
        estimate: A fit, or a model with parameters.
        X: Inputs ``n x d``.
        Y: Outcomes ``n x m``, or ``n`` where m = 1.
        penalty: That of the fit.
        sample_weight: Those of the fit, ``n``; random weights multiply them.
        num_draws: Number of draws.
        max_iter: Most Newton steps.
        seed: Same seed, same machine: the same draws.

    Returns:
        The draws as a process; its `base` says what the coordinates are, and that prior has no part in it.

    Raises:
        ShapeError, DomainError, NonFiniteError: The data do not fit the model, or it has replicates.
        UnsupportedError: There is no closed-form Hessian, or outcomes are not normal.

    Example:
        >>> import torch
        >>> from probnn import moe
        >>> g = torch.Generator().manual_seed(0)
        >>> X = torch.rand(300, 1, generator=g, dtype=torch.double)
        >>> Y = torch.where(X < 0.5, 3 * X, 2 - X) + 0.1 * torch.randn(300, 1, generator=g, dtype=torch.double)
        >>> fit = moe.fit(moe.GaussianMoE(num_experts=2, input_dim=1), X, Y, num_restarts=4)
        >>> posterior = moe.bootstrap(fit, X, Y, num_draws=16)
        >>> tuple(posterior.theta.shape), tuple(posterior.predict(X[:5]).mean.shape)
        ((1, 16, 10), (5, 1))
    """
    where, begun = "moe.bootstrap", time.perf_counter()
    # Not the seed itself: data made with the same one would come from the same numbers as their weights.
    digest = hashlib.blake2b(f"{where}:{rnd.check_seed(where, seed)}".encode(), digest_size=8).digest()
    generator = rnd.generator_from(int.from_bytes(digest, "big") >> 1)
    num_draws = validation.positive_int(where, "num_draws", num_draws)
    max_iter = validation.positive_int(where, "max_iter", max_iter)
    model, base, data = _parts(where, estimate, X, Y, sample_weight)
    weights = dirichlet_weights(num_draws, data.num_rows, generator)
    weights = weights if data.weights is None else weights * data.weights
    floor = _checks.log_variance_floor(data)
    objective = Objective(model, Data(data.X, data.Y, weights), check_penalty(where, penalty))
    start = _theta(model).expand(num_draws, -1)
    state = run_newton(objective, start, max_iter=max_iter, floor=floor)
    lost = state.degenerate | ~state.theta.isfinite().all(-1)
    far = ~lost & ~(state.decrement < _FAR)
    said = []
    if lost.all():
        raise DomainError(f"{where}: in all {num_draws} draws a variance collapsed; use fewer experts, or a penalty")
    if lost.any() or far.any():
        said.append(
            f"{where}: of {num_draws} draws {int(lost.sum())} were left out, because a variance collapsed, and "
            f"{int(far.sum())} have not converged; use fewer experts, a penalty, or raise max_iter"
        )
        warnings.warn(said[0], ConvergenceWarning, stacklevel=user_level())
    info = FitInfo(
        method=where,
        seconds=time.perf_counter() - begun,
        steps=int(state.num_iter.max()),
        gradients=int(state.num_iter.sum()),
        converged=bool(state.converged.all()),
        trace={"log_prob": state.value, "decrement": state.decrement, "left_out": lost},
        warnings=tuple(said),
    )
    return _draws(base, state.theta[~lost], info)


def relabel(G: MixingMeasure, reference: MixingMeasure) -> MixingMeasure:
    r"""Give the atoms of every replicate the order in which they are closest to those of a reference.

    A mixture does not know the order of its experts, and draws of one posterior may have them in any; averages of
    atoms need one. The order minimises the sum of squared distances between matched atoms (Kuhn's Hungarian method),
    each coordinate over its standard deviation among all atoms: gate weights and biases about their mean over the
    atoms where only differences matter, slopes, intercepts, and log variances.

    Args:
        G: Measures, R in a batch or one.
        reference: One measure with as many atoms, such as the estimate.

    Returns:
        The measures with their atoms in order.

    Raises:
        ShapeError: The reference has replicates, or atoms of other shapes.

    Example:
        >>> one = MixingMeasure([0., 0.], [[1.], [0.]], [0., 5.], [[1.], [1.]], [.1, .1])
        >>> relabel(one.permuted(torch.tensor([1, 0])), one).intercept
        tensor([0., 5.], dtype=torch.float64)
    """
    from scipy.optimize import linear_sum_assignment

    if not isinstance(G, MixingMeasure) or not isinstance(reference, MixingMeasure):
        raise DomainError(f"moe.relabel: needs two moe.MixingMeasure, got {type(G).__name__} and {type(reference)}")
    if reference.batch_shape or reference.gate_weight.shape != G.gate_weight.shape[len(G.batch_shape) :]:
        raise ShapeError(
            f"moe.relabel: reference must be one measure of {G.num_atoms} atoms and {G.input_dim} inputs, got "
            f"{reference!r}"
        )
    atoms, targets = _features(G), _features(reference)
    if atoms.shape[-2:] != targets.shape[-2:]:
        raise ShapeError("moe.relabel: the atoms of the reference must have the coordinates of those to be relabelled")
    everything = torch.cat([atoms.reshape(-1, atoms.shape[-1]), targets])
    spread = everything.std(0, correction=0)
    scale = torch.where(spread > 0, spread, 1.0)
    cost = ((targets.unsqueeze(-2) - atoms.unsqueeze(-3)) / scale).square().sum(-1)  # ... target x atom
    flat = cost.reshape(-1, *cost.shape[-2:]).cpu().numpy()
    order = torch.tensor([linear_sum_assignment(c)[1].tolist() for c in flat], device=cost.device)
    return G.permuted(order.reshape(cost.shape[:-1]))


def dirichlet_weights(count: int, n: int, generator: torch.Generator | None) -> Tensor:
    """Weights ``count x n`` of a flat Dirichlet law times n: exponential variables over their mean."""
    exponential = -torch.log1p(-rnd.uniform((count, n), generator=generator, dtype=torch.float64))
    return exponential / exponential.mean(-1, keepdim=True)


def _parts(where: str, estimate: Any, X: Any, Y: Any, sample_weight: Any) -> tuple[GaussianMoE, MixtureOfExperts, Data]:
    """The model, the process of its coordinates and the data."""
    model = estimate.model if isinstance(estimate, MoEFit) else estimate
    if not isinstance(model, GaussianMoE) or model.theta is None:
        raise DomainError(f"{where}: estimate must be a moe.MoEFit or a moe.GaussianMoE with parameters, got {model!r}")
    if model.theta.ndim > 1:
        raise ShapeError(f"{where}: estimate must be one fit, got {len(model.theta)} replicates; take one of them")
    if not model.gate.smooth:
        raise UnsupportedError(f"{where}: a {type(model.gate).__name__} has no derivatives where its choice changes")
    base = MixtureOfExperts(replace(model, theta=None), dtype=torch.float64, device=model.theta.device)
    data, single = _checks.prepared(where, model, X, Y, sample_weight)
    if not single or data.streamed:
        raise ShapeError(f"{where}: X must be one data set in memory, a tensor (n, {model.input_dim})")
    return model, base, data


def _theta(model: GaussianMoE) -> Tensor:
    return model._parameters("theta").double()


def _draws(base: MixtureOfExperts, theta: Tensor, info: FitInfo) -> EmpiricalProcess:
    draws = base.coordinates(replace(base.model, theta=theta)).unsqueeze(0)
    return EmpiricalProcess(base, draws, draws[..., :0], base.likelihood, info=info)


def _features(G: MixingMeasure) -> Tensor:
    """The coordinates by which atoms are told apart, ``... x k x F``."""
    lead, k = G.batch_shape, G.num_atoms
    weight, bias = G.gate_weight, G.gate_bias
    if isinstance(G.gate, SoftmaxGate):
        weight = weight - weight.mean(-2, keepdim=True)
    bias = bias - bias.mean(-1, keepdim=True)
    parts = [weight, bias, G.coef, G.intercept]
    parts += [] if G.variance is None else [G.variance.log()]
    return torch.cat([x.reshape(*lead, k, math.prod(x.shape[len(lead) + 1 :])) for x in parts], -1)
