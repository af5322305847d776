"""Checks of stochastic processes."""

from __future__ import annotations

import warnings

import torch

from .. import random as rnd
from ..errors import DegenerateWeightsWarning, DomainError, NonFiniteError, ShapeError, UnsupportedError
from ..process import ParametricProcess, StochasticProcess
from .common import close, expect, instance, points, raises, untouched_stream


def check_process(process: StochasticProcess, *, seed: int = 0, tolerance: float = 1e-9) -> None:
    """Check the contract of a process: shapes, shared and independent draws, randomness, bad input.

    Args:
        process: The process; double precision makes the bounds meaningful.
        seed: Seed of inputs and draws.
        tolerance: How closely the same function evaluated twice must agree (1e-9; 1e-3 suits exact
            draws of a Gaussian process, which need jitter).

    Raises:
        AssertionError: The contract is broken; the message says where.
        DomainError: An argument is of another type.
    """
    instance("check_process", "process", process, StochasticProcess, "one such as probnn.BayesianNetwork(...)")
    name, d, c, m = type(process).__name__, process.input_dim, process.output_dim, process.num_predictions
    dtype, other = process.dtype, torch.float32 if process.dtype == torch.float64 else torch.float64
    converted = process.to(dtype=other)
    expect(converted.dtype == other, f"{name}.to: dtype {converted.dtype} where {other} was asked for")
    expect(converted.predict(points((4, d), other, seed)).mean.dtype == other, f"{name}.to: predicts in another dtype")
    expect(process.dtype == dtype, f"{name}.to: changes the process itself, which must stay as it is")
    for lead in ((), (2,), (3, 2)):
        X = points((*lead, 4, d), process.dtype, seed)
        with untouched_stream(f"{name}.predict"):
            posterior, again = process.predict(X), process.predict(X)
        expect(posterior.mean.shape == (*lead, 4, m), f"{name}.predict: mean has shape {tuple(posterior.mean.shape)}")
        expect(posterior.variance.shape == (*lead, 4, m), f"{name}.predict: wrong shape of the variance")
        expect((posterior.variance >= 0).all(), f"{name}.predict: negative variance")
        expect(torch.equal(posterior.mean, again.mean), f"{name}.predict: not deterministic")
    _check_bad_inputs(process)
    _check_condition(process, seed)
    X = points((4, d), process.dtype, seed)
    if process.joint is None:
        raises(UnsupportedError, lambda: process.sample(X), f"{name}.sample of a marginal process", "joint")
        raises(UnsupportedError, lambda: process.sample_functions(), f"{name}.sample_functions of a marginal process")
        return
    for lead in ((), (2,), (3, 2)):
        X = points((*lead, 4, d), process.dtype, seed)
        for shape in ((), (5,), (2, 3)):
            with untouched_stream(f"{name}.sample"):
                f = process.sample(X, shape, generator=rnd.generator_from(seed))
                same = process.sample(X, shape, generator=rnd.generator_from(seed))
            expect(f.shape == (*shape, *lead, 4, c), f"{name}.sample: shape {tuple(f.shape)}")
            expect(torch.equal(f, same), f"{name}.sample: the same generator gives other draws")
        with untouched_stream(f"{name}.sample_tasks"):
            tasks = process.sample_tasks(X, generator=rnd.generator_from(seed))
        expect(tasks.shape == (*lead, 4, c), f"{name}.sample_tasks: shape {tuple(tasks.shape)}")
    _check_shared(process, seed, tolerance)
    if process.joint in ("exact", "copula"):
        _check_functions(process, seed, tolerance)


def _check_condition(process: StochasticProcess, seed: int) -> None:
    """An outcome changes the prediction where it was seen, unless the process says that it cannot be conditioned."""
    X = points((1, process.input_dim), process.dtype, seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateWeightsWarning)
            known = process.condition(X, torch.ones(1, process.num_outcomes, dtype=process.dtype)).predict(X)
    except UnsupportedError:
        return
    before = process.predict(X)
    same = torch.equal(known.mean, before.mean) and torch.equal(known.variance, before.variance)
    expect(not same, f"{type(process).__name__}.condition: the prediction does not change")


def _check_shared(process: StochasticProcess, seed: int, tolerance: float) -> None:
    name, d = type(process).__name__, process.input_dim
    X = points((4, d), process.dtype, seed)
    f = process.sample(X.expand(3, 4, d), (2,), generator=rnd.generator_from(seed))
    close(f[:, 0], f[:, 2], tolerance, f"{name}.sample: one function must serve the whole batch")
    g = process.sample(X, (2,), generator=rnd.generator_from(seed + 1))
    expect(not torch.equal(f[:, 0], g), f"{name}.sample: another generator gives the same draws")
    tasks = process.sample_tasks(X.expand(3, 4, d), generator=rnd.generator_from(seed))
    expect((tasks[0] - tasks[1]).abs().max() > 1e-6, f"{name}.sample_tasks: batch elements share a function")
    if process.models == "function":
        twice = torch.cat([X, X])
        f = process.sample(twice, (2,), generator=rnd.generator_from(seed))
        close(f[:, :4], f[:, 4:], tolerance, f"{name}.sample: equal rows must have equal values")


def _check_functions(process: StochasticProcess, seed: int, tolerance: float) -> None:
    name, d = type(process).__name__, process.input_dim
    A, B = points((3, d), process.dtype, seed), points((2, d), process.dtype, seed + 1)
    with untouched_stream(f"{name}.sample_functions"):
        f = process.sample_functions((4,), generator=rnd.generator_from(seed))
        both = f(torch.cat([A, B]))
    close(f(A), both[:, :3], tolerance, f"{name}.sample_functions: other values when asked with more points")
    close(f(B), both[:, 3:], tolerance, f"{name}.sample_functions: other values when asked with more points")
    close(f(A.expand(2, 3, d)), f(A).unsqueeze(1).expand(-1, 2, -1, -1), tolerance, f"{name}: batches of points")
    if process.dtype == torch.float64:
        _check_gradient(process, f, A, name)


