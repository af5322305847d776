"""Stochastic-gradient Hamiltonian Monte Carlo with all chains in one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import ConvergenceError, ConvergenceWarning, DomainError
from ..likelihoods import Likelihood
from ..process import EmpiricalProcess, ParametricProcess
from . import start
from .base import InferenceMethod, Session
from .chains import keep_heap
from .friction import LOUD, Adaptation, Walkers
from .integrator import State
from .minibatch import Minibatches
from .mixing import converged
from .replicated import replicated
from .target import Target

_WHOLE = 5000  # rows up to which batch_size=None takes all, and whose log density is told of every draw
_BATCH = 256  # rows it takes of more
_CHECK = 100  # steps between two looks for chains that are lost
_NOISY = 0.4  # heat of a direction above which standard deviations can be a fifth too large
_HOT = 1.2  # kinetic temperature above which steps are too long
_RUNAWAY = 1000.0  # that of chains which are lost

# Told of every step; True asks to stop the phase.
Watcher = Callable[[Walkers, Tensor, Tensor], bool]


@dataclass(frozen=True, kw_only=True)
class SGHMC(InferenceMethod):
    r"""Stochastic-gradient Hamiltonian Monte Carlo, scale-adapted: approximate draws for many rows.

    Langevin dynamics with friction on gradients of minibatches (Chen, Fox and Guestrin 2014), with masses adapted
    during the warm-up (Springenberg, Klein, Falkner and Hutter 2016). With step size :math:`\varepsilon`, friction
    :math:`\alpha`, diagonal masses M, :math:`\eta = \varepsilon^2 M^{-1}` and the gradient's noise of variance B,

    .. math:: v \leftarrow (1 - \alpha) v + \eta\,\widehat{\nabla \log p}(z)
              + N(0,\, 2\alpha\eta - \eta^2 B), \qquad z \leftarrow z + v .

    No step is ever rejected, so the draws keep a bias, which no number of steps removes; a smaller `step_size` or a
    larger `batch_size` does. What the paper's rule loses on exact gradients is not lost here: B is measured, not taken
    to be all of :math:`M^2`, and draws are taken in the middle of steps, where on a normal target the discretisation
    leaves no error; see :mod:`probnn.inference.friction`. Gradients are not clipped. What is left is: correlations
    of the gradient's noise, of which only variances are taken off; posteriors that are not normal, by the second order
    of the step size; and slow mixing, which looks like bias, and is the largest error of short runs.

    Measured on a network of ten tanh units, 200 rows and known noise .3 (16 chains, friction .01, 5,000 steps of
    warm-up and 20,000 of sampling; lowest, median and highest ratio of the standard deviation of f to that of a
    converged :class:`probnn.HMC`, over 15 points in and around the data):

    ==========  =================  =================  =================  =================
    batch       step_size None     0.01               0.005              0.003
    ==========  =================  =================  =================  =================
    all rows    0.98, 1.01, 1.04   0.98, 1.01, 1.04   0.97, 0.99, 1.03   0.95, 1.01, 1.03
    32          0.92, 1.03, 1.09   0.87, 1.40, 1.59   0.96, 1.13, 1.22   0.94, 1.09, 1.14
    ==========  =================  =================  =================  =================

    The median is the bias by minibatches, the rest mostly slow mixing, with the largest R-hat from 1.03 (all rows,
    0.01) to 1.6 (32 rows, 0.003 and None, which came to 0.0017). More rows and weights make it worse: four inputs, a
    2 x 50 network, 8,000 rows and batches of 256 with None came in 2,000 + 2,000 steps to the noise within 4 per cent,
    which is found before chains are cooled, but to R-hats of f of 3 in the middle and 5 at most. A step of four chains
    of a 2 x 50 network took 0.6 ms at 32 rows and 0.7 ms at 128 in single precision, 0.8 and 1.0 ms in double, on one
    busy core.

    Use :class:`probnn.HMC` where its gradients of all rows are affordable (to some thousands of rows): its draws have
    no such bias, and take fewer gradients.

    Chains begin at prior draws of theta that follow the gradient for a while, with psi at its prior median; with
    ``init=`` at draws of that posterior. `info.trace` holds, per chain and draw (C x S), ``"log_prob"``, the log
    density (of more than 5,000 rows: by 5,000 of them, evenly spaced, that stand for all), and
    ``"kinetic_temperature"``, of which the mean is 1 where steps are short enough; `info.step_size` is the one the
    draws were made with. `info.converged` is HMC's check of R-hat, and that chains were not too hot: a
    ConvergenceWarning tells of chains that disagree, of minibatches that bring more than 0.4 of the noise that the
    friction balances to any direction, and of a kinetic temperature above 1.2.

    A `callback` that returns True during warm-up ends the warm-up; during sampling it ends the sampling, and the
    draws so far are the posterior.

    Args:
        num_chains: Number of chains C.
        num_warmup: Steps before sampling, in which masses adapt; they are frozen afterwards.
        num_samples: Draws S kept of every chain.
        keep_every: Steps from one kept draw to the next.
        step_size: epsilon, in units of the square root of :math:`M^{-1}`. None: 0.01, and from the middle of the
            warm-up less: minibatches then bring no coordinate more than a tenth of the noise that the friction
            balances, and no direction more than a quarter; chains then mix more slowly, of networks on many rows very
            much so, which R-hat can tell, where too much noise is bias, which it cannot.
        friction: alpha, the share of the velocity that a step takes away, above 0 and below 1 (``mdecay`` in the
            authors' programs).
        batch_size: Rows of a minibatch, drawn with replacement and for every chain anew; with as many as there are
            or more, all rows are taken and gradients are exact. None: all of up to 5,000 rows, else 256.
        gibbs_every: Steps between draws of the prior's scales from their law given the weights, where their squares
            are inverse-gamma; 0: never.
        temperature: T of the tempered posterior, proportional to :math:`p(\theta, \psi)\,p(Y \mid \theta, \psi)^{1/T}`;
            Bayes is 1.
        start_steps: Steps of the start's optimisation.

    Raises:
        DomainError: A setting is out of its range.
        ConvergenceError: A chain ran away: the step size is too large.

    Example:
        >>> import torch, probnn
        >>> X = torch.linspace(-1, 1, 8).unsqueeze(-1)
        >>> prior = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=()), probnn.priors.NormalWeights())
        >>> sghmc = probnn.SGHMC(num_chains=4, num_warmup=100, num_samples=5, keep_every=20)
        >>> post = sghmc.fit(prior, probnn.likelihoods.Gaussian(noise=0.1), X, 2 * X)
        >>> tuple(post.theta.shape), post.info.steps
        ((4, 5, 2), 200)
    """

    num_chains: int = 8
    num_warmup: int = 3000
    num_samples: int = 100
    keep_every: int = 50
    step_size: float | None = None
    friction: float = 0.01
    batch_size: int | None = None
    gibbs_every: int = 20
    temperature: float = 1.0
    start_steps: int = 500

    references: ClassVar[tuple[str, ...]] = (
        "T. Chen, E. B. Fox, C. Guestrin (2014). Stochastic gradient Hamiltonian Monte Carlo. ICML, PMLR 32, "
        "1683-1691. arXiv:1402.4102.",
        "J. T. Springenberg, A. Klein, S. Falkner, F. Hutter (2016). Bayesian optimization with robust Bayesian neural "
        "networks. NeurIPS 29, 4134-4142.",
    )

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_samples", "keep_every"):
            validation.positive_int("SGHMC", name, getattr(self, name))
        for name in ("num_warmup", "gibbs_every", "start_steps"):
            validation.positive_int("SGHMC", name, getattr(self, name), minimum=0)
        if self.batch_size is not None:
            validation.positive_int("SGHMC", "batch_size", self.batch_size)
        if self.step_size is not None:
            validation.positive("SGHMC", "step_size", self.step_size)
        for name in ("friction", "temperature"):
            validation.positive("SGHMC", name, getattr(self, name))
        if self.friction >= 1:
            raise DomainError(
                f"SGHMC: friction must be below 1, got {self.friction!r}; it is the share of the velocity that is lost"
            )

    def _fit(
        self,
        prior: ParametricProcess,
        likelihood: Likelihood,
        X: Tensor,
        Y: Tensor,
        noise_variance: Tensor | None,
        session: Session,
        init: ParametricProcess | None,
    ) -> EmpiricalProcess:
        target = Target(prior, likelihood, X, Y, noise_variance, float(self.temperature))
        walkers = self._begin(target, 1, session.generator, init)
        told = _Told(session, self.num_warmup + self.num_samples * self.keep_every, target)
        try:
            self._warm_up(walkers, told.step)
            z = self._draw(walkers, told.step, told.draw)
        finally:
            told.close()
        theta, psi = (part.squeeze(0).contiguous() for part in target.split(z))
        trace = {name: torch.stack(values, -1).squeeze(0) for name, values in told.trace.items()}
        hot = self._warn_of_heat(session, walkers, trace["kinetic_temperature"])
        info = session.info(
            steps=walkers.steps,
            gradients=walkers.batches.gradients,
            converged=converged(session, target, theta, psi, trace["log_prob"], float(hot)),
            step_size=walkers.step_size.item(),
            temperature=self.temperature,
            trace=trace,
        )
        return EmpiricalProcess(prior, theta, psi, likelihood, info=info)

    def fit_batch(
        self,
        prior: ParametricProcess,
        likelihood: Likelihood,
        X: Tensor,
        Y: Tensor,
        *,
        noise_variance: Tensor | None = None,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Infer the posteriors of R data sets in one batch of ``R x C`` chains.

        Each data set has masses of its own. A step of small chains costs the same for one data set as for many.

        Args:
            prior: The process before the data, moved to the dtype and device of X.
            likelihood: The law of the outcomes.
            X: Inputs ``n x d`` of all data sets, or ``R x 1 x n x d``.
            Y: Outcomes ``R x 1 x n x m``.
            noise_variance: Known noise variances, ``n x m`` or like Y.
            seed: Same seed, same machine: the same draws; torch's global stream is not touched.

        Returns:
            Draws of theta ``R x C x S x P`` and of psi ``R x C x S x num_parameters``.

        Raises:
            ShapeError, DomainError, NonFiniteError: The data do not fit the prior and likelihood.
            ConvergenceError: A chain ran away.

        Example:
            >>> import torch, probnn
            >>> prior = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=()), probnn.priors.NormalWeights())
            >>> X, Y = torch.ones(5, 1), torch.zeros(7, 1, 5, 1)
            >>> sghmc = probnn.SGHMC(num_chains=2, num_warmup=20, num_samples=10, keep_every=2)
            >>> theta, psi = sghmc.fit_batch(prior, probnn.likelihoods.Gaussian(noise=0.1), X, Y)
            >>> tuple(theta.shape), tuple(psi.shape)
            ((7, 2, 10, 2), (7, 2, 10, 0))
        """
        where = "SGHMC.fit_batch"
        generator = rnd.generator_from(rnd.check_seed(where, seed), device=getattr(X, "device", None))
        prior, likelihood = replicated(where, prior, likelihood, X, Y, noise_variance, self.prefers_double)
        target = Target(prior, likelihood, X, Y, noise_variance, float(self.temperature))
        walkers = self._begin(target, Y.shape[0], generator, None)
        self._warm_up(walkers, _unwatched)
        theta, psi = target.split(self._draw(walkers, _unwatched, lambda walkers, z: None))
        return theta, psi

    def _begin(
        self, target: Target, replications: int, generator: torch.Generator, init: ParametricProcess | None
    ) -> Walkers:
        keep_heap(target.X.device)
        n = target.X.shape[-2]
        size = self.batch_size or (n if n <= _WHOLE else _BATCH)
        batches = Minibatches(target, size, generator)
        scales = start.prior_scales(target, generator)
        if init is None:
            shape = (replications, self.num_chains)
            # By ever smaller steps: Adam's own do not end where gradients are noisy.
            quarter = self.start_steps // 4
            first = self.start_steps - 2 * quarter
            z = start.cold(target, batches.value_and_grad, shape, scales, first, generator)
            # psi comes along once the function has taken shape: SGHMC itself takes long to bring a noise from afar.
            for rate in (0.015, 0.005):
                z = start.climb(batches.value_and_grad, z, scales, quarter, rate)
        else:
            z = start.warm(target, init, self.num_chains, generator).unsqueeze(0)
        step = None if self.step_size is None else float(self.step_size)
        walkers = Walkers(batches, z, scales, step, float(self.friction), self.gibbs_every)
        _check(walkers)
        return walkers

    def _warm_up(self, walkers: Walkers, watch: Watcher) -> None:
        adaptation = Adaptation(walkers, self.num_warmup)
        for _ in range(self.num_warmup):
            value, slope = adaptation.step()
            if walkers.steps % _CHECK == 0:
                _check(walkers)
            if watch(walkers, value, slope):
                break
        walkers.cool()  # once more, by the last masses and noises; a warm-up that ended early has not yet

    def _draw(self, walkers: Walkers, watch: Watcher, keep: Callable[[Walkers, Tensor], None]) -> Tensor:
        """The kept positions, ``R x C x S x D``."""
        kept: list[Tensor] = []
        for index in range(1, self.num_samples * self.keep_every + 1):
            stop = watch(walkers, *walkers.step())
            if index % self.keep_every == 0 or (stop and not kept):
                _check(walkers, drawing=True)
                kept.append(walkers.z)
                keep(walkers, kept[-1])
            if stop:
                break
        return torch.stack(kept, -2)

    def _warn_of_heat(self, session: Session, walkers: Walkers, kinetic: Tensor) -> bool:
        """Whether the chains are hotter than the posterior; says so."""
        heat, found, step = walkers.loudest.max().item(), kinetic.mean().item(), walkers.step_size.item()
        if heat > _NOISY:
            session.warn(
                f"SGHMC.fit: minibatches bring up to {heat:.1f} times the noise that the friction balances, in the "
                "direction where it is the most; standard deviations of the posterior can be "
                f"{(1 + heat) ** 0.5:.1f} times too large; set step_size to {step * (LOUD / heat) ** 0.5:.1g} or less, "
                "or to None, which finds one, or raise batch_size",
                ConvergenceWarning,
            )
        elif not found <= _HOT:
            session.warn(
                f"SGHMC.fit: the chains' kinetic temperature is {found:.2g} where it should be 1: steps are too long "
                f"for this posterior; set step_size to {step / 2:.1g} or less",
                ConvergenceWarning,
            )
        return heat > _NOISY or not found <= _HOT


