"""Checks of what users pass in: one place, so that every entry says the same thing."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .errors import DomainError, NonFiniteError, ShapeError


def _shape(x: Any) -> Any:
    return tuple(x.shape) if torch.is_tensor(x) else f"a {type(x).__name__}"


def tensor(
    where: str, name: str, x: Any, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """Check that `x` is a finite floating-point tensor, of `dtype` and on `device` where given."""
    if not torch.is_tensor(x):
        raise DomainError(
            f"{where}: {name} must be a torch tensor, got a {type(x).__name__}; convert it with torch.as_tensor"
        )
    if not x.is_floating_point():
        raise DomainError(f"{where}: {name} must be floating point, got {x.dtype}; convert it with .double()")
    if dtype is not None and x.dtype != dtype:
        raise DomainError(
            f"{where}: {name} must have dtype {dtype}, got {x.dtype}; convert one of them with .to(dtype=...)"
        )
    if device is not None and x.device != device:
        raise DomainError(
            f"{where}: {name} must be on device {device}, got {x.device}; move one of them with .to(device=...)"
        )
    if not torch.isfinite(x).all():
        bad = (~torch.isfinite(x)).nonzero()[:5].tolist()
        raise NonFiniteError(
            f"{where}: {name} must be finite, got NaN or infinity at index {bad}; remove or impute those rows"
        )
    return x


def inputs(
    where: str,
    X: Any,
    input_dim: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    batched: bool = True,
    name: str = "X",
) -> Tensor:
    """Check that X has shape ``... x n x d``, or ``n x d`` where not `batched`; `name` is what its caller calls it."""
    shape = f"({'..., n' if batched else 'n'}, {input_dim})"
    if not torch.is_tensor(X):
        raise DomainError(f"{where}: {name} must be a torch tensor of shape {shape}, got a {type(X).__name__}")
    if X.ndim < 2 or (not batched and X.ndim != 2) or X.shape[-1] != input_dim:
        raise ShapeError(f"{where}: {name} must have shape {shape} to match d = {input_dim}, got {_shape(X)}")
    return tensor(where, name, X, dtype=dtype, device=device)


def outcomes(where: str, name: str, Y: Any, X: Tensor, num_outcomes: int, *, batched: bool = True) -> Tensor:
    """Check that Y has shape ``... x n x m`` with the rows, dtype and device of X."""
    expected = f"(..., {X.shape[-2]}, {num_outcomes})" if batched else f"({X.shape[-2]}, {num_outcomes})"
    if not torch.is_tensor(Y):
        raise DomainError(f"{where}: {name} must be a torch tensor of shape {expected}, got a {type(Y).__name__}")
    if Y.ndim < 2 or Y.shape[-2:] != (X.shape[-2], num_outcomes) or (not batched and Y.ndim != 2):
        raise ShapeError(f"{where}: {name} must have shape {expected} to match X {_shape(X)}, got {_shape(Y)}")
    if batched and Y.ndim > 2 and X.ndim > 2:
        try:
            torch.broadcast_shapes(X.shape[:-2], Y.shape[:-2])
        except RuntimeError:
            raise ShapeError(
                f"{where}: the batch dimensions of {name} {_shape(Y)} do not match those of X {_shape(X)}"
            ) from None
    return tensor(where, name, Y, dtype=X.dtype, device=X.device)


def variances(where: str, V: Any, X: Tensor, num_outcomes: int, *, name: str = "noise_variance") -> Tensor:
    """Check known noise variances: the shape of Y, finite and positive; `name` is what their caller calls them."""
    outcomes(where, name, V, X, num_outcomes)
    if not (V > 0).all():
        raise DomainError(
            f"{where}: {name} must be positive, got a minimum of {V.min().item():.3g}; "
            "give exact outcomes a small variance instead"
        )
    return V


def log_weights(where: str, x: Any, count: int, like: Tensor) -> Tensor:
    """Check log-weights ``... x count``, dtype and device of `like`: numbers or -inf, and one number at least a row."""
    # -inf is a weight of zero; what is left of the check is that of any tensor.
    finite = x.where(x != -math.inf, 0.0) if torch.is_tensor(x) else x
    tensor(where, "log_weights", finite, dtype=like.dtype, device=like.device)
    if x.shape[-1:] != (count,):
        raise ShapeError(f"{where}: log_weights must have shape (..., {count}), one a draw, got {_shape(x)}")
    if x.isneginf().all(-1).any():
        raise DomainError(f"{where}: log_weights must not all be -inf: no draw would have any weight")
    return x


def positive_int(where: str, name: str, value: Any, minimum: int = 1) -> int:
    """Check that `value` is an integer (Python's or numpy's) of at least `minimum`; return it as Python's."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise DomainError(f"{where}: {name} must be an integer >= {minimum}, got {value!r}")
    return int(value)


def positive(where: str, name: str, value: Any, *, maximum: float = math.inf, allow_zero: bool = False) -> Any:
    """Check that `value` (a number or a tensor) is finite, positive and at most `maximum`; numpy's become Python's."""
    if torch.is_tensor(value):
        low, high = (value.min().item(), value.max().item()) if value.numel() else (1.0, 1.0)
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise DomainError(f"{where}: {name} must be a number, got {value!r}")
    else:
        value = value if isinstance(value, (int, float)) else float(value)
        low = high = float(value)
    bound = "" if maximum == math.inf else f" and at most {maximum:g}"
    if not (low > 0 or (allow_zero and low == 0)) or not high <= maximum or not math.isfinite(high):
        raise DomainError(
            f"{where}: {name} must be {'non-negative' if allow_zero else 'positive'} and finite{bound}, got {value!r}"
        )
    return value


def probability(where: str, name: str, value: Any) -> float:
    """Check that `value` is a number strictly between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < 1:
        raise DomainError(f"{where}: {name} must be a probability between 0 and 1, got {value!r}")
    return float(value)


def float_dtype(where: str, dtype: Any) -> torch.dtype:
    """Check that `dtype` is a floating-point dtype of torch."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise DomainError(f"{where}: dtype must be a floating-point dtype such as torch.float64, got {dtype!r}")
    return dtype


def device(where: str, where_to: Any) -> torch.device:
    """Check that `where_to` names a device of this machine; return it with its index."""
    try:
        return torch.empty(0, device=where_to).device
    except (RuntimeError, TypeError, AssertionError) as error:  # AssertionError: a torch built without that device
        first = str(error).partition("\n")[0]
        raise DomainError(
            f"{where}: device must be one of this machine such as 'cpu' or 'cuda:0', got {where_to!r} ({first})"
        ) from None


def choice(where: str, name: str, value: Any, options: tuple[str, ...]) -> str:
    """Check that `value` is one of `options`."""
    if value not in options:
        raise DomainError(f"{where}: {name} must be one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def sample_shape(where: str, shape: Any) -> torch.Size:
    """Check a sample shape: a sequence of non-negative integers."""
    try:
        size = torch.Size(shape)
    except TypeError:
        raise ShapeError(f"{where}: sample_shape must be a sequence of integers such as (8,), got {shape!r}") from None
    if any(s < 0 for s in size):
        raise ShapeError(f"{where}: sample_shape must be non-negative, got {tuple(size)}")
    return size


def noise_generator(where: str, generator: Any) -> torch.Generator | None:
    """Check that `generator` is a torch.Generator or None."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise DomainError(
            f"{where}: generator must be a torch.Generator or None, got {generator!r}; "
            "probnn.random.generator_from(seed) makes one"
        )
    return generator
