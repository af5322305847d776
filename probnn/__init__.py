"""Probabilistic models of functions: priors, posteriors and surrogates behind one interface."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

# Public names, loaded when first used: `import probnn` costs little more than torch itself.
_NAMES = {
    "MLP": "networks",
    "ModuleNetwork": "networks",
    "StochasticProcess": "process",
    "ParametricProcess": "process",
    "RandomFunctions": "process",
    "BayesianNetwork": "process",
    "EmpiricalProcess": "process",
    "GaussianProcess": "priors",
    "match_prior": "priors",
    "HMC": "inference",
    "DeepEnsemble": "inference",
    "Laplace": "inference",
    "MeanFieldVI": "inference",
    "Exact": "inference",
    "SGHMC": "inference",
    "Surrogate": "surrogates",
    "ProcessModel": "surrogates",
    "get_surrogate": "surrogates",
    "available_surrogates": "surrogates",
    "load": "io",
    "save": "io",
    "register_class": "io",
}
_MODULES = (
    "bridges", "diagnostics", "errors", "inference", "io", "likelihoods", "moe", "networks", "optimization", "plots",
    "predictive", "priors", "process", "random", "studies", "surrogates", "testing",
)  # fmt: skip

__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'probnn' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from . import (
        bridges,
        diagnostics,
        errors,
        inference,
        io,
        likelihoods,
        moe,
        networks,
        optimization,
        plots,
        predictive,
        priors,
        process,
        random,
        studies,
        surrogates,
        testing,
    )
    from .inference import HMC, SGHMC, DeepEnsemble, Exact, Laplace, MeanFieldVI
    from .io import load, register_class, save
    from .networks import MLP, ModuleNetwork
    from .priors import GaussianProcess, match_prior
    from .process import BayesianNetwork, EmpiricalProcess, ParametricProcess, RandomFunctions, StochasticProcess
    from .surrogates import ProcessModel, Surrogate, available_surrogates, get_surrogate
