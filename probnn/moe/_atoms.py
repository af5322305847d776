"""Atoms of mixing measures in the coordinates in which distances between measures are taken."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import validation
from ..errors import ShapeError, UnsupportedError
from .gates import LaplaceGate, SoftmaxGate
from .joint import GaussianGate
from .measure import MixingMeasure
from .tempered import ActivationGate, TemperatureGate, Tempered


def family(G: MixingMeasure) -> str:
    """The family of the measure's gate: what its masses are, and what leaves its density the same."""
    gate = G.gate
    if isinstance(gate, (SoftmaxGate, TemperatureGate)):
        return "linear"
    if isinstance(gate, ActivationGate):
        return f"{gate.activation} activation"
    if isinstance(gate, LaplaceGate):
        return "Laplace"
    if isinstance(gate, GaussianGate):
        return "Gaussian"
    raise UnsupportedError(
        f"moe: a measure with {type(gate).__name__} has no masses that its density is linear in, so there is no "
        "Voronoi loss; moe.density_distance compares any two models"
    )


@dataclass(frozen=True, eq=False)
class Atoms:
    """Blocks of the atoms' parameters, flat: ``... x k x size``; no block where the measure has none.

    Attributes:
        log_mass: ``... x k``.
        gate: Weights or centres.
        blocks: The others by name: temperature, covariance, slope, intercept, variance.
    """

    log_mass: Tensor
    gate: Tensor
    blocks: dict[str, Tensor]

    @staticmethod
    def of(G: MixingMeasure, *, reduced: bool) -> Atoms:
        """The atoms of a measure.

        Args:
            G: The measure.
            reduced: Linear scores are divided by their temperature, which is then no parameter.
        """
        kind, k = family(G), G.num_atoms
        tau = torch.ones_like(G.gate_bias[..., 0]) if G.temperature is None else G.temperature
        log_mass, gate = G.gate_bias / tau.unsqueeze(-1), G.gate_weight
        blocks: dict[str, Tensor] = {}
        if kind == "linear" and reduced:
            gate = gate / tau[..., None, None]
        elif kind == "linear" or isinstance(G.gate, Tempered):
            blocks["temperature"] = tau[..., None, None].expand(*tau.shape, k, 1)
        if kind == "Gaussian":
            log_mass = G.gate_bias.log_softmax(-1)
            if G.gate_covariance is None:
                raise ShapeError("moe: a measure with GaussianGate needs gate_covariance, got None")
            blocks["covariance"] = G.gate_covariance.flatten(-2)
        lead = G.gate_weight.shape[:-1]
        blocks["slope"] = G.coef.reshape(*lead, -1)
        blocks["intercept"] = G.intercept.reshape(*lead, -1)
        if G.variance is not None:
            blocks["variance"] = G.variance.reshape(*lead, -1)
        return Atoms(log_mass, gate, blocks)

    def vector(self, shift: Tensor | float = 0.0) -> Tensor:
        """All parameters of every atom, ``... x k x size``, the gate's with a shift."""
        return torch.cat([self.gate + shift, *self.blocks.values()], -1)


def comparable(where: str, G: MixingMeasure, G_true: MixingMeasure) -> None:
    """Raise unless two measures have atoms of one space and batches that go together."""
    for name, x in (("G", G), ("G_true", G_true)):
        if not isinstance(x, MixingMeasure):
            raise UnsupportedError(
                f"{where}: {name} must be a MixingMeasure, got {type(x).__name__}; a model has .mixing_measure()"
            )
    for name in ("gate_weight", "coef", "variance"):
        a, b = getattr(G, name), getattr(G_true, name)
        if (a is None) != (b is None):
            raise ShapeError(f"{where}: G and G_true must both have {name}, or neither; got one with it")
        if a is None:
            continue
        # Behind the atoms: everything after the batch and the axis of atoms.
        behind = [tuple(x.shape[len(y.batch_shape) + 1 :]) for x, y in ((a, G), (b, G_true))]
        if behind[0] != behind[1]:
            raise ShapeError(
                f"{where}: an atom of G must have a {name} of the shape {behind[1]} of G_true's, got {behind[0]}; "
                "compare measures of the same inputs, outcomes and features"
            )
        validation.tensor(where, f"{name} of G", a, like=b)
    if G.batch_shape and G_true.batch_shape and G.batch_shape != G_true.batch_shape:
        raise ShapeError(
            f"{where}: G has replicates {tuple(G.batch_shape)}, G_true {tuple(G_true.batch_shape)}; they must agree, "
            "or one of them have none"
        )
    if family(G) != family(G_true):
        raise UnsupportedError(
            f"{where}: G must have the gate of G_true ({family(G_true)}), got {family(G)}; moe.density_distance "
            "compares any two models"
        )


def mean_gate(where: str, G: MixingMeasure, X: Tensor) -> Tensor:
    """Mean probabilities of the atoms over the rows of X ``n x d`` or ``R x n x d``: ``... x k``."""
    validation.inputs(where, X, G.input_dim, like=G.gate_weight)
    gate = G.gate
    if isinstance(gate, GaussianGate) and G.gate_covariance is not None:
        gamma = gate.pack(G.gate_bias, G.gate_weight, G.gate_covariance)
    else:
        gamma = torch.cat([G.gate_weight, G.gate_bias.unsqueeze(-1)], -1)
    if isinstance(gate, Tempered):
        log_tau = (
            torch.zeros_like(gamma[..., :1, :1]) if G.temperature is None else G.temperature.log()[..., None, None]
        )
        gamma = torch.cat([gamma, log_tau.expand(*gamma.shape[:-1], 1)], -1)
    tail = gamma[..., :0, 0]
    return gate.log_probs(gamma, X.mT, tail).log_softmax(-2).exp().mean(-1)
