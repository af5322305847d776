"""Priors: laws of weights, Gaussian processes, and the one matched to the other."""

from .critic import Wasserstein
from .default import BNNPrior
from .default_gp import GPPrior
from .duals import dual_activation
from .flows import FlowWeights
from .gaussian_process import GaussianProcess
from .hierarchical import HierarchicalWeights
from .hyperpriors import Gamma, HyperPrior, LogNormal, Normal, Uniform
from .inverse_gamma import InverseGammaWeights
from .matching import Match, match_prior
from .measurement import Grid, MeasurementSet, Points, TrainingInputs
from .transformed import TransformedWeights
from .weights import LaplaceWeights, NormalWeights, StudentTWeights, WeightPrior
from .wide import wide_covariance

__all__ = [
    "BNNPrior",
    "FlowWeights",
    "GPPrior",
    "Gamma",
    "GaussianProcess",
    "Grid",
    "HierarchicalWeights",
    "HyperPrior",
    "InverseGammaWeights",
    "LaplaceWeights",
    "LogNormal",
    "Match",
    "MeasurementSet",
    "Normal",
    "NormalWeights",
    "Points",
    "StudentTWeights",
    "TrainingInputs",
    "TransformedWeights",
    "Uniform",
    "Wasserstein",
    "WeightPrior",
    "dual_activation",
    "match_prior",
    "wide_covariance",
]
