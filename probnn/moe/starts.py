"""Where the maximisation starts from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import random as rnd
from ..errors import DomainError
from ._solve import combine, contract, products, solve, unpack
from .data import Data
from .gates import LaplaceGate, SoftmaxGate, TopKGate
from .joint import GaussianGate
from .measure import MixingMeasure
from .outcomes import MultinomialLogit
from .tempered import TemperatureGate

if TYPE_CHECKING:
    from .model import GaussianMoE

KINDS = ("kmeans", "tree", "subset", "random")
# Rows that a start looks at: it only has to be somewhere sensible.
MAX_ROWS = 2000


def starting_points(
    model: GaussianMoE, data: Data, kinds: tuple[str, ...], count: int, generator: torch.Generator
) -> Tensor:
    """Starts ``R x S x P``, the kinds in turn.

    - ``"kmeans"``: experts fitted to clusters of the standardised (x, y).
    - ``"tree"``: experts fitted to the leaves of a regression tree with linear leaves, at random thresholds.
    - ``"subset"``: experts fitted to small random subsets of the rows.
    - ``"random"``: experts fitted with random responsibilities (Dirichlet).

    Args:
        model: The family.
        data: The data sets.
        kinds: Of :data:`KINDS`.
        count: The number S of starts a data set.
        generator: Source of randomness.
    """
    few = data.sample(MAX_ROWS, generator)
    R, K = few.num_replicates, model.num_experts
    X, Y = few.X.expand(R, -1, -1), few.Y.expand(R, -1, -1)
    out = []
    for s in range(count):
        kind = kinds[s % len(kinds)]
        r = _PARTITIONS[kind](model, X, Y, K, generator)
        out.append(_from_responsibilities(model, X, Y, r, generator))
    return torch.stack(out, 1)


def near_truth(
    model: GaussianMoE, truth: MixingMeasure, num_rows: int, shape: tuple[int, int], generator: torch.Generator
) -> Tensor:
    r"""Starts ``R x S x P`` near a known mixing measure, as the studies of convergence rates take them.

    Every atom copies a true one (each at least once, the last one last) plus :math:`N(0, (0.005 n^{-0.083})^2)` on
    the gate, :math:`N(0, (0.05 n^{-0.083})^2)` on the expert and a half-normal of scale :math:`0.005 n^{-0.25}` on the
    standard deviation (the recipe of Nguyen, Nguyen & Ho 2023, arXiv 2305.03288).
    """
    from .model import GaussianMoE

    if truth.gate != model.gate and not all(type(g) in (SoftmaxGate, TopKGate) for g in (truth.gate, model.gate)):
        raise DomainError(f"moe.fit: a mixing measure to start near must have the gate {model.gate}, got {truth.gate}")
    known = GaussianMoE.from_mixing_measure(truth, expert=model.expert, outcome=model.outcome)
    if known.sizes != model.sizes or truth.batch_shape or truth.num_atoms > model.num_experts:
        raise DomainError(
            f"moe.fit: a mixing measure to start near must have at most the model's {model.num_experts} atoms, of its "
            f"gate and expert, and one replicate; got {truth!r}"
        )
    (R, S), K, k = shape, model.num_experts, truth.num_atoms
    order = torch.cat([torch.arange(k - 1), torch.zeros(K - k, dtype=torch.long), torch.tensor([k - 1])])
    atoms = order.expand(R, S, K).clone()
    if K > k:
        atoms[..., k - 1 : K - 1] = rnd.integers(k, (R, S, K - k), generator=generator)
    gamma, beta, scales, tail = known.split(known.canonicalize()._parameters("fit"))

    def noise(like: Tensor) -> Tensor:
        return rnd.normal(like.shape, generator=generator, like=like)

    gamma, beta, scales = gamma[atoms], beta[atoms], scales[atoms]
    moved = torch.ones_like(gamma)
    moved[..., -1, list(model.gate.held(model.input_dim))] = 0.0
    gamma = model.gate.untempered(gamma) + 0.005 * num_rows**-0.083 * noise(gamma) * moved
    beta = beta + 0.05 * num_rows**-0.083 * noise(beta)
    scales = 2 * ((0.5 * scales).exp() + 0.005 * num_rows**-0.25 * noise(scales).abs()).log()
    return respecting(model, model.join(gamma, beta, scales, tail.expand(R, S, -1)))


def respecting(model: GaussianMoE, theta: Tensor) -> Tensor:
    """theta with known variances at what they are, tied coordinates equal, and unidentified temperatures at one."""
    gamma, beta, scales, tail = model.split(theta)
    if not isinstance(model.variance, str):
        scales = torch.full_like(scales, float(model.variance)).log()
    return _tied(model, model.join(model.gate.untempered(gamma), beta, scales, tail))


def _kmeans(model: GaussianMoE, X: Tensor, Y: Tensor, K: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm with greedy spread-out seeds (Arthur & Vassilvitskii 2007), one restart each."""
    points = torch.cat([X, Y], -2).mT
    points = (points - points.mean(-2, keepdim=True)) / points.std(-2, keepdim=True).clamp_min(1e-300)
    R, n, _ = points.shape
    centres = points.gather(1, rnd.integers(n, (R, 1, 1), generator=generator).expand(R, 1, points.shape[-1]))
    for _ in range(K - 1):
        near = torch.cdist(points, centres).square().amin(-1) + 1e-12
        u = rnd.uniform((R, 1), generator=generator, like=points) * near.sum(-1, keepdim=True)
        chosen = torch.searchsorted(near.cumsum(-1), u).clamp_max(n - 1)
        centres = torch.cat([centres, points.gather(1, chosen.unsqueeze(-1).expand(-1, -1, points.shape[-1]))], 1)
    for _ in range(15):
        member = torch.nn.functional.one_hot(torch.cdist(points, centres).argmin(-1), K).to(points)
        size = member.sum(1)
        means = (member.mT @ points) / size.clamp_min(1).unsqueeze(-1)
        centres = torch.where((size > 0).unsqueeze(-1), means, centres)
    return member.mT


