"""Figures: every function takes `ax=` and gives the Axes back."""

from .functions import plot_functions
from .optimization import plot_progress, plot_slices

__all__ = ["plot_functions", "plot_progress", "plot_slices"]
