"""What the benchmark `uci` fits and how it scores: splits, methods, and scores of mixtures of normals."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize
import torch
from torch import Tensor

import probnn
from probnn import diagnostics, likelihoods, priors
from probnn import random as rnd

NETS = {"2x50": (50, 50), "1x100": (100,)}
GP = "gp"
SCREENING_ROWS, POLISHED, MOST_GP_ROWS = 500, 3, 2000
_LOG_2PI = math.log(2 * math.pi)
# Of the logarithms of length scales, of the scale of the function and of the noise, such that covariances keep a
# Cholesky factor in double precision.
_LENGTHS, _SCALE, _NOISE = (math.log(0.05), math.log(1e3)), (math.log(0.01), math.log(30)), (math.log(2e-3), 1.0)


@dataclass(frozen=True)
class Settings:
    """How much is spent on a fit; :meth:`tiny` is for tests."""

    num_chains: int = 4
    num_warmup: int = 100
    num_samples: int = 50
    max_leapfrog: int = 24
    start_steps: int = 20
    members: int = 8
    ensemble_steps: int = 400
    auto_steps: int = 60
    energy_steps: int = 150
    shrinkage: float = 0.001
    measured: int = 100
    gp_starts: int = 10
    exact_rows: int = 5000
    sghmc_warmup: int = 5000
    sghmc_every: int = 400
    hidden: dict[str, tuple[int, ...]] | None = None

    @classmethod
    def tiny(cls) -> Settings:
        """Everything runs and nothing is good."""
        return cls(2, 4, 4, 4, 5, 2, 8, 2, 2, 0.0, 8, 2, 5000, 4, 2, {"small": (4,)})

    @property
    def nets(self) -> dict[str, tuple[int, ...]]:
        """Hidden widths by the name of the network."""
        return NETS if self.hidden is None else self.hidden


@dataclass(frozen=True)
class Split:
    """One split: inputs and training outcomes z-scored by the training rows, test outcomes as they are.

    Args:
        X: Training inputs ``n x d``.
        Y: Training outcomes ``n x 1``.
        test_X: Test inputs, in the units of X.
        test_y: Test outcomes ``t``, in their own unit.
        mean: Mean of the training outcomes in their own unit.
        scale: Their standard deviation.
    """

    X: Tensor
    Y: Tensor
    test_X: Tensor
    test_y: Tensor
    mean: float
    scale: float

    @classmethod
    def of(cls, X: Tensor, y: Tensor, test: list[int]) -> Split:
        """The split with these test rows; a feature that is constant over the training rows is centred only."""
        chosen = torch.zeros(len(X), dtype=torch.bool)
        chosen[test] = True
        train_X, train_y = X[~chosen], y[~chosen]
        spread = train_X.std(0)
        spread = torch.where(train_X.amax(0) == train_X.amin(0), 1.0, spread)
        Z = (X - train_X.mean(0)) / spread
        mean, scale = train_y.mean().item(), train_y.std().item()
        return cls(Z[~chosen], ((train_y - mean) / scale).unsqueeze(-1), Z[chosen], y[chosen], mean, scale)


def load(folder: Path) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Inputs ``n x d``, outcomes ``n`` and the test rows of every split."""
    with np.load(folder / "data.npz") as data:
        X, y = (torch.from_numpy(data[name]).double() for name in ("X", "y"))
    lines = (folder / "test_splits.txt").read_text(encoding="utf-8").splitlines()
    return X, y.reshape(-1), [[int(row) for row in line.split()] for line in lines if line.strip()]


