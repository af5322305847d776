"""Simulation studies: cells, replicates, summaries with Monte Carlo errors, rates."""

from ._estimators import Estimator, SelectionSweep
from ._simulation import MoESimulation
from .configuration import load
from .convergence import Account, ConvergenceStudy
from .figures import plot_summary
from .measures import RMSE, Bias, Coverage, EmpiricalSE, Mean, Measure, Median, Rate
from .rate_figure import plot_rates
from .rates import RateDifference, Rates, fit_rates
from .replay import Replay
from .reporting import report
from .study import Study
from .summaries import failures, pivot, replicates_needed, summarise
from .table import Table

__all__ = [
    "Account",
    "Bias",
    "ConvergenceStudy",
    "Coverage",
    "EmpiricalSE",
    "Estimator",
    "Mean",
    "Measure",
    "Median",
    "MoESimulation",
    "RMSE",
    "Rate",
    "RateDifference",
    "Rates",
    "Replay",
    "SelectionSweep",
    "Study",
    "Table",
    "failures",
    "fit_rates",
    "load",
    "pivot",
    "plot_rates",
    "plot_summary",
    "replicates_needed",
    "report",
    "summarise",
]
