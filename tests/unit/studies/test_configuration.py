"""Studies as TOML files: what they say, where the function comes from, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from probnn.errors import DomainError
from probnn.studies import Bias, Coverage, Mean, Study, load, report
from probnn.studies.convergence import ConvergenceStudy
from probnn.studies.functions import NamedFunction, load_function

MODULE = """
import numpy as np

SCALE = 1.0

def run(cell, seed):
    x = SCALE * np.random.default_rng(seed).exponential(size=cell["n"])
    return {"estimate": x.mean(), "covered": float(abs(x.mean() - 1) < 1)}

def batch(cell, seeds):
    rows = [run(cell, seed) for seed in seeds]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}
"""
FILE = """
title = "Means"
simulate = "means_of_draws:run"
replicates = 6
seed = 3
timeout = 30

[grid]
n = [5, 20]

[quick]
replicates = 2
grid = { n = [5] }

[measures]
bias = { output = "estimate", truth = 1.0 }
coverage = [{ output = "covered" }, { lower = "covered", upper = "estimate", truth = 0.5, name = "odd" }]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A study's folder, which is not the present one."""
    path, modules = list(sys.path), set(sys.modules)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "means_of_draws.py").write_text(MODULE)
    (tmp_path / "here" / "s.toml").write_text(FILE)
    yield tmp_path / "here"
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("means_of"):
            del sys.modules[name]


def test_what_a_file_says_is_what_is_run(folder: Path) -> None:
    study = load(folder / "s.toml")
    assert study.store == folder / "runs" / "s" and not study.store.exists()
    assert (study.cells, study.replicates, study.seed) == ([{"n": 5}, {"n": 20}], 6, 3)
    study.run()
    from means_of_draws import run  # type: ignore[import-not-found]

    by_hand = Study(run, {"n": [5, 20]}, replicates=6, seed=3).run()
    assert study.table().digest() == by_hand.table().digest()
    measures = [Bias("estimate", 1.0), Coverage("covered"), Coverage(None, "covered", "estimate", 0.5, "odd")]
    assert study.summary() == by_hand.summary(measures)
    assert study.summary([Mean("estimate")]) == by_hand.summary([Mean("estimate")])


def test_a_store_is_the_same_for_a_file_and_for_the_function_it_names(folder: Path) -> None:
    load(folder / "s.toml").run()
    from means_of_draws import run

    study = Study(run, {"n": [5, 20]}, replicates=6, seed=3, store=folder / "runs" / "s")
    assert int(study.status()["complete"].sum()) == 12


def test_sizes_share_the_store(folder: Path) -> None:
    quick = load(folder / "s.toml", size="quick").run()
    assert len(quick.table()) == 2
    assert load(folder / "s.toml").status()["complete"].tolist() == [2, 0]
    assert load(folder / "s.toml", replicates=9).replicates == 9
    assert load(folder / "s.toml", store="other").store == Path("other")


def test_workers_find_the_module_beside_the_file(folder: Path) -> None:
    """Whatever the workers' path was when they were started."""
    two = load(folder / "s.toml").run(n_jobs=2)
    one = load(folder / "s.toml", store=folder / "one").run()
    assert two.table().digest() == one.table().digest() and len(two.table()) == 12


def test_batches(folder: Path) -> None:
    text = FILE.replace("simulate =", 'simulate_batch = "means_of_draws:batch"\nbatch_size = 4\nsimulate =')
    (folder / "b.toml").write_text(text)
    table = load(folder / "b.toml").run(n_jobs=2).table()
    assert table["estimate"].tolist() == load(folder / "s.toml").run().table()["estimate"].tolist()


def test_a_changed_function_is_refused_and_another_module_of_the_name_is_taken(folder: Path, tmp_path: Path) -> None:
    load(folder / "s.toml").run()
    (folder / "means_of_draws.py").write_text(MODULE.replace("SCALE = 1.0", "SCALE = 20.0"))
    with pytest.raises(DomainError, match=r"s\.toml: the store .* made differently: .*SCALE"):
        load(folder / "s.toml")
    changed = load(folder / "s.toml", store=tmp_path / "changed").run(n_jobs=2)
    assert changed.table()["estimate"].min() > 3  # the old function would give about 1: no worker has it any more
    other = tmp_path / "other"
    other.mkdir()
    (other / "means_of_draws.py").write_text(MODULE.replace("SCALE = 1.0", "SCALE = 400.0"))
    (other / "s.toml").write_text(FILE)
    assert load(other / "s.toml").run(n_jobs=2).table()["estimate"].min() > 60


