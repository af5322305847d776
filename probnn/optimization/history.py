"""The history of a loop: a table that grows by whole lines and outlives its process."""

from __future__ import annotations

import contextlib
import math
import numbers
import os
import re
import stat
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .. import io, validation
from ..errors import DomainError, ProbnnError, SerializationError, UnsupportedError
from .choices import Fixed
from .lock import FileLock
from .rows import check_names, parse_trials, row_numbers
from .table import BOM, Table, append_text, parse_table, read_bytes
from .trials import STATUSES, Trial, copy_trial

if TYPE_CHECKING:
    from .space import Space


class History:
    """All trials of a loop, in a CSV file that is its only state.

    The file has the columns trial, status, one a parameter, ``<target>`` and ``<target>_sem`` for each target,
    source, started, finished, note. :meth:`record` appends one whole line and returns when it is on the disk; a
    trial that changes is appended again under its number, and the last line of a number counts. A line that a killed
    process left unfinished is taken off when the file is opened again.

    The file may be a person's table. Its own columns are kept; columns of a history that it lacks are added at the
    right and rows without a number get one, by replacing the file in one step with every other cell as it was.
    While the object is open no other can open the file; the lock (``<path>.lock``) ends with the process.

    Args:
        path: The file; made with its folders if it is not there.
        space: The parameters.
        targets: Names of the targets.
        decimal: The decimal sign in the file, ``"."`` or ``","``.

    Raises:
        SerializationError: The file is in use, or cannot be read or written.
        DomainError, ShapeError: The table cannot be understood; the message names row and column.

    Example:
        >>> import tempfile
        >>> from probnn.optimization import Integer, Space
        >>> path, space = tempfile.mkdtemp() + "/trials.csv", Space(depth=Integer(1, 8))
        >>> with History(path, space, ["accuracy"]) as history:
        ...     history.record(Trial(0, {"depth": 3}, "user", "complete", {"accuracy": 0.83}))
        >>> History.read(path, space, ["accuracy"])[0].value
        0.83
    """

    def __init__(self, path: str | os.PathLike[str], space: Space, targets: Sequence[str], *, decimal: str = "."):
        self.name = os.fspath(path)
        self.path = os.path.realpath(self.name)
        self.space, self.targets = space, tuple(targets)
        check_names(self.name, space, targets)
        validation.choice(self.name, "decimal", decimal, (".", ","))
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
        except OSError as error:
            raise SerializationError(f"{self.name}: its folder cannot be made ({error.strerror})") from error
        self._lock = FileLock(self.path + ".lock", self.name)
        self.dropped = ""  #: The unfinished line that was taken off on opening.
        self.added: tuple[str, ...] = ()  #: Columns of a history that a person's table was given on opening.
        try:
            self._open(decimal)
        except BaseException:
            self.close()
            raise

    def _open(self, decimal: str) -> None:
        data = read_bytes(self.path, self.name) if os.path.exists(self.path) else b""
        if not data.removeprefix(BOM).strip():
            blank = Table(self.path, self.name, (), (), (), ";" if decimal == "," else ",", decimal=decimal)
            data = blank.line(list(_columns(self.space, self.targets, decimal))).encode()
            self._replace(data)
        keep = whole(data, self._lock.found, decimal, self.name)
        self._table = parse_table(data[:keep], self.path, decimal=decimal, name=self.name)
        trials = parse_trials(self._table, self.space, self.targets)
        if keep < len(data):
            self.dropped = data[keep:].decode("utf-8", "replace")
            with _writing(self.name):
                os.truncate(self.path, keep)
        completed, before = self._completed(), self._table.header
        if completed is not None:
            self._replace(completed)
            data, keep = completed, len(completed)
            self._table = parse_table(data, self.path, decimal=decimal, name=self.name)
        self.added = tuple(name for name in self._table.header if name not in before)
        self._head = re.match(rb"[^\r\n]*", data).group()  # type: ignore[union-attr]
        self._trials = {trial.number: trial for trial in trials}

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], space: Space, targets: Sequence[str], *, decimal: str = "."
    ) -> list[Trial]:
        """The trials in a file, in the order of their numbers, while another process may be writing to it.

        Nothing is locked or changed; a line that is not finished is left out.

        Args:
            path: The file.
            space, targets, decimal: As for :class:`History`.

        Returns:
            The trials.
        """
        name = os.fspath(path)
        real = os.path.realpath(name)
        for _ in range(10):  # a line may be coming in: then what was read first is older than what was read last
            data, note = read_bytes(real, name), b""
            with contextlib.suppress(SerializationError):
                note = read_bytes(real + ".lock", name)
            if data == read_bytes(real, name):
                break
        keep = whole(data, note, decimal, name)
        trials = parse_trials(parse_table(data[:keep], real, decimal=decimal, name=name), space, targets)
        return sorted(trials, key=lambda trial: trial.number)

    @property
    def trials(self) -> list[Trial]:
        """Copies of all trials, in the order of their numbers."""
        return [copy_trial(self._trials[number]) for number in sorted(self._trials)]

    @property
    def next_number(self) -> int:
        """The first number that is larger than all."""
        return max(self._trials, default=-1) + 1

    def record(self, trial: Trial) -> None:
        """Write down a trial as it is now, new or changed; it is on the disk when this returns.

        Line breaks in the note, the source and extra cells become spaces.

        Args:
            trial: The trial, copied. Its parameters stay what they were under its number.

        Raises:
            DomainError: The trial is not of this space and these targets, or would not read back as it is.
            SerializationError: The file cannot be written (a full disk), or has another header by now; file and
                object are as before.
        """
        if not self._lock.release.alive:
            raise UnsupportedError(f"History.record: {self.name} is closed; open a History again")
        trial = copy_trial(trial)
        trial.parameters = {**self.space.fixed, **trial.parameters}
        line, as_read = self._line(trial)
        append_text(self.path, line, self._table, self._announce)
        with contextlib.suppress(OSError):  # a note of what is written already does no harm
            self._lock.clear()
        self._trials[trial.number] = as_read

    def close(self) -> None:
        """Let others open the file; nothing can be recorded any more."""
        self._lock.release()

    def __enter__(self) -> History:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _announce(self, handle: int, size: int, data: bytes) -> None:
        """Note what is about to be written where, so that half of it can be told from a person's own line."""
        os.lseek(handle, 0, os.SEEK_SET)
        if os.read(handle, len(self._head)) != self._head:
            raise SerializationError(
                f"{self.name}: another program changed the header of the file; close it there, put the header back "
                "or open a History again"
            )
        self._lock.write(b"%d\n" % size + data)

    def _line(self, trial: Trial) -> tuple[str, Trial]:
        """The line of a trial, and the trial that it will be read as."""
        where = f"History.record: trial {trial.number!r}"
        validation.positive_int("History.record", "the trial's number", trial.number, 0)
        validation.choice(where, "status", trial.status, STATUSES)
        for what, given, known in (
            ("parameter", trial.parameters, self.space.parameters),
            ("target", trial.values, self.targets),
            ("standard error", trial.sems, self.targets),
            ("extra column", trial.extra, self._table.header),
        ):
            for name in given:
                if name not in known:
                    raise DomainError(f"{where}: there is no {what} {name!r}; there are {', '.join(known)}")
        for name in self.space.parameters:
            if name not in trial.parameters:
                raise DomainError(f"{where}: the parameter {name!r} is missing")
        for name, value in (*trial.values.items(), *trial.sems.items()):
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise DomainError(f"{where}: {name!r} must be a finite number, got {value!r}")
        earlier = self._trials.get(trial.number)
        if earlier is not None and earlier.parameters != trial.parameters:
            raise DomainError(f"{where}: is there with other parameters already; a new setting needs a new number")
        cells: dict[str, Any] = {
            **{name: _one_line(text) for name, text in trial.extra.items()},
            **trial.parameters,
            **trial.values,
            **{f"{name}_sem": value for name, value in trial.sems.items()},
            "trial": trial.number,
            "status": trial.status,
            "source": _one_line(trial.source),
            "started": trial.started,
            "finished": trial.finished,
            "note": _one_line(trial.note),
        }
        texts = [self._table.cell(where, name, cells.get(name)) for name in self._table.header]
        # The last cell is always quoted, so that a line that was cut has an open quote or too few cells.
        return self._table.line(texts, quote_last=True), self._read_back(where, trial, texts)

    def _read_back(self, where: str, trial: Trial, texts: list[str]) -> Trial:
        """The trial that cells will be read as; one that differs in what matters is refused."""
        table = self._table
        row = dict(zip(table.header, texts, strict=True))
        one = Table(table.path, where, table.header, (row,), (0,), table.delimiter, table.newline, table.decimal)
        [back] = parse_trials(one, self.space, self.targets)
        for name in ("number", "parameters", "status", "values", "sems", "started", "finished"):
            given, read = getattr(trial, name), getattr(back, name)
            if given != read:
                raise DomainError(f"{where}: would not read back as it is: {name} {given!r} would be {read!r}")
        return back

    def _completed(self) -> bytes | None:
        """The file with the columns and numbers it lacks, or None if it lacks none."""
        table = self._table
        columns = _columns(self.space, self.targets, table.decimal)
        added = {name: text for name, text in columns.items() if name not in table.header}
        if not added and all(row["trial"].strip() for row in table.rows):
            return None
        given = dict(zip(table.numbers, row_numbers(table), strict=True))
        lines = [table.line([*table.records[0], *added])]
        for row, record in enumerate(table.records[1:], 2):
            if row not in given:
                lines.append(table.line([*record, *[""] * len(added)]) if record else table.newline)
                continue
            cells = [*record, *added.values()]
            cells[[*table.header, *added].index("trial")] = str(given[row])
            lines.append(table.line(cells))
        return (BOM if table.bom else b"") + "".join(lines).encode()

    def _replace(self, data: bytes) -> None:
        """Put a whole file in place of the present one."""
        with _writing(self.name):
            mode = stat.S_IMODE(os.stat(self.path).st_mode) if os.path.exists(self.path) else None
            with io.replacing(self.path) as temporary, open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if mode is not None:
                os.chmod(self.path, mode)


