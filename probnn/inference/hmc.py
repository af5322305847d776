"""Hamiltonian Monte Carlo with all chains in one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DivergenceWarning, DomainError
from ..likelihoods import Likelihood
from ..process import EmpiricalProcess, ParametricProcess
from .base import InferenceMethod, Session
from .chains import Chains, Watch, unwatched
from .collapsed import CollapsedTarget
from .mixing import TELLING, converged
from .replicated import replicated
from .target import Target

# Shares of diverged trajectories after which to warn, and that of fewer draws than tell.
_DIVERGENT, _MANY = 0.02, 0.05


@dataclass(frozen=True, kw_only=True)
class HMC(InferenceMethod):
    r"""Hamiltonian Monte Carlo; draws of theta and psi from their joint posterior.

    All chains advance in one batch with a common step size, trajectory length and diagonal mass.
    Warm-up adapts the step size by dual averaging of the chains' mean acceptance, the jittered
    trajectory length by the ChEES criterion, priced by its cost, and the masses by variances pooled over
    chains and exchangeable hidden units; see :mod:`probnn.inference.adaptation`. Chains begin at
    prior draws of theta that follow the gradient for a while, with psi at its prior median.

    With ``init=`` they begin at draws of that posterior instead; where its `info` holds step size,
    trajectory and masses (it came from HMC) these are carried on and a quarter of `num_warmup`
    is run.

    `info.trace` holds, per chain and draw (C x S), ``"energy"``, ``"log_prob"``, ``"acceptance"``
    and ``"divergent"``, per draw ``"num_leapfrog"``, and per transition of the warm-up
    ``"warmup_acceptance"``, ``"warmup_step_size"``, ``"warmup_trajectory"`` and
    ``"warmup_num_leapfrog"``. Energies are those of the transitions, before scales are drawn anew; log densities
    those of the draws.

    `info.converged` says whether the largest rank-normalised split R-hat is below 1.05 and at most one
    trajectory in a hundred diverged. R-hat is taken of the function at (up to 50) training inputs and at 50
    points of the box around them (a quarter wider on every side), of psi, of the log scales of a hierarchical prior
    and of the log density; single weights are not identified and not judged. With fewer than four draws a
    chain it is None. Above 1.2 a ConvergenceWarning names what disagrees most, if chains have 20 draws or more:
    shorter ones cannot tell. More than one diverged trajectory in fifty (in twenty, of such short chains) gives a
    DivergenceWarning.

    A `callback` that returns True during warm-up ends the warm-up; during sampling it ends the
    sampling, and the draws so far are the posterior.

    Args:
        num_chains: Number of chains C.
        num_warmup: Transitions before sampling.
        num_samples: Draws S kept of every chain.
        target_accept: Mean acceptance probability to adapt the step size to.
        max_leapfrog: Longest trajectory, in leapfrog steps.
        start_steps: Steps of the start's optimisation.
        chain_chunk: Chains whose activations are in memory at once; None: all.
        collapse_last_layer: Integrate the last layer out and draw it exactly afterwards, for a
            :class:`probnn.MLP` with normal weights, of fixed or random scales, and a Gaussian likelihood; the draws
            follow the same posterior. Chains mix faster, and best so where the noise is small or inferred.
        gibbs_scales: Between transitions, draw scales of the prior whose squares are inverse-gamma from their law
            given the weights (those of an integrated last layer excepted); other priors have none to draw.
        temperature: T of the tempered posterior, proportional to :math:`p(\theta, \psi)\,p(Y \mid \theta, \psi)^{1/T}`:
            below 1 it trusts the data more than the model does (a "cold" posterior), above 1 less (a "power"
            likelihood, for models that are wrong). Bayes is 1; see Wenzel et al. (2020, arXiv 2002.02405).

    Raises:
        DomainError: A setting is out of its range.
        ConvergenceError: The log density is not finite at the start of a chain.

    Example:
        >>> import torch, probnn
        >>> X = torch.linspace(-1, 1, 8).double().unsqueeze(-1)
        >>> net = probnn.MLP(input_dim=1, hidden=())
        >>> prior = probnn.BayesianNetwork(net, probnn.priors.NormalWeights(), dtype=torch.double)
        >>> hmc = probnn.HMC(num_chains=4, num_warmup=50, num_samples=20)
        >>> post = hmc.fit(prior, probnn.likelihoods.Gaussian(noise=0.1), X, 2 * X)
        >>> tuple(post.theta.shape), post.info.divergences
        ((4, 20, 2), 0)
    """

    num_chains: int = 16
    num_warmup: int = 200
    num_samples: int = 100
    target_accept: float = 0.8
    max_leapfrog: int = 1000
    start_steps: int = 150
    chain_chunk: int | None = None
    collapse_last_layer: bool = False
    gibbs_scales: bool = True
    temperature: float = 1.0

    prefers_double: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = (
        "S. Duane, A. D. Kennedy, B. J. Pendleton, D. Roweth (1987). Hybrid Monte Carlo. Physics Letters B 195(2), "
        "216-222.",
        "R. M. Neal (2011). MCMC using Hamiltonian dynamics. Handbook of Markov Chain Monte Carlo, ch. 5. "
        "arXiv:1206.1901.",
        "M. D. Hoffman, A. Gelman (2014). The No-U-Turn Sampler: adaptively setting path lengths in Hamiltonian "
        "Monte Carlo. JMLR 15, 1593-1623. arXiv:1111.4246.",
        "M. D. Hoffman, A. Radul, P. Sountsov (2021). An adaptive-MCMC scheme for setting trajectory lengths in "
        "Hamiltonian Monte Carlo. AISTATS, PMLR 130, 3907-3915.",
    )

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_samples", "max_leapfrog"):
            validation.positive_int("HMC", name, getattr(self, name))
        for name in ("num_warmup", "start_steps"):
            validation.positive_int("HMC", name, getattr(self, name), minimum=0)
        if self.chain_chunk is not None:
            validation.positive_int("HMC", "chain_chunk", self.chain_chunk)
        validation.positive("HMC", "target_accept", self.target_accept)
        if self.target_accept >= 1:
            raise DomainError(f"HMC: target_accept must be below 1, got {self.target_accept!r}; it is a probability")
        validation.positive("HMC", "temperature", self.temperature)
        for name in ("collapse_last_layer", "gibbs_scales"):
            if not isinstance(getattr(self, name), bool):
                raise DomainError(f"HMC: {name} must be True or False, got {getattr(self, name)!r}")

    def _target(
        self, prior: ParametricProcess, likelihood: Likelihood, X: Tensor, Y: Tensor, noise_variance: Tensor | None
    ) -> Target:
        kind = CollapsedTarget if self.collapse_last_layer else Target
        return kind(prior, likelihood, X, Y, noise_variance, float(self.temperature))

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
        target = self._target(prior, likelihood, X, Y, noise_variance)
        chains = Chains(self, target, session.generator)
        length = self.num_warmup
        if init is None:
            state, tuning = chains.cold(torch.Size())
        else:
            state, tuning, carried = chains.warm(init)
            length = length // 4 if carried else length
        with Watch(session, length + self.num_samples) as watch:
            state, tuning, history = chains.adapt(state, tuning, length, watch)
            draws, trace = chains.draw(state, tuning, watch)
        theta, psi = (part.squeeze(0).contiguous() for part in draws)
        trace = {name: value.squeeze(0) for name, value in trace.items()}
        share = trace["divergent"].double().mean().item()
        if share > (_DIVERGENT if theta.shape[1] >= TELLING else _MANY):
            session.warn(
                f"HMC.fit: {share:.1%} of the trajectories after warm-up diverged; the posterior has regions of much "
                "higher curvature that the draws may miss: raise target_accept, or reparameterise the prior",
                DivergenceWarning,
            )
        info = session.info(
            steps=watch.step,
            gradients=chains.gradients,
            converged=converged(session, target, theta, psi, trace["log_prob"], share),
            step_size=tuning.step.item(),
            trajectory=tuning.trajectory,
            inverse_mass=target.spread_variances(tuning.inverse_mass.flatten()),
            acceptance=trace["acceptance"].mean().item(),
            divergences=int(trace["divergent"].sum()),
            temperature=self.temperature,
            trace=trace | history,
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

        Each data set has a step size and masses of its own; the number of leapfrog steps is common.
        Simulation-based calibration and replicated studies use this; small models gain most, since
        their gradients cost the same for one data set as for a hundred.

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
            ConvergenceError: The log density is not finite at the start of a chain.

        Example:
            >>> import torch, probnn
            >>> prior = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=()), probnn.priors.NormalWeights())
            >>> X, Y = torch.ones(5, 1).double(), torch.zeros(7, 1, 5, 1).double()
            >>> hmc = probnn.HMC(num_chains=2, num_warmup=20, num_samples=10)
            >>> theta, psi = hmc.fit_batch(prior, probnn.likelihoods.Gaussian(noise=0.1), X, Y)
            >>> tuple(theta.shape), tuple(psi.shape)
            ((7, 2, 10, 2), (7, 2, 10, 0))
        """
        where = "HMC.fit_batch"
        generator = rnd.generator_from(rnd.check_seed(where, seed), device=getattr(X, "device", None))
        prior, likelihood = replicated(where, prior, likelihood, X, Y, noise_variance, self.prefers_double)
        target = self._target(prior, likelihood, X, Y, noise_variance)
        chains = Chains(self, target, generator)
        state, tuning = chains.cold(Y.shape[:1])
        state, tuning, _ = chains.adapt(state, tuning, self.num_warmup, unwatched)
        return chains.draw(state, tuning, unwatched)[0]
