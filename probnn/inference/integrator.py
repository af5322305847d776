r"""Hamiltonian dynamics of a batch of chains.

The Hamiltonian is :math:`H(z, p) = -\log\pi(z) + \tfrac12 p^\top M^{-1} p` with a diagonal mass M.
Momenta are kept whitened, :math:`r = M^{-1/2} p \sim N(0, I)`, so that with
:math:`e = \varepsilon M^{-1/2}` one leapfrog step of size :math:`\varepsilon` is

.. math:: r \leftarrow r + \tfrac12 e \nabla\log\pi(z),\quad z \leftarrow z + e r,\quad
          r \leftarrow r + \tfrac12 e \nabla\log\pi(z),

volume-preserving, reversible, with an error of the energy of order :math:`\varepsilon^2` (Duane,
Kennedy, Pendleton and Roweth 1987; Neal 2011, arXiv 1206.1901). Chains are the last leading
dimension; what comes before it are replications, each with a step size and masses of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import random as rnd

ValueAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]
# An energy error above this is no error of a usable step size: the trajectory has left the region
# where the integrator is stable (the threshold of Stan).
DIVERGENCE = 1000.0


class State(NamedTuple):
    """What the next transition needs.

    Args:
        z: Coordinates ``... x C x D``.
        log_prob: Log density there, ``... x C``.
        grad: Its gradient, like z.
    """

    z: Tensor
    log_prob: Tensor
    grad: Tensor


class Transition(NamedTuple):
    """What diagnostics and adaptation need of one transition.

    Args:
        proposal: Where the trajectories ended, ``... x C x D``.
        momentum: The whitened momentum there, like the proposal.
        acceptance: Probability of accepting it, ``... x C``; 0 where the energy is not finite.
        divergent: Where the energy error passed :data:`DIVERGENCE` or was not a number.
        energy: The Hamiltonian of the state that was kept.
    """

    proposal: Tensor
    momentum: Tensor
    acceptance: Tensor
    divergent: Tensor
    energy: Tensor


def initial_state(value_and_grad: ValueAndGrad, z: Tensor) -> State:
    """The state at z."""
    return State(z, *value_and_grad(z))


def leapfrog(
    value_and_grad: ValueAndGrad, state: State, momentum: Tensor, step: Tensor, num_steps: int
) -> tuple[State, Tensor]:
    """Follow the dynamics for `num_steps` steps, one gradient each.

    Args:
        value_and_grad: Log density and gradient of coordinates ``... x C x D``.
        state: Where the trajectories begin.
        momentum: Whitened momenta, like ``state.z``.
        step: The step size times the square root of the inverse masses, broadcasting against z.
        num_steps: How many.

    Returns:
        The state at the end, and the momenta there.
    """
    z, log_prob, grad = state.z.clone(), state.log_prob, state.grad
    momentum = torch.addcmul(momentum, step, grad, value=0.5)
    for i in range(num_steps):
        z.addcmul_(step, momentum)
        log_prob, grad = value_and_grad(z)
        # Half steps of the momentum in the middle of the trajectory join into whole ones.
        momentum.addcmul_(step, grad, value=1.0 if i < num_steps - 1 else 0.5)
    return State(z, log_prob, grad), momentum


def energy(log_prob: Tensor, momentum: Tensor) -> Tensor:
    """The Hamiltonian ``... x C``."""
    return 0.5 * momentum.square().sum(-1) - log_prob


def transition(
    value_and_grad: ValueAndGrad,
    state: State,
    step: Tensor,
    num_steps: int,
    generator: torch.Generator | None,
) -> tuple[State, Transition]:
    """One step of Hamiltonian Monte Carlo for every chain: fresh momenta, a trajectory, a decision."""
    momentum = rnd.normal(state.z.shape, generator=generator, like=state.z)
    before = energy(state.log_prob, momentum)
    end, momentum = leapfrog(value_and_grad, state, momentum, step, num_steps)
    after = energy(end.log_prob, momentum)
    # A trajectory that ran into infinity or NaN has lost: its end can never be accepted.
    error = torch.where(torch.isfinite(after), after - before, torch.inf)
    acceptance = (-error).exp().clamp_max(1.0)
    accept = rnd.uniform(acceptance.shape, generator=generator, like=acceptance) < acceptance
    moved = accept.unsqueeze(-1)
    kept = State(
        torch.where(moved, end.z, state.z),
        torch.where(accept, end.log_prob, state.log_prob),
        torch.where(moved, end.grad, state.grad),
    )
    told = Transition(end.z, momentum, acceptance, error > DIVERGENCE, torch.where(accept, after, before))
    return kept, told
