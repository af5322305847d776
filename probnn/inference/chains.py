"""The chains of one fit by Hamiltonian Monte Carlo, all in one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ConvergenceError
from ..process import ParametricProcess
from . import start
from .adaptation import Tuning, Warmup
from .base import FitInfo, Session
from .integrator import State, Transition, initial_state, transition
from .target import Target

_FIRST_TRAJECTORY = 1.5  # a quarter of a period of a normal coordinate of scale one

# Told about every transition; True asks to stop the phase.
Watcher = Callable[[State, Transition], bool]


class Settings(Protocol):
    """What the chains need to know of the method."""

    @property
    def num_chains(self) -> int: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def target_accept(self) -> float: ...
    @property
    def max_leapfrog(self) -> int: ...
    @property
    def start_steps(self) -> int: ...
    @property
    def chain_chunk(self) -> int | None: ...
    @property
    def gibbs_scales(self) -> bool: ...


class Watch:
    """Shows progress and asks the callback, over both phases of a fit."""

    def __init__(self, session: Session, total: int):
        self._session, self._total, self._bar = session, total, session.bar(total)
        self.step = 0

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def __call__(self, state: State, told: Transition) -> bool:
        self.step += 1
        self._bar.update(accept=f"{told.acceptance.mean().item():.2f}")
        return self._session.stop(self.step, self._total, State(*(part.squeeze(0) for part in state)))


def unwatched(state: State, told: Transition) -> bool:
    return False


class Chains:
    """The chains of one fit: coordinates are ``R x C x D`` throughout, R = 1 for a single data set."""

    def __init__(self, method: Settings, target: Target, generator: torch.Generator):
        self.method, self.target, self.generator = method, target, generator
        self.gradients = 0  # counted per chain
        keep_heap(target.X.device)

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

    def adapt(
        self, state: State, tuning: Tuning, length: int, watch: Watcher
    ) -> tuple[State, Tuning, dict[str, Tensor]]:
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
            state = self._refresh(state)
            history.append((told.acceptance.mean(), tuning.step.log().mean().exp(), tuning.trajectory, num_steps))
            if watch(state, told):
                break
        names = ("warmup_acceptance", "warmup_step_size", "warmup_trajectory", "warmup_num_leapfrog")
        columns = zip(names, zip(*history, strict=True), strict=True) if history else ()
        return state, warmup.result, {name: torch.tensor(column) for name, column in columns}

    def draw(self, state: State, tuning: Tuning, watch: Watcher) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """Sample with the tuning as it is: theta and psi ``R x C x S x size``, and what happened on the way."""
        draws, num_leapfrog = [], []
        trace: dict[str, list[Tensor]] = {name: [] for name in ("energy", "log_prob", "acceptance", "divergent")}
        for index in range(1, self.method.num_samples + 1):
            step, num_steps = tuning.plan(index, self.method.max_leapfrog)
            state, told = transition(self.value_and_grad, state, step, num_steps, self.generator)
            state = self._refresh(state)
            draws.append(self.target.complete(state.z, self.generator))
            num_leapfrog.append(num_steps)
            for name, value in zip(trace, (told.energy, state.log_prob, told.acceptance, told.divergent), strict=True):
                trace[name].append(value)
            if watch(state, told):
                break
        kept = {name: torch.stack(values, -1) for name, values in trace.items()}
        theta, psi = (torch.stack(parts, -2) for parts in zip(*draws, strict=True))
        return (theta, psi), kept | {"num_leapfrog": torch.tensor(num_leapfrog)}

    def _refresh(self, state: State) -> State:
        """The state with the scales of the prior drawn anew, where they can be."""
        z = self.target.refresh(state.z, self.generator) if self.method.gibbs_scales else None
        return state if z is None else initial_state(self.value_and_grad, z)

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


def keep_heap(device: torch.device) -> None:
    """Make the C library keep freed memory for the next leapfrog step.

    glibc hands memory back to the kernel in proportion to the largest block it has ever freed, and
    every gradient then pays page faults for its activations: measured 1.5 to 2.5 times the time at
    64 chains. One untouched block of the largest size that counts (32 MB) settles it.
    """
    if device.type == "cpu":
        torch.empty(31 << 20, dtype=torch.uint8)