def score(y: Tensor, means: Tensor, stds: Tensor) -> dict[str, float]:
    r"""Scores of the mixtures :math:`\frac1S \sum_s N(m_{si}, \sigma_{si}^2)` of every test row.

    ``rmse`` of the mixtures' means; ``nll``: of the normal with the mixture's mean and variance, the paper's; and
    ``nll_mixture``: of the mixture; ``crps``: in closed form (Grimit, Gneiting, Berrocal and Johnson 2006);
    ``coverage``: share of outcomes between the 5 and the 95 per cent points of their mixture.

    Args:
        y: Outcomes ``t``.
        means: ``S x t``.
        stds: ``S x t``.
    """
    mean = means.mean(0)
    variance = (means - mean).square().mean(0) + stds.square().mean(0)
    standardised = (y - means) / stds
    log_density = -0.5 * standardised.square() - stds.log() - 0.5 * _LOG_2PI
    cdf = torch.special.ndtr(standardised).mean(0)
    crps = [
        _absolute(y_ - m, s).mean() - 0.5 * _absolute(m - m[:, None], (s.square() + s[:, None].square()).sqrt()).mean()
        for y_, m, s in zip(y, means.T, stds.T, strict=True)
    ]
    return {
        "rmse": (mean - y).square().mean().sqrt().item(),
        "nll": (0.5 * ((y - mean).square() / variance + variance.log() + _LOG_2PI)).mean().item(),
        "nll_mixture": (math.log(len(means)) - log_density.logsumexp(0)).mean().item(),
        "crps": torch.stack(crps).mean().item(),
        "coverage": ((cdf >= 0.05) & (cdf <= 0.95)).double().mean().item(),
    }


def _absolute(mean: Tensor, std: Tensor) -> Tensor:
    """E|z| of a normal z."""
    t = mean / std
    return 2 * std * torch.exp(-0.5 * t.square() - 0.5 * _LOG_2PI) + mean * (2 * torch.special.ndtr(t) - 1)


def predictions(posterior: Any, split: Split) -> tuple[Tensor, Tensor]:
    """Means and standard deviations ``S x t`` of the outcomes under every draw, in their own unit."""
    law = posterior.predict(split.test_X, observation_noise=True)
    if hasattr(law, "values"):
        means, stds = law.values.squeeze(-1), law.noise_std.expand_as(law.values).squeeze(-1)
    else:
        means, stds = law.mean.mT, law.variance.sqrt().mT
    return split.mean + split.scale * means, split.scale * stds


def target(input_dim: int) -> probnn.GaussianProcess:
    """The paper's process to look like: RBF, with a length scale for every input and hyper-parameters of its own for
    every function, of medians sqrt(2 d) and exp(.1), the variance of their logarithms one."""
    from gpytorch.kernels import RBFKernel, ScaleKernel

    kernel = ScaleKernel(RBFKernel(ard_num_dims=input_dim)).double()
    hyperprior = {
        "base_kernel.lengthscale": priors.LogNormal(0.5 * math.log(2 * input_dim), 1.0),
        "outputscale": priors.LogNormal(0.1, 1.0),
    }
    return probnn.GaussianProcess(kernel, input_dim=input_dim, hyperprior=hyperprior)


def network(split: Split, hidden: tuple[int, ...], weights: priors.WeightPrior) -> probnn.BayesianNetwork:
    """A network of tanh units."""
    net = probnn.MLP(input_dim=split.X.shape[-1], hidden=hidden, activation="tanh")
    return probnn.BayesianNetwork(net, weights, dtype=torch.double)


def matched(
    start: probnn.BayesianNetwork, split: Split, seed: int, settings: Settings, objective: str, **options: Any
) -> probnn.BayesianNetwork:
    """The prior of which functions look like those of :func:`target` at training inputs and in the data's box."""
    rows = torch.cat([split.X, split.test_X])
    box = torch.stack([rows.amin(0), rows.amax(0)])
    measurement = priors.TrainingInputs(split.X, bounds=box, size=settings.measured, fraction=0.7)
    return probnn.match_prior(start, target(start.input_dim), measurement, objective, seed=seed, **options).prior


Fit = Callable[[Split, tuple[int, ...], int, Settings], tuple[Any, dict[str, float]]]


