"""Function draws of Gaussian processes repeat themselves, pass through data, and say what they cannot do."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from gpytorch.kernels import (
    ConstantKernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from gpytorch.means import ConstantMean, LinearMean
from torch import Tensor

from probnn import random as rnd
from probnn.errors import DomainError, UnsupportedError
from probnn.priors import Gamma, GaussianProcess, GPPrior, LogNormal, Normal, Uniform

DOUBLE = torch.double


def kernel(lengthscale: float = 0.4, variance: float = 1.5, d: int = 2) -> ScaleKernel:
    base = MaternKernel(nu=2.5, ard_num_dims=d).double()
    base.lengthscale = lengthscale * torch.arange(1, d + 1, dtype=DOUBLE)
    scaled = ScaleKernel(base).double()
    scaled.outputscale = variance
    return scaled


def constant(value: float = 0.3) -> ConstantMean:
    mean = ConstantMean().double()
    mean.constant = torch.tensor(value, dtype=DOUBLE)  # gpytorch rounds floats to single precision
    return mean


def process(**options) -> GaussianProcess:
    return GaussianProcess(kernel(), constant(), input_dim=2, **options)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return rnd.uniform(shape, generator=rnd.generator_from(seed), dtype=DOUBLE)


def data(n: int = 12, m: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """X, Y and known noise variances that differ from row to row."""
    X, noise = uniform(n, 2, seed=seed), 0.01 + 0.1 * uniform(n, m, seed=seed + 1)
    return X, torch.sin(3 * X.sum(-1, keepdim=True) + torch.arange(m)) + noise, noise


def matern(X1: Tensor, X2: Tensor, lengthscale: float = 0.4, variance: float = 1.5) -> Tensor:
    """The kernel above in its textbook form."""
    scaled = [X / (lengthscale * torch.arange(1, X.shape[-1] + 1, dtype=DOUBLE)) for X in (X1, X2)]
    r = math.sqrt(5) * (scaled[0].unsqueeze(-2) - scaled[1].unsqueeze(-3)).square().sum(-1).sqrt()
    return variance * (1 + r + r.square() / 3) * (-r).exp()


# Draws


@pytest.mark.parametrize("conditioned", [False, True])
def test_one_function_for_all_batch_elements(conditioned: bool, seed: int) -> None:
    X, Y, noise = data(5)
    gp = process().condition(X, Y, noise_variance=noise) if conditioned else process()
    at = uniform(4, 2, seed=3)
    at = torch.cat([at, at[:2]])  # rows repeat
    values = gp.sample(at.expand(3, 6, 2), (2, 5), generator=rnd.generator_from(seed))
    assert values.shape == (2, 5, 3, 6, 1)
    assert torch.equal(values, values[:, :, :1].expand_as(values)) and torch.equal(
        values[..., 4:, :], values[..., :2, :]
    )
    tasks = gp.sample_tasks(at.expand(3, 6, 2), generator=rnd.generator_from(seed))
    assert tasks.shape == (3, 6, 1) and (tasks[0] - tasks[1]).abs().min() > 0
    assert (tasks[:, 4:] - tasks[:, :2]).abs().max() < 1e-3


KERNELS = {
    "RBF": lambda: RBFKernel(ard_num_dims=2),
    "Matern": lambda: MaternKernel(nu=0.5),
    "rational quadratic": RQKernel,
    "periodic": lambda: PeriodicKernel(ard_num_dims=2),
    "constant": ConstantKernel,
    "linear": LinearKernel,
    "linear by column": lambda: LinearKernel(ard_num_dims=2),
    "scaled sum": lambda: ScaleKernel(RBFKernel() + ScaleKernel(LinearKernel())),
    "product": lambda: ScaleKernel(RBFKernel()) * PeriodicKernel(),
    "product of columns": lambda: MaternKernel(nu=2.5, active_dims=[1]) * RBFKernel(active_dims=[0]),
    "one column": lambda: ScaleKernel(RBFKernel(active_dims=[1])),
    "on a grid": lambda: LinearKernel() * RBFKernel(),
}


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_functions_are_functions(name: str, conditioned: bool, seed: int) -> None:
    X, Y, noise = data(5)
    gp = GaussianProcess(KERNELS[name]().double(), LinearMean(2).double(), input_dim=2)
    gp = gp.condition(X, Y, noise_variance=noise) if conditioned else gp
    f = gp.sample_functions((2, 3), generator=rnd.generator_from(seed))
    a, b = uniform(4, 2, seed=1), uniform(5, 3, 2, seed=2)
    assert f(b).shape == (2, 3, 5, 3, 1) and f(a[:0]).shape == (2, 3, 0, 1)
    torch.testing.assert_close(f(torch.cat([a, b[0]])), torch.cat([f(a), f(b)[:, :, 0]], -2), rtol=0, atol=1e-10)
    again = gp.sample_functions((2, 3), generator=rnd.generator_from(seed))
    assert torch.equal(f(b), again(b))
    x = uniform(2, 2, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: f(x)[0], (x,), eps=1e-6, atol=1e-5)


def test_functions_pass_through_data_without_noise(seed: int) -> None:
    X, Y, _ = data(6)
    posterior = process().condition(X, Y)
    values = posterior.sample_functions((50,), generator=rnd.generator_from(seed))(X)
    torch.testing.assert_close(values, Y.expand_as(values), rtol=0, atol=1e-8)
    drawn = posterior.sample(X, (50,), generator=rnd.generator_from(seed))
    assert (drawn - Y).abs().max() < 1e-2  # jitter: a ten-thousandth of the prior's standard deviation


def test_grids_know_where_they_lose_variance() -> None:
    gp = GaussianProcess((LinearKernel() * RBFKernel()).double(), input_dim=2)
    f = gp.sample_functions(generator=rnd.generator_from(0))
    with pytest.raises(UnsupportedError, match=r"lose up to .*sample\(X"):
        f(torch.full((1, 2), 5.0, dtype=DOUBLE))
    rough = LinearKernel() * MaternKernel(nu=0.5)
    with pytest.raises(UnsupportedError, match="ProductKernel has no random features"):
        GaussianProcess(rough.double(), input_dim=6).sample_functions()
    wide = torch.tensor([[4.0, 4.0], [-4.0, -4.0]], dtype=DOUBLE)
    around = gp.condition(wide, wide[:, :1], noise_variance=torch.full((2, 1), 0.1).double())
    assert around.sample_functions()(wide).isfinite().all(), "the grid reaches to the data"


def test_exact_draws_have_a_limit() -> None:
    gp = GaussianProcess(RBFKernel().double(), input_dim=1)
    X = torch.linspace(0, 1, 2001, dtype=DOUBLE).unsqueeze(-1)
    with pytest.raises(UnsupportedError, match="2000 distinct points.*2001.*sample_functions"):
        gp.sample(X)
    assert gp.sample(X[:40].repeat(100, 1)).shape == (4000, 1)
    assert gp.sample_functions()(X).shape == (2001, 1)


def test_close_points_draw_without_complaint(seed: int) -> None:
    """Covariances of close points are singular in floating point; float32 draws are made in double precision."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (torch.float32, DOUBLE):
            gp = GaussianProcess(RBFKernel().to(dtype), input_dim=1)
            X = torch.linspace(0, 1, 400, dtype=dtype).unsqueeze(-1)
            f = gp.sample(X, (20,), generator=rnd.generator_from(seed)).squeeze(-1)
            assert f.dtype == dtype and gp.sample_functions()(X).dtype == dtype
            # A smooth function has tiny second differences; what is left is jitter, of standard deviation 2.4e-4.
            assert (f[:, 2:] - 2 * f[:, 1:-1] + f[:, :-2]).abs().max() < 1.5e-3


