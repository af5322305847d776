"""What the checks share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from ..errors import DomainError, ProbnnError


def expect(condition: bool | Tensor, message: str) -> None:
    """Fail with `message` unless `condition` holds."""
    if not bool(condition):
        raise AssertionError(message)


def instance(where: str, name: str, value: Any, kind: type, hint: str) -> None:
    """Refuse to check what is not of `kind`; `hint` says what to give."""
    if not isinstance(value, kind):
        got = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
        raise DomainError(f"{where}: {name} must be a {kind.__name__} object, got {got}; give {hint}")


def close(a: Tensor, b: Tensor, tolerance: float, message: str) -> None:
    """Fail unless `a` and `b` have one shape and agree to `tolerance` of their size (at least 1)."""
    expect(a.shape == b.shape, f"{message}: shapes {tuple(a.shape)} and {tuple(b.shape)}")
    if a.numel():
        error = (a - b).abs().max().item()
        bound = tolerance * max(1.0, b.abs().max().item())
        expect(error <= bound, f"{message}: they differ by {error:.3g}, more than {bound:.3g}")


def raises(category: type[ProbnnError], call: Callable[[], object], message: str, *words: str) -> None:
    """Fail unless `call` raises `category` with all `words` in the text."""
    try:
        call()
    except category as error:
        for word in words:
            expect(word in str(error), f"{message}: the message lacks {word!r}: {error}")
        return
    except Exception as error:
        raise AssertionError(f"{message}: expected {category.__name__}, got {type(error).__name__}: {error}") from error
    raise AssertionError(f"{message}: expected {category.__name__}, but nothing was raised")


@contextlib.contextmanager
def untouched_stream(message: str) -> Iterator[None]:
    """Fail if torch's global stream moves inside the block, or that of a device in use."""
    before = _streams()
    yield
    same = all(torch.equal(a, b) for a, b in zip(before, _streams(), strict=False))
    expect(same, f"{message}: torch's global stream was moved")


def _streams() -> list[Tensor]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.random.get_rng_state(), *devices]


def points(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Inputs in [-1, 1]."""
    return 2 * rnd.uniform(shape, generator=rnd.generator_from(seed), dtype=dtype) - 1
