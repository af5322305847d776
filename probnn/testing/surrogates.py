"""Checks of surrogates: recipes that make BoTorch models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import DomainError, NonFiniteError, ShapeError
from .common import close, expect, instance, raises, untouched_stream


def check_surrogate(surrogate: Any, train_X: Tensor, train_Y: Tensor, *, bounds: Tensor, seed: int = 0) -> Any:
    """Check a surrogate: shapes in any batch rank, determinism, independence of the batch, bad input.

    Args:
        surrogate: A :class:`probnn.Surrogate`.
        train_X, train_Y: Data ``n x d`` and ``n x m`` with n > 1, double precision.
        bounds: The box, ``2 x d``.
        seed: Seed of the fit.

    Returns:
        The fitted model, for checks of its own.

    Raises:
        AssertionError: The contract is broken; the message says where.
        DomainError: An argument is of another type.
    """
    from botorch.models.model import Model

    from ..surrogates import Surrogate

    instance("check_surrogate", "surrogate", surrogate, Surrogate, "a recipe such as probnn.get_surrogate('gp')")
    d, m = train_X.shape[-1], train_Y.shape[-1]
    with untouched_stream("Surrogate.fit"):
        model = surrogate.fit(train_X, train_Y, bounds=bounds, seed=seed)
    expect(isinstance(model, Model), f"Surrogate.fit: a {type(model).__name__} is no BoTorch model")
    expect(model.num_outputs == m, f"the model has {model.num_outputs} outputs, not {m}")
    span = bounds[1] - bounds[0]
    for lead in ((), (3,), (2, 3)):
        u = torch.rand(*lead, 2, d, dtype=train_X.dtype, generator=torch.Generator().manual_seed(seed))
        X = bounds[0] + span * u
        posterior = model.posterior(X)
        expect(posterior.mean.shape == (*lead, 2, m), f"posterior.mean has shape {tuple(posterior.mean.shape)}")
        expect((posterior.variance >= 0).all(), "posterior.variance is negative")
        for i, x in enumerate(X.reshape(-1, 2, d)):
            alone = model.posterior(x).mean
            close(alone, posterior.mean.reshape(-1, 2, m)[i], 1e-9, "a mean depends on what else is in the batch")
    again = surrogate.fit(train_X, train_Y, bounds=bounds, seed=seed)
    expect(torch.equal(again.posterior(X).mean, model.posterior(X).mean), "the same seed gives another model")

    def fit(X: Any = train_X, Y: Any = train_Y, **options: Any) -> Any:
        return surrogate.fit(X, Y, **{"bounds": bounds, "seed": seed, **options})

    n = len(train_X)
    raises(ShapeError, lambda: fit(train_X[:, 0]), "Surrogate.fit with 1-d train_X", f"({n},)")
    raises(ShapeError, lambda: fit(Y=train_Y[1:]), "Surrogate.fit with too few outcomes", str((n - 1, m)))
    raises(NonFiniteError, lambda: fit(train_X * torch.nan), "Surrogate.fit with NaN")
    raises(DomainError, lambda: fit(train_X.long()), "Surrogate.fit with integers", "int64")
    raises(DomainError, lambda: fit(train_X.float()), "Surrogate.fit with mixed dtypes", "float32")
    raises(DomainError, lambda: fit(seed="a"), "Surrogate.fit with seed='a'", "'a'")
    raises(DomainError, lambda: fit(bounds=bounds.flip(0)), "Surrogate.fit with lower bounds above the upper")
    raises(ShapeError, lambda: fit(bounds=bounds[:, :0]), "Surrogate.fit with bounds of another d")
    other = torch.float32 if train_X.dtype == torch.float64 else torch.float64
    raises(DomainError, lambda: model.posterior(X.to(other)), "posterior of another dtype", str(other))
    return model
