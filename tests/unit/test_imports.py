"""Who may import whom, and what an import costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import probnn

ROOT = Path(probnn.__file__).parent

# A module imports from lower floors, its own folder, or what stands to its left on its floor.
FLOORS = (
    ("_version", "equality", "errors", "random", "validation", "progress", "io"),
    ("networks", "likelihoods", "predictive", "process"),
    ("diagnostics", "priors", "inference"),
    ("pfn", "moe", "pvrnn", "boltzmann"),
    ("surrogates", "bridges"),
    ("plots", "studies", "optimization", "testing"),
    ("cli", "__main__"),
)
FAMILIES = set(FLOORS[3])  # none imports another
PLACE = {room: (floor, i) for floor, rooms in enumerate(FLOORS) for i, room in enumerate(rooms)}
# Conveniences may import upwards, in a method of two lines.
CONVENIENCES = {"to_arviz", "to_pyro", "plot"}
# Imported inside functions only; those not required at all are among them. A sampler of Optuna is a class of Optuna's:
# only its own module, which no other imports, may begin with it.
LATE = {"arviz", "matplotlib", "pandas", "xarray", "joblib", "sklearn", "optuna", "dask", "distributed", "ray", "tqdm"}


class Import:
    """One import: whose it is, what it names, and which functions it stands in."""

    def __init__(self, target: str, functions: tuple[ast.AST, ...], typing_only: bool, line: int):
        self.target, self.functions, self.typing_only, self.line = target, functions, typing_only, line

    @property
    def convenience(self) -> bool:
        for f in self.functions:
            if isinstance(f, ast.FunctionDef) and f.name in CONVENIENCES:
                return len(f.body) - (ast.get_docstring(f) is not None) <= 2
        return False


def imports(source: str, module: str) -> Iterator[Import]:
    """Every import of a module such as ``probnn.process.base``, with absolute targets."""

    def walk(node: ast.AST, functions: tuple[ast.AST, ...], typing_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, functions, typing_only, node.lineno)
        if isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[: -node.level]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            # From the package itself, names are modules: they count one by one.
            for target in [f"probnn.{alias.name}" for alias in node.names] if base == "probnn" else [base]:
                yield Import(target, functions, typing_only, node.lineno)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            functions = (*functions, node)
        for child in ast.iter_child_nodes(node):
            guarded = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and child in node.body
            yield from walk(child, functions, typing_only or guarded)

    yield from walk(ast.parse(source), (), False)


def violations(source: str, module: str) -> list[str]:
    """What is wrong with the imports of a module, in words."""
    room, found = module.split(".")[1], []
    if room not in PLACE:
        return [f"{module}: probnn/{room} has no floor; give it one in FLOORS and in the design"]
    for item in imports(source, module):
        root, _, rest = item.target.partition(".")
        where, at_import = f"{module}, line {item.line}", not item.functions and not item.typing_only
        if root == "probnn":
            other = rest.split(".")[0]
            if other not in PLACE:
                found.append(f"{where}: {item.target} is no module; import it from where it lives")
                continue
            if other == room:
                continue
            lower = PLACE[other] < PLACE[room] and not (other in FAMILIES and room in FAMILIES)
            if not lower and not item.convenience:
                found.append(f"{where}: {room} must not import {other}")
            continue
        if root in LATE and at_import and (root, module) != ("optuna", "probnn.optimization.optuna"):
            found.append(f"{where}: {root} is to be imported inside a function")
        if root == "arviz" and module != "probnn.bridges.arviz":
            found.append(f"{where}: only bridges/arviz.py imports arviz")
        if root in ("gpytorch", "botorch", "linear_operator") and at_import and room != "predictive":
            if PLACE[room][0] <= 1:
                found.append(f"{where}: {root} is too heavy to be imported with the core")
        if root == "pyro" and at_import and module != "probnn.bridges.pyro":
            found.append(f"{where}: pyro is to be imported inside a function")
        if root == "torch" and at_import and room in ("cli", "_version", "errors"):
            found.append(f"{where}: `probnn --help` must not import torch")
    return found


def modules() -> dict[str, Path]:
    """Every module of the library but its root, by a name that relative imports can be resolved with."""
    out = {}
    for path in sorted(ROOT.rglob("*.py")):
        if path != ROOT / "__init__.py":
            out[".".join(("probnn", *path.relative_to(ROOT).with_suffix("").parts))] = path
    return out


@pytest.mark.parametrize("module", modules())
def test_floors(module: str) -> None:
    assert violations(modules()[module].read_text(encoding="utf-8"), module) == []


def test_the_root_imports_nothing_but_the_version() -> None:
    found = imports((ROOT / "__init__.py").read_text(encoding="utf-8"), "probnn.__init__")
    eager = {item.target for item in found if not item.functions and not item.typing_only}
    assert eager == {"__future__", "importlib", "typing", "probnn._version"}


UPWARD = "def {}(self):\n    '''Doc.'''\n    from ..bridges.arviz import to_arviz\n    {}return to_arviz(self)"


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("process.base", "from ..inference import HMC", "process must not import inference"),
        ("process.base", "import probnn.surrogates.model", "process must not import surrogates"),
        ("process.base", "from .. import io, bridges", "process must not import bridges"),
        ("process.base", "if TYPE_CHECKING:\n    from ..priors import WeightPrior", "must not import priors"),
        ("process.__init__", "from ..priors import NormalWeights", "must not import priors"),
        ("networks.mlp", "from ..process import StochasticProcess", "networks must not import process"),
        ("random", "from .validation import inputs", "random must not import validation"),
        ("moe.model", "from ..pfn import PFN", "moe must not import pfn"),
        ("process.base", "from .. import MLP", "probnn.MLP is no module"),
        ("process.base", "import probnn", "is no module"),
        ("extras.thing", "import math", "has no floor"),
        ("plots.lines", "import matplotlib.pyplot as plt", "inside a function"),
        ("plots.lines", "def draw():\n    import arviz", "only bridges/arviz.py"),
        ("optimization.loop", "from optuna.samplers import BaseSampler", "inside a function"),
        ("process.base", "from botorch.posteriors import Posterior", "too heavy"),
        ("priors.weights", "import pyro.distributions as dist", "inside a function"),
        ("cli.main", "try:\n    import torch\nexcept ImportError:\n    raise", "must not import torch"),
        ("process.empirical", UPWARD.format("export", ""), "process must not import bridges"),
        ("process.empirical", UPWARD.format("to_arviz", "print()\n    "), "process must not import bridges"),
    ],
)
def test_a_violation_is_seen(module: str, source: str, words: str) -> None:
    found = violations(source, f"probnn.{module}")
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "process.base",
            "from .. import io, validation\nfrom ..predictive import DrawsPosterior\nfrom . import parametric",
        ),
        ("process.base", "if TYPE_CHECKING:\n    from botorch.posteriors import Posterior"),
        ("process.base", "def predict():\n    from botorch.posteriors import Posterior"),
        ("process.empirical", UPWARD.format("to_arviz", "")),
        ("predictive.draws", "from botorch.posteriors import Posterior"),
        ("inference.hmc", "import gpytorch\nfrom ..diagnostics import rhat"),
        ("bridges.pyro", "import pyro"),
        ("cli.main", "def run():\n    import torch, joblib"),
    ],
)
def test_what_is_allowed(module: str, source: str) -> None:
    assert violations(source, f"probnn.{module}") == []


def fresh(code: str) -> list[list[str]]:
    """Run code in a new interpreter; it prints JSON in its last line."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_what_imports_leave_out() -> None:
    """One interpreter in steps, so that torch is imported once: nothing that came stays away later."""
    steps = {
        "import probnn": ["torch"],
        "import probnn.process, probnn.networks": ["gpytorch", "botorch", "linear_operator", "pyro"],
        "import probnn.inference": [],
        "import probnn.surrogates, probnn.bridges": ["arviz", "matplotlib", "pandas", "xarray", "joblib", "sklearn"],
    }
    unwanted = [sum(list(steps.values())[i:], []) for i in range(len(steps))]
    code = "import json, sys\nfound = []\n"
    for step, names in zip(steps, unwanted, strict=True):
        code += f"{step}\nfound.append([name for name in {names} if name in sys.modules])\n"
    assert fresh(code + "print(json.dumps(found))") == [[], [], [], []]


def test_help_needs_no_torch() -> None:
    code = (
        "import json, sys\nfrom probnn.cli import main\n"
        "try:\n    status = main(['--help'])\nexcept SystemExit as end:\n    status = end.code\n"
        "heavy = [name for name in ('torch', 'numpy', 'pyro', 'arviz', 'matplotlib') if name in sys.modules]\n"
        "print(json.dumps([[str(status or 0)], heavy]))"
    )
    assert fresh(code) == [["0"], []]