def _fixed(split: Split, hidden: tuple[int, ...], seed: int, settings: Settings) -> tuple[Any, dict[str, float]]:
    return sampled(network(split, hidden, priors.NormalWeights(1.0, 1.0)), split, seed, settings)


def _matched(split: Split, hidden: tuple[int, ...], seed: int, settings: Settings) -> tuple[Any, dict[str, float]]:
    start = network(split, hidden, priors.NormalWeights(1.0, 1.0))
    options = {"num_steps": settings.auto_steps, "shrinkage": settings.shrinkage}
    return sampled(matched(start, split, seed, settings, "auto", **options), split, seed, settings)


def _hierarchical(split: Split, hidden: tuple[int, ...], seed: int, settings: Settings) -> tuple[Any, dict[str, float]]:
    start = network(split, hidden, priors.InverseGammaWeights())
    options = {"num_steps": settings.energy_steps, "shrinkage": settings.shrinkage}
    return sampled(matched(start, split, seed, settings, "energy", **options), split, seed, settings)


def sampled(prior: probnn.BayesianNetwork, split: Split, seed: int, settings: Settings) -> tuple[Any, dict[str, float]]:
    """HMC with an inferred noise, and R-hat of the function at the test inputs and of the noise.

    Of more rows than gradients of all of them can be afforded: SGHMC, by minibatches.
    """
    method: probnn.InferenceMethod = probnn.HMC(
        num_chains=settings.num_chains,
        num_warmup=settings.num_warmup,
        num_samples=settings.num_samples,
        max_leapfrog=settings.max_leapfrog,
        start_steps=settings.start_steps,
        collapse_last_layer=True,
    )
    if len(split.X) > settings.exact_rows:
        method = probnn.SGHMC(
            num_chains=settings.num_chains,
            num_warmup=settings.sghmc_warmup,
            num_samples=settings.num_samples,
            keep_every=settings.sghmc_every,
            batch_size=min(256, len(split.X) - 1),
        )
    posterior: Any = method.fit(prior, likelihoods.Gaussian(), split.X, split.Y, seed=seed)
    f = posterior.predict(split.test_X).values.reshape(*posterior.theta.shape[:2], -1)
    return posterior, {
        "rhat": torch.nan_to_num(diagnostics.rhat(f), nan=math.inf).max().item(),
        "rhat_noise": torch.nan_to_num(diagnostics.rhat(posterior.psi), nan=math.inf).max().item(),
        "converged": float(posterior.info.converged is True),
        "noise": split.scale * posterior.psi.exp().mean().item(),
    }


def _ensemble(split: Split, hidden: tuple[int, ...], seed: int, settings: Settings) -> tuple[Any, dict[str, float]]:
    prior = network(split, hidden, priors.NormalWeights(1.0, 1.0))
    method = probnn.DeepEnsemble(size=settings.members, steps=settings.ensemble_steps)
    posterior: Any = method.fit(prior, likelihoods.Gaussian(), split.X, split.Y, seed=seed)
    return posterior, {"noise": split.scale * posterior.psi.exp().mean().item()}


def _gp(split: Split, hidden: tuple[int, ...], seed: int, settings: Settings) -> tuple[Any, dict[str, float]]:
    from gpytorch.kernels import RBFKernel, ScaleKernel

    X, Y = split.X, split.Y
    if len(X) > MOST_GP_ROWS:
        rows = rnd.uniform((len(X),), generator=rnd.generator_from(seed)).argsort()[:MOST_GP_ROWS]
        X, Y = X[rows], Y[rows]
    log = most_likely(X, Y, settings.gp_starts, seed)
    kernel = ScaleKernel(RBFKernel(ard_num_dims=X.shape[-1])).double()
    kernel.base_kernel.lengthscale, kernel.outputscale = log[:-2].exp(), (2 * log[-2]).exp()
    prior = probnn.GaussianProcess(kernel, input_dim=X.shape[-1])
    noise = log[-1].exp().item()
    posterior = probnn.Exact(optimize=False).fit(prior, likelihoods.Gaussian(noise=noise), X, Y)
    return posterior, {"noise": split.scale * noise}


