"""Simulation-based calibration: does a method return the posterior it claims to return?

If parameters come from the prior and data from the likelihood, then the parameters and exact
posterior draws given those data are exchangeable, so the rank of the truth among the draws is
uniform, whatever the model (Talts, Betancourt, Simpson, Vehtari and Gelman 2018,
arXiv 1804.06788). Ranks that are not uniform prove that prior, likelihood and method do not
belong together.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError, ShapeError, SmallSampleWarning, UnsupportedError, user_level
from ..likelihoods import Likelihood
from ..process import EmpiricalProcess, ParametricProcess, StochasticProcess
from ..progress import Progress


class UniformityTest(NamedTuple):
    """Chi-square statistics and p-values, each of the event shape of the ranks."""

    statistic: Tensor
    p_value: Tensor


class EcdfBands(NamedTuple):
    """Bounds `lower` <= ECDF(`points`) <= `upper`, fractions of the replications at fractions of the ranks."""

    points: Tensor
    lower: Tensor
    upper: Tensor


@dataclass(frozen=True, eq=False)
class SBCResult:
    """Ranks of the truth among posterior draws, over replications.

    Args:
        ranks: Integers from 0 to `num_draws`: under "f" those of function values, R x T x c; under
            "psi" those of the likelihood's parameters, R x P_psi, where it has any; under
            "log_likelihood" those of the log likelihood of the data, R.
        num_draws: Number L of posterior draws a truth was ranked among.

    Example:
        >>> ranks = torch.arange(100).reshape(100, 1, 1)  # every rank once: as even as can be
        >>> SBCResult({"f": ranks}, num_draws=99).p_value()
        1.0
    """

    ranks: dict[str, Tensor]
    num_draws: int

    def test(self, bins: int = 10) -> dict[str, UniformityTest]:
        """:func:`uniformity_test` of every quantity, under the names of `ranks`."""
        return {name: uniformity_test(ranks, self.num_draws, bins) for name, ranks in self.ranks.items()}

    def p_value(self, bins: int = 10) -> float:
        """The smallest p-value times the number of quantities (Bonferroni), at most 1.

        A small value proves a fault; quantities of one replication depend on each other, and the
        bound holds for any dependence.
        """
        values = torch.cat([test.p_value.reshape(-1) for test in self.test(bins).values()])
        return min(1.0, float(values.min()) * values.numel())


def sbc_ranks(draws: Tensor, truth: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Ranks of true values among posterior draws, the number of draws below the truth.

    A truth equal to k draws gets one of the k + 1 ranks they share, each with the same
    probability, so that ranks stay uniform for discrete quantities (Modrák et al. 2023,
    arXiv 2211.02383).

    Args:
        draws: R x L x ... (replications, posterior draws, any event shape).
        truth: R x ...
        generator: Source of the randomness that breaks ties; None: torch's global stream.

    Returns:
        Integers from 0 to L, R x ...

    Raises:
        ShapeError: Shapes that do not match.
        NonFiniteError: NaN or infinity in either.

    Example:
        >>> sbc_ranks(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2.5]))
        tensor([2])
    """
    validation.tensor("sbc_ranks", "truth", truth)
    validation.tensor("sbc_ranks", "draws", draws, like=truth)
    validation.noise_generator("sbc_ranks", generator)
    if draws.ndim < 2 or truth.shape != (*draws.shape[:1], *draws.shape[2:]) or draws.shape[1] == 0:
        raise ShapeError(
            "sbc_ranks: draws must have shape (replications, draws, ...) and truth (replications, ...), "
            f"got {tuple(draws.shape)} and {tuple(truth.shape)}"
        )
    below = (draws < truth.unsqueeze(1)).sum(1)
    ties = (draws == truth.unsqueeze(1)).sum(1)
    u = rnd.uniform(ties.shape, generator=generator, dtype=torch.float64, device=ties.device)
    return below + (u * (ties + 1)).long()


