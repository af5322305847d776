"""Draws of Gaussian processes have the laws they should; bounds are five standard errors of all that is random."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
from botorch.models.kernels.infinite_width_bnn import InfiniteWidthBNNKernel
from gpytorch.kernels import (
    ConstantKernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from gpytorch.means import ConstantMean
from torch import Tensor

from probnn import random as rnd
from probnn.priors import Gamma, GaussianProcess, LogNormal, Normal, Uniform
from probnn.priors.pathwise import NUM_FEATURES, random_features

DOUBLE = torch.double


def uniform(*shape: int, seed: int) -> Tensor:
    return rnd.uniform(shape, generator=rnd.generator_from(seed), dtype=DOUBLE)


def stationary(d: int = 2) -> GaussianProcess:
    kernel = ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=d)).double()
    kernel.base_kernel.lengthscale, kernel.outputscale = 0.5, 1.7
    mean = ConstantMean().double()
    mean.constant = 0.5
    return GaussianProcess(kernel, mean, input_dim=d)


def known(gp: GaussianProcess, n: int = 4, m: int = 1) -> GaussianProcess:
    X = uniform(n, gp.input_dim, seed=100)
    return gp.condition(X, torch.sin(5 * X[:, :m]), noise_variance=torch.full((n, m), 0.05, dtype=DOUBLE))


def check_normal(f: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Draws S x n against a normal law."""
    count, variance = len(f), covariance.diagonal()
    assert ((f.mean(0) - mean).abs() <= 5 * (variance / count).sqrt()).all()
    spread = ((variance[:, None] * variance + covariance.square()) / count).sqrt()
    assert (((f - mean).mT @ (f - mean) / count - covariance).abs() <= 5 * spread).all()


def check_groups(f: Tensor, mean: Tensor, covariance: Tensor, lost: float = 0.0) -> None:
    """Draws G x S x n of which S share their random features; their errors average out over groups."""
    groups = len(f)

    def check(values: Tensor, expected: Tensor, allowed: float = 0.0) -> None:
        assert ((values.mean(0) - expected).abs() <= 5 * values.std(0) / groups**0.5 + allowed).all()

    check(f.mean(1), mean)
    check((f - mean).mT @ (f - mean) / f.shape[1], covariance, lost)


def functions(gp: GaussianProcess, X: Tensor, seed: int, groups: int = 60) -> Tensor:
    """Values of function draws, ``G x 100 x (n m)``, outcome by outcome."""
    generator = rnd.generator_from(seed)
    draws = [gp.sample_functions((100,), generator=generator)(X).mT.flatten(1) for _ in range(groups)]
    return torch.stack(draws)


def moments(gp: GaussianProcess, X: Tensor) -> tuple[Tensor, Tensor]:
    law = gp.predict(X).distribution
    return law.mean, law.covariance_matrix


@pytest.mark.parametrize("conditioned", [False, True])
def test_exact_draws(conditioned: bool, seed: int) -> None:
    """`sample` and `sample_tasks` have the law of `predict`, across what was asked in one piece or two."""
    gp = known(stationary()) if conditioned else stationary()
    X = uniform(5, 2, seed=seed)
    mean, covariance = moments(gp, X)
    check_normal(gp.sample(X, (20_000,), generator=rnd.generator_from(seed)).squeeze(-1), mean, covariance)
    tasks = gp.sample_tasks(X.expand(20_000, 5, 2), generator=rnd.generator_from(seed))
    check_normal(tasks.squeeze(-1), mean, covariance)
    parts = gp.sample(torch.stack([X[:3], X[2:]]), (20_000,), generator=rnd.generator_from(seed + 1))
    check_normal(torch.cat([parts[:, 0], parts[:, 1, 1:]], -2).squeeze(-1), mean, covariance)


def test_outcomes_are_drawn_independently(seed: int) -> None:
    gp = known(GaussianProcess(stationary().kernel, input_dim=2, output_dim=2), m=2)
    X = uniform(3, 2, seed=seed)
    draws = gp.sample(X, (20_000,), generator=rnd.generator_from(seed))
    tasks = gp.sample_tasks(X.expand(20_000, 3, 2), generator=rnd.generator_from(seed))
    law = gp.predict(X).distribution
    mean = law.mean.mT.flatten()
    check_normal(draws.mT.flatten(1), mean, law.covariance_matrix)
    check_normal(tasks.mT.flatten(1), mean, law.covariance_matrix)
    check_groups(functions(gp, X, seed), mean, law.covariance_matrix)


KERNELS = {
    "RBF": lambda: RBFKernel(ard_num_dims=2),
    "Matern 1/2": lambda: MaternKernel(nu=0.5),
    "Matern 5/2": lambda: ScaleKernel(MaternKernel(nu=2.5, active_dims=[1])),
    "rational quadratic": RQKernel,
    "periodic": lambda: PeriodicKernel(ard_num_dims=2),
    "constant": ConstantKernel,
    "linear": lambda: LinearKernel(ard_num_dims=2),
    "product": lambda: ScaleKernel(MaternKernel(nu=1.5)) * PeriodicKernel() * RBFKernel(active_dims=[0]),
    "sum": lambda: ScaleKernel(RBFKernel() + LinearKernel()) + ConstantKernel(),
    "inner columns": lambda: ScaleKernel(RBFKernel(active_dims=[0]) * RBFKernel(active_dims=[1]), active_dims=[1, 0]),
}


