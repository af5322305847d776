"""A history keeps what was recorded as it was, and never reads a value that was not."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probnn.errors import DomainError, ShapeError
from probnn.optimization import Categorical, Fixed, Real, Space
from probnn.optimization.history import History
from probnn.optimization.trials import Trial

from .history_cases import HEADER, SPACE, T0, T1, done, open_, setting


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "trials.csv"
    trials = [
        done(0, note='said "so", then\tleft; Ä'),
        Trial(1, setting(1), "initial"),
        Trial(2, setting(2), "random(no model)", "failed", {"z": 1.0}, {}, T0, T1, "  spaces  "),
        Trial(5, setting(3), "user", "abandoned"),
        Trial(4, setting(4), "replicate", "complete", {"z": 5e-324}, {"y": 1.0}),
        Trial(6, setting(5), "model", "pending", {"y": 0.1 + 0.2}, {}, T0),
    ]
    with open_(path) as history:
        assert path.read_text() == HEADER and history.trials == [] and history.next_number == 0
        for trial in trials:
            history.record(trial)
        expected = sorted(trials, key=lambda t: t.number)
        assert history.trials == expected and history.next_number == 7
        assert [t for t in history.trials if t.under_way] == [trials[5]]
    assert not path.with_name("trials.csv.lock").exists()
    with open_(path) as history:
        assert history.trials == expected == History.read(path, SPACE, ["y", "z"])
        assert [t for t in history.trials if t.under_way] == [trials[5]] and history.dropped == ""
        history.trials[0].values["y"] = 7.0
        history.trials[0].parameters["depth"] = 7
        assert history.trials == expected


def test_the_last_line_of_a_number_counts(tmp_path: Path) -> None:
    with open_(tmp_path / "t.csv") as history:
        trial = Trial(0, setting(), "model")
        history.record(trial)
        trial.started = T0
        history.record(trial)
        trial.values, trial.status, trial.finished = {"y": 1.0}, "complete", T1
        history.record(Trial(1, setting(1), "model"))
        history.record(trial)
        trial.values["y"] = 2.0  # not recorded, so not there
    [first, second] = History.read(tmp_path / "t.csv", SPACE, ["y", "z"])
    assert (first.status, first.value, first.started, second.status) == ("complete", 1.0, T0, "pending")
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 5


TEXT = st.text(max_size=12).filter(str.strip)


@given(
    st.lists(TEXT, min_size=2, max_size=4, unique_by=str.strip),
    TEXT.filter(lambda text: not set(text) & set("\r\n\0")),
    TEXT,
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(".,"),
)
def test_odd_words_come_back_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, choices: list[str], constant: str, note: str, value: float, decimal: str
) -> None:
    path = tmp_path_factory.mktemp("odd") / "t.csv"
    space = Space(kind=Categorical(choices), x=Real(-1e308, 1e307), water=Fixed(constant))
    kept = []
    with History(path, space, ["y, 1"], decimal=decimal) as history:
        for number, kind in enumerate(choices):
            trial = Trial(number, {"kind": kind, "x": value}, "user", "complete", {"y, 1": value}, note=note)
            before = path.read_bytes()
            if any(c in kind for c in "\r\n\0"):
                with pytest.raises(DomainError, match="one line"):
                    history.record(trial)
                assert path.read_bytes() == before
                continue
            history.record(trial)
            kept.append(trial)
        live = history.trials
    read = History.read(path, space, ["y, 1"], decimal=decimal)
    for back in (live, read):
        assert [(t.number, t.parameters, t.values) for t in back] == [
            (t.number, {**t.parameters, "water": constant}, t.values) for t in kept
        ]
    if not any(c in note for c in "\r\n\0"):
        assert all(t.note == note for t in read)


def test_notes_are_put_on_one_line(tmp_path: Path) -> None:
    with open_(tmp_path / "t.csv") as history:
        history.record(done(0, note="two\r\nlines\0and \ud800"))
        assert history.trials[0].note == "two lines and ?"
    assert History.read(tmp_path / "t.csv", SPACE, ["y", "z"])[0].note == "two lines and ?"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_persons_spreadsheet_gets_the_columns_it_lacks(tmp_path: Path, newline: str, bom: bytes) -> None:
    path = tmp_path / "t.csv"
    space = Space(power=Real(0, 10), loss=Categorical(["a", "b"]), solvent=Fixed(2.5))
    lines = ['"who; when";power;y;loss;z', " Eve;3,50;1,0;a;", "", "Bob;4;failed;b;n.a.", ";;;;", "Bob;5;;b;7"]
    path.write_bytes(bom + newline.join(lines).encode())
    path.chmod(0o640)
    with History(path, space, ["y", "z"], decimal=",") as history:
        got = [(t.number, t.status, t.parameters["power"], t.values, t.extra, t.row) for t in history.trials]
        assert got == [
            (0, "complete", 3.5, {"y": 1.0}, {"who; when": " Eve"}, 2),
            (1, "failed", 4.0, {}, {"who; when": "Bob"}, 4),
            (2, "complete", 5.0, {"z": 7.0}, {"who; when": "Bob"}, 6),
        ]
        assert history.trials[0]["solvent"] == 2.5
        again = history.trials[2]
        again.values["y"] = 0.5
        history.record(again)
        expected = history.trials
    added = ";trial;status;solvent;y_sem;z_sem;source;started;finished;note"
    lines = [
        lines[0] + added, '" Eve";3,50;1,0;a;;0;;2,5;;;;;;', "", lines[3] + ";1;;2,5;;;;;;", ";;;;" + ";" * 9,
        lines[5] + ";2;;2,5;;;;;;", 'Bob;5,0;0,5;b;7,0;2;complete;2,5;;;user;;;""', "",
    ]  # fmt: skip
    assert path.read_bytes() == bom + newline.join(lines).encode()
    assert path.stat().st_mode & 0o777 == 0o640
    with History(path, space, ["y", "z"], decimal=",") as history:
        assert history.trials == expected
    assert path.read_bytes() == bom + newline.join(lines).encode()


def test_a_row_added_by_hand_keeps_its_number(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with open_(path) as history:
        history.record(done(0))
        history.record(done(3))
    lines = path.read_text().splitlines()
    lines.insert(2, ",,9,8,a,1.5,,,,,,,")
    path.write_text("\n".join(lines))
    with open_(path) as history:
        assert [(t.number, t["power"]) for t in history.trials] == [(0, 1 / 3), (3, 3 + 1 / 3), (4, 9.0)]
        history.record(done(5))
    assert [t.number for t in History.read(path, SPACE, ["y", "z"])] == [0, 3, 4, 5]
    with open_(path) as history:
        assert history.trials[2]["power"] == 9.0


@pytest.mark.parametrize(
    "text, error, words",
    [
        ("power,depth,loss,y\n1,2,a,3\n", DomainError, "row 1: there is no column for the target 'z'"),
        ("power,depth,loss,y,z\n1,2,a,3", ShapeError, "row 2: 4 cells where the header has 5; column 'z'"),
        ("power,depth,loss,y,z\n1,2,a,3,x\n", DomainError, "row 2, column 'z'"),
        (HEADER + "0,complete\n1,pending,1,2,a,,,,,,,,\n", ShapeError, "row 2: 2 cells"),
        (HEADER + "0,complete\n1,pend", ShapeError, "row 2: 2 cells"),
        (HEADER + "0,complete,1,2,a,x,,,,,,,", DomainError, "row 2, column 'y'"),
    ],
)
def test_bad_files_stay_untouched_and_unlocked(tmp_path: Path, text: str, error: type[Exception], words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    for opener in (open_, lambda p: History.read(p, SPACE, ["y", "z"])):
        with pytest.raises(error, match=words):
            opener(path)
    assert path.read_text() == text and os.listdir(tmp_path) == ["t.csv"]
    path.write_text("")
    with open_(path):  # an empty file has nothing to lose
        assert path.read_text() == HEADER


def test_refused_trials_leave_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with open_(path) as history:
        history.record(done(0))
        before, trials = path.read_bytes(), history.trials
        bad: list[tuple[Callable[[Trial], Any], str]] = [
            (lambda t: setattr(t, "number", -1), "number must be an integer"),
            (lambda t: setattr(t, "number", 0), "with other parameters already"),
            (lambda t: setattr(t, "status", "done"), "status must be one of"),
            (lambda t: t.parameters.pop("loss"), "parameter 'loss' is missing"),
            (lambda t: t.parameters.update(colour=1), "no parameter 'colour'"),
            (lambda t: t.parameters.update(power=math.nan), "column 'power'"),
            (lambda t: t.parameters.update(loss=""), "column 'loss': the cell is empty"),
            (lambda t: t.parameters.update(depth=None), "column 'depth': the cell is empty"),
            (lambda t: t.values.update(w=1.0), "no target 'w'"),
            (lambda t: t.values.update(y=math.inf), "'y' must be a finite number"),
            (lambda t: t.values.update(y="1"), "'y' must be a finite number"),
            (lambda t: t.values.clear(), "no target is measured"),
            (lambda t: t.sems.update(y=0.0), "positive"),
            (lambda t: t.extra.update(who="me"), "no extra column 'who'"),
            (lambda t: setattr(t, "started", "now\nor never"), "one line"),
            (lambda t: setattr(t, "status", "pending"), "would not read back as it is: status 'pending'.*'complete'"),
            (lambda t: t.parameters.update(depth="3"), "would not read back as it is: parameters"),
        ]
        for change, words in bad:
            trial = done(1)
            change(trial)
            with pytest.raises(DomainError, match=words) as caught:
                history.record(trial)
            assert "trial" in str(caught.value)
            assert path.read_bytes() == before and history.trials == trials
        history.record(done(1))
