"""What every test shares: the seed, one thread, torch's default dtype, hypothesis and a quick import of BoTorch."""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import hypothesis
import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib: no windows


class PurePythonLogEI(importlib.abc.MetaPathFinder):
    """Keeps BoTorch from compiling its C++ kernel at the first qLogNEHVI, which takes minutes on a busy machine.

    BoTorch tries once and notes in `_load_attempted` that it did; the note is made here as soon as the module is
    imported. That is a hook on the import because importing BoTorch for every test would slow down the small ones.
    """

    module_name = "botorch.acquisition.multi_objective.logei"

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.module_name:
            return None
        sys.meta_path.remove(self)  # find_spec below asks the other finders
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_note(module: ModuleType) -> None:
            execute(module)
            if getattr(module, "_load_attempted", None) is not False:
                raise RuntimeError(
                    "BoTorch no longer delays its C++ kernel by `_load_attempted`: adapt tests/conftest.py"
                )
            module._load_attempted = True

        spec.loader.exec_module = execute_and_note  # type: ignore[method-assign]
        return spec


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reseed", type=int, default=0, metavar="N", help="seed of every test that depends on one (default 0)"
    )


def pytest_configure(config: pytest.Config) -> None:
    sys.meta_path.insert(0, PurePythonLogEI())
    # Seed 0 always tries the same examples; any other seed tries new ones.
    hypothesis.settings.register_profile(
        "probnn",
        deadline=None,
        derandomize=config.getoption("--reseed") == 0,
        database=None,
        max_examples=20,
        print_blob=True,
    )
    hypothesis.settings.load_profile("probnn")


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """The number given by `--reseed`; a test that depends on a seed must pass for every one."""
    return request.config.getoption("--reseed")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Workers share the cores by processes, and sums come out in the same order everywhere."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def default_dtype() -> Iterator[None]:
    """A test may set torch's default dtype; the next one starts with the usual again."""
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