@pytest.mark.parametrize("name", KERNELS)
def test_random_features_are_unbiased(name: str, seed: int) -> None:
    """Their covariance is the kernel on average, its diagonal exactly, and the error is that of so many features."""
    kernel = KERNELS[name]().double()
    for parameter in kernel.parameters():
        parameter.data.sub_(0.7)
    X = uniform(6, 2, seed=seed)
    exact = kernel(X).to_dense().detach()
    generator, errors = rnd.generator_from(seed), []
    for _ in range(50):
        terms = random_features(kernel, 2, generator)
        assert terms is not None
        errors.append(sum((term(X)[0] @ term(X)[0].mT for term in terms), torch.zeros(6, 6, dtype=DOUBLE)) - exact)
    error = torch.stack(errors)
    assert error.diagonal(dim1=-2, dim2=-1).abs().max() < 1e-9
    assert (error.mean(0).abs() <= 5 * error.std(0) / 50**0.5 + 1e-9).all()
    # Independent frequencies have a standard deviation of at most sqrt(1 / L) a wave; Sobol points have less.
    waves = sum(term.variance.item() for term in terms if hasattr(term, "variance"))
    assert error.square().mean().sqrt() < waves * (2 / NUM_FEATURES) ** 0.5 + 1e-9


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("name", ["RBF", "Matern 1/2", "product", "sum"])
def test_functions(name: str, conditioned: bool, seed: int) -> None:
    """Pathwise draws have the law of `predict`; before and after data, whose update is exact."""
    gp = GaussianProcess(KERNELS[name]().double(), input_dim=2)
    gp = known(gp) if conditioned else gp
    X = uniform(5, 2, seed=seed)
    f = functions(gp, X, seed)
    check_groups(f, *moments(gp, X))
    first = f[:, 0, 0]  # independent: the first function of each group
    law = scipy.stats.norm(first.mean(), first.std())
    assert scipy.stats.kstest(first.numpy(), law.cdf).pvalue > 1e-6


@pytest.mark.parametrize("conditioned", [False, True])
def test_functions_on_a_grid(conditioned: bool, seed: int) -> None:
    """The infinite network has no random features; in two dimensions the grid loses almost nothing."""
    gp = GaussianProcess(InfiniteWidthBNNKernel(depth=2).double(), input_dim=2)
    gp = known(gp) if conditioned else gp
    X = 2 * uniform(5, 2, seed=seed) - 1
    f = gp.sample_functions((20_000,), generator=rnd.generator_from(seed))(X)
    check_groups(f.reshape(100, 200, 5), *moments(gp, X), lost=1e-4)


LAWS = {
    "base_kernel.lengthscale": LogNormal(-1.0, 0.7),
    "outputscale": Gamma(3.0, 2.0),
    "mean.constant": Normal(1.0, 0.5),
}


def quadrature(at: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the mixture at two points in one dimension, by quadrature over the length scale."""
    nodes = torch.tensor(scipy.stats.norm.ppf((torch.arange(4000) + 0.5) / 4000), dtype=DOUBLE)
    lengthscale = (-1.0 + 0.7 * nodes).exp()
    r = 5**0.5 * (at[0] - at[1]).abs() / lengthscale
    correlation = ((1 + r + r.square() / 3) * (-r).exp()).mean()
    covariance = 1.5 * torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=DOUBLE) + 0.25
    return torch.ones(2, dtype=DOUBLE), covariance


@pytest.mark.parametrize("verb", ["sample", "sample_tasks", "sample_functions"])
def test_every_function_has_its_own_hyperparameters(verb: str, seed: int) -> None:
    kernel = ScaleKernel(MaternKernel(nu=2.5)).double()
    gp = GaussianProcess(kernel, ConstantMean().double(), input_dim=1, hyperprior=LAWS)
    X, count, generator = torch.tensor([[0.1], [0.5]], dtype=DOUBLE), 4_000, rnd.generator_from(seed)
    prediction = gp.predict(X)
    draws = {
        "sample": lambda: gp.sample(X, (count,), generator=generator),
        "sample_tasks": lambda: gp.sample_tasks(X.expand(count, 2, 1), generator=generator),
        "sample_functions": lambda: functions(gp, X, seed, 40).flatten(0, 1).unsqueeze(-1),
    }
    f = draws[verb]().squeeze(-1)
    mean, covariance = quadrature(X.squeeze(-1))
    assert ((f.mean(0) - mean).abs() <= 5 * (covariance.diagonal() / count).sqrt()).all()
    products = (f - mean).unsqueeze(-1) * (f - mean).unsqueeze(-2)
    assert ((products.mean(0) - covariance).abs() <= 5 * products.std(0) / count**0.5).all()
    # f(0.1) - f(0.5) given the hyper-parameters is normal; over them its tails are heavier.
    difference = f[:, 0] - f[:, 1]
    assert scipy.stats.kurtosis(difference.numpy()) > 0.5
    assert ((prediction.mean.squeeze(-1) - mean).abs() <= 5 * (covariance.diagonal() / 256).sqrt()).all()


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        (Normal(2.0, 0.5), scipy.stats.norm(2.0, 0.5)),
        (LogNormal(0.3, 0.5), scipy.stats.lognorm(0.5, scale=2.718281828459045**0.3)),
        (Gamma(0.7, 2.0), scipy.stats.gamma(0.7, scale=0.5)),
        (Uniform(-1.0, 3.0), scipy.stats.uniform(-1.0, 4.0)),
    ],
    ids=["normal", "log-normal", "gamma", "uniform"],
)
def test_laws_of_hyperparameters(law, expected, seed: int) -> None:
    draws = law.sample((20_000,), generator=rnd.generator_from(seed), dtype=DOUBLE)
    assert scipy.stats.kstest(draws.numpy(), expected.cdf).pvalue > 1e-6
