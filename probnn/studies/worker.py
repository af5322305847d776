"""What happens in a worker: one replicate, or one block of them, with its time limit and its threads."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import math
import numbers
import os
import random
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from ..errors import DomainError
from .cells import RESERVED, Cell
from .identity import differences, fingerprint
from .parts import COMPLETE, FAILED, TIMEOUT, Row

# A replicate that does not answer its time limit (it is in compiled code) ends its process after this much more.
GRACE = 5.0
_LONGEST = 2000  # characters of an error's text


@dataclass(frozen=True)
class Unit:
    """What is run in one piece: a replicate, or a block of replicates of a cell.

    Args:
        cell: Index of the cell.
        replicates: Numbers of the replicates, those not asked for too.
        wanted: Which of them are kept.
    """

    cell: int
    replicates: tuple[int, ...]
    wanted: tuple[int, ...]

    @property
    def name(self) -> str:
        """A short text that only this unit has."""
        return f"{self.cell} {self.replicates[0]} {len(self.replicates)}"


@dataclass(frozen=True)
class Job:
    """What workers need beside the unit.

    Args:
        simulate: Runs one replicate, ``(cell, seed)``; None where only batches are run.
        simulate_batch: Runs a block, ``(cell, seeds)``.
        timeout: Seconds a replicate may take.
        notes: Folder in which a worker notes what it runs, so that it is known should it die.
        parent: Process that may not be ended.
        entries: Fingerprints of the functions in this process, as JSON; empty where others answer for them.
    """

    simulate: Callable[[Cell, int], Mapping[str, Any]] | None
    simulate_batch: Callable[[Cell, list[int]], Mapping[str, Any]] | None
    timeout: float | None
    notes: str | None
    parent: str
    entries: str = ""


def this_process() -> str:
    """A name of this process, on this machine."""
    return f"{socket.gethostname()}-{os.getpid()}"


class Late(BaseException):
    """The time limit; no Exception, so that a simulation that catches those does not catch it."""


# One replicate at a time in a process, whatever the backend's threads: the time limit, the global streams of random
# numbers and the warnings are the process's.
_one = threading.Lock()


def run_unit(job: Job, unit: Unit, cell: Cell, seeds: list[int]) -> list[Row]:
    """Run a unit, and give the rows that are wanted."""
    with _one:
        if this_process() != job.parent:
            _single_thread()
        _check_code(job)
        if job.simulate_batch is None or len(unit.replicates) == 1 and job.simulate is not None:
            return [
                _run(job, unit, cell, r, s) for r, s in zip(unit.replicates, seeds, strict=True) if r in unit.wanted
            ]
        rows = _block(job, unit, cell, seeds)
        if rows is None and job.timeout is not None:  # a machine that was busy is no reason for other digits
            rows = _block(job, unit, cell, seeds)
        if rows is None:  # one of them spoils it for all: each by itself
            pairs = zip(unit.replicates, seeds, strict=True)
            rows = [replace(_run(job, unit, cell, r, s), alone=True) for r, s in pairs if r in unit.wanted]
        return rows


_limits: list[Any] = []  # of threads, once set in a worker


def _single_thread() -> None:
    """One thread for the arithmetic of this worker, for good."""
    if not _limits:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = "1"  # for libraries that the simulation is yet to load
        _limits.append(threadpool_limits(1))
        torch.set_num_threads(1)


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """One thread for the arithmetic, of torch and of BLAS libraries that are loaded: last digits depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


_checked: set[str] = set()


def _check_code(job: Job) -> None:
    """Once in every worker: that it has the code which the rows will say they were made with.

    Workers import modules by name. They may be older than what the user has reloaded, newer than what was imported
    before the file was edited, or know nothing of what was assigned to a module since.
    """
    if not job.entries or job.entries in _checked or this_process() == job.parent:
        return
    fns = {"simulate": job.simulate, "simulate_batch": job.simulate_batch}
    there = json.loads(job.entries)
    now = {name: fingerprint("Study.run", fns[name]) for name in there}
    changed = differences(there, now)
    if changed:
        raise DomainError(
            f"Study.run: workers have other code than this process: {'; '.join(changed[:5])} there. Save the file that "
            "the simulation is in, and make the study anew in a new process; what is assigned to a module does not "
            "reach workers at all"
        )
    _checked.add(job.entries)


