"""Networks as functions of flat parameters: one call evaluates a whole stack of draws."""

from .base import Network
from .layout import Block, Layout
from .mlp import MLP
from .module import ModuleNetwork

__all__ = ["Block", "Layout", "MLP", "ModuleNetwork", "Network"]
