"""Simulation-based calibration: exact samplers pass, wrong ones do not, whatever road the draws take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from probnn import random as rnd
from probnn.diagnostics import SBCResult, ecdf_bands, sbc, sbc_ranks, uniformity_test
from probnn.errors import DomainError, NonFiniteError, ShapeError, SmallSampleWarning, UnsupportedError
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


# --- ranks -------------------------------------------------------------------------------------


def test_ranks_count_the_draws_below(seed: int) -> None:
    generator = rnd.generator_from(seed)
    draws, truth = rnd.normal((6, 20, 2, 3), generator=generator), rnd.normal((6, 2, 3), generator=generator)
    ranks = sbc_ranks(draws, truth, generator=generator)
    assert ranks.shape == (6, 2, 3) and ranks.dtype == torch.long
    for r in range(6):
        for i in range(2):
            for j in range(3):
                assert ranks[r, i, j] == sum(float(d) < float(truth[r, i, j]) for d in draws[r, :, i, j])


def test_ties_are_broken_evenly(seed: int) -> None:
    """The truth equals two of three draws and exceeds one: ranks 1, 2 and 3, a third each."""
    draws = torch.tensor([0.0, 1.0, 1.0]).expand(3000, 3)
    ranks = sbc_ranks(draws, torch.ones(3000), generator=rnd.generator_from(seed))
    counts = torch.bincount(ranks, minlength=4)
    assert counts[0] == 0
    assert (abs(counts[1:] - 1000) < 5 * math.sqrt(3000 * 2 / 9)).all()


def test_discrete_quantities_have_uniform_ranks(seed: int) -> None:
    """Truth and draws from one Poisson law: only randomised ties make ranks uniform."""
    values = torch.poisson(torch.full((4000, 10), 1.5), generator=rnd.generator_from(seed))
    ranks = sbc_ranks(values[:, 1:], values[:, 0], generator=rnd.generator_from(seed + 1))
    assert uniformity_test(ranks, 9).p_value > FAULT
    below = (values[:, 1:] < values[:, :1]).sum(1)
    assert uniformity_test(below, 9).p_value < FAULT


def test_ranks_are_seeded_and_leave_the_global_stream(seed: int) -> None:
    draws, truth = torch.zeros(50, 20), torch.zeros(50)
    before = torch.random.get_rng_state()
    first = sbc_ranks(draws, truth, generator=rnd.generator_from(seed))
    assert first.equal(sbc_ranks(draws, truth, generator=rnd.generator_from(seed)))
    assert torch.random.get_rng_state().equal(before)
    assert first.unique().numel() > 5


def test_bad_ranks() -> None:
    with pytest.raises(ShapeError, match="sbc_ranks"):
        sbc_ranks(torch.zeros(3, 5, 2), torch.zeros(3))
    with pytest.raises(ShapeError):
        sbc_ranks(torch.zeros(3, 0), torch.zeros(3))
    with pytest.raises(ShapeError):
        sbc_ranks(torch.zeros(3), torch.zeros(3))
    with pytest.raises(DomainError):
        sbc_ranks(torch.zeros(3, 5, dtype=torch.float64), torch.zeros(3))
    with pytest.raises(NonFiniteError):
        sbc_ranks(torch.full((3, 5), math.nan), torch.zeros(3))
    with pytest.raises(DomainError, match="generator"):
        sbc_ranks(torch.zeros(3, 5), torch.zeros(3), generator=0)


# --- uniformity --------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_draws", "bins"), [(99, 10), (99, 7), (30, 31), (63, 2)])
def test_uniformity_is_the_chi_square_test(num_draws: int, bins: int, seed: int) -> None:
    from scipy.stats import chisquare

    ranks = rnd.integers(num_draws + 1, (400, 2, 3), generator=rnd.generator_from(seed))
    statistic, p_value = uniformity_test(ranks, num_draws, bins)
    assert statistic.shape == p_value.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            observed, expected = [0] * bins, [0.0] * bins
            for r in ranks[:, i, j].tolist():
                observed[r * bins // (num_draws + 1)] += 1
            for r in range(num_draws + 1):
                expected[r * bins // (num_draws + 1)] += 400 / (num_draws + 1)
            theirs = chisquare(observed, expected)
            assert statistic[i, j].item() == pytest.approx(theirs.statistic, rel=1e-10)
            assert p_value[i, j].item() == pytest.approx(theirs.pvalue, rel=1e-8)


def test_p_values_of_uniform_ranks_are_uniform(seed: int) -> None:
    """Bins of unequal size included: 100 ranks in 7 bins."""
    ranks = rnd.integers(100, (500, 2000), generator=rnd.generator_from(seed))
    p = uniformity_test(ranks, 99, 7).p_value
    for level in (0.05, 0.5):
        # The law of the statistic is discrete; at 500 replications that is worth about half a per cent.
        assert abs((p < level).double().mean() - level) < 5 * math.sqrt(level * (1 - level) / 2000) + 0.005


def test_few_replications_warn() -> None:
    with pytest.warns(SmallSampleWarning, match="2.0 of 20 replications"):
        uniformity_test(torch.arange(20), 99)


def test_bad_uniformity_arguments() -> None:
    for bad in (
        torch.zeros(10),
        torch.zeros(10, dtype=torch.bool),
        [1, 2, 3],
        torch.tensor([0, 100]),
        torch.tensor([-1, 3]),
    ):
        with pytest.raises(DomainError, match="ranks"):
            uniformity_test(bad, 99)
    for bad in (torch.tensor(3), torch.zeros(0, dtype=torch.long)):
        with pytest.raises(ShapeError):
            uniformity_test(bad, 99)
    ranks = torch.arange(100)
    for bins in (1, 101, 5.0):
        with pytest.raises(DomainError, match="bins"):
            uniformity_test(ranks, 99, bins)
    with pytest.raises(DomainError, match="num_draws"):
        uniformity_test(ranks, 0)


# --- bands -------------------------------------------------------------------------------------


def contained(ranks: Tensor, num_draws: int, bands) -> Tensor:
    """Which of the columns of ranks R x E stay within the bands everywhere."""
    below = torch.stack([(ranks < i).double().mean(0) for i in range(1, num_draws + 1)], -1)
    return ((bands.lower - 1e-12 <= below) & (below <= bands.upper + 1e-12)).all(-1)


@pytest.mark.parametrize(("R", "L", "prob"), [(200, 99, 0.95), (100, 19, 0.8)])
def test_bands_hold_uniform_ranks_with_their_probability(R: int, L: int, prob: float, seed: int) -> None:
    bands = ecdf_bands(R, L, prob=prob, seed=seed)
    assert bands.points.tolist() == pytest.approx([i / (L + 1) for i in range(1, L + 1)])
    inside = contained(rnd.integers(L + 1, (R, 4000), generator=rnd.generator_from(seed + 1)), L, bands)
    # Both the level and this check rest on 4,000 simulations; the law is discrete, and the bands err outwards.
    error = math.sqrt(2 * prob * (1 - prob) / 4000)
    assert prob - 5 * error < inside.double().mean() < prob + 5 * error + 0.01


def test_bands_reject_what_is_not_uniform(seed: int) -> None:
    u = rnd.uniform((200, 200), generator=rnd.generator_from(seed))
    bands = ecdf_bands(200, 99)
    assert contained((100 * u.square()).long(), 99, bands).double().mean() < 0.05


def test_bad_band_arguments() -> None:
    for arguments, options in [
        ((0, 9), {}),
        ((9, 0), {}),
        ((9, 9), {"prob": 1.0}),
        ((9, 9), {"num_simulations": 5}),
        ((9, 9), {"seed": -1}),
    ]:
        with pytest.raises(DomainError, match="ecdf_bands"):
            ecdf_bands(*arguments, **options)


# --- the whole ---------------------------------------------------------------------------------


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
