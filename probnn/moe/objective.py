"""The log-likelihood of mixtures of experts with its closed-form derivatives, many data sets in one batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .data import Data, Rows
from .outcomes import OutcomeTerms
from .penalty import Penalty

if TYPE_CHECKING:
    from .model import GaussianMoE


@dataclass(frozen=True, eq=False)
class Objective:
    r"""What is maximised: the weighted log-likelihood, and the penalty.

    With responsibilities r, gate probabilities :math:`\pi` and the scores :math:`u_i` of expert i's log gate score
    and log density in its own coordinates, a row's log-likelihood has the gradient
    :math:`\sum_i r_i u_i - \sum_i \pi_i s'_i` and, by Louis' identity (Louis 1982), the Hessian

    .. math:: \sum_i r_i (u_i u_i^\top + u'_i) - \Big(\sum_i r_i u_i\Big)\Big(\sum_i r_i u_i\Big)^\top
              - \Big[\sum_i \pi_i (s'_i s_i'^\top + s''_i) - \Big(\sum_i \pi_i s'_i\Big)
              \Big(\sum_i \pi_i s'_i\Big)^\top\Big].

    Coordinates are a batch ``B x P``; entry b belongs to data set b, or all to the one there is.

    Args:
        model: The family.
        data: The data sets.
        penalty: What is added to the log-likelihood.

    Attributes:
        index: The free coordinate of each coordinate of theta, -1 where held.
    """

    model: GaussianMoE
    data: Data
    penalty: Penalty = field(default_factory=Penalty)
    index: Tensor = field(init=False)
    _spread: Tensor = field(init=False)  # P x F: one where a coordinate equals a free one

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", self.model.free_index())
        kept = self.index >= 0
        spread = torch.zeros(len(self.index), int(self.index.max()) + 1, dtype=torch.float64)
        spread[kept, self.index[kept]] = 1.0
        object.__setattr__(self, "_spread", spread)

    @staticmethod
    def of(model: GaussianMoE, X: Tensor, Y: Tensor, weights: Tensor | None = None) -> Objective:
        """The objective of data with rows before columns, ``n x d`` or ``R x n x d``."""
        X, Y = (x if x.ndim == 3 else x.unsqueeze(0) for x in (X, Y))
        if weights is not None and weights.ndim == 1:
            weights = weights.unsqueeze(0)
        return Objective(model, Data(X.mT.contiguous(), Y.mT.contiguous(), weights))

    def take(self, which: Tensor | None) -> Objective:
        """The objective over the data sets of some batch entries."""
        return self if which is None else Objective(self.model, self.data.take(which), self.penalty)

    def free(self, theta: Tensor) -> Tensor:
        """Free coordinates ``B x F`` of theta ``B x P``."""
        out = theta.new_zeros(*theta.shape[:-1], self._spread.shape[1])
        kept = self.index >= 0
        out[..., self.index[kept]] = theta[..., kept]
        return out

    def full(self, free: Tensor, like: Tensor) -> Tensor:
        """theta ``B x P`` with these free coordinates; held ones are those of `like`."""
        kept, out = self.index >= 0, like.clone()
        out[..., kept] = free[..., self.index[kept]]
        return out

    def bytes_a_row(self, batch: int) -> int:
        """Memory that a row takes in the derivatives of a batch."""
        return 8 * batch * self.model.num_experts * (self.model.width + 4) * 2

    def log_likelihood(self, theta: Tensor) -> Tensor:
        """Weighted log-likelihood, ``B``; minus infinity where it is not a number."""
        from .model import joint_log_prob

        total = theta.new_zeros(len(theta))
        for rows in self.data.pieces(self.bytes_a_row(len(theta)) // 4):
            total = total + rows.weighted_sum(joint_log_prob(self.model, theta, rows.X, rows.Y).logsumexp(-2))
        return torch.where(total.isnan(), -torch.inf, total)

    def value(self, theta: Tensor) -> Tensor:
        """Log-likelihood and penalty, ``B``."""
        return self.log_likelihood(theta) + self.penalty.value(self.model, theta)

    def derivatives(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value ``B``, gradient ``B x F`` and Hessian ``B x F x F`` in the free coordinates.

        Raises:
            UnsupportedError: Gate or experts have no closed-form derivatives.
        """
        B, P = theta.shape
        value = theta.new_zeros(B)
        gradient, hessian = theta.new_zeros(B, P), theta.new_zeros(B, P, P)
        for rows in self.data.pieces(self.bytes_a_row(B)):
            part = _Derivatives(self.model, theta, rows)
            value += rows.weighted_sum(part.log_prob)
            gradient += part.gradient().flatten(1)
            hessian += part.hessian()
        extra, slope, bend = self.penalty.derivatives(self.model, theta)
        spread = self._spread.to(theta)
        hessian.diagonal(dim1=-2, dim2=-1).add_(bend)
        return value + extra, (gradient + slope) @ spread, spread.T @ hessian @ spread

    def gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Value ``B`` and gradient ``B x F`` through autograd, which serves every gate and expert."""
        from .model import joint_log_prob

        value, gradient = theta.new_zeros(len(theta)), torch.zeros_like(theta)
        for rows in self.data.pieces(self.bytes_a_row(len(theta))):
            with torch.enable_grad():
                leaf = theta.detach().requires_grad_(True)
                part = rows.weighted_sum(joint_log_prob(self.model, leaf, rows.X, rows.Y).logsumexp(-2))
                gradient += torch.autograd.grad(part.sum(), leaf)[0]
            value += part.detach()
        extra, slope, _ = self.penalty.derivatives(self.model, theta)
        return value + extra, (gradient + slope) @ self._spread.to(theta)

    def outer_products(self, theta: Tensor) -> Tensor:
        """Sum over rows of the outer products of their scores, ``B x F x F``."""
        out = theta.new_zeros(len(theta), self._spread.shape[1], self._spread.shape[1])
        spread = self._spread.to(theta)
        for rows in self.data.pieces(self.bytes_a_row(len(theta))):
            scores = spread.T @ _Derivatives(self.model, theta, rows).row_scores().flatten(1, 2)
            weighted = scores if rows.weights is None else scores * rows.weights.unsqueeze(-2)
            out += weighted @ scores.mT
        return out

    def complete_information(self, theta: Tensor) -> Tensor:
        r"""Information if the expert of every row were known, ``B x F x F``.

        The expectation :math:`\sum r_i u_i u_i^\top` given the data of the outer products of complete rows' scores, u
        those of an expert's own coordinates, and minus the curvature of the penalty.
        """
        spread, K, q = self._spread.to(theta), self.model.num_experts, self.model.width
        own = theta.new_zeros(len(theta), K, q, q)
        for rows in self.data.pieces(self.bytes_a_row(len(theta))):
            part = _Derivatives(self.model, theta, rows)
            weighted = part.r if rows.weights is None else part.r * rows.weights.unsqueeze(-2)
            own += (weighted.unsqueeze(-2) * part.u) @ part.u.mT
        total = -self.penalty.derivatives(self.model, theta)[2].diag_embed()
        for i in range(K):
            total[:, i * q : (i + 1) * q, i * q : (i + 1) * q] += own[:, i]
        return spread.T @ total @ spread

    def shares(self, theta: Tensor) -> Tensor:
        """Shares of the observations that belong to each expert, ``B x K``: weighted means of the responsibilities."""
        from .model import joint_log_prob

        total = theta.new_zeros(len(theta), self.model.num_experts)
        for rows in self.data.pieces(self.bytes_a_row(len(theta))):
            total += rows.weighted_sum(joint_log_prob(self.model, theta, rows.X, rows.Y).softmax(-2))
        return total / self.data.total_weight.unsqueeze(-1)

    def row_scores(self, theta: Tensor) -> Tensor:
        """Scores of the rows in the free coordinates, ``B x n x F``, unweighted."""
        parts = [
            (self._spread.to(theta).T @ _Derivatives(self.model, theta, rows).row_scores().flatten(1, 2)).mT
            for rows in self.data.pieces(self.bytes_a_row(len(theta)))
        ]
        return torch.cat(parts, 1)


class _Derivatives:
    """Derivatives at some rows, in the coordinates of theta: every expert's own (q of them) in a row."""

    def __init__(self, model: GaussianMoE, theta: Tensor, rows: Rows):
        gamma, beta, scales, _ = model.split(theta)
        self.rows, (w, a, p, b) = rows, model.sizes
        self.gate = model.gate.terms(gamma, rows.X)
        self.phi = model.expert.design(rows.X)  # B|1 p n
        flat = beta.flatten(1, 2) @ self.phi
        means = flat.reshape(*beta.shape[:3], flat.shape[-1])
        self.law: OutcomeTerms = model.outcome.terms(means, scales, rows.Y)
        log_pi = self.gate.scores.log_softmax(-2)
        joint = log_pi + self.law.log_prob
        self.log_prob = joint.logsumexp(-2)
        self.r, self.pi = (joint - self.log_prob.unsqueeze(-2)).exp(), log_pi.exp()
        # Where each channel's coordinates lie: p of a mean, one of a log variance.
        self.at = [slice(w + c * p, w + (c + 1) * p) for c in range(a)]
        self.at += [slice(w + a * p + c, w + a * p + c + 1) for c in range(b)]
        self.num_means, self.w = a, w
        # u, the scores of an expert's own coordinates given that the row is its own
        u = theta.new_empty(len(theta), model.num_experts, model.width, rows.X.shape[-1])
        u[:, :, :w] = self.gate.jacobian
        phi = self.phi.unsqueeze(-3)
        for c, place in enumerate(self.at):
            slope = self.law.first[c].unsqueeze(-2)
            u[:, :, place] = slope * phi if c < a else slope
        self.u = u

    def _weighted(self, x: Tensor) -> Tensor:
        """``B x ... x n`` times the weights of the rows."""
        weights = self.rows.weights
        return x if weights is None else x * weights.reshape(len(weights), *(1,) * (x.ndim - 2), -1)

    def row_scores(self) -> Tensor:
        """``B x K x q x n``."""
        out = self.r.unsqueeze(-2) * self.u
        out[:, :, : self.w] -= self.pi.unsqueeze(-2) * self.gate.jacobian
        return out

    def gradient(self) -> Tensor:
        """``B x K x q``."""
        return self.rows.weighted_sum(self.row_scores())

    def hessian(self) -> Tensor:
        """``B x K q x K q``."""
        B, K, q, n = self.u.shape
        w = self.w
        ru = self.r.unsqueeze(-2) * self.u
        wru = self._weighted(ru)
        out = -(wru.flatten(1, 2) @ ru.flatten(1, 2).mT)
        blocks = out.view(B, K, q, K, q)
        pj = (self.pi.unsqueeze(-2) * self.gate.jacobian).expand(B, K, w, n)
        wpj = self._weighted(pj)
        blocks[:, :, :w, :, :w] += (wpj.flatten(1, 2) @ pj.flatten(1, 2).mT).view(B, K, w, K, w)
        own = wru @ self.u.mT  # B K q q
        own[..., :w, :w] -= wpj @ self.gate.jacobian.mT
        if self.gate.curvature is not None:
            own[..., :w, :w] += self.gate.curvature(self._weighted(self.r - self.pi))
        wr, a = self._weighted(self.r), self.num_means
        phi = self.phi.unsqueeze(-3)
        for (i, j), bend in self.law.second.items():
            weight = (wr * bend).unsqueeze(-2)
            if j < a:
                block = (weight * phi) @ phi.mT
            elif i < a:
                block = (phi @ weight.mT).expand(B, K, -1, 1)
            else:
                block = weight.sum(-1, keepdim=True)
            own[..., self.at[i], self.at[j]] += block
            if i != j:
                own[..., self.at[j], self.at[i]] += block.mT
        diagonal = torch.arange(K)
        blocks[:, diagonal, :, diagonal, :] += own.movedim(1, 0)
        return out
