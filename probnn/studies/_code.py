"""Code as it runs: its bytecode, what it reads, and the files it comes from."""

from __future__ import annotations

import dis
import functools
import os
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any, NamedTuple


class Reads(NamedTuple):
    """What code reads, its inner functions included.

    Args:
        names: Of globals.
        attributes: Of whatever.
        imports: Modules that it imports when it runs, with the number of dots in front.
    """

    names: frozenset[str]
    attributes: frozenset[str]
    imports: frozenset[tuple[str, int]]


def reads(code: types.CodeType) -> Reads:
    """What code reads."""
    names: set[str] = set()
    attributes: set[str] = set()
    imports: set[tuple[str, int]] = set()
    constants: list[Any] = []
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(step.argval)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
            attributes.add(step.argval)
        elif step.opname == "IMPORT_NAME":  # the level and the names of the import are the constants before it
            level = constants[-2] if len(constants) > 1 and isinstance(constants[-2], int) else 0
            imports.add((step.argval, level))
        if step.opname.startswith("LOAD_CONST") or step.opname == "LOAD_SMALL_INT":
            constants.append(step.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = reads(constant)
            names |= inner.names
            attributes |= inner.attributes
            imports |= inner.imports
    return Reads(frozenset(names), frozenset(attributes), frozenset(imports))


def text(code: types.CodeType) -> str:
    """Code as a text that is the same in every process: steps with what they act on, and no docstring or lines."""
    steps = [
        f"{step.opname} {_constant(step.argval) if step.opcode in dis.hasconst else step.argval!r}"
        for step in dis.get_instructions(code)
        if step.opname not in ("RESUME", "NOP")
    ]
    about = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_varnames, code.co_freevars)
    table = getattr(code, "co_exceptiontable", b"").hex()
    return f"{about} {code.co_flags & 0xFF} {table} {steps}"


def _constant(value: Any) -> str:
    """A constant of code; sets have no order of their own."""
    if isinstance(value, types.CodeType):
        return text(value)
    if isinstance(value, frozenset):
        return f"set{sorted(map(_constant, value))}"
    return f"({', '.join(map(_constant, value))})" if isinstance(value, tuple) else repr(value)


@functools.lru_cache(1)
def _installed() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    here = str(Path(__file__).resolve().parents[1])
    return (*(os.path.realpath(paths[k]) for k in ("stdlib", "platstdlib", "purelib", "platlib")), here)


def own(value: Any) -> bool:
    """Whether a function, class or module is the user's own, neither of an installed package nor of this one."""
    if isinstance(value, types.ModuleType):
        module: types.ModuleType | None = value
    else:
        module = sys.modules.get(getattr(value, "__module__", None) or "")
    if module is None or module.__name__ == "__main__":
        return module is not None or getattr(value, "__module__", None) is None
    file = getattr(module, "__file__", None)
    if file is None:
        return module.__name__ not in sys.builtin_module_names and module.__name__ != "builtins"
    file = os.path.realpath(file)
    return not any(file.startswith(root + os.sep) for root in _installed())