class _Told:
    """Shows progress, asks the callback and keeps the traces, over both phases of a fit."""

    def __init__(self, session: Session, total: int, target: Target):
        self.session, self.total, self.bar = session, total, session.bar(total)
        self.trace: dict[str, list[Tensor]] = {"log_prob": [], "kinetic_temperature": []}
        n = target.X.shape[0]
        if n > _WHOLE:
            rows = torch.linspace(0, n - 1, _WHOLE, dtype=torch.double, device=target.X.device).round().long()
            target = replace(
                target,
                X=target.X[rows],
                Y=target.Y[rows],
                noise_variance=None if target.noise_variance is None else target.noise_variance[rows],
                temperature=target.temperature * _WHOLE / n,
            )
        self.target = target

    def step(self, walkers: Walkers, value: Tensor, slope: Tensor) -> bool:
        self.bar.update()
        if self.session.callback is None:
            return False
        state = State(walkers.z.squeeze(0), value.squeeze(0), slope.squeeze(0))
        return self.session.stop(walkers.steps, self.total, state)

    def draw(self, walkers: Walkers, z: Tensor) -> None:
        with torch.no_grad():
            self.trace["log_prob"].append(self.target.log_prob(z))
        self.trace["kinetic_temperature"].append(walkers.kinetic_temperature)

    def close(self) -> None:
        self.bar.close()


def _unwatched(walkers: Walkers, value: Tensor, slope: Tensor) -> bool:
    return False


def _check(walkers: Walkers, drawing: bool = False) -> None:
    """Raise where chains are lost: not finite, or with velocities that no draw of the posterior has."""
    kept = walkers.end.isfinite().all(-1)
    if drawing:
        kept &= walkers.kinetic_temperature < _RUNAWAY
    if not kept.all():
        chains = (~kept).nonzero()[:, -1].unique().tolist()
        raise ConvergenceError(
            f"SGHMC: chains {chains} ran away (seen after {walkers.steps} steps); take a smaller step_size (it is "
            f"{walkers.step_size.min().item():.2g}), and look for extreme values in the data"
        )
