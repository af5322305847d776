"""Files of finished rows: one npz a write, whole or not there."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SerializationError
from ..io import replacing

FORMAT = 1
SUFFIX = ".npz"
_counter = 0

# How rows can end, by code; 0 is a row that is not there.
STATUS = ("missing", "complete", "failed", "timeout", "killed")
COMPLETE, FAILED, TIMEOUT, KILLED = 1, 2, 3, 4


@dataclass(frozen=True)
class Row:
    """One finished replicate.

    Args:
        cell: Index of its cell in the study.
        replicate: Its number.
        status: Code of how it ended.
        values: Its outputs by name; empty where there are none.
        seconds: How long it took.
        error: Why there are none.
        warnings: What was warned of.
        alone: Run by itself although the study has blocks, because its block has no result.
    """

    cell: int
    replicate: int
    status: int
    values: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    warnings: str = ""
    alone: bool = False


@dataclass(frozen=True)
class Part:
    """The rows of a file, by columns.

    Args:
        cells: What the cells of its rows are: ``{"cell": ..., "identity": ...}``.
        outputs: Names of the outputs.
        cell: ``N``, index into `cells`.
        replicate: ``N``.
        status: ``N``, codes.
        attempt: ``N``, counting from 1.
        seconds: ``N``.
        alone: ``N``, whether rows of a block were run by themselves.
        values: ``N x outputs``.
        texts: Error and warnings of those rows that have some.
    """

    cells: list[dict[str, Any]]
    outputs: list[str]
    cell: np.ndarray
    replicate: np.ndarray
    status: np.ndarray
    attempt: np.ndarray
    seconds: np.ndarray
    alone: np.ndarray
    values: np.ndarray
    texts: dict[int, tuple[str, str]]

    def __len__(self) -> int:
        return len(self.cell)


def write_part(folder: Path, part: Part) -> str:
    """Write rows to a new file of a folder, and give its name.

    The file is complete on the disk, its name too, before the function returns.
    """
    global _counter
    _counter += 1
    name = f"{time.time_ns():x}-{socket.gethostname()}-{os.getpid()}-{_counter}{SUFFIX}"
    about = {"format": FORMAT, "cells": part.cells, "outputs": part.outputs, "texts": list(part.texts.items())}
    with replacing(folder / name) as temporary, open(temporary, "wb") as file:
        np.savez(
            file, about=_bytes(about), cell=part.cell.astype("<i4"), replicate=part.replicate.astype("<i8"),
            status=part.status.astype("u1"), attempt=part.attempt.astype("<i4"), seconds=part.seconds.astype("<f8"),
            alone=part.alone.astype("?"), values=part.values.astype("<f8"),
        )  # fmt: skip
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)
    return name


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _bytes(about: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)


def read_part(path: Path) -> Part:
    """The rows of a file.

    Raises:
        SerializationError: The file is damaged, or of a newer version of the library.
        FileNotFoundError: It is gone: its rows are now in another one.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            columns = {name: file[name] for name in _COLUMNS}
        texts = {int(i): (str(error), str(warned)) for i, (error, warned) in about["texts"]}
        version, cells, outputs = about["format"], about["cells"], about["outputs"]
    except FileNotFoundError:
        raise
    except Exception as error:  # damage comes in all kinds
        raise SerializationError(
            f"{path}: damaged, {type(error).__name__}: {error}; remove the file, and its rows will be run again"
        ) from error
    if version != FORMAT:
        raise SerializationError(f"{path}: format {version!r}, this version of probnn reads {FORMAT}")
    return Part(cells=cells, outputs=outputs, texts=texts, **columns)


_COLUMNS = ("cell", "replicate", "status", "attempt", "seconds", "alone", "values")


def part_names(folder: Path) -> list[str]:
    """Names of the files of rows, those being written left out."""
    try:
        return sorted(n for n in os.listdir(folder) if n.endswith(SUFFIX) and not n.startswith("."))
    except FileNotFoundError:
        return []


def joined(parts: Sequence[Part]) -> Part:
    """All rows of several files, in order."""
    names: dict[str, int] = {}
    cells: list[dict[str, Any]] = []
    outputs = list(dict.fromkeys(name for part in parts for name in part.outputs))
    index, values, texts, begun = [], [], {}, 0
    for part in parts:
        places = []
        for cell in part.cells:
            text = json.dumps(cell, sort_keys=True)
            if text not in names:
                names[text] = len(cells)
                cells.append(cell)
            places.append(names[text])
        index.append(np.asarray(places, dtype=np.int64)[part.cell] if len(part) else part.cell)
        wide = np.full((len(part), len(outputs)), np.nan)
        wide[:, [outputs.index(name) for name in part.outputs]] = part.values
        values.append(wide)
        texts.update({begun + i: text for i, text in part.texts.items()})
        begun += len(part)
    together = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("replicate", "status", "attempt", "seconds", "alone")
    }
    return Part(
        cells=cells, outputs=outputs, texts=texts, cell=np.concatenate(index), values=np.concatenate(values), **together
    )


def compact(folder: Path, names: Iterable[str], *, most: int = 200_000) -> None:
    """Write the rows of several small files into few large ones.

    Any number of processes may do so at the same time: a file goes only when its rows are in another one, and rows
    that are in two are the same rows. Where another process was faster, nothing is done.
    """
    group: list[tuple[str, Part]] = []
    for name in [*names, None]:
        if name is not None:
            try:
                group.append((name, read_part(folder / name)))
            except FileNotFoundError:
                return
        if group and (name is None or sum(len(p) for _, p in group) >= most):
            if len(group) > 1:
                write_part(folder, joined([p for _, p in group]))
                for old, _ in group:
                    (folder / old).unlink(missing_ok=True)
            group = []
