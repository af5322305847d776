"""Seeds, grids, and what a study runs and gives."""

import hashlib
import importlib
import json
import math
import os
import random
import sys
import warnings

import numpy as np
import pytest
import torch

from probnn.errors import DomainError, IncompleteStudyWarning
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


def test_one_thread_of_blas_in_this_process():
    from threadpoolctl import threadpool_info

    def simulate(cell, seed):
        return {"most": max(lib["num_threads"] for lib in threadpool_info())}

    before = max(lib["num_threads"] for lib in threadpool_info())
    study = Study(simulate, {"n": [1]}, 2).run()
    assert (study.table()["most"] == 1).all() and study.replay({"n": 1}, 0).equal
    assert max(lib["num_threads"] for lib in threadpool_info()) == before


def test_cells_that_were_not_run_are_listed():
    study = Study(sim.mean, {"n": [5, 20]}, 4).run(shard=(1, 2))
    study.run(shard=(1, 1), retry=False)
    half = Study(sim.mean, {"n": [5, 20]}, 4)
    half._rows.prepare()
    half._rows.add(Row(0, 0, 1, {"mean": 1.0}))
    half._rows.flush()
    assert half.summary()["num_replicates"].tolist() == [1, 1, 0, 0]
    assert half.failures()["num_replicates"].tolist() == [1, 0]


def test_workers_have_the_code_of_this_process(tmp_path, monkeypatch):
    """Reloaded, edited, or assigned to: rows are those of the code that they are stored under, or there are none."""
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "edited_later.py"
    source = "TOL = {}\ndef simulate(cell, seed):\n    return {{'x': TOL}}\n"

    def write(tol):
        path.write_text(source.format(tol) + "# " + "x" * len(str(tol)))
        os.utime(path, (1, hash(tol) % 10**6))  # so that no bytecode of before is taken for it
        importlib.invalidate_caches()

    def study():
        return Study(module.simulate, {"n": [1]}, 8)

    write(1)
    module = importlib.import_module("edited_later")
    try:
        assert (study().run(2).table()["x"] == 1).all()
        write(2)
        importlib.reload(module)
        assert (study().run(2).table()["x"] == 2).all()
        before = study()
        write(3)
        assert (before.run().table()["x"] == 2).all()  # here the code is the one that was loaded
        module.TOL = 4
        with pytest.raises(
            DomainError, match="workers have other code than this process: simulate.TOL was 4, is 3 there"
        ):
            study().run(2)
    finally:
        sys.modules.pop("edited_later")
