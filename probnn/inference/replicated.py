"""Checks of data sets that are fitted in one batch."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .. import validation
from ..errors import DomainError, PrecisionWarning, ShapeError, user_level
from ..likelihoods import Likelihood
from ..process import ParametricProcess
from ..process.base import moved
from .base import SINGLE, single_or_double


def replicated(
    where: str,
    prior: ParametricProcess,
    likelihood: Likelihood,
    X: Tensor,
    Y: Tensor,
    noise_variance: Tensor | None,
    prefers_double: bool,
) -> tuple[ParametricProcess, Likelihood]:
    """Check R data sets; the prior and the likelihood of the outcomes, where the data are.

    Args:
        where: What error messages begin with.
        prior: The process before the data.
        likelihood: The law of the outcomes.
        X: Inputs ``n x d`` of all data sets, or ``R x 1 x n x d``.
        Y: Outcomes ``R x 1 x n x m``.
        noise_variance: Known noise variances, ``n x m`` or like Y.
        prefers_double: Warn of float32 data.

    Returns:
        Prior and likelihood with the dtype and device of X.

    Raises:
        ShapeError, DomainError, NonFiniteError: The data do not fit the prior and likelihood.
    """
    if not isinstance(prior, ParametricProcess) or not isinstance(likelihood, Likelihood):
        raise DomainError(
            f"{where}: needs a parametric prior and a probnn likelihood, "
            f"got a {type(prior).__name__} and a {type(likelihood).__name__}"
        )
    single_or_double(where, X)
    validation.inputs(where, X, prior.input_dim)
    validation.outcomes(where, "Y", Y, X, likelihood.outcomes(prior.output_dim))
    for name, data in (("X", X), ("Y", Y)):
        if not (data.ndim == 4 and data.shape[1] == 1) and not (name == "X" and data.ndim == 2):
            raise ShapeError(
                f"{where}: {name} must have shape (R, 1, {data.shape[-2]}, {data.shape[-1]}) for R data sets, "
                f"got {tuple(data.shape)}; the second dimension is the chains'"
            )
    if Y.shape[0] == 0 or Y.shape[-2] == 0:
        raise ShapeError(f"{where}: Y must hold one data set of one row or more, got {tuple(Y.shape)}")
    if prefers_double and X.dtype == torch.float32:
        warnings.warn(f"{where}: {SINGLE}", PrecisionWarning, stacklevel=user_level())
    likelihood.check_outcomes(where, Y)
    if noise_variance is not None:
        validation.variances(where, noise_variance, X, Y.shape[-1])
        likelihood = likelihood.given_noise(noise_variance)
    return prior.to(dtype=X.dtype, device=X.device), moved(likelihood, X.device, X.dtype)
