"""Processes with coordinates: f(x) = apply(theta, x)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import ShapeError, UnsupportedError
from ..networks import Layout
from ..networks.base import Pullback, pullback_of
from ..random import Shape, Source
from .base import StochasticProcess

if TYPE_CHECKING:
    from botorch.posteriors import Posterior

    from .empirical import EmpiricalProcess


class ParametricProcess(StochasticProcess):
    """A process f(x) = apply(theta, x) with unconstrained coordinates theta.

    A subclass gives `layout` (of theta) and writes :meth:`_sample_parameters`, :meth:`_apply` (whose
    leading dimensions broadcast) and, where it has a density, :meth:`_log_prob`.
    """

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """The blocks of theta."""

    @property
    def num_parameters(self) -> int:
        """Number of coordinates P."""
        return self.layout.size

    def sample_parameters(self, sample_shape: Shape = (), *, generator: Source = None) -> Tensor:
        """Draw parameters.

        Args:
            sample_shape: How many, as a shape.
            generator: Source of randomness; None: torch's global stream.

        Returns:
            theta, ``sample_shape x P``.
        """
        return self._sample_parameters(self._enter("sample_parameters", sample_shape, generator), generator)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Log density of the parameters, with the Jacobian of every constraint.

        Args:
            theta: Parameters ``... x P``.

        Returns:
            The log density, ``...``.

        Raises:
            ShapeError, DomainError, NonFiniteError: theta is no such tensor.
            UnsupportedError: There is no density, as for draws.
        """
        return self._log_prob(self._check_theta("log_prob", theta))

    def apply(self, theta: Tensor, X: Tensor) -> Tensor:
        """Evaluate every theta at every X.

        Args:
            theta: Parameters ``*s x P``.
            X: Inputs ``... x n x d``.

        Returns:
            Values ``*s x ... x n x c``.

        Raises:
            ShapeError, DomainError, NonFiniteError: theta or X is no such tensor.
        """
        self._check_theta("apply", theta)
        where = f"{type(self).__name__}.apply"
        validation.inputs(where, X, self.input_dim, like=self)
        return self._apply_each(theta, X)

    def draws(self, num_draws: int = 256, *, seed: int = 0) -> EmpiricalProcess:
        """Freeze draws of the parameters.

        Args:
            num_draws: How many.
            seed: Same seed, same machine: the same draws.

        Returns:
            One chain of draws, as a process.

        Raises:
            DomainError: `num_draws` or `seed` is out of its range.
        """
        validation.positive_int(f"{type(self).__name__}.draws", "num_draws", num_draws)
        from .empirical import EmpiricalProcess

        theta, psi = self._sample_joint(torch.Size([1, num_draws]), rnd.generator_from(seed))
        return EmpiricalProcess(self, theta, psi, self.likelihood, info=self.info)

    def to_arviz(self, **options: Any) -> Any:
        """Draws as ArviZ groups; of an :class:`EmpiricalProcess`, which :meth:`draws` makes.

        Args:
            **options: Those of :func:`probnn.bridges.to_arviz`.

        Returns:
            ArviZ's container of groups.

        Raises:
            UnsupportedError: The process is not made of draws.
        """
        raise UnsupportedError(
            f"{type(self).__name__}.to_arviz: needs draws; freeze some first, process.draws(num_draws).to_arviz(...)"
        )

    def _check_theta(self, verb: str, theta: Tensor) -> Tensor:
        where = f"{type(self).__name__}.{verb}"
        validation.tensor(where, "theta", theta, like=self)
        if theta.shape[-1:] != (self.num_parameters,):
            raise ShapeError(f"{where}: theta must have shape (..., {self.num_parameters}), got {tuple(theta.shape)}")
        return theta

    @abstractmethod
    def _sample_parameters(self, shape: torch.Size, generator: Source) -> Tensor: ...

    @abstractmethod
    def _apply(self, theta: Tensor, X: Tensor) -> Tensor: ...

    def _sample_joint(self, shape: torch.Size, generator: Source) -> tuple[Tensor, Tensor]:
        """theta with the likelihood's psi; a fitted process that inferred psi overrides this."""
        theta = self._sample_parameters(shape, generator)
        return theta, self._no_psi(theta, *shape)

    def _log_prob(self, theta: Tensor) -> Tensor:
        raise UnsupportedError(
            f"{type(self).__name__}.log_prob: draws have no density; fit on all data at once, "
            "or use a posterior that has one, such as Laplace's"
        )

    def _log_prob_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        value, pullback = pullback_of(self._log_prob, theta)
        return value, pullback(torch.ones_like(value))

    def _pullback(self, theta: Tensor, X: Tensor) -> tuple[Tensor, Pullback]:
        """Value of :meth:`_apply`, and the map from its cotangent to that of theta."""
        return pullback_of(lambda leaf: self._apply(leaf, X), theta)

    def _apply_each(self, theta: Tensor, X: Tensor) -> Tensor:
        """Values ``*s x ... x n x c`` of every theta ``*s x P`` at every X ``... x n x d``."""
        return self._apply(theta[(..., *(None,) * (X.ndim - 2), slice(None))], X)

    def _sample_functions(self, shape: torch.Size, generator: Source) -> Callable[[Tensor], Tensor]:
        theta = self._sample_parameters(shape, generator)
        return lambda X: self._apply_each(theta, X)

    def _sample_tasks(self, X: Tensor, generator: Source) -> Tensor:
        return self._apply(self._sample_parameters(X.shape[:-2], generator), X)

    def _predict(self, X: Tensor, noise: bool) -> Posterior:
        return self.draws()._predict(X, noise)
