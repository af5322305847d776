"""Exact: conditioning as given, hyper-parameters as BoTorch finds them, and what it refuses."""

from __future__ import annotations

import math
import warnings

import pytest
import scipy.optimize
import scipy.stats
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.kernels.infinite_width_bnn import InfiniteWidthBNNKernel
from botorch.models.transforms import Standardize
from gpytorch.kernels import LinearKernel, MaternKernel, RBFKernel, ScaleKernel
from gpytorch.means import ConstantMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

import probnn
from probnn import random as rnd
from probnn.errors import (
    ConvergenceError,
    ConvergenceWarning,
    DomainError,
    PrecisionWarning,
    ShapeError,
    UnsupportedError,
)
from probnn.inference import Exact
from probnn.likelihoods import Bernoulli, Gaussian
from probnn.priors import GaussianProcess, GPPrior, LogNormal

DOUBLE = torch.double
# The estimate of BoTorch's default noise prior, in our coordinates.
BOTORCH_NOISE = Gaussian(noise_median=math.exp(-2.5), noise_spread=0.5)


def data(n: int = 20, d: int = 2, m: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = rnd.generator_from(seed)
    X = rnd.uniform((n, d), generator=generator, dtype=DOUBLE)
    Y = torch.sin(4 * X.sum(-1, keepdim=True) + torch.arange(m))
    Y = Y + 0.1 * rnd.normal((n, m), generator=generator, dtype=DOUBLE)
    return X, (Y - Y.mean(0)) / Y.std(0)


def rbf(d: int = 2) -> GaussianProcess:
    return GaussianProcess(ScaleKernel(RBFKernel(ard_num_dims=d)).double(), ConstantMean().double(), input_dim=d)


def hyperparameters(gp: GaussianProcess) -> Tensor:
    return torch.cat([x.flatten() for x in gp._parameters.values()])


# Against BoTorch


@pytest.mark.parametrize("m", [1, 2])
def test_posterior_of_single_task_gp_with_its_hyperparameters(m: int) -> None:
    X, Y = data(m=m)
    at = rnd.uniform((3, 5, 2), generator=rnd.generator_from(9), dtype=DOUBLE)
    kernels, means, noise = [], [], []
    for k in range(m):
        model = SingleTaskGP(X, Y[:, [k]], outcome_transform=None)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        kernels.append(model.covar_module)
        means.append(model.mean_module)
        noise.append(model.likelihood.noise.detach())
        prior = GaussianProcess(model.covar_module, model.mean_module, input_dim=2)
        ours = Exact(optimize=False).fit(prior, Gaussian(noise=noise[-1].sqrt()), X, Y[:, [k]])
        for observed in (False, True):
            a, b = model.posterior(at, observation_noise=observed), ours.predict(at, observation_noise=observed)
            torch.testing.assert_close(b.mean, a.mean, rtol=0, atol=1e-6)
            torch.testing.assert_close(b.mvn.covariance_matrix, a.mvn.covariance_matrix, rtol=0, atol=1e-6)
    both = GaussianProcess(tuple(kernels), tuple(means), input_dim=2)
    posterior = Exact(optimize=False).fit(both, Gaussian(noise=torch.cat(noise).sqrt()), X, Y)
    assert posterior.predict(at, observation_noise=True).rsample(torch.Size([2])).shape == (2, 3, 5, m)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("d", [1, 4])
def test_fit_is_that_of_single_task_gp(d: int, known: bool, seed: int) -> None:
    X, Y = data(25, d, seed=seed)
    Y, variance = 50 + 3 * Y, torch.full_like(Y, 0.2) if known else None
    model = SingleTaskGP(X, Y, variance, outcome_transform=Standardize(1))
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    fit_gpytorch_mll(mll)
    scale, standard = Y.std(), (Y - Y.mean()) / Y.std()
    noise_variance = None if variance is None else variance / scale**2
    ours = Exact().fit(GPPrior()(d, 1), BOTORCH_NOISE, X, standard, noise_variance=noise_variance)
    assert ours.info.converged and ours.info.steps > 0 and ours.info.gradients >= ours.info.steps
    # Same objective: with our hyper-parameters BoTorch's is as large (to its optimiser's tolerance).
    model.train()
    theirs = mll(model(X), model.train_targets)
    with torch.no_grad():
        model.covar_module.lengthscale = ours.kernel.lengthscale.clone()
        model.mean_module.constant = ours.mean.constant.clone()
        if not known:
            model.likelihood.noise = ours.likelihood.noise.square()
        assert abs(mll(model(X), model.train_targets) - theirs) < 1e-6
    model.eval()
    at = rnd.uniform((20, d), generator=rnd.generator_from(seed + 1), dtype=DOUBLE)
    torch.testing.assert_close(ours.predict(at).mean * scale + Y.mean(), model.posterior(at).mean, rtol=0, atol=1e-4)


def test_infinite_networks_are_kernels_too() -> None:
    X = 2 * data(15)[0] - 1
    Y = torch.tanh(3 * X.sum(-1, keepdim=True))
    prior = GaussianProcess(ScaleKernel(InfiniteWidthBNNKernel(depth=2)).double(), input_dim=2)
    posterior = Exact().fit(prior, Gaussian(), X, Y)
    assert posterior.info.log_evidence > Exact(optimize=False).fit(prior, Gaussian(noise=0.1), X, Y).info.log_evidence
    assert (posterior.predict(X).mean - Y).square().mean() < 0.1 * Y.var()
    f = posterior.sample_functions((3,), generator=rnd.generator_from(0))
    assert f(X).shape == (3, 15, 1)


# The optimum


def test_log_evidence_is_the_normal_density_at_the_optimum() -> None:
    X, Y = data(m=2)
    posterior = Exact().fit(GPPrior()(2, 2), Gaussian(levels=2), X, Y)
    expected = 0.0
    for k in range(2):
        lengthscale, constant = posterior.kernels[k].lengthscale, posterior.means[k].constant
        covariance = (-0.5 * torch.cdist(X / lengthscale, X / lengthscale).square()).exp()
        covariance = covariance + posterior.likelihood.noise[k] ** 2 * torch.eye(len(X), dtype=DOUBLE)
        law = scipy.stats.multivariate_normal([constant.item()] * len(X), covariance.numpy())
        expected += law.logpdf(Y[:, k].numpy())
    assert posterior.info.log_evidence == pytest.approx(expected, abs=1e-6)
    assert posterior.info.log_evidence == pytest.approx(posterior.log_evidence.item(), abs=1e-12)


@pytest.mark.parametrize("levels", [1, 2])
def test_noise_is_the_map_of_its_prior(levels: int) -> None:
    """A kernel without variance leaves noise alone: its log density in log sigma has one maximum a level."""
    X, Y = data(30, m=2)
    Y = Y * torch.tensor([1.0, 3.0], dtype=DOUBLE)
    kernel = ScaleKernel(RBFKernel()).double()
    kernel.outputscale = 1e-12
    kernel.requires_grad_(False)
    likelihood = Gaussian(noise_median=0.5, noise_spread=0.3, levels=levels)
    posterior = Exact().fit(GaussianProcess(kernel, input_dim=2, output_dim=2), likelihood, X, Y)
    groups = [Y] if levels == 1 else [Y[:, :1], Y[:, 1:]]
    assert posterior.likelihood.noise.shape == (levels,) and posterior.likelihood.num_parameters == 0
    for k, y in enumerate(groups):
        square, n = y.square().sum().item(), y.numel()

        def loss(u: float, square: float = square, n: int = n) -> float:
            return n * u + 0.5 * square * math.exp(-2 * u) + 0.5 * ((u - math.log(0.5)) / 0.3) ** 2

        best = scipy.optimize.minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-10}).x
        assert posterior.likelihood.noise[k].log().item() == pytest.approx(best, abs=1e-4)


