"""Gaussian processes: closed forms, shapes, batches, draws that repeat themselves, and bad input."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from gpytorch.kernels import (
    Kernel,
    LinearKernel,
    MaternKernel,
    MultitaskKernel,
    RBFKernel,
    ScaleKernel,
)
from gpytorch.means import ConstantMean, LinearMean
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

import probnn
from probnn import likelihoods
from probnn import random as rnd
from probnn.errors import DomainError, NonFiniteError, ShapeError, UnsupportedError
from probnn.priors import GaussianProcess
from probnn.priors.covariance import cholesky, distinct, solve

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


def textbook(X: Tensor, Y: Tensor, noise: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and covariance with an explicit inverse."""
    A = torch.linalg.inv(matern(X, X) + torch.diag(noise.squeeze(-1)))
    cross = matern(at, X)
    return 0.3 + cross @ A @ (Y - 0.3), matern(at, at) - cross @ A @ cross.mT


# Closed forms


def test_posterior_is_the_textbook_one() -> None:
    X, Y, noise = data()
    at = uniform(7, 2, seed=5)
    mean, covariance = textbook(X, Y, noise, at)
    posterior = process().condition(X, Y, noise_variance=noise)
    predicted = posterior.predict(at)
    torch.testing.assert_close(predicted.mean, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(predicted.distribution.covariance_matrix, covariance, rtol=0, atol=1e-10)
    torch.testing.assert_close(predicted.variance.squeeze(-1), covariance.diagonal(), rtol=0, atol=1e-10)


def test_log_evidence_is_the_normal_density() -> None:
    X, Y, noise = data(m=2)
    posterior = process(output_dim=2).condition(X, Y, noise_variance=noise)
    expected = 0.0
    for k in range(2):
        covariance = matern(X, X) + torch.diag(noise[:, k])
        expected += scipy.stats.multivariate_normal([0.3] * len(X), covariance.numpy()).logpdf(Y[:, k].numpy())
    assert posterior.log_evidence.item() == pytest.approx(expected, abs=1e-8)
    assert process().log_evidence == 0


def test_linear_kernel_is_bayesian_linear_regression() -> None:
    """Prior N(0, v I) weights: the posterior function is that of the conjugate weights."""
    base = LinearKernel().double()
    base.variance = 0.7
    X, at = uniform(9, 3) - 0.5, uniform(4, 3, seed=3)
    Y = X @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=DOUBLE)
    posterior = GaussianProcess(base, input_dim=3).condition(X, Y, noise_variance=torch.full_like(Y, 0.04))
    precision = X.mT @ X / 0.04 + torch.eye(3, dtype=DOUBLE) / 0.7
    covariance = torch.linalg.inv(precision)
    predicted = posterior.predict(at)
    torch.testing.assert_close(predicted.mean, at @ covariance @ X.mT @ Y / 0.04, rtol=0, atol=1e-8)
    torch.testing.assert_close(predicted.distribution.covariance_matrix, at @ covariance @ at.mT, rtol=0, atol=1e-8)


def test_observation_noise_is_added() -> None:
    X, Y, noise = data(m=2)
    likelihood = likelihoods.Gaussian(noise=torch.tensor([0.2, 0.5], dtype=DOUBLE))
    posterior = probnn.Exact(optimize=False).fit(process(output_dim=2), likelihood, X, Y)
    at = uniform(3, 4, 2, seed=2)
    clean, noisy = posterior.predict(at), posterior.predict(at, observation_noise=True)
    assert torch.equal(clean.mean, noisy.mean)
    expected = torch.tensor([0.04, 0.25], dtype=DOUBLE).expand(3, 4, 2)
    torch.testing.assert_close(noisy.variance - clean.variance, expected, rtol=0, atol=1e-12)
    with pytest.raises(UnsupportedError, match="no likelihood"):
        process().predict(at, observation_noise=True)


# Conditioning


