"""What determines the rows of a study: a fingerprint of its simulation function."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import sys
import types
from collections.abc import Mapping
from typing import Any

from ..errors import DomainError
from . import _code, _values
from ._values import sha

Entries = dict[str, Any]

__all__ = ["Entries", "differences", "fingerprint", "sha"]


def fingerprint(where: str, fn: Any) -> Entries:
    """What a function's results depend on, by name: ``{"fn": digest of its code, "fn.tol": "1e-06", ...}``.

    The code that runs (its bytecode, so comments, layout, docstrings and type hints do not count), defaults, closures,
    and the functions, classes and constants that it names, as far as they are the user's own: packages that are
    installed, and this one, count by name only. What is read from files, or looked up by a name made at run time, is
    not seen. Bytecode is that of a version of Python, which is an entry too.

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
    collector.entries["python"] = ".".join(map(str, sys.version_info[:2]))
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
        elif json.dumps(a[name]) != json.dumps(b[name]):  # for which 1 and 1.0 are two
            hidden = any(_is_digest(v) for v in (a[name], b[name]))
            found.append(f"{name} has changed" if hidden else f"{name} was {a[name]}, is {b[name]}")
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


class _Collector:
    def __init__(self, where: str):
        self.where = where
        self.entries: Entries = {}
        self._seen: dict[Any, str] = {}  # by what a thing was entered first
        self._keep: list[Any] = []  # so that no id is used twice

    def add(self, name: str, value: Any, attributes: frozenset[str] = frozenset()) -> None:
        """Enter what `value` is under a name; of a module of the user's, those of its contents that code reads."""
        if isinstance(value, types.ModuleType) and _code.own(value):
            for attribute in sorted(attributes & vars(value).keys()):
                self.add(f"{value.__name__}.{attribute}", vars(value)[attribute], attributes)
        elif isinstance(value, functools.partial):
            self.add(name, value.func)
            for key, item in [*enumerate(value.args), *value.keywords.items()]:
                self.add(f"{name}({key})", item)
        elif isinstance(value, types.MethodType):
            self.add(name, value.__func__)
            self.add(f"{name}.self", value.__self__)
        elif isinstance(value, types.FunctionType):
            self._function(name, value)
        elif isinstance(value, type) and _code.own(value):
            self._class(name, value)
        elif _values.by_name(value):
            self._enter(name, _values.named(value))
        else:
            self._value(name, value)

    def _enter(self, name: str, entry: Any) -> None:
        """An entry; of two things of one name the second has a number."""
        wanted, count = name, 1
        while wanted in self.entries and self.entries[wanted] != entry:
            count += 1
            wanted = f"{name} ({count})"
        self.entries[wanted] = entry

    def _first(self, name: str, value: Any) -> bool:
        """Whether a thing is met for the first time; else it is entered as the same as before."""
        before = self._seen.get(id(value))
        if before is None:
            self._seen[id(value)] = name
            self._keep.append(value)
            return True
        if before != name:
            self._enter(name, f"the same as {before}")
        return False

    def _function(self, name: str, fn: types.FunctionType) -> None:
        if not _code.own(fn) and "<locals>" not in fn.__qualname__:
            self._enter(name, _values.named(fn))
            return
        if not self._first(name, fn):
            return
        self._enter(name, sha(_code.text(fn.__code__)))
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
        for key, item in vars(fn).items():  # what decorators leave there
            self.add(f"{name}.{key}", item)
        read = _code.reads(fn.__code__)
        for key in sorted(read.names & fn.__globals__.keys()):
            self.add(key, fn.__globals__[key], read.attributes)
        for module, level in sorted(read.imports):
            self._import(fn, module, level, read.attributes)

    def _import(self, fn: types.FunctionType, module: str, level: int, attributes: frozenset[str]) -> None:
        """What a function imports when it runs."""
        package = fn.__globals__.get("__package__") or ""
        try:
            found = importlib.import_module("." * level + module, package or None)
        except Exception:  # it will fail, or not, when the function runs
            return
        self.add(found.__name__, found, attributes)

    def _class(self, name: str, cls: type) -> None:
        if not self._first(name, cls):
            return
        self._enter(name, f"class {cls.__qualname__}")
        for base in cls.__bases__:
            if base is not object:
                self.add(f"{name} of {base.__name__}", base)
        for key, attribute in vars(cls).items():
            inner = _values.functions_of(attribute)
            if inner:
                for fn in inner:
                    self.add(f"{name}.{key}", fn)
            elif isinstance(attribute, type) or not (key.startswith("__") or _values.is_descriptor(attribute)):
                self.add(f"{name}.{key}", attribute)

    def _value(self, name: str, value: Any) -> None:
        entry = _values.plain(value)
        if entry is not None:
            self._enter(name, entry)
            return
        if _code.own(type(value)):
            self.add(f"{name} ({type(value).__name__})", type(value))
        if isinstance(value, (list, tuple, set, frozenset)):
            items = _values.in_order(value) if isinstance(value, (set, frozenset)) else value
            self._enter(name, f"{type(value).__name__} of {len(value)}")
            for i, item in enumerate(items):
                self.add(f"{name}[{i}]", item)
        elif isinstance(value, Mapping):
            self._enter(name, f"{type(value).__name__} of {len(value)}")
            for i, (key, item) in enumerate(value.items()):
                label = _values.plain(key)
                if label is None:
                    label = f"key {i}"
                    self.add(f"{name}.{label}", key)
                self.add(f"{name}[{label}]", item)
        elif self._first(name, value):
            self._object(name, value)

    def _object(self, name: str, value: Any) -> None:
        cls = type(value)
        state = _values.state(value)
        if state is None:
            raise DomainError(
                f"{self.where}: cannot tell whether {name}, a {cls.__module__}.{cls.__qualname__}, is the same in the "
                "next run; give the study version='1', and another version whenever results would change"
            )
        self._enter(name, f"a {cls.__module__}.{cls.__qualname__}")
        for key, item in state.items():
            self.add(f"{name}.{key}", item)
