"""Studies as TOML files."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from .. import validation
from ..errors import DomainError
from .functions import NamedFunction
from .measures import RMSE, Bias, Coverage, EmpiricalSE, Mean, Measure, Median, Rate
from .study import Study
from .table import Table

SIZES = ("full", "quick")
KINDS = ("simulation", "convergence")
MEASURES: dict[str, type[Measure]] = {
    "mean": Mean, "median": Median, "bias": Bias, "rmse": RMSE, "empirical_se": EmpiricalSE, "rate": Rate,
    "coverage": Coverage,
}  # fmt: skip
_KEYS = (
    "kind", "title", "simulate", "simulate_batch", "grid", "replicates", "seed", "store", "timeout", "batch_size",
    "paired", "version", "measures", "mcse", *SIZES,
)  # fmt: skip


class FileStudy(Study):
    """A study that a file describes.

    Args:
        title: What reports call it.
        measures: Those of the file; None: mean and median of every output.
        timeout: Seconds a replicate may take, unless :meth:`run` is told otherwise.
        mcse: Monte Carlo standard errors that are wanted, for all measures or by label.
        **settings: Of :class:`Study`.
    """

    def __init__(
        self,
        *,
        title: str,
        measures: Sequence[Measure] | None = None,
        timeout: float | None = None,
        mcse: float | Mapping[str, float] | None = None,
        **settings: Any,
    ):
        self.title, self.timeout, self.mcse = title, timeout, mcse
        self.measures = None if measures is None else tuple(measures)
        super().__init__(**settings)

    def run(self, n_jobs: int | None = None, *, timeout: float | None = None, **options: Any) -> Self:
        """Run what is missing, as :meth:`Study.run`; without `timeout`, with the file's."""
        return super().run(n_jobs, timeout=self.timeout if timeout is None else timeout, **options)

    def summary(self, measures: Sequence[Any] | None = None) -> Table:
        """Performance measures of every cell, as :meth:`Study.summary`; without `measures`, the file's."""
        return super().summary(self.measures if measures is None else measures)


def load(
    path: str | os.PathLike[str],
    *,
    size: str = "full",
    store: str | os.PathLike[str] | None = None,
    replicates: int | None = None,
) -> Study:
    """The study that a TOML file describes.

    A simulation study has ``simulate = "module:function"`` (or ``simulate_batch``), ``replicates`` and a table
    ``[grid]``; and may have ``title``, ``seed``, ``store``, ``timeout``, ``batch_size``, ``paired``, ``version``, the
    standard errors that are wanted as ``mcse``, a table ``[measures]`` with entries such as
    ``bias = {output = "estimate", truth = 1.0}``, and another ``grid`` or ``replicates`` in ``[quick]`` or ``[full]``.
    The module is looked for beside the file, then in the present folder, then among what is installed. With
    ``kind = "convergence"`` the file has what :class:`ConvergenceStudy` needs.

    Args:
        path: The file, in UTF-8.
        size: ``"full"`` or ``"quick"``. Both share the store: rows of cells that are in both are run once.
        store: Folder of the rows; None: that of the file, relative to it, or ``runs/<name of the file>`` beside it.
        replicates: Replicates of each cell; None: those of the file.

    Returns:
        The study; its `run` and `summary` know the time limit and the measures of the file.

    Raises:
        DomainError: The file cannot be read or describes no study, or its store is of another one.
        SerializationError: A file of the store is damaged.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "flips.py").write_text("def heads(cell, seed): return {'heads': seed % 2}")
        >>> _ = (folder / "s.toml").write_text("simulate = 'flips:heads'\\nreplicates = 10\\ngrid = {n = [1, 2]}")
        >>> len(load(folder / "s.toml").run().table())
        20
    """
    name, path = os.fspath(path), Path(path)
    config = _read(name, path)
    with _named(name):
        validation.choice("load", "size", size, SIZES)
        kind = config.get("kind", "simulation" if {"simulate", "simulate_batch"} & set(config) else None)
        if kind is None:
            raise DomainError(
                'expected simulate = "module:function" (or simulate_batch), or kind = "convergence"; neither is there'
            )
        validation.choice("", "kind", kind, KINDS)
        if size not in config and size == "quick":
            raise DomainError("there is no table [quick], which says what a quick run is")
        for one in SIZES:
            if one in config:
                _table(f"[{one}]", config[one])
        if store is None:
            where = config.get("store", f"runs/{path.stem}")
            if not isinstance(where, str) or not where:
                raise DomainError(f"store: expected the name of a folder, got {where!r}")
            store = path.resolve().parent / where
        if kind == "convergence":
            return _convergence(config, size, store, replicates)
        return _simulation(config, path, size, store, replicates)


