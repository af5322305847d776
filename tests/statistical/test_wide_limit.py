"""Wide networks against the Gaussian process they tend to: BoTorch's kernel, which was derived without them."""

from __future__ import annotations

import pytest
import torch
from botorch.models.kernels import InfiniteWidthBNNKernel
from torch import Tensor

import probnn
from probnn import random as rnd
from probnn.priors import NormalWeights

NUM_DRAWS, WEIGHT_VARIANCE, BIAS_VARIANCE = 4_000, 1.6, 0.3
X = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(10, 2)


def values(hidden: tuple[int, ...], seed: int) -> Tensor:
    """Functions drawn in single precision, some at a time: ``draws x 10``."""
    prior = NormalWeights(WEIGHT_VARIANCE**0.5, BIAS_VARIANCE**0.5)
    network = probnn.MLP(input_dim=2, hidden=hidden, activation="relu")
    process, generator = probnn.BayesianNetwork(network, prior, dtype=torch.float32), rnd.generator_from(seed)
    chunks = [process.sample(X.float(), (250,), generator=generator) for _ in range(NUM_DRAWS // 250)]
    return torch.cat(chunks).squeeze(-1).double()


def kernel(depth: int) -> Tensor:
    limit = InfiniteWidthBNNKernel(depth=depth).double()
    limit.weight_var, limit.bias_var = WEIGHT_VARIANCE, BIAS_VARIANCE
    with torch.no_grad():
        return limit(X).to_dense()


def excess_kurtosis(f: Tensor) -> Tensor:
    """In standard errors of a normal sample, by the moments about the mean that is known to be zero."""
    excess = f.pow(4).mean(0) / f.square().mean(0).square() - 3
    return excess / (24 / len(f)) ** 0.5


# One hidden layer has the limit's covariance at any width; with two, what the second one averages over is itself
# random, of order 1 / width of the first. The second is narrow to save time: it does not enter the covariance.
@pytest.mark.parametrize("hidden", [(1000,), (1000, 40)])
def test_covariance(hidden: tuple[int, ...], seed: int) -> None:
    f = values(hidden, seed)
    products = f.unsqueeze(-1) * f.unsqueeze(-2)
    error = (products.mean(0) - kernel(len(hidden))).abs()
    assert (error <= 5 * products.std(0) / NUM_DRAWS**0.5 + (len(hidden) - 1) / 1000).all()


def test_functions_are_normal(seed: int) -> None:
    """The excess kurtosis of width 1000 vanishes within five standard errors, and the measure sees a narrow one's."""
    assert (excess_kurtosis(values((1000,), seed)).abs() <= 5).all()
    assert (excess_kurtosis(values((4,), seed)) > 5).all()