def test_generators_decide_and_the_global_stream_rests() -> None:
    gp, X = process(), uniform(2, 3, 2)
    laws = {"base_kernel.lengthscale": Gamma(3.0, 6.0), "outputscale": LogNormal()}
    for one in (
        gp,
        process(hyperprior=laws),
        GaussianProcess((LinearKernel() * PeriodicKernel()).double(), input_dim=2),
    ):
        state = torch.get_rng_state()

        def draws(seed: int, one=one) -> list[Tensor]:
            generator = rnd.generator_from(seed)
            verbs = [one.sample(X, (4,), generator=generator), one.sample_tasks(X, generator=generator)]
            if one.hyperprior is None or one is not gp:
                verbs.append(one.sample_functions((4,), generator=generator)(X))
            return verbs

        assert all(map(torch.equal, draws(0), draws(0)))
        assert not any(map(torch.equal, draws(0), draws(1)))
        one.predict(X)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("power", [-30, 0, 30])
def test_jitter_is_relative(power: int) -> None:
    """Draws are as smooth for functions of any size."""
    scaled = ScaleKernel(RBFKernel()).double()
    scaled.outputscale = 10.0**power
    X = torch.linspace(0, 1, 100, dtype=DOUBLE).unsqueeze(-1)
    f = GaussianProcess(scaled, input_dim=1).sample(X, (20,), generator=rnd.generator_from(0)) / 10 ** (power / 2)
    assert 0.3 < f.std() < 3 and (f[:, 2:] - 2 * f[:, 1:-1] + f[:, :-2]).abs().max() < 2e-3


