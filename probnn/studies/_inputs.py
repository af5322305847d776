"""Where the inputs of a simulated data set come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import moe, validation
from ..errors import DomainError, ShapeError
from ..random import generator_from, uniform

LAWS = ("uniform", "centred", "grid", "gate")
_WHERE = "studies inputs"


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of a study.

    Args:
        law: ``"uniform"`` on the unit cube; ``"centred"``: uniform on [-1, 1] in every input; ``"grid"``: equally
            spaced from 0 to 1, of one input, the same for all replicates; ``"gate"``: the normal mixture that a
            :class:`probnn.moe.GaussianGate` has for its inputs; or a function of (n, generator) that returns
            ``n x d`` in double precision.
        truth: The measure whose inputs they are.

    Raises:
        DomainError: There is no such law, or it is not one for this truth.
    """

    law: str | Callable[[int, torch.Generator], Tensor]
    truth: moe.MixingMeasure

    def __post_init__(self) -> None:
        d = self.truth.input_dim
        if callable(self.law):
            return
        validation.choice(_WHERE, "inputs (or a function of (n, generator))", self.law, LAWS)
        if (self.law == "gate") != self.truth.gate.joint:
            raise DomainError(
                f"{_WHERE}: a Gaussian gate is a law of the inputs too and goes with inputs='gate', and only it does; "
                f"got inputs={self.law!r} with a {type(self.truth.gate).__name__}"
            )
        if self.law == "grid" and d != 1:
            raise DomainError(f"{_WHERE}: 'grid' is for one input, got {d}; use 'uniform' or a function")

    @property
    def shared(self) -> bool:
        """All replicates have the same inputs."""
        return self.law == "grid"

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Inputs of one data set, ``n x d``."""
        d = self.truth.input_dim
        if callable(self.law):
            X = self.law(n, generator)
            validation.inputs(_WHERE, X, d, like=self.truth.gate_weight, batched=False)
            if len(X) != n:
                raise ShapeError(f"{_WHERE}: the function must return {n} rows, got {len(X)}")
            return X
        if self.law == "grid":
            return torch.linspace(0.0, 1.0, n, dtype=torch.double).unsqueeze(-1)
        return self._of(uniform((n, d + (self.law == "gate")), generator=generator, dtype=torch.double))

    def reference(self, count: int) -> Tensor:
        """Points ``count x d`` whose mean stands for the expectation over the inputs; no draws, but of a function.

        Midpoints of one input, a shifted Sobol' sequence of several.
        """
        d = self.truth.input_dim
        if callable(self.law):
            return self.draw(count, generator_from(0))
        width = d + (self.law == "gate")
        if width == 1:
            u = torch.arange(count, dtype=torch.double).unsqueeze(-1) / count
        else:
            u = torch.quasirandom.SobolEngine(width).draw(count, dtype=torch.double)
        return self._of(u + 0.5 / count)

    def record(self) -> Any:
        """What the law is, as plain values."""
        if not callable(self.law):
            return self.law
        from .identity import fingerprint

        return fingerprint(_WHERE, self.law)

    def _of(self, u: Tensor) -> Tensor:
        """Points of the unit cube as points of the law."""
        if self.law == "centred":
            return 2 * u - 1
        return self._mixed(u) if self.law == "gate" else u

    def _mixed(self, u: Tensor) -> Tensor:
        """Points ``n x (d + 1)`` of the unit cube as draws of the gate's mixture; the first of each picks the atom."""
        G = self.truth
        covariance = G.gate_covariance
        if covariance is None:  # a measure with this gate has it
            raise DomainError(f"{_WHERE}: the truth has no gate_covariance")
        below = G.gate_bias.softmax(-1).cumsum(-1)
        atom = torch.searchsorted(below, u[:, 0].contiguous(), right=True).clamp_max(G.num_atoms - 1)
        # A draw of exactly zero would be infinite.
        z = torch.special.ndtri(u[:, 1:].clamp_min(2.0**-60))
        factor = torch.linalg.cholesky(covariance)
        return G.gate_weight[atom] + (factor[atom] @ z.unsqueeze(-1)).squeeze(-1)