def _read(name: str, path: Path) -> dict[str, Any]:
    try:
        # Editors on Windows begin a file with a byte-order mark.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DomainError(f"{name}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DomainError(f"{name}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise DomainError(f"{name}: is not valid TOML: {error}") from None


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors begin with the name of the file."""
    try:
        yield
    except DomainError as error:
        words = str(error)
        for prefix in ("Study: ", "ConvergenceStudy: ", "load: ", ": "):
            words = words.removeprefix(prefix)
        raise DomainError(f"{name}: {words.removeprefix(f'{name}: ')}") from error


def _convergence(config: dict[str, Any], size: str, store: Any, replicates: int | None) -> Study:
    from .convergence import convergence_from_config

    rest = {key: value for key, value in config.items() if key != "store"}
    if replicates is not None and size in rest:
        rest[size] = {**rest[size], "replicates": replicates}
    return convergence_from_config(rest, size=size, store=store, where="load")


def _simulation(config: dict[str, Any], path: Path, size: str, store: Any, replicates: int | None) -> Study:
    _known("", config, _KEYS)
    for one in SIZES:
        _known(f"[{one}]: ", config.get(one, {}), ("grid", "replicates"))
    extent = {**{key: config[key] for key in ("grid", "replicates") if key in config}, **config.get(size, {})}
    if "grid" not in extent:
        raise DomainError("expected a table [grid] with a list of values for every axis, such as n = [100, 1000]")
    if replicates is None and "replicates" not in extent:
        raise DomainError("expected replicates, such as replicates = 200")
    functions = {}
    for key in ("simulate", "simulate_batch"):
        if key in config:
            words = config[key]
            if not isinstance(words, str) or words.count(":") != 1:
                raise DomainError(f'{key}: expected "module:function", got {words!r}')
            try:
                functions[key] = NamedFunction(words, (os.fspath(path.resolve().parent),))
            except DomainError as error:
                raise DomainError(f"{key}: {error}") from error
    if not functions:
        raise DomainError('expected simulate = "module:function", or simulate_batch; neither is there')
    title = config.get("title", path.stem)
    if not isinstance(title, str):
        raise DomainError(f"title: expected text, got {title!r}")
    timeout = config.get("timeout")
    return FileStudy(
        title=title,
        measures=_measures(config["measures"]) if "measures" in config else None,
        timeout=None if timeout is None else float(validation.positive("", "timeout", timeout)),
        mcse=_wanted(config["mcse"]) if "mcse" in config else None,
        grid=extent["grid"],
        replicates=extent["replicates"] if replicates is None else replicates,
        store=store,
        **functions,
        **{key: config[key] for key in ("seed", "batch_size", "paired", "version") if key in config},
    )


def _measures(tables: Any) -> list[Measure]:
    """What ``[measures]`` says, each entry a table, or a list of them."""
    _known("[measures]: ", _table("[measures]", tables), tuple(MEASURES))
    found = []
    for kind, entries in tables.items():
        made = MEASURES[kind]
        fields = tuple(made.__dataclass_fields__)  # type: ignore[attr-defined]
        for entry in entries if isinstance(entries, list) else [entries]:
            where = f"[measures]: {kind}: "
            if not isinstance(entry, Mapping):
                raise DomainError(f'{where}expected a table such as {{output = "estimate"}}, got {entry!r}')
            _known(where, entry, fields)
            try:
                found.append(made(**entry))
            except TypeError:
                needed = [n for n in ("output", "truth") if n in fields and n not in entry]
                raise DomainError(f"{where}lacks {' and '.join(needed)}") from None
            except DomainError as error:
                raise DomainError(f"{where}{str(error).removeprefix(f'{made.__name__}: ')}") from None
    if not found:
        raise DomainError("[measures]: has no measure; leave it out for mean and median of every output")
    return found


def _wanted(mcse: Any) -> float | dict[str, float]:
    """Standard errors that are wanted."""
    if isinstance(mcse, Mapping):
        return {label: float(validation.positive("mcse", label, value)) for label, value in mcse.items()}
    return float(validation.positive("", "mcse", mcse))


def _table(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DomainError(f"{where} must be a table, got {value!r}")
    return value


def _known(where: str, table: Mapping[str, Any], keys: Sequence[str]) -> None:
    import difflib

    for key in table:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(keys)}"
            raise DomainError(f"{where}there is no entry {key!r}; {hint}")
