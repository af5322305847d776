"""Expectation-maximisation, many fits in one batch, over data that need not fit into memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import validation
from ..errors import UnsupportedError
from .em_experts import LeastSquares, Logistic
from .em_gate import GateNewton, bound_factors, gate_update
from .expectation import Expectation, Halving
from .iteration import Callback, iterate
from .objective import Objective
from .outcomes import MultinomialLogit
from .scaling import Scaling
from .state import State

GATES = ("newton", "mm")


class Step(NamedTuple):
    """One iteration: where it leads ``B x P``, the value where it began ``B``, and whether it met a floor ``B``."""

    theta: Tensor
    value: Tensor
    degenerate: Tensor


@dataclass(frozen=True, eq=False)
class EM:
    r"""One iteration of EM as a map of a batch.

    The E-step finds the responsibilities. The M-step solves the experts' weighted least squares with variances from
    the residuals (Student-t: with latent precisions; classes: one safeguarded Newton step) and raises the gate's Q
    (one safeguarded Newton step; Gaussian gates and biases alone: closed form). Neither lowers the value (Dempster,
    Laird & Rubin 1977; Jordan & Jacobs 1994). The gate's step of a :class:`TopKGate` holds the ranks, and is
    taken as far as the observed likelihood with new ranks does not fall.

    Args:
        objective: What is maximised; entry b of a batch belongs to data set b, or all to the one there is.
        scaling: Of its data.
        factors: Of Boehning's bound; None: Newton steps of the gate.
    """

    objective: Objective
    scaling: Scaling
    factors: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def of(objective: Objective, gate: str = "newton") -> EM:
        """The map, with what is the same in every iteration.

        Raises:
            UnsupportedError: Gate or experts are networks, or the gate has no such step.
        """
        validation.choice("moe.run_em", "gate", gate, GATES)
        model = objective.model
        for part, network in (
            (model.gate, model.gate.tail(model.input_dim, model.num_experts) > 0),
            (model.expert, not model.expert.linear),
        ):
            if network:
                raise UnsupportedError(
                    f"moe.run_em: {type(part).__name__} has no M-step in closed form; fit with method='lbfgs'"
                )
        scaling = Scaling.of(objective)
        return EM(objective, scaling, bound_factors(objective, scaling) if gate == "mm" else None)

    def take(self, which: Tensor) -> EM:
        """The map of some batch entries."""
        factors = self.factors
        if factors is not None and len(factors[0]) > 1:
            factors = (factors[0][which], factors[1][which])
        return EM(self.objective.take(which), self.scaling.take(which), factors)

    def step(self, theta: Tensor) -> Step:
        """One iteration from ``B x P``."""
        model = self.objective.model
        expectation = Expectation(self.objective, theta)
        law: type[LeastSquares | Logistic] = Logistic if isinstance(model.outcome, MultinomialLogit) else LeastSquares
        experts = law(self.objective, theta, self.scaling)
        gate = gate_update(self.objective, theta, self.scaling, self.factors)
        blocks = (experts, gate)
        value = self.objective.penalty.value(model, theta)
        for part in expectation:
            value = value + part.rows.weighted_sum(part.log_prob)
            for block in blocks:
                block.collect(part)
        for block in blocks:
            block.solve()
        pending = [block for block in blocks if not block.done]
        while pending:
            for part in expectation:
                for block in pending:
                    block.judge(part)
            for block in pending:
                block.settle()
            pending = [block for block in pending if not block.done]
        value = torch.where(value.isnan(), -torch.inf, value)
        gamma, tail = gate.gamma, model.split(theta)[3]
        if isinstance(gate, GateNewton) and not model.gate.smooth:
            gamma = self._ranked(gate, experts.beta, experts.scales, tail)
        new = model.join(gamma, experts.beta, experts.scales, tail)
        return Step(new, value, experts.degenerate | gate.degenerate)

    def _ranked(self, gate: GateNewton, beta: Tensor, scales: Tensor, tail: Tensor) -> Tensor:
        """The gate along its direction, as far as the likelihood with new ranks is not below that at its start."""
        halving = Halving((len(beta),), beta)
        join, done = self.objective.model.join, False
        value = self.objective.value(join(gate.at(torch.zeros_like(halving.length)), beta, scales, tail))
        while not done:
            theta = join(gate.at(halving.length), beta, scales, tail)
            halving.add(self.objective.value(theta) - value, value.abs())
            done = halving.settle()
        return gate.at(halving.length)


def em_step(objective: Objective, theta: Tensor, *, gate: str = "newton") -> tuple[Tensor, Tensor]:
    """One iteration of EM.

    Args:
        objective: What is maximised; batch entry b belongs to its data set b, or all to the one there is.
        theta: Coordinates, ``B x P``.
        gate: ``"newton"``, or ``"mm"``: a step on Boehning's bound.

    Returns:
        New coordinates ``B x P``, and the value at the old ones, ``B``.

    Raises:
        UnsupportedError: Gate or experts are networks.

    Example:
        >>> import torch
        >>> from probnn import moe
        >>> from probnn.moe.objective import Objective
        >>> X = torch.linspace(-1, 1, 50).double().unsqueeze(-1)
        >>> objective = Objective.of(moe.GaussianMoE(num_experts=1, input_dim=1), X, 2 * X + 1 + 0.1 * (9 * X).sin())
        >>> theta, value = em_step(objective, torch.zeros(1, 5).double())
        >>> bool(objective.value(theta) > value)
        True
    """
    step = EM.of(objective, gate).step(theta)
    return step.theta, step.value


def run_em(
    objective: Objective,
    theta: Tensor,
    *,
    max_iter: int = 2000,
    tol: float = 1e-6,
    criterion: str = "decrement",
    gate: str = "newton",
    callback: Callback | None = None,
) -> State:
    r"""Maximise by EM.

    Stopping rules: ``"decrement"``, the Newton decrement :math:`g^\top |H|^{-1} g` of the observed likelihood, twice
    the gain that a Newton step promises in nats, is below `tol` (looked at every tenth iteration); ``"aitken"``, the
    gain that is left is, if gains go on to shrink as they do (Boehning et al. 1994), in two iterations in a row;
    ``"relative"``, the last gain is at most `tol` times the absolute value, which is what papers used, and which ends
    a slow climb far below its top. Entries leave the batch as they end.

    Args:
        objective: What is maximised; batch entry b belongs to its data set b, or all to the one there is.
        theta: Starts, ``B x P``.
        max_iter: Most iterations.
        tol: Bound of the stopping rule.
        criterion: The stopping rule.
        gate: ``"newton"``, or ``"mm"``: steps on Boehning's bound, for gates of many inputs.
        callback: Called as ``callback(done, total, state)`` after every iteration; True stops.

    Returns:
        The state of every entry.

    Raises:
        UnsupportedError: Gate or experts are networks; or there is no closed-form Hessian for the decrement.
    """
    return iterate(EM.of(objective, gate), theta, max_iter=max_iter, tol=tol, criterion=criterion, callback=callback)
