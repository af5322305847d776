"""Randomness: generators in, and the one place that forks torch's global stream.

Sampling calls take ``generator=None`` (None: torch's global stream); everything that
fits takes ``seed: int``. The distributions of torch and Pyro take no generator, so
:func:`forked` lends them the global stream and puts it back bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from numbers import Integral

import torch
from torch import Tensor

from .errors import DomainError

# What the calls that draw take, here and everywhere else; None leaves the choice to the callee.
Shape = Sequence[int]
Source = torch.Generator | None  # of randomness; None: torch's global stream
Dtype = torch.dtype | None
Device = torch.device | str | None


def check_seed(where: str, seed: int) -> int:
    """Check a seed.

    Args:
        where: What the error message begins with.
        seed: An integer, Python's or numpy's.

    Returns:
        The seed as Python's integer.

    Raises:
        DomainError: It is no integer from 0 to 2**63 - 1.

    Example:
        >>> check_seed("fit", 3)
        3
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise DomainError(f"{where}: seed must be an integer from 0 to 2**63 - 1, got {seed!r}")
    return int(seed)


def generator_from(seed: int, *, device: Device = None) -> torch.Generator:
    """A new generator.

    Args:
        seed: Its seed.
        device: Where it lives; None: on the CPU.

    Returns:
        The generator.

    Raises:
        DomainError: The seed is no integer from 0 to 2**63 - 1.

    Example:
        >>> generator_from(7).initial_seed()
        7
    """
    return torch.Generator(device=device or "cpu").manual_seed(check_seed("generator_from", seed))


def normal(
    shape: Shape, *, generator: Source = None, like: Tensor | None = None, dtype: Dtype = None, device: Device = None
) -> Tensor:
    """Standard normal draws.

    Args:
        shape: Their shape.
        generator: Source of randomness; None: torch's global stream.
        like: A tensor to take dtype and device from, where they are not given.
        dtype: Their dtype; None: that of `like`, else torch's default.
        device: Their device; None: that of `like`, else the CPU.

    Returns:
        The draws: made where the generator lives, then moved, so one seed means one stream.

    Example:
        >>> normal((2, 3), generator=generator_from(0)).shape
        torch.Size([2, 3])
    """
    return _draw(torch.randn, shape, generator, like, dtype, device)


def uniform(
    shape: Shape, *, generator: Source = None, like: Tensor | None = None, dtype: Dtype = None, device: Device = None
) -> Tensor:
    """Uniform draws in [0, 1).

    Args:
        shape: Their shape.
        generator: Source of randomness; None: torch's global stream.
        like: A tensor to take dtype and device from, where they are not given.
        dtype: Their dtype; None: that of `like`, else torch's default.
        device: Their device; None: that of `like`, else the CPU.

    Returns:
        The draws.

    Example:
        >>> bool((uniform((5,), generator=generator_from(0)) < 1).all())
        True
    """
    return _draw(torch.rand, shape, generator, like, dtype, device)


def _draw(
    function: Callable[..., Tensor], shape: Shape, generator: Source, like: Tensor | None, dtype: Dtype, device: Device
) -> Tensor:
    if like is not None:
        dtype, device = dtype or like.dtype, device or like.device
    device = torch.device(device or "cpu")
    # A generator lives on one device: draw there, then move, so one seed means one stream.
    at = generator.device if generator is not None else device
    return function(tuple(shape), generator=generator, dtype=dtype, device=at).to(device)


def integers(high: int, shape: Shape, *, generator: Source = None) -> Tensor:
    """Integers drawn uniformly from 0 to `high` - 1.

    Args:
        high: One more than the largest.
        shape: Their shape.
        generator: Source of randomness; None: torch's global stream.

    Returns:
        The integers, on the CPU.

    Example:
        >>> integers(1, (3,)).tolist()
        [0, 0, 0]
    """
    return _draw(partial(torch.randint, high), shape, generator, None, torch.int64, None)


@contextlib.contextmanager
def forked(generator: Source) -> Iterator[None]:
    """Seed the global stream from `generator` inside the block and restore it afterwards.

    Args:
        generator: Where the seed is drawn from; None: the block draws from the global stream as it stands.

    Yields:
        Nothing.

    Example:
        >>> with forked(generator_from(0)):
        ...     x = torch.distributions.Gamma(2.0, 1.0).sample()  # takes no generator
    """
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    # All devices, whichever the generator is on: a CPU generator may serve draws on any of them.
    started = torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if started else ()):
        # Not torch.manual_seed, whose seed also waits for devices that start later, and nobody restores those.
        torch.default_generator.manual_seed(seed)
        if started:
            torch.cuda.manual_seed_all(seed)
        yield
