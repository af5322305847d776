"""Evaluating objectives: one after the other, or side by side with a time limit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .trials import Trial

Objective = Callable[..., Any]


@dataclass
class Outcome:
    """What an evaluation gave.

    Args:
        values: Numbers by outcome; empty where it failed.
        sems: Standard errors, where the objective gave them.
        error: Why it failed.
    """

    values: dict[str, float] = field(default_factory=dict)
    sems: dict[str, float] = field(default_factory=dict)
    error: str = ""


def evaluate(
    objective: Objective,
    trials: Sequence[Trial],
    outcomes: Sequence[str],
    *,
    n_jobs: int = 1,
    timeout: float | None = None,
    begin: Callable[[Trial], None],
) -> Iterator[tuple[Trial, Outcome]]:
    """Evaluate trials, and give each with its outcome as it comes.

    Args:
        objective: Called with the parameters by name. Returns the target; ``(value, sem)``; or, for several
            outcomes, a mapping from names to either. Arrays and tensors of one element are numbers.
        trials: The trials.
        outcomes: Names of what is measured.
        n_jobs: How many are evaluated at once, in processes of joblib's loky where more than one; then the
            objective must be a function that can be pickled by cloudpickle (nearly all can).
        timeout: Seconds after which an evaluation has failed; its process is killed. None: as long as it takes.
        begin: Called with every trial when its evaluation begins.
    """
    if n_jobs == 1 and timeout is None:
        for trial in trials:
            begin(trial)
            yield trial, _call(objective, trial.parameters, tuple(outcomes))
    else:
        yield from _side_by_side(objective, list(trials), tuple(outcomes), n_jobs, timeout, begin)


def _side_by_side(
    objective: Objective, waiting: list[Trial], outcomes: tuple[str, ...], n_jobs: int, timeout: float | None,
    begin: Callable[[Trial], None],
) -> Iterator[tuple[Trial, Outcome]]:  # fmt: skip
    from concurrent.futures import FIRST_COMPLETED, wait

    from joblib.externals.loky import get_reusable_executor

    executor: Any = None
    running: dict[Any, tuple[Trial, float]] = {}
    again = {trial.number: 1 for trial in waiting}  # a crashed neighbour takes others with it: those get a second try
    try:
        while waiting or running:
            if executor is None:
                executor = get_reusable_executor(max_workers=n_jobs, timeout=300)
                # Processes that have to start, and to import what the objective needs, are not late for that.
                wait([executor.submit(_warm_up, objective) for _ in range(n_jobs)])
            while waiting and len(running) < n_jobs:
                trial = waiting.pop(0)
                begin(trial)
                future = executor.submit(_call, objective, dict(trial.parameters), outcomes)
                running[future] = (trial, math.inf if timeout is None else time.monotonic() + timeout)
            left = min(deadline for _, deadline in running.values()) - time.monotonic()
            done, _ = wait(running, timeout=None if left == math.inf else max(0.0, left), return_when=FIRST_COMPLETED)
            for future in done:
                trial, _ = running.pop(future)
                error = future.exception()
                if error is None:
                    yield trial, future.result()
                elif _is_crash(error) and again[trial.number]:
                    executor = None
                    again[trial.number] -= 1
                    waiting.insert(0, trial)
                else:
                    yield trial, Outcome(error=f"{type(error).__name__}: {error}")
            late = [f for f, (_, deadline) in running.items() if time.monotonic() >= deadline and not f.done()]
            if late:
                # A process cannot be asked to stop: all are killed, and what was not late begins again.
                executor.shutdown(kill_workers=True, wait=True)
                executor = None
                for future, (trial, _) in list(running.items()):
                    if future in late:
                        yield trial, Outcome(error=f"no result within {timeout:g} s")
                    elif future.done() and future.exception() is None:
                        yield trial, future.result()
                    else:
                        waiting.insert(0, trial)
                running.clear()
    finally:
        if running and executor is not None:
            executor.shutdown(kill_workers=True, wait=True)


def _warm_up(objective: Objective) -> None:
    time.sleep(0.1)  # so that each process gets one of these


def _is_crash(error: BaseException) -> bool:
    from joblib.externals.loky.process_executor import BrokenProcessPool

    return isinstance(error, BrokenProcessPool)


def _call(objective: Objective, parameters: Mapping[str, Any], outcomes: tuple[str, ...]) -> Outcome:
    try:
        result = objective(**parameters)
    except (Exception, SystemExit) as error:  # whatever the user's code raises is a failed trial
        return Outcome(error=f"{type(error).__name__}: {error}")
    return read(result, outcomes)


def read(result: Any, outcomes: Sequence[str]) -> Outcome:
    """What an objective returned, as numbers; anything else is an error in words."""
    if isinstance(result, Mapping):
        found = dict(result)
        missing = [name for name in outcomes if name not in found]
        if missing:
            return Outcome(error=f"the objective returned no {missing[0]!r}: {result!r}"[:500])
    elif len(outcomes) == 1:
        found = {outcomes[0]: result}
    else:
        return Outcome(error=f"the objective must return a mapping with {', '.join(outcomes)}, got {result!r}"[:500])
    outcome = Outcome()
    for name in outcomes:
        value = found[name]
        value, sem = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
        number, error = as_number(value), None if sem is None else as_number(sem)
        if number is None or (sem is not None and (error is None or error < 0)):
            of = f" for {name}" if len(outcomes) > 1 else ""
            why = ", a truth value, which is no measurement" if isinstance(_item(value), bool) else ""
            return Outcome(error=f"the objective returned {found[name]!r}{of}{why}")
        outcome.values[name] = number
        if error is not None:
            outcome.sems[name] = error
    return outcome


def _item(value: Any) -> Any:
    """What is in an array, tensor or scalar of numpy; of several elements, or of anything else, the value itself."""
    try:
        return value.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several elements
        return value


def as_number(value: Any) -> float | None:
    """A finite float, or None; the one element of an array or tensor counts as a number, a truth value does not."""
    value = _item(value)
    if isinstance(value, (str, bytes, bool)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
