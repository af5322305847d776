"""Every inference method meets the contract of `InferenceMethod`."""

from __future__ import annotations

import dataclasses

import numpy
import pytest
import torch

from probnn import likelihoods
from probnn.errors import DomainError, PrecisionWarning, ShapeError
from probnn.testing import check_inference_method
from tests.cases import METHODS, data, gaussian_process, network

# Chains of a few transitions are not expected to be good ones.
pytestmark = [
    pytest.mark.filterwarnings("ignore::probnn.errors.DivergenceWarning"),
    pytest.mark.filterwarnings("ignore::probnn.errors.ConvergenceWarning"),
]


def prior_for(name: str):
    return gaussian_process() if name == "exact" else network(hidden=(4,))


@pytest.mark.parametrize("name", METHODS)
def test_contract(name: str, seed: int) -> None:
    X, Y = data(seed=seed)
    check_inference_method(METHODS[name], prior_for(name), likelihoods.Gaussian(), X, Y, seed=seed)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_of_huge_variance_is_a_row_that_was_not_there(name: str, seed: int) -> None:
    X, Y = data(seed=seed)
    variance = Y.new_full(Y.shape, 0.01)
    wild = (torch.cat([X, X[:1] / 2]), torch.cat([Y, Y[:1] + 50]), torch.cat([variance, variance[:1] + 1e14]))
    without, with_it = (
        METHODS[name].fit(prior_for(name), likelihoods.Gaussian(), X, Y, noise_variance=v, seed=seed).predict(X[:5])
        for X, Y, v in ((X, Y, variance), wild)
    )
    # All randomness is the same, but for VI's, which draws pre-activations of every row: it repeats itself less.
    sd = without.variance.sqrt()
    bound = sd if name == "vi" else 1e-3 * sd
    assert ((with_it.mean - without.mean).abs() < bound).all() and ((with_it.variance.sqrt() - sd).abs() < bound).all()


@pytest.mark.parametrize("name", METHODS)
def test_known_noise(name: str) -> None:
    """Known noise replaces the inferred one."""
    X, Y = data()
    variance = Y.new_full(Y.shape, 0.01)
    posterior = METHODS[name].fit(prior_for(name), likelihoods.Gaussian(), X, Y, noise_variance=variance)
    assert posterior.likelihood.num_parameters == 0
    noise = posterior.predict(X, observation_noise=True).variance - posterior.predict(X).variance
    assert (noise - 0.01).abs().max() < 1e-6
    with pytest.raises(ShapeError, match="noise_variance"):
        METHODS[name].fit(prior_for(name), likelihoods.Gaussian(), X, Y, noise_variance=variance[1:])
    with pytest.raises(DomainError, match="noise_variance must be positive"):
        METHODS[name].fit(prior_for(name), likelihoods.Gaussian(), X, Y, noise_variance=-variance)


@pytest.mark.parametrize("name", METHODS)
def test_single_precision_warns_once_where_it_matters(name: str) -> None:
    X, Y = (t.float() for t in data())
    if METHODS[name].prefers_double:
        with pytest.warns(PrecisionWarning) as caught:
            posterior = METHODS[name].fit(prior_for(name), likelihoods.Gaussian(), X, Y)
        assert len([w for w in caught if w.category is PrecisionWarning]) == 1
        assert any("float32" in w for w in posterior.info.warnings)
    else:
        posterior = METHODS[name].fit(prior_for(name), likelihoods.Gaussian(), X, Y)
    assert posterior.dtype == X.dtype


@pytest.mark.parametrize("name", METHODS)
def test_settings_are_validated(name: str) -> None:
    method = METHODS[name]
    for field in dataclasses.fields(method):
        kind = type(getattr(method, field.name))
        if kind in (bool, float):
            for bad in ("no", None) if kind is bool else (-1.0, 0.0, float("nan"), "1", True):
                with pytest.raises(DomainError, match=field.name):
                    dataclasses.replace(method, **{field.name: bad})
        if kind is int:
            with pytest.raises(DomainError, match=field.name):
                dataclasses.replace(method, **{field.name: -1})
            with pytest.raises(DomainError, match=field.name):
                dataclasses.replace(method, **{field.name: 2.5})
    with pytest.raises(TypeError):
        type(method)(no_such_setting=1)
    assert method.cite() and all(isinstance(reference, str) for reference in method.cite())


@pytest.mark.parametrize("name", METHODS)
def test_callback_is_told_and_can_stop(name: str) -> None:
    X, Y = data()
    seen: list[tuple[int, int]] = []
    METHODS[name].fit(prior_for(name), likelihoods.Gaussian(), X, Y, callback=lambda s, t, state: seen.append((s, t)))
    assert seen and all(0 <= step <= total for step, total in seen)
    calls: list[int] = []

    def stop(step: int, total: int, state: object) -> bool:
        calls.append(step)
        return len(calls) >= 3

    stopped = METHODS[name].fit(prior_for(name), likelihoods.Gaussian(), X, Y, callback=stop)
    assert len(calls) < len(seen) and stopped.predict(X).mean.isfinite().all()
    calls.clear()
    stopped = METHODS[name].fit(
        prior_for(name), likelihoods.Gaussian(), X, Y, callback=lambda *told: numpy.bool_(stop(*told))
    )
    assert len(calls) < len(seen) and stopped.predict(X).mean.isfinite().all()
