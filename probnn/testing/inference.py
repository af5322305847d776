"""Checks of inference methods."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DomainError, NonFiniteError, ShapeError
from ..inference import InferenceMethod
from ..likelihoods import Likelihood
from ..process import ParametricProcess, StochasticProcess
from .common import expect, instance, raises, untouched_stream


def check_inference_method(
    method: InferenceMethod, prior: StochasticProcess, likelihood: Likelihood, X: Tensor, Y: Tensor, *, seed: int = 0
) -> StochasticProcess:
    """Check a method of inference: the posterior's contract, seeds, progress, callbacks, bad input.

    It is fitted half a dozen times: give a small problem and few steps.

    Args:
        method: The method.
        prior, likelihood: What it is to work on.
        X, Y: Data ``n x d`` and ``n x m`` with n > 1, double precision.
        seed: Seed of the fits.

    Returns:
        A posterior, for checks of its own.

    Raises:
        AssertionError: The contract is broken; the message says where.
        DomainError: An argument is of another type.
    """
    where = "check_inference_method"
    instance(where, "method", method, InferenceMethod, "one such as probnn.Laplace()")
    instance(where, "prior", prior, StochasticProcess, "a process such as probnn.BayesianNetwork(...)")
    instance(where, "likelihood", likelihood, Likelihood, "one such as probnn.likelihoods.Gaussian()")
    name = type(method).__name__
    with untouched_stream(f"{name}.fit"):
        posterior = method.fit(prior, likelihood, X, Y, seed=seed)
        again = method.fit(prior, likelihood, X, Y, seed=seed)
    mean = posterior.predict(X).mean
    expect(torch.equal(mean, again.predict(X).mean), f"{name}.fit: the same seed gives another posterior")
    expect(posterior.input_dim == prior.input_dim, f"{name}.fit: the posterior has another input_dim")
    expect(posterior.dtype == X.dtype, f"{name}.fit: the posterior has dtype {posterior.dtype}, the data {X.dtype}")
    expect(
        posterior.likelihood is not None and posterior.prior is not None, f"{name}.fit: prior or likelihood is missing"
    )
    info = posterior.info
    expect(info is not None and info.method == name and info.seconds > 0, f"{name}.fit: info is {info}")
    noisy, clean = posterior.predict(X, observation_noise=True).variance, posterior.predict(X).variance
    expect((noisy >= clean - 1e-12).all(), f"{name}.fit: observation noise reduces the variance")
    with untouched_stream(f"{name}.fit with a progress bar"):
        shown = method.fit(prior, likelihood, X, Y, seed=seed, progress=True)
    expect(torch.equal(mean, shown.predict(X).mean), f"{name}.fit: progress=True changes the result")
    empty = method.fit(prior, likelihood, X[:0], Y[:0], seed=seed)
    expect(empty.predict(X).mean.shape == mean.shape, f"{name}.fit: n = 0 must give the prior")
    if isinstance(prior, ParametricProcess) and isinstance(posterior, ParametricProcess):
        warm = method.fit(prior, likelihood, X, Y, seed=seed, init=posterior)
        expect(warm.predict(X).mean.shape == mean.shape, f"{name}.fit: init= breaks the fit")
    _check_bad_data(method, prior, likelihood, X, Y)
    return posterior


def _check_bad_data(
    method: InferenceMethod, prior: StochasticProcess, likelihood: Likelihood, X: Tensor, Y: Tensor
) -> None:
    name, n, d = type(method).__name__, X.shape[0], X.shape[1]

    def fit(X: object = X, Y: object = Y, **options: object) -> object:
        return method.fit(prior, likelihood, X, Y, **options)  # type: ignore[arg-type]

    wide = torch.cat([X, X[:, :1]], -1)
    raises(ShapeError, lambda: fit(wide), f"{name}.fit with a wrong d", f"{name}.fit", str((n, d + 1)), f", {d})")
    raises(ShapeError, lambda: fit(X[:, 0]), f"{name}.fit with 1-d X", f"({n},)")
    raises(ShapeError, lambda: fit(X, Y[1:]), f"{name}.fit with too few outcomes", str(tuple(Y[1:].shape)))
    raises(ShapeError, lambda: fit(X, Y[:, 0]), f"{name}.fit with 1-d Y", f"({n},)")
    raises(ShapeError, lambda: fit(X.unsqueeze(0), Y.unsqueeze(0)), f"{name}.fit with batched data")
    bad = Y.clone()
    bad[0, 0] = torch.nan
    raises(NonFiniteError, lambda: fit(X, bad), f"{name}.fit with NaN in Y", "Y")
    bad = X.clone()
    bad[0, 0] = torch.inf
    raises(NonFiniteError, lambda: fit(bad), f"{name}.fit with infinity in X", "X")
    raises(DomainError, lambda: fit(X.long()), f"{name}.fit with integers", "int64")
    raises(DomainError, lambda: fit(X.float()), f"{name}.fit with mixed dtypes", "float32", "float64")
    raises(DomainError, lambda: fit(X.tolist()), f"{name}.fit with a list")
    raises(DomainError, lambda: fit(seed="a"), f"{name}.fit with seed='a'", "'a'")
    raises(DomainError, lambda: fit(seed=-1), f"{name}.fit with a negative seed", "-1")
    try:
        fit(unknown_option=1)
    except TypeError:
        pass
    else:
        raise AssertionError(f"{name}.fit: an unknown keyword is accepted")
