"""Distances between conditional densities, averaged over inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .. import validation
from ..errors import DomainError, ShapeError, UnsupportedError
from .measure import MixingMeasure
from .model import GaussianMoE
from .outcomes import GaussianOutcome, MultinomialLogit

_WHERE = "moe.density_distance"
_REACH, _SPACING = 8.5, 0.5  # of a component's nodes, in its standard deviations; beyond lies less than 1e-16
_ROOT_STEPS = 26  # the error of a root enters squared
# Points of Gauss and Legendre on [-1, 1], and their weights.
_INNER, _OUTER = (math.sqrt(3 / 7 + sign * 2 / 7 * math.sqrt(6 / 5)) for sign in (-1, 1))
_NEAR, _FAR = (18 + math.sqrt(30)) / 36, (18 - math.sqrt(30)) / 36
_GAUSS = (-_OUTER, -_INNER, _INNER, _OUTER), (_FAR, _NEAR, _NEAR, _FAR)
_CHUNK = 500_000  # nodes at once


class DistanceEstimate(NamedTuple):
    """A distance averaged over inputs.

    Attributes:
        value: The distance, one a replicate.
        standard_error: That of the Monte Carlo draws given the inputs, one a replicate; zero for quadrature.

    Example:
        >>> import torch
        >>> DistanceEstimate(torch.tensor(0.2), torch.tensor(0.01)).value.item() > 0
        True
    """

    value: Tensor
    standard_error: Tensor


def density_distance(
    G: MixingMeasure | GaussianMoE,
    G_true: MixingMeasure | GaussianMoE,
    X: Tensor,
    kind: str = "total_variation",
    *,
    method: str = "quadrature",
    num_samples: int = 512,
    generator: torch.Generator | None = None,
) -> DistanceEstimate:
    r"""Mean distance of two conditional densities over the rows of X.

    .. math:: \frac1n \sum_{l \le n} d(p(\cdot \mid x_l), q(\cdot \mid x_l)), \qquad
        d_{TV} = \tfrac12 \int |p - q|\,dy, \quad d_H^2 = \tfrac12 \int (\sqrt p - \sqrt q)^2\,dy .

    Both d lie in [0, 1]. Quadrature takes every component's own scale for its nodes, so densities may be narrow. Total
    variation is exact but for roots of p - q that come in pairs between two nodes: it sums differences of the
    distribution functions between the roots. Hellinger distances have Gauss-Legendre panels between nodes; those of
    classes are sums. Monte Carlo draws from both densities and averages bounded ratios; its Hellinger
    distance, a square root of a mean, has a bias of the order of 1/num_samples.

    Args:
        G: A mixing measure of normal outcomes and linear experts, or any model with parameters.
        G_true: The other one.
        X: Inputs ``n x d`` or ``R x n x d``.
        kind: ``"total_variation"`` or ``"hellinger"``.
        method: ``"quadrature"`` (one normal outcome, or classes) or ``"monte_carlo"``.
        num_samples: Draws from each density at every input, by Monte Carlo.
        generator: Source of randomness of Monte Carlo; None: torch's global stream.

    Returns:
        The distance and its standard error, one a replicate of G, G_true or X.

    Raises:
        ShapeError, DomainError, NonFiniteError: Models or inputs do not go together.
        UnsupportedError: There is no quadrature for such outcomes.

    Example:
        >>> one = dict(gate_bias=[0.], gate_weight=[[0.]], coef=[[1.]], variance=[1.])
        >>> p, q = MixingMeasure(intercept=[0.], **one), MixingMeasure(intercept=[1.], **one)
        >>> round(density_distance(p, q, torch.zeros(3, 1).double()).value.item(), 6)  # 2 Phi(1/2) - 1
        0.382925
    """
    validation.choice(_WHERE, "kind", kind, ("total_variation", "hellinger"))
    validation.choice(_WHERE, "method", method, ("quadrature", "monte_carlo"))
    validation.positive_int(_WHERE, "num_samples", num_samples, 2)
    validation.noise_generator(_WHERE, generator)
    p, q = _model("G", G), _model("G_true", G_true)
    validation.inputs(_WHERE, X, p.input_dim, like=p.theta)
    if (p.input_dim, p.num_outcomes) != (q.input_dim, q.num_outcomes):
        raise ShapeError(
            f"{_WHERE}: both must have the inputs and outcomes of G_true, {q.input_dim} and {q.num_outcomes}, got "
            f"{p.input_dim} and {p.num_outcomes}"
        )
    batches = {x.shape[:-k] for x, k in ((_theta(p), 1), (_theta(q), 1), (X, 2))} - {torch.Size()}
    if len(batches) > 1:
        raise ShapeError(
            f"{_WHERE}: replicates of G, G_true and X must agree where they have such, got "
            f"{sorted(tuple(b) for b in batches)}"
        )
    if method == "monte_carlo":
        return _monte_carlo(p, q, X, kind, num_samples, generator)
    value = _quadrature(p, q, X, kind).mean(-1)
    return DistanceEstimate(value, torch.zeros_like(value))


def _model(name: str, G: MixingMeasure | GaussianMoE) -> GaussianMoE:
    if isinstance(G, MixingMeasure):
        return GaussianMoE.from_mixing_measure(G)
    if not isinstance(G, GaussianMoE):
        raise DomainError(f"{_WHERE}: {name} must be a MixingMeasure or a GaussianMoE, got {type(G).__name__}")
    _theta(G)
    return G


def _theta(model: GaussianMoE) -> Tensor:
    if model.theta is None:
        raise UnsupportedError(f"{_WHERE}: the model has no parameters yet; fit it, or use from_mixing_measure")
    return model.theta


def _log_prob(model: GaussianMoE, X: Tensor, Y: Tensor) -> Tensor:
    """Log density of Y given X, also for a gate whose likelihood is that of both."""
    joint = model.log_prob(X, Y)
    if not model.gate.joint:
        return joint
    gamma, _, _, tail = model.split(_theta(model))
    return joint - model.gate.log_probs(gamma, X.mT, tail).logsumexp(-2)


def _monte_carlo(
    p: GaussianMoE, q: GaussianMoE, X: Tensor, kind: str, num_samples: int, generator: torch.Generator | None
) -> DistanceEstimate:
    # Half of the draws from p, half from q: the ratios |p - q|/(p + q) and (sqrt p - sqrt q)^2/(p + q) are functions
    # of the log ratio and bounded by one.
    means, errors2 = [], []
    for source in (p, q):
        ratios = []
        for _ in range(num_samples):
            Y = source.sample_outcomes(X, generator=generator)
            inputs = X.expand(*Y.shape[:-2], *X.shape[-2:])
            half = 0.5 * (_log_prob(p, inputs, Y) - _log_prob(q, inputs, Y))
            ratios.append(half.tanh().abs() if kind == "total_variation" else 1 - 1 / half.cosh())
        variance, mean = torch.var_mean(torch.stack(ratios), 0)
        means.append(0.5 * mean)
        errors2.append(0.25 * variance / num_samples)
    value, error2 = means[0] + means[1], errors2[0] + errors2[1]
    if kind == "hellinger":
        error2 = torch.where(value > 0, error2 / (4 * torch.where(value > 0, value, 1.0)), 0.0)  # of the square root
        value = value.sqrt()
    return DistanceEstimate(value.mean(-1), error2.sum(-1).sqrt() / value.shape[-1])


def _quadrature(p: GaussianMoE, q: GaussianMoE, X: Tensor, kind: str) -> Tensor:
    """Distances at every row, ``... x n``."""
    laws = type(p.outcome), type(q.outcome)
    if laws == (MultinomialLogit, MultinomialLogit):
        a, b = p.moments(X)[0], q.moments(X)[0]
        if a.shape[-1] != b.shape[-1]:
            raise ShapeError(f"{_WHERE}: both must have the same classes, got {a.shape[-1]} and {b.shape[-1]}")
        if kind == "total_variation":
            return 0.5 * (a - b).abs().sum(-1)
        return (0.5 * (a.sqrt() - b.sqrt()).square().sum(-1)).sqrt()
    if laws != (GaussianOutcome, GaussianOutcome) or p.num_outcomes != 1:
        raise UnsupportedError(
            f"{_WHERE}: quadrature is for one normal outcome or for classes, got {p.num_outcomes} of "
            f"{laws[0].__name__} and {laws[1].__name__}; use method='monte_carlo'"
        )
    parts = [_components(model, X) for model in (p, q)]
    lead = torch.broadcast_shapes(*(x.shape[:-1] for part in parts for x in part))
    flat = [tuple(x.expand(*lead, -1).reshape(-1, x.shape[-1]) for x in part) for part in parts]
    per_row = round(2 * _REACH / _SPACING) * sum(part[0].shape[-1] for part in parts)
    step = max(1, _CHUNK // per_row)
    distance = _total_variation if kind == "total_variation" else _hellinger
    rows = [
        distance(*(_Mixture(*(x[i : i + step] for x in part)) for part in flat))
        for i in range(0, len(flat[0][0]), step)
    ]
    return torch.cat(rows).reshape(lead)


def _components(model: GaussianMoE, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, means and log standard deviations of the components, ``... x n x K``."""
    scales = model.split(_theta(model))[2].squeeze(-1)
    return model.gate_log_probs(X), model.expert_means(X).squeeze(-1), 0.5 * scales.unsqueeze(-2)


