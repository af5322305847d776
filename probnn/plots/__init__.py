"""Figures: every function takes `ax=` and gives the Axes back."""

from .calibration import plot_calibration, plot_predictions
from .functions import plot_functions
from .importance import plot_importance
from .matching import plot_match
from .pareto import plot_pareto
from .progress import plot_progress
from .slices import plot_slices
from .space import plot_space

__all__ = [
    "plot_calibration",
    "plot_functions",
    "plot_importance",
    "plot_match",
    "plot_pareto",
    "plot_predictions",
    "plot_progress",
    "plot_slices",
    "plot_space",
]
