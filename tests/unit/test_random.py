"""Generators, and torch's global stream as it was."""

from __future__ import annotations

import numpy
import pytest
import torch

from probnn import random as rnd
from probnn.errors import DomainError
from probnn.testing.common import untouched_stream


def test_a_forked_stream_is_seeded_and_restored() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    with rnd.forked(rnd.generator_from(5)):
        a = torch.randn(4)
    with rnd.forked(rnd.generator_from(5)):
        b = torch.randn(4)
    with rnd.forked(rnd.generator_from(6)):
        c = torch.randn(4)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_forked_stream_is_restored_after_an_error() -> None:
    before = torch.random.get_rng_state()
    with pytest.raises(KeyError), rnd.forked(rnd.generator_from(0)):
        torch.randn(3)
        raise KeyError
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.gpu
def test_a_fork_restores_the_streams_of_devices() -> None:
    torch.cuda.init()
    before = torch.cuda.get_rng_state_all()
    draws = []
    for _ in range(2):
        with rnd.forked(rnd.generator_from(5)):  # a generator on the CPU for draws on the device
            draws.append(torch.randn(4, device="cuda"))
    assert torch.equal(*draws)
    assert all(map(torch.equal, before, torch.cuda.get_rng_state_all()))


def test_a_fork_leaves_no_seed_for_devices_that_start_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.manual_seed` queues its seed for devices not in use yet, where nothing would take it back."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    torch.manual_seed(3)
    assert seeded.pop() == 3
    with rnd.forked(rnd.generator_from(5)):
        torch.randn(4)
    assert not seeded


@pytest.mark.gpu
def test_the_checks_notice_moved_streams_of_devices() -> None:
    torch.cuda.init()
    with pytest.raises(AssertionError, match="global stream was moved"), untouched_stream("here"):
        torch.randn(3, device="cuda")


def test_without_a_generator_the_global_stream_is_used() -> None:
    torch.manual_seed(1)
    with rnd.forked(None):
        a = torch.randn(2)
    torch.manual_seed(1)
    assert torch.equal(a, torch.randn(2))
    torch.manual_seed(1)
    b = rnd.normal((2,))
    torch.manual_seed(1)
    assert torch.equal(b, torch.randn(2))


def test_successive_forks_differ() -> None:
    generator = rnd.generator_from(0)
    draws = []
    for _ in range(2):
        with rnd.forked(generator):
            draws.append(torch.randn(3))
    assert not torch.equal(*draws)


def test_draws_take_the_dtype_of_their_model() -> None:
    like = torch.zeros(1, dtype=torch.float64)
    assert rnd.normal((2,), like=like).dtype == rnd.uniform((2,), like=like).dtype == torch.float64
    assert rnd.uniform((0, 3)).shape == (0, 3)
    u = rnd.uniform((10_000,), generator=rnd.generator_from(0))
    assert 0 <= u.min() and u.max() < 1 and abs(u.mean() - 0.5) < 5 / (12 * 10_000) ** 0.5


def test_seeds_of_numpy() -> None:
    seed = rnd.check_seed("here", numpy.int64(5))
    assert type(seed) is int
    a, b = rnd.generator_from(numpy.int64(5)), rnd.generator_from(5)  # type: ignore[arg-type]
    assert torch.equal(rnd.normal((3,), generator=a), rnd.normal((3,), generator=b))


@pytest.mark.parametrize(
    "seed", [numpy.int64(-1), numpy.float64(1), numpy.bool_(True), "a", 1.0, -1, True, None, 2**63]
)
def test_bad_seeds(seed: object) -> None:
    with pytest.raises(DomainError, match="seed must be an integer"):
        rnd.generator_from(seed)  # type: ignore[arg-type]
