"""`probnn init`: a space file that can be used as it is, in every dialect."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from probnn.cli import main
from probnn.optimization import Categorical, Integer, Real
from probnn.optimization.spacefile import read_space

from .tables import HEADER, experiments, write

DIALECTS = {
    "plain": {},
    "semicolons": {"delimiter": ";"},
    "German": {"delimiter": ";", "decimal": ",", "bom": True, "newline": "\r\n"},
    "tabs": {"delimiter": "\t", "newline": "\r\n"},
}


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_every_dialect_gives_the_same_space(folder: Path, dialect: dict, capsys: pytest.CaptureFixture) -> None:
    write(folder / "experiments.csv", experiments(), **dialect)
    assert main(["init", "experiments.csv", "--decimal", dialect.get("decimal", ".")]) == 0
    space = read_space("space.toml")
    rows = experiments()
    pressures = [float(row[1]) for row in rows]
    assert space.parameters == {
        "temperature": Integer(20, 80, step=5),
        "pressure": Real(min(pressures), max(pressures)),
        "solvent": Categorical(["DMF", "THF"]),
    }
    out = capsys.readouterr()
    assert out.err == ""
    assert "results: yield (guessed" in out.out


def test_the_printed_command_works(folder: Path, capsys: pytest.CaptureFixture) -> None:
    write(folder / "my runs.csv", experiments(), delimiter=";", decimal=",")
    assert main(["init", "my runs.csv", "--decimal", ",", "--target", "yield"]) == 0
    [command] = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("probnn")]
    assert main([*shlex.split(command)[1:], "--surrogate", "random"]) == 0


def test_an_existing_file_is_not_touched(lab: Path, capsys: pytest.CaptureFixture) -> None:
    before = (lab / "space.toml").read_bytes()
    assert main(["init", "experiments.csv"]) == 2
    assert capsys.readouterr().err == (
        "probnn: space.toml: is there already; --force replaces it, -o names another file\n"
    )
    assert (lab / "space.toml").read_bytes() == before
    assert main(["init", "experiments.csv", "--force"]) == 0
    assert (lab / "space.toml").read_bytes() != before


def test_two_targets_and_what_is_left_out(folder: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [[str(i + 1), *row, str(i % 7), "tidy up" if i == 3 else ""] for i, row in enumerate(experiments())]
    write(folder / "a.csv", rows, ["no", *HEADER, "cost", "remark"])
    assert main(["init", "a.csv", "--target", "yield", "--target", "cost", "-o", "b.toml"]) == 0
    assert list(read_space("b.toml").parameters) == ["temperature", "pressure", "solvent"]
    out = capsys.readouterr().out
    assert "left out: no (counts the rows)" in out
    assert "left out: remark (row 2 has no value" in out
    assert "results: yield, cost\n" in out
    assert "# Left out: no (counts the rows)" in (folder / "b.toml").read_text()