# Hyper-priors


def hierarchical(**options) -> GaussianProcess:
    laws = {
        "base_kernel.lengthscale": LogNormal(-1.0, 0.5),
        "outputscale": Uniform(0.5, 2.0),
        "mean.constant": Normal(),
    }
    return process(hyperprior=laws, **options)


@pytest.mark.parametrize("m", [1, 2])
def test_hyperprior_shapes(m: int, seed: int) -> None:
    gp, X = hierarchical(output_dim=m), uniform(3, 4, 2)
    assert gp.sample(X, (5, 2), generator=rnd.generator_from(seed)).shape == (5, 2, 3, 4, m)
    assert gp.sample_tasks(X, generator=rnd.generator_from(seed)).shape == (3, 4, m)
    f = gp.sample_functions((5, 2), generator=rnd.generator_from(seed))
    assert f(X).shape == (5, 2, 3, 4, m)
    torch.testing.assert_close(f(X)[:, :, 1], f(X[1]), rtol=0, atol=1e-10)
    mixture = gp.predict(X)
    assert mixture.mean.shape == mixture.variance.shape == (3, 4, m)
    assert torch.equal(mixture.mean, gp.predict(X).mean)


def test_one_draw_of_a_hyperprior_is_a_gaussian_process(seed: int) -> None:
    """With all its mass at one point the law is that of the plain process: the same draws."""
    laws = {
        "base_kernel.lengthscale": Normal(torch.tensor([0.4, 0.8], dtype=DOUBLE), 1e-12),
        "outputscale": Normal(1.5, 1e-12),
    }
    X = uniform(6, 2)
    for count in (1, 7):
        plain, narrow = process()._draw(X.unsqueeze(0), count, None), process(hyperprior=laws)
        assert plain.shape == narrow._draw(X.unsqueeze(0), count, None).shape == (count, 1, 6)
        mean, covariance = narrow._drawn_moments(X.unsqueeze(0), count, rnd.generator_from(seed))
        torch.testing.assert_close(covariance, matern(X, X).expand(count, 1, 6, 6), rtol=0, atol=1e-9)
        torch.testing.assert_close(mean, torch.full_like(mean, 0.3), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("laws", "words"),
    [
        ({"lengthscale": LogNormal()}, "'lengthscale' is no hyper-parameter"),
        ({"base_kernel.nu": LogNormal()}, "no hyper-parameter"),
        ({"mean.slope": LogNormal()}, "'mean.slope' is no hyper-parameter of the mean"),
        ({"outputscale": Normal(-5.0, 0.1)}, "'outputscale'"),
        ({"base_kernel.lengthscale": LogNormal(torch.zeros(3))}, "does not fit 'base_kernel.lengthscale'"),
    ],
)
def test_hyperpriors_must_fit(laws: dict, words: str) -> None:
    with pytest.raises(DomainError, match=words):
        process(hyperprior=laws)


