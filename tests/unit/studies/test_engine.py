"""Seeds, grids, and what a study runs and gives."""

import hashlib
import json
import math
import random
import warnings

import numpy as np
import pytest
import torch

from probnn.errors import ConvergenceError, DomainError, IncompleteStudyWarning
from probnn.studies import Study
from probnn.studies.cells import seeds_of
from probnn.studies.parts import Row
from tests import simulations as sim

GRID = {"n": [5, 20], "k": [1, 2]}


def test_seed_by_definition(seed):
    cell, replicate = {"n": 1000, "k": 3, "gate": "softmax"}, 17
    text = '{"gate":"softmax","k":3,"n":1000}'
    words = np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], dtype="<u4")
    state = np.random.SeedSequence(seed, spawn_key=(*map(int, words), replicate)).generate_state(1, np.uint64)[0]
    assert seeds_of(seed, cell, [replicate]) == [int(state) // 2]
    assert json.loads(text) == cell


def test_seeds_do_not_collide_and_are_uniform(seed):
    cells = [{"n": n, "k": k} for n in range(10) for k in range(10)]
    seeds = np.array([seeds_of(seed, cell, range(100)) for cell in cells]).ravel()
    assert len(np.unique(seeds)) == seeds.size
    u = seeds / 2.0**63
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / u.size)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / math.sqrt(u.size)


def test_rows_are_those_of_the_function(seed):
    table = Study(sim.mean, GRID, 7, seed=seed).run().table()
    assert len(table) == 4 * 7
    assert table.names[:5] == ("n", "k", "replicate", "seed", "status")
    for row in table.rows():
        expected = sim.mean({"n": row["n"], "k": row["k"]}, row["seed"])
        assert row["status"] == "complete" and row["error"] == ""
        assert {name: row[name] for name in expected} == {k: float(v) for k, v in expected.items()}


def test_rows_do_not_depend_on_what_else_there_is(seed):
    """Not on other cells, the order of axes and values, replicates, workers or shards."""
    small = Study(sim.mean, {"k": [2], "n": [20]}, 3, seed=seed).run().table()
    large = Study(sim.mean, {"n": [20, 5, 7], "k": [2, 3]}, 6, seed=seed).run(2).table().where(n=20, k=2)
    for name in ("seed", "mean", "variance"):
        assert np.array_equal(small[name], large[name][:3])
    assert not np.array_equal(
        small["seed"], Study(sim.mean, GRID, 3, seed=seed + 1).run().table().where(n=20, k=2)["seed"]
    )


def test_paired_axes_share_their_seeds(seed):
    table = Study(sim.mean, GRID, 4, seed=seed, paired=["k"]).run().table()
    assert np.array_equal(table.where(n=5, k=1)["mean"], table.where(n=5, k=2)["mean"])
    assert not np.isin(table.where(n=5)["seed"], table.where(n=20)["seed"]).any()


def test_batches_agree_with_single_replicates(seed):
    one = Study(sim.mean, GRID, 9, seed=seed).run().table()
    many = Study(sim.mean, GRID, 9, seed=seed, simulate_batch=sim.means, batch_size=4).run(2).table()
    assert np.array_equal(one["seed"], many["seed"])
    for name in ("mean", "variance", "positive"):
        np.testing.assert_allclose(one[name], many[name], rtol=1e-10)


def test_batches_are_bit_equal_whatever_is_asked_for(tmp_path, seed):
    """Blocks are complete: replicates added later, shards and replays give the bits of a run in one go."""
    grid = {"n": [64]}
    whole = Study(simulate_batch=sim.products, grid=grid, replicates=21, seed=seed, batch_size=8).run().table()
    few = Study(
        simulate_batch=sim.products, grid=grid, replicates=5, seed=seed, batch_size=8, store=tmp_path / "a"
    ).run()
    assert np.array_equal(few.table()["product"], whole["product"][:5])
    more = Study(simulate_batch=sim.products, grid=grid, replicates=21, seed=seed, batch_size=8, store=tmp_path / "a")
    for i in (3, 1, 2):
        more.run(shard=(i, 3))
    assert more.table().digest(("seconds", "warnings")) == whole.digest(("seconds", "warnings"))
    assert all(more.replay({"n": 64}, r).equal for r in (0, 6, 20))
    alone = sim.products({"n": 64}, whole["seed"][3:4].tolist())["product"]
    np.testing.assert_allclose(alone, whole["product"][3:4], rtol=1e-5)


