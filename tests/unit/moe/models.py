"""Small mixtures of experts that several tests use."""

from __future__ import annotations

import torch

from probnn import moe

# The exact-fit example of Nguyen, Nguyen & Ho (2023): a steep gate between two crossing lines.
CROSSING = moe.MixingMeasure(
    gate_bias=[-8.0, 0.0],
    gate_weight=[[25.0], [0.0]],
    intercept=[15.0, -5.0],
    coef=[[-20.0], [20.0]],
    variance=[0.09, 0.16],
)
# A gentle gate, in which both experts have mass everywhere.
GENTLE = moe.MixingMeasure(
    gate_bias=[0.5, 0.0],
    gate_weight=[[3.0], [0.0]],
    intercept=[1.0, -1.0],
    coef=[[2.0], [-1.5]],
    variance=[0.16, 0.25],
)
GATES = {
    "softmax": moe.SoftmaxGate(),
    "softmax, tempered": moe.SoftmaxGate(temperature=2.0),
    "temperature": moe.TemperatureGate(),
    **{name: moe.ActivationGate(name) for name in ("gelu", "tanh", "sigmoid", "silu", "relu")},
    "laplace": moe.LaplaceGate(),
    "logistic": moe.SigmoidGate(),
}
EXPERTS = {
    "linear": moe.LinearExpert(),
    "polynomial": moe.PolynomialExpert(2),
    "additive": moe.PolynomialExpert(3, interactions=False),
    "features": moe.FeatureExpert(torch.sin, 2),
}
OUTCOMES = {
    "gaussian": moe.GaussianOutcome(),
    "student-t": moe.StudentTOutcome(df=3.0),
    "classes": moe.MultinomialLogit(3),
}


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def uniform(*shape: int, seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def sample(measure: moe.MixingMeasure, *shape: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs uniform on the unit cube, and outcomes."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(*shape, measure.input_dim, generator=generator, dtype=torch.double)
    return X, moe.GaussianMoE.from_mixing_measure(measure).sample_outcomes(X, generator=generator)
