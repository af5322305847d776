"""The command line: a thin shell over public functions."""

from .main import main

__all__ = ["main"]
