"""M-steps of the gates: what raises Q, the expected log-probability of the experts."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ._checks import VARIANCE_FLOOR
from ._solve import contract, products, solve, unpack
from .expectation import Halving, Part, Update
from .gates import Gate, GateTerms, SoftmaxGate
from .joint import GaussianGate
from .objective import Objective
from .scaling import Scaling


class Still(Update):
    """A gate without free coordinates."""

    def __init__(self, gamma: Tensor):
        self.gamma = gamma
        self.degenerate = torch.zeros(len(gamma), dtype=torch.bool)


class Masses(Still):
    """A softmax of biases alone: the shares of the rows, in closed form."""

    def __init__(self, gamma: Tensor, temperature: float):
        super().__init__(gamma)
        self._temperature, self._count = temperature, gamma.new_zeros(())

    def collect(self, part: Part) -> None:
        """Sums of the responsibilities."""
        self._count = self._count + part.share.sum(-1)

    def solve(self) -> None:
        """Logarithms of the shares, the last one zero; an expert that has no rows stays as it is."""
        known = (self._count > 0).all(-1, keepdim=True)
        log_mass = torch.where(known, self._count, 1.0).log() * self._temperature
        bias = torch.where(known, log_mass - log_mass[..., -1:], self.gamma[..., 0])
        self.gamma = torch.cat([bias.unsqueeze(-1), self.gamma[..., 1:]], -1)
        self.degenerate = ~known.squeeze(-1)


class GateNewton(Still):
    r"""One safeguarded Newton step on :math:`Q = \sum r_i \log\pi_i` and the penalty, in the free coordinates.

    The Hessian is :math:`-[\sum\pi_i s'_i s_i'^\top - (\sum\pi_i s'_i)(\sum\pi_i s'_i)^\top] + \sum(r_i - \pi_i)s''_i`,
    negative semi-definite for linear scores; its absolute eigenvalues serve others. One step an iteration is a
    generalised EM (Dempster, Laird & Rubin 1977). Of a gate that is not smooth, ranks are those of the start.
    """

    def __init__(self, objective: Objective, theta: Tensor, scaling: Scaling):
        model = objective.model
        gamma, _, _, self._tail = model.split(theta)
        super().__init__(gamma)
        self._gate, self._precision = model.gate, objective.penalty.gate_precision
        self._spread, self._num_inputs = gate_spread(objective).to(theta), model.input_dim
        self._scaling, self._map = scaling, standard_map(model.gate, scaling, gamma.shape[-1])
        self._local = torch.linalg.solve(self._map.unsqueeze(1), gamma.unsqueeze(-1)).squeeze(-1)
        self._halving = Halving(gamma.shape[:1], theta)
        self._slope, self._bend = theta.new_zeros(()), theta.new_zeros(())
        self._start = gamma
        # Steps of a sparse gate are judged on the likelihood, with new ranks, by whoever takes them.
        self.done = not model.gate.smooth

    def collect(self, part: Part) -> None:
        """Gradient and Hessian in standardised coordinates."""
        B, K, w = self._start.shape
        terms = self._terms(part)
        pi = part.log_pi.exp()
        weighted = part.rows.weights
        wpi = pi if weighted is None else pi * weighted.unsqueeze(-2)
        jacobian = terms.jacobian
        if jacobian.shape[1] == 1 and terms.curvature is None:
            features = jacobian.squeeze(1)
            self._slope = self._slope + contract(part.share - wpi, features)
            i, j = torch.triu_indices(K, K)
            pairs = -wpi[:, i] * pi[:, j]
            pairs[:, i == j] += wpi
            packed = unpack(contract(pairs, products(features)), w).flatten(-2)
            self._bend = self._bend + unpack(packed.mT, K).reshape(B, w, w, K, K).permute(0, 3, 1, 4, 2)
            return
        jacobian = jacobian.expand(B, K, w, -1)
        self._slope = self._slope + ((part.share - wpi).unsqueeze(-2) * jacobian).sum(-1)
        pj, wpj = pi.unsqueeze(-2) * jacobian, wpi.unsqueeze(-2) * jacobian
        bend = -(wpj.flatten(1, 2) @ pj.flatten(1, 2).mT).view(B, K, w, K, w)
        own = wpj @ jacobian.mT
        if terms.curvature is not None:
            own = own - terms.curvature(part.share - wpi)
        diagonal = torch.arange(K)
        bend[:, diagonal, :, diagonal] += own.movedim(1, 0)
        self._bend = self._bend + bend

    def _terms(self, part: Part) -> GateTerms:
        """Scores and derivatives in the coordinates of standardised inputs."""
        X = self._scaling.standard_inputs(part.rows.X) if self._gate.affine else part.rows.X
        return self._gate.terms(self._local, X)

    def _penalised(self) -> tuple[Tensor, Tensor]:
        """Gradient and curvature of minus the penalty in standardised coordinates, ``B x K x w``."""
        d = self._num_inputs
        unit = self._map.diagonal(dim1=-2, dim2=-1)[..., :d].unsqueeze(1)
        slope, bend = torch.zeros_like(self._start), torch.zeros_like(self._start)
        slope[..., :d] = -self._precision * unit * self._start[..., :d]
        bend[..., :d] = self._precision * unit.square()
        return slope, bend

    def solve(self) -> None:
        """The direction."""
        slope, bend = self._penalised()
        gradient = (self._slope + slope).flatten(1) @ self._spread
        curvature = self._bend.flatten(3).flatten(1, 2) + bend.flatten(1).diag_embed()
        step, _ = solve(self._spread.T @ curvature @ self._spread, gradient, ascent=True)
        self.move(step)

    def move(self, step: Tensor) -> None:
        """Take a step in the free standardised coordinates."""
        self._direction = (step @ self._spread.T).view_as(self._start) @ self._map.mT
        self.gamma = self._start + self._direction

    def at(self, length: Tensor) -> Tensor:
        """The coordinates a share ``B`` of the way along the direction."""
        return self._start + length[..., None, None] * self._direction

    def judge(self, part: Part) -> None:
        """Gains of Q."""
        new = self._gate.log_probs(self.gamma, part.rows.X, self._tail)
        gain = (part.share * (new - part.log_pi)).sum((-1, -2))
        self._halving.add(gain, (part.share * part.log_pi.abs()).sum((-1, -2)))

    def settle(self) -> None:
        """Halve the steps that lose."""
        if self._precision:
            weights = (x[..., : self._num_inputs] for x in (self._start, self.gamma))
            old, new = (0.5 * self._precision * x.square().sum((-1, -2)) for x in weights)
            self._halving.add(old - new, old)
        self.done = self._halving.settle()
        self.gamma = self.at(self._halving.length)


class GateBound(GateNewton):
    r"""One step on Boehning's quadratic bound of Q, :math:`-H \le \tfrac12 (I - 11^\top/K) \otimes X^\top X`.

    Linear softmax scores only. The bound does not depend on the parameters (Boehning 1992): it is factored once, and
    its steps need no search, at the price of being shorter than Newton's.

    Args:
        factors: Of :func:`bound_factors`.
    """

    def __init__(self, objective: Objective, theta: Tensor, scaling: Scaling, factors: tuple[Tensor, Tensor]):
        super().__init__(objective, theta, scaling)
        self._factors, self.done = factors, True

    def collect(self, part: Part) -> None:
        """The gradient."""
        jacobian = self._terms(part).jacobian.squeeze(1)
        pi = part.log_pi.exp()
        wpi = pi if part.rows.weights is None else pi * part.rows.weights.unsqueeze(-2)
        self._slope = self._slope + contract(part.share - wpi, jacobian)

    def solve(self) -> None:
        """The step: the common part and the contrasts of the free experts have one factor each."""
        gradient = (self._slope + self._penalised()[0])[:, :-1]
        common = gradient.mean(1, keepdim=True).expand_as(gradient)
        parts = zip((common, gradient - common), self._factors, strict=True)
        steps = [torch.cholesky_solve(x.mT, factor).mT for x, factor in parts]
        self.move((steps[0] + steps[1]).flatten(1))


def bound_factors(objective: Objective, scaling: Scaling) -> tuple[Tensor, Tensor]:
    r"""Cholesky factors ``R|1 x w x w`` of the bound's two blocks, :math:`\lambda X^\top X` and the penalty.

    The eigenvalues of :math:`\tfrac12 (I - 11^\top/K)` over K - 1 experts are 1/(2K), of their mean, and 1/2.
    """
    model = objective.model
    if type(model.gate) is not SoftmaxGate:
        raise UnsupportedError(
            f"moe.run_em: gate='mm' needs the linear scores of a SoftmaxGate, got {type(model.gate).__name__}; use "
            "gate='newton'"
        )
    w, d = model.sizes[0], model.input_dim
    change = standard_map(model.gate, scaling, w)
    gram = torch.zeros(())
    for rows in objective.data.pieces(objective.bytes_a_row(objective.data.num_replicates)):
        gamma = rows.X.new_zeros(1, model.num_experts, w)
        features = model.gate.terms(gamma, scaling.standard_inputs(rows.X)).jacobian.squeeze(1)
        weights = rows.X.new_ones(1, rows.X.shape[-1]) if rows.weights is None else rows.weights
        gram = gram + (features * weights.unsqueeze(-2)) @ features.mT
    penalty = gram.new_zeros(len(change), w)
    penalty[:, :d] = objective.penalty.gate_precision * change.diagonal(dim1=-2, dim2=-1)[:, :d].square()
    # Of columns that are combinations of others any solution will do: a jitter of rounding size picks one.
    jitter = 1e-12 * gram.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    eigenvalues = (0.5 / model.num_experts, 0.5)
    factors = [torch.linalg.cholesky(x * gram + (penalty + jitter).diag_embed()) for x in eigenvalues]
    return factors[0], factors[1]


class GaussianMoments(Still):
    r"""Masses, centres and covariances of a Gaussian gate, in closed form.

    Eigenvalues of the covariances of the standardised inputs are not below their floor: the maximum under that
    constraint. The gate's penalty pulls centres to zero, given the covariances so far (Meng & Rubin 1993).
    """

    def __init__(self, objective: Objective, theta: Tensor, scaling: Scaling, gate: GaussianGate):
        model = objective.model
        super().__init__(model.split(theta)[0])
        self._d, self._scaling = model.input_dim, scaling
        self._gate, self._precision = gate, objective.penalty.gate_precision
        self._count = self._sum = self._square = theta.new_zeros(())

    def collect(self, part: Part) -> None:
        """Masses and sums of the inputs."""
        self._count = self._count + part.share.sum(-1)
        self._sum = self._sum + contract(part.share, self._scaling.standard_inputs(part.rows.X))

    def solve(self) -> None:
        """New masses and centres."""
        d, gamma = self._d, self.gamma
        centre, spread = self._scaling.inputs[:, 0].unsqueeze(1), self._scaling.inputs[:, 1].unsqueeze(1)
        known = self._count > 0
        count = torch.where(known, self._count, 1.0)
        mean = self._sum / count.unsqueeze(-1)
        if self._precision:
            pull = self._precision * self._gate.covariance(gamma, d)
            system = count[..., None, None] * torch.eye(d).to(pull) + pull
            raw = torch.linalg.solve(system, count.unsqueeze(-1) * (centre + spread * mean))
            mean = (raw - centre) / spread
        self._mean = torch.where(known.unsqueeze(-1), mean, (gamma[..., :d] - centre) / spread)
        everyone = known.all(-1, keepdim=True)
        log_mass = count.log()
        self._log_mass = torch.where(everyone, log_mass - log_mass[..., -1:], gamma[..., d])
        self._known, self.degenerate = known, ~everyone.squeeze(-1)

    def judge(self, part: Part) -> None:
        """Scatter around the new centres."""
        offset = self._scaling.standard_inputs(part.rows.X).unsqueeze(1) - self._mean.unsqueeze(-1)
        self._square = self._square + (part.share.unsqueeze(-2) * offset) @ offset.mT

    def settle(self) -> None:
        """New covariances."""
        self.done = True
        d = self._d
        centre, spread = self._scaling.inputs[:, 0].unsqueeze(1), self._scaling.inputs[:, 1].unsqueeze(1)
        covariance = self._square / torch.where(self._known, self._count, 1.0)[..., None, None]
        fine = self._known & covariance.isfinite().flatten(2).all(-1)
        covariance = torch.where(fine[..., None, None], covariance, torch.eye(d).to(covariance))
        low = torch.linalg.cholesky_ex(covariance - VARIANCE_FLOOR * torch.eye(d).to(covariance)).info > 0
        if low.any():
            value, vector = torch.linalg.eigh(covariance[low])
            covariance[low] = (vector * value.clamp_min(VARIANCE_FLOOR).unsqueeze(-2)) @ vector.mT
            self.degenerate = self.degenerate | low.any(-1)
        scaled = spread.unsqueeze(-1) * covariance * spread.unsqueeze(-2)
        gamma = self._gate.pack(self._log_mass, centre + spread * self._mean, scaled)
        self.gamma = torch.where(fine.unsqueeze(-1), gamma, self.gamma)


def standard_map(gate: Gate, scaling: Scaling, w: int) -> Tensor:
    """``R|1 x w x w``: an affine gate's coordinates for those that belong to standardised inputs; else the identity."""
    d = scaling.inputs.shape[-1]
    out = torch.eye(w).to(scaling.inputs).repeat(len(scaling.inputs), 1, 1)
    if gate.affine:
        inputs = torch.arange(d)
        out[:, inputs, inputs] = 1 / scaling.inputs[:, 1]
        out[:, d, :d] = -scaling.inputs[:, 0] / scaling.inputs[:, 1]
    return out


def gate_spread(objective: Objective) -> Tensor:
    """``Kw x f``: one where a coordinate of the gate equals a free one."""
    model = objective.model
    K, w = model.num_experts, model.sizes[0]
    index = objective.index[: K * model.width].view(K, model.width)[:, :w].flatten()
    free = index[index >= 0].unique()
    return (index.unsqueeze(-1) == free).double()


def gate_update(
    objective: Objective, theta: Tensor, scaling: Scaling, factors: tuple[Tensor, Tensor] | None = None
) -> Still:
    """The M-step of the objective's gate; with factors, by the bound."""
    model = objective.model
    gate, gamma = model.gate, model.split(theta)[0]
    if isinstance(gate, GaussianGate):
        return GaussianMoments(objective, theta, scaling, gate)
    # Where one expert is active its probability is one, whatever the scores: there is no direction.
    if gate_spread(objective).shape[1] == 0 or getattr(gate, "active", model.num_experts) == 1:
        return Still(gamma)
    if factors is not None:
        return GateBound(objective, theta, scaling, factors)
    if model.input_dim == 0 and type(gate) is SoftmaxGate:
        return Masses(gamma, gate.temperature)
    return GateNewton(objective, theta, scaling)