def most_likely(X: Tensor, Y: Tensor, num_starts: int, seed: int) -> Tensor:
    """Logarithms of length scales, scale and noise of a process of mean zero, by maximum likelihood (MLE-II).

    The starts are climbed on at most 500 of the rows; the three that end highest there, on all rows.
    """
    g = rnd.generator_from(seed)
    some = rnd.uniform((len(X),), generator=g).argsort()[:SCREENING_ROWS]
    d = X.shape[-1]
    centre = torch.tensor([0.5 * math.log(d)] * d + [0.0, math.log(0.2)], dtype=torch.double)
    starts = [centre + (i > 0) * rnd.normal((d + 2,), generator=g, like=centre) for i in range(num_starts)]
    screened = sorted((_climb(X[some], Y[some], start) for start in starts), key=lambda found: found[0])
    return min((_climb(X, Y, start) for _, start in screened[:POLISHED]), key=lambda found: found[0])[1]


def _climb(X: Tensor, Y: Tensor, start: Tensor) -> tuple[float, Tensor]:
    bounds = [_LENGTHS] * (len(start) - 2) + [_SCALE, _NOISE]
    x0 = np.clip(start.numpy(), *np.array(bounds).T)
    loss = partial(negative_evidence, X.numpy(), Y.numpy()[:, 0])
    found = scipy.optimize.minimize(loss, x0, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 200})
    return float(found.fun), torch.from_numpy(found.x)


def negative_evidence(X: np.ndarray, y: np.ndarray, log: np.ndarray) -> tuple[float, np.ndarray]:
    r"""Negative log marginal likelihood of an ARD RBF process and its gradient, one factorisation and one inverse.

    With :math:`A = K + \sigma^2 I`, :math:`\alpha = A^{-1} y` and :math:`G = (A^{-1} - \alpha\alpha^\top) \circ K` the
    derivative by :math:`\log \ell_k` is :math:`\frac12 \sum_{ij} G_{ij} (x_{ik} - x_{jk})^2 / \ell_k^2`, which expands
    to products of G with X.
    """
    n, noise = len(y), math.exp(2 * log[-1])
    Z = X / np.exp(log[:-2])
    squares = (Z * Z).sum(1)
    K = np.exp(2 * log[-2] - 0.5 * np.maximum(squares[:, None] + squares - 2 * Z @ Z.T, 0.0))
    L = np.linalg.cholesky(K + noise * np.eye(n))
    alpha = scipy.linalg.cho_solve((L, True), y, check_finite=False)
    inverse, _ = scipy.linalg.lapack.dpotri(L, lower=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    value = 0.5 * y @ alpha + np.log(np.diag(L)).sum() + 0.5 * n * _LOG_2PI
    inverse -= np.outer(alpha, alpha)
    trace = np.trace(inverse)
    G = inverse * K
    by_length = (G.sum(1) @ (Z * Z)) - np.einsum("ik,ik->k", Z, G @ Z)
    return float(value), np.concatenate([by_length, [G.sum(), noise * trace]])


METHODS: dict[str, Fit] = {
    "fixed": _fixed,
    "matched": _matched,
    "matched hierarchical": _hierarchical,
    "ensemble": _ensemble,
    GP: _gp,
}


def run(split: Split, method: str, net: str, seed: int, settings: Settings) -> dict[str, float]:
    """Fit and score one method on one split; CPU seconds are those of matching, fit and scores."""
    torch.set_num_threads(1)
    hidden = settings.nets.get(net, ())
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # R-hat and convergence are columns of the table
        posterior, facts = METHODS[method](split, hidden, seed, settings)
        found = score(split.test_y, *predictions(posterior, split))
    return {**found, "cpu_s": time.process_time() - started, **facts}