def test_a_worker_refuses_a_file_that_changed_meanwhile(folder: Path) -> None:
    found = NamedFunction("means_of_draws:run", (str(folder),))
    make, arguments = found.__reduce__()
    assert make(*arguments)({"n": 3}, 1) == found({"n": 3}, 1)
    (folder / "means_of_draws.py").write_text(MODULE + "# later\n")
    make.cache_clear()
    with pytest.raises(DomainError, match="changed while the study was running"):
        make(*arguments)


def test_the_folder_of_the_file_comes_before_the_present_one(folder: Path) -> None:
    Path("means_of_draws.py").write_text("def run(cell, seed):\n    return {'estimate': -1.0}\n")
    assert load_function("means_of_draws:run", [folder])({"n": 2}, 0)["estimate"] > 0
    assert load_function("means_of_draws:run")({"n": 2}, 0)["estimate"] == -1


def test_a_module_of_python_is_not_replaced(folder: Path) -> None:
    (folder / "json.py").write_text("def run(cell, seed): return {'x': 1.0}")
    with pytest.raises(DomainError, match="another module 'json' is loaded already, .*another name"):
        load_function("json:run", [folder])
    import json

    assert json.loads("[1]") == [1]


def test_convergence_studies_are_handed_on(folder: Path) -> None:
    shipped = Path(__file__).parents[3] / "benchmarks" / "studies" / "s1.toml"
    study = load(shipped, size="quick", store=folder / "s1", replicates=5)
    assert isinstance(study, ConvergenceStudy) and study.replicates == 5 and study.store == folder / "s1"
    with pytest.raises(DomainError, match="path= is needed"):
        report(study)


def test_a_report_says_what_came_out_and_what_failed(folder: Path) -> None:
    study = load(folder / "s.toml")
    with pytest.raises(DomainError, match="no rows yet"):
        report(study)
    text = report(study.run(), folder / "r.md", mcse=0.05)
    assert (folder / "r.md").read_text() == text
    assert text.startswith("# Means\n") and "12 of 12 replicates are complete" in text
    assert study.digest() in text and "every one is complete" in text
    assert "To bring the standard error of the bias estimate at n = 5 from" in text
    assert "\\begin{tabular}" in report(study, format="latex") and "mean covered" in report(
        study, measures=[Mean("covered")]
    )


