"""A history loses nothing that was recorded, and never reads a value that was not."""

from __future__ import annotations

import errno
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probnn.errors import DomainError, ProbnnError, SerializationError, ShapeError, UnsupportedError
from probnn.optimization import Categorical, Fixed, Integer, Real, Space, lock
from probnn.optimization.history import History
from probnn.optimization.trials import Trial

SPACE = Space(power=Real(0, 10), depth=Integer(1, 8), loss=Categorical(["a", "b"]))
HEADER = "trial,status,power,depth,loss,y,y_sem,z,z_sem,source,started,finished,note\n"
T0, T1 = "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"


def setting(number: int = 0) -> dict[str, Any]:
    return {"power": number + 1 / 3, "depth": 1 + number % 8, "loss": "ab"[number % 2]}


def done(number: int, **keywords: Any) -> Trial:
    values = {"y": math.pi * number, "z": -1e-300}
    return Trial(number, setting(number), "model", "complete", values, {"y": 0.1}, T0, T1, **keywords)


def open_(path: Path, **keywords: Any) -> History:
    return History(path, SPACE, ["y", "z"], **keywords)


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


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("note", ["", 'a "quoted", Ä note'])
@pytest.mark.parametrize(
    "header",
    [
        HEADER,
        HEADER.replace("\n", "\r\n"),
        # A person's order of columns, a target last.
        "who,note,power,depth,loss,trial,status,source,started,finished,y_sem,z_sem,z,y\n",
    ],
)
def test_a_line_cut_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str, note: str, noted: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # hundreds of files: the disk would be all that is timed
    path, lock = tmp_path / "t.csv", tmp_path / "t.csv.lock"
    path.write_bytes(header.encode())
    with open_(path) as history:
        history.record(done(0))
        history.record(done(1))
        before = path.read_bytes()
        history.record(done(2, note=note))
        earlier, later = history.trials[:2], history.trials
    line = path.read_bytes()[len(before) :]
    layout = header.startswith("trial")
    for cut in range(len(line) + 1):
        path.write_bytes(before + line[:cut])
        if noted:
            lock.write_bytes(b"%d\n" % len(before) + line)
        try:
            with open_(path) as history:
                trials = history.trials
        except ProbnnError:
            # Without the writer's note, a line that is no line of a history may be a person's: it is not taken away.
            assert not noted and not layout and path.read_bytes() == before + line[:cut]
            continue
        if noted:
            whole = cut == len(line)
            assert trials == (later if whole else earlier)
            assert path.read_bytes() == (before + line if whole else before)
        elif len(trials) == 3:  # complete but for its end; only the note can be shorter
            assert trials[:2] == earlier and cut > line.rindex(b',"')
            if layout:
                assert (trials[2].values, trials[2].sems, trials[2].finished) == (later[2].values, {"y": 0.1}, T1)
            else:
                # All but the last cell is there, and of that nothing or everything.
                assert trials[2].values in (later[2].values, {"z": -1e-300})
        else:
            assert trials == earlier
        with open_(path) as history:  # what follows a cut is a line of its own
            history.record(done(3))
        assert [t.number for t in History.read(path, SPACE, ["y", "z"])] == [*(t.number for t in trials), 3]


def test_the_note_of_a_writer_cut_anywhere_does_no_harm(tmp_path: Path) -> None:
    path, lock = tmp_path / "t.csv", tmp_path / "t.csv.lock"
    with open_(path) as history:
        history.record(done(0))
    data = path.read_bytes()
    note = b"%d\n" % len(data) + data[len(HEADER) :]
    for cut in range(len(note) + 1):
        lock.write_bytes(note[:cut])
        with open_(path) as history:
            assert len(history.trials) == 1
        assert path.read_bytes() == data
    # What a person typed after the kill is not what the writer meant to write.
    lock.write_bytes(b"%d\n" % len(data) + b'1,complete,"')
    path.write_bytes(data + b"1,pending,1,2,a,,,,,,,,")
    with open_(path) as history:
        assert [t.status for t in history.trials] == ["complete", "pending"] and history.dropped == ""


def test_a_cut_line_is_shown_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "0,complete,1,2,a,0.8")
    assert History.read(path, SPACE, ["y", "z"]) == []
    assert path.read_text() == HEADER + "0,complete,1,2,a,0.8"
    with open_(path) as history:
        assert history.trials == [] and history.dropped == "0,complete,1,2,a,0.8"
    assert path.read_text() == HEADER


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


def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    (tmp_path / "link.csv").symlink_to(path)
    with open_(path) as history:
        history.record(done(0))
        for other in (path, tmp_path / "." / "t.csv", tmp_path / "link.csv"):
            with pytest.raises(SerializationError, match=r"\.csv: is in use by another process or History object; end"):
                open_(other)
        history.record(done(1))
        assert len(History.read(path, SPACE, ["y", "z"])) == 2
    with pytest.raises(UnsupportedError, match="closed"):
        history.record(done(2))
    with open_(path) as history:
        assert len(history.trials) == 2
        history.close()
        history.close()
    held = open_(path)
    del held  # an object that is gone holds nothing
    open_(path).close()


