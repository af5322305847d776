"""What a row belongs to: the fingerprint of a simulation."""

import functools
import importlib
import os
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from probnn.errors import DomainError
from probnn.studies import Study
from probnn.studies.identity import differences, fingerprint

SOURCE = '''
import math
import numpy as np
from helpers_of_a_user import scale

TOLERANCE = 1e-6

class Estimator:
    rounds = 3
    def fit(self, x):
        return x.mean() * scale(2.0) + math.pi

def simulate(cell, seed, *, power=2):
    """Draw."""
    x = np.random.default_rng(seed).normal(size=cell["n"])  # a comment
    return {"x": Estimator().fit(x) ** power, "close": abs(x.mean()) < TOLERANCE}
'''
HELPER = "def scale(x):\n    return 2.0 * x\n"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load the user's modules with texts replaced."""
    monkeypatch.syspath_prepend(tmp_path)

    def loaded(replace=(), helper=HELPER):
        source = SOURCE
        for old, new in [replace] if replace else []:
            assert old in source
            source = source.replace(old, new)
        for name, text in (("helpers_of_a_user", helper), ("simulation_of_a_user", source)):
            (tmp_path / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        import linecache

        linecache.clearcache()
        sys.dont_write_bytecode = True
        return importlib.import_module("simulation_of_a_user").simulate

    before = sys.dont_write_bytecode
    yield loaded
    sys.dont_write_bytecode = before
    for name in ("helpers_of_a_user", "simulation_of_a_user"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "replace",
    [
        ("# a comment", "# another"),
        ('"""Draw."""', '"""Draw once more."""'),
        ('    """Draw."""\n', ""),
        ("def simulate(cell, seed,", "def simulate(cell: dict, seed: int,"),
        ("x = np", "x  =  np"),
        ("import math\n", "\nimport math\n"),
    ],
)
def test_layout_comments_and_docstrings_do_not_count(load, replace):
    assert fingerprint("Study", load()) == fingerprint("Study", load(replace))


@pytest.mark.parametrize(
    "replace, changed",
    [
        (("normal(", "uniform("), "simulate has changed"),
        (("TOLERANCE = 1e-6", "TOLERANCE = 1e-8"), "TOLERANCE was 1e-06, is 1e-08"),
        (("power=2", "power=3"), "simulate.power was 2, is 3"),
        (("rounds = 3", "rounds = 4"), "Estimator.rounds was 3, is 4"),
        (("+ math.pi", "- math.pi"), "Estimator.fit has changed"),
    ],
)
def test_what_results_depend_on_counts(load, replace, changed):
    before = fingerprint("Study", load())
    found = differences(before, fingerprint("Study", load(replace)))
    assert changed in found and len(found) <= 2


def test_functions_of_other_modules_count_if_they_are_the_users(load):
    before = fingerprint("Study", load())
    after = fingerprint("Study", load(helper=HELPER.replace("2.0", "3.0")))
    assert differences(before, after) == ["scale has changed"]
    assert before["np"] == "numpy"  # an installed package counts by name


def test_functions_reached_through_a_module_count(load, tmp_path):
    (tmp_path / "helpers_of_a_user.py").write_text(HELPER)
    through = "import helpers_of_a_user as helper\n\ndef simulate(cell, seed):\n    return {'x': helper.scale(seed)}\n"

    def made(helper):
        load(helper=helper)
        (tmp_path / "simulation_of_a_user.py").write_text(through)
        sys.modules.pop("simulation_of_a_user")
        importlib.invalidate_caches()
        return fingerprint("Study", importlib.import_module("simulation_of_a_user").simulate)

    before, unused, after = (made(h) for h in (HELPER, HELPER + "\nOTHER = 1\n", HELPER.replace("2.0", "3.0")))
    assert before == unused
    assert differences(before, after) == ["helpers_of_a_user.scale has changed"]


def test_constants_of_one_name_in_two_modules_are_told_apart(load):
    helper = "TOLERANCE = 1e-6\n\ndef scale(x):\n    return x * TOLERANCE\n"
    before = fingerprint("Study", load(helper=helper))
    after = fingerprint("Study", load(helper=helper.replace("1e-6", "1e-8")))
    assert len(differences(before, after)) >= 1
    assert differences(before, fingerprint("Study", load(("TOLERANCE = 1e-6", "TOLERANCE = 1e-7"), helper)))


def test_sets_in_code_are_the_same_in_every_process():
    words = "{" + ", ".join(repr(f"word {i}") for i in range(20)) + "}"
    code = (
        "from probnn.studies.identity import fingerprint; "
        f"print(fingerprint('x', lambda cell, seed: {{'x': cell['n'] in {words}}}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": str(i)}, capture_output=True, text=True,
            check=True,
        ).stdout
        for i in range(2)
    }  # fmt: skip
    assert len(found) == 1


