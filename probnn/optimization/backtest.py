"""Replaying a finished table: how soon would each surrogate have found the good experiments?"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import random as rnd
from .. import validation
from ..errors import DomainError, SerializationError
from .loop import BayesianOptimization
from .pool import Pool
from .search import key_of
from .space import Space
from .table import write_all
from .trials import Trial

NUM_INITIAL = 5  # random experiments to begin with
MOST = 100  # experiments of a replay, at most
SHARES = (0.1, 0.25)  # of the pool
TOP = 0.05
MIN_POOL = 20  # settings: a twentieth of them is the least there is to find
COLUMNS = ("table", "surrogate", "seed", "picks")
RANDOM = "random"
FLATTERY = (
    "A finished table flatters every method: it holds only settings that somebody chose to try, the best of them is "
    "there to be found, and no suggestion can fail in a way the table does not show. Expect less on open ground."
)


@dataclass(frozen=True, eq=False)
class FinishedTable:
    """The pool of a replay: the settings of a table with what was measured there.

    Args:
        space: The parameters.
        target: The outcome.
        maximize: Whether more of it is better.
        settings: The distinct settings.
        outcomes: The mean of the measurements at each, None where all failed.
        num_left_out: Rows that cannot be set in the space, or have no outcome.
    """

    space: Space
    target: str
    maximize: bool
    settings: list[dict[str, Any]]
    outcomes: list[float | None]
    num_left_out: int = 0
    top: frozenset[int] = field(init=False)  #: Indices of the best twentieth of the settings, and of those as good.
    num_top: int = field(init=False)  #: A twentieth of the settings.
    best: frozenset[int] = field(init=False)  #: Indices of the settings with the best value.

    def __post_init__(self) -> None:
        sign = 1.0 if self.maximize else -1.0
        able = [i for i, value in enumerate(self.outcomes) if value is not None]
        if len(able) < MIN_POOL:
            raise DomainError(
                f"backtest: needs at least {MIN_POOL} different settings with an outcome within the space, got "
                f"{len(able)}"
            )
        score = {i: sign * float(self.outcomes[i] or 0.0) for i in able}
        count = math.ceil(TOP * len(able))
        least = sorted(score.values(), reverse=True)[count - 1]
        object.__setattr__(self, "num_top", count)
        object.__setattr__(self, "top", frozenset(i for i in able if score[i] >= least))
        object.__setattr__(self, "best", frozenset(i for i in able if score[i] == max(score.values())))

    @classmethod
    def of(cls, trials: Sequence[Trial], space: Space, target: str, *, maximize: bool = True) -> FinishedTable:
        """The pool of the trials of a table; measurements at one setting are averaged.

        Args:
            trials: What :func:`probnn.optimization.rows.parse_trials` gave.
            space: The parameters; rows that cannot be set in it are left out.
            target: The outcome.
            maximize: Whether more of it is better.

        Raises:
            DomainError: Fewer than 20 settings are left.
        """
        values: dict[Any, list[float]] = {}
        settings: dict[Any, dict[str, Any]] = {}
        left_out = 0
        for trial in trials:
            value = trial.values.get(target) if trial.status == "complete" else None
            if (value is None and trial.status != "failed") or space.violations(trial.parameters):
                left_out += 1
                continue
            key = key_of(space, trial.parameters)
            settings.setdefault(key, dict(trial.parameters))
            values.setdefault(key, []).extend([] if value is None else [value])
        means = [statistics.fmean(found) if found else None for found in values.values()]
        return cls(space, target, maximize, list(settings.values()), means, left_out)

    def __len__(self) -> int:
        return len(self.settings)

    @property
    def budgets(self) -> tuple[int, ...]:
        """Experiments after which the share of the best is looked at: 10 % and 25 % of the pool, at most 100."""
        return tuple(min(MOST, max(NUM_INITIAL, round(share * len(self)))) for share in SHARES)

    @property
    def digest(self) -> str:
        """Few letters that differ between tables, targets and directions."""
        content = repr((self.space, self.target, self.maximize, self.settings, self.outcomes, NUM_INITIAL, MOST))
        return hashlib.sha256(content.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Replay:
    """The experiments that one surrogate chose, in order.

    Args:
        surrogate: Its name.
        seed: Of the first experiments and of the surrogate.
        picks: Indices of settings of the table.
    """

    surrogate: str
    seed: int
    picks: tuple[int, ...]

    def share(self, table: FinishedTable, num_experiments: int) -> float:
        """The share of the best twentieth that was found after some experiments."""
        return min(len(table.top.intersection(self.picks[:num_experiments])), table.num_top) / table.num_top

    def to_best(self, table: FinishedTable) -> int | None:
        """How many experiments it took to the best setting; None where it was not found."""
        return next((k for k, i in enumerate(self.picks, 1) if i in table.best), None)


def replay(table: FinishedTable, surrogate: str, seed: int) -> Replay:
    """Choose among the rows of a finished table: five at random, then one at a time.

    The first five depend on the seed alone, so that surrogates can be compared seed by seed.

    Args:
        table: The pool.
        surrogate: Name of a surrogate, or ``"random"``.
        seed: Of the random experiments and of the fits.
    """
    rnd.check_seed("replay", seed)
    n, budget = len(table), max(table.budgets)
    order = torch.randperm(n, generator=rnd.generator_from(seed)).tolist()
    if surrogate == RANDOM:
        return Replay(surrogate, seed, tuple(order[:budget]))
    up, down = (table.target, None) if table.maximize else (None, table.target)
    index = {key_of(table.space, setting): i for i, setting in enumerate(table.settings)}
    bo = BayesianOptimization(
        table.space, maximize=up, minimize=down, surrogate=surrogate, seed=seed,
        pool=Pool(table.space, table.settings), num_initial=0,
    )  # fmt: skip
    picks = order[:NUM_INITIAL]
    for i in picks:
        bo.trials.append(_told(table, bo.next_number, i, "initial"))
    while len(picks) < budget:
        [trial] = bo.ask()
        picks.append(index[key_of(table.space, trial.parameters)])
        told = _told(table, trial.number, picks[-1], trial.source)
        if told.status == "complete":
            bo.tell(trial, told.values)
        else:
            bo.tell(trial, status="failed")
    return Replay(surrogate, seed, tuple(picks))


def _told(table: FinishedTable, number: int, i: int, source: str) -> Trial:
    value = table.outcomes[i]
    if value is None:
        return Trial(number, dict(table.settings[i]), source, "failed")
    return Trial(number, dict(table.settings[i]), source, "complete", {table.target: value})


def backtest(
    table: FinishedTable,
    surrogates: Sequence[str],
    num_seeds: int = 3,
    *,
    path: str | os.PathLike[str] | None = None,
    report: Callable[[Replay], None] = lambda replay: None,
) -> list[Replay]:
    """Replay a table by every surrogate and by random search, with seeds 0, 1, ...

    Args:
        table: The pool.
        surrogates: Names; random search is added.
        num_seeds: How many seeds.
        path: A CSV file that keeps finished replays, each written to the disk as it is done; those in it are not
            done again.
        report: Called with every replay, those from the file included.

    Raises:
        DomainError: A name is unknown, or the file is of another table.
        SerializationError: The file cannot be read or written.

    Example:
        >>> from probnn.optimization import Real, Space
        >>> trials = [Trial(i, {"x": i / 29}, "user", "complete", {"y": -(i - 20) ** 2}) for i in range(30)]
        >>> table = FinishedTable.of(trials, Space(x=Real(0, 1)), "y")
        >>> gp, by_chance = backtest(table, ["gp"], 1)
        >>> len(gp.picks), gp.surrogate, by_chance.surrogate, gp.picks[:5] == by_chance.picks[:5]
        (8, 'gp', 'random', True)
    """
    from ..surrogates import get_surrogate

    validation.positive_int("backtest", "num_seeds", num_seeds)
    names = list(dict.fromkeys([*(s for s in surrogates if s != RANDOM), RANDOM]))
    for name in names[:-1]:
        get_surrogate(name)
    done = {} if path is None else _read(path, table)
    found = []
    for name in names:
        for seed in range(num_seeds):
            one = done.get((name, seed))
            if one is None:
                one = replay(table, name, seed)
                if path is not None:
                    _append(path, table, one)
            found.append(one)
            report(one)
    return found


def _read(path: str | os.PathLike[str], table: FinishedTable) -> dict[tuple[str, int], Replay]:
    """The finished replays of a file, without a last line that a killed process could not finish."""
    name = os.fspath(path)
    try:
        if not os.path.exists(name):
            return {}
        with open(name, "rb+") as file:
            data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                file.truncate(len(whole))
    except OSError as error:
        raise SerializationError(f"{name}: cannot be read and written ({error.strerror})") from error
    rows = list(csv.reader(io.StringIO(whole.decode("utf-8", "replace"), newline="")))
    if not rows:
        return {}
    found = {}
    for number, row in enumerate(rows, 1):
        if number == 1:
            if tuple(row) != COLUMNS:
                raise DomainError(f"{name}, row 1: expected the columns {', '.join(COLUMNS)}; choose another folder")
            continue
        try:
            digest, surrogate, seed, picks = row
            one = Replay(surrogate, int(seed), tuple(map(int, picks.split())))
            sound = len(one.picks) == max(table.budgets) and all(0 <= i < len(table) for i in one.picks)
        except ValueError:
            raise DomainError(f"{name}, row {number}: is not a replay; delete the row and begin again") from None
        if digest != table.digest or not sound:
            raise DomainError(
                f"{name}, row {number}: is a replay of another table, space or target; choose another folder or "
                "delete the file"
            )
        found[surrogate, one.seed] = one
    return found


def _append(path: str | os.PathLike[str], table: FinishedTable, one: Replay) -> None:
    """Add a replay to the file and wait until it is on the disk."""
    name = os.fspath(path)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    try:
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        try:
            if os.fstat(handle).st_size == 0:
                writer.writerow(COLUMNS)
            writer.writerow([table.digest, one.surrogate, one.seed, " ".join(map(str, one.picks))])
            write_all(handle, text.getvalue().encode())
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise SerializationError(f"{name}: cannot be written ({error.strerror})") from error


def summary(table: FinishedTable, replays: Sequence[Replay]) -> list[dict[str, Any]]:
    """One row a surrogate: shares of the best twentieth and experiments to the best, as means over seeds.

    Returns:
        Dictionaries with ``surrogate``, ``seeds``, ``share_10`` and ``share_25`` (after 10 % and 25 % of the pool,
        at most 100 experiments), ``found_best`` (seeds that found the best) and ``to_best`` (the median number of
        experiments to it, None where half the seeds or more did not find it).
    """
    rows = []
    for name in dict.fromkeys(r.surrogate for r in replays):
        own = [r for r in replays if r.surrogate == name]
        early, late = (statistics.fmean(r.share(table, budget) for r in own) for budget in table.budgets)
        to_best = [n for n in (r.to_best(table) for r in own) if n is not None]
        median = statistics.median([*to_best, *[math.inf] * (len(own) - len(to_best))])
        rows.append(
            {"surrogate": name, "seeds": len(own), "share_10": early, "share_25": late, "found_best": len(to_best),
             "to_best": None if math.isinf(median) else median}
        )  # fmt: skip
    return rows


def sentence(table: FinishedTable, replays: Sequence[Replay]) -> str:
    """What came out, in one plain sentence.

    A surrogate counts as better than random search where the mean of the differences seed by seed, in the share
    found after 25 %, passes a one-sided t test at 5 %, divided by the number of surrogates, of which it is the best.
    """
    budget, total = max(table.budgets), len(table)
    from scipy.stats import t

    rows = summary(table, replays)
    by_chance = next(row for row in rows if row["surrogate"] == RANDOM)
    others = [row for row in rows if row["surrogate"] != RANDOM]
    if not others:
        return f"Random search found {_percent(by_chance)} of the best 5 % after {budget} of {total} experiments."
    best = max(others, key=lambda row: (row["share_25"], row["share_10"]))
    chance = {r.seed: r.share(table, budget) for r in replays if r.surrogate == RANDOM}
    lead = [r.share(table, budget) - chance[r.seed] for r in replays if r.surrogate == best["surrogate"]]
    error = statistics.stdev(lead) / math.sqrt(len(lead)) if len(lead) > 1 else math.inf
    found = (
        f"{best['surrogate']} found {_percent(best)} of the best 5 % ({table.num_top} of {total} settings) after "
        f"{budget} experiments, random search {_percent(by_chance)}"
    )
    if len(lead) > 1 and statistics.fmean(lead) > float(t.ppf(1 - 0.05 / len(others), len(lead) - 1)) * error:
        return f"On this table {found}."
    more = "more seeds (--seeds) may tell them apart" if len(lead) < 10 else "there may be little to learn here"
    return f"On this table no surrogate is clearly better than random search: {found}; {more}."


def _percent(row: Mapping[str, Any]) -> str:
    return f"{100 * row['share_25']:.0f} %"


def plot_backtest(table: FinishedTable, replays: Sequence[Replay], path: str | os.PathLike[str]) -> None:
    """Draw the share of the best twentieth against the number of experiments, means over seeds, to a file.

    Args:
        table: The pool.
        replays: The replays.
        path: The figure, such as ``backtest.png``.
    """
    from matplotlib.figure import Figure  # no global state and no window

    from ..io import replacing  # here `io` is Python's

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    ax = figure.add_subplot()
    steps = range(max(table.budgets) + 1)
    for name in dict.fromkeys(r.surrogate for r in replays):
        own = [r for r in replays if r.surrogate == name]
        means = [statistics.fmean(100 * r.share(table, k) for r in own) for k in steps]
        ax.step(steps, means, where="post", label=name, color="0.6" if name == RANDOM else None)
    for budget in table.budgets:
        ax.axvline(budget, color="0.85", linewidth=0.8, zorder=0)
    ax.set(xlabel="experiments", ylabel="share of the best 5 % found (%)", ylim=(-2, 102), xlim=(0, max(steps)))
    ax.legend(frameon=False, loc="upper left")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format=os.path.splitext(os.fspath(path))[1].removeprefix(".") or "png")
