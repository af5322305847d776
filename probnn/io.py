"""Saving and loading: one ``.safetensors`` file an object, readable without this library.

Everything saveable is a frozen dataclass whose fields are numbers, strings, tuples, dictionaries,
tensors or saveables, so there is no code per class here. What is not (torch modules, kernels) has a
codec. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ._version import __version__
from .errors import SerializationError

FORMAT = 1
_UMASK = os.umask(0)  # read once: reading means setting, for all threads
os.umask(_UMASK)
_DTYPE_NAMES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool"
_DTYPES = {name: getattr(torch, name) for name in _DTYPE_NAMES.split()}
_FLOATS = {repr(value): value for value in (math.inf, -math.inf, math.nan)}  # JSON has no words for these
_registered: dict[str, type] = {}
_codecs: dict[str, tuple[type, Callable[[Any], dict[str, Any]], Callable[[dict[str, Any]], Any]]] = {}


def register_class(cls: type) -> type:
    """Let :func:`load` make objects of a class from outside the library; usable as a decorator.

    Args:
        cls: A frozen dataclass of saveable fields. Its module and name must stay what they are.

    Returns:
        The class.

    Raises:
        SerializationError: It is no dataclass.

    Example:
        >>> from dataclasses import dataclass
        >>> @register_class
        ... @dataclass(frozen=True)
        ... class Settings:
        ...     rate: float = 0.1
    """
    if not (dataclasses.is_dataclass(cls) or hasattr(cls, "_from_config")):
        raise SerializationError(f"register_class: {cls!r} must be a dataclass, so that its fields can be saved")
    _registered[_full_name(cls)] = cls
    return cls


def register_codec(module: str, of: type, encode: Callable, decode: Callable) -> None:
    """Teach saving to encode objects that are no dataclasses.

    Args:
        module: The module that makes this call; one of the library is imported at load.
        of: The type of the objects.
        encode: Makes a dictionary of saveables of an object.
        decode: Makes the object of that dictionary.

    Example:
        >>> from fractions import Fraction
        >>> def encode(x):
        ...     return {"text": str(x)}
        >>> register_codec("elsewhere.fractions", Fraction, encode, lambda config: Fraction(config["text"]))
    """
    _codecs[module] = (of, encode, decode)


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _public_name(cls: type) -> str:
    """Name a class by its package rather than its file, so that files may move."""
    full = _full_name(cls)
    if full in _registered:
        return full
    name = f"{'.'.join(cls.__module__.split('.')[:2])}.{cls.__qualname__}"
    if _find(name) is not cls:
        raise SerializationError(
            f"save: a {full} cannot be saved; make it a frozen dataclass and register it with probnn.register_class"
        )
    return name


def _own_module(name: str) -> Any:
    """The module of the library of this name, imported; None if there is none."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(name) if name.split(".")[0] == "probnn" else None


def _find(name: str) -> type | None:
    if name in _registered:
        return _registered[name]
    module, _, attribute = name.rpartition(".")
    found = getattr(_own_module(module), attribute, None)
    saveable = isinstance(found, type) and (dataclasses.is_dataclass(found) or hasattr(found, "_from_config"))
    return found if saveable else None


def _encode(x: Any, tensors: dict[str, Tensor], path: str) -> Any:
    if x is None or isinstance(x, (bool, int, str)):
        return x
    if isinstance(x, Integral):  # numpy's
        return int(x)
    if isinstance(x, Real):
        x = float(x)
        return x if math.isfinite(x) else {"float": repr(x)}
    if isinstance(x, Tensor):
        # A copy, because safetensors refuses tensors that share memory.
        tensors[path] = x.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(x, torch.dtype):
        name = str(x).removeprefix("torch.")
        if name not in _DTYPES:
            raise SerializationError(f"save: {path} is {x}, which cannot be saved; known are {', '.join(_DTYPES)}")
        return {"dtype": name}
    if isinstance(x, torch.device):
        return {"device": "cpu"}
    if isinstance(x, (tuple, list)):
        return {"tuple": [_encode(v, tensors, f"{path}.{i}") for i, v in enumerate(x)]}
    if isinstance(x, dict) and all(isinstance(k, str) for k in x):
        return {"dict": {k: _encode(v, tensors, f"{path}.{k}") for k, v in x.items()}}
    for module, (of, encode, _) in _codecs.items():
        if isinstance(x, of):
            return {"codec": module, "config": _encode(encode(x), tensors, path)}
    if hasattr(x, "_config"):
        config = x._config()
    elif dataclasses.is_dataclass(x) and not isinstance(x, type):
        config = {f.name: getattr(x, f.name) for f in dataclasses.fields(x) if f.init}
    else:
        raise SerializationError(f"save: {path} is a {_full_name(type(x))}, which cannot be saved")
    return {"class": _public_name(type(x)), "config": _encode(config, tensors, path)}


class _Malformed(Exception):
    """What a file says cannot be followed; :func:`load` adds which file."""


def _entry(table: dict[str, Any], key: Any, what: str) -> Any:
    if not isinstance(key, str) or key not in table:
        raise _Malformed(f"there is no {what} {key!r}")
    return table[key]


