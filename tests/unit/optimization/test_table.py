"""A person's table: dialects, words, errors that name row and column, and rows added under the header."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from probnn.errors import DomainError, ProbnnError, SerializationError, ShapeError
from probnn.optimization import Categorical, Fixed, Integer, Real, Space
from probnn.optimization.rows import check_rows, parse_trials
from probnn.optimization.table import append_rows, read_table
from probnn.optimization.trials import Trial

SPACE = Space(power=Real(0, 10), loss=Categorical(["a", "b"]))
BOM = b"\xef\xbb\xbf"


def put(folder: Path, text: str | bytes) -> Path:
    path = folder / "runs.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def trials_of(folder: Path, text: str | bytes, targets: tuple[str, ...] = ("y",), **keywords: Any) -> list[Trial]:
    return parse_trials(read_table(put(folder, text), **keywords), SPACE, targets)


DIALECTS = itertools.product(",;\t", ["\n", "\r\n", "\r"], [False, True], [False, True], [0, 1, 3], [".", ","])


@pytest.mark.parametrize("delimiter, newline, bom, quoted, ends, decimal", [d for d in DIALECTS if d[0] != d[-1]])
def test_every_dialect_reads_the_same_and_grows_in_its_own(
    tmp_path: Path, delimiter: str, newline: str, bom: bool, quoted: bool, ends: int, decimal: str
) -> None:
    records = [["power", "loss", "y", "who, when"], ["3.5", "a", "0.25", "Ä; b, c"], ["1e-3", "b", "", ""]]

    def line(cells: list[str]) -> str:
        cells = [c.replace(".", decimal) if c[:1].isdigit() else c for c in cells]
        return delimiter.join(f'"{c}"' if quoted or set(c) & set(",;") else c for c in cells)

    text = newline.join(map(line, records)) + newline * ends
    path = put(tmp_path, (BOM if bom else b"") + text.encode())
    table = read_table(path, decimal=decimal)
    assert (table.delimiter, table.bom) == (delimiter, bom)
    assert table.header == tuple(records[0]) and table.numbers == (2, 3)
    first, second = parse_trials(table, SPACE, ["y"])
    assert first.parameters == {"power": 3.5, "loss": "a"} and first.values == {"y": 0.25}
    assert second.parameters == {"power": 0.001, "loss": "b"} and second.values == {}
    assert first.extra == {"who, when": "Ä; b, c"}
    assert (first.status, second.status, first.row) == ("complete", "pending", 2)

    before = path.read_bytes()
    added = {"power": 0.1 + 0.2, "loss": "b", "who, when": 'me; "now", x'}
    append_rows(path, table, [added, {"power": 7, "loss": "a"}])
    after = path.read_bytes()
    end = newline.encode() if ends else table.newline.encode()
    assert after.startswith(before + (b"" if ends else end)) and after.endswith(end) and after.count(BOM) == bom
    assert not after[len(before) :].replace(end, b"").count(b"\n") and not after[len(before) :].strip(end).count(BOM)
    *_, third, fourth = parse_trials(read_table(path, decimal=decimal), SPACE, ["y"])
    assert third.parameters == {"power": 0.1 + 0.2, "loss": "b"} and third.extra == {"who, when": 'me; "now", x'}
    assert fourth.parameters == {"power": 7.0, "loss": "a"} and fourth.values == {} and fourth.row == 4 + max(ends, 1)


def test_the_delimiter_is_the_one_under_which_rows_agree(tmp_path: Path) -> None:
    table = read_table(put(tmp_path, "yield, %;temp, C;x\n80,1;20;3,5\n70;21,5;3\n"), decimal=",")
    assert table.header == ("yield, %", "temp, C", "x") and table.rows[1]["temp, C"] == "21,5"
    assert read_table(put(tmp_path, 'a,"b;c;d",e\n1,"2;3;4",5\n')).header == ("a", "b;c;d", "e")
    assert read_table(put(tmp_path, "a;b, in g;c, in g;d, in g\n1;2;3;4\n")).delimiter == ";"
    assert read_table(put(tmp_path, "y\n3,5\n"), decimal=",").rows == ({"y": "3,5"},)
    assert read_table(put(tmp_path, "a;b, dry, in g;c, in g\n1;2;3\n4;5;6\n")).header[1] == "b, dry, in g"
    assert read_table(put(tmp_path, "a,b\n")).rows == ()


def test_rows_are_counted_as_a_spreadsheet_does(tmp_path: Path) -> None:
    text = 'power,loss,y,"where\nand when"\n1,a,2,"two\nlines"\n\n,,,\n2,b,oops,\n'
    with pytest.raises(DomainError, match=r"runs\.csv, row 5, column 'y'.*'oops'"):
        trials_of(tmp_path, text)
    assert len(trials_of(tmp_path, text.replace("oops", ""))) == 2


def test_words_and_statuses(tmp_path: Path) -> None:
    cells = "1 2 FAILED fail n.a. NA n/a Abandoned pending Running WAITING".split()
    text = "power,loss,y\n" + "".join(f"1,a, {c} \n" for c in cells) + "1,a,\n"
    got = [t.status for t in trials_of(tmp_path, text)]
    assert got == ["complete"] * 2 + ["failed"] * 2 + ["abandoned"] * 4 + ["pending"] * 4

    text = "power,loss,y,status\n" + "".join(
        f"1,a,{y},{s}\n"
        for y, s in [
            ("1", "COMPLETE"), ("1", "FAIL"), ("1", "RUNNING"), ("", "WAITING"), ("1", "PRUNED"), ("1", "abandoned"),
            ("", "failed"), ("failed", "pending"), ("1", ""), ("n.a.", "complete"),
        ]
    )  # fmt: skip
    got = [t.status for t in trials_of(tmp_path, text)]
    # A pending row whose number was filled in is complete: a person need not change the status as well.
    expected = "complete failed complete pending abandoned abandoned failed failed complete abandoned".split()
    assert got == expected


def test_targets_measured_in_part(tmp_path: Path) -> None:
    rows = [
        ("1", "2", "complete", {"y": 1, "z": 2}),
        ("1", "", "complete", {"y": 1}),
        ("", "2", "complete", {"z": 2}),
        ("1", "n.a.", "complete", {"y": 1}),
        ("n.a.", "", "pending", {}),
        ("n.a.", "n.a.", "abandoned", {}),
        ("1", "failed", "failed", {"y": 1}),
        ("abandoned", "failed", "failed", {}),
        ("1", "pending", "pending", {"y": 1}),
        ("", "", "pending", {}),
    ]
    text = "power,loss,y,z\n" + "".join(f"1,a,{y},{z}\n" for y, z, *_ in rows)
    got = [(t.status, t.values) for t in trials_of(tmp_path, text, ("y", "z"))]
    assert got == [tuple(row[2:]) for row in rows]


def test_columns_of_a_history_and_unknown_ones(tmp_path: Path) -> None:
    text = (
        "batch,note,trial,y_sem,y,loss,power,source,started,finished,operator\n"
        "7,hot,4,0.1,1,a,1,model,2026-01-01T00:00:00Z,2026-01-01T00:00:02.5Z,Eve\n"
        "8,,,,2,b,2,,,,\n"
        "9,,0,,,b,3,,,,\n"
        "9,,,,,b,3,,,,\n"
    )
    trials = trials_of(tmp_path, text)
    assert [t.number for t in trials] == [4, 5, 0, 6]
    assert trials[0] == Trial(
        4, {"power": 1.0, "loss": "a"}, "model", "complete", {"y": 1.0}, {"y": 0.1}, "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:02.5Z", "hot", {"batch": "7", "operator": "Eve"},
    )  # fmt: skip
    assert trials[0].seconds == 2.5 and trials[0].sem == 0.1 and trials[0]["power"] == 1.0
    assert trials[1].source == "user" and trials[1].sems == {} and trials[1].started is None
    changed = text.replace("8,,,", "8,done again,4,").replace("2,b,2", "2,a,1")
    trials = trials_of(tmp_path, changed)
    assert [(t.number, t.value, t.note) for t in trials][:2] == [(4, 2.0, "done again"), (0, None, "")]


def test_columns_that_no_model_sees(tmp_path: Path) -> None:
    """A history of a larger space opens, and says what is left of it; empty columns are not worth a word."""
    text = "x,speed,y,operator,nothing\n0.1,7,1,Ada,\n0.2,,2,,\n"
    one, two = Space(x=Real(0, 1), speed=Real(0, 10)), Space(x=Real(0, 1))
    read = read_table(put(tmp_path, text.replace("0.2,,", "0.2,8,")))
    assert check_rows(parse_trials(read, one, ["y"]), one).columns == (
        "column not in the space: operator (kept as it is; no model sees it)"
    )
    check = check_rows(parse_trials(read_table(put(tmp_path, text)), two, ["y"]), two)
    assert check.others == ("speed", "operator") and check.sentence == ""
    assert check.lines == ["columns not in the space: speed, operator (kept as they are; no model sees them)"]


def test_old_rows_are_read_as_they_are(tmp_path: Path) -> None:
    space = Space(
        power=Real(0, 10), step=Real(8, 9.8, step=0.1), n=Integer(1, 4), kind=Categorical(["x", "z"]),
        solvent=Fixed("water"), constraints=["power + n <= 12"],
    )  # fmt: skip
    text = "power,step,n,kind,y\n12,8.1,1,x,1\n1,8.15,9,old,2\n9.5,9.8,4,z,3\n5,9,2,x,\n"
    trials = parse_trials(read_table(put(tmp_path, text)), space, ["y"])
    assert trials[1].parameters == {"power": 1.0, "step": 8.15, "n": 9, "kind": "old", "solvent": "water"}
    check = check_rows(trials, space, name="runs.csv")
    assert (check.num_rows, check.outside) == (4, 3)
    assert check.out_of_range == {"power": 1, "n": 1} and check.off_grid == {"step": 1}
    assert check.not_a_choice == {"kind": 1} and check.violated == {"power + n <= 12": 2}
    assert check.sentence == (
        "3 of 4 rows lie outside today's space (1 out of range: power; 1 out of range: n; 1 off the grid: step; "
        "1 not among the choices: kind; 2 violate 'power + n <= 12'); the model learns from them as they are"
    )
    assert check_rows(trials[3:], space).sentence == "" and check.columns == "" and check.lines == [check.sentence]
    with pytest.raises(DomainError, match=r"runs\.csv, row 2, column 'power'.*12"):
        check_rows(trials, space, strict=True, name="runs.csv")
    with pytest.raises(DomainError, match=r"runs\.csv, row 4, 'power \+ n <= 12' does not hold"):
        check_rows(trials[2:], space, strict=True, name="runs.csv")
    # What no model has a place for is an error also where not strict.
    ordered = Space(a=Categorical(["low", "high"], ordered=True), b=Real(1, 2, log=True))
    for row, words in ((("mid", 1.0), "row 7.*'a'.*'mid' has no place"), (("low", 0.0), "row 7.*'b'.*log scale")):
        with pytest.raises(DomainError, match=words):
            check_rows([Trial(0, dict(zip("ab", row, strict=True)), "user", row=7)], ordered)


BAD = [
    ("", SerializationError, r"runs\.csv: the file is empty"),
    ("\n \n", SerializationError, r"the file is empty"),
    ("\n1,2\n", DomainError, r"row 1: the row is blank"),
    (b"PK\x03\x04\xff\xfe\n", SerializationError, r"row 1: the file is not UTF-8"),
    ("power,loss,y\n1,a,2\n1,\u00e4,2\n".encode("latin-1"), SerializationError, r"row 3: the file is not UTF-8"),
    (b"power\0,loss,y\n", SerializationError, r"row 1.*zero byte"),
    ("power,loss,power\n", DomainError, r"row 1: columns 1 and 3 are both called 'power'"),
    ("power,loss,y, power\n", DomainError, r"columns 1 and 4 are both called 'power'"),
    ("power,,y\n", DomainError, r"row 1: column 2 has no name"),
    (",power,loss,y\n0,1,a,2\n", DomainError, r"column 1 has no name"),
    ("power,loss,y\n1,a\n", ShapeError, r"row 2: 2 cells where the header has 3; column 'y' is missing"),
    ("power,loss,y\n1,a,1\n1,a,3,5\n", ShapeError, r"row 3: 4 cells where the header has 3; there is '5' after .*'y'"),
    ('power,loss,y\n1,a,"2\n', DomainError, r"row 2: a quote is opened and not closed"),
    ('power,loss,y\n1,a,2\n1,"a"b,2\n', DomainError, r"row 3: .*expected after '\"'"),
    ("power,loss,z\n", DomainError, r"row 1: there is no column for the target 'y'; the columns are power, loss, z"),
    ("pwer,loss,y\n", DomainError, r"no column for the parameter 'power'; is it 'pwer'\?"),
    ("power,loss,y\n1,a,2\nlots,a,2\n", DomainError, r"row 3, column 'power': .*'lots'"),
    ("power,loss,y\n1,,2\n", DomainError, r"row 2, column 'loss': the cell is empty"),
    ("power;loss;y\n1,5;a;2\n", DomainError, r"row 2, column 'power': .*'1,5'.*decimal=','"),
    ("power;loss;y\n1;a;2,5\n", DomainError, r"row 2, column 'y': .*'2,5'.*decimal=','"),
    ("power,loss,y\n1,a,good\n", DomainError, r"row 2, column 'y': expected a number, nothing .*'good'"),
    ("power,loss,y\n1,a,nan\n", DomainError, r"row 2, column 'y': .*'nan'"),
    ("power,loss,y\n1,a,1e999\n", DomainError, r"row 2, column 'y': .*'1e999'"),
    ("power,loss,y\n1,a,-inf\n", DomainError, r"row 2, column 'y': .*'-inf'"),
    ("power,loss,y\n1,a,1_0\n", DomainError, r"row 2, column 'y': .*'1_0'"),
    ("power,loss,y\ninf,a,1\n", DomainError, r"row 2, column 'power': .*'inf'"),
    ("power,loss,y,y_sem\n1,a,1,0\n", DomainError, r"row 2, column 'y_sem': .*positive"),
    ("power,loss,y,y_sem\n1,a,1,small\n", DomainError, r"row 2, column 'y_sem': expected a number"),
    ("power,loss,y,status\n1,a,1,done\n", DomainError, r"row 2, column 'status': expected one of pending.*'done'"),
    ("power,loss,y,status\n1,a,,complete\n", DomainError, r"row 2, column 'y': .*complete.*no target is measured"),
    ("power,loss,y,status\n1,a,failed,complete\n", DomainError, r"row 2, column 'y': .*says failed.*says complete"),
    ("power,loss,y,trial\n1,a,1,A7\n", DomainError, r"row 2, column 'trial': .*'A7'"),
    ("power,loss,y,trial\n1,a,1,3\n2,a,1,3\n", DomainError, r"row 3, column 'trial': row 2 is trial 3 too"),
]


@pytest.mark.parametrize("text, error, words", BAD)
def test_bad_tables_are_refused_naming_row_and_column(
    tmp_path: Path, text: str | bytes, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        trials_of(tmp_path, text)
    assert "runs.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(SerializationError, match=r"none\.csv: there is no such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(SerializationError, match="cannot be read"):
        read_table(tmp_path)
    with pytest.raises(DomainError, match="decimal must be one of"):
        read_table(put(tmp_path, "a,b\n"), decimal="x")
    with pytest.raises(DomainError, match=r"my table, row 1: column 2 has no name"):
        read_table(put(tmp_path, "a,\n"), where="my table")
    with pytest.raises(DomainError, match=r"row 2, column 'power': expected a number with a decimal comma, got '1\.5'"):
        trials_of(tmp_path, "power;loss;y\n1.5;a;2\n", decimal=",")
    with pytest.raises(DomainError, match=r"row 2, column 'y': .*'2\.5'"):
        trials_of(tmp_path, "power;loss;y\n1;a;2.5\n", decimal=",")
    table = read_table(put(tmp_path, "power,loss,y\n"))
    for targets in ([], "y", [""], ["power"], ["note"], ["y", "y"], ["y", "y_sem"], [" y"]):
        with pytest.raises(DomainError):
            parse_trials(table, SPACE, targets)
    with pytest.raises(DomainError, match="'note' is a column of every history and a parameter"):
        parse_trials(table, Space(note=Real(0, 1)), ["y"])


def test_append_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, b"power;loss;y\r\n1;a;2")
    table, before = read_table(path), path.read_bytes()
    good = {"power": 1.0, "loss": "b"}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"colour": 1}, "no column 'colour'"),
        ({"loss": "a\nb"}, "one line"),
        ({"loss": "\ud800"}, "one line"),
        ({"power": object()}, "must be text"),
    ]
    for row, words in bad:
        with pytest.raises(DomainError, match=words):
            append_rows(path, table, [good, row])
        assert path.read_bytes() == before
    append_rows(path, table, [])
    assert path.read_bytes() == before

    write = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) < 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data[: len(data) - 5])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SerializationError, match=r"runs\.csv: cannot be written \(No space left"):
        append_rows(path, table, [good, good])
    assert path.read_bytes() == before
    monkeypatch.undo()

    append_rows(path, table, [good])
    assert path.read_bytes() == before + b"\r\n1.0;b;\r\n"
    path.write_bytes(before.replace(b"loss", b"lost"))
    with pytest.raises(SerializationError, match="another header"):
        append_rows(path, table, [good])
    path.unlink()
    with pytest.raises(ProbnnError, match="no such file"):
        append_rows(path, table, [good])
    assert not path.exists()