def test_a_block_that_fails_is_run_row_by_row(seed):
    def block(cell, seeds):
        return {"x": [sim.troubled(cell, s)["x"] for s in seeds]}

    study = Study(simulate_batch=block, grid={"trouble": ["raise"]}, replicates=40, seed=seed, batch_size=10)
    with pytest.warns(IncompleteStudyWarning):
        study.run()
    for row in study.table().rows():
        unlucky = sim.trouble({"trouble": "raise"}, row["seed"]) != "none"
        assert row["status"] == ("failed" if unlucky else "complete")
        assert math.isnan(row["x"]) if unlucky else row["x"] == row["seed"] % 11


def test_global_streams_are_seeded_and_put_back(seed):
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    study = Study(sim.global_streams, {"n": [1]}, 5, seed=seed).run()
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert len(np.unique(study.table()["a"])) == 5
    assert study.replay({"n": 1}, 3).equal
    elsewhere = Study(sim.global_streams, {"n": [1]}, 5, seed=seed).run(2).table()
    for name in "abc":
        assert np.array_equal(elsewhere[name], study.table()[name])


def test_one_thread_in_every_worker():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for n_jobs in (1, 2):
            table = Study(sim.threads, {"n": [1]}, 4).run(n_jobs).table()
            assert (table["torch"] == 1).all()
            assert n_jobs == 1 or (table["omp"] == 1).all()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_dear_cells_come_first():
    order = []

    def noting(cell, seed):
        order.append((cell["n"], cell["k"]))
        return {"x": 1.0}

    Study(noting, {"n": [10, 1000, 100], "k": [2, 3]}, 2, version="1").run()
    by_cost = [(1000, 3), (1000, 2), (100, 3), (100, 2), (10, 3), (10, 2)]
    assert order == [*by_cost, *by_cost]  # one of each first, while nothing has ever worked
    order.clear()
    study = Study(noting, {"n": [10, 1000, 100], "k": [2, 3]}, 2, version="1")
    study._rows.prepare()
    study._rows.add(Row(0, 0, 1, {"x": 1.0}))
    study._rows.flush()
    study.run()
    assert order == [cell for cell in by_cost for _ in range(2)][:-1]
    order.clear()
    Study(noting, {"n": [10, 1000], "k": [2]}, 1, version="1", cost=lambda cell: -cell["n"]).run()
    assert order == [(10, 2), (1000, 2)]


def test_measured_times_tell_which_cells_are_dear():
    order = []

    def noting(cell, seed):
        order.append(cell["n"])
        return {"x": 1.0}

    study = Study(noting, {"n": [1, 2, 3]}, 3, version="1")
    study._rows.prepare()
    for i, seconds in enumerate((5.0, 1.0, 9.0)):
        study._rows.add(Row(i, 0, 1, {"x": 1.0}, seconds))
    study._rows.flush()
    study.run()
    assert order == [3, 3, 1, 1, 2, 2]


def test_a_cell_that_never_works_does_not_stop_the_others():
    def simulate(cell, seed):
        if cell["n"] == 1000:
            raise ValueError("too large")
        return {"x": 1.0}

    study = Study(simulate, {"n": [10, 1000]}, 30)
    with pytest.warns(IncompleteStudyWarning):
        study.run()
    assert study.status()["complete"].tolist() == [30, 0]
    assert study.status()["failed"].tolist() == [0, 30]


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


