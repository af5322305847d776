"""Predictive distributions: posteriors that BoTorch's acquisition functions understand."""

from __future__ import annotations

from .draws import DrawsPosterior
from .marginal import MarginalPosterior
from .samplers import DrawsSampler

__all__ = ["DrawsPosterior", "DrawsSampler", "MarginalPosterior"]
