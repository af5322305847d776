"""One registry of small priors, methods and likelihoods: what is listed here meets every contract test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpytorch
import torch
from torch import Tensor

import probnn
from probnn import likelihoods, moe, priors
from probnn import random as rnd

DOUBLE = torch.float64


def data(n: int = 8, d: int = 2, m: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth outcomes with a little noise, on [-1, 1]^d."""
    generator = rnd.generator_from(seed)
    X = 2 * rnd.uniform((n, d), generator=generator, dtype=DOUBLE) - 1
    columns = [torch.sin(2 * X.sum(-1) + j) for j in range(m)]
    return X, torch.stack(columns, -1) + 0.1 * rnd.normal((n, m), generator=generator, dtype=DOUBLE)


def network(weight_prior: Any = None, **options: Any) -> probnn.BayesianNetwork:
    """A Bayesian network of a dozen units."""
    net = probnn.MLP(**{"input_dim": 2, "hidden": (6, 5), **options})
    return probnn.BayesianNetwork(net, weight_prior or priors.NormalWeights(), dtype=DOUBLE)


def module() -> torch.nn.Module:
    """A torch module nobody planned for."""
    return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ELU(), torch.nn.Linear(4, 1))


def gaussian_process(**options: Any) -> probnn.GaussianProcess:
    """A Gaussian process with fixed hyper-parameters."""
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    kernel.base_kernel.lengthscale, kernel.outputscale = 0.7, 1.3
    return probnn.GaussianProcess(kernel.double(), input_dim=2, **options)


def conditioned_gaussian_process() -> Any:
    """A Gaussian process that knows a few outcomes."""
    X, Y = data()
    return probnn.Exact(optimize=False).fit(gaussian_process(), likelihoods.Gaussian(noise=0.1), X, Y)


def empirical() -> Any:
    """Reweighted draws with an inferred noise."""
    prior, likelihood = network(), likelihoods.Gaussian(noise_median=2.0, noise_spread=0.5)
    theta = prior.sample_parameters((2, 64), generator=rnd.generator_from(0))
    psi = likelihood.sample_prior((2, 64), generator=rnd.generator_from(1), dtype=DOUBLE)
    X, Y = data(2)
    return probnn.EmpiricalProcess(prior, theta, psi, likelihood).condition(X, Y + 0.5)


def mixture_of_experts(num_outcomes: int = 1, **options: Any) -> moe.MixtureOfExperts:
    """A prior over mixtures of two experts."""
    return moe.MixtureOfExperts(moe.GaussianMoE(2, 2, num_outcomes, **options), dtype=DOUBLE)


def planar_flows() -> priors.FlowWeights:
    """Two planar flows a layer of `network()`, that are not the identity."""
    draws = rnd.normal((2, 2 * 59 + 3), generator=rnd.generator_from(0), dtype=DOUBLE)
    directions, shifts, offsets = draws.split([59, 59, 3], -1)
    return priors.FlowWeights(1.5, 0.5, num_flows=2, directions=directions, shifts=shifts, offsets=offsets)


WEIGHT_PRIORS: dict[str, Any] = {
    "normal": priors.NormalWeights(weight_scale=1.5, bias_scale=0.5),
    "normal by layer": priors.NormalWeights(weight_scale=(2.0, 1.0, 0.5), bias_scale=0.3, scaling="none"),
    "laplace": priors.LaplaceWeights(),
    "student-t": priors.StudentTWeights(),
    "half-Cauchy scales": priors.HierarchicalWeights(scale_prior="half_cauchy"),
    "inverse-gamma scales": priors.HierarchicalWeights(scale_prior="inverse_gamma"),
    "inverse-gamma variances": priors.InverseGammaWeights(shape=(3.0, 2.0, 4.0), bias_shape=2.0, bias_scale=0.5),
    "log-normal scales": priors.HierarchicalWeights(scale_prior="log_normal"),
    "planar flows": planar_flows(),
}

# Processes with the tolerance within which one function must repeat itself.
PROCESSES: dict[str, tuple[Callable[[], Any], float]] = {
    **{f"network, {name}": ((lambda p=p: network(p)), 1e-9) for name, p in WEIGHT_PRIORS.items()},
    "network, two outcomes": (lambda: network(output_dim=2, activation="sin"), 1e-9),
    "linear network": (lambda: network(hidden=()), 1e-9),
    "module network": (
        lambda: probnn.BayesianNetwork(
            probnn.ModuleNetwork(module(), input_dim=2), priors.NormalWeights(), dtype=DOUBLE
        ),
        1e-9,
    ),
    "mixture of experts": (mixture_of_experts, 1e-9),
    "mixture of experts, two outcomes": (
        lambda: mixture_of_experts(2, gate=moe.ActivationGate(), expert=moe.PolynomialExpert(2), variance="shared"),
        1e-9,
    ),
    "draws": (empirical, 1e-9),
    "Gaussian process": (gaussian_process, 1e-3),
    "conditioned Gaussian process": (conditioned_gaussian_process, 1e-3),
    "laplace": (lambda: METHODS["laplace"].fit(network(), likelihoods.Gaussian(0.1), *data()), 1e-9),
    "vi": (lambda: METHODS["vi"].fit(network(), likelihoods.Gaussian(), *data()), 1e-9),
}

METHODS: dict[str, Any] = {
    "hmc": probnn.HMC(num_chains=4, num_warmup=30, num_samples=10),
    "ensemble": probnn.DeepEnsemble(size=4, steps=50),
    "laplace": probnn.Laplace(steps=200),
    "sghmc": probnn.SGHMC(num_chains=4, num_warmup=100, num_samples=10, keep_every=5, start_steps=50),
    "vi": probnn.MeanFieldVI(steps=100),
    "exact": probnn.Exact(optimize=True),
}

LIKELIHOODS: dict[str, Any] = {
    "gaussian": likelihoods.Gaussian(),
    "gaussian, fixed": likelihoods.Gaussian(noise=0.3),
    "gaussian, fixed by outcome": likelihoods.Gaussian(noise=torch.tensor([0.3, 0.1], dtype=DOUBLE)),
    "gaussian, noise by outcome": likelihoods.Gaussian(levels=2),
    "student-t": likelihoods.StudentT(),
    "student-t, fixed": likelihoods.StudentT(noise=0.5, df=3.0),
    "student-t without variance": likelihoods.StudentT(noise=0.5, df=1.5),
    "heteroscedastic": likelihoods.Heteroscedastic(),
    "bernoulli": likelihoods.Bernoulli(),
    "categorical": likelihoods.Categorical(3),
    "poisson": likelihoods.Poisson(),
    "mixture": moe.GaussianMixture(3),
    "mixture, fixed noise": moe.GaussianMixture(2, noise=0.3),
}


def mean_square(whitened: Tensor) -> tuple[Tensor, Tensor]:
    """Mean square of every coordinate over draws and chains, and its standard error from the (independent) chains."""
    per_chain = whitened.square().mean(0)
    return per_chain.mean(0), per_chain.std(0) / len(per_chain) ** 0.5