SIMPLE = 'simulate = "means_of_draws:run"\nreplicates = 2\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("replicates = ", "is not valid TOML: "),
        ("replicates = 3\n[grid]\nn = [1]\n", 'expected simulate = "module:function"'),
        (SIMPLE, r"expected a table \[grid\]"),
        (SIMPLE.replace("replicates = 2", "") + "[grid]\nn = [1]\n", "expected replicates"),
        (SIMPLE + "[grid]\n", "at least one axis"),
        (SIMPLE + "[grid]\nn = []\n", "the axis 'n' has no values"),
        (SIMPLE + "[grid]\nn = 3\n", "the axis 'n' must be a list"),
        (SIMPLE + "[grid]\nn = [1, 1]\n", "the value 1 twice"),
        (SIMPLE + "[grid]\nn = [[1]]\n", "must be integers"),
        (SIMPLE + "[grid]\nseed = [1]\n", "must not be called 'seed'"),
        (SIMPLE + "grid = 3\n", "grid must be a mapping"),
        (SIMPLE + "relicates = 3\n[grid]\nn = [1]\n", "no entry 'relicates'; did you mean replicates"),
        (SIMPLE + "seed = -1\n[grid]\nn = [1]\n", "seed"),
        (SIMPLE + "seed = 'a'\n[grid]\nn = [1]\n", "seed"),
        (SIMPLE + "timeout = 0\n[grid]\nn = [1]\n", "timeout"),
        (SIMPLE + "batch_size = 1.5\n[grid]\nn = [1]\n", "batch_size"),
        (SIMPLE + "paired = ['k']\n[grid]\nn = [1]\n", "paired must be a list of axes"),
        (SIMPLE + "version = 1\n[grid]\nn = [1]\n", "version must be a text"),
        (SIMPLE + "store = 3\n[grid]\nn = [1]\n", "store: expected the name of a folder"),
        (SIMPLE + "title = 3\n[grid]\nn = [1]\n", "title: expected text"),
        (SIMPLE + "mcse = -1\n[grid]\nn = [1]\n", "mcse"),
        (SIMPLE + "kind = 'other'\n[grid]\nn = [1]\n", "kind must be one of"),
        (SIMPLE + "quick = 3\n[grid]\nn = [1]\n", r"\[quick\] must be a table"),
        (SIMPLE + "[grid]\nn = [1]\n[full]\nseed = 3\n", r"\[full\]: there is no entry 'seed'"),
        (SIMPLE + "[grid]\nn = [1]\n[measures]\n", "has no measure"),
        (SIMPLE + "[grid]\nn = [1]\n[measures]\nbiass = {}\n", "no entry 'biass'; did you mean bias"),
        (SIMPLE + "[grid]\nn = [1]\n[measures]\nbias = {output = 'x'}\n", "bias: lacks truth"),
        (SIMPLE + "[grid]\nn = [1]\n[measures]\nbias = 'x'\n", "bias: expected a table"),
        (SIMPLE + "[grid]\nn = [1]\n[measures]\nmean = {output = 3}\n", "mean: output must be"),
        (SIMPLE + "[grid]\nn = [1]\n[measures]\nmean = {outputs = 'x'}\n", "no entry 'outputs'; did you mean output"),
        (SIMPLE.replace("_draws:run", "_draws") + "[grid]\nn = [1]\n", 'simulate: expected "module:function"'),
        (SIMPLE.replace("_draws:run", "_draws:walk") + "[grid]\nn = [1]\n", "has no function 'walk'"),
        (SIMPLE.replace("_draws:run", "_draws:SCALE") + "[grid]\nn = [1]\n", "has no function 'SCALE'"),
        (SIMPLE.replace("of_draws", "of_dice") + "[grid]\nn = [1]\n", "there is no module 'means_of_dice'"),
        (SIMPLE.replace("_draws:", "_draws.py:") + "[grid]\nn = [1]\n", "a module and no file"),
        ('simulate = 3\nreplicates = 2\n[grid]\nn = [1]\n', 'simulate: expected "module:function"'),
        ('kind = "convergence"\nseed = 1\n', "lacks truth"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_one_line(folder: Path, text: str, words: str) -> None:
    path = folder / "bad.toml"
    path.write_text(text)
    with pytest.raises(DomainError, match=words) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert str(error.value).count(str(path)) == 1
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("bad", [b"\xff\xfe", None])
def test_files_that_cannot_be_read(folder: Path, bad: bytes | None) -> None:
    if bad is not None:
        (folder / "bad.toml").write_bytes(bad)
    with pytest.raises(DomainError, match=r"bad\.toml: (is not UTF-8|cannot be read: No such file)"):
        load(folder / "bad.toml")


def test_a_size_that_the_file_has_not(folder: Path) -> None:
    (folder / "s.toml").write_text(SIMPLE + "[grid]\nn = [1]\n")
    with pytest.raises(DomainError, match=r"there is no table \[quick\]"):
        load(folder / "s.toml", size="quick")
    with pytest.raises(DomainError, match="size must be one of"):
        load(folder / "s.toml", size="huge")


def test_a_module_that_fails_on_import(folder: Path) -> None:
    (folder / "means_of_draws.py").write_text("raise RuntimeError('not today')")
    with pytest.raises(DomainError, match="simulate: .* failed: RuntimeError: not today"):
        load(folder / "s.toml")
    (folder / "means_of_draws.py").write_text("import no_such_thing_at_all")
    with pytest.raises(DomainError, match="importing 'means_of_draws' failed: No module named 'no_such_thing_at_all'"):
        load(folder / "s.toml")
