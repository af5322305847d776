r"""Langevin dynamics with friction, driven by noisy gradients: the steps of stochastic-gradient HMC.

With the potential :math:`U = -\log p`, a diagonal :math:`\eta = \varepsilon^2 M^{-1}` and friction :math:`\alpha`,
one step is (Chen, Fox and Guestrin 2014, eq. 15)

.. math:: v \leftarrow (1 - \alpha) v - \eta\,\widehat{\nabla U}(w) + N(0,\, 2\alpha\eta - \eta^2 B), \qquad
          w \leftarrow w + v,

where B is the variance of the gradient's own noise, which enters the same sum and so is taken off exactly. On a
normal target of curvature h with exact gradients w is an autoregression of order two. With :math:`k = \eta h < 4 -
2\alpha`, where it is stable, w has stationary variance :math:`h^{-1} / (1 - k / (4 - 2\alpha))` and the middle of a
step, :math:`w - v / 2`, has :math:`h^{-1}`: no error of the discretisation at any step size, nor in several dimensions
with diagonal M. So positions are read, and scales drawn anew, at the middle of steps; gradients are taken at their
ends.

The masses are those of Springenberg, Klein, Falkner and Hutter (2016, section 4), :math:`M^{-1} = V^{-1/2}` with V a
running mean of squared gradients; it is averaged over chains and over exchangeable units, never below the precision of
the prior, and frozen after the warm-up. Their window adapts to how fast the gradient's mean moves, from a length of
one: chains that begin near a mode, where gradients vanish, then take steps that are too long and run away. Here V
begins with the (large) gradients at draws of the prior, a fifteenth of the warm-up is the window, and what is frozen is
the mean over the second half.

They put V in place of B too, :math:`\eta^2 V = \varepsilon^4`. But V is no noise where gradients are exact (its mean is
then the curvature) and at any batch size contains both, so that rule makes posteriors too narrow where data are few;
where :math:`\varepsilon^2 V^{1/2} > 2\alpha` it truncates what is negative. B is estimated by itself here: half the
squared difference of two gradients at one point, at the start and then at every tenth step of the warm-up.

Only variances are taken off, and noises of coordinates that correlate in the data correlate too. The share of the noise
that gradients bring, the *heat* :math:`\eta B / (2\alpha)`, bounds what that does: directions along which they bring
none get a variance smaller by that share, and those in which noises add up one that is larger by some times it. The
heat grows with :math:`\varepsilon^2 / \alpha` and mixing slows down with :math:`\alpha / \varepsilon^2`, so at a given
batch size only longer chains are less biased.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import random as rnd
from .minibatch import Minibatches

STEP = 0.01  # the step size, unless its heat would be more than this:
HEAT = 0.1
_WINDOW = 50  # looks at the noise that are remembered: where chains still come down it falls
_MEMORY = 1 / 15  # of the warm-up: the window of squared gradients
_FIRST = 20  # looks at the start
_EVERY = 10  # steps of the warm-up between two looks at the noise, and two changes of the masses
_NUMBERS = 1 << 18  # random numbers drawn at once, at most


class Walkers:
    """Chains under friction; everything that has coordinates is ``R x C x D`` or broadcasts to it.

    Args:
        batches: What gives gradients.
        z: Where chains begin.
        scales: Scales of the prior, of length D.
        step_size: epsilon; None: 0.01, or less where the heat would be more than 0.1 in some coordinate.
        friction: alpha.
        gibbs_every: Steps between draws of the prior's scales; 0: none.
    """

    def __init__(
        self,
        batches: Minibatches,
        z: Tensor,
        scales: Tensor,
        step_size: float | None,
        friction: float,
        gibbs_every: int,
    ):
        generator = batches.generator
        self.batches, self.target, self.generator = batches, batches.target, generator
        self._fixed, self.friction, self.gibbs_every = step_size, friction, gibbs_every
        self.end, self.velocity = z.clone(), torch.zeros_like(z)
        self.steps = 0
        self.least = scales.square().reciprocal()  # precisions of the prior
        self.gradient_noise = torch.zeros_like(z[:, :1])
        far = self.target.start(tuple(z.shape[:-1]), generator)
        self._use(self.pooled(batches.value_and_grad(far)[1].square()))
        self._normals: list[Tensor] = []

    @property
    def z(self) -> Tensor:
        """Where the chains are: in the middle of their last step."""
        return self.end - 0.5 * self.velocity

    @property
    def heat(self) -> Tensor:
        """Share of the noise asked for by the friction that gradients bring: above 1 they bring too much."""
        return self.eta * self.gradient_noise / (2 * self.friction)

    @property
    def kinetic_temperature(self) -> Tensor:
        """What the velocities say the temperature is, ``R x C``: 1, but for steps that are too long or too noisy."""
        return (1 - self.friction / 2) * (self.velocity.square() / self.eta).mean(-1)

    def step(self) -> tuple[Tensor, Tensor]:
        """Advance all chains by one step: estimates of log density and gradient at the former ends."""
        value, slope = self.batches.value_and_grad(self.end)
        self.velocity.mul_(1 - self.friction).addcmul_(self.eta, slope).addcmul_(self._sd, self._normal())
        self.end.add_(self.velocity)
        self.steps += 1
        if self.gibbs_every and self.steps % self.gibbs_every == 0:
            z = self.z
            drawn = self.target.refresh(z, self.generator)
            if drawn is None:
                self.gibbs_every = 0
            else:
                self.end.add_(drawn - z)
        return value, slope

    def pooled(self, values: Tensor) -> Tensor:
        """Means over chains and exchangeable units, ``R x 1 x D``."""
        return self.target.pool(values.mean(-2, keepdim=True))

    def _use(self, second_moment: Tensor) -> None:
        """Set the masses by V, and with them the noise."""
        self.second_moment = second_moment
        inverse_mass = second_moment.maximum(self.least).rsqrt()
        if self._fixed is None:
            heat = STEP**2 * (inverse_mass * self.gradient_noise).amax(-1, keepdim=True) / (2 * self.friction)
            self.step_size = STEP * (HEAT / heat).clamp_max(1).sqrt()
        else:
            self.step_size = torch.full_like(inverse_mass[..., :1], self._fixed)
        self.eta = self.step_size.square() * inverse_mass
        self._sd = (2 * self.friction * self.eta - self.eta.square() * self.gradient_noise).clamp_min(0).sqrt()

    def _normal(self) -> Tensor:
        if not self._normals:
            block = max(1, _NUMBERS // self.end.numel())
            draws = rnd.normal((block, *self.end.shape), generator=self.generator, like=self.end)
            self._normals = list(draws.unbind(0))
        return self._normals.pop()


class Adaptation:
    """Sets masses and noise of walkers during a warm-up of `length` steps.

    Args:
        walkers: The chains.
        length: Steps of the warm-up.
    """

    def __init__(self, walkers: Walkers, length: int):
        self.walkers, self.length = walkers, length
        self._weight = 1 / max(1.0, length * _MEMORY)
        self._moment = walkers.second_moment
        self._noises = self._squares = 0
        if not walkers.batches.exact:
            for _ in range(_FIRST):
                self._look(walkers.end, walkers.batches.value_and_grad(walkers.end)[1])
            walkers._use(self._moment)

    def step(self) -> tuple[Tensor, Tensor]:
        """One step of the walkers, learned from."""
        walkers = self.walkers
        look = walkers.steps % _EVERY == 0
        before = walkers.end.clone() if look else None
        value, slope = walkers.step()
        self._moment = self._moment.lerp(slope.square().mean(-2, keepdim=True), self._weight)
        if before is not None:
            if not walkers.batches.exact:
                self._look(before, slope)
            moment = walkers.target.pool(self._moment)
            if walkers.steps > self.length // 2:  # settled: what is frozen is the mean over the second half
                self._squares += 1
                moment = walkers.second_moment.lerp(moment, 1 / self._squares)
            walkers._use(moment)
        return value, slope

    def _look(self, z: Tensor, slope: Tensor) -> None:
        """Compare the gradient at z with another one there."""
        walkers = self.walkers
        self._noises += 1
        noise = walkers.pooled(0.5 * (slope - walkers.batches.value_and_grad(z)[1]).square())
        walkers.gradient_noise = walkers.gradient_noise.lerp(noise, 1 / min(self._noises, _WINDOW))
