"""How deep a fingerprint looks: everything here changes results, or nothing."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
import types
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.stats
import torch

from probnn.errors import DomainError
from probnn.studies.identity import differences, fingerprint

PREAMBLE = """
import functools, dataclasses
from typing import NamedTuple
import numpy as np, torch
"""


def made(source: str) -> Callable[..., Any]:
    """`simulate` of a notebook's cell: code without a file."""
    module = types.ModuleType("__main__")
    exec(compile(PREAMBLE + source, "<cell>", "exec"), module.__dict__)
    return module.simulate


CHANGES = {
    "a decorator": (
        "def louder(fn):\n    @functools.wraps(fn)\n    def inner(*a):\n"
        "        return {k: OLD * v for k, v in fn(*a).items()}\n"
        "    return inner\n@louder\ndef simulate(cell, seed):\n    return {'x': 1.0}\n",
        "1.0", "2.0",
    ),
    "a class of a notebook": (
        "class Model:\n    def draw(self):\n        return OLD\ndef simulate(cell, seed):\n"
        "    return {'x': Model().draw()}\n",
        "1.0", "2.0",
    ),
    "one of two uses of a function": (
        "def f(x):\n    return x\ndef g(x):\n    return -x\nTABLE = {'a': f, 'b': g, 'c': OLD}\n"
        "def simulate(cell, seed):\n    return {'x': TABLE['c'](seed)}\n",
        "f", "g",
    ),
    "a layer without parameters": (
        "NET = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.OLD())\n"
        "torch.nn.init.ones_(NET[0].weight)\ndef simulate(cell, seed):\n"
        "    return {'x': NET(torch.ones(1)).item()}\n",
        "Tanh", "ReLU",
    ),
    "a number of a module": (
        "class Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = 1.0\n"
        "NET = Net()\nNET.a = OLD\ndef simulate(cell, seed):\n    return {'x': NET.a}\n",
        "1.0", "2.0",
    ),
    "a constant of a class": (
        "TOL = OLD\nclass Model:\n    tol = TOL\ndef simulate(cell, seed):\n    return {'x': Model.tol}\n",
        "1.0", "2.0",
    ),
    "a method of a named tuple": (
        "class P(NamedTuple):\n    a: float\n    def twice(self):\n        return OLD * self.a\nP1 = P(1.0)\n"
        "def simulate(cell, seed):\n    return {'x': P1.twice()}\n",
        "2", "3",
    ),
    "a helper of a cached property": (
        "def helper():\n    return OLD\nclass M:\n    @functools.cached_property\n    def v(self):\n"
        "        return helper()\n"
        "def simulate(cell, seed):\n    return {'x': M().v}\n",
        "1.0", "2.0",
    ),
    "a helper of a nested class": (
        "def helper():\n    return OLD\nclass M:\n    class Inner:\n        def v(self):\n"
        "            return helper()\n"
        "def simulate(cell, seed):\n    return {'x': M.Inner().v()}\n",
        "1.0", "2.0",
    ),
    "a number that becomes a text": ("TOL = OLD\ndef simulate(cell, seed):\n"
        "    return {'x': float(TOL)}\n", "1.0", "'1.0'"),
    "an integer that becomes a float": ("TOL = OLD\ndef simulate(cell, seed):\n    return {'x': TOL}\n", "1", "1.0"),
    "a default": ("def simulate(cell, seed, *, power=OLD):\n    return {'x': power}\n", "1", "2"),
    "a field of a dataclass": (
        "@dataclasses.dataclass(frozen=True)\nclass C:\n    tol: float = 1.0\nC1 = C(OLD)\n"
        "def simulate(cell, seed):\n    return {'x': C1.tol}\n",
        "1.0", "2.0",
    ),
    "a method of an object": (
        "class C:\n    def __call__(self, x):\n        return OLD * x\nC1 = C()\n"
        "def simulate(cell, seed):\n    return {'x': C1(1)}\n",
        "1.0", "2.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("source, old, new", CHANGES.values(), ids=CHANGES.keys())
def test_changes_that_count(source: str, old: str, new: str) -> None:
    one, same, other = (made(source.replace("OLD", x)) for x in (old, old, new))
    assert fingerprint("Study", one) == fingerprint("Study", same)
    assert differences(fingerprint("Study", one), fingerprint("Study", other))


HARMLESS = {
    "a function called like a method": ("", "def mean(x):\n    return 7\n"),
    "type hints": ("def f(x):\n    return x\n", "def f(x: float) -> float:\n    return x\n"),
    "another function": ("", "def unused():\n    return 1\n"),
    "a docstring": ("def f(x):\n    return x\n", "def f(x):\n    'Say it.'\n    return x\n"),
}


@pytest.mark.parametrize("before, after", HARMLESS.values(), ids=HARMLESS.keys())
def test_changes_that_do_not_count(before: str, after: str) -> None:
    body = "{}def simulate(cell, seed):\n    x = np.ones(3)\n    return {{'x': f(x.mean())}}\n"
    common = "" if "def f(" in before else "def f(x):\n    return x\n"
    one, other = (made(common + body.format(text)) for text in (before, after))
    assert differences(fingerprint("Study", one), fingerprint("Study", other)) == []


class Pair(NamedTuple):
    a: float


@dataclasses.dataclass(frozen=True)
class Setting:
    tol: float = 1.0


@pytest.mark.parametrize(
    "value",
    [
        logging.getLogger("x"), re.compile("a+"), range(5), Fraction(1, 3), scipy.stats.norm, Setting(), Pair(1.0),
        {frozenset({"a", "b"}): 1, max: 2}, {"a", "b", "c"}, np.dtype("f8"), torch.float64, None, ..., b"bytes",
        functools.partial(max, 1), np.float32(1.5), torch.nn.Linear(1, 1), len, np.add,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_things_that_simulations_hold(value: Any) -> None:
    def simulate(cell: Any, seed: Any) -> Any:
        return {"x": value}

    assert fingerprint("Study", simulate) == fingerprint("Study", simulate)


def test_a_stream_of_random_numbers_is_never_the_same() -> None:
    generator = np.random.default_rng(0)

    def simulate(cell: Any, seed: Any) -> Any:
        return {"x": generator.random()}

    with pytest.raises(DomainError, match="cannot tell whether simulate.generator"):
        fingerprint("Study", simulate)