@pytest.mark.parametrize(
    "given, message",
    [
        ({"grid": {"n": []}}, "the axis 'n' has no values"),
        ({"grid": {}}, "at least one axis"),
        ({"grid": {"n": 5}}, "the axis 'n' must be a list"),
        ({"grid": {"n": [1, 1]}}, "has the value 1 twice"),
        ({"grid": {"n": [1, 1.0]}}, "the same number as an integer and as a float"),
        ({"grid": {"n": [1, True]}}, "values of one kind, got a number and a truth value"),
        ({"grid": [{"n": 1}, {"n": "1"}]}, "values of one kind, got a number and a text"),
        ({"grid": {"n": [2**64]}}, "must be integers, finite numbers"),
        ({"grid": {"n": [math.nan]}}, "must be integers, finite numbers"),
        ({"grid": {"n": [None]}}, "must be integers, finite numbers"),
        ({"grid": {"seed": [1]}}, "must not be called 'seed'"),
        ({"grid": {"a=b": [1]}}, "without = and commas"),
        ({"grid": [{"n": 1}, {"k": 1}]}, "all cells must have the axes n"),
        ({"grid": [{"n": 1}, {"n": 1}]}, "there twice"),
        ({"grid": [1]}, "a mapping from axes to values, or a list of cells"),
        ({"replicates": 0}, "replicates must be"),
        ({"seed": -1}, "seed must be"),
        ({"simulate": None}, "needs simulate"),
        ({"simulate": 3}, "must be a function"),
        ({"paired": ["m"]}, "paired must be a list of axes out of n"),
        ({"paired": "n"}, "paired must be a list of axes"),
        ({"version": 2}, "version must be a text"),
        ({"store": 3}, "store must be a folder"),
        ({"batch_size": 1.5}, "batch_size must be"),
    ],
)
def test_bad_settings(given, message):
    with pytest.raises(DomainError, match=message):
        Study(**{"simulate": sim.mean, "grid": {"n": [1]}, **given})


@pytest.mark.parametrize(
    "given, message",
    [
        ({"n_jobs": 0}, "n_jobs must be"),
        ({"n_jobs": 1.0}, "n_jobs must be"),
        ({"backend": "threads"}, "backend must be"),
        ({"timeout": 0}, "timeout must be"),
        ({"shard": (0, 4)}, "shard must be i/N"),
        ({"shard": (5, 4)}, "shard must be i/N"),
        ({"shard": "3"}, "shard must be i/N"),
    ],
)
def test_bad_settings_of_a_run(given, message):
    study = Study(sim.mean, {"n": [5]}, 2)
    with pytest.raises(DomainError, match=message):
        study.run(**given)
    assert len(study.table()) == 0


@pytest.mark.parametrize(
    "cell, replicate, message",
    [
        ({"n": 6, "k": 1}, 0, "there is no cell n=6,k=1; there are n: 5, 20; k: 1, 2"),
        ({"n": 5}, 0, "a cell has the axes n, k"),
        ("n=5", 0, "a cell has the axes n, k"),
        ("n:5", 0, "named like n=5,k=1"),
        ({"n": 5, "k": 1}, True, "replicate must be from 0 to 2"),
        (3, 0, "a mapping such as"),
        ({"n": 5, "k": 1}, 3, "replicate must be from 0 to 2"),
    ],
)
def test_replays_of_nothing(cell, replicate, message):
    with pytest.raises(DomainError, match=message):
        Study(sim.mean, GRID, 3).replay(cell, replicate)


def test_a_replay_says_what_differs(tmp_path):
    shift = {"by": 0.0}

    def moved(cell, seed):
        return {"x": 1.0 + shift["by"]}

    study = Study(moved, {"n": [1], "gate": ["a"]}, 2, version="1").run()
    assert study.replay("n=1,gate=a", 1).equal is True
    assert "bit-equal to the store" in str(study.replay("n=1,gate=a", 1))
    shift["by"] = 2.0**-52
    different = study.replay({"gate": "a", "n": 1}, 1)
    assert different.equal is False and "NOT equal" in str(different) and "stored 1.0" in str(different)


def test_cells_are_named_as_they_are_printed():
    study = Study(lambda cell, seed: {"x": 1.0}, {"estimator": ["EM, early", "a=b"], "n": [5, 10]}, 2).run()
    assert study.replay("estimator=EM, early,n=10", np.int64(1)).cell == {"estimator": "EM, early", "n": 10}
    assert study.replay("estimator=a=b,n=5", 0).equal


def test_nan_is_equal_to_itself():
    study = Study(sim.tensors, {"n": [1]}, 1)
    assert study.replay({"n": 1}, 0).equal is None
    assert study.run().replay({"n": 1}, 0).equal is True


def test_nothing_is_warned_of_where_nothing_failed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Study(sim.mean, {"n": [5]}, 3).run()
