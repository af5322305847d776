"""Hamiltonian Monte Carlo with all chains in one batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import (
    ConvergenceError,
    ConvergenceWarning,
    DivergenceWarning,
    DomainError,
    PrecisionWarning,
    ShapeError,
    user_level,
)
from ..likelihoods import Likelihood
from ..process import EmpiricalProcess, ParametricProcess
from ..process.base import moved
from . import start
from .adaptation import Tuning, Warmup
from .base import SINGLE, FitInfo, InferenceMethod, Session, single_or_double
from .collapsed import CollapsedTarget
from .integrator import State, Transition, initial_state, transition
from .mixing import worst_rhat
from .target import Target

_CONVERGED, _UNMIXED = 1.05, 1.2  # the largest R-hat below which draws are good, above which they are bad
_TELLING = 20  # draws a chain from which R-hat is a reason to warn
# Shares of diverged trajectories: not converged above, a warning above, and that of fewer draws.
_UNSOUND, _DIVERGENT, _MANY = 0.01, 0.02, 0.05
_FIRST_TRAJECTORY = 1.5  # a quarter of a period of a normal coordinate of scale one

# Told about every transition; True asks to stop the phase.
Watch = Callable[[State, Transition], bool]


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
    ``"warmup_num_leapfrog"``.

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
            :class:`probnn.MLP` with normal (or hierarchical) weights and a Gaussian likelihood; the draws follow
            the same posterior. Chains mix faster, and best so where the noise is small or inferred.

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
        if not isinstance(self.collapse_last_layer, bool):
            raise DomainError(f"HMC: collapse_last_layer must be True or False, got {self.collapse_last_layer!r}")

    def _target(
        self, prior: ParametricProcess, likelihood: Likelihood, X: Tensor, Y: Tensor, noise_variance: Tensor | None
    ) -> Target:
        kind = CollapsedTarget if self.collapse_last_layer else Target
        return kind(prior, likelihood, X, Y, noise_variance)

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
        chains = _Chains(self, target, session.generator)
        length = self.num_warmup
        if init is None:
            state, tuning = chains.cold(torch.Size())
        else:
            state, tuning, carried = chains.warm(init)
            length = length // 4 if carried else length
        with _Watch(session, length + self.num_samples) as watch:
            state, tuning, history = chains.adapt(state, tuning, length, watch)
            draws, trace = chains.draw(state, tuning, watch)
        theta, psi = (part.squeeze(0).contiguous() for part in draws)
        trace = {name: value.squeeze(0) for name, value in trace.items()}
        share = trace["divergent"].double().mean().item()
        if share > (_DIVERGENT if theta.shape[1] >= _TELLING else _MANY):
            session.warn(
                f"HMC.fit: {share:.1%} of the trajectories after warm-up diverged; the posterior has regions of much "
                "higher curvature that the draws may miss: raise target_accept, or reparameterise the prior",
                DivergenceWarning,
            )
        info = session.info(
            steps=watch.step,
            gradients=chains.gradients,
            converged=_converged(session, target, theta, psi, trace["log_prob"], share),
            step_size=tuning.step.item(),
            trajectory=tuning.trajectory,
            inverse_mass=target.spread_variances(tuning.inverse_mass.flatten()),
            acceptance=trace["acceptance"].mean().item(),
            divergences=int(trace["divergent"].sum()),
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
        if not isinstance(prior, ParametricProcess) or not isinstance(likelihood, Likelihood):
            raise DomainError(
                f"{where}: needs a parametric prior and a probnn likelihood, "
                f"got a {type(prior).__name__} and a {type(likelihood).__name__}"
            )
        single_or_double(where, X)
        validation.inputs(where, X, prior.input_dim)
        validation.outcomes(where, "Y", Y, X, likelihood.outcomes(prior.output_dim))
        for name, data in (("X", X), ("Y", Y)):
            if not (data.ndim == 4 and data.shape[1] == 1) and not (name == "X" and data.ndim == 2):
                raise ShapeError(
                    f"{where}: {name} must have shape (R, 1, {data.shape[-2]}, {data.shape[-1]}) for R data sets, "
                    f"got {tuple(data.shape)}; the second dimension is the chains'"
                )
        if Y.shape[0] == 0:
            raise ShapeError(f"{where}: Y must hold one data set or more, got {tuple(Y.shape)}")
        if X.dtype == torch.float32:
            warnings.warn(f"{where}: {SINGLE}", PrecisionWarning, stacklevel=user_level())
        likelihood.check_outcomes(where, Y)
        if noise_variance is not None:
            validation.variances(where, noise_variance, X, Y.shape[-1])
            likelihood = likelihood.given_noise(noise_variance)
        prior = prior.to(dtype=X.dtype, device=X.device)
        target = self._target(prior, moved(likelihood, X.device, X.dtype), X, Y, noise_variance)
        chains = _Chains(self, target, generator)
        state, tuning = chains.cold(Y.shape[:1])
        state, tuning, _ = chains.adapt(state, tuning, self.num_warmup, _unwatched)
        return chains.draw(state, tuning, _unwatched)[0]


class _Watch:
    """Shows progress and asks the callback, over both phases of a fit."""

    def __init__(self, session: Session, total: int):
        self._session, self._total, self._bar = session, total, session.bar(total)
        self.step = 0

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def __call__(self, state: State, told: Transition) -> bool:
        self.step += 1
        self._bar.update(accept=f"{told.acceptance.mean().item():.2f}")
        return self._session.stop(self.step, self._total, State(*(part.squeeze(0) for part in state)))


def _unwatched(state: State, told: Transition) -> bool:
    return False


class _Chains:
    """The chains of one fit: coordinates are ``R x C x D`` throughout, R = 1 for a single data set."""

    def __init__(self, method: HMC, target: Target, generator: torch.Generator):
        self.method, self.target, self.generator = method, target, generator
        self.gradients = 0  # counted per chain
        _keep_heap(target.X.device)

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log density and gradient, `chain_chunk` chains at a time."""
        self.gradients += z.shape[:-1].numel()
        if self.method.chain_chunk is None:
            return self.target.value_and_grad(z)
        parts = [self.target.value_and_grad(part) for part in z.split(self.method.chain_chunk, -2)]
        return torch.cat([value for value, _ in parts], -1), torch.cat([grad for _, grad in parts], -2)

    def cold(self, replications: torch.Size) -> tuple[State, Tuning]:
        """States near the data and a first tuning, from the prior alone."""
        shape = (replications[0] if replications else 1, self.method.num_chains)
        scales = start.prior_scales(self.target, self.generator)
        z = start.cold(self.target, self.value_and_grad, shape, scales, self.method.start_steps, self.generator)
        return self._begin(z, scales.square())

    def warm(self, init: ParametricProcess) -> tuple[State, Tuning, bool]:
        """States from a previous posterior, its tuning or a first one, and whether it had any."""
        z = start.warm(self.target, init, self.method.num_chains, self.generator).unsqueeze(0)
        info = init.info
        scales = start.prior_scales(self.target, self.generator)
        first = self.target.spread_variances(scales.square())
        size = len(first) - self.target.likelihood.num_parameters
        known = info.inverse_mass if isinstance(info, FitInfo) and info.step_size is not None else None
        inferred = 0 if init.likelihood is None else init.likelihood.num_parameters
        if known is None or len(known) - inferred != size:  # not from HMC, or one with another collapse_last_layer
            return *self._begin(z, scales.square()), False
        known = known.to(z)
        inverse_mass = known if len(known) == len(first) else torch.cat([known[:size], first[size:]])
        inverse_mass = self.target.gather_variances(inverse_mass)
        tuning = Tuning(
            z.new_full((1,), info.step_size), info.trajectory or _FIRST_TRAJECTORY, inverse_mass.expand(1, 1, -1)
        )
        return self._state(z), tuning, True

    def adapt(self, state: State, tuning: Tuning, length: int, watch: Watch) -> tuple[State, Tuning, dict[str, Tensor]]:
        """Run the warm-up: the state and tuning it ends with, and its history."""
        method = self.method
        warmup = Warmup.start(length, method.target_accept, method.max_leapfrog, self.target.pool, tuning, state.z)
        history = []
        for index in range(1, length + 1):
            tuning = warmup.tuning
            step, num_steps = tuning.plan(index, self.method.max_leapfrog)
            before = state
            state, told = transition(self.value_and_grad, before, step, num_steps, self.generator)
            warmup = warmup.update(step, num_steps, before, state, told)
            history.append((told.acceptance.mean(), tuning.step.log().mean().exp(), tuning.trajectory, num_steps))
            if watch(state, told):
                break
        names = ("warmup_acceptance", "warmup_step_size", "warmup_trajectory", "warmup_num_leapfrog")
        columns = zip(names, zip(*history, strict=True), strict=True) if history else ()
        return state, warmup.result, {name: torch.tensor(column) for name, column in columns}

    def draw(self, state: State, tuning: Tuning, watch: Watch) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """Sample with the tuning as it is: theta and psi ``R x C x S x size``, and what happened on the way."""
        draws, num_leapfrog = [], []
        trace: dict[str, list[Tensor]] = {name: [] for name in ("energy", "log_prob", "acceptance", "divergent")}
        for index in range(1, self.method.num_samples + 1):
            step, num_steps = tuning.plan(index, self.method.max_leapfrog)
            state, told = transition(self.value_and_grad, state, step, num_steps, self.generator)
            draws.append(self.target.complete(state.z, self.generator))
            num_leapfrog.append(num_steps)
            for name, value in zip(trace, (told.energy, state.log_prob, told.acceptance, told.divergent), strict=True):
                trace[name].append(value)
            if watch(state, told):
                break
        kept = {name: torch.stack(values, -1) for name, values in trace.items()}
        theta, psi = (torch.stack(parts, -2) for parts in zip(*draws, strict=True))
        return (theta, psi), kept | {"num_leapfrog": torch.tensor(num_leapfrog)}

    def _begin(self, z: Tensor, inverse_mass: Tensor) -> tuple[State, Tuning]:
        state = self._state(z)
        inverse_mass = inverse_mass.expand(z.shape[0], 1, -1)
        step = start.first_step(self.value_and_grad, state, inverse_mass, self.generator)
        return state, Tuning(step, _FIRST_TRAJECTORY, inverse_mass)

    def _state(self, z: Tensor) -> State:
        state = initial_state(self.value_and_grad, z)
        bad = ~(torch.isfinite(state.log_prob) & torch.isfinite(state.grad).all(-1))
        if bad.any():
            chains = bad.nonzero()[:, -1].unique().tolist()
            raise ConvergenceError(
                f"HMC: the log density or its gradient is not finite at the start of chains {chains}; look for "
                "outcomes that the likelihood gives no mass, extreme values in X, or a prior that overflows"
            )
        return state


def _converged(
    session: Session, target: Target, theta: Tensor, psi: Tensor, log_prob: Tensor, diverged: float
) -> bool | None:
    """Whether chains agree and few trajectories diverged; warns where chains clearly disagree."""
    if theta.shape[1] < 4:
        return None
    what, worst = worst_rhat(target.prior, target.X, theta, psi, log_prob)
    if not worst <= _UNMIXED and theta.shape[1] >= _TELLING:
        session.warn(
            f"HMC.fit: chains disagree, most about {what} (R-hat {worst:.2f}); run longer, with num_warmup and "
            "num_samples doubled, before trusting the posterior",
            ConvergenceWarning,
        )
    return worst < _CONVERGED and diverged <= _UNSOUND


def _keep_heap(device: torch.device) -> None:
    """Make the C library keep freed memory for the next leapfrog step.

    glibc hands memory back to the kernel in proportion to the largest block it has ever freed, and
    every gradient then pays page faults for its activations: measured 1.5 to 2.5 times the time at
    64 chains. One untouched block of the largest size that counts (32 MB) settles it.
    """
    if device.type == "cpu":
        torch.empty(31 << 20, dtype=torch.uint8)
