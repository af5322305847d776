"""Public names: all importable, all documented, every example runs (pytest collects the doctests).

What a docstring says is read from its sections. A function says what goes in (Args), what comes out (Returns), what it
refuses (Raises) and shows itself at work (Example); a class its fields, and an example. A method may do with one
paragraph; where it has sections, they are complete.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import probnn
from probnn.process import EmpiricalProcess, ParametricProcess, StochasticProcess

MODULES = ["probnn", *(f"probnn.{name}" for name in probnn._MODULES)]
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Example):[ ]*$", re.MULTILINE)
ENTRY = re.compile(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \(.*?\))?:", re.MULTILINE)
# The sections of `optimization` are not complete: some lack Returns, and FactorImportance an example.
SECTIONED = MODULES[1:]
# Their methods are the library's verbs: every one with sections.
VERBS = (StochasticProcess, ParametricProcess, EmpiricalProcess)
# Contracts to write a class against, and what comes out of functions whose examples show it.
NO_EXAMPLE = {
    "diagnostics.EcdfBands", "diagnostics.UniformityTest", "networks.Block", "predictive.MarginalPosterior",
    "process.RandomFunctions",
}  # fmt: skip


def public(module: str) -> list[tuple[str, Any]]:
    """The names a module offers: those it lists, or what it defines."""
    found: ModuleType = importlib.import_module(module)
    if hasattr(found, "__all__"):
        return [(name, getattr(found, name)) for name in found.__all__]
    return [
        (name, thing)
        for name, thing in vars(found).items()
        if not name.startswith("_") and getattr(thing, "__module__", None) == module and callable(thing)
    ]


def sections(thing: Any) -> dict[str, str]:
    """The sections of a docstring, and under the empty name what stands before them."""
    parts = SECTION.split(inspect.cleandoc(thing.__doc__ or ""))
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(text: str) -> set[str]:
    """The names that a section explains; several may share a line."""
    return {name.strip().lstrip("*") for match in ENTRY.findall(text) for name in match.split(",")}


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls") and name[0] != "_"]


def lacking(function: Callable[..., Any]) -> Iterator[str]:
    """What the sections of a function do not say."""
    said, taken = sections(function), parameters(function)
    yield from (f"Args: {name}" for name in taken if name not in entries(said.get("Args", "")))
    comes_out = inspect.signature(function).return_annotation not in (None, "None", inspect.Signature.empty)
    if taken and comes_out and not {"Returns", "Yields"} & said.keys():
        yield "Returns"
    code = inspect.getsource(function)
    if re.search(r"\braise [A-Z]\w*Error\(|\bvalidation\.\w+\(|\bcheck_seed\(", code) and "Raises" not in said:
        yield "Raises"


def methods(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public methods and properties that a class itself defines."""
    for name, thing in vars(cls).items():
        if isinstance(thing, (classmethod, staticmethod)):
            thing = thing.__func__
        if not name.startswith("_") and (inspect.isfunction(thing) or isinstance(thing, property)):
            yield name, thing


@pytest.mark.parametrize("module", MODULES)
def test_names_are_there_and_documented(module: str) -> None:
    for name, thing in public(module):
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert sections(thing)[""].strip(), f"{module}.{name} has no docstring"


@pytest.mark.parametrize("module", SECTIONED)
def test_functions_say_what_goes_in_and_comes_out(module: str) -> None:
    functions = [(name, thing) for name, thing in public(module) if inspect.isfunction(thing)]
    assert {name: found for name, thing in functions if (found := list(lacking(thing)))} == {}
    # One example at the top of `testing` shows how all checks are called.
    by_example = [] if module == "probnn.testing" else functions
    assert [name for name, thing in by_example if ">>>" not in sections(thing).get("Example", "")] == []


@pytest.mark.parametrize("module", SECTIONED)
def test_classes_explain_their_fields_and_show_themselves(module: str) -> None:
    for name, cls in public(module):
        if not inspect.isclass(cls):
            continue
        where = f"{module.removeprefix('probnn.')}.{name}"
        if dataclasses.is_dataclass(cls):
            of_all = [sections(base) for base in cls.__mro__]
            known = set().union(*(entries(s.get("Args", "") + "\n" + s.get("Attributes", "")) for s in of_all))
            fields = {f.name for f in dataclasses.fields(cls) if f.init and f.name[0] != "_"}
            assert fields <= known, f"{where}: {sorted(fields - known)}"
        if not (issubclass(cls, (Exception, Warning)) or inspect.isabstract(cls) or where in NO_EXAMPLE):
            assert ">>>" in sections(cls).get("Example", ""), f"{where} has no example"


@pytest.mark.parametrize("module", SECTIONED)
def test_methods_have_one_paragraph_or_whole_sections(module: str) -> None:
    problems = []
    for name, cls in public(module):
        for method, thing in methods(cls) if inspect.isclass(cls) else ():
            where = f"{name}.{method}"
            said = sections(thing)
            if not said[""].strip():
                problems.append(f"{where} has no docstring")
            elif inspect.isfunction(thing) and ("Args" in said or (cls in VERBS and parameters(thing))):
                problems += [f"{where}: {found}" for found in lacking(thing)]
    assert problems == []


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse(Path(probnn.__file__).read_text(encoding="utf-8"))
    (block,) = (n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = [alias.name for statement in block.body for alias in statement.names]  # type: ignore[attr-defined]
    assert sorted(seen) == sorted(set(probnn.__all__) - {"__version__"})


def test_dir_lists_the_public_names() -> None:
    assert set(probnn.__all__) <= set(dir(probnn))
    with pytest.raises(AttributeError, match="no_such_name"):
        probnn.no_such_name  # noqa: B018
