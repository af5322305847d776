"""Stochastic processes: priors and posteriors over functions are the same kind of object."""

from .base import RandomFunctions, StochasticProcess
from .empirical import EmpiricalProcess
from .network import BayesianNetwork
from .parametric import ParametricProcess

__all__ = ["BayesianNetwork", "EmpiricalProcess", "ParametricProcess", "RandomFunctions", "StochasticProcess"]