def _decode(x: Any, tensors: dict[str, Tensor], context: dict[str, Any]) -> Any:
    if not isinstance(x, dict):
        return x
    tables: dict[str, dict[str, Any]] = {"tensor": tensors, "float": _FLOATS, "dtype": _DTYPES}
    for kind, table in tables.items():
        if kind in x:
            return _entry(table, x[kind], kind)
    if "device" in x:
        return torch.device("cpu")
    if "tuple" in x:
        return tuple(_decode(v, tensors, context) for v in x["tuple"])
    if "dict" in x:
        return {k: _decode(v, tensors, context) for k, v in x["dict"].items()}
    config = _decode(_entry(x, "config", "entry"), tensors, context)
    if not isinstance(config, dict):
        raise _Malformed(f"the entry 'config' must be a dictionary, not {config!r}")
    if "codec" in x:
        return _coded(x["codec"], config)
    name = _entry(x, "class", "entry")
    cls: Any = _find(name) if isinstance(name, str) else None
    if cls is None:
        raise SerializationError(
            f"load: unknown class {name}; import the package that registers it with probnn.register_class"
        )
    if hasattr(cls, "_from_config"):
        try:
            return cls._from_config(config, **context)
        except KeyError as error:
            raise _Malformed(f"there is no entry {error} of {name}") from error
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    needed = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    if odd := sorted((config.keys() - fields.keys()) | (needed - config.keys())):
        raise _Malformed(f"the fields of {name} are {sorted(fields)}, and {odd} are unknown or missing")
    return cls(**config)


def _coded(name: Any, config: dict[str, Any]) -> Any:
    if isinstance(name, str):
        _own_module(name)  # which registers it
    if not isinstance(name, str) or name not in _codecs:
        raise SerializationError(f"load: the file needs the codec {name}, which is not registered")
    try:
        return _codecs[name][2](config)
    except (KeyError, TypeError, RuntimeError) as error:  # entries that are missing, arguments or tensors that misfit
        raise _Malformed(f"the codec {name} refuses it: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """A temporary name to write to, which becomes `path` in one step if the block succeeds.

    Args:
        path: The file to write; its folder must be there.

    Yields:
        The temporary name, in the same folder.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "notes.txt")
        >>> with replacing(path) as temporary:
        ...     _ = pathlib.Path(temporary).write_text("whole")
        >>> path.read_text()
        'whole'
    """
    target, temporary = os.path.realpath(path), None  # the file behind a link is replaced, not the link
    try:
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=".probnn-", suffix=".tmp")
        os.close(handle)
        yield temporary
        # mkstemp makes private files: give the result the mode of the old one, or of an ordinary new one.
        os.chmod(temporary, os.stat(target).st_mode & 0o7777 if os.path.exists(target) else 0o666 & ~_UMASK)
        os.replace(temporary, target)
    except BaseException as error:
        if temporary is not None:
            os.unlink(temporary)
        if isinstance(error, OSError) and (temporary is None or error.filename == temporary):
            error.filename, error.filename2 = os.fspath(path), None  # the user knows no other name
        raise


def save(obj: Any, path: str | os.PathLike[str]) -> None:
    """Write `obj` to one file, all of it or nothing.

    Args:
        obj: A process, a surrogate's model, or any registered frozen dataclass.
        path: The file; an existing one is replaced in one step.

    Raises:
        SerializationError: A part of the object has no saved form, or the file cannot be written; nothing is.

    Example:
        >>> import os, tempfile, probnn
        >>> path = os.path.join(tempfile.mkdtemp(), "method.safetensors")
        >>> save(probnn.Laplace(steps=50), path)
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    body = _encode(obj, tensors, "root")
    if not isinstance(body, dict) or not ("class" in body or "codec" in body):
        raise SerializationError(f"save: expected an object of the library, got a {type(obj).__name__}")
    provenance = {"probnn": __version__, "torch": str(torch.__version__)}
    header = {"format": FORMAT, "version": __version__, **body, "provenance": provenance}
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"probnn": json.dumps(header, allow_nan=False)})
    except (OSError, SafetensorError) as error:
        raise SerializationError(f"save: cannot write {os.fspath(path)} ({_reason(path, error)})") from error


def _reason(path: str | os.PathLike[str], error: Exception) -> str:
    """Why a file cannot be written, in words that do not name the temporary one."""
    if os.path.isdir(path):
        return "it is a folder; give the name of a file in it"
    folder = os.path.dirname(os.path.abspath(os.fspath(path)))
    if not os.path.isdir(folder):
        return f"there is no folder {folder}; make it first"
    return getattr(error, "strerror", None) or str(error)


def load(path: str | os.PathLike[str], *, network: Any = None) -> Any:
    """Read what :func:`save` wrote.

    Args:
        path: The file.
        network: The torch module, where the object holds a :class:`probnn.ModuleNetwork` (a file
            has its tensors, never its code).

    Returns:
        The object, on the CPU.

    Raises:
        SerializationError: The file is missing parts, is no file of this library, or is of a newer format.
        FileNotFoundError: There is no such file.

    Example:
        >>> import os, tempfile, probnn
        >>> path = os.path.join(tempfile.mkdtemp(), "method.safetensors")
        >>> probnn.save(probnn.Laplace(steps=50), path)
        >>> load(path).steps
        50
    """
    from safetensors import SafetensorError, safe_open

    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"probnn.load: no file {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if "probnn" not in metadata:
                raise SerializationError(
                    f"probnn.load: {path} is a safetensors file, but not one that probnn wrote (no entry 'probnn'); "
                    "read its tensors with safetensors.torch.load_file"
                )
            header = json.loads(metadata["probnn"])
            # A copy lies where memory is aligned; in the file it need not be, and sums then differ in the last bit.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
        written = int(header["format"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise SerializationError(f"probnn.load: {path} is not a whole probnn file ({error})") from error
    if written != FORMAT:
        of_older = "load it with the version that wrote it, and save what it holds anew"
        advice = "upgrade probnn" if written > FORMAT else of_older
        raise SerializationError(
            f"probnn.load: {path} has format {written} and this version (probnn {__version__}) reads format {FORMAT}; "
            f"{advice}"
        )
    try:
        return _decode(header, tensors, {} if network is None else {"network": network})
    except _Malformed as error:
        raise SerializationError(f"probnn.load: {path} cannot be read back ({error})") from error
