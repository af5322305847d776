"""Show what is installed and what is registered."""

from __future__ import annotations

import argparse
import platform
import sys
from importlib.metadata import version

HELP = "versions of probnn and what it stands on, threads, surrogates"

PACKAGES = (
    "torch",
    "gpytorch",
    "botorch",
    "pyro-ppl",
    "arviz",
    "numpy",
    "scipy",
    "safetensors",
    "joblib",
    "matplotlib",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(options: argparse.Namespace) -> int:
    """Write versions, threads, devices and registered surrogates."""
    import torch

    from .._version import __version__
    from ..surrogates import available_surrogates

    rows = [("probnn", __version__), ("python", platform.python_version())]
    rows += [(name, version(name)) for name in PACKAGES]
    rows += [("threads", str(torch.get_num_threads())), ("cuda", "yes" if torch.cuda.is_available() else "no")]
    rows += [("surrogates", ", ".join(available_surrogates()))]
    for name, value in rows:
        sys.stdout.write(f"{name:<12} {value}\n")
    return 0