def uniformity_test(ranks: Tensor, num_draws: int, bins: int = 10) -> UniformityTest:
    """Chi-square test that ranks are uniform on 0 to L.

    ``sum_b (O_b - E_b)^2 / E_b`` against the chi-square law of B - 1 degrees of freedom, where bin
    b holds the ranks r with ``floor(r B / (L + 1)) = b`` and E_b is proportional to their number.

    Args:
        ranks: Integers from 0 to L, R x ... (replications, any event shape).
        num_draws: The number L of draws.
        bins: The number B of bins, from 2 to L + 1; warns (`SmallSampleWarning`) where fewer than five
            replications are expected in a bin, too few for the chi-square law.

    Returns:
        Statistics and p-values of the event shape.

    Raises:
        ShapeError: No replication.
        DomainError: Ranks that are not integers from 0 to L, or an impossible number of bins.

    Example:
        >>> test = uniformity_test(torch.arange(100), num_draws=99)
        >>> test.statistic.item(), test.p_value.item()
        (0.0, 1.0)
    """
    where = "uniformity_test"
    validation.positive_int(where, "num_draws", num_draws)
    _check_ranks(where, ranks, num_draws)
    if validation.positive_int(where, "bins", bins, 2) > num_draws + 1:
        raise DomainError(f"{where}: bins must be at most num_draws + 1 = {num_draws + 1}, got {bins}")
    size = ranks.shape[0]
    values = torch.arange(num_draws + 1, device=ranks.device) * bins // (num_draws + 1)
    expected = torch.bincount(values, minlength=bins).double() * size / (num_draws + 1)
    if expected.min() < 5:
        warnings.warn(
            f"{where}: {float(expected.min()):.1f} of {size} replications are expected in a bin, too few for the "
            "chi-square law; use fewer bins or more replications",
            SmallSampleWarning,
            stacklevel=user_level(),
        )
    binned = values[ranks.long()]
    observed = torch.stack([(binned == b).sum(0) for b in range(bins)], -1)
    statistic = ((observed - expected).square() / expected).sum(-1)
    half = torch.full_like(statistic, (bins - 1) / 2)
    return UniformityTest(statistic, torch.special.gammaincc(half, statistic / 2))


def ecdf_bands(
    num_replications: int, num_draws: int, *, prob: float = 0.95, num_simulations: int = 4000, seed: int = 0
) -> EcdfBands:
    """Bands that hold the whole empirical distribution function of uniform ranks with a probability.

    At each of the points ``i / (L + 1)`` the band is a central interval of its binomial law; their
    common level is the one at which simulated uniform ranks stay inside everywhere with
    probability `prob` (Säilynoja, Bürkner and Vehtari 2022, arXiv 2103.10522). Unlike a
    histogram they need no bins; draw ``ECDF - points`` to see bias as a slope and a wrong width as an S.

    Args:
        num_replications: Number R of replications.
        num_draws: Number L of draws a truth is ranked among.
        prob: Probability that the function lies inside everywhere.
        num_simulations: How many sets of uniform ranks the level is found with.
        seed: Seed of these simulations.

    Returns:
        Points i / (L + 1) for i = 1 to L, and the bounds there; the ECDF is the fraction of ranks below i.

    Raises:
        DomainError: An argument outside its range.

    Example:
        >>> points, lower, upper = ecdf_bands(200, 9)
        >>> bool(((lower < points) & (points < upper)).all())
        True
    """
    where = "ecdf_bands"
    R = validation.positive_int(where, "num_replications", num_replications)
    L = validation.positive_int(where, "num_draws", num_draws)
    validation.positive_int(where, "num_simulations", num_simulations, 100)
    if not 0 < prob < 1:
        raise DomainError(f"{where}: prob must lie strictly between 0 and 1, got {prob!r}")
    points = torch.arange(1, L + 1, dtype=torch.float64) / (L + 1)
    count = torch.arange(R + 1, dtype=torch.float64)
    mass = torch.distributions.Binomial(R, points[:, None], validate_args=False).log_prob(count).exp()
    upto = mass.cumsum(-1)  # L x (R + 1): P(at most so many of R ranks lie below)
    least = torch.minimum(upto, mass.flip(-1).cumsum(-1).flip(-1))  # the smaller tail at each count, itself included
    generator = rnd.generator_from(rnd.check_seed(where, seed))
    ranks = rnd.integers(L + 1, (num_simulations, R), generator=generator)
    below = torch.zeros(num_simulations, L + 1, dtype=torch.long).scatter_add_(1, ranks, torch.ones_like(ranks))
    smallest = least[torch.arange(L), below.cumsum(1)[:, :-1]].amin(1)  # tail probability along each simulated path
    level = smallest.sort().values[int((1 - prob) * num_simulations)]
    inside = least >= level
    lower = inside.int().argmax(-1)
    upper = R - inside.flip(-1).int().argmax(-1)
    return EcdfBands(points, lower.double() / R, upper.double() / R)


