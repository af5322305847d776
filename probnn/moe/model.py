"""Mixtures of experts: densities of outcomes given inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError, ShapeError, UnsupportedError
from . import _conversion
from .experts import Expert, LinearExpert
from .gates import Gate, SoftmaxGate
from .measure import MixingMeasure
from .outcomes import GaussianOutcome, MultinomialLogit, OutcomeLaw

if TYPE_CHECKING:
    from .posterior import MixturePosterior

VARIANCES = ("per_expert", "shared")


@dataclass(frozen=True, eq=False)
class GaussianMoE:
    r"""A mixture of K experts, :math:`p(y \mid x) = \sum_{i \le K} \pi_i(x)\, N(y \mid h_i(x), \nu_i)`.

    The gate gives the probabilities :math:`\pi_i`, the expert the means :math:`h_i` (Jacobs, Jordan, Nowlan & Hinton
    1991; Jordan & Jacobs 1994). Without `theta` it is a family, which :func:`probnn.moe.fit` estimates; with it, a
    density, or R of them where theta has a leading dimension. Tensors of data are ``n x d`` and ``n x m``, or
    ``R x n x d`` and ``R x n x m``; one outcome may come without its column.

    Args:
        num_experts: The number K of experts.
        input_dim: The number d of inputs.
        num_outcomes: The number m of outcomes, independent given the expert.
        gate: The gate.
        expert: The experts' means.
        variance: ``"per_expert"``, ``"shared"`` (one an outcome, the same for all experts), or a number: known.
        outcome: The law of the outcomes given the expert: :class:`GaussianOutcome`, :class:`StudentTOutcome`
            (whose squared scale is then what `variance` says) or :class:`MultinomialLogit` (which has none).
        theta: Coordinates, ``P`` or ``R x P``: for every expert those of its gate, means and log variances, then
            those that the gate shares.

    Raises:
        DomainError: A setting is out of its range.
        ShapeError: theta does not belong to the model.

    Example:
        >>> import torch
        >>> from probnn import moe
        >>> G = moe.MixingMeasure(gate_bias=[0., 0.], gate_weight=[[3.], [0.]], intercept=[1., -1.],
        ...                       coef=[[2.], [-1.5]], variance=[.16, .25])
        >>> model = moe.GaussianMoE.from_mixing_measure(G)
        >>> model.log_prob(torch.zeros(4, 1).double(), torch.ones(4, 1).double()).shape
        torch.Size([4])
    """

    num_experts: int
    input_dim: int
    num_outcomes: int = 1
    gate: Gate = SoftmaxGate()
    expert: Expert = LinearExpert()
    variance: str | float = "per_expert"
    outcome: OutcomeLaw = GaussianOutcome()
    theta: Tensor | None = None

    def __post_init__(self) -> None:
        where = "moe.GaussianMoE"
        for name in ("num_experts", "input_dim", "num_outcomes"):
            least = 0 if name == "input_dim" else 1
            object.__setattr__(self, name, validation.positive_int(where, name, getattr(self, name), least))
        for name, kind in (("gate", Gate), ("expert", Expert), ("outcome", OutcomeLaw)):
            if not isinstance(getattr(self, name), kind):
                raise DomainError(f"{where}: {name} must be a moe.{kind.__name__}, got {getattr(self, name)!r}")
        active = getattr(self.gate, "active", 1)
        if active > self.num_experts:
            raise DomainError(
                f"{where}: the gate's active must be at most the {self.num_experts} experts, got {active}"
            )
        if isinstance(self.variance, str):
            validation.choice(where, "variance (or a positive number)", self.variance, VARIANCES)
        else:
            validation.positive(where, "variance", self.variance)
        if self.theta is not None:
            validation.tensor(where, "theta", self.theta)
            if self.theta.ndim not in (1, 2) or self.theta.shape[-1] != self.num_parameters:
                raise ShapeError(
                    f"{where}: theta must have shape (P,) or (R, P) with P = {self.num_parameters}, got "
                    f"{tuple(self.theta.shape)}"
                )

    # Sizes of the coordinates of an expert: gate, means (number x width), log variances.

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Of an expert: gate coordinates w, mean channels a, coordinates p of each, log variances b."""
        m, d = self.num_outcomes, self.input_dim
        return self.gate.width(d), self.outcome.num_means(m), self.expert.width(d), self.outcome.num_scales(m)

    @property
    def width(self) -> int:
        """Number q of coordinates of an expert."""
        w, a, p, b = self.sizes
        return w + a * p + b

    @property
    def num_parameters(self) -> int:
        """Length P of theta."""
        return self.num_experts * self.width + self.gate.tail(self.input_dim, self.num_experts)

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """theta ``... x P`` as gate ``... x K x w``, means ``... x K x a x p``, log variances ``... x K x b``, tail."""
        K, (w, a, p, b) = self.num_experts, self.sizes
        own = theta[..., : K * self.width].reshape(*theta.shape[:-1], K, self.width)
        gamma, beta, scales = own.split([w, a * p, b], -1)
        return gamma, beta.reshape(*beta.shape[:-1], a, p), scales, theta[..., K * self.width :]

    def join(self, gamma: Tensor, beta: Tensor, scales: Tensor, tail: Tensor | None = None) -> Tensor:
        """The inverse of :meth:`split`."""
        own = torch.cat([gamma, beta.flatten(-2), scales], -1).flatten(-2)
        return own if tail is None else torch.cat([own, tail], -1)

    def free_index(self) -> Tensor:
        """For every coordinate of theta the free coordinate it equals, -1 where it is held; length P.

        Held are the reference expert's gate coordinates, known variances and what the data say nothing about; tied
        ones, such as a shared variance, have the same free coordinate.
        """
        K, d, (w, a, p, b) = self.num_experts, self.input_dim, self.sizes
        held, tied, frozen = (set(f(d)) for f in (self.gate.held, self.gate.tied, self.gate.frozen))
        scales = range(w + a * p, w + a * p + b)
        if K == 1 and not self.gate.joint:  # its probability is one
            frozen |= set(range(w))
        if self.variance == "shared":
            tied |= set(scales)
        elif not isinstance(self.variance, str):
            frozen |= set(scales)
        index, count = [], 0
        shared: dict[int, int] = {}
        for i in range(K):
            for j in range(self.width):
                if j in frozen or (i == K - 1 and j in held):
                    index.append(-1)
                elif j in tied and j in shared:
                    index.append(shared[j])
                else:
                    shared[j] = count
                    index.append(count)
                    count += 1
        index += range(count, count + self.num_parameters - len(index))
        return torch.tensor(index)

    @property
    def num_free(self) -> int:
        """Number of parameters that are estimated and identified."""
        return int(self.free_index().max()) + 1 - self.gate.redundant(self.input_dim, self.num_experts)

    def log_prob(self, X: Tensor, Y: Tensor) -> Tensor:
        """Log density of Y given X, one a row (of (X, Y) for a :class:`GaussianGate`).

        Args:
            X: Inputs ``n x d`` or ``R x n x d``.
            Y: Outcomes ``n x m`` or ``R x n x m``, or without the last dimension where m = 1.

        Returns:
            ``n``, or ``R x n``.

        Raises:
            ShapeError, DomainError, NonFiniteError: X or Y is no such tensor.
            UnsupportedError: The model has no parameters yet.
        """
        return self._joint("log_prob", X, Y).logsumexp(-2)

    def responsibilities(self, X: Tensor, Y: Tensor) -> Tensor:
        """Probability of every expert given an input and its outcome.

        Args:
            X: Inputs ``n x d`` or ``R x n x d``.
            Y: Outcomes, as in :meth:`log_prob`.

        Returns:
            ``n x K``, or ``R x n x K``.
        """
        return self._joint("responsibilities", X, Y).softmax(-2).mT

    def gate_log_probs(self, X: Tensor) -> Tensor:
        """Log-probability of every expert given an input.

        Args:
            X: Inputs ``n x d`` or ``R x n x d``.

        Returns:
            ``n x K``, or ``R x n x K``.
        """
        gamma, _, _, tail = self.split(self._parameters("gate_log_probs"))
        X = self._inputs("gate_log_probs", X)
        return self.gate.log_probs(gamma, X.mT, tail).log_softmax(-2).mT

    def expert_means(self, X: Tensor) -> Tensor:
        """Means of the experts (for classes, logits).

        Args:
            X: Inputs ``n x d`` or ``R x n x d``.

        Returns:
            ``n x K x m``, or ``R x n x K x m``.
        """
        _, beta, _, _ = self.split(self._parameters("expert_means"))
        return self.expert.means(beta, self._inputs("expert_means", X).mT).movedim(-1, -3)

    def predict(self, X: Tensor) -> MixturePosterior:
        """The law of new outcomes, independent over the points, as a BoTorch posterior.

        Args:
            X: Inputs ``n x d`` or ``R x n x d``.

        Returns:
            The mixture at every point, over ``n x m`` or ``R x n x m``.

        Raises:
            UnsupportedError: Outcomes are not normal; :meth:`moments` has their means and variances.
        """
        from .posterior import MixturePosterior

        if not isinstance(self.outcome, GaussianOutcome):
            raise UnsupportedError(
                f"moe.GaussianMoE.predict: needs normal outcomes, got {type(self.outcome).__name__}; use moments or "
                "sample_outcomes"
            )
        _, _, scales, _ = self.split(self._parameters("predict"))
        log_weights, means = self.gate_log_probs(X), self.expert_means(X)
        return MixturePosterior(log_weights, means, (0.5 * scales).exp().unsqueeze(-3).expand_as(means))

    def moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (of classes: probabilities) and variance of new outcomes.

        Args:
            X: Inputs ``n x d`` or ``R x n x d``.

        Returns:
            Two of ``n x m`` or ``R x n x m``.
        """
        _, beta, scales, _ = self.split(self._parameters("moments"))
        inputs = self._inputs("moments", X)
        each_mean, each_variance = self.outcome.moments(self.expert.means(beta, inputs.mT), scales)
        probs = self.gate_log_probs(X).exp().mT.unsqueeze(-2)
        mean = (probs * each_mean).sum(-3)
        spread = (probs * (each_mean - mean.unsqueeze(-3)).square()).sum(-3)
        if isinstance(self.outcome, MultinomialLogit):
            return mean.mT, (mean * (1 - mean)).mT
        return mean.mT, ((probs * each_variance).sum(-3) + spread).mT

    def sample_outcomes(self, X: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw an outcome for every row.

        Args:
            X: Inputs ``n x d`` or ``R x n x d``.
            generator: Source of randomness; None: torch's global stream.

        Returns:
            Outcomes ``n x m`` or ``R x n x m``.

        Raises:
            ShapeError, DomainError, NonFiniteError: X is no such tensor.
            UnsupportedError: The model has no parameters yet.
        """
        validation.noise_generator("moe.GaussianMoE.sample_outcomes", generator)
        _, _, scales, _ = self.split(self._parameters("sample_outcomes"))
        means = self.expert_means(X).movedim(-3, -1)  # ... K m n
        below = self.gate_log_probs(X).exp().mT.cumsum(-2)
        u = rnd.uniform((*below.shape[:-2], 1, below.shape[-1]), generator=generator, like=means)
        chosen = (u > below).sum(-2).clamp_max(self.num_experts - 1)  # ... n
        index = chosen.unsqueeze(-2).unsqueeze(-2)
        mean = means.gather(-3, index.expand(*means.shape[:-3], 1, *means.shape[-2:])).squeeze(-3)
        wide = scales.unsqueeze(-1).expand(*means.shape[:-3], *scales.shape[-2:], means.shape[-1])
        scale = wide.gather(-3, index.expand(*wide.shape[:-3], 1, *wide.shape[-2:])).squeeze(-3)
        return self.outcome.sample(mean, scale, generator).mT

    def mixing_measure(self) -> MixingMeasure:
        """The parameters as a mixing measure.

        Raises:
            UnsupportedError: Gate or experts are networks, or there are no parameters yet.
        """
        return _conversion.to_measure(self, self._parameters("mixing_measure"))

    @staticmethod
    def from_mixing_measure(measure: MixingMeasure, **options: Any) -> GaussianMoE:
        """The model with the parameters of a mixing measure.

        Args:
            measure: The measure; its gate becomes the model's.
            **options: Fields of the model: `expert`, `outcome`, `variance`.

        Returns:
            The model, one a replicate of the measure.
        """
        return _conversion.from_measure(GaussianMoE, measure, options)

    def canonicalize(self) -> GaussianMoE:
        """The same density with the reference expert's gate at zero (and a normalised temperature)."""
        gamma, beta, scales, tail = self.split(self._parameters("canonicalize"))
        return replace(self, theta=self.join(self.gate.canonical(gamma), beta, scales, tail))

    def information(self, X: Tensor, Y: Tensor, *, kind: str = "observed") -> Tensor:
        r"""Information about the free parameters.

        Args:
            X: Inputs ``n x d`` or ``R x n x d``.
            Y: Outcomes, as in :meth:`log_prob`.
            kind: ``"observed"``: minus the Hessian of the log-likelihood; ``"opg"``: the sum of outer products of the
                rows' scores.

        Returns:
            ``F x F``, or ``R x F x F``, in the order of :meth:`free_index`.

        Raises:
            ShapeError, DomainError, NonFiniteError: The data or `kind` are unusable.
            UnsupportedError: The gate or the experts have no closed-form derivatives.
        """
        from .objective import Objective

        validation.choice("moe.GaussianMoE.information", "kind", kind, ("observed", "opg"))
        theta = self._parameters("information")
        objective = Objective.of(self, self._inputs("information", X), self._outcomes("information", X, Y))
        batch = theta if theta.ndim == 2 else theta.unsqueeze(0)
        batch = batch.expand(max(len(batch), objective.data.num_replicates), -1)
        out = -objective.derivatives(batch)[2] if kind == "observed" else objective.outer_products(batch)
        return out if theta.ndim == 2 or X.ndim == 3 else out.squeeze(0)

    def _parameters(self, verb: str) -> Tensor:
        if self.theta is None:
            raise UnsupportedError(
                f"moe.GaussianMoE.{verb}: the model has no parameters yet; fit it with probnn.moe.fit, or make it with "
                "from_mixing_measure"
            )
        return self.theta

    def _inputs(self, verb: str, X: Any) -> Tensor:
        theta = self._parameters(verb)
        where = f"moe.GaussianMoE.{verb}"
        return validation.inputs(where, X, self.input_dim, like=theta)

    def _outcomes(self, verb: str, X: Tensor, Y: Any) -> Tensor:
        where = f"moe.GaussianMoE.{verb}"
        if torch.is_tensor(Y) and self.num_outcomes == 1 and Y.ndim == X.ndim - 1:
            Y = Y.unsqueeze(-1)
        Y = validation.outcomes(where, "Y", Y, X, self.num_outcomes)
        self.outcome.check(where, Y)
        return Y

    def _joint(self, verb: str, X: Tensor, Y: Tensor) -> Tensor:
        """Log-probabilities of expert and outcome, ``... x K x n``."""
        theta = self._parameters(verb)
        X = self._inputs(verb, X)
        return joint_log_prob(self, theta, X.mT, self._outcomes(verb, X, Y).mT)


def joint_log_prob(model: GaussianMoE, theta: Tensor, X: Tensor, Y: Tensor) -> Tensor:
    """Log density of expert and outcome, ``... x K x n``; X and Y have rows last."""
    gamma, beta, scales, tail = model.split(theta)
    return model.gate.log_probs(gamma, X, tail) + model.outcome.log_prob(model.expert.means(beta, X), scales, Y)
