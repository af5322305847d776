"""Bayesian optimisation: spaces of parameters, and a loop one can ask and tell."""

from .loop import BayesianOptimization
from .space import Integer, Real, Space
from .trials import Trial

__all__ = ["BayesianOptimization", "Integer", "Real", "Space", "Trial"]
