"""`probnn bo`: functions by name, budgets over several runs, and being killed."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from probnn.cli import main

SPACE = '[x]\ntype = "real"\nlow = -2\nhigh = 2\n\n[n]\ntype = "integer"\nlow = 1\nhigh = 9\n'
SLOW = (
    "import time\n\n\ndef slow(x, n):\n    time.sleep(0.15)\n    if n == 5:\n        raise ValueError('five')\n"
    "    return x**2 + n\n"
)


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", "import sys; from probnn.cli import main; sys.exit(main())", "bo", *words]


def table(path: Path) -> list[tuple[str, ...]]:
    """The last line of every trial, without what time it was."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    last = {row["trial"]: row for row in rows}
    names = ("trial", "status", "x", "n", "y", "source", "note")
    return [tuple(last[key][name] for name in names) for key in sorted(last, key=int)]


def test_a_budget_counts_what_the_history_has(folder: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["bo", "branin", "--history", "runs/trials.csv", "--surrogate", "gp", "--seed", "1"]
    assert main([*words, "--num-evaluations", "4"]) == 0
    assert capsys.readouterr().out.startswith("4 evaluations\nbest: value = ")
    assert main([*words, "--n-trials", "7"]) == 0
    assert main([*words, "--num-evaluations", "7"]) == 0
    with open("runs/trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted({int(row["trial"]) for row in rows}) == list(range(7))
    resumed = capsys.readouterr().out.splitlines()
    assert main([*words[:2], *words[4:], "--num-evaluations", "7"]) == 0
    assert capsys.readouterr().out.splitlines() == resumed[-2:]


@pytest.mark.parametrize("problem", ["hartmann6", "ackley5"])
def test_built_in_problems(folder: Path, problem: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["bo", problem, "--num-evaluations", "3", "--surrogate", "random", "--stop-at", "1e9"]) == 0
    assert capsys.readouterr().out.startswith("1 evaluation\nbest: value = ")


def test_a_function_with_two_targets(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "space.toml").write_text(SPACE)
    (folder / "two_targets.py").write_text("def f(x, n):\n    return {'y': x * n, 'cost': n}\n")
    words = ["bo", "two_targets:f", "--space", "space.toml", "--maximize", "y", "--minimize", "cost"]
    assert main([*words, "--num-evaluations", "6", "--surrogate", "random"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("6 evaluations\nbest: y = ")
    assert "cost = " in out


def forked(words: list[str]) -> int:
    """The id of a child that runs a command. A copy of this process: it need not import torch again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: the child uses none of them
        child = os.fork()
    if child == 0:
        status = 1
        try:
            status = main(["bo", *words])
        finally:
            os._exit(status)  # nothing of pytest's must run twice
    return child


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_killed_ten_times_and_nothing_is_lost(folder: Path, seed: int, capsys: pytest.CaptureFixture) -> None:
    """SIGKILL at ten random moments; the table is that of a run nobody disturbed."""
    (folder / "space.toml").write_text(SPACE)
    (folder / "slowly.py").write_text(SLOW)
    words = ["slowly:slow", "--space", "space.toml", "--minimize", "y", "--surrogate", "random", "--seed", str(seed)]
    words += ["--num-evaluations", "16", "-q", "--history"]
    draw, path = random.Random(seed), folder / "killed.csv"
    for _ in range(10):
        size = path.stat().st_size if path.exists() else 0
        child, limit = forked([*words, "killed.csv"]), time.monotonic() + 60
        # Wait for its first line, then strike anywhere within the next evaluation.
        while not path.exists() or path.stat().st_size <= size:
            assert time.monotonic() < limit
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.2))
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert main(["bo", *words, "killed.csv"]) == 0
    assert main(["bo", *words, "undisturbed.csv"]) == 0
    assert table(path) == table(folder / "undisturbed.csv")
    assert len(table(path)) == 16
    one, other = (line.split("best")[1] for line in capsys.readouterr().out.split("16 evaluations")[1:])
    assert one == other


def test_ctrl_c_is_quiet(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def interrupt(*anything: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("probnn.optimization.loop.run", interrupt)
    assert main(["bo", "branin", "--num-evaluations", "3", "--surrogate", "random"]) == 130
    assert capsys.readouterr() == ("", "")


def test_nobody_reads(folder: Path) -> None:
    """A closed pipe ends the command without a word."""
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    words = command("branin", "--num-evaluations", "2", "--surrogate", "random")
    done = subprocess.run(words, env=environment, cwd=folder, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_table_of_ones_own_is_said_to_get_columns(folder: Path, capsys: pytest.CaptureFixture) -> None:
    Path("mine.csv").write_text("x1,x2,value\n0,1,5\n2,3,4\n", encoding="utf-8")
    words = ["bo", "branin", "--history", "mine.csv", "--surrogate", "random", "--num-evaluations", "3"]
    assert main(words) == 0
    assert "mine.csv: columns added at the right: trial, status" in capsys.readouterr().err
    assert main(words) == 0
    assert "columns added" not in capsys.readouterr().err
    assert Path("mine.csv").read_text(encoding="utf-8").splitlines()[1].startswith("0,1,5,")
