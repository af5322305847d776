"""What a fit gives back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ._information import FLAT, spectrum
from .measure import MixingMeasure
from .model import GaussianMoE
from .tempered import TemperatureGate

# A parameter of which flat directions are a larger share than this has no variance.
_TOUCHED = 1e-8


@dataclass(frozen=True, eq=False)
class MoEFit:
    r"""A mixture of experts estimated by maximum likelihood; of R replicates, tensors lead with R.

    Args:
        model: The model with its estimates, in canonical form; those of a fit that failed are zero, and its other
            numbers NaN.
        log_likelihood: Weighted sum over rows, penalty apart.
        penalty_value: What the penalty added to it in the maximisation; 0 without one.
        status: ``"converged"``; ``"separated"``: the maximum lies at infinite weights of the gate, which is a step
            function, and has no standard errors; ``"degenerate"``: a variance collapsed onto a few rows in every
            restart, or the best restart left an expert less than a millionth of the observations, whose parameters
            mean nothing; ``"saddle"``: the stopping rule was met where the likelihood curves upwards, as EM may;
            ``"max_iter"``: the iterations ended first; ``"failed"``: no start had a likelihood.
        converged: The stopping rule was met, at an estimate that is not degenerate.
        decrement: The Newton decrement :math:`g^\top(-H)^{-1}g` at the estimate: twice the gain in nats that is left.
        num_iter: Iterations of the restart that won.
        restarts: Maxima (with penalty) that the restarts reached, ``S``.
        num_same_optimum: How many of them are within 0.001 nats of the best.
        information: Minus the Hessian in the free parameters, ``F x F``; None without closed form.
        complete_information: What it would be if the expert of every row were known, ``F x F``: the scale on which
            directions count as flat; None without closed form.
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
    complete_information: Tensor | None
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
        """Largest over smallest share of the information that not knowing the rows' experts leaves.

        Near the reciprocal of rounding where experts are superfluous or a gate separates the data; units do not matter.
        """
        values = self._spectrum("condition_number")[0].abs()
        return values.amax(-1) / values.amin(-1)

    def covariance(self) -> Tensor:
        """Asymptotic covariance of the free parameters: the inverse of the information, ``F x F``.

        Parameters that a direction without information moves, as those of superfluous experts or of a gate that
        separates the data, have NaN; of others it is that of the remaining directions.

        Raises:
            UnsupportedError: There is no closed form of the Hessian; use a bootstrap.
        """
        values, directions = self._spectrum("covariance")
        flat = (values <= FLAT).unsqueeze(-2)
        inverse = torch.where(flat, 0.0, 1 / torch.where(flat, 1.0, values.unsqueeze(-2)))
        out = (directions * inverse) @ directions.mT
        square = directions.square()
        lost = (square * flat).sum(-1) > _TOUCHED * square.sum(-1)
        return out.masked_fill(lost.unsqueeze(-1) | lost.unsqueeze(-2), math.nan)

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
        index = self.model.free_index()
        if isinstance(self.model.gate, TemperatureGate) and self.model.gate.normalise is not None:
            variance = self._of_normalised(self.covariance(), index)
        else:
            variance = self.covariance().diagonal(dim1=-2, dim2=-1)[..., index.clamp_min(0)].masked_fill(index < 0, 0.0)
        gamma, beta, scales, _ = self.model.split(variance.sqrt())
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

    def _of_normalised(self, covariance: Tensor, index: Tensor) -> Tensor:
        """Variances of the reported coordinates, ``P``: those that were fitted have a temperature of one."""
        model, kept = self.model, index >= 0
        gamma, *others = model.split(model._parameters("standard_errors"))
        fitted = model.join(model.gate.untempered(gamma), *others)
        start = torch.zeros(*fitted.shape[:-1], covariance.shape[-1]).to(fitted)
        start[..., index[kept]] = fitted[..., kept]

        def reported(free: Tensor, like: Tensor) -> Tensor:
            theta = torch.where(kept, free[index.clamp_min(0)], like)
            scores, *rest = model.split(theta)
            return model.join(model.gate.canonical(scores), *rest)

        batch = (start.reshape(-1, start.shape[-1]), fitted.reshape(-1, fitted.shape[-1]))
        slopes = [
            torch.autograd.functional.jacobian(lambda z, f=f: reported(z, f), x) for x, f in zip(*batch, strict=True)
        ]
        slope = torch.stack(slopes).reshape(*fitted.shape, -1)
        return ((slope @ covariance) * slope).sum(-1).clamp_min(0.0)

    def _spectrum(self, verb: str) -> tuple[Tensor, Tensor]:
        if self.information is None or self.complete_information is None:
            raise UnsupportedError(
                f"MoEFit.{verb}: a model with {type(self.model.gate).__name__} and {type(self.model.expert).__name__} "
                "has no closed-form Hessian; use probnn.moe.bootstrap for uncertainty"
            )
        return spectrum(self.information, self.complete_information)

    def __repr__(self) -> str:
        status = self.status if isinstance(self.status, str) else f"{len(self.status)} replicates"
        value = self.log_likelihood.nanmean().item()
        return f"MoEFit({self.model.num_experts} experts, {status}, log-likelihood {value:.6g}, {self.method})"
