"""What determines the rows of a study: a fingerprint of its simulation function."""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import os
import sys
import sysconfig
import textwrap
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DomainError

Entries = dict[str, Any]


def fingerprint(where: str, fn: Any) -> Entries:
    """What a function's results depend on, by name: ``{"fn": digest of its code, "fn.tol": 1e-6, ...}``.

    The code (comments, layout and docstrings apart), defaults, closures, and the functions, classes and constants that
    it names, as far as they are the user's own: packages that are installed, and this one, count by name only. What
    is read from files, or changed by name at run time, is not seen.

    Args:
        where: What an error begins with.
        fn: A function, a `functools.partial`, a method, or an object with ``__call__``.

    Returns:
        Entries that JSON can write.

    Raises:
        DomainError: It holds an object of which it cannot be told whether it is the same next time.
    """
    collector = _Collector(where)
    collector.add(getattr(fn, "__name__", type(fn).__name__), fn)
    return collector.entries


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what differs between two sets of entries, which may be nested."""
    a, b = _flat(there), _flat(now)
    found = []
    for name in dict.fromkeys([*a, *b]):
        if name not in b:
            found.append(f"{name} is gone")
        elif name not in a:
            found.append(f"{name} is new")
        elif a[name] != b[name]:
            shown = not any(_is_digest(v) for v in (a[name], b[name]))
            found.append(f"{name} was {a[name]!r}, is {b[name]!r}" if shown else f"{name} has changed")
    return found


def _flat(entries: Mapping[str, Any], prefix: str = "") -> Entries:
    found: Entries = {}
    for name, value in entries.items():
        if isinstance(value, Mapping) and value:
            found.update(_flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("sha256:")


def sha(data: str | bytes) -> str:
    """A digest as it stands in entries."""
    return "sha256:" + hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:32]


class _Collector:
    def __init__(self, where: str):
        self.where = where
        self.entries: Entries = {}
        self._seen: set[Any] = set()
        self._keep: list[Any] = []  # so that no id is used twice

    def add(self, name: str, value: Any, read: Collection[str] = ()) -> None:
        """Enter what `value` is under a name; of a module of the user's, what of it is among the names `read`."""
        if isinstance(value, types.ModuleType) and _own(value):
            if self._first((id(value), tuple(sorted(read)))):
                for attribute in sorted(read):
                    if attribute in vars(value):
                        self.add(f"{value.__name__}.{attribute}", vars(value)[attribute], read)
        elif isinstance(value, functools.partial):
            self.add(name, value.func)
            for key, item in [*enumerate(value.args), *value.keywords.items()]:
                self.add(f"{name}({key})", item)
        elif isinstance(value, types.MethodType):
            self.add(name, value.__func__)
            self.add(f"{name}.self", value.__self__)
        elif isinstance(value, types.FunctionType):
            self._function(name, value)
        elif isinstance(value, (types.ModuleType, types.BuiltinFunctionType)) or (
            isinstance(value, type) and not _own(value)
        ):
            self._enter(name, _named(value))
        elif isinstance(value, type):
            self._class(name, value)
        else:
            self._value(name, value)

    def _enter(self, name: str, entry: Any) -> None:
        """An entry; of two things of one name the second has a number."""
        wanted, count = name, 1
        while wanted in self.entries and self.entries[wanted] != entry:
            count += 1
            wanted = f"{name} ({count})"
        self.entries[wanted] = entry

    def _first(self, value: Any) -> bool:
        key = value if isinstance(value, tuple) else id(value)
        if key in self._seen:
            return False
        self._seen.add(key)
        self._keep.append(value)
        return True

    def _function(self, name: str, fn: types.FunctionType) -> None:
        if not _own(fn) and "<locals>" not in fn.__qualname__:
            self._enter(name, _named(fn))
            return
        if not self._first(fn):
            return
        self._enter(name, sha(_code(fn)))
        for i, default in enumerate(fn.__defaults__ or ()):
            self.add(f"{name}.default {i}", default)
        for key, default in (fn.__kwdefaults__ or {}).items():
            self.add(f"{name}.{key}", default)
        for key, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            try:
                content = cell.cell_contents
            except ValueError:  # a name that its function has not set yet
                continue
            self.add(f"{name}.{key}", content)
        self._globals(fn)

    def _globals(self, fn: types.FunctionType) -> None:
        read = _names(fn.__code__)
        for key in sorted(read):
            if key in fn.__globals__:
                self.add(key, fn.__globals__[key], read)

    def _class(self, name: str, cls: type) -> None:
        if not self._first(cls):
            return
        self._enter(name, sha(_source(cls) or cls.__qualname__))
        for base in cls.__bases__:
            if base is not object:
                self.add(f"{name} of {base.__name__}", base)
        for attribute in vars(cls).values():
            inner = getattr(attribute, "__func__", getattr(attribute, "fget", attribute))
            if isinstance(inner, types.FunctionType) and inner.__module__ == cls.__module__:
                self._globals(inner)

    def _value(self, name: str, value: Any) -> None:
        plain = _plain(value)
        if plain is not None:
            self._enter(name, plain[0])
        elif isinstance(value, (list, tuple, set, frozenset)):
            items = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
            self._enter(name, f"{type(value).__name__} of {len(value)}")
            for i, item in enumerate(items):
                self.add(f"{name}[{i}]", item)
        elif isinstance(value, Mapping):
            self._enter(name, f"{type(value).__name__} of {len(value)}")
            for key, item in value.items():
                self.add(f"{name}[{key!r}]", item)
        elif self._first(value):
            self._object(name, value)

    def _object(self, name: str, value: Any) -> None:
        cls = type(value)
        self.add(name, cls)
        if dataclasses.is_dataclass(value):
            state = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        elif hasattr(value, "state_dict"):
            state = dict(value.state_dict())
        elif isinstance(getattr(value, "__dict__", None), dict) and (_own(cls) or vars(value)):
            state = vars(value)
        else:
            raise DomainError(
                f"{self.where}: cannot tell whether {name}, a {cls.__module__}.{cls.__qualname__}, is the same in the "
                "next run; give the study version='1', and another version whenever results would change"
            )
        for key, item in state.items():
            self.add(f"{name}.{key}", item)


