"""Checks of what users pass in: one place, so that every entry says the same thing."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .errors import DomainError, NonFiniteError, ShapeError


def tensor(where: str, name: str, x: Any, *, like: Any = None) -> Tensor:
    """Check that `x` is a finite floating-point tensor, of the dtype and on the device of `like` where given.

    `like` is whatever has both: a tensor or a process.
    """
    if not torch.is_tensor(x):
        raise DomainError(
            f"{where}: {name} must be a torch tensor, got a {type(x).__name__}; convert it with torch.as_tensor"
        )
    if not x.is_floating_point():
        raise DomainError(f"{where}: {name} must be floating point, got {x.dtype}; convert it with .double()")
    if like is not None and x.dtype != like.dtype:
        raise DomainError(
            f"{where}: {name} must have dtype {like.dtype}, got {x.dtype}; convert one of them with .to(dtype=...)"
        )
    if like is not None and x.device != like.device:
        raise DomainError(
            f"{where}: {name} must be on device {like.device}, got {x.device}; move one of them with .to(device=...)"
        )
    if not torch.isfinite(x).all():
        bad = (~torch.isfinite(x)).nonzero()[:5].tolist()
        raise NonFiniteError(
            f"{where}: {name} must be finite, got NaN or infinity at index {bad}; remove or impute those rows"
        )
    return x


def _matrix(where: str, name: str, x: Any, rows: int | None, columns: int, batched: bool, match: str) -> None:
    """Check that `x` is a tensor ``... x rows x columns``, without leading dimensions where not `batched`."""
    shape = f"({'..., ' if batched else ''}{'n' if rows is None else rows}, {columns})"
    if not torch.is_tensor(x):
        raise DomainError(f"{where}: {name} must be a torch tensor of shape {shape}, got a {type(x).__name__}")
    if x.ndim < 2 or (not batched and x.ndim != 2) or x.shape[-1] != columns or rows not in (None, x.shape[-2]):
        raise ShapeError(f"{where}: {name} must have shape {shape} to match {match}, got {tuple(x.shape)}")


def inputs(where: str, X: Any, input_dim: int, *, like: Any = None, batched: bool = True, name: str = "X") -> Tensor:
    """Check that X has shape ``... x n x d``, or ``n x d`` where not `batched`; `name` is what its caller calls it."""
    _matrix(where, name, X, None, input_dim, batched, f"d = {input_dim}")
    return tensor(where, name, X, like=like)


def outcomes(where: str, name: str, Y: Any, X: Tensor, num_outcomes: int, *, batched: bool = True) -> Tensor:
    """Check that Y has shape ``... x n x m`` with the rows, dtype and device of X."""
    _matrix(where, name, Y, X.shape[-2], num_outcomes, batched, f"X {tuple(X.shape)}")
    if batched and Y.ndim > 2 and X.ndim > 2:
        try:
            torch.broadcast_shapes(X.shape[:-2], Y.shape[:-2])
        except RuntimeError:
            raise ShapeError(
                f"{where}: the batch dimensions of {name} {tuple(Y.shape)} do not match those of X {tuple(X.shape)}"
            ) from None
    return tensor(where, name, Y, like=X)


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
    tensor(where, "log_weights", finite, like=like)
    if x.shape[-1:] != (count,):
        raise ShapeError(f"{where}: log_weights must have shape (..., {count}), one a draw, got {tuple(x.shape)}")
    if x.isneginf().all(-1).any():
        raise DomainError(f"{where}: log_weights must not all be -inf: no draw would have any weight")
    return x


def positive_int(where: str, name: str, value: Any, minimum: int = 1) -> int:
    """Check that `value` is an integer (Python's or numpy's) of at least `minimum`; return it as Python's."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise DomainError(f"{where}: {name} must be an integer >= {minimum}, got {value!r}")
    return int(value)


def indices(where: str, name: str, values: Any, size: int) -> list[int]:
    """Check that `values` are integers from -size to size - 1, at least one; return them counted from 0."""
    found = list(values)
    if not found or any(
        isinstance(i, bool) or not isinstance(i, Integral) or not -size <= int(i) < size for i in found
    ):
        raise DomainError(f"{where}: {name} must be from {-size} to {size - 1}, got {found}")
    return [int(i) % size for i in found]


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


def float_dtype(where: str, dtype: Any) -> torch.dtype | None:
    """Check that `dtype` is a floating-point dtype of torch; None, which leaves the choice to others, stays None."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise DomainError(f"{where}: dtype must be a floating-point dtype such as torch.float64, got {dtype!r}")
    return dtype


def device(where: str, where_to: Any) -> torch.device | None:
    """Check that `where_to` names a device of this machine; return it with its index, None as None."""
    try:
        return None if where_to is None else torch.empty(0, device=where_to).device
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