def test_closures_partials_and_state():
    def made(scale):
        def simulate(cell, seed):
            return {"x": scale * seed}

        return simulate

    assert fingerprint("Study", made(1.0)) == fingerprint("Study", made(1.0))
    assert differences(fingerprint("Study", made(1.0)), fingerprint("Study", made(2.0))) == [
        "simulate.scale was 1.0, is 2.0"
    ]
    array, tensor = np.arange(5.0), torch.arange(5.0)
    for a, b in ((array, array + 1), (tensor, tensor + 1), (array, array.astype(np.float32)), ({"a": [1]}, {"a": [2]})):
        assert fingerprint("Study", made(a)) == fingerprint("Study", made(a))
        assert differences(fingerprint("Study", made(a)), fingerprint("Study", made(b)))
    partials = [functools.partial(made, scale=s) for s in (1, 2)]
    assert len(differences(*(fingerprint("Study", p) for p in partials))) == 1

    @dataclass(frozen=True)
    class Simulation:
        tolerance: float

        def __call__(self, cell, seed):
            return {"x": self.tolerance}

    assert differences(fingerprint("Study", Simulation(1e-6)), fingerprint("Study", Simulation(1e-8))) == [
        "Simulation.tolerance was 1e-06, is 1e-08"
    ]


def test_lambdas_are_told_apart():
    one, two = (lambda cell, seed: {"x": 1.0}), (lambda cell, seed: {"x": 2.0})
    assert differences(fingerprint("Study", one), fingerprint("Study", two))


def test_objects_that_cannot_be_told_apart_are_refused():
    generator = iter([1, 2])

    def simulate(cell, seed):
        return {"x": next(generator)}

    with pytest.raises(DomainError, match="cannot tell whether simulate.generator.*give the study version='1'"):
        Study(simulate, {"n": [1]}, 1)
    Study(simulate, {"n": [1]}, 1, version="1")


def test_recursive_functions_end():
    def factorial(k):
        return 1 if k == 0 else k * factorial(k - 1)

    def simulate(cell, seed):
        return {"x": factorial(cell["n"])}

    assert fingerprint("Study", simulate) == fingerprint("Study", simulate)


def test_objects_may_say_themselves_what_determines_a_row(tmp_path):
    @dataclass(frozen=True)
    class Simulation:
        tolerances: dict
        losses: tuple = ("a",)

        def __call__(self, cell, seeds):
            return {name: [self.tolerances[cell["estimator"]]] * len(seeds) for name in self.losses}

        def identity(self, cell):
            return {"tolerance": self.tolerances[cell["estimator"]], "losses": list(self.losses)}

    def study(simulation, estimators):
        return Study(simulate_batch=simulation, grid={"estimator": estimators}, replicates=3, store=tmp_path)

    study(Simulation({"em": 1e-6}), ["em"]).run()
    both = study(Simulation({"em": 1e-6, "newton": 1e-8}), ["em", "newton"])  # another estimator harms nobody
    assert len(both.table()) == 3
    with pytest.raises(DomainError, match="cell estimator=em .* simulate_batch.tolerance was 1e-06, is 1e-08"):
        study(Simulation({"em": 1e-8, "newton": 1e-8}), ["em", "newton"])
    with pytest.raises(DomainError, match="simulate_batch.losses was"):
        study(Simulation({"em": 1e-6}, ("a", "b")), ["em"])
