"""Centres and spreads of the data, which make the M-steps' equations well conditioned."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ._checks import log_variance_floor
from .objective import Objective
from .outcomes import MultinomialLogit


@dataclass(frozen=True, eq=False)
class Scaling:
    """Weighted means and standard deviations over the rows of every data set; of a constant column: 1.

    Args:
        features: Centres and spreads of the experts' features, ``R|1 x 2 x p``; of the last, which is one: 0 and 1.
        inputs: Of the inputs, ``R|1 x 2 x d``.
        floor: Floor of the variances, ``R|1 x m``; zero for classes.
    """

    features: Tensor
    inputs: Tensor
    floor: Tensor

    @staticmethod
    def of(objective: Objective) -> Scaling:
        """The scaling of an objective's data: two passes over them."""
        expert = objective.model.expert
        d = objective.model.input_dim
        data = objective.data
        step = objective.bytes_a_row(data.num_replicates)
        both = data.moments(lambda rows: torch.cat([rows.X, expert.design(rows.X)], -2), step)
        features = both[..., d:].clone()
        features[:, 0, -1], features[:, 1, -1] = 0.0, 1.0
        classes = isinstance(objective.model.outcome, MultinomialLogit)
        return Scaling(features, both[..., :d], log_variance_floor(data).exp() * (not classes))

    def take(self, which: Tensor) -> Scaling:
        """That of some data sets; shared ones stay shared."""
        parts = (getattr(self, field.name) for field in fields(self))
        return Scaling(*(x if len(x) == 1 else x[which] for x in parts))

    def standardised(self, phi: Tensor) -> Tensor:
        """Features ``B|1 x p x n``, centred and scaled."""
        return (phi - self.features[:, 0].unsqueeze(-1)) / self.features[:, 1].unsqueeze(-1)

    def standard_inputs(self, X: Tensor) -> Tensor:
        """Inputs ``B|1 x d x n``, centred and scaled."""
        return (X - self.inputs[:, 0].unsqueeze(-1)) / self.inputs[:, 1].unsqueeze(-1)

    def raw(self, beta: Tensor) -> Tensor:
        """Coefficients ``B x ... x p`` of the features for those of the standardised features."""
        shape = (len(self.features), *(1,) * (beta.ndim - 2), beta.shape[-1])
        out = beta / self.features[:, 1].reshape(shape)
        out[..., -1] -= (out * self.features[:, 0].reshape(shape)).sum(-1)
        return out
