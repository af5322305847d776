"""Checks of inference methods."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import random as rnd
from ..errors import DomainError, NonFiniteError, ShapeError
from ..inference import InferenceMethod
from ..likelihoods import Gaussian, Likelihood
from ..process import EmpiricalProcess, ParametricProcess, StochasticProcess
from .common import expect, instance, raises, untouched_stream


def check_inference_method(
    method: InferenceMethod, prior: StochasticProcess, likelihood: Likelihood, X: Tensor, Y: Tensor, *, seed: int = 0
) -> StochasticProcess:
    """Check a method of inference: the posterior's contract, seeds, progress, callbacks, bad input.

    It is fitted a dozen times: give a small problem and few steps.

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
    expect(type(posterior.likelihood) is type(likelihood), f"{name}.fit: the posterior's likelihood is another")
    expect(posterior.prior is not None, f"{name}.fit: the posterior has no prior")
    info = posterior.info
    expect(info is not None and info.method == name and info.seconds > 0, f"{name}.fit: info is {info}")
    noisy, clean = posterior.predict(X, observation_noise=True).variance, posterior.predict(X).variance
    expect((noisy >= clean - 1e-12).all(), f"{name}.fit: observation noise reduces the variance")
    with untouched_stream(f"{name}.fit with a progress bar"):
        shown = method.fit(prior, likelihood, X, Y, seed=seed, progress=True)
    expect(torch.equal(mean, shown.predict(X).mean), f"{name}.fit: progress=True changes the result")
    told: list[int] = []
    method.fit(prior, likelihood, X, Y, seed=seed, callback=lambda step, total, state: told.append(step))
    expect(bool(told), f"{name}.fit: the callback is never called")
    if isinstance(posterior, EmpiricalProcess) and posterior.num_draws > 1:
        other = method.fit(prior, likelihood, X, Y, seed=seed + 1)
        same = isinstance(other, EmpiricalProcess) and torch.equal(other.theta, posterior.theta)
        expect(not same, f"{name}.fit: another seed gives the same draws")
    _check_data_matter(method, prior, likelihood, X, Y, mean, seed)
    empty = method.fit(prior, likelihood, X[:0], Y[:0], seed=seed)
    expect(empty.predict(X).mean.shape == mean.shape, f"{name}.fit: n = 0 must give the prior")
    _check_same_law(prior, empty, X, seed, f"{name}.fit: n = 0 must give the prior")
    if isinstance(prior, ParametricProcess) and isinstance(posterior, ParametricProcess):
        warm = method.fit(prior, likelihood, X, Y, seed=seed, init=posterior)
        expect(warm.predict(X).mean.shape == mean.shape, f"{name}.fit: init= breaks the fit")
    _check_bad_data(method, prior, likelihood, X, Y)
    return posterior


def _check_data_matter(
    method: InferenceMethod,
    prior: StochasticProcess,
    likelihood: Likelihood,
    X: Tensor,
    Y: Tensor,
    mean: Tensor,
    seed: int,
) -> None:
    """Other outcomes, and the same ones with noise that drowns them, give other posteriors."""
    name, shuffled = type(method).__name__, Y.roll(1, 0)
    if not torch.equal(shuffled, Y):
        other = method.fit(prior, likelihood, X, shuffled, seed=seed)
        expect(not torch.equal(other.predict(X).mean, mean), f"{name}.fit: other outcomes give the same posterior")
    if isinstance(likelihood, Gaussian):
        noise = torch.full_like(Y, 1e6 * (1 + Y.var().item()))
        other = method.fit(prior, likelihood, X, Y, noise_variance=noise, seed=seed)
        expect(not torch.equal(other.predict(X).mean, mean), f"{name}.fit: the noise does not change the posterior")


def _check_same_law(a: StochasticProcess, b: StochasticProcess, X: Tensor, seed: int, message: str) -> None:
    """Compare two processes point by point by the distance of Kolmogorov and Smirnov, which needs no moments."""
    if a.joint is None or b.joint is None:
        return
    n = 1024
    f, g = (p.sample(X, (n,), generator=rnd.generator_from(seed + i)) for i, p in enumerate((a, b)))
    both = torch.cat([f, g]).sort(0).values.movedim(0, -1).contiguous()
    below = [
        torch.searchsorted(x.sort(0).values.movedim(0, -1).contiguous(), both, right=True).double() / n for x in (f, g)
    ]
    distance = (below[0] - below[1]).abs().max().item()
    # Beyond c = 2.6 once in a million points; stored draws count as often as they are there.
    stored = sum((1 / p.ess.min().item() for p in (a, b) if isinstance(p, EmpiricalProcess)), 2 / n)
    expect(distance <= 2.6 * stored**0.5, f"{message}: the distributions of its values are {distance:.2f} apart")


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
