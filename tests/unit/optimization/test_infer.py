"""A space read off a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from probnn.errors import DomainError
from probnn.optimization import Categorical, Fixed, Integer, Real
from probnn.optimization.infer import infer_space
from probnn.optimization.spacefile import read_space
from probnn.optimization.table import Table, read_table


def columns(folder: Path, decimal: str = ".", **cells: list[object]) -> Table:
    """A table with these columns."""
    path = folder / "t.csv"
    rows = [";".join(cells), *(";".join(map(str, row)) for row in zip(*cells.values(), strict=True))]
    path.write_text("\n".join(rows) + "\n")
    return read_table(path, decimal=decimal)


@pytest.mark.parametrize(
    ("values", "parameter"),
    [
        ([20, 80, 40, 20], Integer(20, 80, step=20)),
        ([1, 2, 3, 5], Integer(1, 5)),
        ([8.3, 8.1, 9.8, 8.0], Real(8.0, 9.8, step=0.1)),
        ([0.25, 1.75, 1.0, 0.25], Real(0.25, 1.75, step=0.75)),
        (["0.3", "0.1", "0.2", "0.4"], Real(0.1, 0.4, step=0.1)),  # 0.3 - 0.2 is not 0.1 in doubles
        ([1.5, 3.7, 9.1, 1.5], Real(1.5, 9.1)),  # 39 levels of 0.2 for three values: no grid anybody has
        ([0.1234, 0.9876, 0.5555, 0.7], Real(0.1234, 0.9876)),
        ([20, 80, 20, 20], Integer(20, 80)),
        ([1e-4, 1e-3, 1e-2, 3e-2], Real(1e-4, 3e-2, log=True)),
        ([1, 10, 100, 1000], Integer(1, 1000, log=True)),
        ([1, 34, 67, 100], Integer(1, 100, step=33)),  # two decades, but even as they are
        ([0, 10, 100, 1000], Integer(0, 1000)),
        ([-3, 5, 5, 1], Integer(-3, 5, step=4)),
        ([7, 7, 7, 7], Fixed(7)),
        ([0.5] * 4, Fixed(0.5)),
        (["a", "c", "b", "a"], Categorical(["a", "b", "c"])),
        (["water"] * 4, Fixed("water")),
        (["TRUE", "FALSE", "TRUE", "TRUE"], Categorical([False, True])),
        (["1-2", "3-4", "1-2", "7"], Categorical(["1-2", "3-4", "7"])),
    ],
)
def test_columns(tmp_path: Path, values: list[object], parameter: object) -> None:
    table = columns(tmp_path, x=values, other=[0.11, 0.57, 0.93, 0.2], y=[1.1, 2.7, 3.9, 4.2])
    found = infer_space(table, ["y"])
    assert found.space.parameters["x"] == parameter
    assert (found.targets, found.guessed) == (("y",), False)
    for row in table.rows:  # every row can be set in the space that was read off it
        values_of = {n: p.parse(row[n]) for n, p in found.space.parameters.items()}
        assert found.space.violations(values_of) == []
    (tmp_path / "s.toml").write_text(found.toml("t.csv"))
    assert read_space(tmp_path / "s.toml") == found.space


def test_decimal_commas(tmp_path: Path) -> None:
    table = columns(tmp_path, ",", x=["0,1", "0,3", "0,2"], y=["1,5", "2,5", "1,25"])
    assert infer_space(table).space.parameters == {"x": Real(0.1, 0.3, step=0.1)}


def test_targets_are_what_is_unfinished(tmp_path: Path) -> None:
    table = columns(tmp_path, x=[1, 2, 4], y=[0.5, "", "failed"], cost=[3, 4, "n.a."], z=[2, 9, 4])
    found = infer_space(table)
    assert (found.targets, found.guessed) == (("y", "cost"), False)
    assert list(found.space) == ["x", "z"]


def test_targets_are_guessed_aloud(tmp_path: Path) -> None:
    found = infer_space(columns(tmp_path, x=[1, 2, 4], y=[0.5, 0.6, 0.1], operator=["me", "you", "me"]))
    assert (found.targets, found.guessed) == (("y",), True)
    assert "Results, not settings: y (guessed" in found.toml("t.csv")


def test_what_is_no_setting(tmp_path: Path) -> None:
    found = infer_space(
        columns(
            tmp_path,
            run=[1, 2, 3, 4, 5, 6],
            trial=[0, 1, 2, 3, 4, 5],
            x=[3, 1, 4, 1, 5, 9],
            sample=[f"A-{i}" for i in range(6)],
            remark=["", "", "late", "", "", ""],
            y=range(10, 70, 10),
            y_sem=[1] * 6,
            status=["complete"] * 6,
        ),  # fmt: skip
        ["y"],
    )
    assert list(found.space.parameters) == ["x"]
    assert found.left_out == {
        "run": "counts the rows",
        "sample": "6 different texts in 6 rows: names or notes",
        "remark": "row 2 has no value; fill the cells in to make it a setting",
    }


def test_a_column_of_failures_is_a_result(tmp_path: Path) -> None:
    found = infer_space(columns(tmp_path, x=[1, 2, 4], y=["failed", "Failed", "abandoned"], n=[3, 1, 7]), [])
    assert found.targets == ("y",) and not found.guessed and list(found.space.parameters) == ["x", "n"]


@pytest.mark.parametrize(
    ("cells", "targets", "message"),
    [
        (
            {"x": [1, 2, "3o"], "y": [1, 2, 3]},
            ["y"],
            "row 4, column 'x': expected a number, as in other rows, got '3o'",
        ),
        ({"x": ["1,5", "2,5"], "y": [1, 2]}, ["y"], "row 2, column 'x': .* decimal=','"),
        ({"x": [1, 2], "y": [1, 2]}, ["z"], "row 1: there is no column 'z'"),
        ({"x": [1, 1], "y": [1, 2]}, ["y"], "no column but the results varies"),
        ({"x": ["a", "b"], "y": ["c", "d"]}, [], "no column of numbers could be a result"),
        ({"x": ["1,5", "2,5"], "y": ["3,5", "4,5"]}, [], "row 2, column 'x': .* '1,5'.* decimal=','"),
        (
            {"x": [1, "1e999"], "y": [1, 2]},
            ["y"],
            "row 3, column 'x': expected a number, as in other rows, got '1e999'",
        ),
        ({"x": ["1e308", "-1e308"], "y": [1, 2]}, ["y"], "t.csv, column 'x': the range .* too wide .*; leave"),
        ({"x": [], "y": []}, [], "a header and no row"),
        ({"x": [1, 2], "y": [1, 2]}, ["y", "y"], "named twice"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, cells: dict, targets: list[str], message: str) -> None:
    with pytest.raises(DomainError, match=message):
        infer_space(columns(tmp_path, **cells), targets)
