"""Replays of finished tables, counted by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from probnn.errors import DomainError
from probnn.optimization import Real, Space, Trial
from probnn.optimization.backtest import FinishedTable, Replay, backtest, replay, sentence, summary

SPACE = Space(x=Real(0, 100))


def trial(number: int, x: float, y: float | None, status: str = "complete") -> Trial:
    return Trial(number, {"x": x}, "user", status, {} if y is None else {"y": y})


def table(n: int = 60, maximize: bool = True) -> FinishedTable:
    sign = 1 if maximize else -1
    rows = [trial(i, float(i), -sign * (i - 40.0) ** 2) for i in range(n)]
    return FinishedTable.of(rows, SPACE, "y", maximize=maximize)


def test_replicates_failures_and_strangers() -> None:
    rows = [trial(i, float(i), float(i)) for i in range(22)]
    rows += [trial(22, 3.0, 100.0), trial(23, 50.0, None, "failed"), trial(24, 3.0, None, "failed")]
    rows += [trial(25, 60.0, None, "pending"), trial(26, 200.0, 9.0)]
    pool = FinishedTable.of(rows, SPACE, "y")
    assert len(pool) == 23
    assert pool.outcomes[3] == (3.0 + 100.0) / 2
    assert pool.outcomes[22] is None
    assert pool.num_left_out == 2
    assert (pool.best, pool.top, pool.num_top) == ({3}, {3, 21}, 2)  # ceil(.05 * 22) of those that worked
    assert FinishedTable.of(rows, SPACE, "y", maximize=False).best == {0}


def test_budgets() -> None:
    assert table(60).budgets == (6, 15)
    assert table(20).budgets == (5, 5)
    many = FinishedTable.of([trial(i, i / 10, float(i)) for i in range(900)], SPACE, "y")
    assert many.budgets == (90, 100)


def test_figures_by_hand() -> None:
    pool = table(60)  # the best are 40, 39 and 41
    assert (pool.best, pool.top, pool.num_top) == ({40}, {39, 40, 41}, 3)
    one = Replay("gp", 0, (1, 2, 41, 3, 4, 5, 40, *range(8, 16)))
    two = Replay("gp", 1, (39, *range(14)))
    assert (one.share(pool, 6), one.share(pool, 15), one.to_best(pool)) == (1 / 3, 2 / 3, 7)
    assert two.to_best(pool) is None
    by_chance = [Replay("random", seed, tuple(range(15))) for seed in (0, 1)]
    rows = summary(pool, [one, two, *by_chance])
    assert rows[0] == {
        "surrogate": "gp", "seeds": 2, "share_10": pytest.approx(1 / 3), "share_25": pytest.approx(1 / 2),
        "found_best": 1, "to_best": None,
    }  # fmt: skip
    assert (rows[1]["to_best"], rows[1]["found_best"]) == (None, 0)
    assert "no surrogate is clearly better" in sentence(pool, [one, two, *by_chance])  # 3 standard errors, 1 degree
    more = [Replay("gp", 2, one.picks), Replay("gp", 3, two.picks)]
    by_chance += [Replay("random", seed, tuple(range(15))) for seed in (2, 3)]
    assert sentence(pool, [one, two, *more, *by_chance]) == (  # .67 and .33 more: mean .5, standard error .1
        "On this table gp found 50 % of the best 5 % (3 of 60 settings) after 15 experiments, random search 0 %."
    )
    assert "no surrogate is clearly better" in sentence(pool, [two, Replay("random", 1, tuple(range(15)))])
    assert sentence(pool, by_chance).startswith("Random search found 0 %")


@pytest.mark.parametrize("maximize", [True, False])
def test_a_model_finds_what_chance_does_not(maximize: bool, seed: int) -> None:
    pool = table(maximize=maximize)
    found, by_chance = replay(pool, "gp", seed), replay(pool, "random", seed)
    assert found.picks[:5] == by_chance.picks[:5]
    assert len(set(found.picks)) == len(found.picks) == 15
    assert found.share(pool, 15) == 1
    assert replay(pool, "gp", seed) == found


def test_failures_are_replayed_as_failures(seed: int) -> None:
    rows = [
        trial(i, float(i), None, "failed") if i < 20 else trial(i, float(i), float(-abs(i - 40))) for i in range(60)
    ]
    pool = FinishedTable.of(rows, SPACE, "y")
    assert (pool.num_top, pool.top) == (2, {39, 40, 41})  # 39 and 41 are equally good
    assert len(set(replay(pool, "gp", seed).picks)) == 15


def test_a_file_that_was_cut_goes_on(tmp_path: Path) -> None:
    pool, path = table(), tmp_path / "replays.csv"
    whole = backtest(pool, ["gp"], 2, path=path)
    text = path.read_bytes()
    for cut in range(len(text) - 30, len(text), 7):
        path.write_bytes(text[:cut])
        fresh: list[Replay] = []
        assert backtest(pool, ["gp"], 2, path=path, report=fresh.append) == whole == fresh
        assert path.read_bytes() == text
    path.write_bytes(text.replace(b"gp,0,", b"gp,zero,"))
    with pytest.raises(DomainError, match="row 2: is not a replay"):
        backtest(pool, ["gp"], 2, path=path)
    with pytest.raises(DomainError, match="row 2: is a replay of another table"):
        path.write_bytes(text)
        backtest(table(59), ["gp"], 2, path=path)
    with pytest.raises(DomainError, match="no surrogate 'magic'"):
        backtest(pool, ["magic"], 1)


def test_by_chance_as_many_as_chance_gives() -> None:
    """Random search finds the share that it looks at: 15 of 60, over 400 seeds."""
    pool = table()
    shares = [replay(pool, "random", seed).share(pool, 15) for seed in range(400)]
    # Of 3 good settings each is among the 15 with probability 1/4: hypergeometric variance.
    error = math.sqrt(0.25 * 0.75 / 3 * (45 + 12) / 59 / 400)
    assert sum(shares) / 400 == pytest.approx(0.25, abs=5 * error)
