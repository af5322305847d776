"""Dendrograms of mixing measures: fewer experts by merging atoms, without fitting again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import validation
from ..errors import DomainError, ShapeError, UnsupportedError
from ._atoms import mean_gate
from .gates import SoftmaxGate
from .measure import MixingMeasure
from .model import GaussianMoE

_WHERE = "moe.Dendrogram"


@dataclass(frozen=True, eq=False)
class Dendrogram:
    r"""The merging of a fitted measure's atoms, from all K of them to one.

    At every level the two atoms of the least dissimilarity

    .. math:: d_{ij} = \frac{m_i m_j}{m_i + m_j}
        \big(\|(\Delta w, \Delta c)\|^2 + \|(\Delta a, \Delta\nu)\|\big)

    become one; that dissimilarity is the height of the level (Do, Mai, Nguyen, Ho, Nguyen & Drovandi 2025, arXiv
    2510.12744). Parameters whose rate in a cell of several atoms is slower have the higher power, so that atoms split
    from one true expert are near. Masses m sum to one here, so heights do not depend on how the gate is normalised:
    they are proportional to the exponentials of the biases, or, given inputs, the mean probabilities of the gate there.

    A merged atom has the joint bias and the mean parameters of its two, with weights p proportional to m. With
    `second_moments` it has also what they differ by:

    .. math:: \nu = \sum_i p_i \big[\nu_i + (h_i - \bar h)^2\big], \qquad
        a = \sum_i p_i \big[a_i + (w_i - \bar w)\,h_i\big],

    with the means :math:`h_i` of the two experts at the mean input (at zero without X). These are the second-order
    equations of :func:`probnn.moe.polynomial_residuals`: :math:`\partial_c^2 = 2\,\partial_\nu` and
    :math:`\partial_w\partial_c = \partial_a` let variance and slope take up the spread of the intercepts and its
    covariance with the gate's weights. What remains of the second order is the spread of the weights alone.

    Args:
        measure: The measure, of one replicate, with a softmax gate, linear experts and normal outcomes.
        X: Inputs ``n x d`` for masses by mean probabilities; None: by biases.
        second_moments: Merged atoms keep the second moments; False: parameters are averaged.

    Raises:
        ShapeError, DomainError, NonFiniteError: Measure or inputs are not such.
        UnsupportedError: Another gate, or other experts.

    Example:
        >>> G = MixingMeasure([0., 0., .5], [[0.], [0.1], [3.]], [0., .2, 4.], [[1.], [1.], [-1.]], [.2, .2, .3])
        >>> tree = Dendrogram(G)
        >>> tree.merges
        (((0,), (1,)), ((0, 1), (2,)))
        >>> tree.cut(2).intercept
        tensor([0.1000, 4.0000], dtype=torch.float64)
    """

    measure: MixingMeasure
    X: Tensor | None = None
    second_moments: bool = True

    def __post_init__(self) -> None:
        G = self.measure
        if not isinstance(G, MixingMeasure):
            raise DomainError(f"{_WHERE}: measure must be a MixingMeasure, got {type(G).__name__}")
        if G.batch_shape:
            raise ShapeError(
                f"{_WHERE}: measure must be of one replicate, got {tuple(G.batch_shape)}; take one, as measure[0]"
            )
        if type(G.gate) is not SoftmaxGate or G.variance is None or G.coef.shape[-1] != G.input_dim:
            raise UnsupportedError(
                f"{_WHERE}: needs a softmax gate, linear experts and normal outcomes, got {type(G.gate).__name__}, "
                f"{G.coef.shape[-1]} coefficients of {G.input_dim} inputs and "
                f"{'no' if G.variance is None else 'a'} variance"
            )
        if self.X is None:
            mass, centre = (G.gate_bias / G.gate.temperature).softmax(-1), torch.zeros_like(G.gate_weight[0])
        else:
            validation.inputs(_WHERE, self.X, G.input_dim, like=G.gate_weight, batched=False)
            mass, centre = mean_gate(_WHERE, G, self.X), self.X.mean(0)
        atoms = _Atoms.of(G, mass)
        names: list[tuple[int, ...]] = [(i,) for i in range(G.num_atoms)]
        levels, heights, merges = [atoms], [], []
        while len(names) > 1:
            height, i, j = atoms.nearest()
            atoms = atoms.merged(i, j, centre, self.second_moments)
            merges.append((names[i], names[j]))
            names = [*names[:i], tuple(sorted(names[i] + names[j])), *names[i + 1 : j], *names[j + 1 :]]
            levels.append(atoms)
            heights.append(height)
        object.__setattr__(self, "_levels", tuple(levels))
        object.__setattr__(self, "_merges", tuple(merges))
        object.__setattr__(self, "_heights", torch.stack(heights) if heights else mass.new_zeros(0))

    @property
    def heights(self) -> Tensor:
        """Heights of the levels of K, K - 1, ..., 2 atoms: what their next merger costs."""
        return self._heights  # type: ignore[attr-defined]

    @property
    def merges(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """The two sets of atoms that each merger joins, in order."""
        return self._merges  # type: ignore[attr-defined]

    def cut(self, num_atoms: int) -> MixingMeasure:
        """The measure of a level.

        Args:
            num_atoms: Its number of atoms, from 1 to K.

        Returns:
            The measure; a merged atom is at the place of its first.

        Raises:
            DomainError: There is no such level.
        """
        K = self.measure.num_atoms
        if validation.positive_int(f"{_WHERE}.cut", "num_atoms", num_atoms) > K:
            raise DomainError(f"{_WHERE}.cut: num_atoms must be at most the {K} of the measure, got {num_atoms}")
        if num_atoms == K:
            return self.measure
        return self._levels[K - num_atoms].measure(self.measure)  # type: ignore[attr-defined]

    def criterion(self, X: Tensor, Y: Tensor, *, omega: float | None = None) -> Tensor:
        r"""The dendrogram selection criterion, :math:`-(h_\kappa + \omega\, \bar\ell_\kappa)` at levels 2 to K.

        :math:`\bar\ell_\kappa` is the mean log-likelihood of the measure cut at :math:`\kappa` atoms. Less is better;
        one expert has no height and is never chosen. Heights have the units of squared parameters and the
        log-likelihood none, so the choice depends on units: standardise X and Y before the fit.

        Args:
            X: Inputs ``n x d``.
            Y: Outcomes ``n x m``, or ``n`` of one.
            omega: The weight of the log-likelihood; None: log n, that of the paper.

        Returns:
            ``K - 1`` numbers, that of two atoms first.

        Raises:
            DomainError: The measure has one atom only, or `omega` is not positive.
        """
        K = self.measure.num_atoms
        if K < 2:
            raise DomainError(f"{_WHERE}.criterion: the measure must have 2 atoms at least, got {K}")
        where, G = f"{_WHERE}.criterion", self.measure
        validation.inputs(where, X, G.input_dim, like=G.gate_weight, batched=False)
        omega = math.log(len(X)) if omega is None else validation.positive(where, "omega", omega)
        models = [GaussianMoE.from_mixing_measure(self.cut(kappa)) for kappa in range(2, K + 1)]
        fit = torch.stack([model.log_prob(X, Y).mean() for model in models])
        return -(self.heights.flip(0) + omega * fit)

    def select(self, X: Tensor, Y: Tensor, *, omega: float | None = None) -> int:
        """The number of experts of the least criterion.

        Args:
            X: Inputs, as in :meth:`criterion`.
            Y: Outcomes.
            omega: The weight of the log-likelihood.

        Returns:
            The number, from 2 to K.
        """
        return int(self.criterion(X, Y, omega=omega).argmin()) + 2

    def plot(self, *, ax: Any = None) -> Any:
        """Draw the tree: atoms as leaves, mergers at their heights.

        Args:
            ax: The Axes to draw into; None: new ones.

        Returns:
            The Axes.
        """
        from matplotlib import pyplot as plt

        if ax is None:
            ax = plt.subplots()[1]
        order = [0] if not self.merges else [atom for side in self.merges[-1] for atom in self._order(side)]
        place: dict[tuple[int, ...], tuple[float, float]] = {(atom,): (float(x), 0.0) for x, atom in enumerate(order)}
        for (left, right), height in zip(self.merges, self.heights.tolist(), strict=True):
            (x0, y0), (x1, y1) = place[left], place[right]
            ax.plot([x0, x0, x1, x1], [y0, height, height, y1], color="C0", solid_joinstyle="miter")
            place[tuple(sorted(left + right))] = (0.5 * (x0 + x1), height)
        ax.set(xticks=range(len(order)), xticklabels=[str(i) for i in order], xlabel="atom", ylabel="height")
        ax.set_ylim(bottom=0)
        return ax

    def _order(self, atoms: tuple[int, ...]) -> tuple[int, ...]:
        """Leaves below a node from left to right, so that branches do not cross."""
        for left, right in self.merges:
            if len(atoms) > 1 and tuple(sorted(left + right)) == atoms:
                return self._order(left) + self._order(right)
        return atoms


@dataclass(frozen=True, eq=False)
class _Atoms:
    """Atoms with unit temperature and an axis of outcomes: k, k x d, k x m, k x m x d, k x m."""

    mass: Tensor
    bias: Tensor
    weight: Tensor
    intercept: Tensor
    coef: Tensor
    variance: Tensor

    @staticmethod
    def of(G: MixingMeasure, mass: Tensor) -> _Atoms:
        tau, k, m = G.gate.temperature, G.num_atoms, G.num_outcomes  # type: ignore[attr-defined]
        variance = G.variance if G.variance is not None else mass.new_ones(k, m)  # the caller has seen to it
        return _Atoms(
            mass,
            G.gate_bias / tau,
            G.gate_weight / tau,
            G.intercept.reshape(k, m),
            G.coef.reshape(k, m, G.input_dim),
            variance.reshape(k, m),
        )

    def nearest(self) -> tuple[Tensor, int, int]:
        """The least dissimilarity, and the two atoms of it, the lower index first."""
        k = len(self.mass)
        slow = torch.cat([self.weight, self.intercept], -1)
        fast = torch.cat([self.coef.flatten(1), self.variance], -1)
        gap = (slow[:, None] - slow).square().sum(-1) + (fast[:, None] - fast).square().sum(-1).sqrt()
        mass = self.mass[:, None] + self.mass
        harmonic = self.mass[:, None] * self.mass / torch.where(mass > 0, mass, 1.0)
        i, j = torch.triu_indices(k, k, 1, device=gap.device)
        d = (harmonic * gap)[i, j]
        at = int(d.argmin())
        return d[at], int(i[at]), int(j[at])

    def merged(self, i: int, j: int, centre: Tensor, second_moments: bool) -> _Atoms:
        """With the atoms i < j joined at the place of i."""
        pair = [i, j]
        mass = self.mass[pair]
        p = mass / mass.sum() if mass.sum() > 0 else torch.full_like(mass, 0.5)
        weight = (p[:, None] * self.weight[pair]).sum(0)
        coef = (p[:, None, None] * self.coef[pair]).sum(0)
        variance = (p[:, None] * self.variance[pair]).sum(0)
        # Where gates and experts are compared: their values at the centre, with the biases' sum kept there.
        level = (self.bias[pair] + self.weight[pair] @ centre).logsumexp(0)
        means = self.intercept[pair] + self.coef[pair] @ centre
        mean = (p[:, None] * means).sum(0)
        if second_moments:
            off = means - mean
            variance = variance + (p[:, None] * off.square()).sum(0)
            coef = coef + torch.einsum("i,id,im->md", p, self.weight[pair] - weight, off)
        new = _Atoms(mass.sum(), level - weight @ centre, weight, mean - coef @ centre, coef, variance)
        keep = [a for a in range(len(self.mass)) if a != j]
        out = {}
        for name in self.__dataclass_fields__:
            x = getattr(self, name).clone()
            x[i] = getattr(new, name)
            out[name] = x[keep]
        return _Atoms(**out)

    def measure(self, like: MixingMeasure) -> MixingMeasure:
        """As a measure with the gate, and the axes, of another."""
        tau, squeeze = like.gate.temperature, not like.by_outcome  # type: ignore[attr-defined]
        return replace(
            like,
            gate_bias=self.bias * tau,
            gate_weight=self.weight * tau,
            intercept=self.intercept.squeeze(-1) if squeeze else self.intercept,
            coef=self.coef.squeeze(-2) if squeeze else self.coef,
            variance=self.variance.squeeze(-1) if squeeze else self.variance,
        )