def test_conditioning_in_steps_is_conditioning_at_once() -> None:
    X, Y, noise = data(12)
    at = uniform(5, 2, seed=9)
    once = process().condition(X, Y, noise_variance=noise)
    steps = process()
    for rows in (slice(0, 5), slice(5, 6), slice(6, 12)):
        steps = steps.condition(X[rows], Y[rows], noise_variance=noise[rows])
    a, b = once.predict(at), steps.predict(at)
    torch.testing.assert_close(b.mean, a.mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(b.variance, a.variance, rtol=0, atol=1e-8)
    assert steps.log_evidence.item() == pytest.approx(once.log_evidence.item(), abs=1e-8)
    assert steps.condition(X[:0], Y[:0]) is steps


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("before", [0, 4])
@pytest.mark.parametrize("m", [1, 2])
def test_batches_are_a_loop(known: bool, before: int, m: int) -> None:
    """X of b x n x d with Y of f x b x n x m, as BoTorch's fantasies have them."""
    likelihood = likelihoods.Gaussian(noise=0.2)
    start, (X0, Y0, _) = process(output_dim=m), data(before, m, seed=7)
    start = probnn.Exact(optimize=False).fit(start, likelihood, X0, Y0)
    X, Y = uniform(3, 5, 2, seed=1), uniform(4, 3, 5, m, seed=2)
    noise = 0.1 + uniform(4, 3, 5, m, seed=3) if known else None
    batch, at = start.condition(X, Y, noise_variance=noise), uniform(4, 3, 6, 2, seed=4)
    predicted, shared = batch.predict(at), batch.predict(at[0, 0])
    assert predicted.mean.shape == shared.mean.shape == (4, 3, 6, m)
    assert batch.log_evidence.shape == (4, 3)
    for f in range(4):
        for b in range(3):
            one = start.condition(X[b], Y[f, b], noise_variance=None if noise is None else noise[f, b])
            torch.testing.assert_close(predicted.mean[f, b], one.predict(at[f, b]).mean, rtol=0, atol=1e-10)
            torch.testing.assert_close(predicted.variance[f, b], one.predict(at[f, b]).variance, rtol=0, atol=1e-10)
            torch.testing.assert_close(shared.mean[f, b], one.predict(at[0, 0]).mean, rtol=0, atol=1e-10)
            assert batch.log_evidence[f, b].item() == pytest.approx(one.log_evidence.item(), abs=1e-9)


def test_batches_of_data_make_batches_of_processes() -> None:
    batch = process().condition(uniform(3, 5, 2), uniform(3, 5, 1), noise_variance=torch.full((3, 5, 1), 0.1).double())
    for verb in ("sample", "sample_tasks"):
        with pytest.raises(UnsupportedError, match=r"batch of data of shape \(3,\)"):
            getattr(batch, verb)(uniform(2, 2))
    with pytest.raises(UnsupportedError, match="predict serves them all"):
        batch.sample_functions()
    with pytest.raises(ShapeError, match="must broadcast"):
        batch.predict(uniform(2, 4, 2))
    with pytest.raises(ShapeError, match="must broadcast"):
        batch.condition(uniform(2, 4, 2), uniform(2, 4, 1))


def test_condition_is_differentiable_in_its_points() -> None:
    """A knowledge gradient moves the points of its fantasies."""
    X, Y, noise = data(4)
    start, at = process().condition(X, Y, noise_variance=noise), uniform(2, 2, seed=8)

    def value(new: Tensor, outcome: Tensor) -> Tensor:
        posterior = start.condition(new, outcome, noise_variance=torch.full_like(outcome, 0.1)).predict(at)
        return posterior.mean.sum() + posterior.variance.sum()

    inputs = (uniform(3, 2, 2, seed=3).requires_grad_(), uniform(3, 2, 1, seed=4).requires_grad_())
    assert torch.autograd.gradcheck(value, inputs)


def test_predictions_are_differentiable_and_leave_no_gradients() -> None:
    X, Y, noise = data(6)
    own = kernel()
    prior = GaussianProcess(own, constant(), input_dim=2)
    posterior = prior.condition(X, Y, noise_variance=noise)
    at = uniform(2, 3, 2, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: (posterior.predict(x).mean, posterior.predict(x).variance), (at,))
    posterior.predict(at).mean.sum().backward()
    assert at.grad is not None and all(x.grad is None for x in own.parameters())
    assert not posterior.predict(at.detach()).mean.requires_grad
    assert all(x.requires_grad for x in own.parameters()), "the user's kernel is copied, never touched"


def test_the_users_kernel_is_copied() -> None:
    own, at = kernel(), uniform(3, 2)
    prior = GaussianProcess(own, input_dim=2)
    before = prior.predict(at).variance
    own.outputscale = 9.0
    assert torch.equal(prior.predict(at).variance, before)


@pytest.mark.parametrize(
    ("shape", "m"),
    # gpytorch's law of several outcomes does not take empty batches.
    [(shape, m) for shape in [(7,), (3, 7), (2, 3, 7), (1100,)] for m in (1, 2)] + [((3, 0, 7), 1), ((0,), 1)],
)
def test_any_batch_of_points(shape: tuple[int, ...], m: int) -> None:
    X, Y, noise = data(5, m)
    at = uniform(*shape, 2, seed=6)
    for gp in (process(output_dim=m), process(output_dim=m).condition(X, Y, noise_variance=noise)):
        predicted = gp.predict(at)
        assert predicted.mean.shape == predicted.variance.shape == (*shape, m)
        rows = gp.predict(at.reshape(-1, 1, 2))
        torch.testing.assert_close(predicted.mean, rows.mean.reshape(*shape, m), rtol=0, atol=1e-12)
        torch.testing.assert_close(predicted.variance, rows.variance.reshape(*shape, m), rtol=0, atol=1e-12)


def test_outcomes_are_independent() -> None:
    X, Y, noise = data(6, 2)
    kernels, at = (kernel(0.3), kernel(0.8, 0.5)), uniform(4, 2, seed=2)
    both = GaussianProcess(kernels, (None, constant()), input_dim=2)
    assert both.output_dim == both.num_outcomes == 2
    posterior = both.condition(X, Y, noise_variance=noise)
    predicted = posterior.predict(at)
    covariance = predicted.distribution.covariance_matrix
    assert predicted.rsample(torch.Size([3])).shape == (3, 4, 2)
    for k, mean in enumerate((None, constant())):
        one = GaussianProcess(kernels[k], mean, input_dim=2)
        one = one.condition(X, Y[:, [k]], noise_variance=noise[:, [k]]).predict(at)
        torch.testing.assert_close(predicted.mean[:, [k]], one.mean, rtol=0, atol=1e-12)
        block = covariance.reshape(2, 4, 2, 4)[k, :, k]
        torch.testing.assert_close(block, one.distribution.covariance_matrix, rtol=0, atol=1e-12)
    assert covariance.reshape(2, 4, 2, 4)[0, :, 1].abs().max() == 0


# Bad input


class Broken(Kernel):
    def forward(self, x1, x2, diag=False, **params):
        raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kernel": torch.nn.Linear(2, 2)}, DomainError, "must be a gpytorch kernel, got a Linear"),
        ({"kernel": RBFKernel(), "mean": 0.0}, DomainError, "must be a gpytorch mean, got a float"),
        ({"kernel": RBFKernel(batch_shape=torch.Size([2]))}, DomainError, r"no batch shape, got \(2,\)"),
        ({"kernel": ScaleKernel(RBFKernel(batch_shape=torch.Size([2])))}, DomainError, "no batch shape"),
        ({"kernel": RBFKernel(ard_num_dims=2), "input_dim": 1}, DomainError, "does not take 1 inputs"),
        ({"kernel": RBFKernel(ard_num_dims=3)}, DomainError, "does not take 2 inputs"),
        ({"kernel": RBFKernel(active_dims=[4])}, DomainError, "does not take 2 inputs"),
        ({"kernel": MultitaskKernel(RBFKernel(), num_tasks=2)}, DomainError, "one kernel for each outcome"),
        ({"kernel": Broken()}, DomainError, "broken"),
        ({"kernel": RBFKernel(), "mean": LinearMean(3)}, DomainError, "does not take 2 inputs"),
        ({"kernel": RBFKernel(), "mean": ConstantMean(batch_shape=torch.Size([2]))}, DomainError, "no batch shape"),
        ({"kernel": (RBFKernel(), RBFKernel()), "output_dim": 3}, DomainError, "each of 3 outcomes, got 2"),
        ({"kernel": RBFKernel(), "mean": (None, None)}, DomainError, "each of 1 outcomes, got 2"),
        ({"kernel": ScaleKernel(RBFKernel().double())}, DomainError, "one dtype"),
        ({"kernel": RBFKernel(), "trainable": ("nonsense",)}, DomainError, "nonsense"),
        ({"kernel": RBFKernel(), "train_X": torch.zeros(1, 2)}, DomainError, "use condition"),
        ({"kernel": RBFKernel(), "likelihood": likelihoods.Gaussian()}, DomainError, "known noise"),
        ({"kernel": RBFKernel(), "likelihood": likelihoods.Bernoulli()}, DomainError, "known noise"),
        ({"kernel": RBFKernel(), "input_dim": 0}, DomainError, "input_dim"),
        ({"kernel": RBFKernel(), "output_dim": 0}, DomainError, "output_dim"),
    ],
)
def test_bad_parts(options: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        GaussianProcess(**{"input_dim": 2, **options})
    with pytest.raises(TypeError):
        GaussianProcess(RBFKernel(), input_dim=1, lengthscale=1.0)


def test_bad_data() -> None:
    X, Y, noise = data()
    gp = process()
    for call in (gp.predict, gp.sample, gp.sample_tasks, gp.sample_functions()):
        with pytest.raises(ShapeError, match=r"must have shape \(..., n, 2\)"):
            call(X[:, :1])
        with pytest.raises(DomainError, match=r"float32|float64"):
            call(X.float())
        with pytest.raises(NonFiniteError):
            call(X * math.nan)
    with pytest.raises(ShapeError, match=r"Y must have shape \(..., 12, 1\)"):
        gp.condition(X, Y[1:])
    with pytest.raises(DomainError, match="noise_variance must be positive"):
        gp.condition(X, Y, noise_variance=0 * noise)


def test_numbers_without_a_solution() -> None:
    A = torch.ones(3, 3, dtype=DOUBLE)
    with pytest.raises(DomainError, match="not positive definite"):
        cholesky(A - 2 * torch.eye(3, dtype=DOUBLE), quiet=True)
    with pytest.raises(NonFiniteError, match="NaN"):
        cholesky(A * math.nan)
    X = torch.zeros(2, 2, dtype=DOUBLE)
    with pytest.warns(NumericalWarning, match="jitter"):  # the same point twice, without noise
        process().condition(X, X[:, :1])


def test_triangular_systems_broadcast() -> None:
    L = torch.linalg.cholesky(torch.eye(3, dtype=DOUBLE) + 0.2 * torch.ones(2, 3, 3, dtype=DOUBLE))
    for shape in [(3, 4), (2, 3, 4), (5, 2, 3, 4), (6, 5, 2, 3, 4), (5, 1, 3, 4), (0, 2, 3, 4)]:
        B = rnd.normal(shape, generator=rnd.generator_from(0), dtype=DOUBLE)
        expected = torch.linalg.solve_triangular(L, B, upper=False)
        torch.testing.assert_close(solve(L, B), expected, rtol=0, atol=1e-14)


def test_distinct_rows() -> None:
    X = torch.tensor([[[1.0, 2.0], [0.0, 1.0]], [[1.0, 2.0], [1.0, 1.0]]], dtype=DOUBLE)
    rows, index = distinct(X)
    assert len(rows) == 3 and torch.equal(rows[index].reshape(2, 2, 2), X)
    rows, index = distinct(X[:0])
    assert rows.shape == (0, 2) and index.shape == (0,)
