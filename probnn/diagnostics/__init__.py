"""Diagnostics of draws and of inference methods, in plain torch."""

from __future__ import annotations

from .calibration import EcdfBands, SBCResult, UniformityTest, ecdf_bands, sbc, sbc_ranks, uniformity_test
from .functions import FunctionStatistics, function_statistics
from .mcmc import bfmi, ess, mcse, nested_rhat, rhat, split_rhat, summary

__all__ = [
    "EcdfBands",
    "FunctionStatistics",
    "SBCResult",
    "UniformityTest",
    "bfmi",
    "ecdf_bands",
    "ess",
    "function_statistics",
    "mcse",
    "nested_rhat",
    "rhat",
    "sbc",
    "sbc_ranks",
    "split_rhat",
    "summary",
    "uniformity_test",
]