def _block(job: Job, unit: Unit, cell: Cell, seeds: list[int]) -> list[Row] | None:
    simulate: Any = job.simulate_batch
    size = len(seeds)
    kept = _Kept(job, unit, size)
    values: dict[str, np.ndarray] = {}
    with kept.watch(seeds[0]):
        values = _arrays(simulate(dict(cell), list(seeds)), size)
    if kept.status != COMPLETE:
        return None if size > 1 else [kept.row(unit.cell, unit.replicates[0])]
    each = kept.seconds / size
    return [
        Row(unit.cell, r, COMPLETE, {k: float(v[i]) for k, v in values.items()}, each, "", kept.warnings)
        for i, r in enumerate(unit.replicates)
        if r in unit.wanted
    ]


def _run(job: Job, unit: Unit, cell: Cell, replicate: int, seed: int) -> Row:
    kept = _Kept(job, unit, 1)
    simulate, batch = job.simulate, job.simulate_batch
    values: dict[str, float] = {}
    with kept.watch(seed):
        if simulate is not None:
            values = _numbers(simulate(dict(cell), seed))
        elif batch is not None:
            values = {k: float(v[0]) for k, v in _arrays(batch(dict(cell), [seed]), 1).items()}
    return kept.row(unit.cell, replicate, values)


@dataclass
class _Kept:
    """What came of a call: its status, time, error and warnings."""

    job: Job
    unit: Unit
    size: int
    status: int = COMPLETE
    error: str = ""
    warnings: str = ""
    seconds: float = 0.0

    @contextlib.contextmanager
    def watch(self, seed: int) -> Iterator[None]:
        limit = None if self.job.timeout is None else self.job.timeout * self.size
        keep = this_process() == self.job.parent
        with _noted(self.job, self.unit), _streams(seed, keep), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            started = time.perf_counter()
            late = False
            try:
                with _limited(limit, self.job):
                    yield
            except Late:
                late = True
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # whatever the user's code raises is a failed row
                self.status, self.error = FAILED, _text(error)
            self.seconds = time.perf_counter() - started
            if late or (limit is not None and self.seconds > limit):  # a simulation may have caught what told it so
                self.status = TIMEOUT
                self.error = f"no result within {self.job.timeout:g} s" + (f" x {self.size}" if self.size > 1 else "")
        told = dict.fromkeys(f"{w.category.__name__}: {w.message}" for w in caught)
        self.warnings = " | ".join(told)[:_LONGEST]

    def row(self, cell: int, replicate: int, values: dict[str, float] | None = None) -> Row:
        return Row(cell, replicate, self.status, values or {}, self.seconds, self.error, self.warnings)


