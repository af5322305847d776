"""Mixtures of experts as a process: a prior over their coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..equality import ByValue
from ..errors import DomainError, ShapeError, UnsupportedError
from ..networks import Layout
from ..networks.base import Pullback
from ..networks.layout import Block
from ..process import ParametricProcess
from .experts import Expert, LinearExpert
from .gates import Gate, LaplaceGate, SoftmaxGate, with_ones
from .mixture import GaussianMixture
from .model import GaussianMoE
from .outcomes import GaussianOutcome


@dataclass(frozen=True)
class PriorScales(ByValue):
    r"""Scales of a :class:`MixtureOfExperts`, made for inputs in :math:`[-1, 1]^d` and standardised outcomes.

    Gate weights have standard deviation :math:`s_w/\sqrt d`, biases :math:`s_b`, the p coefficients of an expert's
    mean :math:`s_a/\sqrt p` each, its intercept :math:`s_c`, and variances an inverse gamma law. How the defaults
    look, for a softmax gate and linear experts (20,000 draws; means on the box, standard errors below 0.02): the
    standard deviation of :math:`\sum_i \pi_i h_i` over draws, its share that varies within a function, the largest
    probability of an expert, and, along one axis through the centre, the number of times that the most probable
    expert changes:

    ===== = ======== ====== ======= ========
    K     d total sd within largest switches
    ===== = ======== ====== ======= ========
    1     1 1.31     0.42   1.00    0.00
    1     6 1.32     0.43   1.00    0.00
    2     1 1.19     0.47   0.87    0.70
    2     6 1.21     0.56   0.88    0.43
    3     1 1.19     0.51   0.81    1.06
    3     2 1.17     0.57   0.82    0.91
    3     6 1.15     0.61   0.82    0.65
    5     1 1.10     0.54   0.73    1.45
    5     6 1.05     0.65   0.74    0.90
    ===== = ======== ====== ======= ========

    The median noise standard deviation is 0.17, with 95 % between 0.09 and 0.46.

    Args:
        gate: Scale s_w of the gate's weights (of the centres of a :class:`LaplaceGate`, which are not divided by the
            root of d; 1 suits those). With s_w = 2 s_b, two experts change places within the interval, along one
            axis, with probability :math:`(2/\pi)\arctan 2 = 0.70` when d = 1.
        gate_bias: Scale s_b of its biases.
        coef: Scale s_a of the means' coefficients.
        intercept: Scale s_c of their intercepts.
        variance_shape: Shape a of the inverse gamma law of the variances, with density proportional to
            :math:`\nu^{-a-1} e^{-b/\nu}`.
        variance_scale: Its scale b, in squared units of the outcomes.
        log_temperature: Standard deviation of a gate's log temperature, where it has one.

    Raises:
        DomainError: A scale is not positive.

    Example:
        >>> PriorScales(gate=8.0).gate_bias
        2.0
    """

    gate: float | Tensor = 4.0
    gate_bias: float | Tensor = 2.0
    coef: float | Tensor = 1.5
    intercept: float | Tensor = 1.0
    variance_shape: float | Tensor = 2.0
    variance_scale: float | Tensor = 0.05
    log_temperature: float | Tensor = 0.5

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            validation.positive("moe.PriorScales", name, getattr(self, name))


@dataclass(frozen=True, eq=False)
class MixtureOfExperts(ParametricProcess):
    r"""A prior over mixtures of experts: normal weights of gates and experts, inverse gamma variances.

    The coordinates theta are the gate's weights and biases of all K experts, the coefficients of their means, and the
    logarithms of their variances, whose density has the Jacobian. No expert is a reference, so that the law does not
    depend on their order; the posterior does not either, and only functions that do not are identified, such as
    predictions. Channels are those of :class:`GaussianMixture`, with which :class:`probnn.HMC` samples the posterior
    with the allocations summed out.

    Args:
        model: The family: its gate, experts and variances; normal outcomes. Its theta must be None.
        scales: Those of the prior.
        dtype: Precision of draws; None: torch's default when the object is made.
        device: Where it lives; None: torch's default device.

    Raises:
        DomainError: An argument is of another type.
        UnsupportedError: Gate or experts are networks, the gate is a density of the inputs too, or outcomes are not
            normal.

    Example:
        >>> import torch, probnn
        >>> from probnn import moe
        >>> prior = moe.MixtureOfExperts(moe.GaussianMoE(num_experts=2, input_dim=1), dtype=torch.float64)
        >>> X = torch.linspace(-1, 1, 30).double().unsqueeze(-1)
        >>> Y = torch.where(X < 0, 1 + X, -X)
        >>> hmc = probnn.HMC(num_chains=2, num_warmup=20, num_samples=10)
        >>> posterior = hmc.fit(prior, moe.GaussianMixture(2), X, Y)
        >>> tuple(posterior.theta.shape), tuple(posterior.predict(X).mean.shape)
        ((2, 10, 10), (30, 1))
    """

    model: GaussianMoE
    scales: PriorScales = field(default_factory=PriorScales)
    dtype: torch.dtype | None = None  # type: ignore[assignment]
    device: torch.device | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        where = "moe.MixtureOfExperts"
        for name, kind in (("model", GaussianMoE), ("scales", PriorScales)):
            if not isinstance(getattr(self, name), kind):
                raise DomainError(f"{where}: {name} must be a moe.{kind.__name__}, got {getattr(self, name)!r}")
        model = self.model
        if model.theta is not None:
            raise DomainError(f"{where}: model must be a family without parameters, got one with theta")
        if not model.expert.linear or model.gate.width(model.input_dim) == 0:
            raise UnsupportedError(
                f"{where}: gates and experts must not be networks; a prior over those is a probnn.BayesianNetwork with "
                "K (1 + 2 m) outputs, whose likelihood is moe.GaussianMixture(K)"
            )
        if model.gate.joint or not isinstance(model.outcome, GaussianOutcome):
            raise UnsupportedError(
                f"{where}: needs a gate that is no density of the inputs, and normal outcomes; got "
                f"{type(model.gate).__name__} and {type(model.outcome).__name__}"
            )
        like = torch.empty(
            0, dtype=validation.float_dtype(where, self.dtype), device=validation.device(where, self.device)
        )
        object.__setattr__(self, "dtype", like.dtype)
        object.__setattr__(self, "device", like.device)
        layout = _layout(model)
        object.__setattr__(self, "_layout", layout)
        index, constants = _places(model, layout)
        object.__setattr__(self, "_index", index.to(like.device))
        object.__setattr__(self, "_constants", constants.to(like))
        spread = torch.zeros(len(index), layout.size, dtype=like.dtype, device=like.device)
        kept = index >= 0
        spread[kept, index[kept]] = 1.0
        object.__setattr__(self, "_spread", spread)

    @property
    def input_dim(self) -> int:  # type: ignore[override]
        """Number of inputs d."""
        return self.model.input_dim

    @property
    def output_dim(self) -> int:  # type: ignore[override]
        """Number of channels K (1 + 2 m)."""
        return self.likelihood.channels(self.model.num_outcomes)

    @property
    def likelihood(self) -> GaussianMixture:  # type: ignore[override]
        """The mixture that the channels describe."""
        return GaussianMixture(self.model.num_experts)

    @property
    def layout(self) -> Layout:
        """The blocks of theta; experts are exchangeable."""
        return self._layout  # type: ignore[attr-defined]

    @property
    def places(self) -> Tensor:
        """For every coordinate of the model its coordinate in theta, -1 where it is known; of the model's length."""
        return self._index  # type: ignore[attr-defined]

    def experts(self, theta: Tensor) -> GaussianMoE:
        """The mixtures of experts that coordinates stand for.

        Args:
            theta: Coordinates ``P`` or ``R x P``, such as ``posterior.theta.flatten(0, 1)``.

        Returns:
            One model, or R in a batch.

        Raises:
            ShapeError, DomainError, NonFiniteError: theta is no such tensor.
        """
        return replace(self.model, theta=self._full(self._check_theta("experts", theta)))

    def coordinates(self, model: GaussianMoE) -> Tensor:
        """The coordinates of mixtures of experts, the inverse of :meth:`experts`.

        Args:
            model: A model with parameters, of this family.

        Returns:
            theta ``P``, or ``R x P``.

        Raises:
            ShapeError: The model is of another family.
        """
        given = model._parameters("coordinates")
        if given.shape[-1] != len(self.places) or replace(model, theta=None).sizes != self.model.sizes:
            raise ShapeError(
                f"moe.MixtureOfExperts.coordinates: model must have {len(self.places)} parameters, got "
                f"{given.shape[-1]}"
            )
        # The prior has a temperature of one where data could not tell another.
        gamma, *others = model.split(given)
        given = model.join(model.gate.untempered(gamma), *others)
        kept = self.places >= 0
        out = given.new_zeros(*given.shape[:-1], self.num_parameters)
        out[..., self.places[kept]] = given[..., kept]
        return out

    def _full(self, theta: Tensor) -> Tensor:
        """Coordinates of the model, of those of the process."""
        index = self._index  # type: ignore[attr-defined]
        full = theta[..., index.clamp_min(0)]
        return full if bool((index >= 0).all()) else torch.where(index >= 0, full, self._constants)  # type: ignore[attr-defined]

    def _sample_parameters(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        like = self._constants  # type: ignore[attr-defined]
        parts = []
        for block in self.layout.blocks:
            if block.role == "scale":
                a, b = self._inverse_gamma(like)
                with rnd.forked(generator):
                    precision = torch._standard_gamma(a.expand(*shape, block.size))
                parts.append(b.log() - precision.log())
            else:
                z = rnd.normal((*shape, block.size), generator=generator, like=like)
                parts.append(self._scale(block, like) * z)
        return torch.cat(parts, -1)

    def _log_prob(self, theta: Tensor) -> Tensor:
        total = theta.new_zeros(theta.shape[:-1])
        for block, at in self.layout.slices():
            x = theta[..., at]
            if block.role == "scale":
                a, b = self._inverse_gamma(theta)
                each = a * b.log() - torch.lgamma(a) - a * x - b * (-x).exp()
            else:
                scale = self._scale(block, theta)
                each = -0.5 * (x / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)
            total = total + each.sum(-1)
        return total

    def prior_derivatives(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of the log density at theta ``... x P``, and the diagonal of its Hessian, all of it."""
        first, second = [], []
        for block, at in self.layout.slices():
            x = theta[..., at]
            if block.role == "scale":
                a, b = self._inverse_gamma(theta)
                bend = b * (-x).exp()
                first.append(bend - a)
                second.append(-bend)
            else:
                precision = self._scale(block, theta) ** -2
                first.append(-x * precision)
                second.append((-precision).expand_as(x))
        return torch.cat(first, -1), torch.cat(second, -1)

    def _log_prob_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self._log_prob(theta), self.prior_derivatives(theta)[0]

    def _inverse_gamma(self, like: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (_number(x, like) for x in (self.scales.variance_shape, self.scales.variance_scale))
        return a, b

    def _scale(self, block: Block, like: Tensor) -> Tensor:
        """Standard deviation of the coordinates of a block."""
        name = block.name.removeprefix("gate.") if block.name == "gate.log_temperature" else block.name
        value = getattr(self.scales, {"gate.weight": "gate", "gate.bias": "gate_bias"}.get(name, name))
        return _number(value, like) / math.sqrt(block.fan_in)

    def _apply(self, theta: Tensor, X: Tensor) -> Tensor:
        model, rows = self.model, X.mT
        gamma, beta, scales, tail = model.split(self._full(theta))
        score = model.gate.scores if model.gate.smooth else model.gate.log_probs
        scores, means = score(gamma, rows, tail), model.expert.means(beta, rows)
        n, own = X.shape[-2], scales.flatten(-2).unsqueeze(-2)
        return torch.cat([scores.mT, means.flatten(-3, -2).mT, own.expand(*means.shape[:-3], n, own.shape[-1])], -1)

    def _pullback(self, theta: Tensor, X: Tensor) -> tuple[Tensor, Pullback]:
        """In closed form where channels are linear in the coordinates."""
        gate, K = self.model.gate, self.model.num_experts
        if type(gate) is not SoftmaxGate:
            return super()._pullback(theta, X)
        rows = X.mT
        with torch.no_grad():
            value = self._apply(theta, X)
            by_gate, by_mean = with_ones(rows) / gate.temperature, self.model.expert.design(rows)
        cuts = [K, K * self.model.num_outcomes, K * self.model.num_outcomes]

        def back(cotangent: Tensor) -> Tensor:
            of_scores, of_means, of_scales = cotangent.split(cuts, -1)
            own = [(by_gate @ of_scores).mT, (by_mean @ of_means).mT, of_scales.sum(-2)]
            lead = own[0].shape[:-2]
            full = torch.cat([x.reshape(*lead, K, x.shape[len(lead) :].numel() // K) for x in own], -1).flatten(-2)
            return (full @ self._spread).sum_to_size(theta.shape)  # type: ignore[attr-defined]

        return value, back


@dataclass(frozen=True)
class MoEPrior(ByValue):
    """Makes priors over mixtures of experts for ``(input_dim, channels)``, as recipes of surrogates need.

    Args:
        num_experts: The number K of experts.
        gate: The gate.
        expert: The experts' means.
        variance: As of :class:`GaussianMoE`.
        scales: Of the prior.

    Raises:
        DomainError: A setting is out of its range, or there are no K (1 + 2 m) channels.

    Example:
        >>> MoEPrior(num_experts=2)(3, 6).num_outcomes
        1
    """

    num_experts: int = 3
    gate: Gate = SoftmaxGate()
    expert: Expert = LinearExpert()
    variance: str | float = "per_expert"
    scales: PriorScales = field(default_factory=PriorScales)

    def __post_init__(self) -> None:
        GaussianMoE(self.num_experts, 1, gate=self.gate, expert=self.expert, variance=self.variance)

    def __call__(self, input_dim: int, channels: int) -> MixtureOfExperts:
        """The prior of d inputs and K (1 + 2 m) channels."""
        m = GaussianMixture(self.num_experts).outcomes(channels)
        family: Any = {"gate": self.gate, "expert": self.expert, "variance": self.variance}
        return MixtureOfExperts(GaussianMoE(self.num_experts, input_dim, m, **family), self.scales)


def _number(x: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(x, dtype=like.dtype, device=like.device)


def _layout(model: GaussianMoE) -> Layout:
    """The blocks of theta; `fan_in` is what squared scales are divided by."""
    K, d, (_, a, p, b) = model.num_experts, model.input_dim, model.sizes
    each = (0,)
    of_gate = 1 if isinstance(model.gate, LaplaceGate) else max(d, 1)
    blocks = [
        Block("gate.weight", (K, d), of_gate, each),
        Block("gate.bias", (K,), 1, each, "bias"),
    ]
    if _has_temperature(model):
        blocks.append(Block("gate.log_temperature", (1,)))
    blocks += [Block("coef", (K, a, p - 1), max(p - 1, 1), each), Block("intercept", (K, a), 1, each, "bias")]
    if model.variance == "per_expert":
        blocks.append(Block("log_variance", (K, b), 1, each, "scale"))
    elif model.variance == "shared":
        blocks.append(Block("log_variance", (b,), 1, (), "scale"))
    return Layout(tuple(blocks))


def _has_temperature(model: GaussianMoE) -> bool:
    d = model.input_dim
    return model.gate.width(d) == d + 2 and d + 1 not in model.gate.frozen(d)


def _places(model: GaussianMoE, layout: Layout) -> tuple[Tensor, Tensor]:
    """For every coordinate of the model its place in theta, -1 where it is known; and the known values."""
    K, d, (w, a, p, b) = model.num_experts, model.input_dim, model.sizes
    named = layout.unflatten(torch.arange(layout.size))
    gate = [named["gate.weight"], named["gate.bias"].unsqueeze(-1)]
    if w == d + 2:
        known = torch.tensor(-1)
        gate.append(named.get("gate.log_temperature", known).expand(K, 1))
    means = torch.cat([named["coef"], named["intercept"].unsqueeze(-1)], -1)
    scales = named.get("log_variance", torch.full((K, b), -1)).expand(K, b)
    index = model.join(torch.cat(gate, -1), means, scales)
    number = 1.0 if isinstance(model.variance, str) else float(model.variance)
    zeros = torch.zeros(K, w, dtype=torch.float64), torch.zeros(K, a, p, dtype=torch.float64)
    return index, model.join(*zeros, torch.full((K, b), math.log(number), dtype=torch.float64))
