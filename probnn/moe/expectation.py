"""The E-step: whose every row is, given the parameters so far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ._solve import combine
from .data import Rows
from .objective import Objective
from .outcomes import StudentTOutcome


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows with what the M-steps need to know of them.

    Args:
        rows: The rows.
        phi: Features of the experts, ``B|1 x p x n``.
        means: Means of the experts, ``B x K x a x n``.
        log_pi: Log-probabilities of the gate, ``B x K x n``.
        mask: Experts that a sparse gate has active, ``B x K x n``; None: all.
        share: Responsibilities times the rows' weights, ``B x K x n``.
        precision: `share` times the expected latent precisions of Student-t outcomes, ``B x K x m x n``; of others
            `share` itself, ``B x K x 1 x n``.
        log_prob: Log density of the rows, ``B x n``.
    """

    rows: Rows
    phi: Tensor
    means: Tensor
    log_pi: Tensor
    mask: Tensor | None
    share: Tensor
    precision: Tensor
    log_prob: Tensor


class Expectation:
    """All rows in parts; computed once where they are one part, in every pass otherwise."""

    def __init__(self, objective: Objective, theta: Tensor):
        self.objective, self.theta = objective, theta
        self._whole: Part | None = None

    def __iter__(self) -> Iterator[Part]:
        if self._whole is not None:
            yield self._whole
            return
        data = self.objective.data
        for rows in data.pieces(self.objective.bytes_a_row(len(self.theta))):
            part = self._part(rows)
            if rows.X.shape[-1] == data.num_rows:
                self._whole = part
            yield part

    def _part(self, rows: Rows) -> Part:
        model = self.objective.model
        gamma, beta, scales, tail = model.split(self.theta)
        log_pi = model.gate.log_probs(gamma, rows.X, tail)
        mask = None if model.gate.smooth else ~log_pi.isneginf()
        phi = model.expert.design(rows.X)
        means = combine(beta, phi)
        joint = log_pi + model.outcome.log_prob(means, scales, rows.Y)
        log_prob = joint.logsumexp(-2)
        share = (joint - log_prob.unsqueeze(-2)).exp()
        if rows.weights is not None:
            share = share * rows.weights.unsqueeze(-2)
        precision = share.unsqueeze(-2)
        if isinstance(model.outcome, StudentTOutcome):
            precision = precision * model.outcome.weights(means, scales, rows.Y)
        return Part(rows, phi, means, log_pi, mask, share, precision, log_prob)


class Update:
    """One block of an M-step: a pass that collects, a solution, then passes that judge it until it is done.

    Attributes:
        done: There is nothing left to judge.
        degenerate: Entries that met a floor, or have an expert without rows; ``B``.
    """

    done: bool = False
    degenerate: Tensor

    def collect(self, part: Part) -> None:
        """Add the statistics of some rows."""

    def solve(self) -> None:
        """Propose new parameters from the statistics."""

    def judge(self, part: Part) -> None:
        """Add what some rows say about the proposal."""

    def settle(self) -> None:
        """Accept or change the proposal after a pass."""
        self.done = True


class Halving:
    """Steps of entries that are accepted where they do not lose, halved otherwise, and dropped in the end.

    Args:
        shape: Of the entries.
        like: For dtype and device.
    """

    TRIES = 10

    def __init__(self, shape: tuple[int, ...], like: Tensor):
        self.length = like.new_ones(shape)
        self.gain = like.new_zeros(shape)
        self.size = like.new_zeros(shape)
        self._left = torch.ones(shape, dtype=torch.bool, device=like.device)
        self._tries = 0

    def add(self, gain: Tensor, size: Tensor) -> None:
        """Add gains of some rows, and the sums of absolute terms they are differences of."""
        self.gain += gain
        self.size += size

    def settle(self) -> bool:
        """Accept or halve; True where no entry is left."""
        # The slack is the rounding of the sums: at the top no step is seen to gain.
        good = self.gain >= -4 * torch.finfo(self.gain.dtype).eps * self.size
        self._left &= ~good
        self._tries += 1
        self.length = torch.where(self._left, 0.5 * self.length, self.length)
        if self._tries > self.TRIES:
            self.length = torch.where(self._left, 0.0, self.length)
            return True
        self.gain.zero_()
        self.size.zero_()
        return not bool(self._left.any())
