r"""Voronoi losses: distances between mixing measures in which the estimates of mixtures of experts converge.

Where exponents come from. In a cell of several fitted atoms the density error is the Taylor expansion of
:math:`\sum_i m_i [F(\theta_i) - F(\theta^*)]`. Derivatives of F that are linearly dependent can cancel, and a parameter
whose derivatives do is seen in the density only at the order where they no longer can: that order is its exponent.

* Softmax, linear experts: :math:`F = e^{w x} N(y \mid a x + c, \nu)` has :math:`\partial_w\partial_c F = \partial_a F`
  and :math:`\partial_c^2 F = 2\,\partial_\nu F`. Powers of (w, c) are made up for by (a, :math:`\nu`) of half the
  order, up to the order :math:`\bar r` at which the polynomial system of the cell has no solution: exponents
  :math:`\bar r` of (w, c), :math:`\bar r/2` of (a, :math:`\nu`). With m outcomes a solution has a non-zero intercept
  in one of them, whose equations are those of a single outcome: the same :math:`\bar r`.
* Activation :math:`\sigma`, learned temperature: :math:`F = e^{\sigma(w x)/\tau} N(y \mid a x + c, \nu)`. Now
  :math:`\partial_w \partial_c F = \tau^{-1}x\sigma'(wx)\, e^{\sigma/\tau} N'` while
  :math:`\partial_a F = x\, e^{\sigma/\tau} N'`: independent as soon as :math:`\sigma'` is not constant. Up to the
  second order :math:`\partial_c^2 F = 2\,\partial_\nu F` is the only relation with a square in it, and sums of squares
  of the differences of (w, :math:`\tau`, a) cannot cancel: exponent 2 of these, and of (c, :math:`\nu`) those of a
  location-scale mixture, :math:`\bar r` and :math:`\bar r/2`. The Laplace gate is the same with
  :math:`-\|x - w\|` for :math:`\sigma(w x)`, and no temperature.
* Gaussian gate: (x, y) is a mixture of normals, and :math:`\partial_a F = \Gamma\,\partial_g\partial_c F +
  g\,\partial_c F` for the centre g. Moving the origin of x to the true centre turns this into
  :math:`\partial_a F = \Gamma\,\partial_g\partial_c F` and changes no density: exponents :math:`\bar r` of (g, c),
  :math:`\bar r/2` of (:math:`\Gamma`, a, :math:`\nu`), whether or not a true centre is zero. (arXiv 2305.07572 gives
  the slopes the exponent 2 where no centre is zero. For two atoms that is the same; for three it is contradicted by
  location-scale solutions along a diagonal of (x, y), whose slope error is of the order of the variance's.)
* Linear scores over a learned temperature: (s w, s b, s :math:`\tau`) has the same density for every s > 0. No power of
  a difference of these parameters is bounded by a distance of densities, whatever the exponent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from .. import validation
from ..errors import DomainError, UnsupportedError
from ._atoms import Atoms, comparable, family, mean_gate
from ._translation import minimise
from .gates import TopKGate
from .measure import MixingMeasure
from .polynomial import bar_r as exponent_of_cell
from .polynomial import check_table

KINDS = ("exact", "overfit", "topk", "activation", "laplace", "temperature", "gaussian_gate")
_WHERE = "moe.voronoi_loss"
# Groups of parameters with the order of their exponent in cells of several atoms.
_GROUPS: dict[str, tuple[tuple[tuple[str, ...], str], ...]] = {
    "overfit": ((("gate", "intercept"), "r"), (("slope", "variance"), "r/2")),
    "activation": ((("gate", "temperature", "slope"), "2"), (("intercept",), "r"), (("variance",), "r/2")),
    "gaussian_gate": ((("gate", "intercept"), "r"), (("covariance", "slope", "variance"), "r/2")),
}
_GROUPS["topk"] = _GROUPS["overfit"]
_GROUPS["laplace"] = _GROUPS["activation"]
_ROUNDS = 4


def voronoi_cells(G: MixingMeasure, G_true: MixingMeasure) -> Tensor:
    r"""The Voronoi cells :math:`A_j = \{i : \|\theta_i - \theta^*_j\| \le \|\theta_i - \theta^*_l\|\ \forall l\}`.

    The parameters :math:`\theta` of an atom are all but its mass (Nguyen, Nguyen & Ho 2023, arXiv 2305.03288), as they
    are: put both measures into the same canonical form before. A fixed temperature is divided out of linear scores.

    Args:
        G: The fitted measure.
        G_true: The true one, of the same gate; either may have replicates.

    Returns:
        The true atom nearest to every fitted one, ``... x k``; a tie goes to the first.

    Raises:
        ShapeError, DomainError: The measures have atoms of different spaces.
        UnsupportedError: The gates are of different families.

    Example:
        >>> from probnn.moe import MixingMeasure
        >>> G_true = MixingMeasure([0., 0.], [[3.], [0.]], [1., -1.], [[2.], [-1.5]], [.2, .3])
        >>> voronoi_cells(G_true.permuted(torch.tensor([1, 0])), G_true)
        tensor([1, 0])
    """
    comparable("moe.voronoi_cells", G, G_true)
    fitted, true = Atoms.of(G, reduced=True), Atoms.of(G_true, reduced=True)
    return torch.cdist(fitted.vector(), true.vector(), compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)


def voronoi_loss(
    G: MixingMeasure,
    G_true: MixingMeasure,
    kind: str = "exact",
    *,
    translate: str | None = "fit",
    norm: str = "sum",
    weights: str = "exp_bias",
    X: Tensor | None = None,
    bar_r: Mapping[int, float] | None = None,
    exponent: float = 1.0,
) -> Tensor:
    r"""A Voronoi loss of a fitted mixing measure.

    With cells :math:`A_j`, masses :math:`m_i = e^{b_i}` and differences :math:`\Delta_{ij} = \theta_i - \theta^*_j`,

    .. math:: D = \sum_j \sum_{i \in A_j} m_i\, \rho_j(\Delta_{ij})
        + \sum_j \Big|\sum_{i \in A_j} m_i - m^*_j\Big| .

    =================  ============================================================================================
    kind               :math:`\rho_j`
    =================  ============================================================================================
    ``exact``          the norm of all differences (any gate); D1 of Nguyen, Nguyen & Ho (2023, arXiv 2305.03288)
    ``overfit``        in cells of several atoms exponents :math:`\bar r(|A_j|)` of gate's weights and intercepts and
                       half of it of slopes and variances; else as ``exact`` (softmax gates); D2 of the same
    ``topk``           as ``overfit``, the largest over all sets of K true atoms of the loss of these alone
                       (arXiv 2309.13850)
    ``activation``     exponents 2 of weights, temperature and slopes, :math:`\bar r` and :math:`\bar r/2` of
                       intercepts and variances (arXiv 2401.13875)
    ``laplace``        the same for centres (arXiv 2402.03226)
    ``gaussian_gate``  :math:`\bar r` of centres and intercepts, half of it of covariances, slopes and variances
                       (arXiv 2305.07572)
    ``temperature``    one `exponent` for all, with temperature, weights and biases as they are
    =================  ============================================================================================

    The exponents are derived at the top of this module. Those of ``overfit`` and its kin are of normal outcomes and
    linear experts. A loss of ``temperature`` need not converge: linear scores over a learned temperature do not
    identify it; ``exact`` and ``overfit`` divide it out.

    A softmax gate is the same when all its (b, w) are translated, by t0 and t1. ``translate="fit"`` takes the least
    loss over the translations of the fitted measure, cells being those of the translated one. t1 solves a convex
    problem for given cells, and is searched from the match of the experts and every pair of atoms; the mass scale
    :math:`s = e^{t_0} \ge 0` is exact. As s = 0 is allowed, the loss is at most :math:`\sum_j m^*_j`, and a fit with
    that loss has failed. ``"truth"`` has the paper's t0, which scales the true masses, instead; it depends on how
    the fitted measure is normalised, and is not bounded. Gates without such a t1 have only their masses scaled.

    In a region where a set S of experts is active a top-K gate has a translation of its own, so ``topk`` fits one for
    every S. With K = 1 a region's density has no gate in it: true masses are one, single atoms are compared by
    their experts alone, and so are cells chosen. (Regions themselves are compared by :func:`density_distance`.)

    Args:
        G: The fitted measure, with or without replicates.
        G_true: The true one; both have the same gate.
        kind: The loss.
        translate: ``"fit"``, ``"truth"``, or None: parameters as they are.
        norm: ``"sum"`` of powers of the blocks' norms, as in the papers' code, or ``"joint"``: powers of joint norms of
            the blocks that share an exponent, as in the papers.
        weights: Masses: ``"exp_bias"``, or ``"mean_gate"``: mean probabilities over X, which no scale changes.
        X: Inputs for ``"mean_gate"``, ``n x d`` or ``R x n x d``.
        bar_r: Exponents for cells of more than three atoms (:func:`bar_r`).
        exponent: The exponent of ``temperature``.

    Returns:
        The loss, one a replicate.

    Raises:
        ShapeError: Atoms or replicates do not go together.
        DomainError: A setting is unknown, or a cell has more atoms than exponents are proven for.
        UnsupportedError: The gate has no such loss.

    Example:
        >>> from probnn.moe import MixingMeasure
        >>> G_true = MixingMeasure([-8., 0.], [[25.], [0.]], [15., -5.], [[-20.], [20.]], [.09, .16])
        >>> G = MixingMeasure([-5., 3.], [[26.], [1.]], [15., -4.9], [[-20.], [20.]], [.09, .16])
        >>> round(voronoi_loss(G, G_true).item(), 6)
        0.1
    """
    validation.choice(_WHERE, "kind", kind, KINDS)
    if translate is not None:
        validation.choice(_WHERE, "translate (or None)", translate, ("fit", "truth"))
    validation.choice(_WHERE, "norm", norm, ("sum", "joint"))
    validation.choice(_WHERE, "weights", weights, ("exp_bias", "mean_gate"))
    if validation.positive(_WHERE, "exponent", exponent) < 1 or (exponent != 1 and kind != "temperature"):
        raise DomainError(f"{_WHERE}: exponent must be at least 1, and is only for kind='temperature'; got {exponent}")
    if (X is None) == (weights == "mean_gate"):
        raise DomainError(f"{_WHERE}: X comes with weights='mean_gate' and only then; got weights={weights!r}")
    comparable(_WHERE, G, G_true)
    _check_kind(G_true, kind)
    reduced = kind != "temperature"
    fitted, true = Atoms.of(G, reduced=reduced), Atoms.of(G_true, reduced=reduced)
    # Masses that sum to one have no scale to fit.
    scaled = None if family(G_true) == "Gaussian" or weights == "mean_gate" else translate
    if X is None:
        # The fitted scale is free where it is fitted; this one cannot overflow.
        top = fitted.log_mass.amax(-1, keepdim=True) if scaled == "fit" else 0.0
        mass, true_mass = (fitted.log_mass - top).exp(), true.log_mass.exp()
    else:
        mass, true_mass = mean_gate(_WHERE, G, X), mean_gate(_WHERE, G_true, X)
    active = getattr(G_true.gate, "active", 1) if kind == "topk" else 0
    if active == 1 and scaled == "fit":
        true_mass = torch.ones_like(true_mass)
    lead = torch.broadcast_shapes(G.batch_shape, G_true.batch_shape, mass.shape[:-1])
    problem = _Problem(
        _flat(fitted, lead), _flat(true, lead), mass.expand(*lead, -1).reshape(-1, G.num_atoms),
        true_mass.expand(*lead, -1).reshape(-1, G_true.num_atoms), kind, norm, scaled, check_table(_WHERE, bar_r),
        exponent, by_experts=active == 1,
    )  # fmt: skip
    moving = translate is not None and family(G_true) == "linear" and G.input_dim > 0
    return problem.solve(moving, active).reshape(lead)


def _check_kind(G_true: MixingMeasure, kind: str) -> None:
    """Raise where the kind of loss is not one of the gate, or its exponents not those of the experts."""
    own, gate = family(G_true), type(G_true.gate).__name__
    needed = {"overfit": "linear", "topk": "linear", "temperature": "linear", "laplace": "Laplace"}
    needed |= {"gaussian_gate": "Gaussian", "activation": own if own.endswith("activation") else "activation"}
    if own == "relu activation" and kind != "exact":
        raise UnsupportedError(
            f"{_WHERE}: a ReLU is positively homogeneous, so scores keep the scale invariance of linear ones and no "
            f"exponent bounds kind={kind!r}; use kind='exact', or another activation"
        )
    if kind != "exact" and needed[kind] != own:
        raise UnsupportedError(
            f"{_WHERE}: kind={kind!r} is a loss of {needed[kind]} gates, got {gate}; any gate has kind='exact'"
        )
    if kind == "topk" and not isinstance(G_true.gate, TopKGate):
        raise UnsupportedError(f"{_WHERE}: kind='topk' needs a G_true with gate=TopKGate(active=...), got {gate}")
    if kind == "topk" and G_true.gate.active > G_true.num_atoms:  # type: ignore[attr-defined]
        raise DomainError(f"{_WHERE}: the gate of G_true has more active experts than G_true has atoms")
    if kind in _GROUPS and (G_true.variance is None or G_true.coef.shape[-1] != G_true.input_dim):
        raise UnsupportedError(
            f"{_WHERE}: exponents of kind={kind!r} are those of normal outcomes and linear experts, but an atom has "
            f"{G_true.coef.shape[-1]} coefficients of {G_true.input_dim} inputs"
            f"{' and no variance' if G_true.variance is None else ''}; use kind='exact'"
        )


def _flat(atoms: Atoms, lead: torch.Size) -> Atoms:
    """Atoms with the batch as one dimension."""

    def flat(x: Tensor) -> Tensor:
        return x.expand(*lead, *x.shape[-2:]).reshape(lead.numel(), *x.shape[-2:])

    blocks = {name: flat(x) for name, x in atoms.blocks.items()}
    return Atoms(atoms.log_mass, flat(atoms.gate), blocks)


@dataclass(frozen=True, eq=False)
class _Terms:
    """What a choice of cells leaves to be minimised, per candidate: (||x - t||^2 + e2)^(p/2) + rest for every atom."""

    cells: Tensor  # B S k
    x: Tensor  # B S k d
    e2: Tensor
    p: Tensor
    rest: Tensor
    unknown: Tensor  # B S: a cell has more atoms than there are exponents for

    def values(self, t: Tensor) -> Tensor:
        """The losses of the atoms at translations ``B x S x d``, ``B x S x k``."""
        return ((self.x - t.unsqueeze(-2)).square().sum(-1) + self.e2) ** (0.5 * self.p) + self.rest

    def pick(self, index: Tensor) -> _Terms:
        """The terms of one candidate a replicate."""
        rows = torch.arange(len(index), device=index.device)
        return _Terms(*(getattr(self, name)[rows, index].unsqueeze(1) for name in self.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class _Problem:
    """A loss with the batch flat: B replicates, and S candidates of the translation each."""

    fitted: Atoms
    true: Atoms
    mass: Tensor
    true_mass: Tensor
    kind: str
    norm: str
    scaled: str | None
    table: dict[int, float]
    exponent: float
    by_experts: bool

    def solve(self, moving: bool, active: int) -> Tensor:
        """The loss, ``B``."""
        pairs = self.true.gate.unsqueeze(1) - self.fitted.gate.unsqueeze(2)  # B k k* d
        t = torch.zeros_like(pairs[:, :1, 0])
        if moving:
            t = torch.cat([self._by_experts(pairs), pairs.flatten(1, 2)], 1)
        terms = self._terms(self._cells(t))
        best, found = self._least(terms, t)
        known = ~terms.unknown.all(-1)
        for _ in range(_ROUNDS - 1 if moving else 0):
            t = minimise(self.mass.unsqueeze(1), terms.x, terms.e2, terms.p)
            terms = self._terms(self._cells(t))
            value, candidate = self._least(terms, t)
            known = known | ~terms.unknown.all(-1)
            found, best = _where(value < best, candidate, found), torch.minimum(value, best)
        if terms.unknown[:, 0].any() or not known.all():
            self._refuse(terms.cells[:, 0])
        return self._regions(found, moving, active) if active else best

    def _least(self, terms: _Terms, t: Tensor) -> tuple[Tensor, _Terms]:
        """The least loss of the candidates, ``B``, and its terms."""
        loss = self._total(terms, t, self.mass.unsqueeze(1), self.true_mass.unsqueeze(1))
        value, index = loss.masked_fill(terms.unknown, torch.inf).min(-1)
        return value, terms.pick(index)

    def _regions(self, terms: _Terms, moving: bool, active: int) -> Tensor:
        """The largest loss over sets of active true atoms, each with a translation of its own."""
        k = self.true_mass.shape[-1]
        sets = [[j in chosen for j in range(k)] for chosen in combinations(range(k), active)]
        inside = torch.tensor(sets, device=self.mass.device)
        mass = torch.where(inside[:, terms.cells[:, 0]].transpose(0, 1), self.mass.unsqueeze(1), 0.0)  # B C k
        true_mass = torch.where(inside, self.true_mass.unsqueeze(1), 0.0)
        t = torch.zeros_like(terms.x[:, :, 0])
        if moving:
            t = minimise(mass, terms.x, terms.e2, terms.p)
        return self._total(terms, t, mass, true_mass).amax(-1)

    def _by_experts(self, pairs: Tensor) -> Tensor:
        """The mean translation of the atoms matched by their experts, ``B x 1 x d``."""
        cells = self._nearest(torch.cat(list(self.fitted.blocks.values()), -1).unsqueeze(1), experts=True)[:, 0]
        index = cells[..., None, None].expand(*cells.shape, 1, pairs.shape[-1])
        x = pairs.gather(2, index).squeeze(2)
        w = self.mass / self.mass.sum(-1, keepdim=True)
        return (w.unsqueeze(-1) * x).sum(1, keepdim=True)

    def _cells(self, t: Tensor) -> Tensor:
        """Cells ``B x S x k`` of the atoms with gates translated by t ``B x S x d``."""
        others = torch.cat(list(self.fitted.blocks.values()), -1).unsqueeze(1).expand(-1, t.shape[1], -1, -1)
        if self.by_experts:
            return self._nearest(others, experts=True)
        return self._nearest(torch.cat([self.fitted.gate.unsqueeze(1) + t.unsqueeze(2), others], -1), experts=False)

    def _nearest(self, points: Tensor, experts: bool) -> Tensor:
        true = torch.cat(list(self.true.blocks.values()), -1) if experts else self.true.vector()
        return (points.unsqueeze(-2) - true[:, None, None]).square().sum(-1).argmin(-1)

    def _terms(self, cells: Tensor) -> _Terms:
        def gathered(x: Tensor) -> Tensor:
            wide = x.unsqueeze(1).expand(-1, cells.shape[1], -1, -1)
            return wide.gather(2, cells.unsqueeze(-1).expand(*cells.shape, x.shape[-1]))

        def gap(name: str) -> Tensor:
            return (gathered(self.true.blocks[name]) - self.fitted.blocks[name].unsqueeze(1)).square().sum(-1)

        x = gathered(self.true.gate) - self.fitted.gate.unsqueeze(1)
        blocks = {name: gap(name) for name in self.true.blocks}
        size = torch.nn.functional.one_hot(cells, self.true_mass.shape[-1]).sum(-2).gather(-1, cells)  # B S k
        single = size == 1
        everything = ((("gate", *blocks), "one"),)
        zero = torch.zeros_like(size, dtype=x.dtype)
        e2, p, rest, unknown = zero, zero + 1, zero, torch.zeros_like(single)
        for names, order in _GROUPS.get(self.kind, everything):
            power = self._power(order, size)
            unknown = unknown | power.isnan()
            power = torch.where(power.isnan(), 1.0, power)
            inside = [blocks[name] for name in names if name in blocks]
            if "gate" in names:
                p = power
                if self.norm == "joint":
                    e2 = torch.stack([zero, *inside]).sum(0)
                    inside = []
            if self.norm == "joint" and inside:
                inside = [torch.stack(inside).sum(0)]
            rest = rest + torch.stack([zero, *(q ** (0.5 * power) for q in inside)]).sum(0)
        if self.norm == "joint" and self.kind in _GROUPS:  # an atom alone: the norm of all its differences
            e2, rest = torch.where(single, torch.stack(list(blocks.values())).sum(0), e2), rest.where(~single, 0.0)
        return _Terms(cells, x, e2, p, rest, unknown.any(-1))

    def _power(self, order: str, size: Tensor) -> Tensor:
        """Exponents for atoms in cells of the given sizes; NaN where none is known."""
        if order == "one":
            return torch.full_like(size, self.exponent, dtype=self.mass.dtype)
        powers = [1.0, 1.0]  # of an atom alone, whatever its block
        for m in range(2, size.shape[-1] + 1):
            r = exponent_of_cell(m, self.table) if m <= 3 or m in self.table else torch.nan
            powers.append({"r": r, "r/2": 0.5 * r, "2": 2.0}[order])
        return torch.tensor(powers, dtype=self.mass.dtype, device=size.device)[size]

    def _total(self, terms: _Terms, t: Tensor, mass: Tensor, true_mass: Tensor) -> Tensor:
        """The loss at translations t ``B x S x d``, with the best scale of the masses: ``B x S``."""
        values, mass, cells = torch.broadcast_tensors(terms.values(t), mass, terms.cells)
        spread = (mass * values).sum(-1, keepdim=True)
        true_mass = true_mass.expand(*values.shape[:-1], -1)
        cell_mass = torch.zeros_like(true_mass).scatter_add(-1, cells, mass)
        if self.scaled is None:
            return spread.squeeze(-1) + (cell_mass - true_mass).abs().sum(-1)
        # Piecewise linear and convex in the scale: the least is at a kink.
        above, below = (true_mass, cell_mass) if self.scaled == "fit" else (cell_mass, true_mass)
        scale = torch.where(below > 0, above / torch.where(below > 0, below, 1.0), 0.0)
        scale = torch.cat([torch.zeros_like(scale[..., :1]), scale], -1).unsqueeze(-1)
        misfit = (scale * below.unsqueeze(-2) - above.unsqueeze(-2)).abs().sum(-1)
        spread = scale.squeeze(-1) * spread if self.scaled == "fit" else spread
        return (spread + misfit).amin(-1)

    def _refuse(self, cells: Tensor) -> None:
        sizes = torch.nn.functional.one_hot(cells, self.true_mass.shape[-1]).sum(-2).amax(-1)
        m = int(sizes.max())
        raise DomainError(
            f"{_WHERE}: exponents are proven for cells of at most 3 atoms, but {int((sizes == m).sum())} of "
            f"{len(cells)} replicates have a cell of {m}; pass one, such as bar_r={{{m}: {2 * m}}} for the heuristic 2m"
        )


def _where(keep: Tensor, a: _Terms, b: _Terms) -> _Terms:
    """The terms of `a` for the replicates to keep, those of `b` for the others."""
    out = []
    for name in a.__dataclass_fields__:
        x = getattr(a, name)
        out.append(torch.where(keep.view(-1, *(1,) * (x.ndim - 1)), x, getattr(b, name)))
    return _Terms(*out)