def _tree(model: GaussianMoE, X: Tensor, Y: Tensor, K: int, generator: torch.Generator) -> Tensor:
    """Leaves of a tree grown by the best of a few random thresholds for expert's fits on both sides."""
    R, d, n = X.shape
    if d == 0:
        return _random(model, X, Y, K, generator)
    phi, leaf = _design(model, X), torch.zeros(R, n, dtype=torch.long)
    replicate = torch.arange(R)
    for count in range(1, K):
        parts = torch.nn.functional.one_hot(leaf, count).mT.to(X)
        largest = _sum_of_squares(phi, Y, parts).argmax(-1)
        inside = parts[replicate, largest]  # R n
        axis = rnd.integers(d, (R, 8), generator=generator)
        threshold = rnd.integers(n, (R, 8), generator=generator)
        values = X.gather(1, axis.unsqueeze(-1).expand(-1, -1, n))  # R 8 n
        below = (values <= values.gather(-1, threshold.unsqueeze(-1))).to(X)
        sides = torch.cat([below, 1 - below], 1) * inside.unsqueeze(1)
        cost = _sum_of_squares(phi, Y, sides).unflatten(-1, (2, 8)).sum(-2)
        small = sides.sum(-1).unflatten(-1, (2, 8)).amin(-2) < phi.shape[-2] + 1
        best = cost.masked_fill(small, torch.inf).argmin(-1)
        new = (sides[replicate, 8 + best] > 0) & ~small[replicate, best].unsqueeze(-1)
        leaf = torch.where(new, count, leaf)
    return torch.nn.functional.one_hot(leaf, K).mT.to(X)


def _subset(model: GaussianMoE, X: Tensor, Y: Tensor, K: int, generator: torch.Generator) -> Tensor:
    """Small random subsets: twice what an expert's fit needs."""
    R, _, n = X.shape
    size = min(n, 2 * (model.expert.width(X.shape[-2]) if model.expert.linear else 2) + 2)
    rank = rnd.uniform((R, K, n), generator=generator, like=X).argsort(-1)
    return torch.zeros_like(rank, dtype=X.dtype).scatter(-1, rank[..., :size], 1.0)


def _random(model: GaussianMoE, X: Tensor, Y: Tensor, K: int, generator: torch.Generator) -> Tensor:
    """Uniform on the simplex: normalised exponentials."""
    e = -torch.log1p(-rnd.uniform((X.shape[0], K, X.shape[-1]), generator=generator, like=X))
    return e / e.sum(1, keepdim=True).clamp_min(1e-300)


_PARTITIONS = {"kmeans": _kmeans, "tree": _tree, "subset": _subset, "random": _random}


def _design(model: GaussianMoE, X: Tensor) -> Tensor:
    """Features of the expert; of networks, those of a linear one."""
    from .experts import LinearExpert

    return model.expert.design(X) if model.expert.linear else LinearExpert().design(X)


