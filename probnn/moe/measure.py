"""Mixing measures: the parameters of mixtures of experts, as the theory of their convergence states it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import validation
from ..errors import DomainError, ShapeError
from .gates import Gate, SoftmaxGate

# Number of dimensions behind the batch of replicates, where there is one outcome; outcomes add one to the last three.
_RANKS = {
    "gate_bias": 1, "gate_weight": 2, "intercept": 1, "coef": 2, "variance": 1, "temperature": 0, "gate_covariance": 3,
}  # fmt: skip
_BY_OUTCOME = ("intercept", "coef", "variance")


@dataclass(frozen=True, eq=False)
class MixingMeasure:
    r"""The mixing measure :math:`G = \sum_{i \le k} e^{b_i} \delta_{(w_i, a_i, c_i, \nu_i)}` of a mixture of experts.

    Atoms hold the gate's weights w (centres for gates that have such), the experts' slopes a, intercepts c and
    variances :math:`\nu` (squared scales); their masses are exponentials of the gate's biases b (Nguyen, Nguyen & Ho
    2023, arXiv 2305.03288). With a softmax gate G is determined up to a common translation of (b, w).

    Numbers may be nested lists; they become double tensors unless they are tensors already. R replicates lead.

    Args:
        gate_bias: Biases, ``k`` or ``R x k``; log masses of a :class:`GaussianGate`.
        gate_weight: Weights or centres, ``k x d``.
        intercept: Intercepts, ``k`` (``k x m`` where `coef` is ``k x m x p``).
        coef: Slopes, or coefficients of the experts' features, ``k x p``.
        variance: Variances, ``k`` (``k x m``); None where outcomes have none, as classes.
        temperature: Temperatures, one a replicate; None: 1.
        gate_covariance: Covariances of the inputs, ``k x d x d``, of a :class:`GaussianGate`.
        gate: The gate the numbers belong to.

    Raises:
        ShapeError: The shapes do not belong together.
        DomainError, NonFiniteError: Variances or temperatures are not positive, or numbers not finite.

    Example:
        >>> G = MixingMeasure(gate_bias=[-8., 0.], gate_weight=[[25.], [0.]], intercept=[15., -5.],
        ...                   coef=[[-20.], [20.]], variance=[.09, .16])
        >>> G.num_atoms, G.input_dim, G.batch_shape
        (2, 1, torch.Size([]))
    """

    gate_bias: Tensor
    gate_weight: Tensor
    intercept: Tensor
    coef: Tensor
    variance: Tensor | None
    temperature: Tensor | None = None
    gate_covariance: Tensor | None = None
    gate: Gate = SoftmaxGate()

    def __post_init__(self) -> None:
        where = "moe.MixingMeasure"
        tensors = {name: _tensor(where, name, getattr(self, name)) for name in _RANKS}
        given = {name: x for name, x in tensors.items() if x is not None}
        if not isinstance(self.gate, Gate):
            raise DomainError(f"{where}: gate must be a moe gate such as SoftmaxGate(), got {self.gate!r}")
        weight, coef = given["gate_weight"], given["coef"]
        if weight.ndim < 2 or coef.ndim < 2:
            raise ShapeError(
                f"{where}: gate_weight and coef must be (..., k, d) and (..., k, p), got {tuple(weight.shape)} and "
                f"{tuple(coef.shape)}"
            )
        outcomes = coef.ndim == weight.ndim + 1
        lead, k = weight.shape[:-2], weight.shape[-2]
        d, p = weight.shape[-1], coef.shape[-1]
        m = (coef.shape[-2],) if outcomes else ()
        expected = {
            "gate_bias": (k,), "gate_weight": (k, d), "intercept": (k, *m), "coef": (k, *m, p), "variance": (k, *m),
            "temperature": (), "gate_covariance": (k, d, d),
        }  # fmt: skip
        for name, x in given.items():
            if tuple(x.shape) != (*lead, *expected[name]):
                raise ShapeError(
                    f"{where}: {name} must have shape {(*lead, *expected[name])} to match gate_weight "
                    f"{tuple(weight.shape)} and coef {tuple(coef.shape)}, got {tuple(x.shape)}"
                )
            if (x.dtype, x.device) != (weight.dtype, weight.device):
                raise DomainError(f"{where}: {name} must have the dtype and device of gate_weight, got {x.dtype}")
        if self.gate.joint and self.gate_covariance is None:
            raise DomainError(f"{where}: a {type(self.gate).__name__} needs gate_covariance, of shape (..., k, d, d)")
        for name in ("variance", "temperature"):
            if name in given:
                validation.positive(where, name, given[name])
        fixed = getattr(self.gate, "temperature", 1.0)
        if tensors["temperature"] is None and fixed != 1.0:  # what the gate has is what its density has
            tensors["temperature"] = weight.new_full(lead, fixed)
        for name, value in tensors.items():
            object.__setattr__(self, name, value)

    @property
    def num_atoms(self) -> int:
        """Number of atoms k."""
        return self.gate_weight.shape[-2]

    @property
    def input_dim(self) -> int:
        """Number of inputs d."""
        return self.gate_weight.shape[-1]

    @property
    def num_outcomes(self) -> int:
        """Number of outcomes m (of logits, for classes)."""
        return self.coef.shape[-2] if self.by_outcome else 1

    @property
    def by_outcome(self) -> bool:
        """Experts' parameters have an axis of outcomes."""
        return self.coef.ndim == self.gate_weight.ndim + 1

    @property
    def batch_shape(self) -> torch.Size:
        """The replicates, ``()`` or ``(R,)``."""
        return self.gate_weight.shape[:-2]

    @property
    def centres(self) -> Tensor:
        """The gate's centres, of gates that have such: `gate_weight` under its other name."""
        return self.gate_weight

    def permuted(self, order: Tensor | list[int]) -> MixingMeasure:
        """The same measure with its atoms in another order.

        Args:
            order: Indices of the atoms, ``... x k`` with the batch shape, or ``k``.

        Returns:
            The measure.

        Raises:
            DomainError: `order` is no permutation.
        """
        order = torch.as_tensor(order)
        if order.is_floating_point() or not order.sort(-1).values.eq(torch.arange(self.num_atoms)).all():
            raise DomainError(
                f"moe.MixingMeasure.permuted: order must be the indices 0 to {self.num_atoms - 1}, got {order.tolist()}"
            )
        order = order.expand(*self.batch_shape, self.num_atoms)
        moved: dict[str, Any] = {}
        for name in _RANKS:
            value: Tensor | None = getattr(self, name)
            if value is not None and name != "temperature":
                index = order.reshape(*order.shape, *(1,) * (value.ndim - order.ndim)).expand_as(value)
                moved[name] = value.gather(len(self.batch_shape), index)
        return replace(self, **moved)

    def __getitem__(self, index: Any) -> MixingMeasure:
        """Replicates by index, such as ``G[0]``."""
        if not self.batch_shape:
            raise ShapeError("moe.MixingMeasure: has one replicate only, so it cannot be indexed")
        chosen: dict[str, Any] = {name: None if (x := getattr(self, name)) is None else x[index] for name in _RANKS}
        return replace(self, **chosen)

    def __repr__(self) -> str:
        lead = f"{tuple(self.batch_shape)} x " if self.batch_shape else ""
        return f"MixingMeasure({lead}{self.num_atoms} atoms, {self.input_dim} inputs, {type(self.gate).__name__})"


def _tensor(where: str, name: str, x: Any) -> Tensor | None:
    if x is None:
        return None
    if not torch.is_tensor(x):
        try:
            x = torch.as_tensor(x, dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise DomainError(f"{where}: {name} must be numbers in a rectangular shape, got {x!r} ({error})") from None
    return validation.tensor(where, name, x)
