"""The files of a study: what they survive, and what they refuse."""

import json
import os
import shutil

import numpy as np
import pytest

from probnn.errors import DomainError, SerializationError
from probnn.studies import Study
from probnn.studies import store as storing
from probnn.studies.parts import Row, compact, part_names, read_part
from probnn.studies.store import Store
from tests import simulations as sim


def digest(study):
    return study.digest()


def small(store, replicates=6, **settings):
    return Study(sim.mean, {"n": [5, 9]}, replicates, store=store, **settings)


def test_rows_are_read_back(tmp_path, seed):
    first = small(tmp_path, seed=seed).run()
    again = small(tmp_path, seed=seed)
    assert again.table() == first.table()
    assert "12 of 12 rows complete" in repr(again)


def test_nothing_finished_is_run_again(tmp_path):
    calls = []

    def counted(cell, seed):
        calls.append((cell["n"], seed))
        return {"x": float(seed)}

    def study(grid, replicates):
        return Study(counted, grid, replicates, store=tmp_path, version="1")

    study({"n": [1]}, 3).run()
    study({"n": [1, 2]}, 5).run()
    assert len(calls) == len(set(calls)) == 10
    assert len(study({"n": [2]}, 2).run().table()) == 2  # fewer are shown, and the others are kept
    assert len(study({"n": [1, 2]}, 5).table()) == 10
    assert len(calls) == 10


def test_replicates_and_cells_added_later_give_the_same_table(tmp_path, seed):
    whole = Study(sim.mean, {"n": [5, 9], "k": [1, 2]}, 9, seed=seed).run()
    Study(sim.mean, {"n": [9], "k": [1]}, 4, seed=seed, store=tmp_path).run()
    Study(sim.mean, {"n": [9, 5], "k": [1]}, 7, seed=seed, store=tmp_path).run()
    added = Study(sim.mean, {"n": [5, 9], "k": [1, 2]}, 9, seed=seed, store=tmp_path).run()
    assert digest(added) == digest(whole)


def test_shards_share_a_store(tmp_path, seed):
    whole = small(tmp_path / "whole", seed=seed).run()
    for i in (4, 2, 1, 3):
        small(tmp_path / "shards", seed=seed).run(shard=f"{i}/4")
    assert digest(small(tmp_path / "shards", seed=seed)) == digest(whole)
    each = [small(tmp_path / f"{i}", seed=seed).run(shard=(i, 4)) for i in range(1, 5)]
    assert sum(len(s.table()) for s in each) == 12
    for i in range(2, 5):  # stores of several machines: the files in one folder
        shutil.copytree(tmp_path / f"{i}" / "rows", tmp_path / "1" / "rows", dirs_exist_ok=True)
    assert digest(small(tmp_path / "1", seed=seed)) == digest(whole)


def test_another_process_sees_what_was_written(tmp_path):
    reader, writer = small(tmp_path), small(tmp_path)
    writer.run()
    assert digest(reader) == digest(writer)
    assert reader.status()["missing"].tolist() == [0, 0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"simulate": sim.slow_mean}, "simulate.*is (gone|new)"),
        ({"simulate_batch": sim.means}, "mode was single, is batches of 20"),
        ({"paired": ["n"]}, "paired is new"),
        ({"version": "2"}, "version is new"),
        ({"grid": {"m": [5]}}, "another study, with the axes n where this one has m"),
    ],
)
def test_rows_made_differently_are_refused(tmp_path, change, message):
    small(tmp_path).run()
    files = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(DomainError, match=message):
        Study(**{"simulate": sim.mean, "grid": {"n": [5, 9]}, "replicates": 6, "store": tmp_path, **change})
    assert sorted(p.name for p in tmp_path.rglob("*")) == files


def test_the_same_version_says_that_results_have_not_changed(tmp_path):
    Study(sim.mean, {"n": [5]}, 3, store=tmp_path, version="2026").run()
    assert len(Study(sim.slow_mean, {"n": [5]}, 3, store=tmp_path, version="2026").table()) == 3


def test_joining_files_keeps_every_row(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(storing, "_MOST_ROWS", 1)
    monkeypatch.setattr(storing, "_MOST_PARTS", 1000)
    study = small(tmp_path, seed=seed).run()
    rows = tmp_path / "rows"
    names = part_names(rows)
    assert len(names) == 12
    before = digest(small(tmp_path, seed=seed))
    compact(rows, names[:5])
    compact(rows, names[5:7], most=1)
    assert len(part_names(rows)) == 8
    assert digest(small(tmp_path, seed=seed)) == before == digest(study)
    monkeypatch.setattr(storing, "_MOST_PARTS", 2)
    small(tmp_path, replicates=7, seed=seed).run()
    assert len(part_names(rows)) == 1
    assert digest(small(tmp_path, seed=seed)) == before


def test_joining_leaves_the_files_where_another_process_was_faster(tmp_path):
    small(tmp_path).run()
    rows = tmp_path / "rows"
    names = part_names(rows)
    compact(rows, [*names, "gone.npz"])
    assert part_names(rows) == names


def test_complete_rows_count_before_failed_ones_and_later_attempts_before_earlier(tmp_path):
    def store():
        return Store(tmp_path, [{"n": 1}], [{"seed": 0}], 3)

    first = store()
    first.prepare()
    for row in (Row(0, 0, 2, error="first"), Row(0, 1, 1, {"x": 1.0}), Row(0, 2, 2, error="only")):
        first.add(row)
    first.flush()
    first.add(Row(0, 0, 3, error="second"))
    first.flush()
    # Another process that had not read the row writes its failure later.
    late = Store(tmp_path / "elsewhere", [{"n": 1}], [{"seed": 0}], 3)
    late.prepare()
    late.add(Row(0, 1, 2, error="late"))
    late.flush()
    shutil.copytree(tmp_path / "elsewhere" / "rows", tmp_path / "rows", dirs_exist_ok=True)
    for found in (first, store()):
        found.refresh()
        assert found.status.tolist() == [[3, 1, 2]]
        assert found.values[0, 1].tolist() == [1.0]
        assert found.texts == {(0, 0): ("second", ""), (0, 2): ("only", "")}


def test_a_damaged_file_is_named(tmp_path):
    small(tmp_path).run()
    path = tmp_path / "rows" / part_names(tmp_path / "rows")[0]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SerializationError, match=f"{path.name}: damaged.*remove the file"):
        small(tmp_path)
    path.unlink()
    assert len(small(tmp_path).run().table()) == 12


