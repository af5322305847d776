"""Running what is missing: joblib's backends, and what to do when a worker dies."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConvergenceError, DomainError, UnsupportedError
from . import _dask
from .cells import Cell, label
from .parts import COMPLETE, FAILED, KILLED, TIMEOUT, Row
from .store import RUNNING, Store
from .worker import Job, Unit, run_unit, running_units, single_thread, this_process

BACKENDS = ("loky", "dask", "ray")

# So many replicates that all fail, and none that did not, are no study.
_HOPELESS = 20

# Seconds without any worker after which a cluster is given up.
_PATIENCE = 600.0
# Seconds of a round where a backend gives its results at the end of a call only.
_ROUND = 5.0

# Gives the seeds of a unit.
Seeds = Callable[[Unit], list[int]]


class Runner:
    """Runs units and puts their rows into the store.

    Args:
        store: Where rows go.
        job: What workers need.
        seeds: Gives the seeds of a unit.
        n_jobs: How many workers; 1: in this process.
        backend: joblib's backend for more than one.
        update: Called with the rows of every unit that ended.
    """

    def __init__(
        self,
        store: Store,
        job: Job,
        seeds: Seeds,
        *,
        n_jobs: int,
        backend: str,
        update: Callable[[Sequence[Row]], None],
    ):
        self.store, self.job, self.seeds = store, job, seeds
        self.n_jobs, self.backend, self.update = n_jobs, backend, update
        self._complete = bool((store.status == COMPLETE).any())
        self._failed: list[Row] = []
        self._hopeless: set[int] = set()  # cells of which every replicate has to fail before the run is given up

    def run(self, units: Iterable[Unit]) -> None:
        """Run units in this order, more or less.

        Raises:
            ConvergenceError: All of the first replicates failed.
            OSError: Rows cannot be written.
        """
        waiting = {unit.name: unit for unit in units}
        self._hopeless = {unit.cell for unit in waiting.values()}
        notes = self.store.path / RUNNING / f"{this_process()}-{uuid.uuid4().hex[:8]}"
        try:
            if self.n_jobs == 1:
                self._here(waiting.values())
            else:
                _sweep(notes.parent)
                notes.mkdir(parents=True)
                if self.backend == "loky":
                    _renew(self.job.entries)
                self.job = replace(self.job, notes=os.fspath(notes))
                with _workers(self.backend):
                    self._elsewhere(waiting, notes)
        finally:
            try:
                self.store.finish()
            finally:
                shutil.rmtree(notes, ignore_errors=True)
                with contextlib.suppress(OSError):
                    notes.parent.rmdir()  # unless another process has notes there

    def _here(self, units: Iterable[Unit]) -> None:
        with single_thread():
            self._run_here(units)

    def _run_here(self, units: Iterable[Unit]) -> None:
        for unit in units:
            self._keep(run_unit(self.job, unit, self._cell(unit), self.seeds(unit)))

    def _elsewhere(self, waiting: dict[str, Unit], notes: Path) -> None:
        while waiting:
            try:
                for name, rows in self._parallel(list(waiting.values()), self.n_jobs):
                    del waiting[name]
                    self._keep(rows)
            except Exception as error:
                if type(error).__name__ == "PicklingError":
                    raise DomainError(
                        f"Study.run: workers need a copy of the simulation, and it cannot be pickled: {error}"
                    ) from error
                if not _is_crash(error):
                    raise
                suspects = {name: late for name, late in running_units(notes).items() if name in waiting}
                if not suspects:
                    raise UnsupportedError(
                        f"Study.run: workers of the backend {self.backend} ended before they ran anything: "
                        f"{_cause(error)}. The simulation must be a function that they can import or unpickle: one of "
                        "a module that is installed or on PYTHONPATH, or one of the script itself. (On other machines: "
                        "the store must be in a folder that they share, or nobody knows what a worker died of)"
                    ) from error
                _forget(notes)
                for name, late in suspects.items():
                    self._keep(self._suspect(waiting.pop(name), late, notes))

    def _suspect(self, unit: Unit, late: bool, notes: Path) -> list[Row]:
        """The rows of a unit that was running when a worker died: run by itself, it dies again or is innocent."""
        single = len(unit.replicates) == 1
        if late and single:
            return [_late(unit, self.job.timeout)]
        rows, error, late = self._by_itself(unit, notes)
        if error is None:
            return rows
        if single:
            return [_late(unit, self.job.timeout) if late else _killed(unit, error)]
        found = []
        for replicate in unit.wanted:  # one of them is the cause
            one = Unit(unit.cell, (replicate,), (replicate,))
            rows, error, late = self._by_itself(one, notes)
            if error is not None:
                rows = [_late(one, self.job.timeout) if late else _killed(one, error)]
            found += [replace(row, alone=True) for row in rows]
        return found

    def _by_itself(self, unit: Unit, notes: Path) -> tuple[list[Row], Exception | None, bool]:
        """The rows of a unit that nothing else runs beside; or how its worker died, and whether of the time limit."""
        try:
            # Two workers, because joblib would run the only task of one in this process.
            return [row for _, found in self._parallel([unit], 2) for row in found], None, False
        except Exception as error:
            if not _is_crash(error):
                raise
            late = any(running_units(notes).values())
            _forget(notes)
            return [], error, late

    def _parallel(self, units: Sequence[Unit], n_jobs: int) -> Iterator[tuple[str, list[Row]]]:
        from joblib import Parallel, delayed, effective_n_jobs

        def tasks(some: Sequence[Unit]) -> Iterator[Any]:
            return (delayed(_task)(self.job, u, self._cell(u), self.seeds(u)) for u in some)

        if self.backend != "ray":
            run = Parallel(n_jobs=n_jobs, return_as="generator_unordered", pre_dispatch="4*n_jobs")
            yield from run(tasks(units))
            return
        # Ray gives its results at the end only: by rounds of some seconds, so that they are kept.
        n_jobs = max(2, effective_n_jobs(n_jobs))  # -1 is all that it has
        begin, size = 0, 2 * n_jobs
        with Parallel(n_jobs=n_jobs) as parallel:  # of one pool: a second would wait for the processors of the first
            while begin < len(units):
                started = time.monotonic()
                yield from parallel(tasks(units[begin : begin + size]))
                begin += size
                size = max(n_jobs, min(4 * size, int(size * _ROUND / (time.monotonic() - started + 1e-3))))

    def _cell(self, unit: Unit) -> Cell:
        return self.store.cells[unit.cell]

    def _keep(self, rows: Sequence[Row]) -> None:
        rows = [self._with_outputs(row) for row in rows]
        for row in rows:
            self.store.add(row)
            self._complete = self._complete or row.status == COMPLETE
            if row.status != COMPLETE and not self._complete:
                self._failed.append(row)
        if not self._complete and len(self._failed) >= _HOPELESS and {r.cell for r in self._failed} == self._hopeless:
            last = self._failed[-1]
            name = label(self.store.cells[last.cell])
            raise ConvergenceError(
                f"Study.run: the first {len(self._failed)} replicates, of all cells, failed, the last one ({name}, "
                f"replicate {last.replicate}) with: {last.error}. Mend the simulation and run again"
            )
        self.update(rows)

    def _with_outputs(self, row: Row) -> Row:
        """A row, failed if its outputs are not those of the rows before."""
        expected = self.store.outputs
        if not row.values or expected is None or set(row.values) == set(expected):
            return row
        got = f"the simulation returned {', '.join(row.values)}, where rows before have {', '.join(expected)}"
        got += "; every replicate must return the same, nan for what is missing"
        return replace(row, status=FAILED, values={}, error=f"KeyError: {got}")


def _task(job: Job, unit: Unit, cell: Cell, seeds: list[int]) -> tuple[str, list[Row]]:
    return unit.name, run_unit(job, unit, cell, seeds)


def _late(unit: Unit, timeout: float | None) -> Row:
    seconds = timeout or 0.0
    why = f"no result within {seconds:g} s, nor an answer to its end: the process was ended"
    return Row(unit.cell, unit.replicates[0], TIMEOUT, seconds=seconds, error=why)


def _killed(unit: Unit, error: Exception) -> Row:
    return Row(
        unit.cell, unit.replicates[0], KILLED,
        error=f"its worker died, twice, the second time with nothing else running ({type(error).__name__})",
    )  # fmt: skip


_last: list[tuple[str, tuple[str, ...]]] = []  # code and path of the workers that joblib keeps


def _renew(entries: str) -> None:
    """New workers where those of the run before have imported other code, or know another path."""
    from joblib.externals.loky import get_reusable_executor

    wanted = entries, tuple(sys.path)
    if _last and _last[0] != wanted:
        get_reusable_executor().shutdown(wait=True)
    _last[:] = [wanted]


def _sweep(folder: Path) -> None:
    """Remove the notes of runs on this machine that were killed."""
    for path in folder.glob("*") if folder.is_dir() else ():
        host, _, rest = path.name.rpartition("-")[0].rpartition("-")
        if host == socket.gethostname() and rest.isdigit() and not _alive(int(rest)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    if os.name != "posix":  # where the signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _forget(notes: Path) -> None:
    """Blank the notes; processes that live write the next ones into the same files."""
    for path in notes.iterdir():
        with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
            file.truncate(0)


def _is_crash(error: Exception) -> bool:
    """Whether an error says that a worker died, in one of the backends."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(
        names & {"BrokenProcessPool", "TerminatedWorkerError", "KilledWorker", "WorkerCrashedError", "RayActorError"}
    )


