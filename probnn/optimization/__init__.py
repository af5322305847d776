"""Bayesian optimisation: spaces one can set on a bench, and a loop one can ask and tell."""

from .choices import Categorical, Fixed
from .feasibility import FeasibilityModel
from .goals import Goals
from .history import History
from .importance import FactorImportance, factor_importance, sobol_indices
from .loop import BayesianOptimization
from .parameters import Integer, Real
from .pool import Pool
from .space import Space
from .trials import Trial

__all__ = [
    "BayesianOptimization",
    "Categorical",
    "FactorImportance",
    "FeasibilityModel",
    "Fixed",
    "Goals",
    "History",
    "Integer",
    "Pool",
    "Real",
    "Space",
    "Trial",
    "factor_importance",
    "sobol_indices",
]