def test_only_what_requires_gradients_is_optimised() -> None:
    X, Y = data()
    kernel = ScaleKernel(RBFKernel()).double()
    kernel.base_kernel.lengthscale = 0.123
    kernel.base_kernel.raw_lengthscale.requires_grad_(False)
    prior = GaussianProcess(kernel, input_dim=2)
    assert prior.trainable == ("0.kernel.raw_outputscale",)
    posterior = Exact().fit(prior, Gaussian(), X, Y)
    assert posterior.kernel.base_kernel.lengthscale.item() == pytest.approx(0.123, abs=1e-7)
    assert posterior.kernel.outputscale != kernel.outputscale and posterior.trainable == prior.trainable
    assert not any(x.requires_grad for x in posterior.kernel.parameters())
    assert torch.equal(kernel.outputscale, torch.nn.functional.softplus(torch.zeros((), dtype=DOUBLE)))


def test_registered_priors_take_part() -> None:
    """A prior that is a needle holds its hyper-parameter where it is."""
    X, Y = data()
    from gpytorch.priors import LogNormalPrior

    kernel = RBFKernel(lengthscale_prior=LogNormalPrior(math.log(0.7), 1e-3)).double()
    posterior = Exact().fit(GaussianProcess(kernel, input_dim=2), Gaussian(), X, Y)
    assert posterior.kernel.lengthscale.item() == pytest.approx(0.7, abs=1e-2)
    free = Exact().fit(GaussianProcess(RBFKernel().double(), input_dim=2), Gaussian(), X, Y)
    assert abs(free.kernel.lengthscale.item() - 0.7) > 0.05
    assert free.info.log_evidence > posterior.info.log_evidence