def _check_gradient(process: StochasticProcess, f: object, X: torch.Tensor, name: str) -> None:
    leaf, step = X.clone().requires_grad_(True), 1e-6
    direction = points(tuple(X.shape), X.dtype, 7)
    (gradient,) = torch.autograd.grad(f(leaf).sum(), leaf)  # type: ignore[operator]
    with torch.no_grad():
        difference = (f(X + step * direction) - f(X - step * direction)).sum() / (2 * step)  # type: ignore[operator]
    close((gradient * direction).sum(), difference, 1e-5, f"{name}.sample_functions: gradient in X")


def _check_bad_inputs(process: StochasticProcess) -> None:
    name, d = type(process).__name__, process.input_dim
    X = points((4, d), process.dtype, 0)
    other = torch.float32 if process.dtype == torch.float64 else torch.float64
    verbs = {"predict": process.predict, "sample": process.sample, "sample_tasks": process.sample_tasks}
    for verb, call in verbs.items():
        where = f"{name}.{verb}"
        raises(ShapeError, lambda call=call: call(X[0]), f"{where} of one point", str((d,)))  # type: ignore[misc]
        wide = torch.cat([X, X[:, :1]], -1)
        raises(ShapeError, lambda call=call, wide=wide: call(wide), f"{where} of a wrong d", str((4, d + 1)))  # type: ignore[misc]
        raises(DomainError, lambda call=call: call(X.long()), f"{where} of integers")  # type: ignore[misc]
        raises(DomainError, lambda call=call: call(X.tolist()), f"{where} of a list")  # type: ignore[misc]
        raises(DomainError, lambda call=call: call(X.to(other)), f"{where} of another dtype", str(other))  # type: ignore[misc]
        raises(NonFiniteError, lambda call=call: call(X * torch.nan), f"{where} of NaN")  # type: ignore[misc]
    if process.likelihood is None and process.models == "function":
        noisy = lambda: process.predict(X, observation_noise=True)  # noqa: E731
        raises(UnsupportedError, noisy, f"{name}.predict with noise but no likelihood")
    Y = torch.zeros(3, process.num_outcomes, dtype=process.dtype)
    raises(ShapeError, lambda: process.condition(X, Y), f"{name}.condition with too few outcomes", "(3,")


def check_parametric_process(process: ParametricProcess, *, seed: int = 0) -> None:
    """Check what a parametric process promises beyond :func:`check_process`.

    Args:
        process: The process.
        seed: Seed of inputs and draws.

    Raises:
        AssertionError: The contract is broken; the message says where.
        DomainError: An argument is of another type.
    """
    hint = "one such as probnn.BayesianNetwork(...)"
    instance("check_parametric_process", "process", process, ParametricProcess, hint)
    name, d, c, P = type(process).__name__, process.input_dim, process.output_dim, process.num_parameters
    expect(process.layout.size == P, f"{name}: the layout has {process.layout.size} entries, not {P}")
    theta = process.sample_parameters((3, 2), generator=rnd.generator_from(seed))
    expect(theta.shape == (3, 2, P), f"{name}.sample_parameters: shape {tuple(theta.shape)}")
    expect(theta.dtype == process.dtype, f"{name}.sample_parameters: dtype {theta.dtype}")
    X = points((2, 4, d), process.dtype, seed)
    f = process.apply(theta, X)
    expect(f.shape == (3, 2, 2, 4, c), f"{name}.apply: shape {tuple(f.shape)}")
    one = torch.stack([torch.stack([process.apply(t, x) for x in X]) for t in theta.flatten(0, 1)])
    precision = 1e-10 if process.dtype == torch.float64 else 1e-4
    close(f.flatten(0, 1), one, precision, f"{name}.apply: batched against looped")
    raises(ShapeError, lambda: process.apply(theta[..., 1:], X), f"{name}.apply with too few parameters")
    values, functions = (
        draw((2,), rnd.generator_from(seed))
        for draw in (
            lambda shape, generator: process.sample(X, shape, generator=generator),
            lambda shape, generator: process.sample_functions(shape, generator=generator)(X),
        )
    )
    close(values, functions, precision, f"{name}.sample against sample_functions of the same seed")
    draws = process.draws(8, seed=seed)
    expect(draws.theta.shape == (1, 8, P), f"{name}.draws: shape {tuple(draws.theta.shape)}")
    expect(draws.predict(X).mean.shape == (2, 4, process.num_predictions), f"{name}.draws: shape of a prediction")
    value, cotangent = process._apply(theta[0, 0], X[0]), points((4, c), process.dtype, seed + 1)
    pulled, back = process._pullback(theta[0, 0], X[0])
    close(pulled, value, 1e-10, f"{name}._pullback: value")
    leaf = theta[0, 0].clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(process._apply(leaf, X[0]), leaf, cotangent)
    close(back(cotangent), expected, 1e-9, f"{name}._pullback: gradient against autograd")
    try:
        density = process.log_prob(theta)
    except UnsupportedError:
        return
    expect(density.shape == (3, 2), f"{name}.log_prob: shape {tuple(density.shape)}")
    value, gradient = process._log_prob_and_grad(theta)
    leaf = theta.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(process.log_prob(leaf).sum(), leaf)
    close(value, density, 1e-10, f"{name}._log_prob_and_grad: value")
    close(gradient, expected, 1e-9, f"{name}._log_prob_and_grad: gradient against autograd")
