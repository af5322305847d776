"""`probnn study`: run, killed, resumed, sharded, looked at, replayed, reported and exported."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from probnn.cli import main
from probnn.studies import Table, load

EXCLUDED = ("seconds", "warnings", "error")  # what is not a result
MODULE = """
import sys
import time
import warnings

import numpy as np

print("noise at import")


def run(cell, seed):
    print("noise of a replicate")
    warnings.warn("an odd thing")
    x = np.random.default_rng(seed).exponential(size=cell["n"])
    if x.max() > 5.5:
        raise ValueError("an outlier")
    return {"estimate": x.mean()}


def slow(cell, seed):
    time.sleep(0.03)
    return {"estimate": np.random.default_rng(seed).exponential(size=cell["n"]).mean()}


def hangs(cell, seed):
    while seed % 5 == 0:
        pass
    return {"estimate": 1.0}


def fails(cell, seed):
    raise ValueError("never")
"""
FILE = """
title = "Means"
simulate = "exponentials:{}"
replicates = {}
seed = 0

[grid]
n = {}
kind = ["a"]

[measures]
bias = {{ output = "estimate", truth = 1.0 }}
"""


@pytest.fixture
def study(folder: Path) -> Iterator[Path]:
    """A folder with studies; some of the 60 rows of s.toml fail."""
    path = list(sys.path)
    (folder / "exponentials.py").write_text(MODULE)
    (folder / "s.toml").write_text(FILE.format("run", 30, [4, 12]))
    (folder / "slow.toml").write_text(FILE.format("slow", 150, [3, 8]))
    yield folder
    sys.path[:] = path
    sys.modules.pop("exponentials", None)


def rows(store: str | None = None, file: str = "s.toml") -> Table:
    return load(file, store=store).table()


def test_run_status_and_replay(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "run", "s.toml", "-q"]) == 1
    assert "rows" not in capsys.readouterr().out
    table = rows()
    bad = table.take(table["status"] != "complete")
    assert 0 < len(bad) < 20 and len(table) == 60
    assert set(table.where(status="complete")["warnings"].tolist()) == {"UserWarning: an odd thing"}

    assert main(["study", "run", "s.toml"]) == 1  # what failed is run again, and fails again
    out, err = capsys.readouterr()
    assert f"{60 - len(bad)} of 60 rows are complete, in {study / 'runs' / 's'}\n" in out
    assert "failures: probnn study status s.toml\n" in out and "Warning" not in err

    assert main(["study", "status", "s.toml"]) == 0
    out = capsys.readouterr().out
    first = next(bad.rows())
    assert out.startswith(f"{60 - len(bad)} of 60 rows are complete; {len(bad)} failed\n")
    assert f"n={first['n']},kind=a, replicate {first['replicate']}: failed, ValueError: an outlier" in out
    assert "go on: probnn study run s.toml\n" in out
    command = f"probnn study replay s.toml --cell n={first['n']},kind=a --replicate {first['replicate']} --pdb"
    assert f"look into it: {command}\n" in out

    assert (
        main(["study", "replay", "s.toml", "--cell", f"n={first['n']},kind=a", "--replicate", str(first["replicate"])])
        == 1
    )
    assert "failed, not complete in the store\n  ValueError: an outlier (exponentials.py:" in capsys.readouterr().out
    good = next(table.where(status="complete").rows())
    words = ["study", "replay", "s.toml", "--cell", f"kind=a,n={good['n']}", "--replicate", str(good["replicate"])]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "complete, bit-equal to the store" in out and f"estimate = {good['estimate']!r}" in out


def test_status_as_csv_and_json(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing else is on the screen, whatever the module prints when it is imported."""
    assert main(["study", "status", "s.toml", "--format", "json", "--replicates", "7"]) == 0
    out, err = capsys.readouterr()
    assert [(row["n"], row["missing"], row["seconds"]) for row in json.loads(out)] == [(4, 7, None), (12, 7, None)]
    assert err == "noise at import\n"
    assert main(["study", "status", "s.toml", "--format", "csv"]) == 0
    read = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["missing"] for row in read] == ["30", "30"] and read[0]["kind"] == "a"


