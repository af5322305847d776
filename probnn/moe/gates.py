"""Gates: how the probabilities of the experts depend on the inputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import validation
from ..equality import ByValue
from ..errors import DomainError, UnsupportedError


@dataclass(frozen=True)
class GateTerms:
    """Scores of a gate with their derivatives in an expert's own coordinates.

    Args:
        scores: ``B x K x n``.
        jacobian: ``B|1 x K|1 x w x n``, of the w coordinates of the expert's own.
        curvature: Maps weights a of ``B x K x n`` to the sum over rows of a times the second derivatives,
            ``B x K x w x w``; None: scores are linear.
    """

    scores: Tensor
    jacobian: Tensor
    curvature: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Gate(ByValue, ABC):
    r"""Probabilities of K experts, :math:`\pi_i(x) = \operatorname{softmax}_i s_i(x)` with a score each.

    The coordinates of an expert's score are a row of :meth:`width` numbers; all are unconstrained. Inputs are here
    ``... x d x n``, rows last.

    Attributes:
        joint: The gate is a density of the inputs too, and likelihoods are those of (x, y).
        affine: An affine map of the inputs can be made up for by the coordinates.
    """

    joint: ClassVar[bool] = False
    affine: ClassVar[bool] = False
    smooth: ClassVar[bool] = True

    def width(self, d: int) -> int:
        """Number of coordinates of an expert: the weights, then the bias."""
        return d + 1

    def tail(self, d: int, num_experts: int) -> int:
        """Number of coordinates that all experts share and that have no closed-form derivative."""
        return 0

    def held(self, d: int) -> tuple[int, ...]:
        """Coordinates of the last expert that stay at zero, because only differences of scores matter."""
        return (d,)

    def tied(self, d: int) -> tuple[int, ...]:
        """Coordinates that are the same for all experts."""
        return ()

    def frozen(self, d: int) -> tuple[int, ...]:
        """Coordinates that the data say nothing about, and that stay as they are."""
        return ()

    @abstractmethod
    def scores(self, gamma: Tensor, X: Tensor, tail: Tensor) -> Tensor:
        """Scores ``... x K x n`` for coordinates ``... x K x w``, inputs ``... x d x n`` and the shared ``... x t``."""

    def log_probs(self, gamma: Tensor, X: Tensor, tail: Tensor) -> Tensor:
        """Log-probabilities of the experts, ``... x K x n``; for a `joint` gate those of (expert, x)."""
        return self.scores(gamma, X, tail).log_softmax(-2)

    def terms(self, gamma: Tensor, X: Tensor) -> GateTerms:
        """Scores and derivatives, for coordinates ``B x K x w`` and inputs ``B|1 x d x n``."""
        raise UnsupportedError(
            f"moe.{type(self).__name__}: no closed-form derivatives; fit with method='em' or 'lbfgs'"
        )

    def redundant(self, d: int, num_experts: int) -> int:
        """How many of the coordinates that are not held are not identified; criteria do not count them."""
        return 0

    def steeper(self, gamma: Tensor) -> Tensor | None:
        """The gate with scores twice as steep; None where no multiple of the scores is a gate of the family."""
        return None

    def untempered(self, gamma: Tensor) -> Tensor:
        """The same probabilities at a temperature of one, where there is one that data do not identify."""
        return gamma

    def canonical(self, gamma: Tensor) -> Tensor:
        """Coordinates of the same probabilities with those of :meth:`held` at zero."""
        gamma, index = gamma.clone(), list(self.held(gamma.shape[-1] - 1))
        gamma[..., index] -= gamma[..., -1:, index].clone()
        return gamma


def with_ones(X: Tensor) -> Tensor:
    """Inputs ``... x d x n`` with a last row of ones."""
    return torch.cat([X, X.new_ones(*X.shape[:-2], 1, X.shape[-1])], -2)


@dataclass(frozen=True)
class SoftmaxGate(Gate):
    r"""Linear scores, :math:`s_i(x) = (w_i^\top x + b_i)/\tau` with a fixed temperature.

    Probabilities depend on differences of scores alone, so weights and bias of the last expert are zero in
    canonical form (Jordan & Jacobs 1994; Nguyen, Nguyen & Ho 2023, arXiv 2305.03288).

    Args:
        temperature: The temperature :math:`\tau`.

    Raises:
        DomainError: The temperature is not positive.

    Example:
        >>> import torch
        >>> gamma = torch.tensor([[1.0, 0.0], [0.0, 0.0]])  # two experts: weight, bias
        >>> SoftmaxGate().log_probs(gamma, torch.zeros(1, 3), gamma[:0, 0]).exp()[:, 0]
        tensor([0.5000, 0.5000])
    """

    affine: ClassVar[bool] = True

    temperature: float = 1.0

    def __post_init__(self) -> None:
        validation.positive(f"moe.{type(self).__name__}", "temperature", self.temperature)

    def held(self, d: int) -> tuple[int, ...]:
        """Weights and bias: a common translation of them changes nothing."""
        return tuple(range(d + 1))

    def steeper(self, gamma: Tensor) -> Tensor | None:
        """Twice the weights and biases."""
        return 2 * gamma

    def scores(self, gamma: Tensor, X: Tensor, tail: Tensor) -> Tensor:
        """The linear scores over the temperature."""
        scores = gamma[..., :-1] @ X + gamma[..., -1:]
        return scores if self.temperature == 1 else scores / self.temperature

    def terms(self, gamma: Tensor, X: Tensor) -> GateTerms:
        """The Jacobian is the inputs and ones; there is no curvature."""
        return GateTerms(self.scores(gamma, X, gamma[:0, 0]), with_ones(X).unsqueeze(-3) / self.temperature)


@dataclass(frozen=True)
class TopKGate(SoftmaxGate):
    r"""A softmax over the K experts of the largest scores; the others have probability zero.

    The likelihood is discontinuous in the weights where two experts change ranks (Nguyen, Akbarian, Yan & Ho 2023,
    arXiv 2309.13850).

    Args:
        temperature: The temperature.
        active: The number of experts with positive probability (keyword).
        rank_by: ``"logit"`` ranks :math:`w_i^\top x + b_i`, as deep learning does; ``"score"`` ranks
            :math:`w_i^\top x` without the bias, as the theory does.

    Raises:
        DomainError: `active` is no positive integer or there is no such ranking.

    Example:
        >>> import torch
        >>> gamma = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
        >>> TopKGate(active=1).log_probs(gamma, torch.ones(1, 1), gamma[:0, 0]).exp().flatten()
        tensor([1., 0., 0.])
    """

    smooth: ClassVar[bool] = False

    active: int = 1
    rank_by: str = "logit"

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.positive_int("moe.TopKGate", "active", self.active)
        validation.choice("moe.TopKGate", "rank_by", self.rank_by, ("logit", "score"))

    def redundant(self, d: int, num_experts: int) -> int:
        """With one active expert: the scale of the scores, and biases that ranks do not see."""
        if self.active > 1 or num_experts == 1:
            return 0
        return 1 if self.rank_by == "logit" else num_experts

    def steeper(self, gamma: Tensor) -> Tensor | None:
        """Twice the weights and biases; one active expert is a step function as it is."""
        return 2 * gamma if self.active > 1 else None

    def mask(self, gamma: Tensor, X: Tensor) -> Tensor:
        """True for the experts that are active, ``... x K x n``; a tie goes to the lower index."""
        if self.active > gamma.shape[-2]:
            raise DomainError(f"moe.TopKGate: active must be at most {gamma.shape[-2]} experts, got {self.active}")
        ranked = gamma[..., :-1] @ X
        if self.rank_by == "logit":
            ranked = ranked + gamma[..., -1:]
        chosen = ranked.sort(dim=-2, descending=True, stable=True).indices[..., : self.active, :]
        return torch.zeros_like(ranked, dtype=torch.bool).scatter(-2, chosen, True)

    def log_probs(self, gamma: Tensor, X: Tensor, tail: Tensor) -> Tensor:
        """Log-probabilities, minus infinity for inactive experts."""
        if self.active == gamma.shape[-2]:
            return super().log_probs(gamma, X, tail)
        scores = self.scores(gamma, X, tail)
        return scores.masked_fill(~self.mask(gamma, X), -math.inf).log_softmax(-2)


def is_sparse(gate: Gate, num_experts: int) -> bool:
    """Whether some experts have probability zero, so that the likelihood jumps where ranks change."""
    return isinstance(gate, TopKGate) and gate.active < num_experts


@dataclass(frozen=True)
class LaplaceGate(Gate):
    r"""Scores by distance, :math:`s_i(x) = -\|x - c_i\| + b_i` (Han et al. 2024, arXiv 2402.03226).

    Example:
        >>> import torch
        >>> gamma = torch.tensor([[0.0, 0.0], [2.0, 0.0]])  # centres 0 and 2
        >>> LaplaceGate().log_probs(gamma, torch.ones(1, 1), gamma[:0, 0]).exp().flatten()
        tensor([0.5000, 0.5000])
    """

    def scores(self, gamma: Tensor, X: Tensor, tail: Tensor) -> Tensor:
        """Minus the distances plus the biases."""
        return gamma[..., -1:] - self._offsets(gamma, X)[1]

    def _offsets(self, gamma: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
        offset = X.unsqueeze(-3) - gamma[..., :-1].unsqueeze(-1)
        # At a centre the distance has no derivative; this one is zero there, and so is its curvature.
        distance = offset.square().sum(-2)
        zero = distance == 0
        return offset, torch.where(zero, 0.0, torch.where(zero, 1.0, distance).sqrt())

    def terms(self, gamma: Tensor, X: Tensor) -> GateTerms:
        """The gradient is the unit vector towards the input; curvature is that of a norm."""
        offset, distance = self._offsets(gamma, X)
        inverse = torch.where(distance > 0, 1 / distance.clamp_min(torch.finfo(X.dtype).tiny), 0.0)
        unit = offset * inverse.unsqueeze(-2)
        scores = gamma[..., -1:] - distance

        def curvature(a: Tensor) -> Tensor:
            d, w = X.shape[-2], gamma.shape[-1]
            out = gamma.new_zeros(*scores.shape[:-1], w, w)
            b = a * inverse
            out[..., :d, :d] = (b.unsqueeze(-2) * unit) @ unit.mT - torch.eye(d).to(b) * b.sum(-1)[..., None, None]
            return out

        return GateTerms(scores, torch.cat([unit, torch.ones_like(scores).unsqueeze(-2)], -2), curvature)


@dataclass(frozen=True)
class SigmoidGate(Gate):
    r"""Logistic scores, :math:`\pi_i(x) \propto 1/(1 + e^{-(w_i^\top x + b_i)})`, normalised over the experts.

    The gate of Nguyen, Ho & Rinaldo (2024, arXiv 2405.13997), whose regression function is a sum with these weights;
    a density needs them to sum to one. There is no translation to fix.

    Example:
        >>> SigmoidGate().held(3)
        ()
    """

    affine: ClassVar[bool] = True

    def held(self, d: int) -> tuple[int, ...]:
        """None: every coordinate is identified."""
        return ()

    def steeper(self, gamma: Tensor) -> Tensor | None:
        """Twice the weights and biases."""
        return 2 * gamma

    def scores(self, gamma: Tensor, X: Tensor, tail: Tensor) -> Tensor:
        """Logarithms of logistic functions."""
        return torch.nn.functional.logsigmoid(gamma[..., :-1] @ X + gamma[..., -1:])

    def terms(self, gamma: Tensor, X: Tensor) -> GateTerms:
        """Closed form, with the derivatives of the softplus."""
        v = gamma[..., :-1] @ X + gamma[..., -1:]
        p, rows = v.sigmoid(), with_ones(X).unsqueeze(-3)

        def curvature(a: Tensor) -> Tensor:
            return -((a * p * (1 - p)).unsqueeze(-2) * rows) @ rows.mT

        return GateTerms(torch.nn.functional.logsigmoid(v), (1 - p).unsqueeze(-2) * rows, curvature)
