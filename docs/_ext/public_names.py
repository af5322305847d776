"""The public names, and links to an object by any of them.

Every public object has one page, under the name by which its package exports it: `probnn.inference.HMC`. Docstrings and
annotations also speak of `probnn.HMC`, or of the module the class was written in; those links lead there too.
"""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from types import ModuleType
from typing import Any

import probnn


def public(module: ModuleType) -> list[str]:
    """The names in `__all__`; of a module without one, the functions and classes it defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    things = {name: thing for name, thing in vars(module).items() if not name.startswith("_")}
    return [
        name
        for name, thing in things.items()
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__ == module.__name__
    ]


@cache
def pages() -> dict[str, Any]:
    """Every public object of the packages, by the name of its page."""
    found = {}
    for package in probnn._MODULES:
        module = importlib.import_module(f"probnn.{package}")
        found |= {f"{module.__name__}.{name}": getattr(module, name) for name in public(module)}
    return found


def aliases() -> dict[str, str]:
    """Other names of public objects, with the names of their pages."""
    found = {f"probnn.{name}": f"probnn.{module}.{name}" for name, module in probnn._NAMES.items()}
    for page, thing in pages().items():
        if inspect.isclass(thing) or inspect.isfunction(thing):
            found.setdefault(f"{thing.__module__}.{thing.__qualname__}", page)
    return {name: page for name, page in found.items() if name != page}


def resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Answer where a reference leads nowhere: a method goes with its class."""
    owner, members = node.get("reftarget", ""), []
    if node.get("refdomain") != "py" or not owner.startswith("probnn."):
        return None
    while owner not in app.config.public_aliases:
        owner, dot, member = owner.rpartition(".")
        if not dot:
            return None
        members.insert(0, member)
    target = ".".join([app.config.public_aliases[owner], *members])
    where, kind = node.get("refdoc", env.docname), node.get("reftype", "obj")
    return env.get_domain("py").resolve_xref(env, where, app.builder, kind, target, node, content)


def skip(app: Any, what: str, name: str, thing: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples: their class explains them, and Python's own text says nothing."""
    return True if (getattr(thing, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Any) -> dict[str, Any]:
    """Hook into Sphinx."""
    app.add_config_value("public_aliases", aliases(), "env", types=dict)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-skip-member", skip)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
