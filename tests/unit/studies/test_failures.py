"""What becomes of replicates that have no result, or none that can be kept."""

import math
import time

import numpy as np
import pytest

from probnn.errors import ConvergenceError, IncompleteStudyWarning
from probnn.studies import Study
from probnn.studies.cells import seeds_of
from tests import simulations as sim


def test_outputs_of_every_kind_of_number():
    row = next(Study(sim.tensors, {"n": [1]}, 1).run().table().rows())
    assert (row["tensor"], row["numpy"], row["inf"], row["whole"]) == (2.5, 0.5, math.inf, 7.0)
    assert math.isnan(row["nan"])


def test_failures_are_rows():
    study = Study(sim.troubled, {"trouble": ["raise", "warn"]}, 30)
    with pytest.warns(IncompleteStudyWarning, match=r"replicates have no result; study.failures\(\)"):
        study.run()
    for row in study.table().rows():
        unlucky = row["seed"] % 5 == 0
        failed = unlucky and row["trouble"] == "raise"
        assert row["status"] == ("failed" if failed else "complete")
        assert (f"ValueError: seed {row['seed']} is unlucky (simulations.py:" in row["error"]) == failed
        assert row["warnings"] == ("UserWarning: not so well" if unlucky and row["trouble"] == "warn" else "")
    assert study.status()["failed"].tolist() == [int((study.table().where(trouble="raise")["seed"] % 5 == 0).sum()), 0]
    again = study.replay({"trouble": "raise"}, int(study.table().where(status="failed")["replicate"][0]))
    assert again.status == "failed" and again.equal is None and "unlucky" in str(again)


def test_rows_that_failed_are_run_again_unless_told_otherwise(tmp_path):
    luck = {"good": False}

    def moody(cell, seed):
        if seed % 2 and not luck["good"]:
            raise ValueError("no")
        return {"x": 1.0}

    def study():
        return Study(moody, {"n": [1]}, 12, store=tmp_path, version="1")

    with pytest.warns(IncompleteStudyWarning):
        failed = int((study().run().table()["status"] == "failed").sum())
    assert 0 < failed < 12
    luck["good"] = True
    assert int((study().run(retry=False).table()["status"] == "failed").sum()) == failed
    assert set(study().run().table()["status"]) == {"complete"}
    luck["good"] = False  # complete rows are not touched again
    assert set(study().run().table()["status"]) == {"complete"}


@pytest.mark.parametrize("what", ["text", "none", "list"])
def test_results_that_are_no_numbers(what):
    study = Study(sim.not_numbers, {"what": ["nothing", what]}, 2)
    with pytest.warns(IncompleteStudyWarning):
        study.run()
    assert study.table().where(what="nothing")["status"].tolist() == ["complete"] * 2
    assert all("must return numbers, but x is" in e for e in study.table().where(what=what)["error"])


def test_results_with_other_keys_than_before():
    study = Study(sim.other_keys, {"n": [1]}, 12)
    with pytest.warns(IncompleteStudyWarning):
        study.run()
    table = study.table()
    assert len(set(table["status"])) == 2
    assert all("returned" in e and "rows before have" in e for e in table.where(status="failed")["error"])


@pytest.mark.parametrize(
    "result, message",
    [
        (3.0, "must return a dict of numbers, got 3.0"),
        ({}, "must return a dict of numbers"),
        ({1: 2.0}, "keys are texts"),
        ({"seconds": 1.0}, "must not call an output 'seconds'"),
        ({"x": 2**53 + 1}, "too large an integer"),
    ],
)
def test_a_function_that_never_works_ends_the_run(result, message):
    study = Study(lambda cell, seed: result, {"n": [1]}, 100)
    with pytest.raises(ConvergenceError, match="the first 20 replicates, of all cells, failed.*" + message):
        study.run()
    assert len(study.table()) == 20  # what was found out is kept


def test_batches_of_another_length():
    study = Study(
        simulate_batch=lambda cell, seeds: {"x": [1.0, 2.0, 3.0]}, grid={"n": [1]}, replicates=4, batch_size=4
    )
    with pytest.warns(IncompleteStudyWarning):
        study.run()
    assert all("of 1 seeds must return 1 numbers for x, got (3,)" in e for e in study.table()["error"])


def test_a_time_limit_in_this_process():
    study = Study(sim.troubled, {"trouble": ["sleep"]}, 20, seed=0)
    expected = ["timeout" if s % 5 == 0 else "complete" for s in seeds_of(0, {"trouble": "sleep"}, range(20))]
    assert "timeout" in expected
    with pytest.warns(IncompleteStudyWarning):
        study.run(timeout=0.2)
    assert study.table()["status"].tolist() == expected
    assert "no result within 0.2 s" in study.table().where(status="timeout")["error"][0]


def test_a_time_limit_that_is_swallowed_counts():
    def swallows(cell, seed):
        begun = time.monotonic()
        while time.monotonic() - begun < 1.5:
            try:
                time.sleep(0.3)
            except BaseException:
                if cell["what"] == "returns":
                    break
        return {"x": 1.0}

    study = Study(swallows, {"what": ["returns", "goes on"]}, 1)
    with pytest.warns(IncompleteStudyWarning):
        study.run(timeout=0.2)
    assert study.table()["status"].tolist() == ["timeout", "timeout"]
    assert study.table()["seconds"][0] < 0.6


@pytest.mark.parametrize("error", ["speechless", "exit", "base"])
def test_whatever_a_simulation_raises_is_a_failed_row(error):
    class Speechless(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    class Base(BaseException):
        pass

    def simulate(cell, seed):
        if cell["n"] == 1:
            raise {"speechless": Speechless(), "exit": SystemExit(3), "base": Base("b")}[error]
        return {"x": 1.0}

    study = Study(simulate, {"n": [1, 2]}, 3, version="1")
    with pytest.warns(IncompleteStudyWarning):
        study.run()
    assert study.table()["status"].tolist() == ["failed"] * 3 + ["complete"] * 3


@pytest.mark.parametrize(
    "values, message",
    [
        ([1 + 2j, 1.0], "must return arrays of numbers, but x is"),
        ([None, 1.0], "must return arrays of numbers, but x is"),
        (["1.5", "2"], "must return arrays of numbers, but x is"),
        ([2**60 + 1, 1], "integers too large to be stored exactly"),
    ],
)
def test_batches_of_what_are_no_numbers(values, message):
    def batch(cell, seeds):
        return {"x": (values * len(seeds))[: len(seeds)] if cell["n"] == 1 else [1.0] * len(seeds)}

    study = Study(simulate_batch=batch, grid={"n": [1, 2]}, replicates=2, batch_size=2, version="1")
    with pytest.warns(IncompleteStudyWarning):
        study.run()
    assert all(message in e for e in study.table().where(n=1)["error"] if e) and "failed" in study.table()["status"]


def test_large_integers_of_numpy_are_refused_too():
    study = Study(lambda cell, seed: {"x": np.int64(2**60 + 1) if cell["n"] == 1 else 1.0}, {"n": [1, 2]}, 1)
    with pytest.warns(IncompleteStudyWarning):
        study.run()
    assert "too large an integer" in study.table()["error"][0]
