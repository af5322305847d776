"""Outcomes in units of their own spread, whatever units a person measures in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from ..surrogates import ProcessModel
from ..surrogates._state import standardize


@dataclass(frozen=True)
class Units:
    r"""What is zero and what is one inside: :math:`y = \text{centre} + \text{scale} \cdot u`.

    BoTorch and GPyTorch add 1e-8 to covariances, raise variances to 1e-10 and smooth improvements over 1e-6 whatever
    the outcomes are: yields in kilograms would vanish in that. Acquisition functions and predicted variances
    therefore belong to models of u (:func:`in_units`); only what people read is y.

    Args:
        centre: The mean of the outcomes.
        scale: Their standard deviation, positive.
    """

    centre: float
    scale: float

    @classmethod
    def of(cls, Y: Tensor) -> Units:
        """Those of outcomes ``n x 1``; outcomes that do not differ, but for rounding, keep their scale."""
        if not len(Y):
            return cls(0.0, 1.0)
        std = float(Y.std()) if len(Y) > 1 else 0.0
        differ = std > 100 * torch.finfo(Y.dtype).eps * float(Y.abs().max())
        return cls(float(Y.mean()), std if differ else 1.0)

    @overload
    def inside(self, y: float) -> float: ...
    @overload
    def inside(self, y: Tensor) -> Tensor: ...
    def inside(self, y: float | Tensor) -> float | Tensor:
        """u of y."""
        return (y - self.centre) / self.scale

    @overload
    def outside(self, u: float) -> float: ...
    @overload
    def outside(self, u: Tensor) -> Tensor: ...
    def outside(self, u: float | Tensor) -> float | Tensor:
        """y of u."""
        return self.centre + self.scale * u


def in_units(model: ProcessModel, units: Units) -> ProcessModel:
    """The same model, sharing its draws, of the outcome in other units.

    Args:
        model: What a :class:`~probnn.surrogates.Surrogate` made, of one outcome.
        units: The units.
    """
    centre, scale = 0.0, 1.0
    if hasattr(model, "outcome_transform"):
        centre, scale = float(model.outcome_transform.means), float(model.outcome_transform.stdvs)
    if units == Units(centre, scale):
        return model._copy(outcome_transform=None)
    like = torch.empty(1, 1, dtype=model.process.dtype, device=model.process.device)
    means = torch.full_like(like, (centre - units.centre) / units.scale)
    return model._copy(outcome_transform=standardize(means, torch.full_like(like, scale / units.scale)).eval())
