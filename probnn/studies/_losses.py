"""What studies of convergence measure on their fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import moe, validation
from ..errors import DomainError

_WHERE = "studies losses"
_KINDS: dict[type[moe.Gate], str] = {
    moe.TopKGate: "topk",
    moe.ActivationGate: "activation",
    moe.LaplaceGate: "laplace",
    moe.GaussianGate: "gaussian_gate",
}
_VORONOI: dict[str, str | None] = {"voronoi": "fit", "voronoi_truth": "truth", "voronoi_raw": None}
_DISTANCES = ("total_variation", "hellinger")
_PARAMETERS = ("intercept_error", "coef_error", "variance_error", "temperature_error")
LOSSES = (*_VORONOI, "voronoi_exact", "voronoi_temperature", *_DISTANCES, *_PARAMETERS)


@dataclass(frozen=True, eq=False)
class Losses:
    """The losses of a study, by name, as :class:`MoESimulation` lists them.

    Args:
        names: The losses wanted.
        truth: The true measure.
        points: Inputs whose mean stands for the expectation over the law of the inputs.
        bar_r: Exponents for cells of more than three atoms, for which none is proven; None: the heuristic 2m.

    Raises:
        DomainError: There is no such loss.
    """

    names: tuple[str, ...]
    truth: moe.MixingMeasure
    points: Tensor
    bar_r: Mapping[int, float] | None = None
    _table: dict[int, float] = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.names, str) or not self.names or len(set(self.names)) < len(self.names):
            raise DomainError(f"{_WHERE}: losses must be different names, such as ('voronoi',); got {self.names!r}")
        for name in self.names:
            validation.choice(_WHERE, "losses", name, LOSSES)
        if "temperature_error" in self.names and self.truth.temperature is None:
            raise DomainError(f"{_WHERE}: 'temperature_error' needs a truth with a temperature")
        if {"intercept_error", "coef_error", "variance_error"} & set(self.names) and self.truth.variance is None:
            raise DomainError(f"{_WHERE}: errors of experts' parameters are for normal outcomes")
        object.__setattr__(self, "_table", dict(self.bar_r or {}))

    def __call__(self, G: moe.MixingMeasure) -> dict[str, Tensor]:
        """The losses of R fitted measures, ``R`` each."""
        return {name: self._one(name, G) for name in self.names}

    def _one(self, name: str, G: moe.MixingMeasure) -> Tensor:
        if name in _DISTANCES:
            return moe.density_distance(G, self.truth, self.points, name).value
        if name == "temperature_error":
            return self._temperature_error(G)
        if name in _PARAMETERS:
            return self._parameter_error(name.removesuffix("_error"), G)
        kind = {"voronoi_exact": "exact", "voronoi_temperature": "temperature"}.get(name) or self._kind(G)
        table = {m: 2.0 * m for m in range(4, G.num_atoms + 1)} | self._table
        translate = None if kind == "temperature" else _VORONOI.get(name, "fit")
        return moe.voronoi_loss(G, self.truth, kind, translate=translate, bar_r=table)

    def _kind(self, G: moe.MixingMeasure) -> str:
        gate = type(self.truth.gate)
        if gate is moe.TopKGate:  # also with as many experts: the largest over regions
            return "topk"
        if G.num_atoms == self.truth.num_atoms:
            return "exact"
        return _KINDS.get(gate, "overfit")

    def _temperature_error(self, G: moe.MixingMeasure) -> Tensor:
        if G.temperature is None or self.truth.temperature is None:
            raise DomainError(f"{_WHERE}: 'temperature_error' needs gates with a temperature")
        return (G.temperature - self.truth.temperature).abs()

    def _parameter_error(self, name: str, G: moe.MixingMeasure) -> Tensor:
        nearest = torch.cdist(_experts(G), _experts(self.truth)).argmin(-1)  # R k
        gap = (_block(G, name) - _block(self.truth, name)[nearest]).square().sum(-1).sqrt()
        weight = moe.GaussianMoE.from_mixing_measure(G).gate_log_probs(self.points).exp().mean(-2)
        return (weight * gap).sum(-1)


def _block(G: moe.MixingMeasure, name: str) -> Tensor:
    """A parameter of the experts as vectors, ``... x k x p``."""
    value: Tensor = getattr(G, name)
    return value.reshape(*G.batch_shape, G.num_atoms, -1)


def _experts(G: moe.MixingMeasure) -> Tensor:
    return torch.cat([_block(G, name) for name in ("intercept", "coef", "variance")], -1)
