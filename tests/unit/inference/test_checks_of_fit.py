"""What every method of inference refuses before it begins, and whose line its warnings name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gpytorch
import pytest
import torch
from botorch.sampling import SobolQMCNormalSampler

import probnn
from probnn import likelihoods, priors
from probnn.errors import DegenerateWeightsWarning, DomainError, PrecisionWarning, ShapeError, UnsupportedError
from tests.cases import DOUBLE, METHODS, data, gaussian_process, network

X, Y = data()


def prior_of(name: str) -> Any:
    return gaussian_process() if name == "exact" else network()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("likelihood", "words"),
    [(likelihoods.Gaussian(levels=2), r"1 noise level \(levels\) for 1 outcome, got 2"),
     (likelihoods.Gaussian(noise=torch.tensor([0.1, 0.2])), r"1 noise level \(noise\) for 1 outcome, got 2"),
     (likelihoods.Gaussian(noise_median=torch.tensor([0.1, 0.2])), r"1 noise level \(noise_median\)")],
)  # fmt: skip
def test_the_number_of_noise_levels(name: str, likelihood: Any, words: str) -> None:
    with pytest.raises(ShapeError, match=rf"fit: likelihoods.Gaussian must have {words}"):
        METHODS[name].fit(prior_of(name), likelihood, X, Y)


def test_two_outcomes_take_one_or_two_levels() -> None:
    both, Y2 = network(output_dim=2), torch.cat([Y, -Y], -1)
    method = METHODS["ensemble"]
    for given in (1, 2):
        assert method.fit(both, likelihoods.StudentT(levels=given), X, Y2).psi.shape[-1] == given
    with pytest.raises(ShapeError, match=r"StudentT must have 1 or 2 noise levels \(levels\) for 2 outcomes, got 3"):
        method.fit(both, likelihoods.StudentT(levels=3), X, Y2)


@pytest.mark.parametrize("name", METHODS)
def test_batches_of_known_noise(name: str) -> None:
    known = torch.full_like(Y, 0.1).expand(3, -1, -1)
    with pytest.raises(ShapeError, match=r"noise_variance must have shape \(8, 1\) to match X"):
        METHODS[name].fit(prior_of(name), likelihoods.Gaussian(), X, Y, noise_variance=known)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(DomainError, match="X must be float32 or float64"):
        METHODS[name].fit(prior_of(name), likelihoods.Gaussian(), X.to(dtype), Y.to(dtype))
    if name == "hmc":
        with pytest.raises(DomainError, match="X must be float32 or float64"):
            METHODS[name].fit_batch(network(), likelihoods.Gaussian(), X.to(dtype), Y.to(dtype)[None, None])


@pytest.mark.parametrize("name", METHODS)
def test_callbacks_are_callable(name: str) -> None:
    with pytest.raises(DomainError, match="callback must be callable"):
        METHODS[name].fit(prior_of(name), likelihoods.Gaussian(), X, Y, callback="a")


@pytest.mark.parametrize("likelihood", [likelihoods.Heteroscedastic(), likelihoods.Categorical(3)])
def test_exact_names_the_likelihood(likelihood: Any) -> None:
    """Also where the number of channels does not fit it."""
    prior = probnn.GaussianProcess(gpytorch.kernels.RBFKernel(), input_dim=2)
    with pytest.raises(UnsupportedError, match="likelihood must be probnn.likelihoods.Gaussian, got"):
        probnn.Exact().fit(prior, likelihood, X, Y)


def test_draws_are_tensors() -> None:
    prior = network()
    theta = prior.sample_parameters((1, 4))
    with pytest.raises(DomainError, match=r"psi must be a torch tensor, got a NoneType; .* theta\[..., :0\]"):
        probnn.EmpiricalProcess(prior, theta, None, likelihoods.Gaussian(0.1))  # type: ignore[arg-type]
    with pytest.raises(DomainError, match="observation_noise must be True or False, got 'no'"):
        prior.predict(X, observation_noise="no")  # type: ignore[arg-type]


def test_warnings_name_the_line_that_asked() -> None:
    def here(call: Any, category: type[Warning]) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        found = [w for w in caught if w.category is category]
        assert found and {Path(w.filename).name for w in found} == {Path(__file__).name}

    method = probnn.HMC(num_chains=2, num_warmup=4, num_samples=2, start_steps=2)
    here(lambda: method.fit(network(), likelihoods.Gaussian(), X.float(), Y.float()), PrecisionWarning)
    process = network().draws(32)
    tight = probnn.EmpiricalProcess(process.base, process.theta, process.psi, likelihoods.Gaussian(noise=1e-3))
    here(lambda: tight.condition(X, Y), DegenerateWeightsWarning)
    model = probnn.ProcessModel(tight)
    here(lambda: model.condition_on_observations(X, Y), DegenerateWeightsWarning)
    here(lambda: model.fantasize(X, SobolQMCNormalSampler(torch.Size([2]), seed=0)), DegenerateWeightsWarning)


def test_laplace_of_a_heteroscedastic_network(seed: int) -> None:
    """Where the noise it finds is tiny somewhere, the curvature of the prior is lost beside that of the data."""
    for s in range(3):
        g = torch.Generator().manual_seed(10 * seed + s)
        X = 2 * torch.rand(20, 2, dtype=DOUBLE, generator=g) - 1
        Y = torch.sin(3 * X.sum(-1, keepdim=True)) + 0.1 * torch.randn(20, 1, dtype=DOUBLE, generator=g)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", probnn.errors.ConvergenceWarning)
            post = probnn.Laplace().fit(priors.BNNPrior(hidden=(6,))(2, 2), likelihoods.Heteroscedastic(), X, Y)
        assert -1e4 < post.info.log_evidence < 200
        assert post.predict(X).mean.isfinite().all()