def sbc(
    prior: StochasticProcess,
    likelihood: Likelihood,
    method: Any,
    X: Tensor,
    X_test: Tensor,
    *,
    num_replications: int = 200,
    num_draws: int = 99,
    noise_variance: Tensor | None = None,
    seed: int = 0,
    progress: bool = False,
) -> SBCResult:
    """Simulation-based calibration of an inference method on a prior and a likelihood.

    Each replication draws a function and the likelihood's parameters from their priors and outcomes
    at X, infers the posterior, and ranks the truth among thinned posterior draws: function values
    at X_test, the likelihood's parameters, and the log likelihood of the outcomes, without which a
    method that ignores the data and returns the prior would pass (Talts et al. 2018,
    arXiv 1804.06788; Modrák et al. 2023, arXiv 2211.02383).

    A method may offer the hook
    ``fit_batch(prior, likelihood, X, Y, *, noise_variance=None, seed=0) -> (theta, psi)`` which infers
    all replications at once: Y is R x 1 x n x m, theta R x C x S x P and psi R x C x S x P_psi. Without
    it ``method.fit`` runs once a replication.

    Args:
        prior: The process before the data; moved to the dtype and device of X.
        likelihood: The law of the outcomes.
        method: An inference method; any object with `fit`, or with `fit_batch` for parametric priors.
        X: Inputs of the simulated data, n x d.
        X_test: Where function values are ranked, T x d.
        num_replications: Number R of simulated data sets.
        num_draws: Number L of draws a truth is ranked among. They are taken evenly from all chains and
            should be nearly independent: let the method return several times as many.
        noise_variance: Known noise variances n x m (Gaussian likelihoods).
        seed: Seed of the simulation and of every fit.
        progress: Show a progress bar.

    Returns:
        The ranks, with tests of their uniformity (:class:`SBCResult`).

    Raises:
        ShapeError: Inputs that do not fit the prior, or a method that returns fewer than L draws.
        DomainError: A method without `fit` and `fit_batch`, or a number out of range.
        UnsupportedError: A posterior that does not draw the likelihood's parameters.

    Example:
        >>> from probnn import BayesianNetwork, Laplace, MLP, likelihoods, priors
        >>> line = BayesianNetwork(MLP(input_dim=1, hidden=(), output_dim=1), priors.NormalWeights())
        >>> X = torch.linspace(-1, 1, 5, dtype=torch.float64).unsqueeze(-1)
        >>> result = sbc(line, likelihoods.Gaussian(noise=0.5), Laplace(), X, X[:2], num_replications=3)
        >>> {name: tuple(ranks.shape) for name, ranks in result.ranks.items()}
        {'f': (3, 2, 1), 'log_likelihood': (3,)}
    """
    where = "sbc"
    R = validation.positive_int(where, "num_replications", num_replications)
    L = validation.positive_int(where, "num_draws", num_draws)
    generator = rnd.generator_from(rnd.check_seed(where, seed))
    if not isinstance(prior, StochasticProcess) or not isinstance(likelihood, Likelihood):
        raise DomainError(
            f"{where}: needs a StochasticProcess as prior and a probnn likelihood, "
            f"got a {type(prior).__name__} and a {type(likelihood).__name__}"
        )
    if not hasattr(method, "fit") and not hasattr(method, "fit_batch"):
        raise DomainError(f"{where}: method must have fit or fit_batch, got a {type(method).__name__}")
    validation.inputs(where, X, prior.input_dim, batched=False)
    validation.inputs(where, X_test, prior.input_dim, like=X, batched=False)
    prior = prior.to(dtype=X.dtype, device=X.device)
    n, X_all = X.shape[0], torch.cat([X, X_test])
    known = likelihood
    if noise_variance is not None:
        validation.variances(where, noise_variance, X, likelihood.outcomes(prior.output_dim))
        known = likelihood.given_noise(noise_variance)

    truth = prior.sample(X_all, (R,), generator=generator)
    psi = known.sample_prior((R,), generator=generator, dtype=X.dtype, device=X.device)
    if noise_variance is None:
        Y = known.sample(truth[:, :n], psi.unsqueeze(-2), generator=generator)
    else:
        Y = truth[:, :n] + noise_variance.sqrt() * rnd.normal(truth[:, :n].shape, generator=generator, like=truth)

    task = _Task(prior, likelihood, X, Y, X_all, noise_variance, known.num_parameters, L)
    with Progress(R, where, progress) as bar, torch.no_grad():
        if hasattr(method, "fit_batch") and isinstance(prior, ParametricProcess):
            f, psi_draws = task.at_once(method, prior, generator)
            bar.update(R)
        else:
            f, psi_draws = task.one_by_one(method, generator, bar)

    pairs = {"f": (f[:, :, n:], truth[:, n:])}
    if psi.shape[-1]:
        pairs["psi"] = (psi_draws, psi)
    true_fit = known.log_prob(Y, truth[:, :n], psi.unsqueeze(-2), noise_variance).sum(-1)
    fit = known.log_prob(Y.unsqueeze(1), f[:, :, :n], psi_draws.unsqueeze(-2), noise_variance).sum(-1)
    pairs["log_likelihood"] = (fit, true_fit)
    ranks = {name: sbc_ranks(drawn, true, generator=generator) for name, (drawn, true) in pairs.items()}
    return SBCResult(ranks, L)


