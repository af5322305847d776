"""Priors: laws of weights, and Gaussian processes."""

from .default import BNNPrior
from .default_gp import GPPrior
from .gaussian_process import GaussianProcess
from .hierarchical import HierarchicalWeights
from .hyperpriors import Gamma, HyperPrior, LogNormal, Normal, Uniform
from .weights import LaplaceWeights, NormalWeights, StudentTWeights, WeightPrior

__all__ = [
    "BNNPrior",
    "GPPrior",
    "Gamma",
    "GaussianProcess",
    "HierarchicalWeights",
    "HyperPrior",
    "LaplaceWeights",
    "LogNormal",
    "Normal",
    "NormalWeights",
    "StudentTWeights",
    "Uniform",
    "WeightPrior",
]
