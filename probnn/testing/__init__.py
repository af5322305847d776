"""The checks every part of the library passes, for parts written elsewhere.

Each function raises `AssertionError` with what went wrong, and `DomainError` where it is given something else than it
checks. :func:`check_inference_method` and :func:`check_surrogate` return what they fitted, the others None.

Example:
    >>> import probnn
    >>> from probnn.testing import check_network
    >>> check_network(probnn.MLP(input_dim=2, hidden=(3,)))
"""

from .inference import check_inference_method
from .parts import check_likelihood, check_network, check_weight_prior
from .processes import check_parametric_process, check_process
from .saving import check_saving
from .surrogates import check_surrogate

__all__ = [
    "check_inference_method",
    "check_likelihood",
    "check_network",
    "check_parametric_process",
    "check_process",
    "check_saving",
    "check_surrogate",
    "check_weight_prior",
]
