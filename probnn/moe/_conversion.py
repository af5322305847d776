"""Between the coordinates of a model and its mixing measure."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import DomainError, UnsupportedError
from .gates import SoftmaxGate
from .joint import GaussianGate
from .measure import MixingMeasure
from .tempered import Tempered


def to_measure(model: Any, theta: Tensor) -> MixingMeasure:
    """The measure of coordinates ``... x P``."""
    if not model.expert.linear or model.gate.width(model.input_dim) == 0:
        raise UnsupportedError(
            "moe.GaussianMoE.mixing_measure: networks have no atoms; read the parameters from model.theta"
        )
    gamma, beta, scales, _ = model.split(theta)
    d = model.input_dim
    one = beta.shape[-2] == 1 and scales.shape[-1] == 1
    coef, intercept, variance = beta[..., :-1], beta[..., -1], scales.exp()
    temperature = covariance = None
    if isinstance(model.gate, Tempered):
        temperature = gamma[..., 0, d + 1].exp()
    elif isinstance(model.gate, SoftmaxGate) and model.gate.temperature != 1:
        temperature = gamma.new_full(gamma.shape[:-2], model.gate.temperature)
    elif isinstance(model.gate, GaussianGate):
        covariance = model.gate.covariance(gamma, d)
    bias = gamma[..., d].log_softmax(-1) if covariance is not None else gamma[..., d]
    return MixingMeasure(
        bias,
        gamma[..., :d],
        intercept.squeeze(-1) if one else intercept,
        coef.squeeze(-2) if one else coef,
        None if scales.shape[-1] == 0 else variance.squeeze(-1) if one else variance,
        temperature,
        covariance,
        model.gate,
    )


def from_measure(cls: Any, G: MixingMeasure, options: dict[str, Any]) -> Any:
    """A model with the parameters of a measure."""
    where, gate = "moe.GaussianMoE.from_mixing_measure", G.gate
    unknown = sorted(options.keys() - {"expert", "outcome", "variance"})
    if unknown:
        raise DomainError(f"{where}: takes expert, outcome and variance beside the measure, got {', '.join(unknown)}")
    coef = G.coef if G.by_outcome else G.coef.unsqueeze(-2)
    intercept = G.intercept if G.by_outcome else G.intercept.unsqueeze(-1)
    num_outcomes = coef.shape[-2] if G.variance is not None else 1  # classes have logits instead
    model = cls(G.num_atoms, G.input_dim, num_outcomes, gate=gate, **options)
    w, a, p, b = model.sizes
    if (a, p, b) != (coef.shape[-2], coef.shape[-1] + 1, 0 if G.variance is None else num_outcomes):
        raise DomainError(
            f"{where}: the measure has {coef.shape[-2]} means of {coef.shape[-1] + 1} coefficients, but the model has "
            f"{a} of {p}; pass the expert= and outcome= the measure belongs to"
        )
    if isinstance(gate, GaussianGate):
        if G.gate_covariance is None:
            raise DomainError(f"{where}: a Gaussian gate needs gate_covariance")
        gamma = gate.pack(G.gate_bias, G.gate_weight, G.gate_covariance)
    else:
        gamma = torch.cat([G.gate_weight, G.gate_bias.unsqueeze(-1)], -1)
    if isinstance(gate, Tempered):
        log_t = torch.zeros_like(gamma[..., 0, 0]) if G.temperature is None else G.temperature.log()
        gamma = torch.cat([gamma, log_t[..., None, None].expand(*gamma.shape[:-1], 1)], -1)
    elif G.temperature is not None and not (G.temperature == getattr(gate, "temperature", 1.0)).all():
        raise DomainError(f"{where}: the measure's temperature is not that of its gate {gate}")
    _check_variance(where, model, G)
    if G.variance is None:
        scales = gamma.new_zeros(*gamma.shape[:-1], 0)
    else:
        scales = (G.variance if G.by_outcome else G.variance.unsqueeze(-1)).log()
    theta = model.join(gamma, torch.cat([coef, intercept.unsqueeze(-1)], -1), scales)
    return cls(G.num_atoms, G.input_dim, num_outcomes, gate=gate, theta=theta, **options)


def _check_variance(where: str, model: Any, G: MixingMeasure) -> None:
    """The measure's variances must be those that the model knows, or shares."""
    if G.variance is None or model.variance == "per_expert":
        return
    axis = -2 if G.by_outcome else -1
    same = G.variance.select(axis, 0).unsqueeze(axis) if model.variance == "shared" else model.variance
    same = same if torch.is_tensor(same) else torch.full_like(G.variance, same)
    if not torch.allclose(G.variance, same.expand_as(G.variance), rtol=1e-9, atol=0.0):
        raise DomainError(
            f"{where}: with variance={model.variance!r} the measure's variances must be "
            f"{'equal' if model.variance == 'shared' else 'that number'}, got {G.variance.tolist()}"
        )
