"""Simulation-based calibration: exact samplers pass, wrong ones do not, whatever road the draws take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from probnn import random as rnd
from probnn.diagnostics import SBCResult, sbc, uniformity_test
from probnn.errors import DomainError, NonFiniteError, ShapeError, UnsupportedError
from probnn.likelihoods import Gaussian, Poisson
from probnn.networks import Block, Layout
from probnn.process import EmpiricalProcess, ParametricProcess, StochasticProcess

FAULT = 1e-6  # an error of five standard deviations is as likely


@dataclass(frozen=True, eq=False)
class Plane(ParametricProcess):
    """f(x) = theta . x with theta ~ N(0, 1)."""

    input_dim: int = 2
    dtype: torch.dtype = torch.float64
    device: torch.device = torch.device("cpu")
    output_dim = 1

    @property
    def layout(self) -> Layout:
        return Layout((Block("slope", (self.input_dim,)),))

    def _sample_parameters(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        return rnd.normal((*shape, self.input_dim), generator=generator, dtype=self.dtype)

    def _apply(self, theta: Tensor, X: Tensor) -> Tensor:
        return X @ theta.unsqueeze(-1)


@dataclass(frozen=True, eq=False)
class Functions(StochasticProcess):
    """A posterior that gives functions only, as a Gaussian process does."""

    theta_of: Callable[[torch.Size, torch.Generator | None], Tensor]
    likelihood: Gaussian
    input_dim: int = 2
    output_dim: int = 1
    dtype: torch.dtype = torch.float64
    device: torch.device = torch.device("cpu")

    def _sample_functions(self, shape: torch.Size, generator: torch.Generator | None) -> Callable[[Tensor], Tensor]:
        theta = self.theta_of(shape, generator)
        return lambda X: X @ theta.unsqueeze(-1)


def conjugate(X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and a square root of the covariance of theta; Y ... x n x 1, variance ... x n x 1."""
    scaled = X / variance
    precision = torch.eye(X.shape[-1], dtype=X.dtype) + X.mT @ scaled
    root = torch.linalg.cholesky(torch.linalg.inv(precision))
    return (root @ (root.mT @ (scaled.mT @ Y))).squeeze(-1), root


def log_evidence(X: Tensor, Y: Tensor, log_noise: Tensor) -> Tensor:
    """Of Y ... x n x 1 at each of G log noises: ... x G."""
    covariance = torch.eye(len(X), dtype=X.dtype) * (2 * log_noise).exp()[:, None, None] + X @ X.mT
    law = torch.distributions.MultivariateNormal(torch.zeros(len(X), dtype=X.dtype), covariance, validate_args=False)
    return law.log_prob(Y.mT)


def posterior_draws(
    likelihood: Gaussian, X: Tensor, Y: Tensor, known: Tensor | None, shape: tuple[int, ...], seed: int
) -> tuple[Tensor, Tensor]:
    """Exact draws of theta and psi for Y ... x n x 1: ... x shape x (2 and P_psi)."""
    generator = rnd.generator_from(seed)
    lead = Y.shape[:-2]
    size = (*lead, *shape)
    Y = Y.reshape(*lead, *(1,) * len(shape), *Y.shape[-2:])
    if known is None and likelihood.num_parameters:
        # One dimension: tabulate the log posterior of psi finely and invert its distribution function.
        grid = torch.linspace(-6.0, 4.0, 2001, dtype=X.dtype)
        table = (log_evidence(X, Y.reshape(*lead, len(X), 1), grid) + likelihood.log_prior(grid[:, None])).softmax(-1)
        table = table.cumsum(-1)
        u = rnd.uniform((*lead, math.prod(shape)), generator=generator, dtype=X.dtype)
        cell = torch.searchsorted(table, u).clamp_max(len(grid) - 1)
        jitter = (rnd.uniform(cell.shape, generator=generator, dtype=X.dtype) - 0.5) * (grid[1] - grid[0])
        psi = (grid[cell] + jitter).reshape(*size, 1)
        variance = (2 * psi).exp().unsqueeze(-1).expand(*size, len(X), 1)
    else:
        psi = X.new_zeros(*size, 0)
        variance = known if known is not None else X.new_full((len(X), 1), likelihood.noise**2)
    mean, root = conjugate(X, Y.expand(*size, len(X), 1), variance)
    noise = rnd.normal((*size, X.shape[-1]), generator=generator, dtype=X.dtype)
    return mean + (root @ noise.unsqueeze(-1)).squeeze(-1), psi


