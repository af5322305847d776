"""Bridges to other libraries: Pyro, both ways, and ArviZ."""

from __future__ import annotations

from .arviz import arviz_summary, to_arviz
from .pyro import from_pyro, to_pyro

__all__ = ["arviz_summary", "from_pyro", "to_arviz", "to_pyro"]
