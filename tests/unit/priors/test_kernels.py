"""Gaussian processes come back from a file bit for bit, and what would not is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gpytorch
import pytest
import torch
from botorch.models.kernels.infinite_width_bnn import InfiniteWidthBNNKernel
from botorch.models.utils.gpytorch_modules import (
    get_covar_module_with_dim_scaled_prior,
    get_matern_kernel_with_gamma_prior,
)
from gpytorch import constraints, kernels, means, priors

import probnn
from probnn import likelihoods
from probnn import random as rnd
from probnn.errors import SerializationError
from probnn.priors import Gamma, GaussianProcess, LogNormal

DOUBLE = torch.double


def uniform(*shape: int) -> torch.Tensor:
    return rnd.uniform(shape, generator=rnd.generator_from(0), dtype=DOUBLE)


KERNELS = {
    "RBF": lambda: kernels.RBFKernel(),
    "BoTorch's default": lambda: get_covar_module_with_dim_scaled_prior(3),
    "BoTorch's old default": lambda: get_matern_kernel_with_gamma_prior(3),
    "Matern 1/2": lambda: kernels.MaternKernel(nu=0.5, ard_num_dims=2, active_dims=[0, 2]),
    "scaled columns": lambda: kernels.ScaleKernel(kernels.RBFKernel(active_dims=[1])),
    "columns of a scaled kernel": lambda: kernels.ScaleKernel(kernels.RBFKernel(), active_dims=[1, 2]),
    "rational quadratic": lambda: kernels.RQKernel(lengthscale_constraint=constraints.Interval(0.1, 3.0)),
    "periodic": lambda: kernels.PeriodicKernel(ard_num_dims=3, period_length_prior=priors.NormalPrior(1.0, 0.1)),
    "linear": lambda: kernels.LinearKernel(variance_prior=priors.HalfNormalPrior(2.0)),
    "constant": lambda: kernels.ConstantKernel(constant_prior=priors.HalfCauchyPrior(0.5)),
    "sum of products": lambda: kernels.ScaleKernel(
        kernels.RBFKernel() + kernels.LinearKernel() * kernels.PeriodicKernel(),
        outputscale_prior=priors.GammaPrior(2, 1),
    ),
    "exponential constraint": lambda: kernels.RBFKernel(
        lengthscale_constraint=constraints.Positive(transform=torch.exp, inv_transform=torch.log)
    ),
    "upper bound": lambda: kernels.RBFKernel(lengthscale_constraint=constraints.LessThan(2.0)),
    "infinite network": lambda: kernels.ScaleKernel(InfiniteWidthBNNKernel(depth=2, active_dims=(0, 1))),
}
MEANS = {
    "zero": means.ZeroMean,
    "constant": lambda: means.ConstantMean(constant_prior=priors.NormalPrior(0.0, 2.0)),
    "bounded constant": lambda: means.ConstantMean(constant_constraint=constraints.Interval(-1.0, 1.0)),
    "linear": lambda: means.LinearMean(3),
    "linear without bias": lambda: means.LinearMean(3, bias=False),
    "none": lambda: None,
}


def scattered(module):
    """Away from where the constructor puts the parameters."""
    if module is None:
        return None
    generator = rnd.generator_from(3)
    with torch.no_grad():
        for parameter in module.double().parameters():
            z = rnd.uniform(parameter.shape, generator=generator, like=parameter)
            parameter.copy_(0.3 + 0.4 * z)
    return module


def posterior(kernel: str, mean: str) -> GaussianProcess:
    prior = GaussianProcess(scattered(KERNELS[kernel]()), scattered(MEANS[mean]()), input_dim=3)
    X = uniform(6, 3)
    prior = prior.condition(X[:3], X[:3, :1], noise_variance=torch.full((3, 1), 0.1, dtype=DOUBLE))
    return probnn.Exact(optimize=False).fit(prior, likelihoods.Gaussian(noise=0.3), X[3:], X[3:, :1])


def same(a: GaussianProcess, b: GaussianProcess) -> None:
    at = uniform(5, 3)
    assert torch.equal(a.predict(at).mean, b.predict(at).mean)
    assert torch.equal(a.predict(at, observation_noise=True).variance, b.predict(at, observation_noise=True).variance)
    assert torch.equal(a.log_evidence, b.log_evidence) and a.trainable == b.trainable
    for left, right in zip((*a.kernels, *a.means), (*b.kernels, *b.means), strict=True):
        assert type(left) is type(right) and repr(left) == repr(right)
        if left is None:
            continue
        log_priors = [[p.log_prob(f(m)).sum() for _, m, p, f, _ in x.named_priors()] for x in (left, right)]
        assert len(log_priors[0]) == len(log_priors[1]) and all(map(torch.equal, *log_priors))


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_comes_back(kernel: str, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    gp = posterior(kernel, "zero")
    gp.save(tmp_path / "gp")
    loaded = probnn.load(tmp_path / "gp")
    same(gp, loaded)
    assert loaded.info.log_evidence == gp.info.log_evidence and loaded.prior is not None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mean", MEANS)
def test_every_mean_comes_back(mean: str, tmp_path: Path) -> None:
    gp = posterior("RBF", mean)
    state = torch.get_rng_state()
    gp.save(tmp_path / "gp")
    same(gp, probnn.load(tmp_path / "gp"))
    assert torch.equal(torch.get_rng_state(), state), "gpytorch draws the weights of a LinearMean"


def test_fitted_processes_and_hyperpriors_come_back(tmp_path: Path) -> None:
    X = uniform(12, 3)
    Y = torch.stack([torch.sin(5 * X.sum(-1)), X.prod(-1)], -1)
    fitted = probnn.Exact().fit(probnn.priors.GPPrior()(3, 2), likelihoods.Gaussian(levels=2), X, Y)
    fitted.save(tmp_path / "fitted")
    same(fitted, probnn.load(tmp_path / "fitted"))
    laws = {"lengthscale": LogNormal(torch.tensor([0.0, 1.0, 2.0]), 0.5), "mean.constant": probnn.priors.Normal()}
    prior = GaussianProcess(KERNELS["BoTorch's default"](), means.ConstantMean(), input_dim=3, hyperprior=laws)
    prior.save(tmp_path / "prior")
    loaded, at = probnn.load(tmp_path / "prior"), uniform(4, 3).float()
    draws = [gp.sample(at, (3,), generator=rnd.generator_from(0)) for gp in (prior, loaded)]
    assert torch.equal(*draws) and torch.equal(prior.predict(at).mean, loaded.predict(at).mean)


def test_a_new_process_predicts_the_same(tmp_path: Path) -> None:
    """Another interpreter has to find out by itself who reads kernels; layouts in memory must not matter."""
    at = uniform(5, 3)
    for name, gp in (("a", posterior("sum of products", "linear")), ("b", posterior("BoTorch's default", "constant"))):
        gp.save(tmp_path / name)
        torch.save((gp.predict(at).mean, gp.predict(at).variance), tmp_path / f"{name}.expected")
    torch.save(at, tmp_path / "at")
    code = (
        "import sys, torch, probnn; torch.set_num_threads(1); at = torch.load('at')\n"
        "for name in 'ab':\n"
        "    p, (mean, variance) = probnn.load(name).predict(at), torch.load(name + '.expected')\n"
        "    assert torch.equal(p.mean, mean) and torch.equal(p.variance, variance)\n"
    )
    root = str(Path(probnn.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


class Rougher(kernels.RBFKernel):
    """Not on the list, though its parent is."""


def with_own_prior() -> kernels.Kernel:
    kernel = kernels.RBFKernel()
    kernel.register_prior("lengthscale_prior", priors.NormalPrior(0.0, 1.0), lambda m: m.lengthscale.log(), None)
    return kernel


def with_unknown_prior() -> kernels.Kernel:
    kernel = kernels.RBFKernel()
    kernel.register_prior("smoothness_prior", priors.NormalPrior(0.0, 1.0), "lengthscale")
    return kernel


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Rougher, "Rougher cannot be saved: it is not on the list"),
        (lambda: kernels.ScaleKernel(Rougher()), "Rougher cannot be saved"),
        (lambda: kernels.CosineKernel(), "CosineKernel cannot be saved"),
        (lambda: kernels.RBFKernel(lengthscale_prior=priors.UniformPrior(0.0, 1.0)), "UniformPrior cannot be saved"),
        (lambda: kernels.RBFKernel(lengthscale_prior=priors.NormalPrior(0.0, 1.0, transform=torch.log)), "transform"),
        (
            lambda: kernels.RBFKernel(
                lengthscale_constraint=constraints.Positive(transform=torch.square, inv_transform=torch.sqrt)
            ),
            "its transform is not softplus",
        ),
        (with_own_prior, "made again from its arguments and state it is not the same"),
        (with_unknown_prior, "cannot be saved"),
    ],
)
def test_what_would_not_come_back_is_refused(make, words: str, tmp_path: Path) -> None:
    gp = GaussianProcess(make(), input_dim=1)
    with pytest.raises(SerializationError, match=words):
        gp.save(tmp_path / "gp")
    assert not os.listdir(tmp_path)


def test_laws_of_torch_are_not_saved(tmp_path: Path) -> None:
    gp = GaussianProcess(
        kernels.RBFKernel(), input_dim=1, hyperprior={"lengthscale": torch.distributions.Gamma(2.0, 1.0)}
    )
    with pytest.raises(SerializationError, match="hyperprior.lengthscale"):
        gp.save(tmp_path / "gp")
    GaussianProcess(kernels.RBFKernel(), input_dim=1, hyperprior={"lengthscale": Gamma(2.0)}).save(tmp_path / "gp")


def test_new_kernels_can_be_registered(tmp_path: Path) -> None:
    from probnn.priors import kernels as codec

    class Smoother(kernels.Kernel):
        def __init__(self, power: int, active_dims=None, ard_num_dims=None):
            super().__init__(active_dims=active_dims, ard_num_dims=ard_num_dims)
            self.power = power
            self.register_parameter("raw_size", torch.nn.Parameter(torch.zeros(1)))
            self.register_constraint("raw_size", constraints.Positive())

        def forward(self, x1, x2, diag=False, **params):
            size = self.raw_size_constraint.transform(self.raw_size)
            product = (x1 * x2).sum(-1) if diag else x1 @ x2.mT
            return size * (1 + product).pow(self.power)

    gp = GaussianProcess(Smoother(3).double(), input_dim=2)
    with pytest.raises(SerializationError, match="not on the list"):
        gp.save(tmp_path / "gp")
    codec.register_kernel(Smoother, "power")
    try:
        gp.save(tmp_path / "gp")
        assert torch.equal(
            probnn.load(tmp_path / "gp").predict(uniform(3, 2)).variance, gp.predict(uniform(3, 2)).variance
        )
    finally:
        codec._known.pop(codec._name(Smoother))
    with pytest.raises(SerializationError, match="unknown kernel"):
        probnn.load(tmp_path / "gp")


def test_likelihoods_of_gpytorch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SerializationError):
        probnn.save(gpytorch.likelihoods.GaussianLikelihood(), tmp_path / "likelihood")
