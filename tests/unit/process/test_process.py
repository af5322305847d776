"""What every process does with dtypes, devices and priors, and what it says it cannot do."""

from __future__ import annotations

import pytest
import torch

import probnn
from probnn import likelihoods, priors
from probnn.errors import DomainError, UnsupportedError
from tests.cases import DOUBLE, data, empirical, gaussian_process, network


def test_to_takes_what_torchs_takes() -> None:
    process, X = network(), torch.zeros(3, 2)
    for moved in (process.to(torch.float32), process.to(dtype=torch.float32), process.to("cpu", dtype=torch.float32)):
        assert moved.dtype == torch.float32 and moved.predict(X).mean.dtype == torch.float32
    for same in (process.to("cpu"), process.to(torch.device("cpu")), process.to(device="cpu"), process.to(DOUBLE)):
        assert same.dtype == DOUBLE and same.device == torch.device("cpu")
    draws = empirical()
    assert torch.equal(draws.to(torch.float32).theta, draws.theta.float())


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex128, "float32"])
def test_draws_are_never_rounded_to_something_else(dtype: object) -> None:
    with pytest.raises(DomainError, match="EmpiricalProcess.to: dtype must be a floating-point dtype"):
        empirical().to(dtype=dtype)
    if isinstance(dtype, torch.dtype):
        with pytest.raises(DomainError, match="dtype must be a floating-point dtype"):
            empirical().to(dtype)


def test_to_refuses_what_there_is_not() -> None:
    with pytest.raises(DomainError, match="BayesianNetwork.to: device must be one of this machine.*got 'cudaa'"):
        network().to(device="cudaa")
    with pytest.raises(DomainError, match="got a dtype twice"):
        network().to(DOUBLE, dtype=DOUBLE)
    with pytest.raises(DomainError, match="got a device twice"):
        network().to("cpu", device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_prior": priors.NormalWeights}, r"weight_prior is .*class.*NormalWeights\(\.\.\.\)"),
        ({"weight_prior": 3}, "weight_prior must be a weight prior"),
        ({"network": torch.nn.Linear(2, 1)}, "wrap a torch module in probnn.ModuleNetwork"),
        ({"dtype": "double"}, "dtype must be a floating-point dtype"),
        ({"dtype": torch.int64}, "dtype must be a floating-point dtype"),
        ({"device": "cudaa"}, "device must be one of this machine"),
        ({"weight_prior": priors.NormalWeights(weight_scale=(1.0, 2.0, 3.0))}, r"weight_scale has \(3,\) values"),
        ({"weight_prior": priors.StudentTWeights(bias_scale=torch.ones(3))}, r"bias_scale has \(3,\) values"),
        ({"weight_prior": priors.HierarchicalWeights(weight_scale=(1.0, 2.0, 3.0))}, r"weight_scale has \(3,\)"),
        ({"weight_prior": priors.HierarchicalWeights(spread=(1.0, 2.0, 3.0))}, r"spread has \(3,\) values"),
    ],
)
def test_bad_bayesian_networks_are_refused_when_they_are_made(options: dict, message: str) -> None:
    parts = {"network": probnn.MLP(input_dim=2, hidden=(4,)), "weight_prior": priors.NormalWeights(), **options}
    before = torch.random.get_rng_state()
    with pytest.raises(DomainError, match=message):
        probnn.BayesianNetwork(**parts)
    assert torch.equal(before, torch.random.get_rng_state())


def test_making_a_bayesian_network_draws_nothing_from_the_global_stream() -> None:
    before = torch.random.get_rng_state()
    for prior in (priors.NormalWeights(), priors.HierarchicalWeights(scale_prior="inverse_gamma")):
        network(prior)
    assert torch.equal(before, torch.random.get_rng_state())


def test_arviz_needs_draws() -> None:
    X, Y = data()
    with pytest.raises(UnsupportedError, match=r"BayesianNetwork.to_arviz: needs draws.*process.draws\(num_draws\)"):
        network().to_arviz(X_test=X)
    posterior = probnn.Exact(optimize=False).fit(gaussian_process(), likelihoods.Gaussian(noise=0.1), X, Y)
    name = type(posterior).__name__
    with pytest.raises(UnsupportedError, match=rf"{name}.to_arviz: .*use predict\(X\)"):
        posterior.to_arviz(X_test=X)
    with pytest.raises(UnsupportedError, match=rf"{name}.draws: the process has no parameters"):
        posterior.draws(10)
    assert network().draws(10).to_arviz(X_test=X)["posterior"].sizes["draw"] == 10


class TestPriors:
    """What a method of inference says about a prior it cannot use."""

    X, Y = data()
    likelihood = likelihoods.Gaussian(noise=0.1)

    @pytest.mark.parametrize("method", [probnn.HMC(), probnn.Laplace(), probnn.MeanFieldVI(), probnn.DeepEnsemble()])
    def test_draws_are_refused_where_a_density_is_needed(self, method: probnn.inference.InferenceMethod) -> None:
        with pytest.raises(UnsupportedError, match=rf"{type(method).__name__}.fit: prior is a posterior of draws"):
            method.fit(empirical(), self.likelihood, self.X, self.Y)

    def test_a_posterior_with_a_density_is_a_prior(self) -> None:
        first = probnn.Laplace().fit(network(hidden=()), self.likelihood, self.X[:4], self.Y[:4])
        second = probnn.Laplace().fit(first, self.likelihood, self.X[4:], self.Y[4:])
        whole = probnn.Laplace().fit(network(hidden=()), self.likelihood, self.X, self.Y)
        assert (second.predict(self.X).mean - whole.predict(self.X).mean).abs().max() < 1e-6

    def test_both_ways_round(self) -> None:
        """A Gaussian process for HMC and a network for Exact are the same kind of mistake."""
        with pytest.raises(UnsupportedError, match="HMC.fit: prior must be parametric"):
            probnn.HMC().fit(gaussian_process(), self.likelihood, self.X, self.Y)
        with pytest.raises(UnsupportedError):
            probnn.Exact().fit(network(), self.likelihood, self.X, self.Y)
        with pytest.raises(DomainError, match="prior must be a StochasticProcess"):
            probnn.HMC().fit("gp", self.likelihood, self.X, self.Y)  # type: ignore[arg-type]