@dataclass(frozen=True, eq=False)
class _Task:
    """What every replication shares; its verbs return f ``R x L x N x c`` at all inputs and psi ``R x L x P_psi``."""

    prior: StochasticProcess
    likelihood: Likelihood
    X: Tensor
    Y: Tensor
    X_all: Tensor
    noise_variance: Tensor | None
    num_psi: int
    num_draws: int

    def at_once(self, method: Any, prior: ParametricProcess, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        seed = int(rnd.integers(2**62, (), generator=generator))
        theta, psi = method.fit_batch(
            prior, self.likelihood, self.X, self.Y.unsqueeze(1), noise_variance=self.noise_variance, seed=seed
        )
        lead = (self.Y.shape[0], *theta.shape[1:3])
        expected = (*lead, prior.num_parameters), (*lead, self.num_psi)
        if theta.ndim != 4 or (tuple(theta.shape), tuple(psi.shape)) != expected:
            raise ShapeError(
                f"sbc: {type(method).__name__}.fit_batch must return theta and psi of shapes (replications, chains, "
                f"draws, {prior.num_parameters} and {self.num_psi}), got {tuple(theta.shape)} and {tuple(psi.shape)}"
            )
        available = theta.shape[1] * theta.shape[2]
        self._check_enough(method, available)
        # Evenly over chains and time: draw i stands in the middle of the i-th of L equal parts.
        kept = (2 * torch.arange(self.num_draws) + 1) * available // (2 * self.num_draws)
        return prior.apply(theta.flatten(1, 2)[:, kept], self.X_all), psi.flatten(1, 2)[:, kept]

    def one_by_one(self, method: Any, generator: torch.Generator, bar: Progress) -> tuple[Tensor, Tensor]:
        values = []
        for Y, seed in zip(self.Y, rnd.integers(2**62, (len(self.Y), 2), generator=generator).tolist(), strict=True):
            posterior = method.fit(
                self.prior, self.likelihood, self.X, Y, noise_variance=self.noise_variance, seed=seed[0]
            )
            values.append(self._draw(method, posterior, seed[1]))
            bar.update()
        f, psi = zip(*values, strict=True)
        return torch.stack(f), torch.stack(psi)

    def _draw(self, method: Any, posterior: StochasticProcess, seed: int) -> tuple[Tensor, Tensor]:
        if isinstance(posterior, EmpiricalProcess):
            self._check_enough(method, posterior.num_draws)
            posterior = posterior.thin(self.num_draws)
        elif isinstance(posterior, ParametricProcess):
            posterior = posterior.draws(self.num_draws, seed=seed)
        else:
            return self._draw_functions(posterior, seed)
        return posterior.apply(posterior.theta[0], self.X_all), posterior.psi[0]

    def _draw_functions(self, posterior: StochasticProcess, seed: int) -> tuple[Tensor, Tensor]:
        if self.num_psi:
            raise UnsupportedError(
                f"sbc: a {type(posterior).__name__} does not draw the likelihood's {self.num_psi} parameters, so the "
                "truth has nothing to be ranked among; fix them, such as likelihoods.Gaussian(noise=0.1)"
            )
        f = posterior.sample(self.X_all, (self.num_draws,), generator=rnd.generator_from(seed, device=self.X.device))
        return f, f.new_zeros(self.num_draws, 0)

    def _check_enough(self, method: Any, available: int) -> None:
        if available < self.num_draws:
            raise ShapeError(
                f"sbc: {type(method).__name__} returned {available} draws, fewer than num_draws = {self.num_draws}; "
                "run more chains or longer ones, or rank among fewer draws"
            )


def _check_ranks(where: str, ranks: Any, num_draws: int) -> None:
    if not torch.is_tensor(ranks) or ranks.is_floating_point() or ranks.is_complex() or ranks.dtype == torch.bool:
        raise DomainError(f"{where}: ranks must be a tensor of integers, as sbc_ranks returns")
    if ranks.ndim == 0 or ranks.shape[0] == 0:
        raise ShapeError(
            f"{where}: ranks must have shape (replications, ...) with a replication, got {tuple(ranks.shape)}"
        )
    if ranks.numel() and not 0 <= int(ranks.min()) <= int(ranks.max()) <= num_draws:
        raise DomainError(
            f"{where}: ranks must lie in 0 to num_draws = {num_draws}, got {int(ranks.min())} to {int(ranks.max())}"
        )
