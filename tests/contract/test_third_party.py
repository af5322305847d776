"""What somebody else writes against the contract works, and the shipped checks notice when it does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import probnn
from probnn import likelihoods, priors
from probnn.errors import DomainError
from probnn.inference import InferenceMethod, Target
from probnn.networks import Block, Layout, Network
from probnn.surrogates import Inferred, Surrogate
from probnn.testing import (
    check_inference_method,
    check_likelihood,
    check_network,
    check_parametric_process,
    check_process,
    check_saving,
    check_surrogate,
    check_weight_prior,
)
from tests.cases import DOUBLE, data


@dataclass(frozen=True)
class FourierNetwork(Network):
    """Fixed frequencies, random amplitudes."""

    input_dim: int = 2
    output_dim: int = 1
    order: int = 3

    @property
    def layout(self) -> Layout:
        return Layout((Block("amplitude", (2 * self.order,), fan_in=2 * self.order),))

    def _stacked(self, params: Tensor, X: Tensor) -> Tensor:
        angle = X.sum(-1, keepdim=True) * torch.arange(1, self.order + 1, dtype=X.dtype, device=X.device)
        features = torch.cat([angle.sin(), angle.cos()], -1)
        return (features @ params.unsqueeze(-1)).expand(params.shape[0], -1, -1)


@dataclass(frozen=True, kw_only=True)
class ImportanceSampling(InferenceMethod):
    """Prior draws, weighted by the likelihood."""

    num_draws: int = 512
    references = ("Kloek and van Dijk (1978)",)

    def _fit(self, prior, likelihood, X, Y, noise_variance, session, init) -> Any:
        shape, generator = (1, self.num_draws), session.generator
        theta = prior.sample_parameters(shape, generator=generator)
        psi = likelihood.sample_prior(shape, generator=generator, dtype=X.dtype)
        session.stop(1, 1, None)
        target = Target(prior, likelihood, X, Y, noise_variance)
        z = torch.cat([theta, psi], -1)
        weights = target.log_prob(z) - prior.log_prob(theta) - likelihood.log_prior(psi)
        return probnn.EmpiricalProcess(prior, theta, psi, likelihood, weights.flatten(), session.info(steps=1))


@dataclass(frozen=True)
class FourierPrior:
    """A factory as recipes want it."""

    order: int = 3

    def __call__(self, input_dim: int, num_channels: int) -> probnn.BayesianNetwork:
        return probnn.BayesianNetwork(FourierNetwork(input_dim, num_channels, self.order), priors.NormalWeights())


def test_a_network_an_inference_method_and_a_surrogate_from_elsewhere(seed: int) -> None:
    check_network(FourierNetwork(), seed=seed)
    prior = probnn.BayesianNetwork(FourierNetwork(), priors.NormalWeights(), dtype=DOUBLE)
    check_process(prior, seed=seed)
    X, Y = data(5, seed=seed)
    likelihood = likelihoods.Gaussian(noise_median=0.5)
    posterior = check_inference_method(ImportanceSampling(), prior, likelihood, X, Y, seed=seed)
    check_process(posterior, seed=seed)
    recipe = Surrogate(Inferred(FourierPrior(), likelihood, ImportanceSampling()))
    bounds = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=DOUBLE)
    check_surrogate(recipe, X, Y, bounds=bounds, seed=seed)


def test_registered_classes_are_saved() -> None:
    prior = probnn.BayesianNetwork(FourierNetwork(), priors.NormalWeights(), dtype=DOUBLE)
    probnn.register_class(FourierNetwork)
    check_saving(prior)


class Leaky(FourierNetwork):
    """Evaluates points together: a network that looks at its neighbours."""

    def _stacked(self, params: Tensor, X: Tensor) -> Tensor:
        value = super()._stacked(params, X)
        return value - value.mean(-2, keepdim=True)


def test_the_checks_notice_a_broken_network() -> None:
    with pytest.raises(AssertionError, match="batched against looped"):
        check_network(Leaky())


@dataclass(frozen=True, kw_only=True)
class Careless(ImportanceSampling):
    """Draws from the global stream."""

    def _fit(self, prior, likelihood, X, Y, noise_variance, session, init) -> Any:
        torch.randn(3)
        return super()._fit(prior, likelihood, X, Y, noise_variance, session, init)


def test_the_checks_notice_a_careless_method() -> None:
    X, Y = data(5)
    prior = probnn.BayesianNetwork(FourierNetwork(), priors.NormalWeights(), dtype=DOUBLE)
    with pytest.raises(AssertionError, match="global stream"):
        check_inference_method(Careless(), prior, likelihoods.Gaussian(), X, Y)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda X, Y: check_surrogate("gp", X, Y, bounds=X[:2]),
            r"surrogate must be a Surrogate.*get_surrogate\('gp'\)",
        ),
        (
            lambda X, Y: check_weight_prior(priors.NormalWeights(), FourierNetwork()),
            r"network must be a Layout.*\.layout",
        ),
        (lambda X, Y: check_weight_prior(priors.NormalWeights, FourierNetwork().layout), "got the class NormalWeights"),
        (
            lambda X, Y: check_saving(likelihoods.Gaussian()),
            "process must be a StochasticProcess object, got a Gaussian",
        ),
        (lambda X, Y: check_likelihood(likelihoods.Gaussian), "must be a Likelihood object, got the class Gaussian"),
        (lambda X, Y: check_network(torch.nn.Linear(2, 1)), "network must be a Network object, got a Linear"),
        (lambda X, Y: check_process(FourierNetwork()), "process must be a StochasticProcess object, got a Fourier"),
        (
            lambda X, Y: check_parametric_process(priors.GPPrior()(2, 1)),
            "must be a ParametricProcess object, got a Gau",
        ),
        (
            lambda X, Y: check_inference_method(probnn.Laplace, priors.BNNPrior()(2, 1), likelihoods.Gaussian(), X, Y),
            "method must be a InferenceMethod object, got the class Laplace",
        ),
        (
            lambda X, Y: check_inference_method(probnn.Laplace(), priors.BNNPrior(), likelihoods.Gaussian(), X, Y),
            "prior must be a StochasticProcess object, got a BNNPrior",
        ),
    ],
)
def test_the_checks_say_what_they_check(call: Any, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        call(*data(5))


class Wide(likelihoods.Gaussian):
    """Says nine times the variance."""

    def moments(self, f: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = super().moments(f, psi)
        return mean, 9 * variance


class Fixed(likelihoods.Categorical):
    """Says that all classes are equally likely."""

    def moments(self, f: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        p = torch.full_like(f, 1 / self.num_classes)
        return p, p * (1 - p)


def test_the_checks_notice_wrong_moments() -> None:
    with pytest.raises(AssertionError, match="variance against draws"):
        check_likelihood(Wide(noise=0.3))
    with pytest.raises(AssertionError, match="mean against draws"):
        check_likelihood(Fixed(3))


class Forgetful(probnn.EmpiricalProcess):
    """Learns nothing."""

    def _condition(self, X: Tensor, Y: Tensor, noise_variance: Tensor | None) -> probnn.EmpiricalProcess:
        return self


class TwoStreams(probnn.BayesianNetwork):
    """Draws other functions than it draws values."""

    def _sample(self, X: Tensor, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        return 2 * super()._sample(X, shape, generator)


def test_the_checks_notice_broken_processes() -> None:
    prior = probnn.BayesianNetwork(FourierNetwork(), priors.NormalWeights(), dtype=DOUBLE)
    theta = prior.draws(8).theta
    with pytest.raises(AssertionError, match="condition: the prediction does not change"):
        check_process(Forgetful(prior, theta, theta[..., :0], likelihoods.Gaussian(noise=0.1)))
    with pytest.raises(AssertionError, match="sample against sample_functions"):
        check_parametric_process(TwoStreams(FourierNetwork(), priors.NormalWeights(), dtype=DOUBLE))


def _deaf(method: Any, prior: Any, likelihood: Any, X: Tensor, Y: Tensor, variance: Any, session: Any) -> Any:
    return ImportanceSampling()._fit(prior, likelihood, X, torch.zeros_like(Y), variance, session, None)


def _seedless(method: Any, prior: Any, likelihood: Any, X: Tensor, Y: Tensor, variance: Any, session: Any) -> Any:
    session.generator.manual_seed(0)
    return ImportanceSampling()._fit(prior, likelihood, X, Y, variance, session, None)


def _silent(method: Any, prior: Any, likelihood: Any, X: Tensor, Y: Tensor, variance: Any, session: Any) -> Any:
    session.callback = None
    return ImportanceSampling()._fit(prior, likelihood, X, Y, variance, session, None)


def _noiseless(method: Any, prior: Any, likelihood: Any, X: Tensor, Y: Tensor, variance: Any, session: Any) -> Any:
    own = likelihoods.Gaussian(noise=0.5)
    return ImportanceSampling()._fit(prior, own, X, Y, None, session, None)


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (_deaf, "other outcomes give the same"),
        (_seedless, "another seed gives the same"),
        (_silent, "callback is never called"),
        (_noiseless, "noise does not change"),
    ],
)
def test_the_checks_notice_a_method_that_ignores_something(fit: Any, message: str) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Broken(ImportanceSampling):
        def _fit(self, prior, likelihood, X, Y, noise_variance, session, init) -> Any:
            info = fit(self, prior, likelihood, X, Y, noise_variance, session)
            return replace(info, info=replace(info.info, method="Broken"))

    X, Y = data(5)
    prior = probnn.BayesianNetwork(FourierNetwork(), priors.NormalWeights(), dtype=DOUBLE)
    with pytest.raises(AssertionError, match=message):
        check_inference_method(Broken(), prior, likelihoods.Gaussian(noise_median=0.5), X, Y)


@dataclass(frozen=True, kw_only=True)
class Eager(ImportanceSampling):
    """Does not give the prior back where there are no data."""

    def _fit_nothing(self, prior, likelihood, session) -> Any:
        empty = super()._fit_nothing(prior, likelihood, session)
        return replace(empty, theta=3 * empty.theta)


def test_the_checks_notice_what_is_not_the_prior() -> None:
    X, Y = data(5)
    prior = probnn.BayesianNetwork(FourierNetwork(), priors.NormalWeights(), dtype=DOUBLE)
    with pytest.raises(AssertionError, match="n = 0 must give the prior.*apart"):
        check_inference_method(Eager(), prior, likelihoods.Gaussian(noise_median=0.5), X, Y)