def test_a_row_that_came_out_otherwise_is_not_equal(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A simulation that does not take its randomness from the seed."""
    (study / "exponentials.py").write_text("import time\ndef run(cell, seed): return {'now': time.time()}\n")
    assert main(["study", "run", "s.toml"]) == 0
    assert main(["study", "replay", "s.toml", "--cell", "n=4,kind=a", "--replicate", "0"]) == 1
    assert "NOT equal to the store" in capsys.readouterr().out


def test_the_debugger_stands_where_the_simulation_raised(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "run", "s.toml"]) == 1
    bad = next(rows().where(status="failed").rows())
    words = [
        "study",
        "replay",
        "s.toml",
        "--cell",
        f"n={bad['n']},kind=a",
        "--replicate",
        str(bad["replicate"]),
        "--pdb",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("p cell['n'] * 1000\np x.max() > 5.5\nquit\n"))
    capsys.readouterr()
    assert main(words) == 1
    out = capsys.readouterr().out
    assert 'raise ValueError("an outlier")' in out and f"{bad['n'] * 1000}\n" in out and "True" in out


def test_shards_make_the_same_table(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "run", "s.toml", "--store", "whole"]) == 1
    counts = []
    for i in (3, 1, 4, 2):
        main(["study", "run", "s.toml", "--store", "parts", "--shard", f"{i}/4"])
        counts.append(capsys.readouterr().out.splitlines()[-2:])
    assert any("of 15 rows of shard 3/4 are complete" in line for line in counts[0])
    assert rows("parts").digest(EXCLUDED) == rows("whole").digest(EXCLUDED)


def test_array_tasks(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Tasks 5 to 7 of an array are the shards 1/3 to 3/3."""
    assert main(["study", "run", "slow.toml", "--store", "whole", "--replicates", "9"]) == 0
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", "7")
    for task in ("6", "5", "7"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        assert main(["study", "run", "slow.toml", "--store", "parts", "--replicates", "9", "--shard", "auto"]) == 0
        assert f"6 of 6 rows of shard {int(task) - 4}/3 are complete" in capsys.readouterr().out
    assert rows("parts", "slow.toml").digest(EXCLUDED) == rows("whole", "slow.toml").digest(EXCLUDED)


def launched(*words: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "probnn", "study", *words]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def heed() -> None:  # jobs in the background of a shell have been told to ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=heed, **pipes)


def stop(process: subprocess.Popen[str], number: int, *, everyone: bool) -> tuple[str, str]:
    """Send a signal once the process has put rows into the store."""
    until, rows_there = time.monotonic() + 60, Path("runs/slow/rows")
    before = set(rows_there.glob("[!.]*.npz"))
    while not set(rows_there.glob("[!.]*.npz")) - before and time.monotonic() < until:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    (os.killpg if everyone else os.kill)(process.pid, number)
    return process.communicate(timeout=60)


def test_killed_stopped_and_resumed(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL for all of its processes; then SIGTERM, as a queue sends it; then to the end, in two processes."""
    assert main(["study", "run", "slow.toml", "--store", "whole", "--n-jobs", "2"]) == 0
    process = launched("run", "slow.toml", "--n-jobs", "2")
    stop(process, signal.SIGKILL, everyone=True)
    assert process.returncode == -signal.SIGKILL
    kept = len(rows(file="slow.toml"))
    assert 0 < kept < 300
    process = launched("resume", "slow.toml", "--n-jobs", "2")
    out, err = stop(process, signal.SIGTERM, everyone=False)
    assert process.returncode == 143 and out == ""
    assert err.splitlines()[-1].endswith("goes on with: probnn study resume slow.toml --n-jobs 2")
    assert "Traceback" not in err and kept <= len(rows(file="slow.toml")) < 300
    capsys.readouterr()
    assert main(["study", "resume", "slow.toml", "--n-jobs", "2"]) == 0
    assert "300 of 300 rows are complete" in capsys.readouterr().out
    assert rows(file="slow.toml").digest(EXCLUDED) == rows("whole", "slow.toml").digest(EXCLUDED)


def test_interrupted(study: Path) -> None:
    process = launched("run", "slow.toml", "--replicates", "3000")
    out, err = stop(process, signal.SIGINT, everyone=True)
    assert process.returncode == 130 and not out
    assert err.splitlines() == [
        "noise at import",
        "probnn: stopped; what was finished is kept, and goes on with: probnn study run slow.toml --replicates 3000",
    ]
    assert 0 < len(load("slow.toml", replicates=3000).table()) < 6000


def test_what_hangs_costs_its_own_row(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study / "h.toml").write_text(FILE.format("hangs", 12, [1]).replace("seed = 0", "seed = 0\ntimeout = 20"))
    assert main(["study", "run", "h.toml", "--timeout", "0.1"]) == 1
    table = load("h.toml").table()
    assert (table["status"] == "timeout").tolist() == (table["seed"] % 5 == 0).tolist()
    assert main(["study", "status", "h.toml"]) == 0
    assert "timeout, no result within 0.1 s" in capsys.readouterr().out


def test_replicates_are_added(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "run", "slow.toml", "--replicates", "10"]) == 0
    before = rows(file="slow.toml")
    assert main(["study", "run", "slow.toml", "--replicates", "14"]) == 0
    after = rows(file="slow.toml")
    assert len(after) == 28
    old = after.take(after["replicate"] < 10)
    assert old.digest(()) == before.digest(())  # the times too: nothing was run again


def test_report_and_export(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["study", "run", "s.toml"])
    capsys.readouterr()
    assert main(["study", "report", "s.toml", "--mcse", "0.01"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# Means\n") and "from" in out and "to 0.01," in out and "ValueError: an outlier" in out
    assert main(["study", "report", "s.toml", "-o", "r.tex", "--format", "latex"]) == 0
    assert capsys.readouterr().out == "written to r.tex\n" and "\\toprule" in (study / "r.tex").read_text()
    assert main(["study", "export", "s.toml", "t.csv", "--decimal", ","]) == 0
    assert "60 rows written to t.csv; " in capsys.readouterr().out
    with open("t.csv", newline="") as file:
        read = list(csv.DictReader(file, delimiter=";"))
    assert [row["estimate"] for row in read] == [repr(v).replace(".", ",") for v in rows()["estimate"].tolist()]


def test_export_to_parquet(study: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    main(["study", "run", "slow.toml", "--replicates", "3"])
    assert main(["study", "export", "slow.toml", "t.parquet"]) == 0
    assert parquet.read_table("t.parquet").to_pydict()["estimate"] == rows(file="slow.toml")["estimate"].tolist()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "ACTION"),
        (["run"], "STUDY.toml"),
        (["run", "none.toml"], "none.toml: cannot be read"),
        (["run", "s.toml", "--shard", "5/4"], "--shard: shard must be i/N"),
        (["run", "s.toml", "--shard", "0/4"], "--shard: shard must be i/N"),
        (["run", "s.toml", "--shard", "auto"], "needs the variables of an array task"),
        (["run", "s.toml", "--n-jobs", "0"], "--n-jobs"),
        (["run", "s.toml", "--timeout", "0"], "--timeout"),
        (["run", "s.toml", "--quick"], "there is no table [quick]"),
        (["run", "s.toml", "--scheduler", "tcp://x"], "--scheduler: is for --backend dask"),
        (["resume", "s.toml"], "there is no store to go on with; probnn study run s.toml begins one"),
        (["replay", "s.toml", "--cell", "n=5,kind=a", "--replicate", "0"], "there is no cell n=5,kind=a"),
        (["replay", "s.toml", "--cell", "n:4", "--replicate", "0"], "a cell is named like n=4,kind=a"),
        (["replay", "s.toml", "--cell", "n=4,kind=a", "--replicate", "30"], "replicate must be from 0 to 29"),
        (["replay", "s.toml", "--cell", "n=4,kind=a", "--replicate", "-1"], "--replicate"),
        (["report", "s.toml"], "there are no rows yet"),
        (["export", "s.toml", "t.xls"], "t.xls: expected a name that ends in .csv or .parquet"),
        (["export", "s.toml", "no/t.csv"], "no/t.csv: No such file"),
    ],
)
def test_bad_input(study: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    for variable in ("SLURM_ARRAY_TASK_ID", "SGE_TASK_ID", "LSB_JOBINDEX"):
        os.environ.pop(variable, None)
    try:
        status: object = main(["study", *words])
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    last = err.removeprefix("noise at import\n")
    assert status == 2 and out == "" and said in last and last.count("\n") == 1 and last.startswith("probnn")
    assert not (study / "runs").exists() and not (study / "t.csv").exists()


def test_a_study_that_only_fails_says_so_in_one_line(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study / "f.toml").write_text(FILE.format("fails", 40, [1]))
    assert main(["study", "run", "f.toml"]) == 2
    assert "the first 20 replicates, of all cells, failed" in capsys.readouterr().err.splitlines()[-1]


def test_a_report_of_a_convergence_study_needs_a_file(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = str(Path(__file__).parents[2] / "benchmarks" / "studies" / "s1.toml")
    assert main(["study", "report", shipped, "--store", "c"]) == 2
    assert "give --output FILE.md" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from probnn.cli.main import make_parser; make_parser(); print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