class _Mixture(NamedTuple):
    """Mixtures of normals, one a row: ``N x K`` each."""

    log_weight: Tensor
    mean: Tensor
    log_sd: Tensor

    def components(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Log weight, mean and precision's root of every component, ``N x 1`` each: one at a time is far quicker."""
        for c in range(self.mean.shape[-1]):
            yield self.log_weight[:, c, None], self.mean[:, c, None], (-self.log_sd[:, c, None]).exp()

    def density(self, y: Tensor) -> Tensor:
        """Densities at ``N x J``."""
        out = torch.zeros_like(y)
        for log_weight, mean, root in self.components():
            out += root * torch.exp(log_weight - 0.5 * ((y - mean) * root).square())
        return out / math.sqrt(2 * math.pi)

    def cdf(self, y: Tensor) -> Tensor:
        """Distribution functions at ``N x J``."""
        out = torch.zeros_like(y)
        for log_weight, mean, root in self.components():
            out += log_weight.exp() * torch.special.ndtr((y - mean) * root)
        return out

    def rows(self, index: Tensor) -> _Mixture:
        return _Mixture(*(x[index] for x in self))

    def nodes(self) -> Tensor:
        grid = torch.linspace(-_REACH, _REACH, round(2 * _REACH / _SPACING) + 1, dtype=self.mean.dtype)
        grid = grid.to(self.mean.device)
        return (self.mean.unsqueeze(-1) + self.log_sd.exp().unsqueeze(-1) * grid).flatten(-2)


def _total_variation(p: _Mixture, q: _Mixture) -> Tensor:
    y = torch.cat([p.nodes(), q.nodes()], -1).sort(-1).values
    above = p.density(y) > q.density(y)
    gap = p.cdf(y) - q.cdf(y)
    total = gap.diff().abs().sum(-1) + gap[..., 0].abs() + gap[..., -1].abs()
    # Where p - q changes its sign between two nodes the root is found, and splits their difference in two.
    row, left = (above[..., 1:] != above[..., :-1]).nonzero(as_tuple=True)
    a, b, rising = y[row, left], y[row, left + 1], ~above[row, left]
    mine, other = p.rows(row), q.rows(row)
    for _ in range(_ROOT_STEPS):
        middle = 0.5 * (a + b)
        point = middle.unsqueeze(-1)
        right = (mine.density(point) > other.density(point)).squeeze(-1) == rising
        a, b = torch.where(right, a, middle), torch.where(right, middle, b)
    root = (0.5 * (a + b)).unsqueeze(-1)
    at = (mine.cdf(root) - other.cdf(root)).squeeze(-1)
    low, high = gap[row, left], gap[row, left + 1]
    extra = (at - low).abs() + (high - at).abs() - (high - low).abs()
    return 0.5 * total.index_add(0, row, extra)


def _hellinger(p: _Mixture, q: _Mixture) -> Tensor:
    edge = torch.cat([p.nodes(), q.nodes()], -1).sort(-1).values
    middle, half = 0.5 * (edge[..., 1:] + edge[..., :-1]), 0.5 * edge.diff()
    total = torch.zeros_like(edge[..., 0])
    for point, weight in zip(*_GAUSS, strict=True):
        y = middle + point * half
        a, b = p.density(y), q.density(y)
        # (a - b)^2 / (sqrt a + sqrt b)^2 is the square of the difference of the roots without its cancellation.
        roots = a.sqrt() + b.sqrt()
        total += weight * (half * ((a - b) / torch.where(roots > 0, roots, 1.0)).square()).sum(-1)
    return (0.5 * total).sqrt()
