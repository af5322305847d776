"""The Wasserstein distance by its dual: a network that tells two laws apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .. import random as rnd
from .. import validation
from ..errors import DomainError
from .tuning import Problem, Stage, check_finite


@dataclass(frozen=True, kw_only=True)
class Wasserstein:
    r"""The objective of Tran, Rossi, Milios and Filippone (2022, JMLR 23; arXiv 2011.12829), for match_prior.

    .. math::
        W_1 = \sup_{|\phi|_L \le 1} E_{gp}[\phi(f_M)] - E_{nn}[\phi(f_M)]

    over the values of functions at the M measurement points. :math:`\phi` is a network M-200-200-1 of softplus
    units, held to slope one by the penalty :math:`\lambda E(|\nabla\phi(\hat f)| - 1)^2` at random points
    :math:`\hat f` between draws of the two (Gulrajani et al. 2017, arXiv 1704.00028). At every outer step it is made
    anew and trained by Adagrad on one set of draws, accumulators included (those of the authors' code survive, so
    that their critics learn less and less); then RMSprop takes a step in the hyper-parameters. Channels share the
    critic, and their values are summed. Defaults are the authors' for their regression benchmarks.

    Args:
        inner_steps: Steps of the critic at every outer step; None: 200, or 5 where it is persistent.
        inner_lr: Learning rate of the critic; None: 0.02 (Adagrad), or 0.001 where persistent (Adam, betas .5 and .9).
        lr: Learning rate of RMSprop in the hyper-parameters.
        penalty: lambda.
        one_sided: Punish slopes above one only.
        threshold: The critic stops where the norm of its gradient is below that; 0: it never does.
        persistent: Keep the critic from step to step and give it fresh draws at each of its steps: about twenty
            times cheaper.
        hidden: Width of the critic's layers.

    Raises:
        DomainError: A number is not positive.

    Example:
        >>> import probnn
        >>> probnn.priors.Wasserstein(persistent=True).steps
        5
    """

    inner_steps: int | None = None
    inner_lr: float | None = None
    lr: float = 0.05
    penalty: float = 10.0
    one_sided: bool = False
    threshold: float = 0.1
    persistent: bool = False
    hidden: int = 200

    def __post_init__(self) -> None:
        where = "priors.Wasserstein"
        for name in ("inner_steps", "hidden"):
            if getattr(self, name) is not None:
                validation.positive_int(where, name, getattr(self, name))
        for name in ("inner_lr", "lr", "penalty"):
            if getattr(self, name) is not None:
                validation.positive(where, name, getattr(self, name))
        validation.positive(where, "threshold", self.threshold, allow_zero=True)
        for name in ("one_sided", "persistent"):
            if not isinstance(getattr(self, name), bool):
                raise DomainError(f"{where}: {name} must be True or False, got {getattr(self, name)!r}")

    @property
    def steps(self) -> int:
        """Steps of the critic at every outer step."""
        return (5 if self.persistent else 200) if self.inner_steps is None else self.inner_steps

    @property
    def critic_lr(self) -> float:
        """Learning rate of the critic."""
        return (1e-3 if self.persistent else 0.02) if self.inner_lr is None else self.inner_lr


class Critic:
    """phi, trained to tell target draws y from network draws x, both ``n x M x c``.

    It computes in single precision: its value is no better than its training.
    """

    def __init__(self, num_points: int, settings: Wasserstein, generator: torch.Generator, device: torch.device | None):
        self.settings, self.generator = settings, generator
        sizes = (num_points, settings.hidden, settings.hidden, 1)
        self.parameters: list[Tensor] = []
        for into, out in zip(sizes[:-1], sizes[1:], strict=True):
            like = torch.empty(0, dtype=torch.float32, device=device)
            weight = rnd.normal((into, out), generator=generator, like=like) * math.sqrt(2 / (into + out))
            bias = rnd.normal((out,), generator=generator, like=like)
            self.parameters += [weight.requires_grad_(), bias.requires_grad_()]
        if settings.persistent:
            self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
                self.parameters, settings.critic_lr, betas=(0.5, 0.9)
            )
        else:
            self.optimizer = torch.optim.Adagrad(self.parameters, settings.critic_lr)

    def __call__(self, f: Tensor) -> Tensor:
        """phi of every draw and channel, ``n x c``."""
        h = f.float().mT
        for i in range(0, len(self.parameters), 2):
            h = h @ self.parameters[i] + self.parameters[i + 1]
            h = softplus(h) if i < len(self.parameters) - 2 else h
        return h.squeeze(-1)

    def gap(self, x: Tensor, y: Tensor) -> Tensor:
        """E phi(y) - E phi(x), summed over the channels: the dual value."""
        return self(y).mean(0).sum() - self(x).mean(0).sum()

    def slopes(self, x: Tensor, y: Tensor) -> Tensor:
        """|grad phi| at random points between x and y, ``n x c``; differentiable in the critic."""
        share = rnd.uniform((len(x), 1, x.shape[-1]), generator=self.generator, like=x)
        between = (share * x + (1 - share) * y).float().requires_grad_()
        (gradient,) = torch.autograd.grad(self(between).sum(), between, create_graph=True)
        return gradient.norm(dim=1)

    def step(self, x: Tensor, y: Tensor) -> float:
        """One step up the penalised dual; the norm of its gradient."""
        excess = self.slopes(x, y) - 1
        excess = excess.clamp_min(0) if self.settings.one_sided else excess
        loss = self.settings.penalty * excess.square().mean(0).sum() - self.gap(x, y)
        gradients = torch.autograd.grad(loss, self.parameters)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        return torch.stack([g.square().sum() for g in gradients]).sum().sqrt().item()


def wasserstein(problem: Problem, settings: Wasserstein, steps: int, advance: Callable[[float], None]) -> Stage:
    """Minimise the dual value; its history is that of the critic after training."""
    coordinates = problem.coordinates(1.0)
    raw = [x.clone().requires_grad_() for x in coordinates.start]
    optimizer = torch.optim.RMSprop(raw, lr=settings.lr)
    history, critic, device = [], None, problem.process.device
    visited: list[list[Tensor]] = []
    for step in range(steps):
        visited.append([x.detach().clone() for x in raw])
        X, prior = problem.points(), coordinates.finish(visited[-1])
        if critic is None or not settings.persistent:
            critic = Critic(len(X), settings, problem.generator, device)
        with torch.no_grad():
            x, y = problem.functions(prior, X), problem.wanted(X)
        for inner in range(settings.steps):
            if settings.persistent and inner:
                with torch.no_grad():
                    x, y = problem.functions(prior, X), problem.wanted(X)
            if critic.step(x, y) < settings.threshold:
                break
        optimizer.zero_grad()
        value = critic.gap(problem.functions(coordinates.build(raw), X), y)
        check_finite(value, coordinates, visited, step)
        for leaf, gradient in zip(raw, torch.autograd.grad(value + coordinates.penalty(raw), raw), strict=True):
            leaf.grad = gradient
        optimizer.step()
        history.append(value.item())
        advance(history[-1])
    return Stage((coordinates.finish(raw),), torch.tensor(history, dtype=torch.double))
