"""What a study's run needs around it: a quiet screen, a way to end, and workers."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Terminated(KeyboardInterrupt):
    """A queue asks the process to end."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """End as after Ctrl-C when a queue says that time is up: rows that wait are written."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread: whoever runs it handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def own_screen() -> Iterator[None]:
    """Keep what simulations, workers and compiled libraries print off the screen, and the progress bar on it."""
    streams: list[Any] = [sys.stdout, sys.stderr]
    if None in streams or streams != [sys.__stdout__, sys.__stderr__]:
        yield
        return
    for stream in streams:
        stream.flush()
    screens = [os.dup(stream.fileno()) for stream in streams]
    try:
        with (
            open(os.devnull, "w") as nowhere,
            open(screens[1], "w", encoding=streams[1].encoding, errors=streams[1].errors, closefd=False) as ours,
        ):
            for stream in streams:
                os.dup2(nowhere.fileno(), stream.fileno())
            sys.stdout, sys.stderr = nowhere, ours
            # loky's thread stumbles over work that was taken back when a run ends early.
            threads, threading.excepthook = threading.excepthook, lambda arguments: None
            try:
                yield
            finally:
                threading.excepthook = threads
                sys.stdout, sys.stderr = streams
    finally:
        for screen, stream in zip(screens, streams, strict=True):
            os.dup2(screen, stream.fileno())
            os.close(screen)


@contextlib.contextmanager
def workers(options: argparse.Namespace) -> Iterator[None]:
    """Keep workers quiet, and for dask have a client."""
    from ..errors import DomainError, UnsupportedError

    if options.scheduler and options.backend != "dask":
        raise DomainError("--scheduler: is for --backend dask")
    before = os.environ.get("PYTHONWARNINGS")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of libraries; a simulation's own are kept with its rows
    try:
        if options.backend != "dask":
            yield
            return
        try:
            from distributed import Client
        except ImportError:
            raise UnsupportedError("--backend dask: needs dask[distributed], pip install 'probnn[dask]'") from None
        from joblib import cpu_count

        count = cpu_count() if options.n_jobs in (None, -1) else options.n_jobs
        local = {"n_workers": count, "threads_per_worker": 1, "dashboard_address": None}
        try:
            client = Client(options.scheduler) if options.scheduler else Client(**local)
        except (OSError, ValueError) as error:
            raise DomainError(f"--scheduler: there is none at {options.scheduler}: {error}") from None
        with client:
            yield
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
