"""The store of a study: its finished rows, in a folder that any number of processes may share."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DomainError, SerializationError
from .cells import Cell, canonical, label
from .identity import differences
from .parts import COMPLETE, FORMAT, Part, Row, compact, part_names, read_part, sync_folder, write_part

MANIFEST, ROWS, RUNNING = "study.json", "rows", "running"

# A write is due after so many rows, or so many seconds, or twenty times what the last one took.
_MOST_ROWS, _SECONDS, _SHARE = 2000, 1.0, 20.0
# More small files than this are joined at the end of a run.
_MOST_PARTS = 64
# A file that has been in writing for so many seconds has lost its writer.
_ABANDONED = 86400.0


class Store:
    """Rows of a study by cell and replicate, in memory and in the files of a folder.

    A row that is there more than once counts once: the complete one, else that of the last attempt.

    Args:
        path: The folder; it need not be there.
        cells: The study's cells.
        identities: What determines the rows of each cell.
        replicates: How many replicates of a cell are of interest.

    Raises:
        DomainError: The rows in the folder are those of another study.
        SerializationError: A file is damaged.
    """

    def __init__(self, path: Path, cells: Sequence[Cell], identities: Sequence[Mapping[str, Any]], replicates: int):
        self.path = path
        self.cells, self.identities, self.replicates = list(cells), list(identities), replicates
        self.outputs: list[str] | None = None
        self._places = {canonical(cell): i for i, cell in enumerate(self.cells)}
        C, R = len(self.cells), replicates
        self.status = np.zeros((C, R), dtype=np.uint8)
        self.attempt = np.zeros((C, R), dtype=np.int32)
        self.seconds = np.full((C, R), np.nan)
        self.alone = np.zeros((C, R), dtype=bool)
        self.values = np.zeros((C, R, 0))
        self.texts: dict[tuple[int, int], tuple[str, str]] = {}
        self._read: set[str] = set()
        self._checked: set[str] = set()
        self._waiting: list[tuple[Row, int]] = []
        self._written, self._cost = time.monotonic(), 0.0
        self.refresh()

    # What is there

    def refresh(self) -> None:
        """Read what other processes have written since."""
        self._check_manifest()
        for _ in range(1000):  # files may be joined meanwhile
            try:
                for name in part_names(self.path / ROWS):
                    if name not in self._read:
                        self._take(read_part(self.path / ROWS / name), name)
                        self._read.add(name)
                return
            except FileNotFoundError:
                continue
        raise SerializationError(f"{self.path}: files vanish while they are read")

    def _take(self, part: Part, name: str) -> None:
        places = np.asarray([self._place(entry, name) for entry in part.cells], dtype=np.int64)
        where = places[part.cell] if len(part) else places
        rows = np.flatnonzero((where >= 0) & (part.replicate < self.replicates))
        i, r = where[rows], part.replicate[rows]
        column = self._columns(part.outputs, name)
        if len(np.unique(i * self.replicates + r)) < len(rows) or (self.status[i, r] > 0).any():
            rows = self._newer(rows, where, part)
            i, r = where[rows], part.replicate[rows]
        for column_of in ("status", "attempt", "seconds", "alone"):
            getattr(self, column_of)[i, r] = getattr(part, column_of)[rows]
        self.values[i, r] = np.nan
        self.values[i[:, None], r[:, None], column] = part.values[rows]
        for row, key in zip(rows.tolist(), zip(i.tolist(), r.tolist(), strict=True), strict=True):
            self.texts.pop(key, None)
            if row in part.texts:
                self.texts[key] = part.texts[row]

    def _newer(self, rows: np.ndarray, where: np.ndarray, part: Part) -> np.ndarray:
        """Of rows that may be there more than once, those that count."""
        best: dict[tuple[int, int], tuple[int, int]] = {}
        for row in rows.tolist():
            key = int(where[row]), int(part.replicate[row])
            present = best[key][0] if key in best else _rank(self.status[key], self.attempt[key])
            rank = _rank(part.status[row], part.attempt[row])
            if rank > present:
                best[key] = rank, row
        return np.asarray([row for _, row in best.values()], dtype=np.int64)

    def _columns(self, outputs: Sequence[str], name: str) -> list[int]:
        self._declare(outputs)
        unknown = set(outputs) - set(self.outputs or [])
        if unknown:
            raise SerializationError(
                f"{self.path / ROWS / name}: has the outputs {', '.join(outputs)}, other files of this store "
                f"{', '.join(self.outputs or [])}; every replicate must return the same, nan for what is missing. Mend "
                "the simulation, and run it into a new store"
            )
        return [(self.outputs or []).index(output) for output in outputs]

    def _place(self, entry: Mapping[str, Any], name: str) -> int:
        """The index of a file's cell in this study, -1 where it has none."""
        cell, there = entry["cell"], entry["identity"]
        if set(cell) != set(self.cells[0]):
            raise DomainError(
                f"Study: the store {self.path} holds another study, with the axes {', '.join(cell)} where this one has "
                f"{', '.join(self.cells[0])}; give this one a store of its own"
            )
        place = self._places.get(canonical(cell), -1)
        key = json.dumps([cell, there], sort_keys=True)
        if place >= 0 and key not in self._checked:
            changed = differences(there, self.identities[place])
            if changed:
                shown = ", ".join(changed[:5]) + (f", and {len(changed) - 5} more" if len(changed) > 5 else "")
                version = f"; those rows have the version {there['version']!r}" if "version" in there else ""
                raise DomainError(
                    f"Study: the store {self.path} holds rows of the cell {label(self.cells[place])} that were made "
                    f"differently: {shown}. Rows made differently are never mixed: undo the change, or take another "
                    f"store{version}"
                )
            self._checked.add(key)
        return place

    def _check_manifest(self) -> None:
        path = self.path / MANIFEST
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            version, outputs = found["format"], found["outputs"]
        except FileNotFoundError:
            return  # no row has had an output yet
        except (ValueError, KeyError, TypeError) as error:
            raise SerializationError(f"{path}: damaged, {type(error).__name__}: {error}") from error
        if version != FORMAT:
            raise SerializationError(f"{path}: format {version!r}, this version of probnn reads {FORMAT}")
        self._declare(outputs)

    def _declare(self, outputs: Sequence[str]) -> None:
        """Have columns for outputs."""
        if not outputs:
            return
        if self.outputs is None:
            self.outputs = list(outputs)
            self.values = np.full((*self.status.shape, len(outputs)), np.nan)

    # Writing

    def prepare(self) -> None:
        """Make the folder, and see that it can be written to.

        Raises:
            OSError: It cannot.
        """
        (self.path / ROWS).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.path / ROWS, prefix=".probnn-", suffix=".tmp"):
            pass

    def add(self, row: Row) -> None:
        """Keep a row; it is written with others when a write is due.

        Raises:
            OSError: It cannot be written. Nothing that was written before is harmed.
        """
        if row.values:
            self._first_outputs(list(row.values))
        attempt = int(self.attempt[row.cell, row.replicate]) + 1
        self._waiting.append((row, attempt))
        pause = max(_SECONDS, _SHARE * self._cost)
        if len(self._waiting) >= _MOST_ROWS or time.monotonic() - self._written >= pause:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait."""
        if self._waiting:
            started = time.monotonic()
            part = self._part(self._waiting)
            name = write_part(self.path / ROWS, part)
            self._waiting = []
            self._take(part, name)
            self._read.add(name)
            self._cost = time.monotonic() - started
        self._written = time.monotonic()

    def _part(self, rows: Sequence[tuple[Row, int]]) -> Part:
        outputs = self.outputs or []
        used = {i: place for place, i in enumerate(dict.fromkeys(row.cell for row, _ in rows))}
        texts = {i: (row.error, row.warnings) for i, (row, _) in enumerate(rows) if row.error or row.warnings}
        nothing = [np.nan] * len(outputs)
        return Part(
            cells=[{"cell": self.cells[i], "identity": dict(self.identities[i])} for i in used],
            outputs=list(outputs),
            cell=np.asarray([used[row.cell] for row, _ in rows]),
            replicate=np.asarray([row.replicate for row, _ in rows]),
            status=np.asarray([row.status for row, _ in rows]),
            attempt=np.asarray([attempt for _, attempt in rows]),
            seconds=np.asarray([row.seconds for row, _ in rows]),
            alone=np.asarray([row.alone for row, _ in rows]),
            values=np.asarray(
                [[row.values[name] for name in outputs] if row.values else nothing for row, _ in rows], dtype=float
            ).reshape(len(rows), len(outputs)),
            texts=texts,
        )

    def _first_outputs(self, names: list[str]) -> None:
        if self.outputs is not None:
            return
        about = {"format": FORMAT, "axes": list(self.cells[0]), "outputs": names, "made with": _versions()}
        handle, temporary = tempfile.mkstemp(dir=self.path, prefix=".probnn-", suffix=".tmp")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                json.dump(about, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            _publish(temporary, self.path / MANIFEST)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        sync_folder(self.path)
        self._check_manifest()

    def finish(self) -> None:
        """Write what waits, join small files, and remove what killed writers left long ago."""
        self.flush()
        for path in (self.path / ROWS).glob(".probnn-*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()
        names = part_names(self.path / ROWS)
        if len(names) > _MOST_PARTS:
            small = [n for n in names if (self.path / ROWS / n).stat().st_size < 1 << 22]
            compact(self.path / ROWS, small)


def _rank(status: Any, attempt: Any) -> int:
    return 1 << 32 if status == COMPLETE else int(attempt)


def _publish(temporary: str, path: Path) -> None:
    """Give a file its name unless there is one: of several processes that come first, one does, and all read that."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            os.replace(temporary, path)


def _versions() -> dict[str, str]:
    import platform

    from .._version import __version__

    found = {"probnn": __version__, "python": platform.python_version(), "numpy": np.__version__}
    found["torch"] = torch.__version__
    return {**found, "machine": platform.machine(), "system": platform.system()}
