"""A history loses nothing to kills, full disks, half-written lines, and other programs at its file."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from probnn.errors import ProbnnError, SerializationError, UnsupportedError
from probnn.optimization import Integer, Real, Space, lock
from probnn.optimization.history import History

from .history_cases import HEADER, SPACE, T1, done, open_


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
