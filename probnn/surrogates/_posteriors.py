"""What a model does to the posterior of its process: noise, units, outcomes and posterior transforms."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from botorch.acquisition.objective import PosteriorTransform, ScalarizedPosteriorTransform
from botorch.models.transforms.outcome import OutcomeTransform
from botorch.posteriors import GPyTorchPosterior, Posterior
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from torch import Tensor

from .. import validation
from ..errors import DomainError, ShapeError, UnsupportedError
from ..moe.draws import MixtureDrawsPosterior
from ..predictive import DrawsPosterior, MarginalPosterior
from ..predictive.draws import _Absent


def _through_marginals(operation: Callable[..., Posterior]) -> Callable[..., Posterior]:
    """Let an operation on posteriors work on the one inside a :class:`MarginalPosterior`."""

    @functools.wraps(operation)
    def wrapped(posterior: Posterior, *args: Any) -> Posterior:
        if isinstance(posterior, MarginalPosterior):
            return MarginalPosterior(operation(posterior.posterior, *args), posterior.name)
        return operation(posterior, *args)

    return wrapped


def _normal(posterior: GPyTorchPosterior) -> tuple[Tensor, Tensor]:
    """Mean ``... x q x m`` and covariance, outcome j at point i having index i*m + j."""
    law, mean = posterior.distribution, posterior.mean
    covariance = law.covariance_matrix
    if isinstance(law, MultitaskMultivariateNormal) and not law._interleaved:
        q, m = mean.shape[-2:]
        order = torch.arange(q * m, device=mean.device).reshape(m, q).T.flatten()
        covariance = covariance[..., order, :][..., order]
    return mean, covariance


def _from_normal(mean: Tensor, covariance: Tensor) -> GPyTorchPosterior:
    if mean.shape[-1] == 1:
        return GPyTorchPosterior(MultivariateNormal(mean.squeeze(-1), covariance))
    return GPyTorchPosterior(MultitaskMultivariateNormal(mean, covariance))


@_through_marginals
def with_noise(posterior: Posterior, variance: Tensor) -> Posterior:
    """Add independent noise of the given variances, which broadcast to ``... x q x m``."""
    shape = posterior._extended_shape()
    try:
        fits = torch.broadcast_shapes(variance.shape, shape)[-2:] == shape[-2:]
    except RuntimeError:
        fits = False
    if not fits or variance.ndim < 2:
        raise ShapeError(
            f"ProcessModel.posterior: observation_noise must have shape (..., 1 or {shape[-2]}, {shape[-1]}), "
            f"got {tuple(variance.shape)}"
        )
    if not (variance > 0).all():
        raise DomainError(
            f"ProcessModel.posterior: observation_noise must be positive, got a minimum of {variance.min().item():.3g}"
        )
    if isinstance(posterior, DrawsPosterior):
        std = variance.sqrt()
        std = std.unsqueeze(-3) if std.ndim > 2 else std
        return DrawsPosterior(posterior.values, posterior.log_weights, std, salt=posterior.salt)
    if isinstance(posterior, GPyTorchPosterior):
        mean, covariance = _normal(posterior)
        return _from_normal(mean, covariance + variance.expand(mean.shape).flatten(-2).diag_embed())
    raise UnsupportedError(
        f"ProcessModel.posterior: no given noise can be added to a {type(posterior).__name__}; "
        "use observation_noise=True for that of the likelihood"
    )


@_through_marginals
def untransform(posterior: Posterior, transform: OutcomeTransform, X: Tensor) -> Posterior:
    """The posterior in the units of the outcomes before `transform`; exact for draws where that is possible.

    Args:
        posterior: Of the transformed outcomes.
        transform: The outcome transform.
        X: The transformed inputs, for transforms that depend on them.
    """
    if isinstance(posterior, MixtureDrawsPosterior) and transform._is_linear:
        return posterior.mapped(lambda mean, variance: transform.untransform(mean, variance, X=X.unsqueeze(-3)))
    if isinstance(posterior, DrawsPosterior) and (posterior.noise_std is None or transform._is_linear):
        variance = None if posterior.noise_std is None else posterior.noise_std.square()
        values, variance = transform.untransform(posterior.values, variance, X=X.unsqueeze(-3))
        std = None if variance is None else variance.sqrt()
        return DrawsPosterior(values, posterior.log_weights, std, salt=posterior.salt)
    return transform.untransform_posterior(posterior, X=X)


def checked(outputs: Sequence[int], m: int) -> list[int]:
    """Indices of outcomes, counted from 0."""
    return validation.indices("ProcessModel", "indices of outputs", outputs, m)


@_through_marginals
def select(posterior: Posterior, outputs: Sequence[int]) -> Posterior:
    """The outcomes `outputs`, in that order."""
    m = posterior._extended_shape()[-1]
    indices = checked(outputs, m)
    if indices == list(range(m)):
        return posterior
    if isinstance(posterior, DrawsPosterior):
        return posterior.select(indices)
    if isinstance(posterior, GPyTorchPosterior):
        mean, covariance = _normal(posterior)
        kept = torch.arange(mean.shape[-2] * m, device=mean.device).reshape(-1, m)[:, indices].flatten()
        return _from_normal(mean[..., indices], covariance[..., kept, :][..., kept])
    raise UnsupportedError(
        f"ProcessModel: no outcomes can be taken out of a {type(posterior).__name__}; "
        "fit one model for each outcome and join them in a botorch ModelList"
    )


@_through_marginals
def apply_transform(posterior: Posterior, transform: PosteriorTransform, X: Tensor) -> Posterior:
    """BoTorch's posterior transforms, evaluated draw by draw where there are draws."""
    if not isinstance(posterior, DrawsPosterior):
        return transform(posterior=posterior, X=X)
    if isinstance(transform, ScalarizedPosteriorTransform):
        return posterior.scalarize(transform.weights, transform.offset)
    if posterior.noise_std is not None:
        raise UnsupportedError(
            f"ProcessModel.posterior: the noise of draws passes through a ScalarizedPosteriorTransform only, not a "
            f"{type(transform).__name__}; use observation_noise=False, or an MC objective"
        )
    # BoTorch's transforms view their argument, and may drop the outcome dimension.
    values = transform.evaluate(posterior.values.contiguous(), X.unsqueeze(-3))
    values = values.unsqueeze(-1) if values.ndim < posterior.values.ndim else values
    return DrawsPosterior(values, posterior.log_weights, salt=posterior.salt)


def refuse_attribute(what: str) -> NoReturn:
    """Say that a model of draws has no such attribute, in the way that lets BoTorch ask whether it has."""
    raise _Absent(
        f"{what}. BoTorch's qMaxValueEntropy, qJointEntropySearch, qPredictiveEntropySearch and "
        "qBayesianActiveLearningByDisagreement are for Gaussian processes; for draws use "
        "probnn.surrogates.MaxValueEntropy or ExpectedInformationGain"
    )
