"""A pool of candidates out of a person's table."""

from __future__ import annotations

from ..errors import DomainError
from .choices import Fixed
from .pool import Pool
from .rows import read_setting
from .space import Space
from .table import Table


def read_pool(table: Table, space: Space) -> Pool:
    """The candidates of a table: one row a setting, one column a parameter.

    Args:
        table: The table; other columns do not matter, and the column of a constant may be missing.
        space: The space that every candidate must be of.

    Raises:
        DomainError: There is no row, a column is missing, or a candidate cannot be set; the message names row
            and column.

    Example:
        >>> import pathlib, tempfile
        >>> from probnn.optimization import Real
        >>> from probnn.optimization.table import read_table
        >>> file = pathlib.Path(tempfile.mkdtemp(), "shelf.csv")
        >>> _ = file.write_text("bottle;x\\nA;2,5\\nB;5\\n")
        >>> read_pool(read_table(file, decimal=","), Space(x=Real(0, 10))).candidates
        [{'x': 2.5}, {'x': 5.0}]
    """
    for name, parameter in space.parameters.items():
        if name not in table.header and not isinstance(parameter, Fixed):
            raise DomainError(
                f"{table.name}, row 1: there is no column for the parameter {name!r}; the columns are "
                f"{', '.join(table.header)}"
            )
    if not table.rows:
        raise DomainError(f"{table.name}: there is a header and no candidate")
    candidates = []
    for number, row in zip(table.numbers, table.rows, strict=True):
        values = {n: read_setting(table, number, n, p, row.get(n)) for n, p in space.parameters.items()}
        for name, parameter in space.parameters.items():
            if (complaint := parameter.complaint(values[name])) is not None:
                raise DomainError(f"{table.at(number, name)}: {complaint}")
        if violations := space.violations(values):
            raise DomainError(f"{table.name}, row {number}: {violations[0]}")
        candidates.append(values)
    return Pool(space, candidates)
