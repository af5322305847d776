"""Mixtures of experts: estimation, losses, selection and posteriors."""

from typing import TYPE_CHECKING, Any

from .dendrogram import Dendrogram
from .distances import DistanceEstimate, density_distance
from .experts import Expert, FeatureExpert, LinearExpert, MLPExpert, NetworkGate, PolynomialExpert
from .fitting import fit
from .gates import Gate, LaplaceGate, SigmoidGate, SoftmaxGate, TopKGate
from .joint import GaussianGate
from .losses import voronoi_cells, voronoi_loss
from .measure import MixingMeasure
from .mixture import GaussianMixture
from .model import GaussianMoE
from .outcomes import GaussianOutcome, MultinomialLogit, OutcomeLaw, StudentTOutcome
from .penalty import Penalty
from .polynomial import PolynomialSolution, bar_r, polynomial_residuals, solve_polynomial_system
from .process import MixtureOfExperts, MoEPrior, PriorScales
from .result import MoEFit
from .selection import Selection, icl, select_num_experts
from .tempered import ActivationGate, TemperatureGate
from .uncertainty import bootstrap, laplace, relabel
from .weighted import WeightedBootstrap

if TYPE_CHECKING:
    from .draws import MixtureDrawsPosterior
    from .posterior import MixturePosterior

__all__ = [
    "ActivationGate",
    "Dendrogram",
    "DistanceEstimate",
    "Expert",
    "FeatureExpert",
    "Gate",
    "GaussianGate",
    "GaussianMixture",
    "GaussianMoE",
    "GaussianOutcome",
    "LaplaceGate",
    "LinearExpert",
    "MLPExpert",
    "MixingMeasure",
    "MixtureDrawsPosterior",
    "MixtureOfExperts",
    "MixturePosterior",
    "MoEFit",
    "MoEPrior",
    "MultinomialLogit",
    "NetworkGate",
    "OutcomeLaw",
    "Penalty",
    "PolynomialExpert",
    "PolynomialSolution",
    "PriorScales",
    "Selection",
    "SigmoidGate",
    "SoftmaxGate",
    "StudentTOutcome",
    "TemperatureGate",
    "TopKGate",
    "WeightedBootstrap",
    "bar_r",
    "bootstrap",
    "density_distance",
    "fit",
    "icl",
    "laplace",
    "polynomial_residuals",
    "relabel",
    "select_num_experts",
    "solve_polynomial_system",
    "voronoi_cells",
    "voronoi_loss",
]


def __getattr__(name: str) -> Any:
    """What needs BoTorch, whose import takes seconds, when it is first used."""
    if name == "MixtureDrawsPosterior":
        from .draws import MixtureDrawsPosterior

        return MixtureDrawsPosterior
    if name == "MixturePosterior":
        from .posterior import MixturePosterior

        return MixturePosterior
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
