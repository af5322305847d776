"""Values in a fingerprint: what they are, in entries that JSON can write."""

from __future__ import annotations

import copyreg
import dataclasses
import enum
import functools
import hashlib
import json
import logging
import os
import re
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from ._code import own

_LONG = 60  # characters of a text that is entered as it is


def sha(data: str | bytes) -> str:
    """A digest as it stands in entries."""
    return "sha256:" + hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:32]


def plain(value: Any) -> str | None:
    """The entry of a simple value; None of others. Kinds are told apart: 1, 1.0 and "1" are three."""
    if isinstance(value, enum.Enum):
        return str(value)
    if value is None or type(value) in (bool, int, float, complex, str):
        shown = repr(value)
        return shown if len(shown) <= _LONG else sha(shown)
    if isinstance(value, (bytes, bytearray)):
        return sha(bytes(value))
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    if isinstance(value, np.generic):
        return repr(value)
    if type(value) is np.ndarray and not value.dtype.hasobject:
        return _array(value)
    if isinstance(value, torch.Tensor):
        return f"{type(value).__name__} {_array(value.detach().cpu().contiguous().resolve_conj().numpy())}"
    if isinstance(value, (torch.dtype, torch.device, torch.Size, range, re.Pattern, np.dtype, types.EllipsisType)):
        return repr(value)
    return None


def _array(values: np.ndarray) -> str:
    header = json.dumps([values.dtype.str, list(values.shape)])
    return sha(header.encode() + np.ascontiguousarray(values).tobytes())


def in_order(values: Iterable[Any]) -> list[Any]:
    """The members of a set in an order that every process has."""
    return sorted(values, key=lambda x: (type(x).__name__, plain(x) or named(x)))


def named(value: Any) -> str:
    """A thing by its module and name."""
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or type(value).__qualname__
    return str(name) if module is None else f"{module}.{name}"


def by_name(value: Any) -> bool:
    """Whether a thing of an installed package is entered by its name: nobody but its package changes it."""
    kinds = (types.ModuleType, type, types.BuiltinFunctionType, np.ufunc, logging.Logger)
    if isinstance(value, kinds):
        return True
    if plain(value) is not None or isinstance(value, (list, tuple, set, frozenset, dict)) or own(type(value)):
        return False
    # An object that its package has in one of its modules, such as scipy.stats.norm.
    top = type(value).__module__.partition(".")[0]
    packages = [m for key, m in list(sys.modules.items()) if key.partition(".")[0] == top]
    return any(value is item for m in packages if isinstance(m, types.ModuleType) for item in list(vars(m).values()))


def functions_of(attribute: Any) -> list[types.FunctionType]:
    """The functions behind an attribute of a class: a method, a property, a cached one."""
    found = []
    for part in (attribute, *(getattr(attribute, n, None) for n in ("__func__", "func", "fget", "fset", "fdel"))):
        if isinstance(part, functools.partialmethod):
            part = part.func
        if isinstance(part, types.FunctionType) and part not in found:
            found.append(part)
    return found


def is_descriptor(attribute: Any) -> bool:
    """Whether an attribute of a class is machinery, such as the members of slots."""
    return isinstance(attribute, (types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType))


def state(value: Any) -> Mapping[str, Any] | None:
    """What an object is made of; None where that cannot be told."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    held = getattr(value, "__dict__", None)
    if isinstance(held, dict) and (own(type(value)) or held):
        slots = {name: getattr(value, name) for name in copyreg._slotnames(type(value)) if hasattr(value, name)}  # type: ignore[attr-defined]
        return {**slots, **held}
    if own(type(value)):
        names = copyreg._slotnames(type(value))  # type: ignore[attr-defined]
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    shown = repr(value)
    if type(value).__module__.partition(".")[0] in sys.stdlib_module_names and " at 0x" not in shown:
        return {"value": shown}  # a fraction, a date
    return None
