r"""How Hamiltonian Monte Carlo finds its step size, trajectory length and masses during warm-up.

Small states with pure update functions, and :class:`Warmup`, which puts them on one schedule.
Chains are the last leading dimension of everything and are pooled; what comes before them are
replications (one in an ordinary fit), each with a step size and masses of its own. The trajectory
length, in units in which the masses are one, is common to all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .integrator import State, Transition

Pool = Callable[[Tensor], Tensor]


def van_der_corput(index: int) -> float:
    """Element `index` >= 1 of the base-2 sequence .5, .25, .75, .125, ... in (0, 1): jitter without gaps."""
    value, digit = 0.0, 0.5
    while index:
        value, index, digit = value + digit * (index & 1), index >> 1, digit / 2
    return value


@dataclass(frozen=True)
class Tuning:
    """What warm-up finds and sampling uses.

    Args:
        step: Step size of every replication, ``R``.
        trajectory: Longest trajectory, in units in which the masses are one.
        inverse_mass: Diagonal, ``R x 1 x D``; the marginal variances, once they are known.
    """

    step: Tensor
    trajectory: float
    inverse_mass: Tensor

    def plan(self, index: int, maximum: int) -> tuple[Tensor, int]:
        """Transition `index`: the step of every coordinate ``R x 1 x D``, and the number of leapfrog steps.

        The length is u times the longest, u jittered over (0, 1), so that no period of the
        dynamics is met again and again.
        """
        typical = self.step.log().mean().exp().item()
        num_steps = min(maximum, max(1, math.ceil(van_der_corput(index) * self.trajectory / typical)))
        return self.step[:, None, None] * self.inverse_mass.sqrt(), num_steps


@dataclass(frozen=True)
class DualAveraging:
    r"""Step size with a mean acceptance on target (Hoffman and Gelman 2014, arXiv 1111.4246).

    :math:`\log\varepsilon_{k+1} = \mu - \frac{\sqrt k}{\gamma}\bar H_k` with the running mean
    :math:`\bar H_k` of (target - acceptance), weights :math:`1/(k + t_0)`; the answer is the mean
    of :math:`\log\varepsilon_k` with weights :math:`k^{-\kappa}`. The acceptance of many chains is so
    much less noisy than that of one that gamma is .2 and not the usual .05: a restless step size
    costs gradients, :math:`E[1/\varepsilon] > 1/E[\varepsilon]`, measured a third of the warm-up.
    """

    log_step: Tensor
    centre: Tensor
    log_mean: Tensor
    error: Tensor
    count: int = 0

    @classmethod
    def start(cls, step: Tensor) -> DualAveraging:
        """Start at `step`, drawn to twice as much."""
        log_step = step.log()
        return cls(log_step, log_step + math.log(2), log_step, torch.zeros_like(log_step))

    def update(self, excess: Tensor) -> DualAveraging:
        """After a transition with target - acceptance = `excess` in every replication."""
        k = self.count + 1
        weight, fade = 1 / (k + 10), k**-0.75
        error = (1 - weight) * self.error + weight * excess
        log_step = self.centre - math.sqrt(k) / 0.2 * error
        log_mean = fade * log_step + (1 - fade) * self.log_mean
        return replace(self, log_step=log_step, log_mean=log_mean, error=error, count=k)


@dataclass(frozen=True)
class Acceptance:
    """The acceptance that the step size is adapted to.

    The arithmetic mean over the chains, less what it hides: the excess of the arithmetic over the
    harmonic mean of every chain's own recent acceptance. Where chains fare alike that is nothing
    and the target is met as it stands. But a chain in a region too stiff for the common step
    (a small inferred noise, say) rejects everything and stays there for good, and fifteen others
    at .85 hide it from an arithmetic mean; measured, one fit in three with an inferred noise. The
    harmonic mean of the acceptances themselves (Hoffman, Radul and Sountsov 2021) sees such a
    chain too, but is ever pessimistic: asked for .8 it settles at .94.
    """

    recent: Tensor  # of every chain, R x C

    def update(self, acceptance: Tensor) -> tuple[Acceptance, Tensor]:
        """With one more transition; and the pooled acceptance of every replication."""
        recent = 0.9 * self.recent + 0.1 * acceptance
        harmonic = 1 / (1 / recent.clamp_min(0.02)).mean(-1)
        return Acceptance(recent), acceptance.mean(-1) + harmonic - recent.mean(-1)


_PRICE = 0.5  # of a longer trajectory, see below


@dataclass(frozen=True)
class TrajectoryLength:
    r"""Longest trajectory T by the ChEES criterion (Hoffman, Radul and Sountsov 2021).

    With whitened coordinates q centred at their running mean, trajectories of length
    :math:`t = uT`, u jittered over (0, 1), and :math:`\Delta = |q_t|^2 - |q_0|^2`, the criterion is
    :math:`C(T) = \tfrac14 E[\Delta^2]`, the expected squared jump of the squared radius. C alone
    asks for the best draw whatever it costs. We ascend :math:`\log C - \tfrac12 \log T`, with

    .. math:: \frac{d\log C}{d\log T} = \frac{4\,E[\Delta\, t\, q_t^\top r_t]}{E[\Delta^2]},

    since gradients are paid for by the length. The full price, :math:`-\log T`, is too dear: the
    squared radius turns over twice while a coordinate does once, and means of functions, measured,
    mix best per gradient at about the length that half the price gives. Here
    :math:`r_t = dq_t/dt` is the whitened momentum at the end; expectations are over chains,
    weighted by the acceptance, and faded over transitions; steps shrink as :math:`k^{-1/4}` and
    the answer is the mean of the iterates, weighted like theirs in the paper.
    """

    log_length: float
    log_mean: float
    growth: float = 0.0
    spread: float = 0.0
    count: int = 0

    @classmethod
    def start(cls, length: float) -> TrajectoryLength:
        """Start at `length`."""
        return cls(math.log(length), math.log(length))

    def update(self, time: Tensor, scale: Tensor, centre: Tensor, before: State, told: Transition) -> TrajectoryLength:
        """After trajectories of length `time` (``R``) from `before`, in units `scale`, around the mean `centre`."""
        start, end = (before.z - centre) / scale, (told.proposal - centre) / scale
        jump = end.square().sum(-1) - start.square().sum(-1)
        rise = (end * told.momentum).sum(-1) * time[:, None]
        moments = torch.stack([4 * told.acceptance * jump * rise, told.acceptance * jump.square()])
        finite = torch.isfinite(moments).all(0)
        growth, spread = torch.where(finite, moments, 0.0).flatten(1).sum(-1).tolist()
        k = self.count + 1
        fade = max(0.1, 1 / k)
        growth, spread = ((1 - fade) * a + fade * b for a, b in ((self.growth, growth), (self.spread, spread)))
        step = 0.1 * k**-0.25 * (growth / spread - _PRICE) if spread > 0 else 0.0
        log_length = self.log_length + min(0.1, max(-0.1, step))
        log_mean = self.log_mean + k**-0.5 * (log_length - self.log_mean)
        return TrajectoryLength(log_length, log_mean, growth, spread, k)

    def within(self, longest: float) -> TrajectoryLength:
        """At most `longest`: what cannot be run must not grow, or every trajectory would be the longest."""
        bound = math.log(longest)
        return replace(self, log_length=min(self.log_length, bound), log_mean=min(self.log_mean, bound))

    def rescale(self, log_factor: float) -> TrajectoryLength:
        """In other units, with the count begun anew."""
        return replace(self, log_length=self.log_mean + log_factor, log_mean=self.log_mean + log_factor, count=0)


@dataclass(frozen=True)
class Window:
    """Mean and variance of the draws since the window opened, over transitions and chains: ``R x 1 x D``."""

    mean: Tensor
    squares: Tensor
    count: int = 0

    @classmethod
    def open(cls, z: Tensor) -> Window:
        """An empty window for coordinates like z ``R x C x D``."""
        zero = torch.zeros_like(z[:, :1])
        return cls(zero, zero)

    def add(self, z: Tensor) -> Window:
        """With the chains z in it (Chan, Golub and LeVeque 1983)."""
        chains, total = z.shape[1], self.count + z.shape[1]
        mean = z.mean(1, keepdim=True)
        shift = mean - self.mean
        squares = self.squares + (z - mean).square().sum(1, keepdim=True)
        squares = squares + shift.square() * (self.count * chains / total)
        return Window(self.mean + shift * (chains / total), squares, total)

    def inverse_mass(self, pool: Pool, present: Tensor) -> Tensor:
        """The pooled variances, drawn towards the present ones by the weight of ten draws."""
        return (pool(self.squares) + 10 * present) / (self.count + 10)


# Where windows close and masses are renewed, as fractions of the warm-up: each has twice the draws
# of the one before. The first tenth is on its way from the start and belongs to none.
_OPEN, _CLOSE = 0.1, (0.2, 0.35, 0.6)


@dataclass(frozen=True)
class Warmup:
    """The adaptation under way.

    Args:
        length: Number of transitions of the warm-up.
        target_accept: Acceptance to be reached.
        max_leapfrog: Longest trajectory, in steps.
        pool: Averages variances over exchangeable coordinates.
        averaging, acceptance, trajectory, window: The parts.
        inverse_mass: The present ones.
        done: Transitions so far.
    """

    length: int
    target_accept: float
    max_leapfrog: int
    pool: Pool
    averaging: DualAveraging
    acceptance: Acceptance
    trajectory: TrajectoryLength
    window: Window
    inverse_mass: Tensor
    done: int = 0

    @classmethod
    def start(
        cls, length: int, target_accept: float, max_leapfrog: int, pool: Pool, tuning: Tuning, z: Tensor
    ) -> Warmup:
        """Adapt from `tuning` on, over `length` transitions."""
        return cls(
            length,
            target_accept,
            max_leapfrog,
            pool,
            DualAveraging.start(tuning.step),
            Acceptance(torch.full_like(z[..., 0], target_accept)),
            TrajectoryLength.start(tuning.trajectory),
            Window.open(z),
            tuning.inverse_mass,
        )

    @property
    def tuning(self) -> Tuning:
        """What the next transition of the warm-up uses."""
        return Tuning(self.averaging.log_step.exp(), math.exp(self.trajectory.log_length), self.inverse_mass)

    @property
    def result(self) -> Tuning:
        """What sampling uses: the means of the iterates."""
        return Tuning(self.averaging.log_mean.exp(), math.exp(self.trajectory.log_mean), self.inverse_mass)

    def update(self, step: Tensor, num_steps: int, before: State, after: State, told: Transition) -> Warmup:
        """After a transition of `num_steps` steps of size `step` (as planned: of every coordinate)."""
        done = self.done + 1
        window = self.window.add(after.z)
        opening = round(_OPEN * self.length)
        trajectory = self.trajectory
        if self.done > opening:
            scale = self.inverse_mass.sqrt()
            time = num_steps * (step / scale)[:, 0, 0]
            trajectory = trajectory.update(time, scale, window.mean, before, told)
        acceptance, pooled = self.acceptance.update(told.acceptance)
        averaging = self.averaging.update(self.target_accept - pooled)
        trajectory = trajectory.within(self.max_leapfrog * averaging.log_mean.mean().exp().item())
        new = replace(self, averaging=averaging, acceptance=acceptance, trajectory=trajectory, window=window, done=done)
        if done == opening:
            return replace(new, window=Window.open(after.z))
        return new._renewed(after.z) if done in [round(share * self.length) for share in _CLOSE] else new

    def _renewed(self, z: Tensor) -> Warmup:
        """With the masses of the window, and step and trajectory in the new units."""
        inverse_mass = self.window.inverse_mass(self.pool, self.inverse_mass)
        shrink = 0.5 * (self.inverse_mass / inverse_mass).log().mean((1, 2))
        return replace(
            self,
            averaging=DualAveraging.start((self.averaging.log_mean + shrink).exp()),
            trajectory=self.trajectory.rescale(shrink.mean().item()),
            window=Window.open(z),
            inverse_mass=inverse_mass,
        )
