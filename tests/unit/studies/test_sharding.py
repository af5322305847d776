"""Shards of a queue."""

import itertools

import pytest

from probnn.errors import DomainError
from probnn.studies import Study
from probnn.studies.sharding import shard_of
from tests import simulations as sim


@pytest.mark.parametrize("given", ["3/40", (3, 40), [3, 40], " 3 / 40"])
def test_shards_in_words(given):
    assert shard_of("run", given) == (3, 40)


@pytest.mark.parametrize("given", ["0/4", "5/4", "1", "a/b", (1,), (1.0, 2.0), (True, 2), 3, "-1/4", "1/0", ""])
def test_shards_out_of_range(given):
    with pytest.raises(DomainError, match="run: shard must be i/N with i from 1 to N"):
        shard_of("run", given)


SLURM = {"SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_MAX": "18", "SLURM_ARRAY_TASK_STEP": "4"}


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_COUNT": "3", **SLURM}, (2, 3)),
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "39"}, (1, 40)),
        ({"SGE_TASK_ID": "7", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "9", "SGE_TASK_STEPSIZE": "2"}, (4, 5)),
        ({"SGE_TASK_ID": "undefined", "LSB_JOBINDEX": "5", "LSB_JOBINDEX_END": "8"}, (5, 8)),
    ],
)
def test_array_tasks_of_schedulers(environment, expected):
    assert shard_of("run", "auto", environment) == expected


@pytest.mark.parametrize(
    "environment, message",
    [
        ({}, "none is set; give --shard i/N"),
        ({"SGE_TASK_ID": "undefined", "LSB_JOBINDEX": "0"}, "none is set"),
        # Tasks 7 and 9 alone, submitted again: their numbers do not say which shards they are.
        ({"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "2", **SLURM}, "no regular array"),
        ({"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_COUNT": "2", **SLURM}, "no regular array"),
    ],
)
def test_array_tasks_that_cannot_be_numbered(environment, message):
    with pytest.raises(DomainError, match=message):
        shard_of("run", "auto", environment)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_shards_are_a_partition_whatever_is_done_already(tmp_path, count):
    study = Study(sim.mean, {"n": [5, 9, 11]}, 5, store=tmp_path)
    rows = [[(u.cell, u.wanted) for u in study._units((i, count), True)] for i in range(1, count + 1)]
    assert sorted(itertools.chain(*rows)) == sorted((u.cell, u.wanted) for u in study._units(None, True))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    study.run(shard=(1, count))
    assert [[(u.cell, u.wanted) for u in study._units((i, count), True)] for i in range(2, count + 1)] == rows[1:]
