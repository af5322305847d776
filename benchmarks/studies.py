"""Studies: what a replicate costs beside its own work: `python -m benchmarks.studies [--quick]`.

Overhead: a simulation that does nothing, run by plain joblib (which keeps nothing, knows no cells and no seeds, and
loses everything when it is killed) and by a study, in this process and with two workers that are warm, in turn; the
least of several rounds. Writing: rows put into a store, against the two things that simulation scripts do by hand, a
file for every replicate and a line appended and synchronised for every replicate. Memory: how much the process grew
while rows were run.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import joblib

from probnn.studies import Study
from probnn.studies.parts import COMPLETE, Row
from probnn.studies.store import Store

from ._common import Report

GRID = {"n": [1, 2, 3, 4, 5]}


def nothing(cell: dict[str, Any], seed: int) -> dict[str, float]:
    """A replicate that takes no time."""
    return {"estimate": 1.0, "loss": float(seed % 7), "covered": True}


def plain_joblib(replicates: int, n_jobs: int) -> None:
    """The same calls with joblib alone."""
    calls = (joblib.delayed(nothing)({"n": n}, r) for n in GRID["n"] for r in range(replicates))
    joblib.Parallel(n_jobs=n_jobs)(calls)


def study(replicates: int, n_jobs: int) -> None:
    """A whole study: workers, rows written, and read back as a table."""
    run = Study(nothing, GRID, replicates)
    run.run(n_jobs)
    if len(run.table()) != len(GRID["n"]) * replicates:
        raise RuntimeError("rows are missing")


def stored(rows: int) -> None:
    """Rows put into a store, as runs do."""
    folder = Path(tempfile.mkdtemp())
    store = Store(folder, [{"n": 1}], [{"seed": 0}], rows)
    store.prepare()
    for r in range(rows):
        store.add(Row(0, r, COMPLETE, {"estimate": 1.0, "loss": 2.0, "covered": 1.0}, 0.1))
    store.finish()
    shutil.rmtree(folder)


def a_file_each(rows: int) -> None:
    """One JSON file a replicate, synchronised."""
    folder = Path(tempfile.mkdtemp())
    for r in range(rows):
        with open(folder / f"{r}.json", "w") as file:
            json.dump({"estimate": 1.0, "loss": 2.0, "covered": True, "seconds": 0.1}, file)
            file.flush()
            os.fsync(file.fileno())
    shutil.rmtree(folder)


def a_line_each(rows: int) -> None:
    """One line of a table a replicate, synchronised."""
    folder = Path(tempfile.mkdtemp())
    with open(folder / "rows.csv", "a") as file:
        for r in range(rows):
            file.write(f"1,{r},1.0,2.0,True,0.1\n")
            file.flush()
            os.fsync(file.fileno())
    shutil.rmtree(folder)


def seconds(work: Callable[[], None]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def resident() -> float:
    """Megabytes this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Measure, print the tables and write the JSON."""
    report = Report("studies", __doc__)
    rows = 1_000 if report.quick else 10_000
    rounds = 2 if report.quick else 5
    replicates = rows // len(GRID["n"])
    table: list[dict[str, Any]] = []
    for n_jobs in (1, 2):
        cases = {"joblib": partial(plain_joblib, replicates, n_jobs), "study": partial(study, replicates, n_jobs)}
        least = {name: float("inf") for name in cases}
        for _ in range(1 + rounds):  # workers start in the first
            for name, run in cases.items():
                least[name] = min(least[name], seconds(run))
        added = (least["study"] - least["joblib"]) / rows * 1e3
        table.append(
            {"workers": n_jobs, "joblib s": least["joblib"], "study s": least["study"], "added ms a replicate": added,
             "goal ms": 1.0}
        )  # fmt: skip
    report.table(f"{rows} replicates that do nothing, the least of {rounds} rounds", table)

    written = []
    for name, work in (("store", stored), ("a file each", a_file_each), ("a line each", a_line_each)):
        least_s = min(seconds(partial(work, rows)) for _ in range(rounds))
        written.append({"how": name, "s": least_s, "rows a second": rows / least_s})
    for row in written:
        row["times the store"] = row["s"] / written[0]["s"]
    report.table(f"{rows} rows written and synchronised, the least of {rounds}", written)

    memory = []
    for factor in (1, 2, 4):
        before = resident()
        run = Study(nothing, GRID, factor * replicates).run()
        memory.append({"rows": factor * rows, "grown MB": resident() - before, "table MB": _size(run)})
    report.table("memory that a run in this process adds", memory)
    report.write()


def _size(run: Study) -> float:
    return sum(column.nbytes for column in run.table().columns.values()) / 1e6


if __name__ == "__main__":
    main()