def _plain(value: Any) -> tuple[Any] | None:
    """The entry of a simple value."""
    if value is None or isinstance(value, (bool, int, str)):
        if isinstance(value, str) and (len(value) > 60 or value.startswith("sha256:")):
            return (sha(value),)
        return (value,)
    if isinstance(value, (float, complex)):
        return (repr(value),)
    if isinstance(value, (bytes, bytearray)):
        return (sha(bytes(value)),)
    if isinstance(value, enum.Enum):
        return (str(value),)
    if isinstance(value, os.PathLike):
        return (os.fspath(value),)
    if isinstance(value, np.generic):
        return (repr(value),)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return (_array(value),)
    torch = sys.modules.get("torch")
    if torch is not None:
        if isinstance(value, torch.Tensor):
            return (_array(value.detach().cpu().contiguous().numpy()),)
        if isinstance(value, (torch.dtype, torch.device, torch.Size)):
            return (str(value),)
    return None


def _array(values: np.ndarray) -> str:
    header = json.dumps([values.dtype.str, list(values.shape)])
    return sha(header.encode() + np.ascontiguousarray(values).tobytes())


def _named(value: Any) -> str:
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", getattr(value, "__name__", repr(value)))
    return name if module is None else f"{module}.{name}"


@functools.lru_cache(1)
def _installed() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    here = str(Path(__file__).resolve().parents[1])
    return (*(os.path.realpath(paths[k]) for k in ("stdlib", "platstdlib", "purelib", "platlib")), here)


def _own(value: Any) -> bool:
    """Whether code is the user's own, neither of an installed package nor of this one."""
    module = value if isinstance(value, types.ModuleType) else sys.modules.get(getattr(value, "__module__", None) or "")
    if module is None or module.__name__ == "__main__":
        return module is not None or getattr(value, "__module__", None) is None
    file = getattr(module, "__file__", None)
    if file is None:
        return module.__name__ not in sys.builtin_module_names and module.__name__ != "builtins"
    file = os.path.realpath(file)
    return not any(file.startswith(root + os.sep) for root in _installed())


def _names(code: types.CodeType) -> set[str]:
    """Names that code reads, its inner functions included."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


def _code(fn: types.FunctionType) -> str:
    """A function's code: of its source where there is one, else of its bytecode."""
    source = None if fn.__name__ == "<lambda>" else _source(fn)
    return source or f"Python {sys.version_info[:2]} {_bytecode(fn.__code__)}"


def _source(value: Any) -> str | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    except (OSError, TypeError, SyntaxError):
        return None
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)  # the same in every version of Python, which its dump is not


def _bytecode(code: types.CodeType) -> str:
    constants = [_constant(c) for c in code.co_consts]
    return repr((code.co_code.hex(), code.co_names, code.co_varnames, constants))


def _constant(value: Any) -> str:
    """A constant of code, the same in every process: sets have no order of their own."""
    if isinstance(value, types.CodeType):
        return _bytecode(value)
    if isinstance(value, frozenset):
        return f"set{sorted(map(_constant, value))}"
    return f"({', '.join(map(_constant, value))})" if isinstance(value, tuple) else repr(value)
