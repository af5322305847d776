"""A person's table: comma-separated text as spreadsheets write it, read whole and added to row by row.

Errors name the file, the row (as a spreadsheet counts them: the header is row 1) and the column.
"""

from __future__ import annotations

import csv
import io
import numbers
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import validation
from ..errors import DomainError, SerializationError, ShapeError

DELIMITERS = (",", ";", "\t")
BOM = b"\xef\xbb\xbf"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Table:
    """A table of text cells and how its file is written.

    Args:
        path: The file.
        name: What messages call it.
        header: Names of the columns, without spaces around them.
        rows: One dictionary of cells by column for each row that is not blank.
        numbers: Their rows in a spreadsheet; the header is row 1.
        delimiter: Between cells.
        newline: At the ends of lines.
        decimal: The decimal sign.
        bom: Whether the file begins with a byte-order mark.
        records: Every record as it stands, header and blank lines included.
    """

    path: str
    name: str
    header: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    numbers: tuple[int, ...]
    delimiter: str = ","
    newline: str = "\n"
    decimal: str = "."
    bom: bool = False
    records: tuple[tuple[str, ...], ...] = field(default=(), repr=False)

    def at(self, row: int, column: str) -> str:
        """A cell in words, for messages."""
        return f"{self.name}, row {row}, column {column!r}"

    def number(self, row: int, column: str, text: str, expected: str = "a number") -> float:
        """A finite number of a cell, written with the decimal sign of the table.

        Raises:
            DomainError: The cell is no number, NaN or infinite.
        """
        plain = plain_number(text.strip(), self.decimal)
        if plain is None or not abs(value := float(plain)) < float("inf"):
            raise DomainError(f"{self.at(row, column)}: expected {expected}, got {text!r}{self.hint(text)}")
        return value

    def hint(self, text: str) -> str:
        """What to do about a cell that is a number with the other decimal sign."""
        other = "," if self.decimal == "." else "."
        if plain_number(text.strip(), other) is None or plain_number(text.strip(), self.decimal) is not None:
            return ""
        return f"; for numbers written like that give decimal={other!r}"

    def line(self, cells: Sequence[str], *, quote_last: bool = False) -> str:
        """One line in the dialect of the table, with its end.

        Args:
            cells: As many as columns.
            quote_last: Write the last cell in quotes even where it needs none.
        """
        special = (self.delimiter, '"', "\r", "\n")
        out = []
        for position, cell in enumerate(cells, 1):
            quoted = any(s in cell for s in special) or cell != cell.strip() or (quote_last and position == len(cells))
            out.append('"' + cell.replace('"', '""') + '"' if quoted else cell)
        return self.delimiter.join(out) + self.newline

    def cell(self, where: str, column: str, value: Any) -> str:
        """The text of a value: None is an empty cell, a number is written so that it reads back exactly.

        Raises:
            DomainError: The value is not text, a number, true or false or None, or is text that is no one line.
        """
        if value is None:
            return ""
        if isinstance(value, str):
            if any(c in value for c in "\r\n\0") or not _is_unicode(value):
                raise DomainError(
                    f"{where}: {column!r} must be text on one line, got {value!r}; a table has one line a row"
                )
            return value
        if isinstance(value, (bool, numbers.Integral)):
            return str(value if isinstance(value, bool) else int(value))
        if isinstance(value, numbers.Real):
            return repr(float(value)).replace(".", self.decimal)
        raise DomainError(
            f"{where}: {column!r} must be text, a number, True, False or None, got a {type(value).__name__}"
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain_number(text: str, decimal: str) -> str | None:
    """A number with decimal sign `decimal` as Python writes it, or None if the text is none."""
    if decimal == ",":
        text = "not a number" if "." in text else text.replace(",", ".")
    return text if _NUMBER.fullmatch(text) else None


def read_table(path: str | os.PathLike[str], *, decimal: str = ".", where: str | None = None) -> Table:
    """Read a table with a header, from a file of commas, semicolons or tabs.

    The file is UTF-8, with or without byte-order mark, with any kind of line ends; cells may be quoted. Rows whose
    cells are all empty are left out. The delimiter is the one under which the rows agree best with the header.

    Args:
        path: The file.
        decimal: ``"."`` or ``","``; with a decimal comma, cells are not separated by commas.
        where: How messages call the file; None: by its path.

    Returns:
        The table; one with a header only has no rows.

    Raises:
        SerializationError: The file is missing, empty or no UTF-8 text.
        ShapeError: A row is shorter or longer than the header.
        DomainError: A column has no name, or two have the same.

    Example:
        >>> import tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp(), "a.csv")
        >>> _ = file.write_text("power;yield\\n3,5;0,8\\n")
        >>> table = read_table(file, decimal=",")
        >>> table.rows[0], table.number(2, "power", table.rows[0]["power"])
        ({'power': '3,5', 'yield': '0,8'}, 3.5)
    """
    path = os.fspath(path)
    name = path if where is None else where
    validation.choice(name, "decimal", decimal, (".", ","))
    return parse_table(read_bytes(path, name), path, decimal=decimal, name=name)


def read_bytes(path: str, name: str) -> bytes:
    """The bytes of a file, or an error of this library."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise SerializationError(f"{name}: there is no such file") from None
    except OSError as error:
        raise SerializationError(f"{name}: cannot be read ({error.strerror})") from None


def parse_table(data: bytes, path: str, *, decimal: str, name: str) -> Table:
    """A table from the bytes of its file; see :func:`read_table`."""
    bom = data.startswith(BOM)
    text = _decode(data[len(BOM) :] if bom else data, name)
    if not text.strip():
        raise SerializationError(f"{name}: the file is empty; its first line must name the columns")
    delimiter = _delimiter(text, decimal)
    records = _records(text, delimiter, name)
    header = tuple(cell.strip() for cell in records[0])
    if not any(header):
        raise DomainError(f"{name}, row 1: the row is blank; it must name the columns")
    _check_header(header, name)
    rows, row_numbers = [], []
    for number, record in enumerate(records[1:], 2):
        if not any(cell.strip() for cell in record):
            continue
        _check_length(record, header, f"{name}, row {number}", delimiter)
        rows.append(dict(zip(header, record, strict=True)))
        row_numbers.append(number)
    newline = next((end for end in ("\r\n", "\n", "\r") if end in text), "\n")
    return Table(
        path, name, header, tuple(rows), tuple(row_numbers), delimiter, newline, decimal, bom,
        tuple(tuple(record) for record in records),
    )  # fmt: skip


def _decode(data: bytes, name: str) -> str:
    advice = "save it as CSV in UTF-8"
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise SerializationError(f"{name}, row {row}: the file is not UTF-8 text; {advice}") from None
    if "\0" in text:
        row = text.count("\n", 0, text.index("\0")) + 1
        raise SerializationError(f"{name}, row {row}: the file is not text (it holds a zero byte); {advice}")
    return text


def _records(text: str, delimiter: str, name: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[list[str]] = []
    try:
        for record in reader:
            records.append(record)  # one by one: an error then knows how many came before
    except csv.Error as error:
        what = "a quote is opened and not closed" if "unexpected end" in str(error) else str(error)
        raise DomainError(f"{name}, row {len(records) + 1}: {what}; a quote inside a cell is written twice") from None
    return records


def _delimiter(text: str, decimal: str) -> str:
    """The delimiter that gives rows as long as the header; among such, the one that gives most columns."""
    best, chosen = (0.0, 1), ";" if decimal == "," else ","
    for delimiter in DELIMITERS:
        if delimiter == decimal:
            continue
        try:
            records = [r for r in _records(text, delimiter, "") if any(cell.strip() for cell in r)]
        except DomainError:
            continue
        columns = len(records[0])
        agree = sum(len(r) == columns for r in records) / len(records)
        if columns > 1 and (agree, columns) > best:
            best, chosen = (agree, columns), delimiter
    return chosen


def _check_header(header: Sequence[str], name: str) -> None:
    for position, column in enumerate(header, 1):
        if not column:
            raise DomainError(f"{name}, row 1: column {position} has no name; name it or delete the column")
        if column in header[: position - 1]:
            first = header.index(column) + 1
            raise DomainError(
                f"{name}, row 1: columns {first} and {position} are both called {column!r}; rename one of them"
            )


def _check_length(record: Sequence[str], header: Sequence[str], at: str, delimiter: str) -> None:
    if len(record) < len(header):
        raise ShapeError(
            f"{at}: {len(record)} cells where the header has {len(header)}; column {header[len(record)]!r} is missing"
        )
    if len(record) > len(header):
        advice = (
            "a decimal comma or a comma inside a cell needs quotes" if delimiter == "," else "delete what is too much"
        )
        raise ShapeError(
            f"{at}: {len(record)} cells where the header has {len(header)}; "
            f"there is {record[len(header)]!r} after column {header[-1]!r}; {advice}"
        )


def append_rows(path: str | os.PathLike[str], table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to a file, under its header and in its own dialect: all of them or none.

    Args:
        path: The file.
        table: The table that was read from it.
        rows: Values by column; columns that are not given stay empty. A file that does not end with a line end gets
            one first.

    Raises:
        DomainError: A row has a column that the table has not, or a value that is no single line of text.
        SerializationError: The file has another header by now, or cannot be written; it stays as it is.
    """
    path, lines = os.fspath(path), []
    for row in rows:
        unknown = [column for column in row if column not in table.header]
        if unknown:
            raise DomainError(
                f"append_rows: {table.name} has no column {unknown[0]!r}; its columns are {', '.join(table.header)}"
            )
        lines.append(table.line([table.cell("append_rows", c, row.get(c)) for c in table.header]))
    now = read_table(path, decimal=table.decimal, where=table.name)
    if (now.header, now.delimiter) != (table.header, table.delimiter):
        raise SerializationError(f"append_rows: {table.name} has another header than when it was read; read it again")
    if lines:
        append_text(path, "".join(lines), table)


def append_text(
    path: str, text: str, table: Table, before: Callable[[int, int, bytes], None] = lambda handle, size, data: None
) -> None:
    """Append whole lines to a file and wait until they are on the disk; what fails leaves the file as it was.

    Args:
        path: The file.
        text: The lines; a file that does not end with a line end gets one first.
        table: What is in the file.
        before: Called just before writing with the open file, its size and the bytes to write.

    Raises:
        SerializationError: The file cannot be opened or written, such as on a full disk.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise SerializationError(f"{table.name}: cannot be written ({error.strerror}); it is as it was") from error
    try:
        size = os.lseek(handle, 0, os.SEEK_END)
        try:
            data = unfinished(handle, size, table.newline) + text.encode()
            before(handle, size, data)
            write_all(handle, data)
            os.fsync(handle)
        except BaseException:
            os.ftruncate(handle, size)
            raise
    except OSError as error:
        raise SerializationError(
            f"{table.name}: cannot be written ({error.strerror}); make room and try again, the file is as it was"
        ) from error
    finally:
        os.close(handle)


def unfinished(handle: int, size: int, newline: str) -> bytes:
    """The line end that a file of `size` bytes lacks, or nothing."""
    if size == 0:
        return b""
    os.lseek(handle, size - 1, os.SEEK_SET)
    return b"" if os.read(handle, 1) in (b"\n", b"\r") else newline.encode()


def write_all(handle: int, data: bytes) -> None:
    """Write bytes; a disk that takes only a part raises an error at the next attempt."""
    while data:
        data = data[os.write(handle, data) :]
