"""Studies on joblib's other backends."""

import os
import sys

import pytest

from probnn.errors import DomainError, IncompleteStudyWarning, UnsupportedError
from probnn.studies import Study
from probnn.studies.cells import seeds_of
from tests import simulations as sim


@pytest.fixture(scope="module")
def client():
    os.environ["PROBNN_TEST_PROCESS"] = str(os.getpid())
    distributed = pytest.importorskip("distributed")
    import dask

    # By default a task is tried on three more workers after the first one died of it.
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        with distributed.Client(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as made:
            yield made
    del os.environ["PROBNN_TEST_PROCESS"]


def test_dask_gives_the_same_bits(client, seed):
    here = Study(sim.mean, {"n": [5, 20]}, 30, seed=seed).run().digest()
    for n_jobs in (None, 1, 2):
        assert Study(sim.process, {"n": [1]}, 4).run(n_jobs, backend="dask").table()["other"].all()
        assert Study(sim.mean, {"n": [5, 20]}, 30, seed=seed).run(n_jobs, backend="dask").digest() == here


def test_a_dask_worker_that_dies_or_sleeps_costs_its_own_row(client):
    cells = [{"trouble": "die"}, {"trouble": "sleep"}, {"trouble": "raise"}, {"trouble": "none"}]
    seed = 0
    while [sum(s % 5 == 0 for s in seeds_of(seed, c, range(5))) for c in cells[:2]] != [1, 1]:
        seed += 1
    study = Study(sim.troubled, cells, 5, seed=seed)
    with pytest.warns(IncompleteStudyWarning):
        study.run(2, backend="dask", timeout=0.5)
    status = {"die": "killed", "sleep": "timeout", "raise": "failed", "none": "complete"}
    for row in study.table().rows():
        unlucky = row["seed"] % 5 == 0
        assert row["status"] == (status[row["trouble"]] if unlucky else "complete")
        assert unlucky and row["trouble"] != "none" or row["x"] == row["seed"] % 11


def test_dask_without_a_client(monkeypatch):
    distributed = pytest.importorskip("distributed")

    def none() -> None:
        raise ValueError("No clients found")

    monkeypatch.setattr(distributed, "default_client", none)
    with pytest.raises(DomainError, match="needs a distributed.Client"):
        Study(sim.mean, {"n": [5]}, 4).run(2, backend="dask")


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    variables = {"PYTHONPATH": os.pathsep.join(sys.path)}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
    yield
    ray.shutdown()


def test_ray_gives_the_same_bits(cluster, seed):
    here = Study(sim.mean, {"n": [5, 20]}, 30, seed=seed).run()
    there = Study(sim.mean, {"n": [5, 20]}, 30, seed=seed).run(backend="ray")
    assert here.digest() == there.digest()


def test_a_ray_worker_that_dies_costs_its_own_row(cluster):
    seed = 0
    while sum(s % 5 == 0 for s in seeds_of(seed, {"trouble": "die"}, range(5))) != 1:
        seed += 1
    study = Study(sim.troubled, {"trouble": ["die"]}, 5, seed=seed)
    with pytest.warns(IncompleteStudyWarning):
        study.run(2, backend="ray")
    for row in study.table().rows():
        assert row["status"] == ("killed" if row["seed"] % 5 == 0 else "complete")


def test_backends_that_are_not_installed(monkeypatch):
    import builtins

    imported = builtins.__import__

    def without(name, *rest, **more):
        if name.split(".")[0] in ("ray", "distributed"):
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    for backend in ("dask", "ray"):
        with pytest.raises(UnsupportedError, match=rf"pip install 'probnn\[{backend}\]'"):
            Study(sim.mean, {"n": [5]}, 4).run(2, backend=backend)