def test_bounds_without_a_transform_hold() -> None:
    X, Y = data(12)
    posterior = Exact().fit(
        GPPrior()(2, 1), Gaussian(), X, rnd.normal((12, 1), generator=rnd.generator_from(0), dtype=DOUBLE)
    )
    assert posterior.kernel.lengthscale.min() >= 0.025 - 1e-9 and posterior.info.converged


def test_restarts_find_the_better_optimum() -> None:
    """From a length scale too long, one search ends where everything is noise."""
    X = torch.linspace(0, 1, 40, dtype=DOUBLE).unsqueeze(-1)
    Y = torch.sin(40 * X)
    kernel = RBFKernel().double()
    kernel.lengthscale = 0.3
    prior, likelihood = GaussianProcess(kernel, input_dim=1), Gaussian(noise_spread=3.0)
    one, several = Exact().fit(prior, likelihood, X, Y), Exact(restarts=8).fit(prior, likelihood, X, Y)
    assert one.likelihood.noise > 0.5 and several.likelihood.noise < 0.1
    assert several.info.trace["loss"].min() < one.info.trace["loss"].min() - 1
    assert (several.predict(X).mean - Y).abs().max() < 0.1
    again = Exact(restarts=8).fit(prior, likelihood, X, Y)
    assert torch.equal(hyperparameters(again), hyperparameters(several))


def test_exact_data_leave_a_little_noise() -> None:
    """No jitter, no warning, where the likelihood would have no noise at all."""
    X = torch.linspace(0, 1, 100, dtype=DOUBLE).unsqueeze(-1)
    posterior = Exact().fit(GPPrior()(1, 1), Gaussian(), X, torch.sin(6 * X))
    assert posterior.likelihood.noise.item() == pytest.approx(1e-4) and posterior.info.converged
    assert (posterior.predict(X).mean - torch.sin(6 * X)).abs().max() < 1e-3


def test_known_noise_replaces_the_inferred_one() -> None:
    X, Y = data()
    variance = 0.01 + 0.1 * Y.square()
    posterior = Exact().fit(rbf(), Gaussian(), X, Y, noise_variance=variance)
    assert torch.equal(posterior.noise_variance, variance)
    assert posterior.likelihood.noise.item() == pytest.approx(variance.mean().sqrt().item())
    assert "noise" not in posterior.info.trace and posterior.info.trace["loss"].isfinite().all()


# As given


def test_keeping_everything_is_conditioning() -> None:
    X, Y = data()
    prior = rbf()
    posterior = Exact(optimize=False).fit(prior, Gaussian(noise=0.3), X, Y)
    direct = prior.condition(X, Y, noise_variance=torch.full_like(Y, 0.09))
    assert torch.equal(posterior.predict(X).mean, direct.predict(X).mean)
    assert posterior.info.log_evidence == direct.log_evidence.item() and posterior.info.steps == 0
    assert posterior.prior.train_X is None and torch.equal(posterior.prior.predict(X).mean, prior.predict(X).mean)
    assert isinstance(posterior.likelihood, Gaussian) and posterior.prior.likelihood is None and prior.prior is None