def _columns(space: Space, targets: Sequence[str], decimal: str) -> dict[str, str]:
    """The columns of a history, with the text of rows that lack them: constants have their value."""
    table = Table("", "History", (), (), (), decimal=decimal)
    columns = {"trial": "", "status": ""}
    for name, parameter in space.parameters.items():
        columns[name] = table.cell("History", name, parameter.value) if isinstance(parameter, Fixed) else ""
    for target in targets:
        columns |= {target: "", f"{target}_sem": ""}
    return columns | dict.fromkeys(("source", "started", "finished", "note"), "")


def _one_line(text: str) -> str:
    return re.sub(r"[\r\n\0]+", " ", text).encode("utf-8", "replace").decode()


@contextlib.contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SerializationError(f"{name}: cannot be written ({error.strerror}); it is as it was") from error


def whole(data: bytes, note: bytes, decimal: str, name: str) -> int:
    """How much of a file to keep: all but a line that its writer could not finish.

    Args:
        data: The file.
        note: What the writer noted before it wrote: the size of the file and, on the next lines, the bytes to come.
        decimal: The decimal sign.
        name: What messages call the file.
    """
    size, separator, planned = note.partition(b"\n")
    if separator and size.isdigit() and int(size) < len(data):
        tail = data[int(size) :]
        if tail != planned and planned.startswith(tail):
            return int(size)
    if data.endswith((b"\n", b"\r")) or _parses(data, decimal, name):
        return len(data)
    # Without the note (it was deleted, the file copied): lines of a history that this library made end with a quoted
    # cell, so that one that was cut has too few cells or an open quote. In a person's table it is an error.
    start = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
    table = _parses(data[:start], decimal, name)
    return start if table and table.header[:2] == ("trial", "status") else len(data)


def _parses(data: bytes, decimal: str, name: str) -> Table | None:
    try:
        return parse_table(data, "", decimal=decimal, name=name)
    except ProbnnError:
        return None