def test_a_lock_released_while_it_is_opened_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, take, calls = tmp_path / "t.csv", lock._take, []

    def late(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 1:  # the holder before goes, and its file with it
            (tmp_path / "t.csv.lock").unlink()
        take(handle)

    monkeypatch.setattr(lock, "_take", late)
    with open_(path):
        assert len(calls) == 2
        with pytest.raises(SerializationError, match="in use"):
            open_(path)


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


@pytest.mark.parametrize("after", range(0, 260, 13))
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    path = tmp_path / "t.csv"
    write = os.write
    room = [after]

    def full(handle: int, data: bytes) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = write(handle, bytes(data)[: room[0]])
        room[0] -= count
        return count

    with open_(path) as history:
        history.record(done(0))
        before, trials = path.read_bytes(), history.trials
        monkeypatch.setattr(os, "write", full)
        refused = False
        try:
            history.record(done(1))
        except SerializationError as error:
            refused = True
            assert "No space left" in str(error) and "t.csv" in str(error)
            assert path.read_bytes() == before and history.trials == trials
        assert refused == (after < 240)
        monkeypatch.undo()
        history.record(done(1))
        expected = history.trials
        assert expected == [done(0), done(1)]
    with open_(path) as history:
        assert history.trials == expected


def test_an_interrupt_while_writing_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_(tmp_path / "t.csv") as history:
        history.record(done(0))
        before = (tmp_path / "t.csv").read_bytes()
        calls: list[int] = []
        sync = os.fsync

        def interrupted(handle: int) -> None:
            calls.append(handle)
            if len(calls) == 2:
                raise KeyboardInterrupt
            sync(handle)

        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            history.record(done(1))
        assert (tmp_path / "t.csv").read_bytes() == before and len(history.trials) == 1


def test_another_program_at_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with open_(path) as history:
        history.record(done(0))
        text = path.read_text()
        path.write_text(text.replace("trial,", "trial;", 1))
        with pytest.raises(SerializationError, match="changed the header"):
            history.record(done(1))
        # A comment, and an editor that leaves out the last line end: both stay, the new line is one of its own.
        path.write_text(text.replace('""', "warm").rstrip("\n"))
        history.record(done(1))
        path.rename(tmp_path / "away.csv")
        with pytest.raises(SerializationError, match="cannot be written"):
            history.record(done(2))
        (tmp_path / "away.csv").rename(path)
    [first, second] = History.read(path, SPACE, ["y", "z"])
    assert first.note == "warm" and second == done(1)


WRITER = """
import os, sys
from probnn.optimization.history import History
from probnn.optimization import Integer, Real, Space
from probnn.optimization.trials import Trial
path, rounds = sys.argv[1], int(sys.argv[2])
space = Space(x=Real(0, 10), n=Integer(0, 10**9))
for _ in range(rounds):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    history = History(path, space, ["y"])
    print("pid", os.getpid(), flush=True)
    while True:
        number = history.next_number
        trial = Trial(number, {"x": number / 7, "n": number}, "model", started="2026-01-01T00:00:00Z")
        history.record(trial)
        trial.values, trial.status, trial.finished = {"y": number / 3}, "complete", "2026-01-01T00:00:01Z"
        history.record(trial)
        print(number, flush=True)
"""


def next_words(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the writer ended"
    return line.split()


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_ten_kills_lose_nothing_and_a_second_process_is_refused(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "t.csv"
    space = Space(x=Real(0, 10), n=Integer(0, 10**9))
    delays = random.Random(seed)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), "10"], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    recorded: list[int] = []
    try:
        for _ in range(10):
            # What the last writer still said before it was killed comes first, then its successor.
            word = next_words(writer)
            while word[0] != "pid":
                recorded.append(int(word[0]))
                word = next_words(writer)
            pid = int(word[1])
            for _ in range(delays.randint(1, 30)):
                recorded.append(int(next_words(writer)[0]))
            with pytest.raises(SerializationError, match="in use"):
                History(path, space, ["y"])
            os.kill(pid, signal.SIGKILL)
        assert writer.stdout is not None
        recorded += [int(line) for line in writer.stdout]
        assert writer.wait(20) == 0
    finally:
        writer.kill()
        writer.wait()
        assert writer.stdout is not None
        writer.stdout.close()
    with History(path, space, ["y"]) as history:
        trials = {t.number: t for t in history.trials}
        assert sum(t.under_way for t in history.trials) <= 10
    assert len(recorded) >= 10 and len(set(recorded)) == len(recorded)
    for number in recorded:
        assert trials[number].status == "complete" and trials[number].values == {"y": number / 3}
    for trial in trials.values():
        assert trial.parameters == {"x": trial.number / 7, "n": trial.number}
        assert trial.value in (None, trial.number / 3) and (trial.value is None) == (trial.status == "pending")
    assert b"\n\n" not in path.read_bytes()
