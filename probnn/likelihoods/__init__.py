"""Likelihoods: from the channels of a function to the distribution of an outcome."""

from .base import Likelihood
from .continuous import Gaussian, Heteroscedastic, StudentT
from .discrete import Bernoulli, Categorical, Poisson

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Heteroscedastic", "Likelihood", "Poisson", "StudentT"]
