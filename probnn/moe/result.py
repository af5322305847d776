"""What a fit gives back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UnsupportedError
from .measure import MixingMeasure
from .model import GaussianMoE
from .newton import _spectrum


@dataclass(frozen=True, eq=False)
class MoEFit:
    r"""A mixture of experts estimated by maximum likelihood; of R replicates, tensors lead with R.

    Args:
        model: The model with its estimates, in canonical form.
        log_likelihood: Weighted sum over rows, penalty apart.
        penalty_value: What the penalty added to it in the maximisation; 0 without one.
        status: ``"converged"``; ``"separated"``: the maximum lies at infinite weights of the gate, which is a step
            function, and standard errors of the gate mean nothing; ``"degenerate"``: a variance collapsed onto a few
            rows in every restart; ``"max_iter"``: the iterations ended first; ``"failed"``: no start had a likelihood.
        converged: The stopping rule was met.
        decrement: The Newton decrement :math:`g^\top(-H)^{-1}g` at the estimate: twice the gain in nats that is left.
        num_iter: Iterations of the restart that won.
        restarts: Maxima (with penalty) that the restarts reached, ``S``.
        num_same_optimum: How many of them are within 0.001 nats of the best.
        information: Minus the Hessian in the free parameters, ``F x F``; None without closed form.
        num_observations: Sum of the weights.
        method: The optimiser.
        criterion: The stopping rule.
        seconds: Wall time, all replicates together.

    Example:
        >>> import torch
        >>> from probnn import moe
        >>> X = torch.linspace(-1, 1, 50).double().unsqueeze(-1)
        >>> fit = moe.fit(moe.GaussianMoE(num_experts=1, input_dim=1), X, 2 * X + 0.1 * (9 * X).cos())
        >>> fit.status, round(fit.model.mixing_measure().coef.item(), 2), sorted(fit.standard_errors())
        ('converged', 2.0, ['coef', 'gate_bias', 'gate_weight', 'intercept', 'variance'])
    """

    model: GaussianMoE
    log_likelihood: Tensor
    penalty_value: Tensor
    status: str | tuple[str, ...]
    converged: Tensor
    decrement: Tensor
    num_iter: Tensor
    restarts: Tensor
    num_same_optimum: Tensor
    information: Tensor | None
    num_observations: Tensor
    method: str
    criterion: str
    seconds: float

    @property
    def num_free(self) -> int:
        """Number of parameters that were estimated."""
        return self.model.num_free

    @property
    def bic(self) -> Tensor:
        r"""Bayesian information criterion, :math:`-2\ell + F\log n` (Schwarz 1978); lower is better."""
        return -2 * self.log_likelihood + self.num_free * self.num_observations.log()

    @property
    def aic(self) -> Tensor:
        r"""Akaike's information criterion, :math:`-2\ell + 2F` (Akaike 1974); lower is better."""
        return -2 * self.log_likelihood + 2 * self.num_free

    @property
    def condition_number(self) -> Tensor:
        """Condition of the information in coordinates of unit curvature: large where experts are superfluous."""
        values = _spectrum(-self._information("condition_number"))[0].abs()
        return values.amax(-1) / values.amin(-1)

    def covariance(self) -> Tensor:
        """Asymptotic covariance of the free parameters: the inverse of the information, ``F x F``.

        NaN where the information is not positive definite, as in models with superfluous experts.

        Raises:
            UnsupportedError: There is no closed form of the Hessian; use a bootstrap.
        """
        information = self._information("covariance")
        values, vectors, scale = _spectrum(-information)
        fine = values[..., 0] > 1e-12 * values[..., -1]
        scaled = (vectors / values.unsqueeze(-2)) @ vectors.mT
        out = scale.unsqueeze(-1) * scaled * scale.unsqueeze(-2)
        return torch.where(fine[..., None, None], out, math.nan)

    def standard_errors(self) -> dict[str, Tensor]:
        r"""Standard errors by the inverse information, in the shapes of the mixing measure.

        Those of variances and temperatures are by the delta method,
        :math:`\mathrm{se}(\nu) = \nu\,\mathrm{se}(\log\nu)`; coordinates that are held
        (the reference expert's gate, known variances) have zero.

        Returns:
            ``gate_bias``, ``gate_weight``, ``intercept``, ``coef``, and where they are estimated ``variance`` and
            ``temperature``.

        Raises:
            UnsupportedError: There is no closed form of the Hessian; use a bootstrap.
        """
        variance = self.covariance().diagonal(dim1=-2, dim2=-1)
        index = self.model.free_index()
        errors = variance.sqrt()[..., index.clamp_min(0)] * (index >= 0)
        gamma, beta, scales, _ = self.model.split(errors)
        measure: MixingMeasure = self.model.mixing_measure()
        d = self.model.input_dim
        one = not measure.by_outcome
        out = {
            "gate_bias": gamma[..., d],
            "gate_weight": gamma[..., :d],
            "intercept": beta[..., -1].squeeze(-1) if one else beta[..., -1],
            "coef": beta[..., :-1].squeeze(-2) if one else beta[..., :-1],
        }
        if measure.variance is not None:
            out["variance"] = measure.variance * (scales.squeeze(-1) if one else scales)
        if measure.temperature is not None and gamma.shape[-1] > d + 1:
            out["temperature"] = measure.temperature * gamma[..., 0, d + 1]
        return out

    def _information(self, verb: str) -> Tensor:
        if self.information is None:
            raise UnsupportedError(
                f"MoEFit.{verb}: a model with {type(self.model.gate).__name__} and {type(self.model.expert).__name__} "
                "has no closed-form Hessian; use probnn.moe.bootstrap for uncertainty"
            )
        return self.information

    def __repr__(self) -> str:
        status = self.status if isinstance(self.status, str) else f"{len(self.status)} replicates"
        value = self.log_likelihood.mean().item()
        return f"MoEFit({self.model.num_experts} experts, {status}, log-likelihood {value:.6g}, {self.method})"
