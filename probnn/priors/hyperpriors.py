"""Laws of hyper-parameters, and kernels whose hyper-parameters are drawn from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..equality import ByValue
from ..errors import DomainError
from .covariance import batched


class HyperPrior(ByValue, ABC):
    """The law of one hyper-parameter, in its natural units. Subclasses are frozen dataclasses."""

    def sample(
        self,
        sample_shape: Sequence[int] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Draw values, of the shape to which `sample_shape` and the law's own tensors broadcast."""
        return self._sample(tuple(sample_shape), torch.empty(0, dtype=dtype, device=device), generator)

    @abstractmethod
    def _sample(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor: ...


def _check_finite(where: str, name: str, value: Any) -> None:
    real = torch.is_tensor(value) or (isinstance(value, Real) and not isinstance(value, bool))
    if not real or not torch.as_tensor(value, dtype=torch.double).isfinite().all():
        raise DomainError(f"{where}: {name} must be a finite number or tensor, got {value!r}")


def _as(value: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Normal(HyperPrior):
    r"""The normal law, for hyper-parameters of either sign such as a constant mean.

    Args:
        loc: Mean.
        scale: Standard deviation.

    Example:
        >>> Normal(2.0, 0.1).sample((3,)).shape
        torch.Size([3])
    """

    loc: float | Tensor = 0.0
    scale: float | Tensor = 1.0

    def __post_init__(self) -> None:
        where = f"priors.{type(self).__name__}"
        _check_finite(where, "loc", self.loc)
        validation.positive(where, "scale", self.scale)

    def _sample(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
        return _as(self.loc, like) + _as(self.scale, like) * rnd.normal(shape, generator=generator, like=like)


@dataclass(frozen=True)
class LogNormal(Normal):
    r"""The law of :math:`e^z` with :math:`z \sim N(\mu, \sigma^2)`; its median is :math:`e^\mu`.

    Args:
        loc: Mean of the logarithm.
        scale: Standard deviation of the logarithm.

    Example:
        >>> bool((LogNormal(0.0, 0.5).sample((3,)) > 0).all())
        True
    """

    def _sample(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
        return super()._sample(shape, like, generator).exp()


@dataclass(frozen=True)
class Gamma(HyperPrior):
    r"""The gamma law, with density proportional to :math:`x^{a-1} e^{-bx}` and mean a / b.

    Args:
        concentration: a.
        rate: b.

    Example:
        >>> bool((Gamma(3.0, 6.0).sample((3,)) > 0).all())
        True
    """

    concentration: float | Tensor
    rate: float | Tensor = 1.0

    def __post_init__(self) -> None:
        validation.positive("priors.Gamma", "concentration", self.concentration)
        validation.positive("priors.Gamma", "rate", self.rate)

    def _sample(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
        a, b = _as(self.concentration, like), _as(self.rate, like)
        with rnd.forked(generator):  # differentiable in both, through the derivative of the quantile function
            return torch.distributions.Gamma(a.expand(shape), b).rsample()


@dataclass(frozen=True)
class Uniform(HyperPrior):
    """The uniform law between two bounds.

    Args:
        low: Lower bound.
        high: Upper bound.

    Example:
        >>> bool((Uniform(0.2, 0.4).sample((3,)) < 0.4).all())
        True
    """

    low: float | Tensor = 0.0
    high: float | Tensor = 1.0

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            _check_finite("priors.Uniform", name, getattr(self, name))
        if not (torch.as_tensor(self.low) < torch.as_tensor(self.high)).all():
            raise DomainError(f"priors.Uniform: low must be below high, got {self.low!r} and {self.high!r}")

    def _sample(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
        low = _as(self.low, like)
        return low + (_as(self.high, like) - low) * rnd.uniform(shape, generator=generator, like=like)


def _values(law: Any, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    if isinstance(law, HyperPrior):
        return law.sample(shape, generator=generator, dtype=like.dtype, device=like.device)
    with rnd.forked(generator), torch.no_grad():
        event = len(law.batch_shape) + len(law.event_shape)
        return law.sample(torch.Size(shape[: len(shape) - event])).to(like)


def drawn(
    kernel: Any, mean: Any, hyperprior: Mapping[str, Any], count: int, generator: torch.Generator | None
) -> tuple[Any, Any]:
    """Copies of `kernel` and `mean` with `count` independent draws of their hyper-parameters.

    Args:
        kernel: A gpytorch kernel without batch shape.
        mean: A gpytorch mean without batch shape, or None.
        hyperprior: A law for each hyper-parameter by its name in the kernel, such as
            ``"base_kernel.lengthscale"``, or in the mean, such as ``"mean.constant"``. A vector of hyper-parameters
            has independent entries.
        count: How many draws.
        generator: Source of randomness; None: torch's global stream.

    Returns:
        The kernel and the mean, both of batch shape ``(count,)``.

    Raises:
        DomainError: A name is unknown, or a law does not fit the shape or the constraint of its hyper-parameter.
    """
    where = "GaussianProcess: hyperprior"
    kernel, mean = batched(kernel, count), None if mean is None else batched(mean, count)
    for name, law in hyperprior.items():
        owner, path = (mean, name[5:]) if name.startswith("mean.") else (kernel, name)
        try:
            old = owner
            for part in path.split("."):
                old = old[int(part)] if part.isdigit() else getattr(old, part)
            shape, like = tuple(old.shape), old.detach()
        except (AttributeError, IndexError, TypeError):
            raise DomainError(
                f"{where}: {name!r} is no hyper-parameter of the {'mean' if owner is mean else 'kernel'} "
                f"{owner}; name one as in kernel.base_kernel.lengthscale -> 'base_kernel.lengthscale'"
            ) from None
        try:
            value = _values(law, shape, like, generator)
            owner.initialize(**{path: value.expand(shape)})
        except (RuntimeError, ValueError, AttributeError) as error:
            raise DomainError(f"{where}: {law!r} does not fit {name!r} of shape {shape[1:]} ({error})") from error
        _check_constraints(where, name, law, owner)
    return kernel, mean


def _check_constraints(where: str, name: str, law: Any, owner: Any) -> None:
    # gpytorch leaves a constraint without a transform to the optimiser and accepts any value.
    for _, parameter, constraint in owner.named_parameters_and_constraints():
        if constraint is not None and not constraint.check(constraint.transform(parameter)):
            raise DomainError(f"{where}: {law!r} draws values of {name!r} outside of the kernel's {constraint}")
