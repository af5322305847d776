"""Functions that files and commands name by ``module:function``."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import DomainError
from .identity import fingerprint

# Modules that were found here, and what their files held then.
_found: dict[str, tuple[str, str]] = {}


def load_function(words: str, folders: Sequence[str | os.PathLike[str]] = ()) -> Callable[..., Any]:
    """The function of ``module:function``: from one of `folders`, the present folder, or wherever Python finds modules.

    The folder that has the module comes first on Python's path from then on, so that the module finds what lies beside
    it. A module that was loaded like this before is loaded anew where its file has changed, or is another one.

    Args:
        words: Module, colon, function; both may have dots.
        folders: Where to look first, in this order.

    Returns:
        The function.

    Raises:
        DomainError: There is no such module or function, or importing it fails.

    Example:
        >>> load_function("math:sqrt")(4.0)
        2.0
    """
    module, colon, name = words.partition(":")
    if not colon or not module or not name:
        raise DomainError(f"{words}: expected module:function")
    if module.endswith(".py"):
        raise DomainError(f"{words}: write {module.removesuffix('.py').replace('/', '.')}:{name}, a module and no file")
    here = [os.path.realpath(folder) for folder in (*folders, os.getcwd())]
    _make_way(words, module, here)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            places = "here or installed" if not folders else f"in {' or '.join(dict.fromkeys(here))}, or installed"
            raise DomainError(f"{words}: there is no module {module!r} {places}") from None
        raise DomainError(f"{words}: importing {module!r} failed: {error}") from error
    except Exception as error:  # whatever the module does when it is imported
        raise DomainError(f"{words}: importing {module!r} failed: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise DomainError(f"{words}: {module!r} has no function {name!r}")
    function: Callable[..., Any] = found
    return function


def _make_way(words: str, module: str, folders: Sequence[str]) -> None:
    """Have Python find the module in the first of the folders that has it."""
    top = module.partition(".")[0]
    for folder in folders:
        spec = importlib.machinery.PathFinder.find_spec(top, [folder])
        if spec is None or spec.origin is None and "." not in module:
            continue
        found = importlib.machinery.PathFinder.find_spec(top)
        if found is None or _place(found) != _place(spec):
            sys.path.insert(0, folder)
        importlib.invalidate_caches()  # the file may be younger than what Python remembers of its folder
        loaded = sys.modules.get(top)
        if loaded is not None and (_loaded_from(loaded) != _place(spec) or _changed(module)):
            if top not in _found:
                if _loaded_from(loaded) == _place(spec):
                    return  # the user's own import, and theirs to load again
                other = _loaded_from(loaded) or "Python itself"
                raise DomainError(
                    f"{words}: another module {top!r} is loaded already, from {other}; give the one in {folder} "
                    "another name"
                )
            for name in [n for n in sys.modules if n == top or n.startswith(f"{top}.")]:
                del sys.modules[name]
        if loaded is None or top in _found:
            _found[top] = _place(spec), ""
            file = _file(module, folder)
            _found[module] = _place(spec), "" if file is None else _digest(file)
        return


def _place(spec: importlib.machinery.ModuleSpec) -> str:
    """The file of a module, or the folder of a package that has none."""
    return os.path.realpath(spec.origin or next(iter(spec.submodule_search_locations or ()), ""))


def _loaded_from(module: ModuleType) -> str:
    spec = module.__spec__
    return _place(spec) if spec is not None else os.path.realpath(getattr(module, "__file__", None) or "")


def _file(module: str, folder: str) -> Path | None:
    base = Path(folder, *module.split("."))
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:32]


def _changed(module: str) -> bool:
    """Whether the file of a module that was found here is not what was loaded."""
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None)
    if file is None or module not in _found:
        return False
    return not Path(file).is_file() or _digest(Path(file)) != _found[module][1]


@dataclass(frozen=True)
class NamedFunction:
    """A function that workers find for themselves, by its name and the folders to look in.

    What it is, for the rows of a study, is what the function is.

    Args:
        words: ``module:function``.
        folders: Where to look first.
    """

    words: str
    folders: tuple[str, ...] = ()
    function: Callable[..., Any] = field(init=False, repr=False, compare=False)
    stamp: str = field(init=False, repr=False)
    _entries: dict[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        function = load_function(self.words, self.folders)
        file = getattr(sys.modules.get(self.words.partition(":")[0]), "__file__", None)
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "stamp", "" if file is None else _digest(Path(file)))
        object.__setattr__(self, "_entries", {})

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return _named, (self.words, self.folders, self.stamp)

    def identity(self, cell: dict[str, Any]) -> dict[str, Any]:
        """What the function's rows belong to.

        Args:
            cell: The cell.

        Returns:
            What the function itself says, or the fingerprint of its code.
        """
        if hasattr(self.function, "identity"):
            own: dict[str, Any] = self.function.identity(cell)
            return own
        if not self._entries:
            self._entries.update(fingerprint("Study", self.function))
        return self._entries


@functools.lru_cache(maxsize=16)
def _named(words: str, folders: tuple[str, ...], stamp: str) -> NamedFunction:
    found = NamedFunction(words, folders)
    if found.stamp != stamp:
        raise DomainError(f"{words}: its file changed while the study was running; start it again")
    return found
