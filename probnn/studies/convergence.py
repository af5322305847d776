"""Studies of how fast the estimates of mixtures of experts converge."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import moe, validation
from ..errors import DomainError
from ._estimators import Estimator, SelectionSweep
from ._simulation import MoESimulation
from ._theory import Theory
from ._truths import gate_from, measure_from
from .rates import Rates, fit_rates
from .study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES = ("full", "quick")


@dataclass(frozen=True)
class Account:
    """What a study is about, for its report; results do not depend on it.

    Args:
        title: Its title.
        paper: What the literature says, in Markdown.
        notes: What one should know to read the results, in Markdown.

    Example:
        >>> Account(title="Two experts").paper
        ''
    """

    title: str = "Convergence study"
    paper: str = ""
    notes: str = ""


class ConvergenceStudy(Study):
    r"""How the losses of estimated mixtures of experts fall with the size of the data.

    For every estimator and every n of a grid, data sets of a known mixing measure are drawn, fitted and compared with
    it. All estimators see the same data sets. Fits that failed stay in the table with their status: no row is
    left out, and no size is dropped after the fact.

    Which rate a study shows depends on the loss, its convention about translations of the gate, the statistic, the
    start and the rule that ends a climb, so all of them are settings, and all but the statistic belong to what
    identifies a row.

    Args:
        truth: The true measure, of one replicate.
        estimators: By name, :class:`Estimator` or :class:`SelectionSweep`.
        n_grid: Numbers of rows.
        inputs: ``"uniform"`` on the unit cube, ``"grid"`` (equally spaced, of one input), ``"gate"`` (the law of the
            inputs that a Gaussian gate has), or a function of (n, generator) that returns ``n x d``.
        replicates: Data sets at every n.
        losses: Names of losses, see :class:`MoESimulation`; selections have none.
        seed: The study's seed.
        store: Folder of its rows; None: a temporary one.
        theory: Exponents of n that the theory has, by loss, or by loss and estimator where they differ in it.
        num_points: Inputs in the mean that stands for an expectation over their law.
        bar_r: Exponents of the loss in cells of more than three atoms; None: 2m for m atoms, a heuristic.
        batch_size: Replicates that are fitted in one batch.
        account: Texts of the report.

    Raises:
        DomainError: Settings do not go together, or the store is of another study.

    Example:
        >>> truth = moe.MixingMeasure([0.5, 0.], [[3.], [0.]], [1., -1.], [[2.], [-1.5]], [.16, .25])
        >>> study = ConvergenceStudy(truth, {"mle": Estimator(num_experts=2)}, n_grid=(100, 200, 400), replicates=20)
        >>> bool(study.run().rates().table["slope"].max() < -0.2)
        True
    """

    def __init__(
        self,
        truth: moe.MixingMeasure,
        estimators: Mapping[str, Estimator] | Mapping[str, SelectionSweep],
        *,
        n_grid: Sequence[int],
        inputs: str | Callable[[int, torch.Generator], Tensor] = "uniform",
        replicates: int = 40,
        losses: Sequence[str] = ("voronoi", "total_variation"),
        seed: int = 0,
        store: str | os.PathLike[str] | None = None,
        theory: Theory | None = None,
        num_points: int = 256,
        bar_r: Mapping[int, float] | None = None,
        batch_size: int = 20,
        account: Account | None = None,
    ):
        if isinstance(losses, str):
            raise DomainError(f"ConvergenceStudy: losses must be names in a list, such as ['voronoi'], got {losses!r}")
        self.simulation = MoESimulation(truth, estimators, inputs, tuple(losses), num_points, bar_r)
        self.theory = dict(theory or {})
        if unknown := sorted(self.theory.keys() - set(self.curves)):
            raise DomainError(
                f"ConvergenceStudy: theory must be exponents of {', '.join(self.curves)}, got {', '.join(unknown)}"
            )
        self.account = account or Account()
        super().__init__(
            grid={"estimator": list(self.simulation.estimators), "n": list(n_grid)},
            replicates=replicates,
            seed=seed,
            store=store,
            simulate_batch=self.simulation,
            batch_size=batch_size,
            paired=("estimator",),
            cost=self.simulation.cost,
        )

    @property
    def truth(self) -> moe.MixingMeasure:
        """The true measure."""
        return self.simulation.truth

    @property
    def estimators(self) -> Mapping[str, Estimator | SelectionSweep]:
        """The estimators by name."""
        return self.simulation.estimators

    @property
    def n_grid(self) -> tuple[int, ...]:
        """Numbers of rows."""
        return tuple(dict.fromkeys(cell["n"] for cell in self.cells))

    @property
    def curves(self) -> tuple[str, ...]:
        """Outputs that have a rate: the losses, or of selections the heights of the dendrogram."""
        heights = [name for e in self.estimators.values() if isinstance(e, SelectionSweep) for name in e.heights]
        return self.simulation.losses or tuple(dict.fromkeys(heights))

    @property
    def criteria(self) -> tuple[str, ...]:
        """Criteria whose choices the study counts; none where it estimates."""
        chosen = [name for e in self.estimators.values() if isinstance(e, SelectionSweep) for name in e.criteria]
        return tuple(dict.fromkeys(chosen))

    def rates(self, statistic: str = "mean", *, method: str = "ols", losses: Any = None, **options: Any) -> Rates:
        """Rates of convergence with bootstrap intervals, from all sizes of the grid.

        Args:
            statistic: ``"mean"`` or ``"median"`` over the replicates.
            method: ``"ols"``, ``"wls"`` or ``"nls"``, as in :func:`fit_rates`.
            losses: Names of the losses; None: all.
            **options: Further ones of :func:`fit_rates`.

        Returns:
            The rates, one an estimator and loss.

        Raises:
            DomainError: There are fewer than three sizes, or an argument is out of its range.
        """
        names = self.curves if losses is None else (losses,) if isinstance(losses, str) else tuple(losses)
        theory = {name: value for name, value in self.theory.items() if name in names}
        settings: dict[str, Any] = {"theory": theory or None, "sizes": self.n_grid, **options}
        return fit_rates(
            self.table(), size="n", losses=names, by=("estimator",), statistic=statistic, method=method, **settings
        )

    def plot(self, target: str | os.PathLike[str] | Axes | None = None, *, statistic: str = "mean") -> Any:
        """Draw the losses over n, with fitted slopes and the theory's.

        Args:
            target: A file to write, or the Axes to draw into, which is for one loss; None: a new figure.
            statistic: ``"mean"`` or ``"median"``.

        Returns:
            The Axes, an array of one a loss, or the one that was given.
        """
        from ._report import draw

        return draw(self, target, statistic)

    def report(self, path: str | os.PathLike[str]) -> str:
        """Write what was run and what came out as Markdown, with a figure beside it.

        Args:
            path: The file, such as ``"s1.md"``; the figure is ``s1.png`` in the same folder.

        Returns:
            The text.
        """
        from ._report import write

        return write(self, path)


_TOP = ("kind", "title", "paper", "notes", "seed", "inputs", "losses", "num_points", "batch_size", "bar_r", "truth",
        "estimators", "theory", *SIZES)  # fmt: skip


def convergence_from_config(
    config: Mapping[str, Any],
    *,
    size: str = "full",
    store: str | os.PathLike[str] | None = None,
    where: str = "studies.load",
) -> ConvergenceStudy:
    """A study of a file's tables.

    Args:
        config: The content of a TOML file: ``truth`` (parameters of a mixing measure and its gate), ``estimators``
            (tables of :class:`Estimator`, or of :class:`SelectionSweep` where they have ``candidates``), ``quick`` and
            ``full`` (``n`` and ``replicates`` each); and optionally ``title``, ``paper``, ``notes``, ``seed``,
            ``inputs``, ``losses``, ``theory``, ``num_points``, ``batch_size``, ``bar_r``.
        size: ``"quick"`` or ``"full"``.
        store: Folder of the rows; None: a temporary one.
        where: What errors begin with.

    Returns:
        The study.

    Raises:
        DomainError: Entries are missing, unknown or out of range.
    """
    validation.choice(where, "size", size, SIZES)
    _keys(where, "the file", config, _TOP, ("truth", "estimators", size))
    extent = config[size]
    _keys(where, f"[{size}]", extent, ("n", "replicates"), ("n", "replicates"))
    tables = config["estimators"]
    if not isinstance(tables, Mapping) or not tables:
        raise DomainError(f"{where}: [estimators.name] must have a table for every estimator, got {tables!r}")
    options = {name: config[name] for name in ("seed", "inputs", "losses", "theory", "num_points", "batch_size")
               if name in config}  # fmt: skip
    if "bar_r" in config:
        _keys(where, "[bar_r]", config["bar_r"], tuple(map(str, range(2, 100))), ())
        options["bar_r"] = {int(m): float(r) for m, r in config["bar_r"].items()}
    return ConvergenceStudy(
        measure_from(where, config["truth"]),
        {name: _estimator_from(where, name, table) for name, table in tables.items()},
        n_grid=extent["n"],
        replicates=extent["replicates"],
        store=store,
        account=Account(**{name: config[name].strip() for name in ("title", "paper", "notes") if name in config}),
        **options,
    )


def _estimator_from(where: str, name: str, table: Any) -> Any:
    if not isinstance(table, Mapping):
        raise DomainError(f"{where}: [estimators.{name}] must be a table of settings, got {table!r}")
    made: Any = SelectionSweep if "candidates" in table else Estimator
    fields = tuple(made.__dataclass_fields__)
    _keys(where, f"[estimators.{name}]", table, fields, () if made is SelectionSweep else ("num_experts",))
    settings: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    if "gate" in settings:
        settings["gate"] = gate_from(where, settings["gate"])
    if "penalty" in settings:
        _keys(where, f"[estimators.{name}.penalty]", settings["penalty"], tuple(moe.Penalty.__dataclass_fields__), ())
        settings["penalty"] = moe.Penalty(**settings["penalty"])
    return made(**settings)


def _keys(where: str, what: str, table: Any, known: tuple[str, ...], needed: tuple[str, ...]) -> None:
    if not isinstance(table, Mapping):
        raise DomainError(f"{where}: {what} must be a table, got {table!r}")
    if unknown := [str(key) for key in table if key not in known]:
        raise DomainError(f"{where}: {what} has unknown entries {', '.join(unknown)}; known are {', '.join(known)}")
    if missing := [key for key in needed if key not in table]:
        raise DomainError(f"{where}: {what} lacks {', '.join(missing)}")
