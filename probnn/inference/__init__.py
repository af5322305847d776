"""Inference: from a prior, a likelihood and data to a posterior process."""

from __future__ import annotations

from .base import FitInfo, InferenceMethod
from .ensemble import DeepEnsemble
from .exact import Exact
from .gaussian import GaussianWeightProcess
from .hmc import HMC
from .laplace import Laplace
from .sghmc import SGHMC
from .target import Target
from .variational import MeanFieldVI

__all__ = [
    "DeepEnsemble",
    "Exact",
    "FitInfo",
    "GaussianWeightProcess",
    "HMC",
    "InferenceMethod",
    "Laplace",
    "MeanFieldVI",
    "SGHMC",
    "Target",
]
