"""The shared fixtures do what the other tests rely on."""

from __future__ import annotations

import importlib

import hypothesis
import pytest
import torch


def test_botorch_compiles_nothing() -> None:
    logei = importlib.import_module("botorch.acquisition.multi_objective.logei")
    assert logei._load_attempted is True
    logei._try_load_fused_kernel()
    assert logei._C is None


def test_one_thread() -> None:
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("visit", [0, 1])
def test_default_dtype_is_restored(visit: int) -> None:
    assert torch.get_default_dtype() == torch.float32
    torch.set_default_dtype(torch.float64)


def test_seed_comes_from_the_command_line(seed: int, request: pytest.FixtureRequest) -> None:
    assert seed == request.config.getoption("--reseed")
    assert hypothesis.settings().derandomize == (seed == 0)
