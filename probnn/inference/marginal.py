"""The marginal likelihood of a Gaussian process, to be maximised over its hyper-parameters."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from ..errors import DomainError, NonFiniteError
from ..priors.covariance import cholesky, covariance, solve
from .base import Session

_GRADIENT_TOLERANCE = 1e-3  # of the log posterior per observation
_LEAST_NOISE = 1e-3  # of its prior median


@dataclass(frozen=True)
class Outcome:
    """Where one search ended."""

    loss: float
    steps: int
    converged: bool
    failed: bool  # neither converged nor at a limit of steps
    stopped: bool  # by the callback
    values: list[Tensor]


class Evidence:
    """The objective of :class:`probnn.Exact`, for one outcome or for several that share a noise.

    `parameters` are the raw hyper-parameters that may be optimised, and the log noise where it is inferred.
    """

    def __init__(
        self,
        kernels: dict[int, Any],
        means: dict[int, Any],
        trainable: set[str],
        likelihood: Any,
        X: Tensor,
        Y: Tensor,
        noise_variance: Tensor | None,
    ):
        self.kernels, self.means, self.likelihood = kernels, means, likelihood
        self.X, self.Y, self.noise_variance = X, Y, noise_variance
        self.psi = likelihood.prior_median(dtype=X.dtype, device=X.device).requires_grad_(True)
        self.least_noise = self.psi.detach() + math.log(_LEAST_NOISE)
        self.losses: list[float] = []
        self._last: tuple[list[Tensor], tuple[Tensor, tuple[Tensor, ...]]] | None = None
        self.parameters: dict[str, Tensor] = {}
        self.constraints: dict[str, Any] = {}
        for what, modules in (("kernel", kernels), ("mean", means)):
            for k, module in modules.items():
                for name, parameter, constraint in () if module is None else module.named_parameters_and_constraints():
                    if (name := f"{k}.{what}.{name}") in trainable:
                        self.parameters[name] = parameter.requires_grad_(True)
                        self.constraints[name] = constraint
        if self.psi.numel():
            self.parameters["noise"] = self.psi
        self.start = [parameter.detach().clone() for parameter in self.parameters.values()]

    def loss(self) -> Tensor:
        """Negative log posterior per observation."""
        total = -self.likelihood.log_prior(self.psi)
        for k, kernel in self.kernels.items():
            mean, n = self.means[k], self.X.shape[0]
            residual = self.Y[:, k] if mean is None else self.Y[:, k] - mean(self.X)
            variance = (2 * self.likelihood.log_scale(self.psi)).exp().reshape(-1).expand(n)
            variance = variance if self.noise_variance is None else self.noise_variance[:, k]
            factor = cholesky(covariance(kernel, self.X) + torch.diag(variance))
            whitened = solve(factor, residual.unsqueeze(-1))
            total = total + 0.5 * (whitened.square().sum() + n * math.log(2 * math.pi)) + factor.diagonal().log().sum()
            for module in (kernel, mean):
                for _, owner, prior, closure, _ in () if module is None else module.named_priors():
                    total = total - prior.log_prob(closure(owner)).sum()
        return total / self.Y[:, : len(self.kernels)].numel()

    def closure(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss and its gradients, as BoTorch's optimiser wants them."""
        # The optimiser asks again for every step it reports.
        if self._last is None or not all(map(torch.equal, self._last[0], self.parameters.values())):
            parameters = tuple(self.parameters.values())
            try:
                value = self.loss()
                gradients = torch.autograd.grad(value, parameters, allow_unused=True)
            except (DomainError, NonFiniteError):  # a step too far: the line search comes back
                value, gradients = self.X.new_tensor(math.nan), tuple(map(torch.zeros_like, parameters))
            self.losses.append(value.item())
            self._last = [x.detach().clone() for x in self.parameters.values()], (value.detach(), gradients)
        return self._last[1]

    def bounds(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Of the log noise, and of the raw parameters whose constraint has no transform that keeps it."""
        kept = {name: c for name, c in self.constraints.items() if c is not None and not c.enforced}
        found = {name: (constraint.lower_bound, constraint.upper_bound) for name, constraint in kept.items()}
        if "noise" in self.parameters:
            found["noise"] = (self.least_noise, torch.full_like(self.least_noise, math.inf))
        return found

    def minimise(self, max_steps: int, session: Session, advance: Callable[..., None]) -> Outcome:
        """Search from where the parameters are, and leave them at the best point."""
        from botorch.optim.core import OptimizationStatus, scipy_minimize
        from linear_operator.utils.warnings import NumericalWarning

        stopped = False

        def callback(_: Any, state: Any) -> None:
            nonlocal stopped
            advance(1, loss=state.fval)
            if session.stop(state.step, max_steps, state):
                stopped = True
                raise StopIteration

        with warnings.catch_warnings():  # also because BoTorch's call of SciPy leaves a filter behind
            # Jitter along the way says nothing about the result, whose own factorisation speaks for itself.
            warnings.simplefilter("ignore", NumericalWarning)
            result = scipy_minimize(
                self.closure, self.parameters, self.bounds(), callback=callback, options={"maxiter": max_steps}
            )
        limited = stopped or result.status == OptimizationStatus.STOPPED
        converged = result.status == OptimizationStatus.SUCCESS or (not stopped and self._stationary())
        values = [parameter.detach().clone() for parameter in self.parameters.values()]
        return Outcome(float(result.fval), result.step, converged, not (converged or limited), stopped, values)

    def _stationary(self) -> bool:
        """Whether the gradient vanishes, up to what bounds hold back: a line search may give up just there."""
        _, gradients = self.closure()
        bounds, largest = self.bounds(), 0.0
        for (name, parameter), gradient in zip(self.parameters.items(), gradients, strict=True):
            if gradient is None:
                continue
            moved = parameter - gradient
            if name in bounds:
                moved = moved.clamp(*bounds[name])
            step = (moved - parameter).abs().max().item()
            largest = max(largest, step if math.isfinite(step) else math.inf)
        return largest < _GRADIENT_TOLERANCE

    def restore(self, values: list[Tensor]) -> None:
        """Put the parameters back where a search ended."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters.values(), values, strict=True):
                parameter.copy_(value)

    def scatter(self, generator: torch.Generator) -> None:
        """Move to a random start around the first one."""
        self.restore(self.start)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                z = rnd.normal(parameter.shape, generator=generator, like=parameter)
                constraint = self.constraints.get(name)
                if name == "noise":
                    draw = self.likelihood.sample_prior((), generator=generator, dtype=z.dtype, device=z.device)
                    parameter.copy_(torch.maximum(draw, self.least_noise))
                elif constraint is not None and constraint.lower_bound.isfinite() and constraint.upper_bound.isinf():
                    value = constraint.transform(parameter) - constraint.lower_bound
                    parameter.copy_(constraint.inverse_transform(constraint.lower_bound + value * z.exp()))
                else:
                    parameter.add_(z)
