"""Where chains begin: the scales of the prior, prior draws moved towards the data, a previous posterior."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import random as rnd
from ..process import EmpiricalProcess, ParametricProcess
from .integrator import State, ValueAndGrad, energy, leapfrog
from .target import Target

_NORMAL_MAD = 0.6744897501960817  # median of |x| for a standard normal x


def prior_scales(target: Target, generator: torch.Generator | None, num_draws: int = 256) -> Tensor:
    """The scale of every coordinate under the prior, of length `size`: the units to begin with.

    Median absolute deviations (times 1.48, so that they are standard deviations of normal
    coordinates): heavy-tailed priors have no variance to go by.
    """
    theta = target.restrict(target.prior._sample_parameters(torch.Size([num_draws]), generator))
    psi = target.likelihood.sample_prior((num_draws,), generator=generator, dtype=theta.dtype, device=theta.device)
    z = torch.cat([theta, psi], -1)
    return target.pool((z - z.median(0).values).abs().median(0).values) / _NORMAL_MAD


def climb(value_and_grad: ValueAndGrad, z: Tensor, scales: Tensor, num_steps: int, rate: float = 0.05) -> Tensor:
    """Ascend the log density from every z by Adam, in units of `scales`; a scale of zero holds a coordinate."""
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    for k in range(1, num_steps + 1):
        slope = value_and_grad(z)[1] * scales
        first, second = first.lerp(slope, 0.1), second.lerp(slope.square(), 0.001)
        size = (second / (1 - 0.999**k)).sqrt() + torch.finfo(z.dtype).tiny
        z = z + rate * scales * (first / (1 - 0.9**k)) / size
    return z


def cold(
    target: Target,
    value_and_grad: ValueAndGrad,
    shape: tuple[int, ...],
    scales: Tensor,
    num_steps: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Prior draws of theta, moved towards the data, beside the prior median of psi: ``shape x size``.

    psi stays where it is: a noise optimised along with an unfinished function runs off to explain
    its error as noise, and chains come back from there late or never.
    """
    of_theta, of_psi = target.split(scales)
    held = torch.cat([of_theta, torch.zeros_like(of_psi)])
    return climb(value_and_grad, target.start(shape, generator), held, num_steps)


def warm(target: Target, init: ParametricProcess, num_chains: int, generator: torch.Generator | None) -> Tensor:
    """Draws of a previous posterior: ``num_chains x size``.

    Those of an :class:`EmpiricalProcess` are spread evenly over its chains and weights, and bring
    their psi where the likelihoods agree on it; else psi begins at its prior median.
    """
    like, R = target.X, target.likelihood.num_parameters
    psi = target.likelihood.prior_median(dtype=like.dtype, device=like.device).expand(num_chains, -1)
    if isinstance(init, EmpiricalProcess):
        draws = init.thin(num_chains)
        theta = draws.theta[0].to(like)
        if draws.psi.shape[-1] == R:
            psi = draws.psi[0].to(like)
    else:
        theta = init._sample_parameters(torch.Size([num_chains]), generator).to(like)
    return torch.cat([target.restrict(theta), psi], -1)


def first_step(
    value_and_grad: ValueAndGrad, state: State, inverse_mass: Tensor, generator: torch.Generator | None
) -> Tensor:
    """A step size of the right order for every replication, ``R``: single steps are accepted about 8 times in 10."""
    step = state.log_prob.new_full(state.log_prob.shape[:1], 0.1)
    rising = searching = None
    for _ in range(60):  # up or down by factors of two, at most to 1e-19 or 1e17
        momentum = rnd.normal(state.z.shape, generator=generator, like=state.z)
        end, after = leapfrog(value_and_grad, state, momentum, step[:, None, None] * inverse_mass.sqrt(), 1)
        error = energy(end.log_prob, after) - energy(state.log_prob, momentum)
        accepted = torch.nan_to_num(-error, nan=-torch.inf).exp().clamp_max(1.0).mean(-1)
        easy = accepted > 0.8
        rising = easy if rising is None else rising
        searching = easy == rising if searching is None else searching & (easy == rising)
        if not searching.any():
            break
        step = torch.where(searching, torch.where(rising, 2 * step, step / 2), step)
    return step
