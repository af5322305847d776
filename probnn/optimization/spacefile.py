"""Spaces as TOML files: one table a parameter, and a list of constraints above them."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .. import io
from ..errors import DomainError
from .choices import Categorical, Fixed
from .parameters import Integer, Parameter, Real
from .space import Space

TYPES: dict[str, type[Parameter]] = {"real": Real, "integer": Integer, "categorical": Categorical, "fixed": Fixed}
NEEDED = {"real": ("low", "high"), "integer": ("low", "high"), "categorical": ("choices",), "fixed": ("value",)}
OPTIONAL = {"real": ("log", "step"), "integer": ("log", "step"), "categorical": ("ordered", "known"), "fixed": ()}


def read_space(path: str | os.PathLike[str]) -> Space:
    """The space that a TOML file describes.

    Args:
        path: A file in UTF-8, of tables such as ``[depth]`` with ``type = "integer"``, ``low = 1`` and ``high = 8``
            (types: real, integer, categorical, fixed) and, above them, ``constraints = ["power + depth <= 14"]``.

    Raises:
        DomainError: The file cannot be read or describes no space; the message names file, table and key.
    """
    name = os.fspath(path)
    try:
        # Editors on Windows begin a file with a byte-order mark.
        content = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DomainError(f"{name}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DomainError(f"{name}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise DomainError(f"{name}: is not valid TOML: {error}") from None
    constraints = content.pop("constraints", [])
    if not isinstance(constraints, list):
        raise DomainError(
            f"{name}: constraints: expected a list of strings above the tables, got {constraints!r}; "
            "a parameter cannot have that name"
        )
    parameters = {key: _parameter(f"{name}: [{key}]", key, table) for key, table in content.items()}
    try:
        return Space(**parameters, constraints=constraints)
    except DomainError as error:
        raise DomainError(f"{name}: {str(error).removeprefix('Space: ')}") from None


def _parameter(where: str, key: str, table: Any) -> Parameter:
    if not isinstance(table, dict):
        hint = "did you mean 'constraints'?" if difflib.get_close_matches(key, ["constraints"]) else ""
        raise DomainError(
            f'{where}: expected a table, such as [{key}] with type = "real", low = 0 and high = 1, got {table!r}'
            + (f"; {hint}" if hint else "")
        )
    if "type" not in table:
        raise DomainError(f"{where}: type is missing; it is one of {', '.join(map(repr, TYPES))}")
    kind = table["type"]
    if not isinstance(kind, str) or kind not in TYPES:
        raise DomainError(
            f"{where}: type: expected one of {', '.join(map(repr, TYPES))}, got {kind!r}{_close(kind, TYPES)}"
        )
    allowed = (*NEEDED[kind], *OPTIONAL[kind])
    for option in table:
        if option not in ("type", *allowed):
            raise DomainError(
                f"{where}: unknown key {option!r}{_close(option, allowed)}; a parameter of type {kind!r} has "
                f"{', '.join(allowed)}"
            )
    for option in NEEDED[kind]:
        if option not in table:
            raise DomainError(f"{where}: {option} is missing; a parameter of type {kind!r} needs it")
    try:
        return TYPES[kind](**{option: value for option, value in table.items() if option != "type"})
    except DomainError as error:
        raise DomainError(f"{where}: {_in_toml(str(error).partition(': ')[2])}") from None


def _in_toml(message: str) -> str:
    """A message with truth values as TOML writes them, but for those that a person put in quotes."""
    return re.sub(r"""(?<!['"\w])(True|False)(?!['"\w])""", lambda found: found[0].lower(), message)


def _close(word: Any, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def write_space(
    space: Space, path: str | os.PathLike[str] | None = None, *, comments: Mapping[str, str] | None = None
) -> str:
    """The text of a file that :func:`read_space` reads back to an equal space.

    Args:
        space: The space.
        path: A file to write it to as well, all at once.
        comments: Words above the table of each parameter, of any number of lines; those of ``""`` stand at the
            top and those of ``"constraints"`` above the constraints.

    Raises:
        DomainError: A comment is for a parameter that is not there.
    """
    comments = dict(comments or {})
    for name in comments:
        if name not in ("", "constraints", *space.parameters):
            raise DomainError(f"to_toml: there is a comment for {name!r}, which is not a parameter of the space")
    blocks = []
    if "" in comments:
        blocks.append(_comment(comments[""]))
    if space.constraints or "constraints" in comments:
        texts = [f"    {_value(c.text)},\n" for c in space.constraints]
        listed = "constraints = [\n" + "".join(texts) + "]\n" if texts else "constraints = []\n"
        blocks.append(_comment(comments.get("constraints", "")) + listed)
    for name, parameter in space.parameters.items():
        lines = [f"[{_key(name)}]", f"type = {_value(type(parameter).__name__.lower())}"]
        kind = type(parameter).__name__.lower()
        for option in (*NEEDED[kind], *OPTIONAL[kind]):
            value = getattr(parameter, option)
            if option in NEEDED[kind] or value not in (None, False, ()):
                lines.append(f"{option} = {_value(value)}")
        blocks.append(_comment(comments.get(name, "")) + "\n".join(lines) + "\n")
    text = "\n".join(blocks)
    if path is not None:
        with io.replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
    return text


def _comment(words: str) -> str:
    """Comment lines; control characters, which TOML does not allow there, become spaces."""
    return "".join("# " + re.sub(r"[\x00-\x08\x0a-\x1f\x7f]", " ", line) + "\n" for line in words.splitlines())


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's strings are TOML's, but for one control character and the halves of pairs.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return repr(float(value)) if isinstance(value, float) else str(int(value))