def test_a_posterior_is_a_prior() -> None:
    X, Y = data()
    exact, likelihood = Exact(optimize=False), Gaussian(noise=0.3)
    first = exact.fit(rbf(), likelihood, X[:9], Y[:9])
    second, once = exact.fit(first, likelihood, X[9:], Y[9:]), exact.fit(rbf(), likelihood, X, Y)
    torch.testing.assert_close(second.predict(X).mean, once.predict(X).mean, rtol=0, atol=1e-8)
    assert first.info.log_evidence + second.info.log_evidence == pytest.approx(once.info.log_evidence, abs=1e-8)
    with pytest.raises(UnsupportedError, match="already conditioned"):
        Exact().fit(first, likelihood, X, Y)


def test_no_data_give_the_prior() -> None:
    X, Y = data()
    for method, likelihood, noise in ((Exact(), Gaussian(), 0.1), (Exact(optimize=False), Gaussian(noise=0.3), 0.3)):
        posterior = method.fit(rbf(), likelihood, X[:0], Y[:0])
        a, b = rbf().predict(X), posterior.predict(X)
        assert torch.equal(a.mean, b.mean) and torch.equal(a.variance, b.variance)
        added = posterior.predict(X, observation_noise=True).variance - b.variance
        torch.testing.assert_close(added, torch.full_like(added, noise**2), rtol=0, atol=1e-12)
        assert posterior.info.log_evidence == 0 and posterior.likelihood.num_parameters == 0
        grown = posterior.condition(X, Y)
        torch.testing.assert_close(grown.noise_variance, torch.full_like(Y, noise**2))


def test_warm_start() -> None:
    X, Y = data(30)
    first = Exact().fit(rbf(), Gaussian(), X, Y)
    warm = Exact().fit(rbf(), Gaussian(), X, Y, init=first)
    assert warm.info.steps < first.info.steps
    torch.testing.assert_close(hyperparameters(warm), hyperparameters(first), rtol=1e-2, atol=1e-2)
    with pytest.raises(ShapeError, match="init must have the prior's parameters"):
        Exact().fit(GPPrior()(2, 1), Gaussian(), X, Y, init=first)
    with pytest.raises(DomainError, match="init must be a GaussianProcess, got a BayesianNetwork"):
        network = probnn.BayesianNetwork(probnn.MLP(input_dim=2, hidden=()), probnn.priors.NormalWeights())
        Exact().fit(rbf(), Gaussian(), X, Y, init=network)


# Conduct


def test_fits_repeat_and_leave_no_trace() -> None:
    X, Y = data()
    state, filters = torch.get_rng_state(), list(warnings.filters)
    fits = [Exact(restarts=1).fit(rbf(), Gaussian(), X, Y, seed=seed, progress=seed == 7) for seed in (3, 3, 7)]
    assert torch.equal(torch.get_rng_state(), state) and warnings.filters == filters
    assert torch.equal(hyperparameters(fits[0]), hyperparameters(fits[1]))
    assert torch.equal(fits[0].predict(X).mean, fits[1].predict(X).mean)


def test_callback_sees_every_step_and_stops() -> None:
    X, Y = data()
    seen: list[int] = []

    def stop(step: int, total: int, state: object) -> bool:
        assert step <= total == 2000
        seen.append(step)
        return step == 3

    posterior = Exact(restarts=2).fit(rbf(), Gaussian(), X, Y, callback=lambda *a: seen.append(a[0]))
    assert posterior.info.steps == len(seen) > 6 and posterior.info.converged
    seen.clear()
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        stopped = Exact(restarts=2).fit(rbf(), Gaussian(), X, Y, callback=stop)
    assert seen == [1, 2, 3] and not stopped.info.converged and stopped.predict(X).mean.isfinite().all()


