"""Every process meets the contract of `StochasticProcess`."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import probnn
from probnn import random as rnd
from probnn.errors import UnsupportedError
from probnn.process import ParametricProcess, StochasticProcess
from probnn.testing import check_parametric_process, check_process
from tests.cases import DOUBLE, PROCESSES, network


@pytest.mark.parametrize("name", PROCESSES)
def test_contract(name: str, seed: int) -> None:
    make, tolerance = PROCESSES[name]
    process = make()
    check_process(process, seed=seed, tolerance=tolerance)
    if isinstance(process, ParametricProcess):
        check_parametric_process(process, seed=seed)


@pytest.mark.parametrize("name", PROCESSES)
def test_to_converts_a_copy(name: str) -> None:
    process = PROCESSES[name][0]()
    single = process.to(dtype=torch.float32)
    assert process.dtype == DOUBLE and single.dtype == torch.float32
    X = torch.rand(3, 2, generator=rnd.generator_from(0))
    mean = single.predict(X).mean
    assert mean.dtype == torch.float32 and mean.isfinite().all()
    if isinstance(process, ParametricProcess):
        theta = process.sample_parameters((2,), generator=rnd.generator_from(0))
        f = process.apply(theta, X.double())
        assert (single.apply(theta.float(), X) - f).abs().max() <= 1e-4 * max(1.0, f.abs().max().item())
    else:
        assert (mean - process.predict(X.double()).mean).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["network, normal", "network, half-Cauchy scales", "Gaussian process"])
def test_tasks_have_the_covariance_of_samples(name: str, seed: int) -> None:
    """Independent functions by `sample_tasks` and `sample` have one law, that of `predict`."""
    process, n = PROCESSES[name][0](), 20_000
    X = torch.tensor([[0.1, 0.2], [-0.4, 0.9]], dtype=DOUBLE)
    tasks = process.sample_tasks(X.expand(n, 2, 2), generator=rnd.generator_from(seed)).squeeze(-1)
    draws = process.sample(X, (n,), generator=rnd.generator_from(seed + 1)).squeeze(-1)
    if name == "network, half-Cauchy scales":  # infinite variances: compare ranks instead
        tasks, draws = tasks.atan(), draws.atan()

    def moments(f: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        products = (f - f.mean(0)).unsqueeze(-1) * (f - f.mean(0)).unsqueeze(-2)
        return products.mean(0), products.std(0) / n**0.5

    (a, sa), (b, sb) = moments(tasks), moments(draws)
    assert ((a - b).abs() <= 5 * (sa**2 + sb**2).sqrt()).all()
    if name == "Gaussian process":
        exact = process.predict(X).distribution.covariance_matrix
        assert ((a - exact).abs() <= 5 * sa).all()


@dataclass(frozen=True, eq=False)
class Marginal(StochasticProcess):
    """A process that knows marginals only: what a network trained on single points would be."""

    dtype: torch.dtype = DOUBLE
    device: torch.device = torch.device("cpu")
    input_dim, output_dim, joint = 2, 1, None

    def _sample_functions(self, shape, generator):
        raise UnsupportedError("no functions")

    def _predict(self, X, noise):
        return probnn.predictive.DrawsPosterior(torch.stack([X.sum(-1, keepdim=True), X.prod(-1, keepdim=True)], -3))


def test_marginal_process_refuses_joint_draws() -> None:
    process, X = Marginal(), torch.rand(3, 2, dtype=DOUBLE)
    check_process(process)
    posterior = process.predict(X)
    assert posterior.mean.shape == (3, 1) and posterior.quantile(torch.tensor(0.5, dtype=DOUBLE)).shape == (3, 1)
    with pytest.raises(UnsupportedError, match="q = 3"):
        posterior.rsample(torch.Size([4]))
    assert process.predict(X[:1]).rsample(torch.Size([4])).shape == (4, 1, 1)


def test_no_density_of_draws() -> None:
    draws = network().draws(4)
    with pytest.raises(UnsupportedError, match="no density"):
        draws.log_prob(draws.theta)