def _weighted_fit(phi: Tensor, Y: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares with weights ``R x K x n``: coefficients ``R x K x m x p`` and residuals ``R x K x m x n``."""
    (R, K, _), p, m = r.shape, phi.shape[-2], Y.shape[-2]
    centre = phi.mean(-1, keepdim=True)
    centre[:, -1] = 0.0  # the last feature is one
    scale = (phi - centre).square().mean(-1, keepdim=True).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    unit = (phi - centre) / scale
    gram = unpack(contract(r, products(unit)), p).unsqueeze(2).expand(R, K, m, p, p)
    solved, _ = solve(gram, contract(r.unsqueeze(2) * Y.unsqueeze(1), unit))
    residual = Y.unsqueeze(1) - combine(solved, unit)
    beta = solved / scale.mT.unsqueeze(1)
    beta[..., -1] -= (beta * centre.mT.unsqueeze(1)).sum(-1)
    return beta, residual


def _sum_of_squares(phi: Tensor, Y: Tensor, r: Tensor) -> Tensor:
    spread = Y.var(-1).clamp_min(1e-300)[:, None, :, None]
    return (r.unsqueeze(-2) * _weighted_fit(phi, Y, r)[1].square() / spread).sum((-1, -2))


def _from_responsibilities(model: GaussianMoE, X: Tensor, Y: Tensor, r: Tensor, generator: torch.Generator) -> Tensor:
    """theta ``R x P`` of experts fitted with weights r ``R x K x n``; the gate knows their masses only."""
    R, d, n = X.shape
    w, a, p, b = model.sizes
    K, mass = model.num_experts, r.sum(-1)

    def noise(*shape: int) -> Tensor:
        return rnd.normal(shape, generator=generator, like=X)

    if isinstance(model.outcome, MultinomialLogit):
        beta, scales = 0.5 * noise(R, K, a, p), X.new_zeros(R, K, 0)
    else:
        beta, residual = _weighted_fit(_design(model, X), Y, r)
        variance = (r.unsqueeze(-2) * residual.square()).sum(-1) / mass.clamp_min(1e-300).unsqueeze(-1)
        # Not less than a share of all: few rows fit themselves, and no other row would belong to such an expert.
        scales = variance.maximum(0.01 * Y.var(-1, correction=0).unsqueeze(1)).clamp_min(1e-300).log()
        if not isinstance(model.variance, str):
            scales = torch.full_like(scales, float(model.variance)).log()
    if not model.expert.linear:
        beta = 0.5 * noise(R, K, a, p)
    log_mass = (mass / mass.sum(-1, keepdim=True)).clamp_min(1e-6).log()
    tail = 0.3 * noise(R, model.gate.tail(d, K))
    return _tied(model, model.join(_gate(model, X, r, log_mass, noise), beta, scales, tail))


def _gate(model: GaussianMoE, X: Tensor, r: Tensor, log_mass: Tensor, noise: Callable[..., Tensor]) -> Tensor:
    """Gate coordinates ``R x K x w``: centres where there are such, else weights near zero."""
    R, d, _ = X.shape
    K, w = r.shape[1], model.gate.width(d)
    share = r / r.sum(-1, keepdim=True).clamp_min(1e-300)
    centre = share @ X.mT
    if isinstance(model.gate, GaussianGate):
        offset = X.unsqueeze(1) - centre.unsqueeze(-1)
        covariance = (share.unsqueeze(-2) * offset) @ offset.mT
        spread = X.var(-1).clamp_min(1e-300)
        return model.gate.pack(log_mass, centre, covariance + 0.05 * torch.diag_embed(spread).unsqueeze(1))
    if w == 0:
        return X.new_zeros(R, K, 0)
    if isinstance(model.gate, LaplaceGate):
        return torch.cat([centre, log_mass.unsqueeze(-1)], -1)
    # Activations have curvature only away from zero, so weights start a little off it.
    spread = X.std(-1, correction=0).clamp_min(1e-300) if d else X.new_ones(R, 0)
    weight = 0.1 * noise(R, K, d) / spread.unsqueeze(1)
    extra = X.new_zeros(R, K, w - d - 1)
    bias = log_mass
    if model.gate.affine:  # probabilities at the centre of the data are the masses
        bias = bias - (weight * X.mean(-1).unsqueeze(1)).sum(-1)
    gamma = torch.cat([weight, bias.unsqueeze(-1), extra], -1)
    # A free temperature is kept as started, so it starts at one whatever the normalisation.
    return gamma if isinstance(model.gate, TemperatureGate) else model.gate.canonical(gamma)


def _tied(model: GaussianMoE, theta: Tensor) -> Tensor:
    """theta whose tied coordinates are equal: each the mean of its copies."""
    index = model.free_index()
    kept = index >= 0
    count = torch.bincount(index[kept]).to(theta)
    mean = theta.new_zeros(*theta.shape[:-1], len(count)).index_add(-1, index[kept], theta[..., kept]) / count
    out = theta.clone()
    out[..., kept] = mean[..., index[kept]]
    return out