def _cause(error: BaseException) -> str:
    """The last line of what a worker said, or the error itself."""
    said = str(error.__cause__ or "").strip().strip("\"'").strip().splitlines()
    return said[-1] if said else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _workers(backend: str) -> Iterator[None]:
    """joblib's backend, with one thread for each worker where it can say so."""
    from joblib import parallel_config

    if backend == "dask":
        try:
            from distributed import default_client
        except ImportError as error:
            raise UnsupportedError(
                "Study.run: backend='dask' needs dask[distributed], pip install 'probnn[dask]'"
            ) from error
        try:
            default_client()
        except ValueError as error:
            raise DomainError(
                "Study.run: backend='dask' needs a distributed.Client: make one, with one thread a worker, such as "
                "Client(n_workers=2, threads_per_worker=1)"
            ) from error
        backend = _dask.register()
    if backend == "ray":
        try:
            from ray.util.joblib import register_ray
        except ImportError as error:
            raise UnsupportedError("Study.run: backend='ray' needs ray, pip install 'probnn[ray]'") from error
        register_ray()
    settings: dict[str, Any] = {}
    if backend == "loky":
        settings["inner_max_num_threads"] = 1
    elif backend == _dask.NAME:
        settings["wait_for_workers_timeout"] = _PATIENCE  # those of a queue take their time to come back
    with parallel_config(backend=backend, **settings):
        yield