@dataclass(frozen=True)
class Batched:
    """Exact, or wrong as told: draws scaled about their mean, moved, or of the prior (blind)."""

    width: float = 1.0
    shift: float = 0.0
    blind: bool = False
    psi_shift: float = 0.0
    chains: int = 4
    length: int = 50

    def fit_batch(self, prior, likelihood, X, Y, *, noise_variance=None, seed=0):
        assert Y.ndim == 4 and Y.shape[1] == 1
        shape = (self.chains, self.length)
        theta, psi = posterior_draws(likelihood, X, Y[:, 0], noise_variance, shape, seed)
        if self.blind:
            theta = prior.sample_parameters((len(Y), *shape), generator=rnd.generator_from(seed + 1))
        centre = theta.mean((1, 2), keepdim=True)
        return centre + self.width * (theta - centre) + self.shift, psi + self.psi_shift


@dataclass(frozen=True)
class OneByOne:
    """The same as a method without the hook, returning the kind of posterior asked for."""

    kind: str
    width: float = 1.0

    def fit(self, prior, likelihood, X, Y, *, noise_variance=None, seed=0):
        def draw(shape, generator):
            child = int(rnd.integers(2**62, (), generator=generator))
            theta, psi = posterior_draws(likelihood, X, Y, noise_variance, tuple(shape), child)
            return theta.mean(0) + self.width * (theta - theta.mean(0)), psi

        if self.kind == "functions":
            return Functions(lambda shape, generator: draw(shape, generator)[0], likelihood)
        theta, psi = draw((200,), rnd.generator_from(seed))
        return EmpiricalProcess(prior, theta.reshape(2, 100, -1), psi.reshape(2, 100, -1), likelihood)


X = torch.tensor([[1.0, 0.2], [-0.5, 1.0], [0.3, -0.8]], dtype=torch.float64)
X_TEST = torch.tensor([[0.5, 0.5], [1.0, -1.0]], dtype=torch.float64)
FIXED = Gaussian(noise=0.5)
INFERRED = Gaussian(noise=None, noise_median=0.5, noise_spread=0.7)
KNOWN = torch.tensor([[0.01], [0.3], [4.0]], dtype=torch.float64)


@pytest.mark.parametrize("likelihood", [FIXED, INFERRED], ids=["fixed noise", "inferred noise"])
def test_exact_posterior_passes(likelihood: Gaussian, seed: int) -> None:
    result = sbc(Plane(), likelihood, Batched(), X, X_TEST, num_replications=500, seed=seed)
    shapes = {"f": (500, 2, 1), "log_likelihood": (500,)} | ({"psi": (500, 1)} if likelihood.num_parameters else {})
    assert {name: tuple(ranks.shape) for name, ranks in result.ranks.items()} == shapes
    assert result.p_value() > FAULT
    assert all(ranks.min() >= 0 and ranks.max() <= 99 for ranks in result.ranks.values())


def test_known_noise_passes_and_is_used(seed: int) -> None:
    right = sbc(Plane(), INFERRED, Batched(), X, X_TEST, num_replications=500, noise_variance=KNOWN, seed=seed)
    assert set(right.ranks) == {"f", "log_likelihood"}
    assert right.p_value() > FAULT

    class Deaf(Batched):
        def fit_batch(self, prior, likelihood, X, Y, *, noise_variance=None, seed=0):
            return super().fit_batch(
                prior, likelihood, X, Y, noise_variance=noise_variance.mean().expand(3, 1), seed=seed
            )

    wrong = sbc(Plane(), INFERRED, Deaf(), X, X_TEST, num_replications=500, noise_variance=KNOWN, seed=seed)
    assert wrong.p_value() < FAULT


@pytest.mark.parametrize("kind", ["draws", "functions"])
def test_methods_without_the_hook(kind: str, seed: int) -> None:
    right = sbc(Plane(), FIXED, OneByOne(kind), X, X_TEST, num_replications=200, seed=seed)
    assert right.p_value() > FAULT
    wrong = sbc(Plane(), FIXED, OneByOne(kind, width=0.4), X, X_TEST, num_replications=200, seed=seed)
    assert wrong.p_value() < FAULT


@pytest.mark.parametrize(
    ("fault", "seen_by", "shape"),
    [
        ({"width": 0.6}, "f", "U"),
        ({"width": 1.7}, "f", "hump"),
        ({"shift": 0.5}, "f", "low"),
        ({"psi_shift": 0.5}, "psi", "low"),
    ],
    ids=["too narrow", "too wide", "shifted", "noise too large"],
)
def test_wrong_posteriors_are_found(fault: dict, seen_by: str, shape: str, seed: int) -> None:
    result = sbc(Plane(), INFERRED, Batched(**fault), X, X_TEST, num_replications=500, seed=seed)
    assert result.p_value() < FAULT
    ranks = result.ranks[seen_by].reshape(500, -1)[:, 0]
    outer = ((ranks < 20) | (ranks >= 80)).double().mean()
    found = {"U": outer > 0.45, "hump": outer < 0.35, "low": ranks.double().mean() < 45}
    assert found[shape]


