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

Only variances are taken off, and noises of coordinates that correlate in the data correlate too. The noise that
gradients bring, as a share of what the friction balances, is the *heat*

.. math:: H = \eta^{1/2} B \eta^{1/2} / (2\alpha),

here with the covariance B of the noise. With its diagonal taken off (all of it, where that is below 1) the momenta
:math:`\eta^{-1/2} v` have the temperature :math:`1 + u^T (H - \mathrm{diag} H) u` along a unit vector u that is an
eigenvector of H and of :math:`\eta^{1/2} h \eta^{1/2}`, and so has the variance of positions there; with the
curvature h that a likelihood's information gives, B is nearly a multiple of h. Along directions in which gradients
bring no noise that is less than 1, by no more than the largest heat of a coordinate. Where the noises of D coordinates
add up it is more, by up to D times that: by no more than the largest eigenvalue of H, the heat of the *loudest*
direction. It is estimated chain by chain, since networks whose units are permuted have other directions, from the last
50 looks; see :func:`top_variance`.

The heat grows with :math:`\varepsilon^2 / \alpha` and mixing slows down with :math:`\alpha / \varepsilon^2`, so at a
given batch size only longer chains are less biased. Where no step size is given, chains are *cooled* in the second half
of the warm-up: with a mass of at least :math:`\varepsilon^2 B / (2 \alpha \cdot 0.1)`, which bounds the heat of every
coordinate by 0.1, and then an :math:`\eta` smaller by a factor common to all, which bounds that of the loudest
direction by 0.25: standard deviations are then at most 1.12 times too large. A limit of 0.1 there would make chains
another 2.5 times slower. The first half is not cooled, since chains that have far to go would not arrive.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from .. import random as rnd
from .minibatch import Minibatches

STEP = 0.01  # the step size, but in coordinates where its heat would be more than this:
HEAT = 0.1
LOUD = 0.25  # the heat of any direction, which a factor common to all coordinates bounds
_WINDOW = 50  # looks at the noise that are remembered: where chains still come down it falls
_MEMORY = 1 / 15  # of the warm-up: the window of squared gradients
_FIRST = 20  # looks at the start
_EVERY = 10  # steps of the warm-up between two looks at the noise, and two changes of the masses
_RARELY = 10  # looks between two choices of the common factor, which costs as much as some steps
_NUMBERS = 1 << 18  # random numbers drawn at once, at most


class Walkers:
    """Chains under friction; everything that has coordinates is ``R x C x D`` or broadcasts to it.

    Args:
        batches: What gives gradients.
        z: Where chains begin.
        scales: Scales of the prior, of length D.
        step_size: epsilon; None: 0.01, once cooled less, so that heats are within their limits.
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
        self._heard = 0
        self._noises: deque[Tensor] = deque(maxlen=_WINDOW)
        self.cooled = False
        self.share = torch.ones_like(self.gradient_noise)  # common to all coordinates: of what their own heat allows
        self.eta = torch.ones_like(self.gradient_noise)  # of velocities that are 0
        far = self.target.start(tuple(z.shape[:-1]), generator)
        self._use(self.pooled(batches.value_and_grad(far)[1].square()))
        self._normals: list[Tensor] = []

    @property
    def z(self) -> Tensor:
        """Where the chains are: in the middle of their last step."""
        return self.end - 0.5 * self.velocity

    @property
    def heat(self) -> Tensor:
        """Share of the noise asked for by the friction that gradients bring to every coordinate."""
        return self.eta * self.gradient_noise / (2 * self.friction)

    @property
    def loudest(self) -> Tensor:
        """Heat of the direction in which noises add up the most, on average over chains, ``R x 1 x 1``."""
        heat = self.heat.amax(-1, keepdim=True)
        if not self._noises:
            return heat
        noises = torch.stack(list(self._noises), -2) * (self.eta / (2 * self.friction)).sqrt().unsqueeze(-2)
        return heat.maximum(top_variance(noises).mean(-1)[..., None, None])

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

    def hear(self, noise: Tensor) -> None:
        """Take in one more noise of gradients, ``R x C x D``."""
        self._noises.append(noise)
        self._heard += 1
        self.gradient_noise = self.gradient_noise.lerp(self.pooled(noise.square()), 1 / min(self._heard, _WINDOW))

    def cool(self) -> None:
        """Where no step size is given: bound heats from now on, that of the loudest direction by how loud it is now."""
        self.cooled, self.share = True, torch.ones_like(self.share)
        self._use(self.second_moment)
        self.share = (LOUD / self.loudest).clamp_max(1)
        self._use(self.second_moment)

    def _use(self, second_moment: Tensor) -> None:
        """Set the masses by V, and with them the noise."""
        self.second_moment = second_moment
        inverse_mass = second_moment.maximum(self.least).rsqrt()
        old = self.eta
        self.eta = (STEP if self._fixed is None else self._fixed) ** 2 * inverse_mass
        if self._fixed is None and self.cooled:
            self.eta = self.eta.minimum(2 * self.friction * HEAT / self.gradient_noise)
            self.eta = self.eta * self.share
        self.step_size = (self.eta / inverse_mass).sqrt().amin(-1, keepdim=True)
        self.velocity.mul_((self.eta / old).sqrt())  # whitened, v / eta^(1/2), they stay what they are
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
        self._squares = 0
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
            if self._squares % _RARELY == 1:
                walkers.cool()
        return value, slope

    def _look(self, z: Tensor, slope: Tensor) -> None:
        """Compare the gradient at z with another one there."""
        walkers = self.walkers
        walkers.hear((slope - walkers.batches.value_and_grad(z)[1]) * 0.5**0.5)


def top_variance(values: Tensor) -> Tensor:
    r"""The largest variance of mean-zero vectors ``... x L x D`` along any direction, from below: ``...``.

    The direction is the first principal one of every second vector, and the variance that of the others along it, which
    no choice has made larger; and the other way round. The largest eigenvalue of all vectors' covariance would be too
    large, by a factor of about :math:`(1 + \sqrt{D / L})^2` where all variances are equal.
    """
    halves, found = (values[..., ::2, :], values[..., 1::2, :]), []
    for fitted, scored in (halves, halves[::-1]):
        weights = torch.linalg.eigh(fitted @ fitted.mT).eigenvectors[..., -1:]  # of the vectors, in that direction
        direction = torch.nn.functional.normalize(fitted.mT @ weights, dim=-2)
        found.append((scored @ direction).square().mean((-2, -1)))
    return (found[0] + found[1]) / 2