def test_files_being_written_are_not_read_and_old_ones_go(tmp_path):
    small(tmp_path).run()
    half = tmp_path / "rows" / ".probnn-abc.tmp"
    half.write_bytes(b"half")
    assert len(small(tmp_path, 7).run().table()) == 14 and half.exists()
    os.utime(half, (0, 0))
    assert len(small(tmp_path, 8).run().table()) == 16 and not half.exists()


def test_a_hash_of_the_results_alone(tmp_path, seed):
    one, two = small(tmp_path / "a", seed=seed).run(), small(tmp_path / "b", seed=seed).run(2)
    assert one.digest() == two.digest() != small(tmp_path / "c", 5, seed=seed).run().digest()
    assert one.table().digest() != two.table().digest(())  # with the seconds


@pytest.mark.parametrize(
    "text, message", [("{", "damaged"), ('{"format": 2, "outputs": []}', "format 2, this version of probnn reads 1")]
)
def test_a_damaged_description_is_named(tmp_path, text, message):
    small(tmp_path).run()
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(SerializationError, match=message):
        small(tmp_path)


def test_the_description_can_be_read_by_people(tmp_path):
    small(tmp_path).run()
    about = json.loads((tmp_path / "study.json").read_text())
    assert about["axes"] == ["n"] and about["outputs"] == ["mean", "variance", "positive"]
    assert {"probnn", "python", "numpy"} <= set(about["made with"])


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DomainError, match="is a file"):
        small(tmp_path / "file")


def test_looking_writes_nothing(tmp_path):
    study = small(tmp_path / "new")
    study.table(), study.status(), repr(study)
    assert not (tmp_path / "new").exists()


def test_a_disk_that_is_full_harms_nothing_that_was_written(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(storing, "_MOST_ROWS", 2)
    study, written = small(tmp_path, seed=seed), []
    write = storing.write_part

    def full(folder, part):
        if len(written) == 3:
            raise OSError(28, "No space left on device", os.fspath(folder))
        written.append(part)
        return write(folder, part)

    monkeypatch.setattr(storing, "write_part", full)
    with pytest.raises(OSError, match="No space left"):
        study.run()
    monkeypatch.setattr(storing, "write_part", write)
    assert len(small(tmp_path, seed=seed).table()) == 6
    assert digest(small(tmp_path, seed=seed).run()) == digest(small(tmp_path / "other", seed=seed).run())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(tmp_path):
    small(tmp_path).run()
    for path in (tmp_path / "rows", tmp_path):
        path.chmod(0o555)
    try:
        study = small(tmp_path, replicates=8)
        assert len(study.table()) == 12
        with pytest.raises(PermissionError):
            study.run()
        assert len(study.table()) == 12
    finally:
        for path in (tmp_path, tmp_path / "rows"):
            path.chmod(0o755)


def test_many_rows_a_write(tmp_path):
    study = Study(lambda cell, seed: {"x": 1.0}, {"n": [1, 2, 3]}, 1000, store=tmp_path).run()
    names = part_names(tmp_path / "rows")
    assert len(study.table()) == 3000 and len(names) < 30
    assert sum(len(read_part(tmp_path / "rows" / n)) for n in names) == 3000
    assert sum((tmp_path / "rows" / n).stat().st_size for n in names) < 3000 * 60 + 5000 * len(names)


def test_outputs_of_other_files_must_be_those_of_the_store(tmp_path):
    small(tmp_path).run()
    Study(sim.tensors, {"n": [5]}, 2, store=tmp_path / "b", version="1").run()
    Study(sim.mean, {"n": [5]}, 2, store=tmp_path / "a", version="1").run()
    shutil.copytree(tmp_path / "b" / "rows", tmp_path / "a" / "rows", dirs_exist_ok=True)
    with pytest.raises(SerializationError, match="has the outputs"):
        Study(sim.mean, {"n": [5]}, 2, store=tmp_path / "a", version="1")


def test_values_come_back_to_the_last_bit(tmp_path, seed):
    table = Study(sim.mean, {"n": [5]}, 50, seed=seed, store=tmp_path).run().table()
    again = Study(sim.mean, {"n": [5]}, 50, seed=seed, store=tmp_path).table()
    assert np.array_equal(table["mean"].view(np.int64), again["mean"].view(np.int64))