def test_a_method_that_ignores_the_data_is_found_by_the_log_likelihood_alone(seed: int) -> None:
    result = sbc(Plane(), FIXED, Batched(blind=True), X, X_TEST, num_replications=500, seed=seed)
    tests = result.test()
    assert (tests["f"].p_value > FAULT).all()
    assert tests["log_likelihood"].p_value < FAULT


def test_same_seed_same_ranks_and_the_global_stream_stays(seed: int) -> None:
    def run(method: object, seed: int) -> SBCResult:
        return sbc(Plane(), INFERRED, method, X, X_TEST, num_replications=10, num_draws=19, seed=seed)

    for method in (Batched(), OneByOne("draws")):
        before = torch.random.get_rng_state()
        first, again, other = run(method, seed), run(method, seed), run(method, seed + 1)
        assert torch.random.get_rng_state().equal(before)
        assert all(first.ranks[name].equal(again.ranks[name]) for name in first.ranks)
        assert not first.ranks["f"].equal(other.ranks["f"])


def test_thinning_takes_draws_evenly_from_all_chains() -> None:
    seen = []

    class Spy(Plane):
        def _apply(self, theta: Tensor, X: Tensor) -> Tensor:
            seen.append(theta)
            return super()._apply(theta, X)

    class Numbered:
        def fit_batch(self, prior, likelihood, X, Y, *, noise_variance=None, seed=0):
            theta = torch.arange(12.0, dtype=X.dtype).reshape(1, 3, 4, 1).expand(len(Y), 3, 4, 2)
            return theta, X.new_zeros(len(Y), 3, 4, 0)

    sbc(Spy(), FIXED, Numbered(), X, X_TEST, num_replications=2, num_draws=6)
    kept = [theta.squeeze() for theta in seen if theta.shape[:2] == (2, 6)]
    assert kept[-1][0, :, 0].tolist() == [1, 3, 5, 7, 9, 11]


def test_no_data_leaves_the_prior(seed: int) -> None:
    """Zero rows: every log likelihood is zero, and its ranks are ties broken at random."""
    result = sbc(Plane(), FIXED, Batched(), X[:0], X_TEST, num_replications=500, seed=seed)
    assert result.p_value() > FAULT


def test_single_precision_inputs_are_kept(seed: int) -> None:
    result = sbc(Plane(), FIXED, OneByOne("draws"), X.float(), X_TEST.float(), num_replications=5, seed=seed)
    assert result.ranks["f"].shape == (5, 2, 1)


def test_bonferroni() -> None:
    flat = torch.arange(100)
    steep = torch.arange(100) // 2
    result = SBCResult({"f": torch.stack([flat, steep], 1), "log_likelihood": flat}, 99)
    single = uniformity_test(steep, 99).p_value.item()
    assert result.p_value() == pytest.approx(3 * single) and 0 < single < FAULT
    assert SBCResult({"f": flat}, 99).p_value() == 1.0


def test_bad_arguments_of_sbc(seed: int) -> None:
    def run(**changes: object) -> SBCResult:
        given = {
            "prior": Plane(),
            "likelihood": FIXED,
            "method": Batched(),
            "X": X,
            "X_test": X_TEST,
            "num_replications": 3,
        }
        return sbc(**(given | changes))

    for swapped in ({"prior": FIXED}, {"likelihood": Plane()}):
        with pytest.raises(DomainError, match="a StochasticProcess as prior"):
            run(**swapped)
    with pytest.raises(DomainError, match="fit or fit_batch"):
        run(method=object())
    with pytest.raises(ShapeError, match="X must have shape"):
        run(X=X[:, :1])
    with pytest.raises(ShapeError, match="X must have shape"):
        run(X_test=X_TEST[None])
    with pytest.raises(DomainError, match="dtype"):
        run(X_test=X_TEST.float())
    with pytest.raises(NonFiniteError):
        run(X=X * math.nan)
    with pytest.raises(DomainError, match="num_replications"):
        run(num_replications=0)
    with pytest.raises(DomainError, match="num_draws"):
        run(num_draws=1.5)
    with pytest.raises(DomainError, match="seed"):
        run(seed=-1)
    with pytest.raises(ShapeError, match="returned 20 draws, fewer than num_draws = 99"):
        run(method=Batched(chains=2, length=10))
    with pytest.raises(ShapeError, match="returned 200 draws"):
        run(method=OneByOne("draws"), num_draws=201)
    with pytest.raises(UnsupportedError, match="does not draw the likelihood's 1 parameters"):
        run(method=OneByOne("functions"), likelihood=INFERRED)
    with pytest.raises(UnsupportedError, match="noise_variance"):
        run(likelihood=Poisson(), noise_variance=KNOWN)

    class Misshapen:
        def fit_batch(self, *data: object, **options: object) -> tuple[Tensor, Tensor]:
            return torch.zeros(3, 100, 2), torch.zeros(3, 100, 0)

    with pytest.raises(ShapeError, match="Misshapen.fit_batch must return"):
        run(method=Misshapen())
