"""Public names: all importable, all documented, every example runs (pytest collects the doctests)."""

from __future__ import annotations

import dataclasses
import importlib
import inspect

import pytest

import probnn

MODULES = [
    "probnn",
    *(
        f"probnn.{name}"
        for name in (
            "bridges", "diagnostics", "inference", "likelihoods", "networks", "optimization", "predictive", "priors",
            "process", "surrogates", "testing",
        )
    ),
]  # fmt: skip


def public(module: str) -> list[tuple[str, object]]:
    found = importlib.import_module(module)
    return [(name, getattr(found, name)) for name in found.__all__]


@pytest.mark.parametrize("module", MODULES)
def test_names_are_there_and_documented(module: str) -> None:
    for name, thing in public(module):
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), f"{module}.{name} has no docstring"


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_say_what_goes_in_and_comes_out(module: str) -> None:
    for name, thing in public(module):
        where = f"{module}.{name}"
        if dataclasses.is_dataclass(thing) and inspect.isclass(thing):
            doc = thing.__doc__ or ""
            missing = [
                f.name
                for f in dataclasses.fields(thing)
                if f.init and not f.name.startswith("_") and f.name not in _all_docs(thing)
            ]
            assert not missing, f"{where}: the docstring does not speak of {missing}"
            assert doc.strip(), where
        elif inspect.isfunction(thing):
            doc, signature = inspect.getdoc(thing) or "", inspect.signature(thing)
            for parameter in signature.parameters.values():
                assert parameter.name in doc or parameter.kind is parameter.VAR_KEYWORD, f"{where}: {parameter.name}"


def _all_docs(cls: type) -> str:
    return " ".join(c.__doc__ or "" for c in cls.__mro__)


def test_dir_lists_the_public_names() -> None:
    assert set(probnn.__all__) <= set(dir(probnn))
    with pytest.raises(AttributeError, match="no_such_name"):
        probnn.no_such_name  # noqa: B018
