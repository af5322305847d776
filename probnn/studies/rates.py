"""How fast losses fall with the size of the data: power laws fitted to studies, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import random, validation
from ..errors import DomainError
from . import _resampled, _theory
from ._theory import Theory
from .table import Table, Value

STATISTICS = ("mean", "median")
METHODS = ("ols", "wls", "nls")
FAILURES = ("omit", "infinite")
_BESIDE = ("seconds", "warnings", "error")  # columns of a study behind its outputs
_METHOD = {
    "ols": "least squares of log {0} on log {1}",
    "wls": "least squares of log {0} on log {1}, weighted by Monte Carlo standard errors",
    "nls": "non-linear least squares of the {0}",
}


class RateDifference(NamedTuple):
    """The difference of two slopes, its bootstrap standard error and its percentile interval.

    Example:
        >>> RateDifference(difference=-0.2, se=0.05, low=-0.3, high=-0.1).high < 0
        True
    """

    difference: float
    se: float
    low: float
    high: float


@dataclass(frozen=True, eq=False, repr=False)
class Rates:
    """Fitted rates, made by :func:`fit_rates`.

    Attributes:
        table: One row a loss and group: the columns of `by`, loss, slope, se, low, high (the interval of the slope),
            theory and z where a theory is given, constant, residual_sd (of the logarithms about the fit, K - 2
            degrees of freedom with K sizes), r_squared (of what the method fits), curvature and curvature_se (the
            coefficient of (log n)² in a weighted parabola through the logarithms), sizes, rows, failed, nan, inf,
            draws, note. `rows` counts the rows that the statistics rest on, `failed` those that are not complete,
            `nan` and `inf` complete ones with such losses; `draws` are the bootstrap draws in which the rate exists.
        points: What was fitted: the columns of `by`, loss, the size, value (the statistic), low, high (its bootstrap
            interval), log_se (Monte Carlo standard error of its logarithm), rows, failed, nan, inf.
        slopes: Bootstrap draws of the slopes, ``len(table) x num_bootstrap``, NaN where there is none. Draws of the
            same number rest on the same replicates in all rows.
        size: Name of the column of sizes.
        by: Names of the columns that make groups.
        losses: Names of the losses.
        statistic: ``"mean"`` or ``"median"``.
        method: ``"ols"``, ``"wls"`` or ``"nls"``.
        num_bootstrap: Number of bootstrap draws.
        seed: Their seed.
        probability: Probability of the intervals.
        theory: Exponents of the theory by loss.
        failures: ``"omit"`` or ``"infinite"``.

    Example:
        >>> n = [100, 100, 1000, 1000, 10000, 10000]
        >>> t = Table({"n": n, "replicate": [0, 1] * 3, "loss": [0.2 * size**-0.5 for size in n]})
        >>> rates = fit_rates(t, losses="loss")
        >>> round(float(rates.table["slope"][0]), 3), round(float(rates.curve([400])[0]), 3)
        (-0.5, 0.01)
    """

    table: Table
    points: Table
    slopes: np.ndarray
    size: str
    by: tuple[str, ...]
    losses: tuple[str, ...]
    statistic: str
    method: str
    num_bootstrap: int
    seed: int
    probability: float
    theory: Mapping[str, Any]
    failures: str

    def __repr__(self) -> str:
        return repr(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()

    def to_markdown(self, digits: int = 3) -> str:
        """The table of the rates in Markdown, see :meth:`Table.to_markdown`.

        Args:
            digits: Significant digits of floats.

        Returns:
            The text.
        """
        return self.table.to_markdown(digits)

    def to_latex(self, digits: int = 3) -> str:
        """The table of the rates in LaTeX, see :meth:`Table.to_latex`.

        Args:
            digits: Significant digits of floats.

        Returns:
            The text.
        """
        return self.table.to_latex(digits)

    def curve(self, sizes: Any, which: Mapping[str, Value] | None = None, /, **more: Value) -> np.ndarray:
        """The fitted power law.

        Args:
            sizes: Where, positive numbers.
            which: Values of ``"loss"`` and of the columns of `by` that single out one rate.
            **more: The same, for names that are words of Python.

        Returns:
            Its values in the shape of `sizes`; NaN where there is no rate.

        Raises:
            DomainError: None or several rates are meant, or a size is not positive.
        """
        i = self._find("Rates.curve", {**(which or {}), **more})
        n = np.asarray(sizes, dtype=np.float64)
        if not (n > 0).all():
            raise DomainError(f"Rates.curve: sizes must be positive, got {sizes!r}")
        out: np.ndarray = self.table["constant"][i] * n ** self.table["slope"][i]
        return out

    def difference(self, first: Mapping[str, Value], second: Mapping[str, Value]) -> RateDifference:
        """Slope of one rate minus that of another.

        The bootstrap draws of both rest on the same replicates, so that what the two share, such as the data of
        estimators on a paired axis, does not count as noise.

        Args:
            first: Values of ``"loss"`` and of the columns of `by` that single out one rate.
            second: Those of the other.

        Returns:
            The difference with its bootstrap standard error and percentile interval.

        Raises:
            DomainError: None or several rates are meant.
        """
        i, j = (self._find("Rates.difference", which) for which in (first, second))
        slopes = self.table["slope"]
        spread = _resampled.interval(self.slopes[i] - self.slopes[j], self.probability)
        return RateDifference(float(slopes[i] - slopes[j]), *spread)

    def _find(self, where: str, which: Mapping[str, Value]) -> int:
        unknown = [name for name in which if name not in (*self.by, "loss")]
        if unknown:
            raise DomainError(f"{where}: rates are told apart by {', '.join((*self.by, 'loss'))}, not by {unknown[0]}")
        places = Table({**{name: self.table[name] for name in (*self.by, "loss")}, "_": range(len(self.table))})
        found = places.where(which)["_"]
        if len(found) != 1:
            raise DomainError(
                f"{where}: {dict(which)} fits {len(found)} of {len(places)} rates; "
                f"give values of {', '.join((*self.by, 'loss'))} that fit one"
            )
        return int(found[0])


def fit_rates(
    table: Table,
    *,
    size: str = "n",
    losses: str | Sequence[str] | None = None,
    by: str | Sequence[str] | None = None,
    statistic: str = "mean",
    method: str = "ols",
    num_bootstrap: int = 1000,
    seed: int = 0,
    probability: float = 0.95,
    theory: Theory | None = None,
    failures: str = "omit",
    sizes: Sequence[float] | None = None,
) -> Rates:
    r"""Fit a power law to the mean or median loss over the sizes of a study, for each loss and group.

    With :math:`T_n` the mean or median over replicates at size n, the law is :math:`T_n = c\, n^s`, fitted by

    * ``"ols"``: least squares of :math:`\log T_n` on :math:`\log n`: every size counts the same;
    * ``"wls"``: the same with weights :math:`1 / \mathrm{se}(\log T_n)^2` of Monte Carlo standard errors: by the
      delta method for the mean, from order statistics for the median (Price and Bonett, 2001). Weights are estimates
      too, and a size whose largest losses happen to be missing has both a small mean and a large weight: with
      skewed losses and few replicates, prefer ``"ols"``;
    * ``"nls"``: least squares of :math:`T_n` itself, the minimum over c and s (the solution of scipy's
      ``curve_fit``, which some published studies use). The smallest sizes, with the largest losses, decide nearly
      alone, and those are where a rate that holds for large n has the least reason to hold; the slope is also about
      twice as variable as that of ``"ols"`` (lognormal losses of equal spread, five sizes from 100 to 10,000).

    **All sizes of the table count.** Refitting after leaving out the first sizes, and showing the slope that comes
    close to the theory, is what some published studies do; slopes of a single study can so be had from -1.2 to -0.1.
    No argument here does that. Whether a power law holds over all sizes is told by `curvature` beside its standard
    error; if it does not, choose larger sizes before a study runs, or say so.

    The standard error and the percentile interval come from a bootstrap over replicates: at each size replicates
    are drawn with replacement, the same ones for all groups and losses, and everything is computed again, the
    weights of ``"wls"`` too. As many are drawn as there are; one less for means, without which standard errors of
    means are too small by a factor of :math:`\sqrt{(R - 1)/R}` (Hesterberg, 2015, arXiv:1411.5279). Percentiles,
    because a slope is nearly a linear combination of many logarithms: its distribution is nearly symmetric, and
    little is left that BCa could correct. They measure Monte Carlo noise only, not the distance of the losses
    from a power law. With heavy tails and few replicates they are too narrow for the mean, as its standard errors
    are too: a large loss that did not happen yet is in no draw.

    Failed rows and losses of NaN have no loss: by default they are left out of the statistic, which then is one of
    the runs that ended well, and are counted beside the rate. ``failures="infinite"`` counts them as infinitely
    large, which the median bears as long as they are fewer than half. Losses of infinity are legal: the mean is
    infinite then and has no rate, the median may have one. **A statistic that is not positive and finite at any
    size makes the rate NaN**, and `note` says where; the size is never left out.

    Args:
        table: Rows of a study: `size`, ``"replicate"``, the losses, the columns of `by` and, where there is one,
            ``"status"``: rows that are not ``"complete"`` have failed.
        size: Column of the sizes, positive numbers.
        losses: Columns of the losses; None: all outputs of a study, the columns after ``"status"`` other than
            ``"seconds"``, ``"warnings"`` and ``"error"``.
        by: Columns that make groups with a rate each; None: all axes of a study, the columns before ``"replicate"``,
            other than `size`. Axes left out must have one value.
        statistic: ``"mean"`` or ``"median"``.
        method: ``"ols"``, ``"wls"`` or ``"nls"``.
        num_bootstrap: Number of bootstrap draws, at least 100.
        seed: Their seed.
        probability: Probability of the intervals.
        theory: Exponents of the theory by loss, such as ``{"voronoi": -0.5}``, or by loss and group where they
            differ, ``{"voronoi": {"newton": -0.5, "em": -0.25}}``; adds the columns theory and
            z = (slope - theory) / se, and lines to :func:`plot_rates`.
        failures: ``"omit"``, or ``"infinite"`` to count failed rows and losses of NaN as infinitely large.
        sizes: Sizes there should be: where one has no rows there is no rate. None: those of the table.

    Returns:
        The rates, by losses, then by groups in the order of the table.

    Raises:
        DomainError: There are fewer than three sizes, a column is missing or of the wrong kind, two rows of a group
            have the same size and replicate, or an argument is outside its range.

    Example:
        >>> n = [100, 100, 1000, 1000, 10000, 10000]
        >>> t = Table({"n": n, "replicate": [0, 1] * 3, "loss": [0.09, 0.11, 0.028, 0.032, 0.012, 0.008]})
        >>> rates = fit_rates(t, losses="loss", theory={"loss": -0.5})
        >>> print(f"{rates.table['slope'][0]:.3f}")
        -0.500
        >>> print(rates.table["note"][0])
        only 2 rows at n = 100, 1000, 10000: the standard error is rough
    """
    where = "fit_rates"
    if not isinstance(table, Table):
        raise DomainError(f"{where}: table must be a Table such as study.table(), got a {type(table).__name__}")
    validation.choice(where, "statistic", statistic, STATISTICS)
    validation.choice(where, "method", method, METHODS)
    validation.choice(where, "failures", failures, FAILURES)
    num_bootstrap = validation.positive_int(where, "num_bootstrap", num_bootstrap, minimum=100)
    probability = validation.probability(where, "probability", probability)
    losses, by = _losses(where, table, losses), _groups(where, table, size, by)
    clash = set(by) & _RESULTS | ({size} & _RESULTS)
    if clash:
        raise DomainError(f"{where}: columns of results are called {', '.join(sorted(clash))} too; rename the axis")
    at = _sizes(where, table, size, sizes)
    x = np.log(at.astype(np.float64))
    generator = random.generator_from(seed)
    groups = [group for group, _ in table.groups(by)]
    exponents = _theory.checked(where, theory, losses, [_theory.group_name(group) for group in groups])
    at_sizes = [
        _resampled.parts_at(
            where,
            table,
            size,
            n.item(),
            groups,
            losses,
            statistic=statistic,
            weighted=method == "wls",
            failures=failures,
            draws=num_bootstrap,
            generator=generator,
        )
        for n in at
    ]
    rates, points, slopes = [], [], []
    for loss in losses:
        for g, group in enumerate(groups):
            parts = [found[loss, g] for found in at_sizes]
            points += [
                {**group, "loss": loss, size: n.item(), **part.point(probability)}
                for n, part in zip(at, parts, strict=True)
            ]
            rate, draws = _resampled.fit(x, parts, method, probability)
            aims = _theory.columns(exponents, loss, group, rate) if exponents else {}
            count = {key: sum(part.counts[key] for part in parts) for key in parts[0].counts}
            exist = int(np.isfinite(draws).sum())
            lost = num_bootstrap - exist if np.isfinite(rate["slope"]) else 0
            row = {
                **group,
                "loss": loss,
                **{key: rate.pop(key) for key in ("slope", "se", "low", "high")},
                **aims,
                **rate,
            }
            row |= {"sizes": len(at), **count, "draws": exist}
            row["note"] = "; ".join(_resampled.notes(size, at, parts, statistic, method, lost))
            rates.append(row)
            slopes.append(draws)
    caption = (
        f"Power laws of the {statistic} loss in {size} by {_METHOD[method].format(statistic, size)}, over all "
        f"{len(at)} sizes from {at[0]} to {at[-1]}; se and {100 * probability:g} % intervals of "
        f"{num_bootstrap} bootstrap draws over replicates (seed {seed})"
    )
    stacked = np.stack(slopes)
    stacked.flags.writeable = False
    return Rates(
        table=Table.from_rows(rates, caption),
        points=Table.from_rows(points),
        slopes=stacked,
        size=size,
        by=by,
        losses=losses,
        statistic=statistic,
        method=method,
        num_bootstrap=num_bootstrap,
        seed=int(seed),
        probability=probability,
        theory=exponents,
        failures=failures,
    )


_RESULTS = frozenset(
    "loss slope se low high theory z constant residual_sd r_squared curvature curvature_se".split()
    + "sizes rows failed nan inf draws note value log_se".split()
)


def _names(where: str, name: str, given: str | Sequence[str], table: Table) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given)
    unknown = [n for n in names if n not in table]
    if unknown or len(set(names)) < len(names):
        raise DomainError(f"{where}: {name} must be different columns of {', '.join(table.names)}, got {given!r}")
    return names


def _losses(where: str, table: Table, losses: str | Sequence[str] | None) -> tuple[str, ...]:
    if losses is None:
        if "status" not in table:
            raise DomainError(f"{where}: table is not that of a study (it has no column 'status'); give losses=")
        losses = [n for n in table.names[table.names.index("status") + 1 :] if n not in _BESIDE]
    names = _names(where, "losses", losses, table)
    wrong = [n for n in names if table[n].dtype.kind not in "fi"]
    if not names or wrong:
        what = f"{wrong[0]!r} does not" if wrong else "there are none"
        raise DomainError(f"{where}: losses must be columns that hold numbers, {what}")
    return names


def _groups(where: str, table: Table, size: str, by: str | Sequence[str] | None) -> tuple[str, ...]:
    if "replicate" not in table:
        raise DomainError(f"{where}: table must have a column 'replicate', has {', '.join(table.names)}")
    axes = [n for n in table.names[: table.names.index("replicate")] if n != size]
    names = tuple(axes) if by is None else _names(where, "by", by, table)
    if size in names or "replicate" in names:
        raise DomainError(f"{where}: by must name neither the size nor the replicate, got {by!r}")
    for axis in axes:
        if axis not in names and len(np.unique(table[axis])) > 1:
            raise DomainError(
                f"{where}: rows differ in {axis!r}, which by={names!r} does not name; add it to by, "
                f"or choose with table.where({axis}=...)"
            )
    return names


def _sizes(where: str, table: Table, size: str, wanted: Sequence[float] | None) -> np.ndarray:
    (name,) = _names(where, "size", [size], table)
    column = table[name]
    if column.dtype.kind not in "fi" or not (np.isfinite(column) & (column > 0)).all():
        raise DomainError(f"{where}: sizes must be positive numbers, which those of {name!r} are not")
    sizes = np.unique(column if wanted is None else np.concatenate([column, np.asarray(wanted, dtype=column.dtype)]))
    if len(sizes) < 3:
        raise DomainError(
            f"{where}: a rate needs at least three sizes, got {len(sizes)} in {name!r} "
            f"({', '.join(map(str, sizes.tolist()))}); a line fits any two, so add sizes to the grid"
        )
    return sizes
