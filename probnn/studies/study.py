"""Simulation studies: cells, replicates, a store that survives, and one row run again."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np

from .. import validation
from ..errors import DomainError, IncompleteStudyWarning, user_level
from ..progress import Progress
from ..random import check_seed
from . import cells as naming
from ._order import by_cost, workers
from .cells import Cell
from .identity import fingerprint
from .parts import COMPLETE, STATUS, Row
from .replay import Replay, same_bits
from .running import BACKENDS, Runner
from .sharding import shard_of
from .store import Store
from .summaries import failures, summarise
from .table import Table
from .worker import Job, Unit, run_unit, single_thread, this_process

Simulate = Callable[[Cell, int], Mapping[str, Any]]
SimulateBatch = Callable[[Cell, list[int]], Mapping[str, Any]]


class Study:
    r"""A simulation study: every cell of a grid, many replicates of each, every row kept as soon as it is there.

    The seed of a row is a function of the study's seed, the cell's values and the replicate, and of nothing else:
    neither order, workers and shards nor the rest of the grid matter, so that cells and replicates can be added later
    and any row can be run again alone. A row belongs to what made it: the code of the simulation, its settings, the
    seed. Where one of these has changed, the store is refused; rows are never mixed. Workers that die or hang cost
    their own row.

    Terms are those of Morris, White & Crowther (2019, Statistics in Medicine 38, 2074-2102, arXiv 1712.03198).

    Args:
        simulate: Runs one replicate, ``simulate(cell, seed) -> {output: number}``; the cell is a dict of the axes'
            values. Its random numbers should come from the seed; Python's, numpy's and torch's global streams are
            seeded with it too. Infinite and NaN outputs are kept.
        grid: ``{axis: values}``, all combinations; or a list of cells. Values are numbers, texts, truth values.
        replicates: Replicates R of each cell.
        seed: The study's seed.
        store: Folder of its rows, made when first needed; None: a temporary one, gone with the object.
        simulate_batch: Runs many replicates of a cell in one call, ``simulate_batch(cell, seeds) -> {output: array}``,
            used where it is given. Blocks are always complete, so that results do not depend on how many replicates
            are asked for; where a block fails, its replicates are run one by one.
        batch_size: Replicates in a block.
        paired: Axes that do not change the seeds: cells that differ in these see the same random numbers, as
            estimators compared on the same data do.
        version: What rows belong to instead of the code of the simulation: change it whenever results would change.
            None: a fingerprint of the code and of what it names (the user's own functions and constants; installed
            packages by name).
        cost: Relative cost of a cell, ``cost(cell)``; the dearest are run first. None: what was measured, or the
            product of the cell's numbers.

    Raises:
        DomainError: An argument is out of its range, the store is of another study, or the simulation holds an object
            of which it cannot be told whether it is the same next time.
        SerializationError: A file of the store is damaged.

    Example:
        >>> import numpy as np
        >>> def mean_of_exponentials(cell, seed):
        ...     x = np.random.default_rng(seed).exponential(size=cell["n"])
        ...     half = 1.96 * x.std(ddof=1) / len(x) ** 0.5
        ...     return {"estimate": x.mean(), "covered": abs(x.mean() - 1) < half}
        >>> study = Study(simulate=mean_of_exponentials, grid={"n": [10, 100]}, replicates=50).run()
        >>> len(study.table())
        100
        >>> study.replay({"n": 10}, 7).equal
        True
    """

    def __init__(
        self,
        simulate: Simulate | None = None,
        grid: Mapping[str, Sequence[Any]] | Sequence[Cell] = (),
        replicates: int = 100,
        *,
        seed: int = 0,
        store: str | os.PathLike[str] | None = None,
        simulate_batch: SimulateBatch | None = None,
        batch_size: int = 20,
        paired: Sequence[str] = (),
        version: str | None = None,
        cost: Callable[[Cell], float] | None = None,
    ):
        where = "Study"
        for name, fn in (("simulate", simulate), ("simulate_batch", simulate_batch), ("cost", cost)):
            if fn is not None and not callable(fn):
                raise DomainError(f"{where}: {name} must be a function, got {fn!r}")
        if simulate is None and simulate_batch is None:
            raise DomainError(
                f"{where}: needs simulate, a function of (cell, seed), or simulate_batch, of (cell, seeds)"
            )
        if version is not None and (not isinstance(version, str) or not version):
            raise DomainError(f"{where}: version must be a text, such as '1', got {version!r}")
        self.simulate, self.simulate_batch, self.version, self.cost = simulate, simulate_batch, version, cost
        self.cells: list[Cell] = naming.cells_of(where, grid)
        self.replicates = validation.positive_int(where, "replicates", replicates)
        self.batch_size = validation.positive_int(where, "batch_size", batch_size)
        self.seed = check_seed(where, seed)
        if isinstance(paired, str) or not set(paired) <= set(self.axes):
            raise DomainError(f"{where}: paired must be a list of axes out of {', '.join(self.axes)}, got {paired!r}")
        self.paired = tuple(sorted(set(paired)))
        if store is not None and not isinstance(store, (str, os.PathLike)):
            raise DomainError(f"{where}: store must be a folder, got {store!r}")
        self.store = Path(tempfile.mkdtemp(prefix="probnn-study-") if store is None else store)
        if store is None:
            weakref.finalize(self, shutil.rmtree, self.store, ignore_errors=True)
        if self.store.exists() and not self.store.is_dir():
            raise DomainError(f"{where}: store must be a folder, {self.store} is a file")
        self._rows = Store(self.store, self.cells, self._identities(), self.replicates)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of what the cells differ in."""
        return tuple(self.cells[0])

    def __repr__(self) -> str:
        done = int((self._rows.status == COMPLETE).sum())
        return (
            f"{type(self).__name__}({len(self.cells)} cells of {', '.join(self.axes)}, {self.replicates} replicates, "
            f"seed {self.seed}, store {os.fspath(self.store)!r}: {done} of {self._rows.status.size} rows complete)"
        )

    # Running

    def run(
        self,
        n_jobs: int | None = None,
        *,
        backend: str = "loky",
        progress: bool = False,
        timeout: float | None = None,
        shard: Any = None,
        retry: bool = True,
    ) -> Self:
        """Run the rows that are missing, and those that failed before.

        Args:
            n_jobs: Workers; 1: this process, in which a simulation that crashes takes the run with it (nothing that
                was finished is lost), and one that never returns from a compiled function cannot be ended; -1: one a
                core, or all that a cluster has. None: 1 with loky, else -1.
            backend: Of joblib: "loky" for processes of this machine, "dask" with a ``distributed.Client``, "ray".
            progress: Whether to show a bar.
            timeout: Seconds a replicate may take; one that is late costs its own row. A block may take as long as its
                replicates together.
            shard: ``(i, N)`` or "i/N" with i from 1 to N: only every Nth row (every Nth block), for jobs of a queue
                that share the store; "auto" takes both from the array task's variables.
            retry: Whether rows that failed, were late or killed are run again.

        Returns:
            The study.

        Raises:
            DomainError: A setting is out of its range.
            ConvergenceError: All of the first replicates failed.
            OSError: The store cannot be written to; what it holds stays readable.

        Warns:
            IncompleteStudyWarning: Rows failed; :meth:`failures` lists them.

        Example:
            >>> study = Study(lambda cell, seed: {"x": seed % cell["k"]}, {"k": [2, 3]}, replicates=4)
            >>> study.run(shard="1/2").status()["missing"].sum(), study.run().status()["missing"].sum()
            (np.int64(4), np.int64(0))
        """
        where = "Study.run"
        validation.choice(where, "backend", backend, BACKENDS)
        jobs = workers(where, n_jobs, backend)
        limit = None if timeout is None else float(validation.positive(where, "timeout", timeout))
        part = None if shard is None else shard_of(where, shard)
        self._rows.refresh()
        units = list(self._units(part, retry))
        if not units:
            return self
        self._rows.prepare()
        units = by_cost(units, self._rows, self.cost)
        total = sum(len(unit.wanted) for unit in units)
        failed = 0
        with Progress(total, "replicates", progress) as bar:

            def update(rows: Sequence[Row]) -> None:
                nonlocal failed
                failed += sum(row.status != COMPLETE for row in rows)
                bar.update(len(rows), **({"failed": failed} if failed else {}))

            job = Job(self.simulate, self.simulate_batch, limit, None, this_process(), self._entries())
            Runner(self._rows, job, self._seeds, n_jobs=jobs, backend=backend, update=update).run(units)
        if failed:
            warnings.warn(
                f"{where}: {failed} of {total} replicates have no result; study.failures() says which and why",
                IncompleteStudyWarning,
                stacklevel=user_level(),
            )
        return self

    @property
    def _block_size(self) -> int:
        return 1 if self.simulate_batch is None else self.batch_size

    def _units(self, shard: tuple[int, int] | None, retry: bool) -> Iterator[Unit]:
        """What is to be run, by cell."""
        size = self._block_size
        number = -1
        for i, status in enumerate(self._rows.status):
            open_rows = (status != COMPLETE) if retry else (status == 0)
            for begin in range(0, self.replicates, size):
                number += 1
                if shard is not None and number % shard[1] != shard[0] - 1:
                    continue
                wanted = begin + np.flatnonzero(open_rows[begin : begin + size])
                if len(wanted):
                    yield Unit(i, tuple(range(begin, begin + size)), tuple(wanted.tolist()))

    def _seeds(self, unit: Unit) -> list[int]:
        return naming.seeds_of(self.seed, self.cells[unit.cell], unit.replicates, self.paired)

    def _identities(self) -> list[dict[str, Any]]:
        """What determines the rows of each cell."""
        mode = "single" if self.simulate_batch is None else f"batches of {self.batch_size}"
        common: dict[str, Any] = {"seed": self.seed, "mode": mode}
        if self.paired:
            common["paired"] = list(self.paired)
        if self.version is not None:
            return [{**common, "version": self.version} for _ in self.cells]
        by_cell: dict[str, Any] = {}
        fns: dict[str, Any] = {"simulate": self.simulate, "simulate_batch": self.simulate_batch}
        for name, fn in fns.items():
            if hasattr(fn, "identity"):
                by_cell[name] = fn.identity
            elif fn is not None:
                common[name] = fingerprint("Study", fn)
        return [{**common, **{name: of(dict(cell)) for name, of in by_cell.items()}} for cell in self.cells]

    def _entries(self) -> str:
        """What workers have to have: the fingerprints of functions that have no other identity."""
        fns: dict[str, Any] = {"simulate": self.simulate, "simulate_batch": self.simulate_batch}
        own = [n for n, fn in fns.items() if fn is not None and not hasattr(fn, "identity") and self.version is None]
        return json.dumps({n: fingerprint("Study", fns[n]) for n in own})

    # Looking

    def table(self) -> Table:
        """All rows that are there, by cell and replicate.

        Returns:
            Columns: the axes; replicate; seed; status (complete, failed, timeout, killed); the outputs, NaN where a row
            is not complete; seconds; warnings; error.

        Example:
            >>> study = Study(lambda cell, seed: {"x": seed % cell["k"]}, {"k": [2, 3]}, replicates=4)
            >>> study.run().table().where(k=3).names
            ('k', 'replicate', 'seed', 'status', 'x', 'seconds', 'warnings', 'error')
        """
        self._rows.refresh()
        rows = self._rows
        at, replicate = np.nonzero(rows.status)
        columns: dict[str, Any] = {a: np.asarray([c[a] for c in self.cells])[at] for a in self.axes}
        columns["replicate"] = replicate.astype(np.int64)
        columns["seed"] = np.asarray(self._all_seeds(at, replicate), dtype=np.int64)
        columns["status"] = np.asarray(STATUS)[rows.status[at, replicate]]
        for j, output in enumerate(rows.outputs or []):
            columns[output] = rows.values[at, replicate, j]
        columns["seconds"] = rows.seconds[at, replicate]
        texts = [rows.texts.get(key, ("", "")) for key in zip(at.tolist(), replicate.tolist(), strict=True)]
        columns["warnings"] = np.asarray([warned for _, warned in texts], dtype=str)
        columns["error"] = np.asarray([error for error, _ in texts], dtype=str)
        return Table(columns)

    def digest(self) -> str:
        """A hash of the table: the same for the same results, however they came about.

        Times, warnings and the texts of errors are left out; everything else counts, to the last bit.

        Example:
            >>> study = Study(lambda cell, seed: {"x": seed % cell["k"]}, {"k": [2, 3]}, replicates=4)
            >>> study.run().digest() == Study(study.simulate, {"k": [2, 3]}, replicates=4).run().digest()
            True
        """
        return self.table().digest(exclude=("seconds", "warnings", "error"))

    def _all_seeds(self, at: np.ndarray, replicate: np.ndarray) -> list[int]:
        found: list[int] = []
        for i in np.unique(at):
            found += naming.seeds_of(self.seed, self.cells[i], replicate[at == i].tolist(), self.paired)
        return found

    def status(self) -> Table:
        """How far every cell is.

        Returns:
            One row a cell: the axes; replicates; complete, failed, timeout, killed and missing rows; mean seconds.

        Example:
            >>> study = Study(lambda cell, seed: {"x": seed % cell["k"]}, {"k": [2, 3]}, replicates=4)
            >>> study.status()["missing"]
            array([4, 4])
        """
        self._rows.refresh()
        status = self._rows.status
        columns: dict[str, Any] = {a: np.asarray([c[a] for c in self.cells]) for a in self.axes}
        columns["replicates"] = np.full(len(self.cells), self.replicates)
        for code, name in (*list(enumerate(STATUS))[1:], (0, STATUS[0])):
            columns[name] = (status == code).sum(1)
        complete = status == COMPLETE
        spent = np.where(complete, self._rows.seconds, 0.0).sum(1)
        columns["seconds"] = np.where(complete.any(1), spent / np.maximum(complete.sum(1), 1), np.nan)
        return Table(columns)

    def summary(self, measures: Sequence[Any] | None = None) -> Table:
        """Performance measures of every cell, each with its Monte Carlo standard error.

        Args:
            measures: Such as ``Mean("loss")`` or ``Coverage("covered")``; None: mean and median of every output.

        Returns:
            As :func:`summarise`.

        Example:
            >>> study = Study(lambda cell, seed: {"x": seed % cell["k"]}, {"k": [2, 3]}, replicates=4)
            >>> study.run().summary()["measure"][:2].tolist()
            ['mean x', 'median x']
        """
        return summarise(self.table(), measures, axes=self.axes, cells=self.cells)

    def failures(self) -> Table:
        """Rows without a result by cell, and why; as :func:`failures`.

        Example:
            >>> study = Study(lambda cell, seed: {"x": seed % cell["k"]}, {"k": [2, 3]}, replicates=4)
            >>> study.run().failures()["num_failed"].tolist()
            [0, 0]
        """
        return failures(self.table(), axes=self.axes, cells=self.cells)

    def replay(self, cell: Mapping[str, Any] | str, replicate: int) -> Replay:
        """Run one replicate again, here, and compare it with the store.

        In a study with blocks its block is run again. An exception of the simulation is a failed row, as in a run.

        Args:
            cell: The cell, or its name such as ``"n=1000,k=3"``.
            replicate: The number of the replicate.

        Returns:
            What came out, and whether it is bit-equal to what the store has.

        Raises:
            DomainError: There is no such cell or replicate.

        Example:
            >>> study = Study(lambda cell, seed: {"x": seed % cell["k"]}, {"k": [2, 3]}, replicates=4)
            >>> study.run().replay("k=3", 2).equal
            True
        """
        where = "Study.replay"
        if isinstance(cell, str):
            cell = naming.named_cell(where, cell, self.cells)
        elif not isinstance(cell, Mapping):
            raise DomainError(f"{where}: cell must be a mapping such as {self.cells[0]!r}, got {cell!r}")
        else:
            cell = naming.find_cell(where, cell, self.cells)
        i = self.cells.index(cell)
        if isinstance(replicate, bool) or not isinstance(replicate, Integral) or not 0 <= replicate < self.replicates:
            raise DomainError(f"{where}: replicate must be from 0 to {self.replicates - 1}, got {replicate!r}")
        replicate = int(replicate)
        self._rows.refresh()
        size = 1 if self._rows.alone[i, replicate] else self._block_size
        begin = replicate - replicate % size
        unit = Unit(i, tuple(range(begin, begin + size)), (replicate,))
        job = Job(self.simulate, self.simulate_batch, None, None, this_process())
        with single_thread():
            row = run_unit(job, unit, cell, self._seeds(unit))[0]
        stored = None
        if self._rows.status[i, replicate] == COMPLETE:
            stored = dict(zip(self._rows.outputs or [], self._rows.values[i, replicate].tolist(), strict=True))
        return Replay(
            cell=dict(cell), replicate=replicate, seed=naming.seed_of(self.seed, cell, replicate, self.paired),
            status=STATUS[row.status], values=row.values, error=row.error, stored=stored,
            equal=None if stored is None else same_bits(stored, row.values),
        )  # fmt: skip
