"""Workers that die or hang, and studies that are killed."""

import multiprocessing
import os
import shutil
import signal
import sys
import time

import numpy as np
import pytest

from probnn.errors import IncompleteStudyWarning, UnsupportedError
from probnn.studies import Study
from probnn.studies.cells import seeds_of
from tests import simulations as sim

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork")


def expected(kind, status, replicates, seed):
    cell = {"trouble": kind}
    return [status if sim.trouble(cell, s) == kind else "complete" for s in seeds_of(seed, cell, range(replicates))]


def few_troubles(kind, replicates, seed, most):
    """A seed with at least one and not too many troubles, each of which costs seconds."""
    while not 0 < sum(s != "complete" for s in expected(kind, "x", replicates, seed)) <= most:
        seed += 1
    return seed


def test_a_worker_that_dies_costs_its_own_row(seed):
    seed = few_troubles("die", 12, seed, 2)
    study = Study(sim.troubled, {"trouble": ["die", "none"]}, 12, seed=seed)
    with pytest.warns(IncompleteStudyWarning):
        study.run(2)
    table = study.table()
    assert table.where(trouble="die")["status"].tolist() == expected("die", "killed", 12, seed)
    assert set(table.where(trouble="none")["status"]) == {"complete"}
    done = table.where(status="complete")
    assert np.array_equal(done["x"], done["seed"] % 11)
    assert "its worker died" in table.where(status="killed")["error"][0]
    assert os.listdir(study.store / "rows") and not (study.store / "running").exists()


def test_a_worker_that_is_killed_from_outside_costs_nothing(tmp_path):
    """What was running when a worker went is run again by itself, and is innocent."""

    def first_time_deadly(cell, seed):
        marker = tmp_path / str(seed)
        if seed % 5 == 0 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"x": float(seed % 11)}

    seed = few_troubles("die", 12, 0, 2)
    study = Study(first_time_deadly, {"trouble": ["die"]}, 12, seed=seed, version="1").run(2)
    assert set(study.table()["status"]) == {"complete"} and list(tmp_path.iterdir())


def test_an_innocent_block_keeps_its_bits(tmp_path):
    """Blocks that were running when a worker was killed from outside are run again as blocks."""

    def deadly_once(cell, seeds):
        marker = tmp_path / str(seeds[0])
        if cell["n"] == 64 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return sim.products(cell, seeds)

    grid = {"n": [64, 65]}
    killed = Study(simulate_batch=deadly_once, grid=grid, replicates=16, batch_size=8, version="1").run(2)
    whole = Study(simulate_batch=sim.products, grid=grid, replicates=16, batch_size=8, version="1").run()
    assert list(tmp_path.iterdir()) and killed.digest() == whole.digest()


def test_a_worker_that_hangs_costs_its_own_row(seed):
    """In compiled code that holds the interpreter, where no signal's handler can run."""
    seed = few_troubles("hang", 8, seed, 1)
    study = Study(sim.troubled, {"trouble": ["hang"]}, 8, seed=seed)
    with pytest.warns(IncompleteStudyWarning):
        study.run(2, timeout=0.5)
    assert study.table()["status"].tolist() == expected("hang", "timeout", 8, seed)
    assert "the process was ended" in study.table().where(status="timeout")["error"][0]


def test_a_worker_that_sleeps_is_woken(seed):
    seed = few_troubles("sleep", 12, seed, 2)
    study = Study(sim.troubled, {"trouble": ["sleep"]}, 12, seed=seed)
    with pytest.warns(IncompleteStudyWarning):
        study.run(2, timeout=0.5)
    assert study.table()["status"].tolist() == expected("sleep", "timeout", 12, seed)


def test_a_block_whose_worker_dies_costs_one_row(seed):
    def block(cell, seeds):
        return {"x": [sim.troubled(cell, s)["x"] for s in seeds]}

    seed = few_troubles("die", 8, seed, 1)
    study = Study(
        simulate_batch=block, grid={"trouble": ["die"]}, replicates=8, seed=seed, batch_size=4, version="1"
    )  # fmt: skip
    with pytest.warns(IncompleteStudyWarning):
        study.run(2)
    assert study.table()["status"].tolist() == expected("die", "killed", 8, seed)
    dead = seeds_of(seed, {"trouble": "die"}, range(8)).index(int(study.table().where(status="killed")["seed"][0]))
    beside = next(r for r in range(dead - dead % 4, dead - dead % 4 + 4) if r != dead)
    assert study.replay({"trouble": "die"}, beside).equal  # as it was run, alone: its block would end this process


def test_workers_that_cannot_have_the_function():
    class Stubborn:
        def __call__(self, cell, seed):
            return {"x": 1.0}

        def __reduce__(self):
            return (__import__, ("a_module_that_is_nowhere",))

    with pytest.raises(UnsupportedError, match="ended before they ran anything: ModuleNotFoundError"):
        Study(Stubborn(), {"n": [1]}, 4, version="1").run(2)


def test_notes_of_killed_runs_are_swept_and_those_of_others_kept(tmp_path):
    import socket

    child = multiprocessing.get_context("fork").Process(target=lambda: None)
    child.start()
    child.join()
    running = tmp_path / "running"
    dead, alive, elsewhere = (
        running / name
        for name in (f"{socket.gethostname()}-{child.pid}-ab", f"{socket.gethostname()}-{os.getpid()}-cd", "other-1-ef")
    )
    for path in (dead, alive, elsewhere):
        path.mkdir(parents=True)
    Study(sim.mean, {"n": [5]}, 4, store=tmp_path).run(2)
    assert not dead.exists() and alive.exists() and elsewhere.exists()


def study(store, replicates=30):
    return Study(sim.slow_mean, {"n": [5, 9, 11], "k": [1, 2]}, replicates, seed=3, store=store)


def forked(store, replicates=30, shard=None):
    """A process that runs the study, as a job of a queue would."""
    child = multiprocessing.get_context("fork").Process(target=lambda: study(store, replicates).run(shard=shard))
    child.start()
    return child


@pytest.mark.skipif(sys.platform == "darwin", reason="forks are not safe there")
def test_killed_ten_times_resumed_elsewhere_in_shards_and_extended(tmp_path, monkeypatch, seed):
    """The table is that of an uninterrupted run, to the last bit."""
    from probnn.studies import store as storing

    monkeypatch.setattr(storing, "_SECONDS", 0.01)  # writes often, so that kills meet writes
    monkeypatch.setattr(storing, "_SHARE", 0.0)
    whole = study(None, 50).run()
    table_of_all = whole.table()
    rng, survived = np.random.default_rng(seed), 0
    for _ in range(10):
        child = forked(tmp_path)
        time.sleep(rng.uniform(0.03, 0.12))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        survived += child.exitcode == 0
        table = study(tmp_path).table()  # always readable
        rows = {(r["n"], r["k"], r["replicate"]): r["mean"] for r in table.rows()}
        assert all(table_of_all.where(n=n, k=k, replicate=r)["mean"] == [m] for (n, k, r), m in rows.items())
    assert survived < 5 and 0 < len(table) <= 180
    elsewhere = tmp_path.with_name("elsewhere")
    shutil.copytree(tmp_path, elsewhere)
    children = [forked(elsewhere, shard=(i, 4)) for i in range(1, 5)]
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert study(elsewhere).status()["missing"].sum() == 0
    extended = study(elsewhere, 50).run(2)
    assert extended.digest() == whole.digest()
