"""Diagnostics of draws and of inference methods, in plain torch."""

from __future__ import annotations

from .calibration import EcdfBands, SBCResult, UniformityTest, ecdf_bands, sbc, sbc_ranks, uniformity_test
from .classification import Reliability, calibration_error, reliability
from .distances import (
    energy_distance,
    marginal_wasserstein,
    sliced_wasserstein,
    squared_bures,
    squared_mmd,
    wasserstein_1d,
)
from .functions import FunctionStatistics, function_statistics
from .mcmc import bfmi, ess, mcse, nested_rhat, rhat, split_rhat, summary

__all__ = [
    "EcdfBands",
    "FunctionStatistics",
    "Reliability",
    "SBCResult",
    "UniformityTest",
    "bfmi",
    "calibration_error",
    "ecdf_bands",
    "energy_distance",
    "ess",
    "function_statistics",
    "marginal_wasserstein",
    "mcse",
    "nested_rhat",
    "reliability",
    "rhat",
    "sbc",
    "sbc_ranks",
    "sliced_wasserstein",
    "split_rhat",
    "squared_bures",
    "squared_mmd",
    "summary",
    "uniformity_test",
    "wasserstein_1d",
]