def test_hyperpriors_respect_constraints_without_a_transform() -> None:
    """gpytorch accepts any value for them."""
    with pytest.raises(DomainError, match="outside of the kernel's GreaterThan"):
        own = GPPrior()(2, 1)
        GaussianProcess(own.kernel, input_dim=2, hyperprior={"lengthscale": Uniform(0.001, 0.002)})


def test_hyperpriors_say_what_they_cannot_do() -> None:
    X, Y, noise = data(3)
    with pytest.raises(UnsupportedError, match="leave it out"):
        hierarchical().condition(X, Y, noise_variance=noise)
    gp = GaussianProcess(
        (LinearKernel() * RBFKernel()).double(), input_dim=2, hyperprior={"kernels.1.lengthscale": Gamma(2.0)}
    )
    assert gp.sample(X, (3,)).shape == (3, 3, 1)
    with pytest.raises(UnsupportedError, match="hyper-parameters of their own cannot be drawn"):
        gp.sample_functions()


def test_laws_from_torch_serve_too(seed: int) -> None:
    gp = process(hyperprior={"base_kernel.lengthscale": torch.distributions.LogNormal(0.0, 0.1)})
    X = uniform(3, 2)
    assert gp.sample(X, (4,), generator=rnd.generator_from(seed)).shape == (4, 3, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Normal(0.0, 0.0), "scale must be positive"),
        (lambda: LogNormal(0.0, -1.0), "scale must be positive"),
        (lambda: LogNormal(math.nan, 0.5), r"priors\.LogNormal: loc must be a finite number or tensor, got nan"),
        (lambda: Normal(torch.tensor([0.0, math.inf])), r"priors\.Normal: loc must be a finite"),
        (lambda: Normal("0"), "loc must be a finite number"),
        (lambda: Gamma(0.0), "concentration must be positive"),
        (lambda: Uniform(1.0, 1.0), "low must be below high"),
        (lambda: Uniform(0.0, math.inf), "high must be a finite"),
    ],
)
def test_laws_are_validated(make, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        make()


@pytest.mark.parametrize("law", [Normal, LogNormal, Gamma, Uniform])
def test_draws_of_laws_are_differentiable(law, seed: int) -> None:
    """The derivative of the mean draw is that of the mean, in both parameters."""
    # In Gamma's and Uniform's natural order: both parameters positive, the first the smaller.
    first, second = (torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in (0.7, 1.3))
    mean = {
        Normal: lambda a, b: a,
        LogNormal: lambda a, b: (a + b**2 / 2).exp(),
        Gamma: lambda a, b: a / b,
        Uniform: lambda a, b: (a + b) / 2,
    }[law](first, second)
    n, parts = 20_000, 50
    draws = law(first, second).sample((n,), generator=rnd.generator_from(seed), dtype=DOUBLE)
    values = [torch.autograd.grad(part.mean(), (first, second), retain_graph=True) for part in draws.chunk(parts)]
    for got, parameter in zip(zip(*values, strict=True), (first, second), strict=True):
        (expected,) = torch.autograd.grad(mean, parameter, retain_graph=True, allow_unused=True, materialize_grads=True)
        each = torch.stack(got)
        assert (each.mean() - expected).abs() <= 5 * each.std() / parts**0.5 + 1e-12
