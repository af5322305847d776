"""What a fit asks of its data, and what it says about its estimates."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from .. import validation
from ..errors import DomainError, NonFiniteError, PrecisionWarning, ShapeError, user_level
from .data import Data

if TYPE_CHECKING:
    from .model import GaussianMoE
    from .objective import Objective

# Scores of this spread are steep: most probabilities are near zero or one. Log-likelihood that is nothing, in nats.
_STEEP, _FREE = 5.0, 0.05
_ROWS_CHECKED = 200_000
# Smallest variance of an expert, relative to that of the outcomes: below it an expert fits its rows exactly, where the
# likelihood has no bound. Relative alone, so that the units of the outcomes do not matter; far above rounding.
VARIANCE_FLOOR = 1e-10


def prepared(where: str, model: GaussianMoE, X: Any, Y: Any, weights: Any) -> tuple[Data, bool]:
    """The data in double precision, rows last; and whether there is one data set, without a batch dimension."""
    if isinstance(X, numpy.ndarray) or isinstance(Y, numpy.ndarray):
        return _streamed(where, model, X, Y, weights), True
    if torch.is_tensor(X) and X.dtype == torch.float32:
        warnings.warn(
            f"{where}: float32 data are fitted in double precision; use X.double() and Y.double()",
            PrecisionWarning,
            stacklevel=user_level(),
        )
    X = X.double() if torch.is_tensor(X) and X.is_floating_point() else X
    Y = Y.double() if torch.is_tensor(Y) and not Y.is_complex() and Y.dtype != torch.bool else Y
    validation.inputs(where, X, model.input_dim)
    if X.ndim > 3:
        raise ShapeError(f"{where}: X must have shape (n, d) or (R, n, d), got {tuple(X.shape)}")
    if (
        torch.is_tensor(Y)
        and model.num_outcomes == 1
        and (Y.ndim == X.ndim - 1 or tuple(Y.shape[1:]) == X.shape[-2:-1])
    ):
        Y = Y.unsqueeze(-1)
    validation.outcomes(where, "Y", Y, X, model.num_outcomes)
    if Y.ndim > 3:
        raise ShapeError(f"{where}: Y must have shape (n, m) or (R, n, m), got {tuple(Y.shape)}")
    model.outcome.check(where, Y)
    single = X.ndim == 2 and Y.ndim == 2
    n = X.shape[-2]
    if weights is not None:
        weights = _weights(where, weights, X, Y)
        single = single and weights.ndim == 1
        weights = weights if weights.ndim == 2 else weights.unsqueeze(0)
    _check_size(where, model, n if weights is None else int((weights > 0).sum(-1).min()))
    X3, Y3 = (x if x.ndim == 3 else x.unsqueeze(0) for x in (X, Y))
    data = Data(X3.mT.contiguous(), Y3.mT.contiguous(), weights)
    _check_rank(where, model, data.X)
    return data, single


def _weights(where: str, weights: Any, X: Tensor, Y: Tensor) -> Tensor:
    weights = weights.double() if torch.is_tensor(weights) else torch.as_tensor(weights, dtype=torch.float64)
    n = X.shape[-2]
    if weights.ndim not in (1, 2) or weights.shape[-1] != n:
        raise ShapeError(f"{where}: sample_weight must have shape ({n},) or (R, {n}), got {tuple(weights.shape)}")
    lead = {x.shape[0] for x in (X, Y) if x.ndim == 3}
    if weights.ndim == 2 and lead and {weights.shape[0]} | lead != lead:
        raise ShapeError(f"{where}: sample_weight must have {max(lead)} replicates like the data, got {len(weights)}")
    validation.tensor(where, "sample_weight", weights)
    if (weights < 0).any() or (weights.sum(-1) == 0).any():
        raise DomainError(f"{where}: sample_weight must be >= 0 with a positive sum, got {weights.min().item():g}")
    return weights


def _streamed(where: str, model: GaussianMoE, X: Any, Y: Any, weights: Any) -> Data:
    """Arrays that stay where they are, checked a piece at a time."""
    for name, array in (("X", X), ("Y", Y)):
        if not isinstance(array, numpy.ndarray) or array.dtype.kind not in "fiu":
            got = f"{array.dtype}" if isinstance(array, numpy.ndarray) else f"a {type(array).__name__}"
            raise DomainError(f"{where}: X and Y must both be tensors or both arrays of numbers, got {name} as {got}")
    Y = Y[:, None] if Y.ndim == 1 else Y
    if X.ndim != 2 or X.shape[1] != model.input_dim or Y.shape != (len(X), model.num_outcomes):
        raise ShapeError(
            f"{where}: arrays must have shapes (n, {model.input_dim}) and (n, {model.num_outcomes}), got {X.shape} and "
            f"{Y.shape}; replicates are given as tensors"
        )
    if weights is not None:
        weights = numpy.asarray(weights)
        if weights.shape != (len(X),) or not (weights >= 0).all() or not weights.sum() > 0:
            raise DomainError(f"{where}: sample_weight must be {len(X)} numbers >= 0 with a positive sum")
    data = Data(X, Y, weights, streamed=True)
    _check_size(where, model, len(X) if weights is None else int((weights > 0).sum()))
    at = 0
    for rows in data.pieces(8 * 8 * (model.input_dim + model.num_outcomes)):
        for name, x in (("X", rows.X), ("Y", rows.Y)):
            if not x.isfinite().all():
                row = at + int((~x.isfinite()).any(1).squeeze(0).nonzero()[0])
                raise NonFiniteError(f"{where}: {name} must be finite, got NaN or infinity in row {row}; remove it")
        model.outcome.check(where, rows.Y.squeeze(0).mT)
        if at == 0:
            _check_rank(where, model, rows.X)
        at += rows.X.shape[-1]
    return data


def _check_size(where: str, model: GaussianMoE, n: int) -> None:
    least = model.num_experts * (model.input_dim + 2)
    if n < least:
        raise DomainError(
            f"{where}: {model.num_experts} experts of {model.input_dim} inputs need at least {least} rows, got {n}; "
            "use fewer experts"
        )


def _check_rank(where: str, model: GaussianMoE, X: Tensor) -> None:
    """Every data set's features must be linearly independent, or coefficients have no values."""
    if not model.expert.linear:
        return
    phi = model.expert.design(X[..., :_ROWS_CHECKED])
    constant = (phi[..., :-1, :] == phi[..., :-1, :1]).all(-1)
    if constant.any():
        replicate, column = constant.nonzero()[0].tolist()
        raise DomainError(
            f"{where}: feature {column} of the experts is constant"
            + (f" in replicate {replicate}" if len(phi) > 1 else "")
            + ", so it cannot be told from the intercept; drop that column of X"
        )
    centred = phi[..., :-1, :] - phi[..., :-1, :].mean(-1, keepdim=True)
    unit = centred / centred.norm(dim=-1, keepdim=True)
    if not unit.shape[-2]:
        return
    values, vectors = torch.linalg.eigh(unit @ unit.mT)
    singular = values[..., 0] < 1e-12 * unit.shape[-2]
    if singular.any():
        replicate = int(singular.nonzero()[0])
        columns = (vectors[replicate, :, 0].abs() > 1e-3).nonzero().squeeze(-1).tolist()
        raise DomainError(
            f"{where}: features {columns} of the experts are linearly dependent; drop one of those columns of X"
        )


def log_variance_floor(data: Data) -> Tensor:
    """Log variances below which an expert has collapsed, ``R|1 x m``."""
    spread = data.moments(lambda rows: rows.Y, 64 * data.num_replicates)[:, 1]
    return (VARIANCE_FLOOR * spread.square()).log()


def separated(objective: Objective, theta: Tensor) -> Tensor:
    """Whether a gate is a step function of its inputs, ``R``: its weights have then no finite estimate.

    It is where scores are steep already, and twice as steep ones cost nothing, penalty included.
    """
    model, data = objective.model, objective.data
    gamma, beta, scales, tail = model.split(theta)
    steeper = model.gate.steeper(gamma)
    if steeper is None or model.num_experts == 1:
        return torch.zeros(len(theta), dtype=torch.bool)
    X = data.sample(10_000, torch.Generator().manual_seed(0)).X if data.streamed else data.X
    scores = model.gate.scores(gamma, X, tail)
    steep = (scores - scores[..., -1:, :]).std(-1, correction=0).amax(-1) > _STEEP
    return steep & (objective.value(model.join(steeper, beta, scales, tail)) > objective.value(theta) - _FREE)
