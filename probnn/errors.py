"""Every error and warning of the library's own.

A message says where, what was expected, what came and what to do, for example
``HMC.fit: X must have shape (n, 2) to match the prior (d = 2), got (30, 3)``.
"""

from __future__ import annotations

import sys
from typing import Any

# Whose frames are skipped in the search for the line a warning is about.
_INSIDE = frozenset({"botorch", "contextlib", "gpytorch", "linear_operator", "probnn", "pyro", "torch"})


class ProbnnError(Exception):
    """Base of every error of the library."""


class ShapeError(ProbnnError, ValueError):
    """A tensor has the wrong number of dimensions or the wrong size."""


class DomainError(ProbnnError, ValueError):
    """A value is of the wrong type, dtype or device, or outside its range."""


class NonFiniteError(ProbnnError, ValueError):
    """A tensor holds NaN or infinity where finite values are needed."""


class UnsupportedError(ProbnnError, NotImplementedError):
    """The object cannot do what was asked; the message names what can."""


class ConvergenceError(ProbnnError, RuntimeError):
    """A computation did not converge; `partial` holds what there is of its result."""

    def __init__(self, message: str, partial: Any = None):
        super().__init__(message)
        self.partial = partial


class SerializationError(ProbnnError):
    """An object cannot be saved, or a file cannot be read."""


class DivergenceWarning(UserWarning):
    """Trajectories of a sampler left the region where its integrator is accurate."""


class ConvergenceWarning(UserWarning):
    """A result is there, but a diagnostic says it may not be trusted yet."""


class DegenerateWeightsWarning(UserWarning):
    """Importance weights rest on a handful of draws: fit again on all data."""


class PrecisionWarning(UserWarning):
    """Single precision where the algorithm wants double."""


class SmallSampleWarning(UserWarning):
    """Too few samples or replicates for the number to mean much."""


class IncompleteStudyWarning(UserWarning):
    """Replicates of a simulation study have no result."""


def user_level() -> int:
    """The `stacklevel` with which a warning names the user's line.

    The first frame outside the library and what it is built on, counted from the function that asks; the
    outermost one where there is none.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warnings.warn("draws are few", SmallSampleWarning, stacklevel=user_level())
        >>> caught[0].category.__name__
        'SmallSampleWarning'
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    return level
