"""Surrogates: processes as BoTorch models, and recipes that fit them."""

from __future__ import annotations

from .acquisition import ExpectedInformationGain, MaxValueEntropy
from .functional import MatchedPrior
from .model import ProcessModel
from .paths import ProcessPaths
from .recipe import Inferred, Surrogate, available_surrogates, get_surrogate, register_surrogate

__all__ = [
    "ExpectedInformationGain",
    "Inferred",
    "MatchedPrior",
    "MaxValueEntropy",
    "ProcessModel",
    "ProcessPaths",
    "Surrogate",
    "available_surrogates",
    "get_surrogate",
    "register_surrogate",
]
