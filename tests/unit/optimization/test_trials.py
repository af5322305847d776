"""Trials and their convenience properties."""

from __future__ import annotations

import csv
from datetime import UTC, datetime, timedelta
from pathlib import Path

from probnn.optimization.trials import Trial, copy_trial, trial_rows, utc_now, write_csv


def test_a_trial_of_one_target() -> None:
    trial = Trial(3, {"x": 1.5}, "model")
    assert (trial.status, trial.value, trial.sem, trial.seconds, trial["x"]) == ("pending", None, None, None, 1.5)
    trial.values["y"], trial.sems["y"] = 2.0, 0.1
    assert (trial.value, trial.sem) == (2.0, 0.1)


def test_the_first_measured_target_is_the_value() -> None:
    trial = Trial(0, {}, "user", values={"cost": 4.0}, sems={"yield": 1.0})
    assert (trial.value, trial.sem) == (4.0, None)


def test_seconds_come_from_the_clock_where_it_was_noted() -> None:
    times = {"started": "2026-01-01T10:00:00Z", "finished": "2026-01-01T12:00:01.250+01:00"}
    assert Trial(0, {}, "user", **times).seconds == 3601.25
    for started, finished in (
        (None, times["finished"]),
        ("morning", "noon"),
        ("2026-01-01T10:00:00", times["finished"]),
    ):
        assert Trial(0, {}, "user", started=started, finished=finished).seconds is None
    now = datetime.fromisoformat(utc_now())
    assert now.tzinfo is not None and abs(datetime.now(UTC) - now) < timedelta(minutes=1)


def test_a_copy_shares_nothing() -> None:
    trial = Trial(1, {"x": 1}, "user", "complete", {"y": 1.0}, {"y": 0.5}, "a", "b", "note", {"who": "me"}, 7)
    other = copy_trial(trial)
    assert other == trial and other.row == 7
    for name in ("parameters", "values", "sems", "extra"):
        getattr(other, name)["new"] = 1
        assert "new" not in getattr(trial, name)


def test_rows_of_the_table(tmp_path: Path) -> None:
    times = {"started": "2026-01-01T10:00:00Z", "finished": "2026-01-01T10:00:01.5Z"}
    trials = [Trial(0, {"x": 0.1}, "user", "complete", {"y": 2.0}, {"y": 0.25}, **times), Trial(1, {"x": 0.2}, "model")]
    assert trial_rows(trials, "y", surrogate="gp") == [
        {"surrogate": "gp", "trial": 0, "status": "complete", "x": 0.1, "y": 2.0, "y_sem": 0.25, "source": "user",
         "seconds": "1.500", "note": ""},
        {"surrogate": "gp", "trial": 1, "status": "pending", "x": 0.2, "y": "", "y_sem": "", "source": "model",
         "seconds": "", "note": ""},
    ]  # fmt: skip
    write_csv(trials, "y", tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        assert [row["y"] for row in csv.DictReader(file)] == ["2.0", ""]