def test_a_limit_of_steps_warns() -> None:
    X, Y = data()
    with pytest.warns(ConvergenceWarning, match="restarts=4"):
        posterior = Exact(max_steps=2).fit(rbf(), Gaussian(), X, Y)
    assert posterior.info.steps == 2 and not posterior.info.converged and len(posterior.info.warnings) == 1


def test_single_precision_warns_and_searches_in_double() -> None:
    X, Y = data()
    double = Exact().fit(rbf(), Gaussian(), X, Y)
    with pytest.warns(PrecisionWarning):
        single = Exact().fit(rbf(), Gaussian(), X.float(), Y.float())
    assert single.dtype == single.factor.dtype == single.likelihood.noise.dtype == torch.float32
    torch.testing.assert_close(hyperparameters(single).double(), hyperparameters(double), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(single.predict(X.float()).mean.double(), double.predict(X).mean, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "prior", "likelihood", "error", "words"),
    [
        (Exact(optimize=False), rbf(), Gaussian(), UnsupportedError, r"Gaussian\(noise=...\).*optimize=True"),
        (Exact(), rbf(), Bernoulli(), UnsupportedError, "must be probnn.likelihoods.Gaussian, got Bernoulli"),
        (Exact(), rbf(), Gaussian(levels=3), ShapeError, r"must have 1 noise level \(levels\) for 1 outcome, got 3"),
        (
            Exact(),
            GaussianProcess(RBFKernel().double(), input_dim=2, hyperprior={"lengthscale": LogNormal()}),
            Gaussian(),
            UnsupportedError,
            "leave it out",
        ),
        (
            Exact(),
            probnn.BayesianNetwork(probnn.MLP(input_dim=2, hidden=()), probnn.priors.NormalWeights()),
            Gaussian(),
            UnsupportedError,
            "probnn.GaussianProcess, got a BayesianNetwork",
        ),
    ],
)
def test_refusals(method, prior, likelihood, error: type, words: str) -> None:
    X, Y = data()
    Y = (Y > 0).double() if isinstance(likelihood, Bernoulli) else Y
    for n in (0, len(X)):
        with pytest.raises(error, match=words):
            method.fit(prior, likelihood, X[:n], Y[:n])


def test_batches_of_processes_are_refused() -> None:
    X, Y = data(6)
    batch = rbf().condition(X.expand(2, 6, 2), Y.expand(2, 6, 1), noise_variance=torch.ones_like(Y).expand(2, 6, 1))
    with pytest.raises(UnsupportedError, match="batch of data"):
        Exact(optimize=False).fit(batch, Gaussian(noise=0.1), X, Y)


def test_a_kernel_that_gives_no_number_is_an_error() -> None:
    class Nowhere(LinearKernel):
        def forward(self, x1, x2, diag=False, **params):
            return super().forward(x1, x2, diag=diag, **params) * (math.nan if x1.shape[-2] > 2 else 1.0)

    X, Y = data(6)
    with pytest.raises(ConvergenceError, match="not finite at any start"):
        Exact().fit(GaussianProcess(Nowhere().double(), input_dim=2), Gaussian(), X, Y)


@pytest.mark.parametrize("options", [{"optimize": 1}, {"restarts": -1}, {"restarts": 0.5}, {"max_steps": 0}])
def test_settings_are_checked(options: dict) -> None:
    with pytest.raises(DomainError, match=next(iter(options))):
        Exact(**options)


@pytest.mark.parametrize("kernel", ["rbf", "matern52"])
def test_default_prior(kernel: str) -> None:
    gp = GPPrior(kernel)(3, 2)
    assert gp.output_dim == 2 and len(gp.kernels) == 2 and gp.kernels[0] is not gp.kernels[1]
    assert isinstance(gp.kernels[0], RBFKernel if kernel == "rbf" else MaternKernel)
    assert gp.kernels[0].lengthscale.shape == (1, 3) and gp == gp and GPPrior(kernel) == GPPrior(kernel)
    with pytest.raises(DomainError, match="'rbf', 'matern52'"):
        GPPrior("cubic")
    with pytest.raises(DomainError, match="input_dim"):
        GPPrior()(0, 1)