def _text(error: BaseException) -> str:
    """An error, and the line of the simulation where it came up."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code, trace.tb_lineno))
        trace = trace.tb_next
    theirs = [(code, line) for code, line in frames if code.co_filename != __file__]
    try:
        words = str(error)
    except Exception:  # an exception that cannot say what it is
        words = "(no words)"
    at = f" ({os.path.basename(theirs[-1][0].co_filename)}:{theirs[-1][1]}, {theirs[-1][0].co_name})" if theirs else ""
    return f"{type(error).__name__}: {words}"[:_LONGEST] + at


def _numbers(result: Any) -> dict[str, float]:
    return {name: _number(name, value) for name, value in _mapping(result).items()}


def _mapping(result: Any) -> Mapping[str, Any]:
    if not isinstance(result, Mapping) or not result:
        raise TypeError(f"the simulation must return a dict of numbers, got {result!r:.200}")
    for name in result:
        if not isinstance(name, str) or not name:
            raise TypeError(f"the simulation must return a dict whose keys are texts, got the key {name!r}")
        if name in RESERVED:
            raise ValueError(f"the simulation must not call an output {name!r}, which is a column of every table")
    return result


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (str, bytes)) and not isinstance(value, numbers.Real):
        item = getattr(value, "item", None)
        if item is not None and math.prod(getattr(value, "shape", (0,))) == 1:
            value = item()
    if not isinstance(value, numbers.Real):
        raise TypeError(f"the simulation must return numbers, but {name} is {value!r:.200}")
    number = float(value)
    if isinstance(value, numbers.Integral) and int(number) != int(value):
        raise ValueError(f"the simulation returned {name} = {value}, too large an integer to be stored exactly")
    return number


def _arrays(result: Any, size: int) -> dict[str, np.ndarray]:
    found = {}
    for name, values in _mapping(result).items():
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"the simulation must return arrays of numbers, but {name} is {values!r:.200}")
        if array.shape != (size,):
            raise ValueError(f"the simulation of {size} seeds must return {size} numbers for {name}, got {array.shape}")
        found[name] = array.astype(float)
        if array.dtype.kind in "iu" and (found[name].astype(object) != array.astype(object)).any():
            raise ValueError(f"the simulation returned {name} with integers too large to be stored exactly")
    return found


@contextlib.contextmanager
def _streams(seed: int, keep: bool) -> Iterator[None]:
    """Seed the global streams too, for simulations that draw from those; and put them back, in the user's process."""
    kept = (random.getstate(), np.random.get_state(), torch.get_rng_state()) if keep else None  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if kept is not None:
            random.setstate(kept[0])
            np.random.set_state(kept[1])  # noqa: NPY002
            torch.set_rng_state(kept[2])


_notes: dict[str, int] = {}  # open files, by folder


@contextlib.contextmanager
def _noted(job: Job, unit: Unit) -> Iterator[None]:
    """Note what is running, for the case that this process dies of it."""
    if job.notes is None:
        yield
        return
    if job.notes not in _notes:
        for handle in _notes.values():
            os.close(handle)
        _notes.clear()
        path = Path(job.notes, this_process())
        try:
            _notes[job.notes] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        except OSError:  # the folder is on another machine: a death here will not be known by its replicate
            _notes[job.notes] = os.open(os.devnull, os.O_WRONLY)
    handle = _notes[job.notes]
    _note(handle, unit.name)
    yield
    _note(handle, "")


def _note(handle: int, text: str) -> None:
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, text.ljust(64).encode())


def running_units(notes: Path) -> dict[str, bool]:
    """Units that workers noted and did not finish; True where the time limit ended the process."""
    found = {}
    for path in notes.iterdir():
        if path.suffix != ".late":
            name = path.read_bytes().decode().strip()
            late = path.with_name(path.name + ".late")
            if name:
                found[name] = late.exists() and late.stat().st_size > 0
    return found


@contextlib.contextmanager
def _limited(seconds: float | None, job: Job) -> Iterator[None]:
    """Raise `Late` after some seconds; end the process where that does not help."""
    if seconds is None:
        yield
        return
    ended = contextlib.ExitStack()
    with ended:
        if job.notes is not None and this_process() != job.parent:
            # A thread of the interpreter's own, which needs no lock: it ends compiled code that never returns.
            path = Path(job.notes, this_process() + ".late") if os.path.isdir(job.notes) else os.devnull
            log = ended.enter_context(open(path, "w"))
            faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=log)
            ended.callback(faulthandler.cancel_dump_traceback_later)
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
            ended.enter_context(_alarm(seconds))
        else:
            ended.enter_context(_interrupt(seconds))
        yield


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, max(seconds, 1.0))  # and again, for code that catches everything
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _interrupt(seconds: float) -> Iterator[None]:
    """Where no signal comes: an exception set from another thread, which Python code meets at its next step."""
    ident = ctypes.c_ulong(threading.get_ident())
    over = threading.Event()

    def wait() -> None:
        if not over.wait(seconds):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Late))

    watcher = threading.Thread(target=wait, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, None)  # too late to matter
